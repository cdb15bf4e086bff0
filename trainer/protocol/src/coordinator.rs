//! The coordinator's machine: decides membership, and answers the store of the running generation.
//!
//! Comes in: [`CoordinatorEvent`]s, each with the time. Goes out: [`CoordinatorCommand`]s, and by [`Coordinator::deadline`] when it wants
//! to be called again. It keeps nothing that the members could not tell it: after a restart it starts empty, with a higher epoch.
//!
//! A generation is *open* while its group trains. It is closed by the first sign that its group is broken or has left as agreed; from then
//! on its members owe a report of what they hold. When nobody owes a report any more, the next generation is formed of those who are
//! there. One who does not report in time is evicted.
//!
//! Members go on training while there is no coordinator. A new one takes their group over: it *gathers* those who attach with it, and once
//! all of its list are there the generation is open, as if it had been formed here. A loss or a report in the meantime closes it, and so
//! does a wait that gets too long.

mod admission;
mod forming;
mod group;
mod history;
mod pace;
mod roster;
mod seating;
mod state;
mod told;
mod turns;
mod vocabulary;

use std::{collections::BTreeMap, time::Duration};

use crate::{
    EndReason, Flags, Generation, HistoryEntry, HistoryEvent, Identity, Incarnation, Loss, LossCause, MemberName, MemberStatus, Phase,
    ReportCause, StateLabel, Status, Ticket, ToCoordinator, ToMember, Turn, World,
};
use group::Group;
use history::History;
pub use pace::{InvalidSlowEviction, SlowEviction};
use roster::Roster;
use seating::Seating;
use state::{Past, Pause, State};
use told::Told;
use turns::Turns;
pub use vocabulary::{ConnectionId, CoordinatorCommand, CoordinatorEvent, CoordinatorSettings};

/// A member that is attached.
#[derive(Debug)]
struct Peer {
    connection: ConnectionId,
    identity: Identity,
    ticket: Ticket,
    machine: Option<String>,
    held: Option<StateLabel>,
    heard: Duration,
    /// The generation whose group it holds: it trains, or owes a report.
    holds: Option<Generation>,
    /// Since when it has been told to drop a group that is not the last generation's.
    told: Option<Duration>,
    draining: bool,
    /// It was evicted for being slow, and takes part only when there are too few without it.
    is_aside: bool,
}

impl Peer {
    /// Whether it trains in the group of the last generation, or owes a report of it.
    fn is_in_group(&self) -> bool {
        self.holds.is_some() && self.told.is_none()
    }

    /// Whether it has a state, or a group in which it has one.
    const fn has_state(&self) -> bool {
        self.held.is_some() || self.holds.is_some()
    }

    /// Whether it can take part in a new generation.
    fn is_free(&self) -> bool {
        self.holds.is_none()
    }
}

/// A stream: who speaks on it, once that is known.
#[derive(Debug)]
struct Link {
    opened: Duration,
    member: Option<MemberName>,
}

/// The machine. See the module's description.
#[derive(Debug)]
pub struct Coordinator {
    settings: CoordinatorSettings,
    world: World,
    now: Duration,
    /// The highest generation formed or heard of.
    generation: Generation,
    config_digest: Option<String>,
    links: BTreeMap<ConnectionId, Link>,
    peers: Roster,
    /// Which process of each name is the newest.
    turns: Turns,
    /// Processes that were evicted for being slow. What takes the place of one is another, and is measured anew.
    set_aside: BTreeMap<MemberName, Incarnation>,
    state: State,
    past: Past,
    /// Who sits where, in the last generation or one that is gathered.
    seating: Seating,
    /// Asked to stop.
    stopping: bool,
    told: Told,
    history: History,
    /// No member or stream can be overdue before this; what is heard in between only makes it later.
    next_check: Option<Duration>,
    /// When the members' pace is looked at again.
    next_pace_check: Duration,
    out: Vec<CoordinatorCommand>,
}

impl Coordinator {
    /// A coordinator without members.
    #[must_use]
    pub fn new(settings: CoordinatorSettings, now: Duration) -> Self {
        Self {
            settings,
            world: settings.world,
            now,
            generation: Generation { epoch: settings.epoch, n: 0 },
            config_digest: None,
            links: BTreeMap::new(),
            peers: Roster::default(),
            turns: Turns::new(settings.epoch),
            set_aside: BTreeMap::new(),
            state: State::Waiting(Pause::default()),
            past: Past::default(),
            seating: Seating::default(),
            stopping: false,
            told: Told::default(),
            history: History::default(),
            next_check: None,
            next_pace_check: now + settings.stall_timeout / pace::CHECKS_PER_TIMEOUT,
            out: Vec::new(),
        }
    }

    /// Takes in one event. `now` never goes back; an earlier time counts as the latest one seen.
    #[must_use]
    pub fn handle(&mut self, now: Duration, event: CoordinatorEvent) -> Vec<CoordinatorCommand> {
        self.now = self.now.max(now);
        match event {
            CoordinatorEvent::Opened { connection } => {
                self.links.insert(connection, Link { opened: self.now, member: None });
                self.next_check.get_or_insert(self.now + self.settings.heartbeat_timeout);
            }
            CoordinatorEvent::Message { connection, message } => self.on_message(connection, message),
            CoordinatorEvent::Closed { connection, reason } => {
                if let Some(name) = self.links.remove(&connection).and_then(|link| link.member) {
                    self.lose(&name, LossCause::StreamClosed, &format!("stream closed: {reason}"));
                }
            }
            CoordinatorEvent::Tick => {}
            CoordinatorEvent::SetWorld(world) => self.world = world,
            CoordinatorEvent::DrainWorker { worker } => {
                self.peers.drain(|peer| peer.identity.name.worker == worker);
            }
            CoordinatorEvent::Stop => {
                self.stopping = true;
                self.peers.drain(|_| true);
            }
            CoordinatorEvent::Checkpoint { from } => {
                if self.state.ended().is_none() {
                    self.told.want_checkpoint(from);
                }
            }
        }
        self.evict_overdue();
        self.check_pace();
        self.settle();
        std::mem::take(&mut self.out)
    }

    /// When to call with [`CoordinatorEvent::Tick`] at the latest; `None`: nothing is awaited.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let deadlines = [
            self.next_check,
            self.report_deadline(),
            self.gathering_deadline(),
            self.forming_deadline(),
            self.pace_deadline(),
            self.helpless_deadline(),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// What the group is doing.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match &self.state {
            State::Waiting(_) => Phase::Waiting,
            State::Group(group) if group.trains() => Phase::Running,
            State::Group(_) => Phase::Recovering,
            State::Ended(reason, _) => Phase::Ended(*reason),
        }
    }

    /// The highest generation formed or heard of.
    #[must_use]
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// Attached members.
    #[must_use]
    pub fn members(&self) -> usize {
        self.peers.len()
    }

    /// Bytes of all keys and values in the store of the running generation.
    #[must_use]
    pub fn store_bytes(&self) -> usize {
        self.state.group().map_or(0, Group::store_bytes)
    }

    /// What the outside may know.
    #[must_use]
    pub fn status(&self) -> Status {
        let members = self.peers.values().map(|peer| MemberStatus {
            name: peer.identity.name.clone(),
            node: peer.identity.node.clone(),
            rank: self.state.group().filter(|_| peer.is_in_group()).and_then(|group| group.rank_of(&peer.identity.name)),
            step: peer.held.map(|held| held.step),
        });
        Status {
            phase: self.phase(),
            generation: self.state.generation().unwrap_or(self.generation),
            world: self.world,
            members: members.collect(),
            step: self.told.step,
            last_checkpoint: self.told.last_checkpoint.clone(),
            training: self.told.training,
            wanted_checkpoint: self.told.wanted_checkpoint(),
            sources: self.told.sources.clone(),
            history: self.history.entries(),
        }
    }

    fn on_message(&mut self, connection: ConnectionId, message: ToCoordinator) {
        let Some(link) = self.links.get(&connection) else { return };
        let message = match (&link.member, message) {
            (None, ToCoordinator::Attach(attach)) => return self.attach(connection, *attach),
            // The first message names the member; anything else before it, or a second one, means nothing.
            (None, _) | (Some(_), ToCoordinator::Attach(_)) => return,
            (Some(_), message) => message,
        };
        let (now, group) = (self.now, self.state.generation());
        let Some(name) = link.member.clone() else { return };
        let Some(in_group) = self.peers.update(&name, |peer| {
            peer.heard = now;
            peer.is_in_group()
        }) else {
            return;
        };
        match message {
            ToCoordinator::Attach(_) => {}
            ToCoordinator::Heartbeat { generation, held, activity } => {
                self.send(connection, ToMember::Alive { generation: self.generation });
                if let Some(generation) = generation {
                    self.progress(&name, generation, held);
                    self.note_activity(&name, generation, activity);
                }
            }
            ToCoordinator::Report { generation, held, cause } => self.report(&name, generation, held, &cause),
            ToCoordinator::Drain { .. } => {
                self.peers.update(&name, |peer| peer.draining = true);
            }
            ToCoordinator::CheckpointCommitted { generation, saved } => {
                if group == Some(generation) && in_group {
                    self.told.checkpoint_committed(saved);
                }
            }
            ToCoordinator::Finished { generation, step } => self.finished(&name, generation, step),
            ToCoordinator::Store { generation, id, request } => self.store(connection, generation, id, request),
        }
    }

    /// A member is gone without having been asked to leave.
    fn lose(&mut self, name: &MemberName, cause: LossCause, reason: &str) {
        let Some(peer) = self.peers.remove(name) else { return };
        self.record(HistoryEvent::Lost { member: name.clone(), cause, reason: reason.to_owned() });
        if !peer.is_in_group() {
            return;
        }
        self.past.losses.push(Loss { member: name.clone(), reason: reason.to_owned() });
        if let Some(group) = self.state.group_mut() {
            group.forget(peer.connection);
        }
        self.break_group(&format!("member {name} on node {} was lost: {reason}", peer.identity.node));
    }

    fn evict(&mut self, name: &MemberName, cause: LossCause, reason: &str) {
        let Some(connection) = self.peers.get(name).map(|peer| peer.connection) else { return };
        self.send(connection, ToMember::Evicted { generation: self.generation, reason: reason.to_owned() });
        self.close(connection);
        self.lose(name, cause, reason);
    }

    fn evict_overdue(&mut self) {
        if self.next_check.is_some_and(|check| self.now >= check) {
            self.evict_silent();
        }
        if self.report_deadline().is_some_and(|deadline| self.now >= deadline) {
            for name in self.overdue_reports() {
                self.evict(
                    &name,
                    LossCause::NoReport,
                    &format!("no report within {:?} after its group ended", self.settings.report_timeout),
                );
            }
        }
        if self.gathering_deadline().is_some_and(|deadline| self.now >= deadline) {
            self.break_group(&format!("not all of its members attached to the new coordinator within {:?}", self.settings.formation_wait));
        }
    }

    fn evict_silent(&mut self) {
        let (now, timeout) = (self.now, self.settings.heartbeat_timeout);
        let unnamed: Vec<ConnectionId> =
            self.links.iter().filter(|(_, link)| link.member.is_none() && now >= link.opened + timeout).map(|(id, _)| *id).collect();
        for connection in unnamed {
            self.close(connection);
        }
        let silent: Vec<MemberName> =
            self.peers.iter().filter(|(_, peer)| now >= peer.heard + timeout).map(|(name, _)| name.clone()).collect();
        for name in silent {
            self.evict(&name, LossCause::Silent, &format!("nothing heard of it for {timeout:?}"));
        }
        let unnamed = self.links.values().filter(|link| link.member.is_none()).map(|link| link.opened);
        self.next_check = self.peers.values().map(|peer| peer.heard).chain(unnamed).min().map(|heard| heard + timeout);
    }

    /// A member leaves in order. `is_safe`: whether a state is kept without it.
    fn dismiss(&mut self, name: &MemberName, reason: EndReason, is_safe: impl Fn(StateLabel) -> bool) {
        let Some(peer) = self.peers.remove(name) else { return };
        self.record(HistoryEvent::Left { member: name.clone(), reason });
        let is_kept = peer.held.is_none_or(is_safe);
        self.send(peer.connection, ToMember::End { generation: self.generation, reason, is_kept });
        self.close(peer.connection);
    }

    fn send(&mut self, connection: ConnectionId, message: ToMember) {
        self.out.push(CoordinatorCommand::Send { connection, message });
    }

    fn close(&mut self, connection: ConnectionId) {
        self.links.remove(&connection);
        self.out.push(CoordinatorCommand::Close { connection });
    }

    fn record(&mut self, event: HistoryEvent) {
        let entry = self.history.record(self.now, event);
        self.out.push(CoordinatorCommand::Record(entry));
    }
}

#[cfg(test)]
mod tests;
