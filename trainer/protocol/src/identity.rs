//! Who a member is, and what it says of itself when it attaches. Pure values.

use std::{fmt, time::Duration};

use crate::{Generation, StateLabel};

/// Name of a member: the worker that supervises it and its number there. The same for every incarnation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberName {
    /// The worker (the pod's name).
    pub worker: String,
    /// Number of the member within its worker, from 0.
    pub index: u32,
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.worker, self.index)
    }
}

/// Which process of a name it is. By this processes are told apart; which of two runs is the newer one a [`Ticket`] tells, and no clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation {
    /// Drawn at random by the worker's process when it begins: the same for all members that it starts, and for no other worker's.
    pub run: u64,
    /// How often that worker has started this member, from 1. It starts another only when the one before has ended, so a higher number is a
    /// newer process.
    pub start: u64,
}

/// A place in the order of the runs that bear one name: a coordinator gives it to a run that it has not seen yet, and the run shows it to
/// every coordinator from then on. Tickets of one coordinator grow, and those of a later coordinator are higher than all before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket {
    /// The coordinator's epoch.
    pub epoch: u64,
    /// How many it had given by then, this one included.
    pub n: u64,
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.n)
    }
}

/// Where a process stands among those of its name: the higher is the newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn {
    /// Its run's ticket.
    pub ticket: Ticket,
    /// See [`Incarnation::start`].
    pub start: u64,
}

impl fmt::Display for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ticket {}, start {}", self.ticket, self.start)
    }
}

/// One process of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its name.
    pub name: MemberName,
    /// Which process of that name it is.
    pub incarnation: Incarnation,
    /// The node it runs on. Ranks and seats are dealt out by it, so that neighbours share one.
    pub node: String,
    /// The IP address (and port, where it has one) under which the others reach it for collectives.
    pub address: String,
}

/// What a member says of itself on a new stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attach {
    /// [`crate::PROTOCOL_VERSION`] of the member.
    pub protocol_version: u32,
    /// Who it is.
    pub identity: Identity,
    /// The ticket that its run was given; `None` before: then it is answered with one, and says all of this again with it.
    pub ticket: Option<Ticket>,
    /// Digest of everything that must be the same on all members: configuration and data.
    pub config_digest: String,
    /// What the bits of its results depend on besides (instruction set, libtorch, threads, kind of GPU), in words; `None` where members may
    /// differ in their last bits.
    pub machine: Option<String>,
    /// The highest generation it has heard of.
    pub known: Option<Generation>,
    /// The state it holds; `None` when it has just started.
    pub held: Option<StateLabel>,
    /// It was asked to end and only wants to leave in order.
    pub draining: bool,
    /// The group it still holds; `None` when there is nothing that it could report the end of.
    pub group: Option<HeldGroup>,
    /// The newest checkpoint that it made visible.
    pub saved: Option<Saved>,
}

/// A checkpoint that is complete in the store. Greater is newer.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Saved {
    /// Completed steps in it.
    pub step: u64,
    /// When it was complete, by the clock of the member that wrote it, since the Unix epoch.
    pub time: Duration,
    /// Name of its folder in the run's.
    pub folder: String,
}

impl From<u64> for Saved {
    /// One of which nothing is known but its steps.
    fn from(step: u64) -> Self {
        Self { step, ..Self::default() }
    }
}

/// A group that a member holds while it attaches: it trains in it without a coordinator, or is about to drop it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldGroup {
    /// The group's generation.
    pub generation: Generation,
    /// The member's rank.
    pub rank: u32,
    /// Number of members.
    pub world: u32,
    /// The member's seat in the [`crate::Division`].
    pub seat: u32,
    /// Seats, empty ones included.
    pub seats: u32,
    /// See [`crate::Plan::list_digest`].
    pub list_digest: u64,
    /// The last step is done.
    pub finished: bool,
}

/// What a member's training thread is doing, as far as it can tell by itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Activity {
    /// What kind of work it is in. Operations are compared with those of members in the same one.
    pub stage: ActivityStage,
    /// While it trains, collective operations that it has entered since its generation does. All members enter the same ones in the same
    /// order, so one that has entered fewer is waited for by the others. In other stages anything that grows as it gets on.
    pub operations: u64,
    /// Its own work in a step, data included, waiting for others not; the mean of the last steps. `None` before the first.
    pub step_work: Option<Duration>,
    /// How training comes along, which the member of rank 0 tells for all; of others, and before the first step, `None`.
    pub training: Option<TrainingProgress>,
    /// How the sources of a mixture come along, which the member of rank 0 tells for all; of others empty.
    pub sources: Vec<SourceProgress>,
}

/// What kind of work a member of a generation is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ActivityStage {
    /// Work of its own before the first step, in which it waits for no other member: reading a checkpoint, hashing, copying.
    Preparing,
    /// Finding the others, and sending or receiving the state. Each wait for another member has its own end, unless that one prepares.
    Transferring,
    /// Steps.
    #[default]
    Training,
}

/// How training comes along: means of the last steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainingProgress {
    /// The loss that is minimised; `None` where it is no finite number.
    pub loss: Option<f64>,
    /// Samples of all members a second.
    pub samples_per_second: f64,
}

/// How a source of a mixture comes along.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceProgress {
    /// Its name in the manifest.
    pub name: String,
    /// Its samples that have had their turn in the whole run: the position at which its own sequence goes on.
    pub samples: u64,
    /// Generation loss of its rows, not weighted: the mean over their predicted tokens in the last steps. `None` without any.
    pub generation_loss: Option<f64>,
    /// Contrastive loss of its rows, not weighted: the mean over their contrasted images in the last steps. `None` without any.
    pub contrastive_loss: Option<f64>,
    /// Its part of the wait for a batch; the mean of the last steps.
    pub data_wait: Duration,
}

/// Sources of which a coordinator hears. A manifest has no more: the number of what is told about them to the outside stays bounded.
pub const MOST_SOURCES: usize = 16;
