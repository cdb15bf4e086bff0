//! Forming a group: on a thread of its own, so that an abort or a time-out returns whatever libtorch waits for.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use tch::Device;

use super::{
    abort::AbortHandle,
    error::GroupError,
    gather::GatheringStore,
    store::{Store, StoreError},
};
use crate::shim::{
    collectives::{Device as Listener, Formation, RawGroup},
    sockets::{self, Connection},
};

/// How long an aborted or late formation may take to end before its thread is left behind. It ends within milliseconds while it waits for
/// the store; while it waits for a connection to a member that has died it ends with the formation's time-out.
const GRACE: Duration = Duration::from_millis(250);

/// One device is opened at a time, so that its listening socket can be told from another's.
static OPENING: Mutex<()> = Mutex::new(());

/// What a group is formed of. All members give the same prefix and world size, and different ranks.
#[derive(Clone)]
pub struct GroupOptions {
    /// This member's session; used for this group alone.
    pub store: Arc<dyn Store>,
    /// Name of the generation, put before every key. Never used twice with one store.
    pub prefix: String,
    /// This member, from 0.
    pub rank: usize,
    /// Number of members.
    pub world_size: usize,
    /// Address of this host that the other members reach. A free port is taken.
    pub host: IpAddr,
    /// Where this member computes; of the same kind on all members. A GPU's tensors travel by NCCL.
    pub device: Device,
    /// For all members to come.
    pub timeout: Duration,
}

impl std::fmt::Debug for GroupOptions {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { prefix, rank, world_size, host, device, timeout, .. } = self;
        write!(formatter, "GroupOptions({prefix}: rank {rank} of {world_size} at {host} on {device:?}, {timeout:?})")
    }
}

/// A formed group and its connections.
type Formed = (RawGroup, Vec<Connection>);

enum Event {
    Formed(Box<Result<Formed, GroupError>>),
    Woken,
}

/// Waits until all members are there, the time-out has passed, or the group is aborted.
pub(super) fn form(options: GroupOptions, abort: &AbortHandle) -> Result<RawGroup, GroupError> {
    let operation = "forming a group";
    let GroupOptions { rank, world_size, timeout, .. } = options;
    if rank >= world_size || i32::try_from(world_size).is_err() {
        return Err(GroupError::Argument { operation, reason: format!("rank {rank} of {world_size}") });
    }
    let (sender, receiver) = channel();
    let waker: Sender<Event> = sender.clone();
    abort.begin(
        Arc::clone(&options.store),
        Box::new(move || {
            // Nobody waits any more: fine.
            let _ = waker.send(Event::Woken);
        }),
    );
    let thread = thread::Builder::new().name("lcl-form-group".to_owned()).spawn(move || {
        // Dropped here, at the latest with the formation's time-out, if the caller has given up.
        let _ = sender.send(Event::Formed(Box::new(build(&options))));
    });
    thread.map_err(GroupError::Sockets)?;
    let outcome = receive(&receiver, timeout);
    match outcome {
        Some(Ok((mut group, connections))) => {
            let interrupter = group.interrupter().map_err(|source| GroupError::Form { rank, world_size, source })?;
            abort.formed(connections, interrupter).map_err(GroupError::Sockets)?;
            Ok(group)
        }
        Some(Err(_)) if abort.is_aborted() => Err(GroupError::Aborted { operation }),
        Some(Err(error)) => {
            abort.disconnect();
            Err(error)
        }
        None => {
            abort.disconnect();
            // Give the thread the time it needs to let go of the store and its socket.
            let _ = receive_formed(&receiver, GRACE);
            if abort.is_aborted() {
                Err(GroupError::Aborted { operation })
            } else {
                Err(GroupError::FormTimeout { rank, world_size, timeout })
            }
        }
    }
}

/// The outcome, or nothing after an abort or the time-out.
fn receive(receiver: &Receiver<Event>, timeout: Duration) -> Option<Result<Formed, GroupError>> {
    match receiver.recv_timeout(timeout) {
        Ok(Event::Formed(outcome)) => Some(*outcome),
        Ok(Event::Woken) | Err(_) => None,
    }
}

/// As [`receive`], over further wake-ups.
fn receive_formed(receiver: &Receiver<Event>, timeout: Duration) -> Option<Result<Formed, GroupError>> {
    let end = Instant::now() + timeout;
    loop {
        match receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(Event::Formed(outcome)) => return Some(*outcome),
            Ok(Event::Woken) => {}
            Err(_) => return None,
        }
    }
}

fn build(options: &GroupOptions) -> Result<Formed, GroupError> {
    let GroupOptions { store, prefix, rank, world_size, host, timeout, .. } = options;
    let failed = |source| GroupError::Form { rank: *rank, world_size: *world_size, source };
    let (device, own) = open(*host, failed)?;
    let text = own.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let gathering = Arc::new(GatheringStore::new(Arc::clone(store), prefix, (*rank, *world_size), text.into_bytes()));
    let formation = Formation {
        store: Arc::clone(&gathering) as Arc<dyn Store>,
        prefix,
        device: &device,
        rank: *rank,
        world_size: *world_size,
        timeout: *timeout,
    };
    let group = RawGroup::form(formation).map_err(failed)?;
    let mut peers = Vec::new();
    for (other, text) in gathering.listeners(*timeout).map_err(GroupError::Addresses)? {
        if other != *rank {
            peers.extend(parse(other, &text).map_err(GroupError::Addresses)?);
        }
    }
    let connections = sockets::connections(&own, &peers).map_err(GroupError::Sockets)?;
    let expected = world_size - 1;
    if connections.len() < expected {
        return Err(GroupError::MissingSockets { found: connections.len(), expected });
    }
    Ok((group, connections))
}

/// Opens a device and finds the address it listens at.
fn open(host: IpAddr, failed: impl Fn(crate::shim::ShimError) -> GroupError) -> Result<(Listener, Vec<SocketAddr>), GroupError> {
    let _one_at_a_time = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
    let before = sockets::without_peer(host).map_err(GroupError::Sockets)?;
    let device = Listener::open(&host.to_string()).map_err(failed)?;
    let after = sockets::without_peer(host).map_err(GroupError::Sockets)?;
    let own: Vec<_> =
        after.into_iter().filter(|(inode, _)| before.iter().all(|(former, _)| former != inode)).map(|(_, address)| address).collect();
    if own.is_empty() { Err(GroupError::MissingSockets { found: 0, expected: 1 }) } else { Ok((device, own)) }
}

fn parse(rank: usize, text: &[u8]) -> Result<Vec<SocketAddr>, StoreError> {
    let wrong = || StoreError::Unreachable { reason: format!("what rank {rank} has told is no addresses") };
    std::str::from_utf8(text).map_err(|_| wrong())?.split_whitespace().map(|address| address.parse().map_err(|_| wrong())).collect()
}
