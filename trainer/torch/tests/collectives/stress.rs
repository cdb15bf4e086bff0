//! Members that go away while messages are on their way. Gloo wakes nobody whose message is partly sent or partly received, so each of
//! these ended with the time-out of a minute before groups had a thread that interrupts them.

use std::{
    sync::{Arc, Barrier, mpsc},
    thread,
    time::{Duration, Instant},
};

use lcl_torch::{
    Device, Kind, Tensor,
    collectives::{AbortHandle, Group, MemoryStore},
};

use crate::{TIMEOUT, options};

/// Far below the time-out, and far above what a machine under load needs.
const BOUND: Duration = Duration::from_secs(20);
/// 32 MiB: more than the kernel buffers of a connection hold.
const NUMBERS: i64 = 8 << 20;
const ROUNDS: u64 = 24;

/// What the members do when one of them is aborted.
type Operation = fn(&mut Group, &mut Tensor) -> Result<(), lcl_torch::collectives::GroupError>;

fn transfer(group: &mut Group, tensor: &mut Tensor) -> Result<(), lcl_torch::collectives::GroupError> {
    if group.rank() == 0 { group.send(tensor, 1, 1, TIMEOUT) } else { group.receive(tensor, 0, 1, TIMEOUT) }
}

fn sum(group: &mut Group, tensor: &mut Tensor) -> Result<(), lcl_torch::collectives::GroupError> {
    group.all_reduce(tensor, TIMEOUT)
}

/// Members repeat `operation` until member `victim` is aborted some time within it. Returns how long each one took to notice.
fn round(operation: Operation, number: u64, world_size: usize, victim: usize) -> Vec<Duration> {
    let store = MemoryStore::default();
    let begun = Barrier::new(world_size);
    let (aborted, is_aborted) = mpsc::channel();
    thread::scope(|scope| {
        let start = |rank: usize| {
            let (store, begun, aborted) = (&store, &begun, aborted.clone());
            scope.spawn(move || {
                let abort = AbortHandle::new();
                let mut group = Group::form(options(Arc::new(store.session()), number, rank, world_size), &abort).expect("a group");
                let mut tensor = Tensor::ones([NUMBERS], (Kind::Float, Device::Cpu));
                begun.wait();
                if rank == victim {
                    let pause = Duration::from_micros(700 * number);
                    thread::spawn(move || {
                        // The moment within the operation: another one in every round.
                        thread::park_timeout(pause);
                        abort.abort();
                        aborted.send(Instant::now()).expect("a listener");
                    });
                }
                while operation(&mut group, &mut tensor).is_ok() {}
                assert!(!group.is_live());
                Instant::now()
            })
        };
        let members: Vec<_> = (0..world_size).map(start).collect();
        let ended: Vec<Instant> = members.into_iter().map(|member| member.join().expect("a member")).collect();
        let aborted = is_aborted.recv().expect("an abort");
        ended.into_iter().map(|end| end.saturating_duration_since(aborted)).collect()
    })
}

#[test]
fn nobody_waits_for_a_member_that_is_lost_while_a_message_is_on_its_way() {
    // The receiver goes, the sender goes; one of three goes within a sum.
    for (name, operation, world_size, victim) in
        [("send", transfer as Operation, 2, 1), ("receive", transfer as Operation, 2, 0), ("sum", sum as Operation, 3, 1)]
    {
        let mut longest = Duration::ZERO;
        for number in 1..=ROUNDS {
            let took = round(operation, number, world_size, victim);
            let slowest = took.iter().copied().max().unwrap_or_default();
            assert!(slowest < BOUND, "{name}, round {number}: {took:?}");
            longest = longest.max(slowest);
        }
        println!("{name}: at most {longest:?} in {ROUNDS} rounds");
    }
}

/// With NCCL, a closed group once counted as one that hangs: every member would have started itself anew after every change of the group.
#[test]
fn a_group_that_was_closed_is_gone_and_needs_no_rescue() {
    const DEADLINE: Duration = Duration::from_millis(200);
    let (sender, rescues) = mpsc::channel();
    let handle = AbortHandle::with_rescue(DEADLINE, move || sender.send(()).expect("a listener"));
    let store = MemoryStore::default();
    let mut group = Group::form(options(Arc::new(store.session()), 1, 0, 1), &handle).expect("a group");
    group.close();
    assert_eq!(rescues.recv_timeout(5 * DEADLINE), Err(mpsc::RecvTimeoutError::Timeout), "it was rescued");
    drop(handle);
}
