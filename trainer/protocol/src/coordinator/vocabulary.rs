//! What is said to the machine, and what it says.

use std::time::Duration;

use super::pace::SlowEviction;
use crate::{HistoryEntry, ToCoordinator, ToMember, World};

/// Number by which the driver knows a stream. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// What does not change while a coordinator lives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CoordinatorSettings {
    /// Higher than that of every coordinator of this job before.
    pub epoch: u64,
    /// Bounds on the number of members at the start.
    pub world: World,
    /// How long to wait for the desired members once the fewest are there, before the first generation; for all members of a group that is
    /// to be taken over; and for those without whom nobody can save what others are to leave with. Where anybody holds state already, the
    /// desired members are waited for no longer than for the heartbeat's time-out.
    pub formation_wait: Duration,
    /// A member not heard of for this long is lost.
    pub heartbeat_timeout: Duration,
    /// A member that has not reported this long after its generation was closed is evicted. Longer than a step takes, since a report
    /// waits until the training thread has let go.
    pub report_timeout: Duration,
    /// A member whose training thread has stood still for this long, while others have waited for it as long, is evicted. Longer than any
    /// step takes, its data included.
    pub stall_timeout: Duration,
    /// When a member that is slow for good is evicted; `None`: it is only put on record.
    pub slow_eviction: Option<SlowEviction>,
}

/// What happens to the coordinator.
#[derive(Clone, Debug, PartialEq)]
pub enum CoordinatorEvent {
    /// A stream was opened.
    Opened {
        /// The stream.
        connection: ConnectionId,
    },
    /// A message came.
    Message {
        /// On this stream.
        connection: ConnectionId,
        /// The message.
        message: ToCoordinator,
    },
    /// A stream broke or was ended by the member.
    Closed {
        /// The stream.
        connection: ConnectionId,
        /// What was seen.
        reason: String,
    },
    /// The time of [`Coordinator::deadline`] has come (or any other; too early is harmless).
    Tick,
    /// New bounds on the number of members.
    SetWorld(World),
    /// All members of this worker are to leave in order.
    DrainWorker {
        /// The worker.
        worker: String,
    },
    /// All members are to write a checkpoint and end.
    Stop,
    /// The group is to write a checkpoint of this step or a later one, and to go on. A step that was not committed yet counts as the
    /// committed one.
    Checkpoint {
        /// The step; `None` for the committed one.
        from: Option<u64>,
    },
}

/// What the driver has to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CoordinatorCommand {
    /// Send a message.
    Send {
        /// On this stream.
        connection: ConnectionId,
        /// The message.
        message: ToMember,
    },
    /// Close a stream after what was sent on it. No [`CoordinatorEvent::Closed`] is needed for it.
    Close {
        /// The stream.
        connection: ConnectionId,
    },
    /// Something happened that the status tells, too, as long as it is among the last: for logs and counters.
    Record(HistoryEntry),
}
