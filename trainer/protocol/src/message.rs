//! What coordinator and member say to each other. Every message carries a generation; pure values, turned into protobuf elsewhere.

use std::{
    fmt,
    ops::{BitOr, BitOrAssign},
};

use crate::{Activity, Attach, Generation, Plan, Saved, StateLabel, StoreRequest, StoreResponse, Ticket, Turn};

/// From a member. All but [`ToCoordinator::Attach`] are ignored before it.
#[derive(Clone, Debug, PartialEq)]
pub enum ToCoordinator {
    /// The first message on a stream.
    Attach(Box<Attach>),
    /// Still there; sent at a fixed interval and when a generation has made its first step.
    Heartbeat {
        /// The generation whose group it has, else the highest it knows.
        generation: Option<Generation>,
        /// The state it holds.
        held: Option<StateLabel>,
        /// What it is doing.
        activity: Activity,
    },
    /// It has left the group of this generation: every reference is dropped and no update can be applied any more.
    Report {
        /// The generation it left.
        generation: Generation,
        /// The state it holds.
        held: Option<StateLabel>,
        /// Why it left.
        cause: ReportCause,
    },
    /// It was asked to end (SIGTERM) and wants to leave in order.
    Drain {
        /// The highest generation it knows.
        generation: Option<Generation>,
    },
    /// A complete checkpoint is visible.
    CheckpointCommitted {
        /// Generation of the writer.
        generation: Generation,
        /// Which.
        saved: Saved,
    },
    /// The last step is done, and what this member had to write is written.
    Finished {
        /// Its generation.
        generation: Generation,
        /// The last step.
        step: u64,
    },
    /// A key-value operation of its rendezvous.
    Store {
        /// The generation whose keys are meant.
        generation: Generation,
        /// Number by which the member recognises the response.
        id: u64,
        /// The operation.
        request: StoreRequest,
    },
}

/// To a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToMember {
    /// It has shown no ticket, and its run is not known: this is one. It attaches again with it, on the same stream. Until then it has no
    /// place, so that what a process said before it died takes none from its successor.
    Ticket {
        /// The coordinator's generation.
        generation: Generation,
        /// The ticket, higher than all before.
        ticket: Ticket,
    },
    /// It is attached and waits for a plan.
    Attached {
        /// The coordinator's generation.
        generation: Generation,
        /// The ticket of its run.
        ticket: Ticket,
    },
    /// It cannot be attached; the stream is closed.
    Refused {
        /// The coordinator's generation.
        generation: Generation,
        /// Why.
        reason: Refusal,
    },
    /// A new generation.
    Form(Plan),
    /// The group of this generation is broken: abort, drop it, report.
    Abort {
        /// The broken generation.
        generation: Generation,
        /// What was seen.
        reason: String,
    },
    /// Raise these flags on the next collective.
    Wish {
        /// The generation they are for.
        generation: Generation,
        /// The flags.
        flags: Flags,
    },
    /// Raise [`Flags::CHECKPOINT`] on the next collective, unless a checkpoint of this step or a later one was agreed on already: then the
    /// wish has crossed with those of the others.
    WishCheckpoint {
        /// The generation it is for.
        generation: Generation,
        /// Completed steps that the checkpoint must hold at least.
        from: u64,
    },
    /// Answer to a heartbeat.
    Alive {
        /// The coordinator's generation.
        generation: Generation,
    },
    /// Answer to a store request.
    Store {
        /// The generation of the request.
        generation: Generation,
        /// Its number.
        id: u64,
        /// The answer.
        response: StoreResponse,
    },
    /// It is no longer a member; the stream is closed. It may attach again.
    Evicted {
        /// The coordinator's generation.
        generation: Generation,
        /// Why.
        reason: String,
    },
    /// The process has nothing more to do.
    End {
        /// The coordinator's generation.
        generation: Generation,
        /// Why.
        reason: EndReason,
        /// Whether what it holds, or more, is in a checkpoint or with members that stay: it need not save anything.
        is_kept: bool,
    },
}

/// Why a member left its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReportCause {
    /// All members left after the same step, as agreed.
    Agreed,
    /// The coordinator said so.
    Aborted,
    /// A collective failed, or the group could not be built.
    Failed {
        /// The error.
        detail: String,
        /// Ranks whose state was found to differ from the others' where all have to be the same; in most failures there are none.
        differing: Vec<u32>,
    },
}

/// Why a member cannot be attached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another protocol version.
    #[error("the coordinator speaks protocol version {coordinator}, member {member} speaks {version}: use images of one release for both")]
    ProtocolVersion {
        /// The member.
        member: String,
        /// Its version.
        version: u32,
        /// The coordinator's.
        coordinator: u32,
    },
    /// Another configuration than the members that attached before.
    #[error(
        "member {member} has configuration digest {digest}, the job's other members have {expected}: give all the same configuration and data"
    )]
    Configuration {
        /// The member.
        member: String,
        /// Its digest.
        digest: String,
        /// The digest of those before.
        expected: String,
    },
    /// Its results would differ from the others' in their last bits, in a job that is to give the same bits everywhere.
    #[error(
        "member {member} computes on \"{machine}\", the job's other members on \"{expected}\": with spec.optimization.exact all need machines of one \
         kind; select such nodes in spec.workers.template"
    )]
    Machine {
        /// The member.
        member: String,
        /// What it computes on.
        machine: String,
        /// What the others compute on.
        expected: String,
    },
    /// A newer process of the same name was seen. Final for the whole run: whatever its worker starts is older, too.
    #[error("a newer process of member {member} ({newest}) has attached, this one ({own}) has no place any more: it ends")]
    Superseded {
        /// The member.
        member: String,
        /// Where it stands.
        own: Turn,
        /// Where the newest seen stands.
        newest: Turn,
    },
    /// The member has heard of a later coordinator.
    #[error("this coordinator has epoch {epoch}, but member {member} knows {known}: it was replaced, or started with an old epoch")]
    StaleCoordinator {
        /// The member.
        member: String,
        /// The coordinator's epoch.
        epoch: u64,
        /// What the member knows.
        known: Generation,
    },
}

impl Refusal {
    /// Whether attaching again, perhaps to another coordinator, can go better.
    #[must_use]
    pub const fn is_worth_another_try(&self) -> bool {
        matches!(self, Self::StaleCoordinator { .. })
    }
}

/// Why a member's process has nothing more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The last step is done on all members.
    Complete,
    /// This member was asked to leave.
    Drained,
    /// The job was asked to stop; a checkpoint was asked for first.
    Stopped,
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Complete => "complete",
            Self::Drained => "drained",
            Self::Stopped => "stopped",
        })
    }
}

/// What the members have to agree on. A member contributes its flags to a small collective of the step that combines them by bitwise or
/// (a maximum per bit); the result, equal on all members, is what was agreed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u32);

impl Flags {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Leave the group, so that another can be formed.
    pub const LEAVE: Self = Self(1);
    /// Write a checkpoint (before leaving, when both are set).
    pub const CHECKPOINT: Self = Self(2);

    /// From the number that travelled. Unknown bits are dropped.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits & (Self::LEAVE.0 | Self::CHECKPOINT.0))
    }

    /// The number that travels.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether none is set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Flags {
    fn bitor_assign(&mut self, other: Self) {
        *self = *self | other;
    }
}
