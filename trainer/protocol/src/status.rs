//! What the coordinator shows to the outside: pure values, cheap to compare and to send.

use std::time::Duration;

use crate::{EndReason, Generation, MemberName, Saved, SourceProgress, TrainingProgress, World};

/// A snapshot of the job as the coordinator sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// What the group is doing.
    pub phase: Phase,
    /// The generation that trains or trained last, else the coordinator's epoch with n = 0.
    pub generation: Generation,
    /// The bounds in force.
    pub world: World,
    /// Everybody attached, ordered by name.
    pub members: Vec<MemberStatus>,
    /// Steps that every member of the group has committed, as far as the coordinator has heard. Falls only when no live member held more,
    /// and then [`HistoryEvent::WentBack`] says so.
    pub step: u64,
    /// The newest checkpoint that was reported.
    pub last_checkpoint: Option<Saved>,
    /// A checkpoint of this step or a later one was asked for and is not there yet.
    pub wanted_checkpoint: Option<u64>,
    /// How training comes along, as the member of rank 0 last told.
    pub training: Option<TrainingProgress>,
    /// The sources of a mixture, as the member of rank 0 last told.
    pub sources: Vec<SourceProgress>,
    /// The last things that happened, oldest first. Numbers show whether some were missed.
    pub history: Vec<HistoryEntry>,
}

impl Status {
    /// Completed steps of the newest checkpoint that was reported.
    #[must_use]
    pub fn saved_step(&self) -> Option<u64> {
        self.last_checkpoint.as_ref().map(|saved| saved.step)
    }
}

/// What the group is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not enough members for a generation.
    Waiting,
    /// A generation trains. After a change of coordinators also while its members are still attaching.
    Running,
    /// The last generation has ended, its members are reporting.
    Recovering,
    /// Nothing more will be trained.
    Ended(EndReason),
}

/// One attached member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its name.
    pub name: MemberName,
    /// Its node.
    pub node: String,
    /// Its rank in the running generation; `None` for one that waits.
    pub rank: Option<u32>,
    /// Completed steps of the state it holds, as last heard.
    pub step: Option<u64>,
}

/// By which sign a loss was noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LossCause {
    /// Its stream broke or was ended.
    StreamClosed,
    /// Nothing was heard of it for too long.
    Silent,
    /// It did not let go of a broken group in time.
    NoReport,
    /// A process of the same name took its place.
    Replaced,
    /// It stood still while others waited for it.
    Stalled,
    /// Members that hold the job's state compute on another kind of machine.
    OtherMachine,
    /// It was slower than the others for as long as the job bears it.
    Slow,
}

impl LossCause {
    /// A word for metrics.
    #[must_use]
    pub const fn category(self) -> &'static str {
        match self {
            Self::StreamClosed => "stream_closed",
            Self::Silent => "silent",
            Self::NoReport => "no_report",
            Self::Replaced => "replaced",
            Self::Stalled => "stalled",
            Self::OtherMachine => "other_machine",
            Self::Slow => "slow",
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    /// Consecutive, from 1.
    pub sequence: u64,
    /// When, as the driver counts time.
    pub at: Duration,
    /// What.
    pub event: HistoryEvent,
}

/// Kinds of things that happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HistoryEvent {
    /// A member attached.
    Joined {
        /// Who.
        member: MemberName,
    },
    /// A member was lost.
    Lost {
        /// Who.
        member: MemberName,
        /// By which sign.
        cause: LossCause,
        /// What was seen.
        reason: String,
    },
    /// A member left in order.
    Left {
        /// Who.
        member: MemberName,
        /// Why.
        reason: EndReason,
    },
    /// A generation was formed.
    Formed {
        /// Which.
        generation: Generation,
        /// Its number of members.
        world: u32,
        /// The step it goes on from; `None`: from storage.
        base: Option<u64>,
    },
    /// A generation that an earlier coordinator formed is led by this one now; it was not interrupted.
    Adopted {
        /// Which.
        generation: Generation,
        /// Its number of members.
        world: u32,
    },
    /// A generation ended before its time.
    Broken {
        /// Which.
        generation: Generation,
        /// What was seen.
        reason: String,
    },
    /// All members of a generation have committed their first step after the one before had ended.
    Recovered {
        /// Which.
        generation: Generation,
        /// From the end of the generation before until the coordinator heard of it.
        took: Duration,
    },
    /// A member has been slower than the others for a while, and all wait for it in every step.
    Slow {
        /// Who.
        member: MemberName,
        /// Its own work in a step.
        step_work: Duration,
        /// The median of all members.
        median: Duration,
    },
    /// The live members hold less than what was committed before.
    WentBack {
        /// Committed steps before.
        from: u64,
        /// Committed steps now.
        to: u64,
    },
}
