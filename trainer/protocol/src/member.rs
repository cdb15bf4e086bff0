//! A member's machine: between the stream to the coordinator and the training thread.
//!
//! Comes in: [`MemberEvent`]s of both sides, each with the time. Goes out: [`MemberCommand`]s for both.
//! What it must not do: let the process report a state that can still change, or take part in a generation older than one it knows.
//!
//! The training thread holds at most one group at a time. It is told to build one ([`MemberCommand::FormGroup`]) and, whatever happens,
//! answers for it exactly once with [`MemberEvent::GroupClosed`], after it has dropped every reference to the group. Until then the member
//! does not report, since an update may still be applied.
//!
//! A stream that breaks does not end a group that trains: the member goes on, attaches again and says which group it holds. It is then for
//! the coordinator to go on with the group (a new one, once all members are there) or to abort it (one that has counted the member as
//! lost). A group that is still being built or brought level is dropped first: that needs a coordinator.

mod vocabulary;

use std::time::Duration;

use crate::{Activity, Attach, EndReason, Flags, Generation, HeldGroup, PROTOCOL_VERSION, Plan, Refusal, ReportCause, Role, StateLabel};
use crate::{Saved, StoreRequest, StoreResponse, Ticket, ToCoordinator, ToMember};

pub use vocabulary::{MemberCommand, MemberError, MemberEvent, MemberSettings};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Down,
    /// A stream is being opened.
    Opening,
    /// Attached, or the attach message is on its way.
    Up,
}

/// What the training thread is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Work {
    Idle,
    Forming(Plan),
    Recovering(Plan),
    Training {
        generation: Generation,
        /// The step after which what was agreed takes effect.
        agreed: Option<(u64, Flags)>,
        has_committed: bool,
    },
    Finished(Generation),
    /// Told to drop the group; has not said yet that it did.
    Closing {
        generation: Generation,
        cause: ReportCause,
    },
    Ended,
}

/// The machine. See the module's description.
#[derive(Debug)]
pub struct Member {
    settings: MemberSettings,
    now: Duration,
    link: Link,
    work: Work,
    /// The ticket of this process's run, once a coordinator has given it one.
    ticket: Option<Ticket>,
    /// The highest generation it has heard of.
    known: Option<Generation>,
    held: Option<StateLabel>,
    /// The generation in which it has yet to come to the base, and the base.
    recovering: Option<(Generation, Option<StateLabel>)>,
    /// Ranks of its group whose state was found to differ.
    differing: Vec<u32>,
    /// The group that the training thread holds, from its first step on.
    group: Option<HeldGroup>,
    /// Completed steps of the newest checkpoint that it made visible.
    saved: Option<Saved>,
    activity: Activity,
    /// What to raise on the next collective.
    flags: Flags,
    /// Step of the last checkpoint that was agreed on in this generation.
    agreed_checkpoint: Option<u64>,
    draining: bool,
    /// What the process is told once its group is dropped: [`MemberCommand::Exit`] or [`MemberCommand::GiveUp`].
    end: Option<MemberCommand>,
    last_sent: Duration,
    last_heard: Duration,
    out: Vec<MemberCommand>,
}

impl Member {
    /// A member without a stream, holding nothing; its first command, to connect, comes with the first event (a tick will do).
    #[must_use]
    pub fn new(settings: MemberSettings, now: Duration) -> Self {
        Self {
            settings,
            now,
            link: Link::Down,
            work: Work::Idle,
            ticket: None,
            known: None,
            held: None,
            recovering: None,
            differing: Vec::new(),
            group: None,
            saved: None,
            activity: Activity::default(),
            flags: Flags::NONE,
            agreed_checkpoint: None,
            draining: false,
            end: None,
            last_sent: now,
            last_heard: now,
            out: Vec::new(),
        }
    }

    /// Takes in one event. `now` never goes back; an earlier time counts as the latest one seen.
    ///
    /// # Errors
    /// When the training thread does what it was not asked for. Nothing has changed then.
    pub fn handle(&mut self, now: Duration, event: MemberEvent) -> Result<Vec<MemberCommand>, MemberError> {
        self.now = self.now.max(now);
        match event {
            MemberEvent::Connected => self.connected(),
            MemberEvent::Disconnected { reason } => self.disconnected(&reason),
            MemberEvent::Message(message) => self.on_message(message),
            MemberEvent::Tick => {}
            MemberEvent::Drain => {
                if !self.draining && self.link == Link::Up {
                    self.send(ToCoordinator::Drain { generation: self.known });
                }
                self.draining = true;
            }
            MemberEvent::GroupFormed { generation } => self.group_formed(generation)?,
            MemberEvent::Recovered { generation, step } => self.recovered(generation, step)?,
            MemberEvent::Overtaken { generation, by } => self.overtaken(generation, by),
            MemberEvent::Committed { generation, step, agreed } => self.committed(generation, step, agreed)?,
            MemberEvent::StateDiffers { generation, ranks, is_own } => self.state_differs(generation, ranks, is_own),
            MemberEvent::GroupClosed { generation, failure } => self.group_closed(generation, failure),
            MemberEvent::CheckpointCommitted { generation, saved } => {
                self.saved = self.saved.take().max(Some(saved.clone()));
                // After the group was aborted it is the coordinator who refuses it.
                self.send_if_up(ToCoordinator::CheckpointCommitted { generation, saved });
            }
            MemberEvent::Finished { generation } => self.finished(generation)?,
            MemberEvent::Store { generation, id, request } => self.store(generation, id, request),
        }
        self.timers();
        Ok(std::mem::take(&mut self.out))
    }

    /// When to call with [`MemberEvent::Tick`] at the latest; `None`: nothing is awaited.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        match (self.link, &self.work) {
            (Link::Down, _) if self.wants_stream() => Some(self.now),
            (_, Work::Ended) | (Link::Opening | Link::Down, _) => None,
            (Link::Up, _) => {
                Some((self.last_sent + self.settings.heartbeat_interval).min(self.last_heard + self.settings.coordinator_timeout))
            }
        }
    }

    /// What the next heartbeat says of the training thread.
    pub fn set_activity(&mut self, activity: Activity) {
        self.activity = activity;
    }

    /// What to raise on the next collective of the running generation.
    #[must_use]
    pub const fn flags(&self) -> Flags {
        self.flags
    }

    /// The state it holds.
    #[must_use]
    pub const fn held(&self) -> Option<StateLabel> {
        self.held
    }

    /// The generation whose group the training thread builds or has; `None` while it has none.
    #[must_use]
    pub const fn generation(&self) -> Option<Generation> {
        match &self.work {
            Work::Idle | Work::Ended => None,
            Work::Forming(plan) | Work::Recovering(plan) => Some(plan.generation),
            Work::Training { generation, .. } | Work::Finished(generation) | Work::Closing { generation, .. } => Some(*generation),
        }
    }

    fn connected(&mut self) {
        if self.link != Link::Opening {
            return;
        }
        self.link = Link::Up;
        self.last_heard = self.now;
        self.attach();
    }

    fn attach(&mut self) {
        let attach = Attach {
            protocol_version: PROTOCOL_VERSION,
            identity: self.settings.identity.clone(),
            ticket: self.ticket,
            config_digest: self.settings.config_digest.clone(),
            machine: self.settings.machine.clone(),
            known: self.known,
            held: self.held,
            draining: self.draining,
            group: self.group,
            saved: self.saved.clone(),
        };
        self.send(ToCoordinator::Attach(Box::new(attach)));
    }

    /// A group that trains goes on. One that is being built cannot: its members find each other through the coordinator.
    fn disconnected(&mut self, reason: &str) {
        self.link = Link::Down;
        if !matches!(self.work, Work::Training { .. } | Work::Finished(_)) {
            self.abort(&format!("the stream to the coordinator broke: {reason}"));
        }
    }

    /// Whether a stream is to be opened when there is none: not while the training thread builds or drops a group that no coordinator
    /// could take over.
    fn wants_stream(&self) -> bool {
        matches!(self.work, Work::Idle | Work::Training { .. } | Work::Finished(_))
    }

    fn on_message(&mut self, message: ToMember) {
        if self.link != Link::Up || self.work == Work::Ended {
            return;
        }
        self.last_heard = self.now;
        match message {
            ToMember::Ticket { generation, ticket } => self.take_ticket(generation, ticket),
            // From now on an older coordinator is refused.
            ToMember::Attached { generation, ticket } => {
                (self.known, self.ticket) = (self.known.max(Some(generation)), Some(ticket));
            }
            ToMember::Alive { .. } => {}
            ToMember::Refused { reason, .. } => self.refused(reason),
            ToMember::Form(plan) => self.form(plan),
            ToMember::Abort { generation, reason } => {
                if self.generation() == Some(generation) {
                    self.abort(&reason);
                }
            }
            ToMember::Wish { generation, flags } => {
                if self.generation() == Some(generation) {
                    self.flags |= flags;
                }
            }
            ToMember::WishCheckpoint { generation, from } => {
                if self.generation() == Some(generation) && self.agreed_checkpoint < Some(from) {
                    self.flags |= Flags::CHECKPOINT;
                }
            }
            ToMember::Store { generation, id, response } => {
                if self.generation() == Some(generation) {
                    self.out.push(MemberCommand::StoreResponse { generation, id, response });
                }
            }
            ToMember::Evicted { reason, .. } => {
                let reason = format!("evicted by the coordinator: {reason}");
                self.drop_link(&reason);
                self.abort(&reason);
            }
            ToMember::End { reason, is_kept, .. } => self.end(reason, is_kept),
        }
    }

    /// It attaches with its ticket; one that comes again or late changes nothing.
    fn take_ticket(&mut self, generation: Generation, ticket: Ticket) {
        if self.ticket.is_none() {
            (self.known, self.ticket) = (self.known.max(Some(generation)), Some(ticket));
            self.attach();
        }
    }

    fn refused(&mut self, reason: Refusal) {
        self.drop_link(&reason.to_string());
        if reason.is_worth_another_try() {
            self.disconnected(&reason.to_string());
        } else {
            let why = reason.to_string();
            self.end_with(MemberCommand::GiveUp(reason), &why);
        }
    }

    fn form(&mut self, plan: Plan) {
        if self.known.is_some_and(|known| plan.generation <= known) {
            // Late or doubled: whoever sent it has moved on.
            return;
        }
        if self.work != Work::Idle {
            let reason = format!("a plan for {} came while an older group was held", plan.generation);
            self.drop_link(&reason);
            return self.abort(&reason);
        }
        self.known = Some(plan.generation);
        self.flags = Flags::NONE;
        self.agreed_checkpoint = None;
        self.work = Work::Forming(plan.clone());
        self.out.push(MemberCommand::FormGroup(plan));
    }

    fn group_formed(&mut self, generation: Generation) -> Result<(), MemberError> {
        match &self.work {
            Work::Forming(plan) if plan.generation == generation => {
                let plan = plan.clone();
                if let (Role::Level, Some(held)) = (&plan.role, self.held) {
                    self.train(&plan, held.step);
                } else {
                    let (role, base) = (plan.role.clone(), plan.base);
                    self.recovering = Some((generation, base));
                    self.work = Work::Recovering(plan);
                    self.out.push(MemberCommand::Recover { generation, role, base });
                }
                Ok(())
            }
            work if is_over(work, generation) => Ok(()),
            work => Err(self.out_of_order("group formed", generation, work)),
        }
    }

    fn recovered(&mut self, generation: Generation, step: u64) -> Result<(), MemberError> {
        let Some((_, base)) = self.recovering.filter(|(recovering, _)| *recovering == generation) else {
            return if is_over(&self.work, generation) { Ok(()) } else { Err(self.out_of_order("recovered", generation, &self.work)) };
        };
        if let Some(base) = base.filter(|base| base.step != step) {
            return Err(MemberError::WrongBase { member: self.name(), generation, step, base: base.step });
        }
        self.recovering = None;
        self.held = Some(base.unwrap_or(StateLabel { step, generation }));
        // Otherwise the received state was swapped in just before the abort: it is what this member holds, and it does not train.
        if let Work::Recovering(plan) = &self.work {
            let plan = plan.clone();
            self.train(&plan, step);
        }
        Ok(())
    }

    /// It is fenced off: from now on it knows the later generation, so that the coordinator that formed this one is left, and refuses the
    /// member when it comes again.
    fn overtaken(&mut self, generation: Generation, by: Generation) {
        if self.generation() != Some(generation) || by <= generation {
            return;
        }
        self.known = self.known.max(Some(by));
        let reason = format!("{by} has written a checkpoint: the coordinator that formed {generation} was replaced");
        self.drop_link(&reason);
        self.abort(&reason);
    }

    fn train(&mut self, plan: &Plan, step: u64) {
        let Plan { generation, rank, world, seat, list_digest, .. } = *plan;
        self.group = Some(HeldGroup { generation, rank, world, seat, seats: plan.division.seats(), list_digest, finished: false });
        self.activity.operations = 0;
        self.work = Work::Training { generation, agreed: None, has_committed: false };
        self.out.push(MemberCommand::Train { generation, step });
        self.heartbeat();
    }

    fn committed(&mut self, generation: Generation, step: u64, agreed_now: Flags) -> Result<(), MemberError> {
        if self.generation() != Some(generation) || !matches!(self.work, Work::Training { .. } | Work::Closing { .. }) {
            return Err(self.out_of_order("committed", generation, &self.work));
        }
        let held = self.held.map(|held| held.step);
        if held.map(|held| held + 1) != Some(step) {
            return Err(MemberError::WrongStep { member: self.name(), generation, step, held });
        }
        self.held = Some(StateLabel { step, generation });
        // When the abort came while the update was being applied, that is all: every collective of the step had completed, so it counts.
        let Work::Training { agreed, has_committed, .. } = &mut self.work else { return Ok(()) };
        let effect = agreed.filter(|(due, _)| *due <= step).map_or(Flags::NONE, |(_, flags)| flags);
        *agreed = if agreed_now.is_empty() { None } else { Some((step + 1, agreed_now)) };
        let first = !std::mem::replace(has_committed, true);
        if agreed_now.contains(Flags::CHECKPOINT) {
            self.agreed_checkpoint = Some(step + 1);
        }
        if !agreed_now.contains(Flags::LEAVE) {
            // A checkpoint that is agreed on is not wished for again.
            self.flags = Flags::from_bits(self.flags.bits() & !agreed_now.bits());
        }
        if first {
            self.heartbeat();
        }
        self.take_effect(generation, step, effect);
        Ok(())
    }

    fn take_effect(&mut self, generation: Generation, step: u64, flags: Flags) {
        if flags.contains(Flags::CHECKPOINT) {
            self.out.push(MemberCommand::WriteCheckpoint { generation, step });
        }
        if flags.contains(Flags::LEAVE) {
            self.work = Work::Closing { generation, cause: ReportCause::Agreed };
            self.out.push(MemberCommand::LeaveGroup { generation });
        }
    }

    fn finished(&mut self, generation: Generation) -> Result<(), MemberError> {
        match (&self.work, self.held) {
            (Work::Training { generation: current, .. }, Some(held)) if *current == generation => {
                self.work = Work::Finished(generation);
                if let Some(group) = &mut self.group {
                    group.finished = true;
                }
                self.send_if_up(ToCoordinator::Finished { generation, step: held.step });
                Ok(())
            }
            (work, _) if is_over(work, generation) => Ok(()),
            (work, _) => Err(self.out_of_order("finished", generation, work)),
        }
    }

    fn state_differs(&mut self, generation: Generation, ranks: Vec<u32>, is_own: bool) {
        if self.generation() != Some(generation) {
            return;
        }
        self.differing = ranks;
        if is_own {
            self.held = None;
        }
    }

    fn group_closed(&mut self, generation: Generation, failure: Option<String>) {
        if self.generation() != Some(generation) {
            return;
        }
        let asked = match std::mem::replace(&mut self.work, Work::Idle) {
            Work::Closing { cause, .. } => Some(cause),
            _ => None,
        };
        self.flags = Flags::NONE;
        self.recovering = None;
        self.group = None;
        let differing = std::mem::take(&mut self.differing);
        if let Some(end) = self.end.take() {
            self.work = Work::Ended;
            return self.out.push(end);
        }
        let cause = match (asked, failure) {
            (Some(cause), _) => cause,
            (None, failure) => {
                ReportCause::Failed { detail: failure.unwrap_or_else(|| "it dropped the group by itself".to_owned()), differing }
            }
        };
        self.send_if_up(ToCoordinator::Report { generation, held: self.held, cause });
    }

    fn store(&mut self, generation: Generation, id: u64, request: StoreRequest) {
        // Who leaves as agreed still meets the others there; the coordinator keeps the generation open until the first one reports.
        let aborted = matches!(self.work, Work::Closing { cause: ReportCause::Aborted | ReportCause::Failed { .. }, .. });
        let current = self.generation() == Some(generation) && !aborted;
        if current && self.link == Link::Up {
            self.send(ToCoordinator::Store { generation, id, request });
        } else {
            let response = StoreResponse::Cancelled { reason: format!("group {generation} has ended") };
            self.out.push(MemberCommand::StoreResponse { generation, id, response });
        }
    }

    /// Has the training thread drop its group, if it has one that it was not told to drop before.
    fn abort(&mut self, reason: &str) {
        let Some(generation) = self.generation() else { return };
        let leaving = matches!(self.work, Work::Closing { cause: ReportCause::Aborted, .. });
        self.work = Work::Closing { generation, cause: ReportCause::Aborted };
        if !leaving {
            self.out.push(MemberCommand::AbortGroup { generation, reason: reason.to_owned() });
        }
    }

    fn end(&mut self, reason: EndReason, is_kept: bool) {
        self.drop_link(&format!("the coordinator has ended this member: {reason}"));
        self.end_with(MemberCommand::Exit { reason, is_kept }, &format!("this member has ended: {reason}"));
    }

    /// Tells the process its end: at once, or when it has dropped its group. Until then an update may still be applied.
    fn end_with(&mut self, end: MemberCommand, why: &str) {
        if self.work == Work::Idle {
            self.work = Work::Ended;
            self.out.push(end);
        } else {
            self.end = Some(end);
            self.abort(why);
        }
    }

    fn timers(&mut self) {
        if self.link == Link::Up && self.now >= self.last_heard + self.settings.coordinator_timeout {
            let reason = format!("nothing heard of the coordinator for {:?}", self.settings.coordinator_timeout);
            self.drop_link(&reason);
            self.disconnected(&reason);
        }
        if self.link == Link::Up && self.now >= self.last_sent + self.settings.heartbeat_interval {
            self.heartbeat();
        }
        if self.link == Link::Down && self.wants_stream() {
            self.link = Link::Opening;
            self.out.push(MemberCommand::Connect);
        }
    }

    fn heartbeat(&mut self) {
        let generation = self.generation().or(self.known);
        self.send_if_up(ToCoordinator::Heartbeat { generation, held: self.held, activity: self.activity.clone() });
    }

    fn drop_link(&mut self, reason: &str) {
        self.link = Link::Down;
        self.out.push(MemberCommand::Disconnect { reason: reason.to_owned() });
    }

    fn send_if_up(&mut self, message: ToCoordinator) {
        if self.link == Link::Up {
            self.send(message);
        }
    }

    fn send(&mut self, message: ToCoordinator) {
        self.last_sent = self.now;
        self.out.push(MemberCommand::Send(message));
    }

    fn out_of_order(&self, event: &'static str, generation: Generation, work: &Work) -> MemberError {
        let state = match work {
            Work::Idle => "it has no group",
            Work::Forming(_) => "it builds a group",
            Work::Recovering(_) => "it recovers",
            Work::Training { .. } => "it trains",
            Work::Finished(_) => "it has finished",
            Work::Closing { .. } => "it drops its group",
            Work::Ended => "it has ended",
        };
        MemberError::OutOfOrder { member: self.name(), event, generation, state }
    }

    fn name(&self) -> String {
        self.settings.identity.name.to_string()
    }
}

/// The training thread speaks of a group that it was told to drop meanwhile: no mistake, it has not looked yet.
fn is_over(work: &Work, generation: Generation) -> bool {
    match work {
        Work::Closing { generation: closing, .. } => *closing == generation,
        Work::Ended => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
