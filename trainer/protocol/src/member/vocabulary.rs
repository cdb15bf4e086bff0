//! What a member's machine is told, what it answers, and how it is set up.

use std::time::Duration;

use crate::{
    EndReason, Flags, Generation, Identity, Plan, Refusal, Role, Saved, StateLabel, StoreRequest, StoreResponse, ToCoordinator, ToMember,
};

/// What does not change while a member lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberSettings {
    /// Who it is.
    pub identity: Identity,
    /// See [`crate::Attach::config_digest`].
    pub config_digest: String,
    /// See [`crate::Attach::machine`].
    pub machine: Option<String>,
    /// Time between two heartbeats. Several fit into the coordinator's heartbeat time-out.
    pub heartbeat_interval: Duration,
    /// A coordinator not heard of for this long is lost.
    pub coordinator_timeout: Duration,
}

/// What happens to a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberEvent {
    /// The stream asked for by [`MemberCommand::Connect`] is open.
    Connected,
    /// The stream broke, or could not be opened for good.
    Disconnected {
        /// What was seen.
        reason: String,
    },
    /// A message came on the stream.
    Message(ToMember),
    /// The time of [`Member::deadline`] has come (or any other; too early is harmless).
    Tick,
    /// The process was asked to end.
    Drain,
    /// Training thread: the group is built, all ranks are connected.
    GroupFormed {
        /// Its generation.
        generation: Generation,
    },
    /// Training thread: it did what [`MemberCommand::Recover`] said and holds the base.
    Recovered {
        /// Its generation.
        generation: Generation,
        /// Completed steps of the state it now holds.
        step: u64,
    },
    /// Training thread, instead of [`MemberEvent::Recovered`]: what it would restore was written by a later generation of this job than the
    /// one that restores. Whoever formed the latter was replaced: it may not be gone on with.
    Overtaken {
        /// Its generation.
        generation: Generation,
        /// The later one.
        by: Generation,
    },
    /// Training thread: the update of a step is applied, after every collective of the step had completed without error.
    Committed {
        /// Its generation.
        generation: Generation,
        /// The step, counted as completed steps: one more than before.
        step: u64,
        /// What the members agreed on in this step.
        agreed: Flags,
    },
    /// Training thread, before it drops its group: members have compared their states, and some differ from the others'.
    StateDiffers {
        /// Its generation.
        generation: Generation,
        /// Whose.
        ranks: Vec<u32>,
        /// This member's is one of them: it holds nothing any more that anybody may go on from.
        is_own: bool,
    },
    /// Training thread: every reference to the group is dropped, after [`MemberCommand::AbortGroup`], [`MemberCommand::LeaveGroup`], or
    /// because of an error.
    GroupClosed {
        /// Its generation.
        generation: Generation,
        /// The error, if one was seen; what follows an abort or a leave is none.
        failure: Option<String>,
    },
    /// Training thread: a complete checkpoint is visible.
    CheckpointCommitted {
        /// Its generation.
        generation: Generation,
        /// Which.
        saved: Saved,
    },
    /// Training thread: the last step is done and what this member had to write is written. It keeps the group until it is told to end.
    Finished {
        /// Its generation.
        generation: Generation,
    },
    /// Training thread: an operation of its rendezvous.
    Store {
        /// The generation whose group it builds.
        generation: Generation,
        /// Number by which it recognises the response.
        id: u64,
        /// The operation.
        request: StoreRequest,
    },
}

/// What the driver has to do, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum MemberCommand {
    /// Open a stream, trying again with back-off until it is open; then [`MemberEvent::Connected`].
    Connect,
    /// Drop the stream; no [`MemberEvent::Disconnected`] is needed for it.
    Disconnect {
        /// Why.
        reason: String,
    },
    /// Send a message on the stream.
    Send(ToCoordinator),
    /// Training thread: build the group of this plan; then [`MemberEvent::GroupFormed`].
    FormGroup(Plan),
    /// Training thread: do what the role says; then [`MemberEvent::Recovered`].
    Recover {
        /// The generation.
        generation: Generation,
        /// The role; never [`Role::Level`].
        role: Role,
        /// The state all come to; `None`: the one that is restored.
        base: Option<StateLabel>,
    },
    /// Training thread: train from this step on.
    Train {
        /// The generation.
        generation: Generation,
        /// Completed steps so far.
        step: u64,
    },
    /// Training thread: write a checkpoint of the state as it is now, together with the others; then
    /// [`MemberEvent::CheckpointCommitted`] by whoever made it visible.
    WriteCheckpoint {
        /// The generation.
        generation: Generation,
        /// Completed steps.
        step: u64,
    },
    /// Training thread: leave the group in order (all members do so after the same step): a barrier, whose error is none, then drop it;
    /// then [`MemberEvent::GroupClosed`].
    LeaveGroup {
        /// The generation.
        generation: Generation,
    },
    /// Training thread, and at once: abort the group's collectives, drop it; then [`MemberEvent::GroupClosed`].
    AbortGroup {
        /// The generation.
        generation: Generation,
        /// Why.
        reason: String,
    },
    /// Training thread: the answer to a store operation.
    StoreResponse {
        /// The generation of the request.
        generation: Generation,
        /// Its number.
        id: u64,
        /// The answer.
        response: StoreResponse,
    },
    /// The process has nothing more to do.
    Exit {
        /// Why.
        reason: EndReason,
        /// Whether what it holds is safe without it.
        is_kept: bool,
    },
    /// The process can never take part.
    GiveUp(Refusal),
}

/// The training thread did something that the machine had not asked for: a mistake in the program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// A step out of order.
    #[error("member {member} committed step {step} in {generation}, but it holds {held:?}: commit every step once, in order")]
    WrongStep {
        /// The member.
        member: String,
        /// The generation.
        generation: Generation,
        /// The step.
        step: u64,
        /// Completed steps it holds.
        held: Option<u64>,
    },
    /// Recovered to another step than the plan's base.
    #[error("member {member} recovered to step {step} in {generation}, whose base is step {base}: the source sent another state")]
    WrongBase {
        /// The member.
        member: String,
        /// The generation.
        generation: Generation,
        /// What it recovered to.
        step: u64,
        /// What it should hold.
        base: u64,
    },
    /// An event that does not fit what the member is doing.
    #[error("member {member} was told `{event}` of {generation}, which does not fit what it is doing there: {state}")]
    OutOfOrder {
        /// The member.
        member: String,
        /// The event.
        event: &'static str,
        /// The generation it named.
        generation: Generation,
        /// What the member is doing.
        state: &'static str,
    },
}
