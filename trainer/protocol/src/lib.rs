//! Who belongs to the training group, from which state it goes on, and when that changes: the protocol of `ARCHITECTURE.md` as two
//! state machines, [`Coordinator`] and [`Member`].
//!
//! Comes in: messages, connections that open and break, what the training thread reports, and the time (as a duration since any
//! fixed instant that the driver chose). Goes out: commands (messages to send, connections to close, what the training thread has to do)
//! and the time of the next timer.
//! Neither machine reads a clock, draws a random number, waits, or knows of gRPC, tokio or tensors: the same history of inputs gives the
//! same outputs, which is what the property tests in `tests/histories` rest on.
//!
//! How a group lives:
//!
//! 1. Members attach ([`Attach`]) with the state they hold. The coordinator forms a [`Generation`] of them and sends each its [`Plan`].
//! 2. Each member builds the collective group (its rendezvous is the coordinator's [`StoreRequest`]s), is brought to the plan's base state
//!    by a member that holds it, and trains without asking anyone.
//! 3. A wish to change the membership is pushed as [`Flags`], which ride on a collective of the step: read at step s by all, they take
//!    effect after step s + 1 on all.
//! 4. After a failure the survivors drop the group, report the state they hold, and receive the plan of the next generation.
//! 5. Without a coordinator a group goes on training; only what has to be agreed on waits. Its members attach to the next coordinator with
//!    the group they hold, and it takes the group over as it is once all of them are there.
//!
//! What a training process does with all that, and in which order, is in [`drive`].
//!
//! States are compared by [`StateLabel`] (step, then the generation that committed it), never by step alone: two states of the same step
//! from different generations need not be equal bit for bit.

mod coordinator;
pub mod drive;
mod generation;
mod identity;
mod member;
mod message;
mod plan;
mod slots;
mod spread;
mod status;
mod store;
mod world;

pub use coordinator::{
    ConnectionId, Coordinator, CoordinatorCommand, CoordinatorEvent, CoordinatorSettings, InvalidSlowEviction, SlowEviction,
};
pub use generation::{Generation, StateLabel};
pub use identity::{
    Activity, ActivityStage, Attach, HeldGroup, Identity, Incarnation, MOST_SOURCES, MemberName, Saved, SourceProgress, Ticket,
    TrainingProgress, Turn,
};
pub use member::{Member, MemberCommand, MemberError, MemberEvent, MemberSettings};
pub use message::{EndReason, Flags, Refusal, ReportCause, ToCoordinator, ToMember};
pub use plan::{Loss, Plan, Role};
pub use slots::{Division, InvalidDivision};
pub use spread::{HALVES, Hop, Moves, Round, spread};
pub use status::{HistoryEntry, HistoryEvent, LossCause, MemberStatus, Phase, Status};
pub use store::{MAX_STORE_BYTES, StoreRequest, StoreResponse};
pub use world::{InvalidWorld, World};

/// Version of the messages and their meaning. A coordinator refuses a member with any other.
pub const PROTOCOL_VERSION: u32 = 7;
