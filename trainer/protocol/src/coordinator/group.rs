//! The running generation: its members' progress, its store, its end.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{ConnectionId, Coordinator, Flags, Generation, HistoryEvent, MemberName, ReportCause, StateLabel, ToMember};
use crate::{
    StoreRequest, StoreResponse,
    store::{Answer, Store},
};

/// The last generation that was formed, until the next one is.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) generation: Generation,
    pub(super) base: Option<StateLabel>,
    members: BTreeMap<MemberName, Progress>,
    store: Store,
    /// What was wished so far.
    pub(super) wish: Flags,
    /// When it was closed; `None` while it is open.
    closed: Option<Duration>,
    /// A step was committed in it by all members.
    pub(super) fruitful: bool,
}

#[derive(Debug)]
struct Progress {
    rank: u32,
    /// Steps completed in this generation's line of states; `None` until the member is known to hold the base.
    step: Option<u64>,
    finished: bool,
}

impl Group {
    /// An open group; `members` in rank order with what they hold.
    pub(super) fn new(generation: Generation, base: Option<StateLabel>, members: Vec<(MemberName, Option<StateLabel>)>) -> Self {
        let progress = |rank, held: Option<StateLabel>| Progress {
            rank,
            step: held.filter(|_| base.is_some() && held == base).map(|held| held.step),
            finished: false,
        };
        let members = (0_u32..).zip(members).map(|(rank, (name, held))| (name, progress(rank, held))).collect();
        Self { generation, base, members, store: Store::default(), wish: Flags::NONE, closed: None, fruitful: false }
    }

    pub(super) const fn is_open(&self) -> bool {
        self.closed.is_none()
    }

    pub(super) fn rank_of(&self, name: &MemberName) -> Option<u32> {
        self.members.get(name).map(|progress| progress.rank)
    }

    pub(super) fn world(&self) -> u32 {
        self.members.len() as u32
    }

    pub(super) fn names(&self) -> BTreeSet<MemberName> {
        self.members.keys().cloned().collect()
    }

    pub(super) fn forget(&mut self, connection: ConnectionId) {
        self.store.forget(connection);
    }

    /// Steps that all members have; `None` until all are known to hold the base.
    fn common_step(&self) -> Option<u64> {
        self.members.values().map(|progress| progress.step).min().flatten()
    }
}

impl Coordinator {
    pub(super) fn report_deadline(&self) -> Option<Duration> {
        let closed = self.group.as_ref()?.closed?;
        self.peers.values().any(|peer| peer.in_group).then(|| closed + self.settings.report_timeout)
    }

    pub(super) fn store(&mut self, connection: ConnectionId, generation: Generation, id: u64, request: StoreRequest) {
        let group = self.group.as_mut().filter(|group| group.generation == generation && group.is_open());
        let answers = match group {
            Some(group) => group.store.apply(connection, id, request),
            None => vec![(connection, id, StoreResponse::Cancelled { reason: format!("generation {generation} has ended") })],
        };
        self.answer(generation, answers);
    }

    fn answer(&mut self, generation: Generation, answers: Vec<Answer>) {
        for (connection, id, response) in answers {
            self.send(connection, ToMember::Store { generation, id, response });
        }
    }

    /// A member says what it holds while its group trains.
    pub(super) fn progress(&mut self, name: &MemberName, generation: Generation, held: Option<StateLabel>) {
        let Some(group) = self.group.as_mut().filter(|group| group.generation == generation && group.is_open()) else { return };
        let Some(peer) = self.peers.get_mut(name).filter(|peer| peer.in_group) else { return };
        peer.held = held;
        let base = group.base;
        // Before it was brought level its state is of another line, whatever its step.
        let Some(held) = held.filter(|held| base.map_or(held.generation == generation, |base| *held >= base)) else { return };
        if let Some(progress) = group.members.get_mut(name) {
            progress.step = progress.step.max(Some(held.step));
        }
        self.advance();
    }

    /// The committed step follows what all members of the group hold.
    pub(super) fn advance(&mut self) {
        let Some(group) = &mut self.group else { return };
        let Some(step) = group.common_step() else { return };
        let first = !group.fruitful && group.base.is_some_and(|base| step > base.step);
        let generation = group.generation;
        if group.base.is_none() {
            // Read from storage: the step was not known before.
            group.base = Some(StateLabel { step, generation });
        }
        group.fruitful |= first;
        if step < self.step {
            self.record(HistoryEvent::WentBack { from: self.step, to: step });
        }
        self.step = step;
        if first {
            self.fruitless = 0;
            if let Some(broken) = self.broken_at.take() {
                self.record(HistoryEvent::Recovered { generation, took: self.now.saturating_sub(broken) });
            }
        }
    }

    /// A member has left the group.
    pub(super) fn report(&mut self, name: &MemberName, generation: Generation, held: Option<StateLabel>, cause: &ReportCause) {
        if self.group.as_ref().is_none_or(|group| group.generation != generation) {
            return;
        }
        let Some(peer) = self.peers.get_mut(name).filter(|peer| peer.in_group) else { return };
        peer.in_group = false;
        peer.held = held;
        match cause {
            ReportCause::Agreed | ReportCause::Aborted => self.close_group(),
            ReportCause::Failed { detail } => self.break_group(&format!("member {name}: {detail}")),
        }
    }

    pub(super) fn finished(&mut self, name: &MemberName, generation: Generation, step: u64) {
        let Some(group) = self.group.as_mut().filter(|group| group.generation == generation && group.is_open()) else { return };
        if let Some(progress) = group.members.get_mut(name) {
            progress.finished = true;
            progress.step = progress.step.max(Some(step));
        }
        self.advance();
    }

    pub(super) fn all_have_finished(&self) -> bool {
        self.group.as_ref().is_some_and(|group| group.is_open() && group.members.values().all(|progress| progress.finished))
    }

    /// The group cannot go on: those still in it are told to drop it.
    pub(super) fn break_group(&mut self, reason: &str) {
        let Some(generation) = self.group.as_ref().filter(|group| group.is_open()).map(|group| group.generation) else { return };
        self.close_group();
        self.record(HistoryEvent::Broken { generation, reason: reason.to_owned() });
        let rest: Vec<ConnectionId> = self.peers.values().filter(|peer| peer.in_group).map(|peer| peer.connection).collect();
        for connection in rest {
            self.send(connection, ToMember::Abort { generation, reason: reason.to_owned() });
        }
    }

    /// From now on the members owe a report; nobody waits in the store any longer.
    fn close_group(&mut self) {
        let now = self.now;
        let Some(group) = self.group.as_mut().filter(|group| group.is_open()) else { return };
        group.closed = Some(now);
        let generation = group.generation;
        let cancelled = group.store.cancel(&format!("generation {generation} has ended"));
        self.broken_at.get_or_insert(now);
        self.answer(generation, cancelled);
    }
}
