//! The running generation: its members' progress, its store, its end.

mod takeover;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    time::Duration,
};

use super::{
    ConnectionId, Coordinator, Flags, Generation, HistoryEvent, MemberName, Pause, Peer, ReportCause, StateLabel, ToMember, pace::Pace,
};
use crate::{
    HeldGroup, StoreRequest, StoreResponse,
    store::{Answer, Store},
};

/// Members that a reason names at most.
const MOST_NAMED: usize = 8;

/// The last generation that was formed or taken over, until the next one is.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) generation: Generation,
    pub(super) base: Option<StateLabel>,
    pub(super) members: BTreeMap<MemberName, Progress>,
    /// How many members have each number of steps. A heartbeat changes one entry; looking at every member for each would not do.
    steps: BTreeMap<Option<u64>, usize>,
    /// Members that have not finished.
    unfinished: usize,
    store: Store,
    /// What was wished so far.
    pub(super) wish: Flags,
    /// From which step on a checkpoint was wished last.
    pub(super) wished_checkpoint: Option<u64>,
    stage: Stage,
    /// Of a group that was to be taken over: members on its list, and the ranks of those that have attached with it, lost ones included.
    listed: u32,
    heard_of: BTreeSet<u32>,
    /// A step was committed in it by all members.
    pub(super) fruitful: bool,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// An earlier coordinator's group trains; not all of its members are here yet.
    Gathering {
        since: Duration,
        world: u32,
        list_digest: u64,
        /// Of the wait before.
        pause: Pause,
    },
    Open,
    Closed {
        at: Duration,
        was_open: bool,
        pause: Pause,
    },
}

#[derive(Debug)]
pub(super) struct Progress {
    rank: u32,
    /// Steps completed in this generation's line of states; `None` until the member is known to hold the base.
    step: Option<u64>,
    pub(super) finished: bool,
    pub(super) pace: Pace,
}

impl Group {
    /// An open group; `members` in rank order with what they hold.
    pub(super) fn new(generation: Generation, base: Option<StateLabel>, members: Vec<(MemberName, Option<StateLabel>)>) -> Self {
        let progress = |rank, held: Option<StateLabel>| Progress {
            rank,
            step: held.filter(|_| base.is_some() && held == base).map(|held| held.step),
            finished: false,
            pace: Pace::default(),
        };
        let members: BTreeMap<MemberName, Progress> =
            (0_u32..).zip(members).map(|(rank, (name, held))| (name, progress(rank, held))).collect();
        let mut steps = BTreeMap::new();
        for progress in members.values() {
            *steps.entry(progress.step).or_default() += 1;
        }
        Self {
            generation,
            base,
            steps,
            unfinished: members.len(),
            members,
            store: Store::default(),
            wish: Flags::NONE,
            wished_checkpoint: None,
            stage: Stage::Open,
            listed: 0,
            heard_of: BTreeSet::new(),
            fruitful: false,
        }
    }

    /// A group of an earlier coordinator, whose members have yet to attach.
    fn gathering(held: HeldGroup, since: Duration, pause: Pause) -> Self {
        let HeldGroup { generation, world, list_digest, .. } = held;
        Self { stage: Stage::Gathering { since, world, list_digest, pause }, listed: world, ..Self::new(generation, None, Vec::new()) }
    }

    /// Nothing while it is open.
    pub(super) fn pause(&self) -> Pause {
        match self.stage {
            Stage::Open => Pause::default(),
            Stage::Gathering { pause, .. } | Stage::Closed { pause, .. } => pause,
        }
    }

    /// `None` while it is open.
    pub(super) const fn pause_mut(&mut self) -> Option<&mut Pause> {
        match &mut self.stage {
            Stage::Open => None,
            Stage::Gathering { pause, .. } | Stage::Closed { pause, .. } => Some(pause),
        }
    }

    pub(super) const fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open)
    }

    /// Whether its members train, as far as is known.
    pub(super) const fn trains(&self) -> bool {
        !matches!(self.stage, Stage::Closed { .. })
    }

    /// Whether all of its members were led from here once.
    pub(super) const fn was_open(&self) -> bool {
        matches!(self.stage, Stage::Open | Stage::Closed { was_open: true, .. })
    }

    /// Whether each of its members has been seen here, so that nobody who is still on the way can hold more than those who are there.
    pub(super) fn is_accounted_for(&self) -> bool {
        self.was_open() || self.heard_of.len() >= self.listed as usize
    }

    /// Whether this is the same group, as another of its members has it.
    fn is_the_one(&self, held: &HeldGroup) -> bool {
        matches!(self.stage, Stage::Gathering { world, list_digest, .. } if world == held.world && list_digest == held.list_digest && held.rank < world)
            && self.generation == held.generation
            && !self.heard_of.contains(&held.rank)
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

    pub(super) const fn store_bytes(&self) -> usize {
        self.store.bytes()
    }

    /// Steps that all members have; `None` until all are known to hold the base.
    fn common_step(&self) -> Option<u64> {
        self.steps.keys().next().copied().flatten()
    }

    /// A member of a group that is taken over is there.
    fn admit(&mut self, name: MemberName, held: HeldGroup, step: Option<u64>) {
        *self.steps.entry(step).or_default() += 1;
        self.heard_of.insert(held.rank);
        self.unfinished += usize::from(!held.finished);
        self.members.insert(name, Progress { rank: held.rank, step, finished: held.finished, pace: Pace::default() });
    }

    /// A member is known to have this many steps, or more.
    fn advance(&mut self, name: &MemberName, step: u64) {
        let Some(progress) = self.members.get_mut(name).filter(|progress| progress.step < Some(step)) else { return };
        let old = progress.step.replace(step);
        *self.steps.entry(Some(step)).or_default() += 1;
        if let Entry::Occupied(mut count) = self.steps.entry(old) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

impl Coordinator {
    /// When the first report is due that a member owes. Asked for with every event, so without a walk over all members.
    pub(super) fn report_deadline(&self) -> Option<Duration> {
        let closed = self.closed_at().filter(|_| self.peers.in_group() > 0);
        closed.into_iter().chain(self.peers.first_told()).min().map(|told| told + self.settings.report_timeout)
    }

    /// When the last group was closed, if it was and no other has been formed since.
    fn closed_at(&self) -> Option<Duration> {
        match self.state.group()?.stage {
            Stage::Closed { at, .. } => Some(at),
            Stage::Gathering { .. } | Stage::Open => None,
        }
    }

    pub(super) fn overdue_reports(&self) -> Vec<MemberName> {
        let overdue = |peer: &Peer| self.report_due(peer).is_some_and(|due| self.now >= due);
        self.peers.iter().filter(|(_, peer)| overdue(peer)).map(|(name, _)| name.clone()).collect()
    }

    /// Until when a member has to report the end of the group it holds.
    fn report_due(&self, peer: &Peer) -> Option<Duration> {
        let told = if peer.is_in_group() { self.closed_at() } else { peer.told };
        told.map(|told| told + self.settings.report_timeout)
    }

    /// Tells a member to drop a group that does not count any more.
    fn drop_held(&mut self, name: &MemberName, generation: Generation) {
        let now = self.now;
        let told = self.peers.update(name, |peer| {
            peer.told = Some(now);
            peer.connection
        });
        let Some(connection) = told else { return };
        let reason = "the coordinator has gone on without this group".to_owned();
        self.send(connection, ToMember::Abort { generation, reason });
    }

    pub(super) fn store(&mut self, connection: ConnectionId, generation: Generation, id: u64, request: StoreRequest) {
        let group = self.state.open_group_mut().filter(|group| group.generation == generation);
        let answers = match group {
            Some(group) => group.store.apply(connection, id, request),
            None => vec![(connection, id, StoreResponse::Cancelled { reason: format!("group {generation} has ended") })],
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
        let trains = self.state.group().is_some_and(|group| group.generation == generation && group.trains());
        if !trains || !self.peers.get(name).is_some_and(Peer::is_in_group) {
            return;
        }
        self.peers.update(name, |peer| peer.held = held);
        self.count(name, generation, held);
    }

    /// Takes into account what a member of the last group holds.
    fn count(&mut self, name: &MemberName, generation: Generation, held: Option<StateLabel>) {
        let Some(group) = self.state.group_mut().filter(|group| group.generation == generation) else { return };
        let base = group.base;
        // Before it was brought level its state is of another line, whatever its step.
        let Some(held) = held.filter(|held| base.map_or(held.generation == generation, |base| *held >= base)) else { return };
        group.advance(name, held.step);
        self.advance();
    }

    /// The committed step follows what all members of the group hold.
    pub(super) fn advance(&mut self) {
        let Some(group) = self.state.group_mut().filter(|group| group.was_open()) else { return };
        let Some(step) = group.common_step() else { return };
        let first = !group.fruitful && group.base.is_some_and(|base| step > base.step);
        let generation = group.generation;
        if group.base.is_none() {
            // Read from storage: the step was not known before.
            group.base = Some(StateLabel { step, generation });
        }
        group.fruitful |= first;
        if let Some(from) = self.told.commit(step) {
            self.record(HistoryEvent::WentBack { from, to: step });
        }
        if first {
            self.past.fruitless = 0;
            if let Some(broken) = self.past.broken_at.take() {
                self.record(HistoryEvent::Recovered { generation, took: self.now.saturating_sub(broken) });
            }
        }
    }

    /// A member has left the group.
    pub(super) fn report(&mut self, name: &MemberName, generation: Generation, held: Option<StateLabel>, cause: &ReportCause) {
        if self.peers.get(name).is_none_or(|peer| peer.holds != Some(generation)) {
            return;
        }
        self.peers.update(name, |peer| (peer.holds, peer.told, peer.held) = (None, None, held));
        // The last steps may have been too quick for a heartbeat.
        self.count(name, generation, held);
        if self.state.generation() != Some(generation) {
            return;
        }
        match cause {
            ReportCause::Agreed | ReportCause::Aborted => self.close_group(),
            ReportCause::Failed { detail, differing } => {
                let whose = self.whose(differing);
                self.break_group(&format!("member {name}: {detail}{whose}"));
            }
        }
    }

    /// Names and nodes of members of the group whose states differ from the others'; nothing without any.
    fn whose(&self, ranks: &[u32]) -> String {
        let Some(group) = self.state.group().filter(|_| !ranks.is_empty()) else { return String::new() };
        let found = group.members.iter().filter(|(_, progress)| ranks.contains(&progress.rank)).map(|(name, _)| {
            let node = self.peers.get(name).map_or("unknown", |peer| peer.identity.node.as_str());
            format!("{name} on node {node}")
        });
        let found: Vec<_> = found.take(MOST_NAMED).collect();
        format!(" (the state of {} differs)", found.join(", "))
    }

    pub(super) fn finished(&mut self, name: &MemberName, generation: Generation, step: u64) {
        let Some(group) = self.state.group_mut().filter(|group| group.generation == generation && group.trains()) else { return };
        if let Some(progress) = group.members.get_mut(name)
            && !std::mem::replace(&mut progress.finished, true)
        {
            group.unfinished -= 1;
        }
        group.advance(name, step);
        self.advance();
    }

    pub(super) fn all_have_finished(&self) -> bool {
        self.state.open_group().is_some_and(|group| group.unfinished == 0)
    }

    /// The group cannot go on: those still in it are told to drop it.
    pub(super) fn break_group(&mut self, reason: &str) {
        let Some(generation) = self.state.group().filter(|group| group.trains()).map(|group| group.generation) else { return };
        self.close_group();
        self.record(HistoryEvent::Broken { generation, reason: reason.to_owned() });
        let rest: Vec<ConnectionId> = self.peers.values().filter(|peer| peer.is_in_group()).map(|peer| peer.connection).collect();
        for connection in rest {
            self.send(connection, ToMember::Abort { generation, reason: reason.to_owned() });
        }
    }

    /// From now on the members owe a report; nobody waits in the store any longer.
    fn close_group(&mut self) {
        let now = self.now;
        let Some(group) = self.state.group_mut().filter(|group| group.trains()) else { return };
        group.stage = Stage::Closed { at: now, was_open: group.is_open(), pause: group.pause() };
        let generation = group.generation;
        self.past.given_up = Some(generation);
        let cancelled = group.store.cancel(&format!("group {generation} has ended"));
        self.past.broken_at.get_or_insert(now);
        self.answer(generation, cancelled);
    }
}
