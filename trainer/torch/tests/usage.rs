//! What a process tells of its collective operations. The counters are the process's own, so this test has one to itself.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Barrier},
    thread,
    time::Duration,
};

use lcl_torch::{
    Device, Tensor,
    collectives::{AbortHandle, Group, GroupOptions, MemoryStore, Usage},
};

/// Far above what anything takes here.
const TIMEOUT: Duration = Duration::from_mins(1);
const MEMBERS: u64 = 2;
const EXCHANGES: u64 = 5;

fn form(store: &MemoryStore, rank: usize) -> Group {
    let (store, host) = (Arc::new(store.session()), IpAddr::V4(Ipv4Addr::LOCALHOST));
    let world_size = MEMBERS as usize;
    let options = GroupOptions { store, prefix: "1".to_owned(), rank, world_size, host, device: Device::Cpu, timeout: TIMEOUT };
    Group::form(options, &AbortHandle::new()).expect("a group")
}

#[test]
fn every_operation_that_a_member_enters_counts_once() {
    let (store, meeting) = (&MemoryStore::default(), &Barrier::new(MEMBERS as usize));
    let member = move |rank: usize| {
        let mut group = form(store, rank);
        let read = || {
            meeting.wait();
            let operations = Usage::now().operations;
            meeting.wait();
            operations
        };
        let mut counts = vec![read()];
        for number in 0..EXCHANGES {
            group.exchange(&[number as i64], TIMEOUT).expect("numbers");
        }
        counts.push(read());
        group.all_reduce(&mut Tensor::from_slice(&[1f32]), TIMEOUT).expect("a sum");
        counts.push(read());
        group.leave(TIMEOUT).expect("all leave");
        counts
    };
    let counts = thread::scope(|scope| {
        let threads: Vec<_> = (0..MEMBERS as usize).map(|rank| scope.spawn(move || member(rank))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a member")).collect::<Vec<_>>()
    });
    assert_eq!(counts[0], counts[1]);
    let grown: Vec<u64> = counts[0].windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(grown, [MEMBERS * EXCHANGES, MEMBERS]);
}
