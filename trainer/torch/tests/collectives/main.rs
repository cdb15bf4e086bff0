//! Groups of members, in threads and in processes: what they compute, and what happens when one is lost.

#[path = "../golden/compare.rs"]
#[allow(dead_code, reason = "a part of it is for one member alone")]
mod compare;
mod exact;
mod operations;
mod processes;
#[path = "../golden/reference.rs"]
#[allow(dead_code, reason = "a part of it is for one member alone")]
mod reference;
mod roles;
mod steps;
mod stress;
#[path = "../training/support.rs"]
#[allow(dead_code, reason = "a part of it is for one member alone")]
mod support;
mod wire;

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Barrier},
    thread,
    time::Duration,
};

use lcl_torch::{
    Device,
    collectives::{AbortHandle, Group, GroupError, GroupOptions, MemoryStore, Store},
};

/// Far above what anything takes here, so that a hung operation fails the test with a reason.
pub(crate) const TIMEOUT: Duration = Duration::from_mins(1);

pub(crate) fn options(store: Arc<dyn Store>, generation: u64, rank: usize, world_size: usize) -> GroupOptions {
    let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
    GroupOptions { store, prefix: format!("generation-{generation}"), rank, world_size, host, device: Device::Cpu, timeout: TIMEOUT }
}

pub(crate) fn form(store: &MemoryStore, generation: u64, rank: usize, world_size: usize) -> Result<Group, GroupError> {
    Group::form(options(Arc::new(store.session()), generation, rank, world_size), &AbortHandle::new())
}

/// Runs `body` as every rank of a group, each in a thread of its own, and returns the results in rank order.
pub(crate) fn as_members<T: Send>(world_size: usize, body: impl Fn(&mut Group) -> T + Sync) -> Vec<T> {
    // A member that leaves at once would fail the forming of a slower one.
    let (store, body, formed) = (MemoryStore::default(), &body, &Barrier::new(world_size));
    thread::scope(|scope| {
        let start = |rank| {
            let store = &store;
            scope.spawn(move || {
                let mut group = form(store, 1, rank, world_size).expect("a group");
                formed.wait();
                let outcome = body(&mut group);
                let _ = group.leave(TIMEOUT);
                outcome
            })
        };
        let threads: Vec<_> = (0..world_size).map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("a member")).collect()
    })
}
