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

mod forming;
mod group;
mod pace;
mod roster;
mod seating;
mod turns;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use crate::{
    Attach, EndReason, Flags, Generation, HistoryEntry, HistoryEvent, Identity, Incarnation, Loss, LossCause, MemberName, MemberStatus,
    PROTOCOL_VERSION, Phase, Refusal, ReportCause, Saved, SourceProgress, StateLabel, Status, Ticket, ToCoordinator, ToMember,
    TrainingProgress, Turn, World,
};
use group::Group;
pub use pace::{InvalidSlowEviction, SlowEviction};
use roster::Roster;
use seating::Seating;
use turns::{Standing, Turns};

/// Entries of history that a status carries: a few recoveries of a large job, and still small.
const HISTORY: usize = 64;

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
    group: Option<Group>,
    /// Who sits where, in the last generation or one that is gathered.
    seating: Seating,
    /// The last generation that was closed here.
    given_up: Option<Generation>,
    /// Since when the fewest members have been there without a group.
    enough_since: Option<Duration>,
    /// Since when those who are to leave have been too few to form the generation that would save what they hold.
    helpless_since: Option<Duration>,
    /// Generations in a row that committed nothing.
    fruitless: u32,
    /// When the last open generation was closed, until the next one has committed.
    broken_at: Option<Duration>,
    /// Members that were lost since a generation was formed.
    losses: Vec<Loss>,
    /// Asked to stop.
    stopping: bool,
    ended: Option<EndReason>,
    step: u64,
    last_checkpoint: Option<Saved>,
    /// How training comes along, as the member of rank 0 last told.
    training: Option<TrainingProgress>,
    /// The sources of a mixture, as the member of rank 0 last told.
    sources: Vec<SourceProgress>,
    /// A checkpoint of this step or a later one was asked for and is not there yet.
    wanted_checkpoint: Option<u64>,
    history: VecDeque<HistoryEntry>,
    sequence: u64,
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
            group: None,
            seating: Seating::default(),
            given_up: None,
            enough_since: None,
            helpless_since: None,
            fruitless: 0,
            broken_at: None,
            losses: Vec::new(),
            stopping: false,
            ended: None,
            step: 0,
            last_checkpoint: None,
            training: None,
            sources: Vec::new(),
            wanted_checkpoint: None,
            history: VecDeque::new(),
            sequence: 0,
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
                let from = from.map_or(self.step, |from| from.min(self.step));
                if self.ended.is_none() && self.saved_step() < Some(from) {
                    self.wanted_checkpoint = self.wanted_checkpoint.max(Some(from));
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
        match (self.ended, &self.group) {
            (Some(reason), _) => Phase::Ended(reason),
            (None, Some(group)) if group.trains() => Phase::Running,
            (None, Some(_)) => Phase::Recovering,
            (None, None) => Phase::Waiting,
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
        self.group.as_ref().map_or(0, Group::store_bytes)
    }

    /// What the outside may know.
    #[must_use]
    pub fn status(&self) -> Status {
        let members = self.peers.values().map(|peer| MemberStatus {
            name: peer.identity.name.clone(),
            node: peer.identity.node.clone(),
            rank: self.group.as_ref().filter(|_| peer.is_in_group()).and_then(|group| group.rank_of(&peer.identity.name)),
            step: peer.held.map(|held| held.step),
        });
        Status {
            phase: self.phase(),
            generation: self.current().unwrap_or(self.generation),
            world: self.world,
            members: members.collect(),
            step: self.step,
            last_checkpoint: self.last_checkpoint.clone(),
            training: self.training,
            wanted_checkpoint: self.wanted_checkpoint,
            sources: self.sources.clone(),
            history: self.history.iter().cloned().collect(),
        }
    }

    /// The last generation that was formed or taken over.
    fn current(&self) -> Option<Generation> {
        self.group.as_ref().map(|group| group.generation)
    }

    fn on_message(&mut self, connection: ConnectionId, message: ToCoordinator) {
        let Some(link) = self.links.get(&connection) else { return };
        let message = match (&link.member, message) {
            (None, ToCoordinator::Attach(attach)) => return self.attach(connection, *attach),
            // The first message names the member; anything else before it, or a second one, means nothing.
            (None, _) | (Some(_), ToCoordinator::Attach(_)) => return,
            (Some(_), message) => message,
        };
        let (now, group) = (self.now, self.current());
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
                    self.checkpoint_committed(saved);
                }
            }
            ToCoordinator::Finished { generation, step } => self.finished(&name, generation, step),
            ToCoordinator::Store { generation, id, request } => self.store(connection, generation, id, request),
        }
    }

    fn attach(&mut self, connection: ConnectionId, attach: Attach) {
        let (attach, ticket) = match self.accept(attach) {
            Ok((attach, Some(ticket))) => (attach, ticket),
            Ok((_, None)) => {
                let ticket = self.turns.give();
                return self.send(connection, ToMember::Ticket { generation: self.generation, ticket });
            }
            Err(reason) => {
                self.send(connection, ToMember::Refused { generation: self.generation, reason });
                return self.close(connection);
            }
        };
        let Attach { identity, config_digest, machine, known, held, draining, group, saved, .. } = attach;
        let name = identity.name.clone();
        if (held.is_some() || group.is_some()) && !self.has_state() {
            self.refuse_other_machines(machine.as_deref());
        }
        self.turns.admit(&identity, ticket);
        self.replace(&identity, Turn { ticket, start: identity.incarnation.start });
        // A member may know a generation of this epoch that this process never formed: then another coordinator had the same epoch.
        // Going on above it keeps numbers from being used twice.
        self.generation = self.generation.max(known.unwrap_or(self.generation));
        self.config_digest.get_or_insert(config_digest);
        if let Some(link) = self.links.get_mut(&connection) {
            link.member = Some(name.clone());
        }
        self.record(HistoryEvent::Joined { member: name.clone() });
        let draining = draining || self.stopping;
        if let Some(saved) = saved {
            self.checkpoint_committed(saved);
        }
        let holds = group.map(|group| group.generation);
        let is_aside = self.is_set_aside(&identity);
        self.peers.insert(Peer { connection, identity, ticket, machine, held, heard: self.now, holds, told: None, draining, is_aside });
        self.send(connection, ToMember::Attached { generation: self.generation, ticket });
        if let Some(group) = group {
            self.attached_with(&name, group);
        }
    }

    /// Whether this process was evicted for being slow; a newer one of its name was not.
    fn is_set_aside(&mut self, identity: &Identity) -> bool {
        let is_the_one = self.set_aside.get(&identity.name) == Some(&identity.incarnation);
        if !is_the_one {
            self.set_aside.remove(&identity.name);
        }
        is_the_one
    }

    /// The attached process of this name, if there is one, makes room. A process whose stream broke unnoticed has come back itself; one
    /// that is older than the newcomer gets to know that it has no place any more.
    fn replace(&mut self, identity: &Identity, newest: Turn) {
        let Some(old) = self.peers.get(&identity.name) else { return };
        let (connection, is_same) = (old.connection, old.identity.incarnation == identity.incarnation);
        let own = Turn { ticket: old.ticket, start: old.identity.incarnation.start };
        if !is_same {
            let reason = Refusal::Superseded { member: identity.name.to_string(), own, newest };
            self.send(connection, ToMember::Refused { generation: self.generation, reason });
        }
        self.links.remove(&connection);
        let seen = if is_same { "it attached anew" } else { "a newer process of it attached" };
        self.lose(&identity.name, LossCause::Replaced, seen);
        self.out.push(CoordinatorCommand::Close { connection });
    }

    /// Whether a member can be attached; with its ticket, unless it has to be given one first.
    fn accept(&self, attach: Attach) -> Result<(Attach, Option<Ticket>), Refusal> {
        let member = attach.identity.name.to_string();
        if attach.protocol_version != PROTOCOL_VERSION {
            return Err(Refusal::ProtocolVersion { member, version: attach.protocol_version, coordinator: PROTOCOL_VERSION });
        }
        // Who has a ticket knows whoever gave it.
        let given_by = attach.ticket.map(|ticket| Generation { epoch: ticket.epoch, n: 0 });
        if let Some(known) = attach.known.max(given_by).filter(|known| known.epoch > self.settings.epoch) {
            return Err(Refusal::StaleCoordinator { member, epoch: self.settings.epoch, known });
        }
        let ticket = match self.turns.judge(&attach.identity, attach.ticket) {
            Standing::Newest(ticket) => Some(ticket),
            Standing::Unknown => None,
            Standing::Superseded { own, newest } => return Err(Refusal::Superseded { member, own, newest }),
        };
        match &self.config_digest {
            Some(expected) if *expected != attach.config_digest => {
                return Err(Refusal::Configuration { member, digest: attach.config_digest, expected: expected.clone() });
            }
            _ => {}
        }
        if let Some(machine) = &attach.machine
            && let Some(expected) = self.machine_for(&attach)
            && machine != expected
        {
            return Err(Refusal::Machine { member, machine: machine.clone(), expected: expected.to_owned() });
        }
        Ok((attach, ticket))
    }

    /// Whether any attached member has the job's state.
    const fn has_state(&self) -> bool {
        self.peers.holders() > 0 || self.peers.busy() > 0
    }

    /// What a member has to compute on: what those with the job's state do, else (unless it has that state itself) what anyone does.
    fn machine_for(&self, attach: &Attach) -> Option<&str> {
        let peer = if self.has_state() {
            self.peers.values().find(|peer| peer.has_state())
        } else if attach.held.is_some() || attach.group.is_some() {
            None
        } else {
            self.peers.values().next()
        };
        peer?.machine.as_deref()
    }

    /// The first member with the job's state has come. Those who came before it have to fit it.
    fn refuse_other_machines(&mut self, expected: Option<&str>) {
        let Some(expected) = expected else { return };
        let differs = |peer: &&Peer| peer.machine.as_deref().is_some_and(|machine| machine != expected);
        let others: Vec<MemberName> = self.peers.values().filter(differs).map(|peer| peer.identity.name.clone()).collect();
        for name in others {
            let Some(Peer { connection, machine: Some(machine), .. }) = self.peers.get(&name) else { continue };
            let (connection, machine, expected) = (*connection, machine.clone(), expected.to_owned());
            let reason = Refusal::Machine { member: name.to_string(), machine, expected };
            self.send(connection, ToMember::Refused { generation: self.generation, reason });
            self.close(connection);
            self.lose(&name, LossCause::OtherMachine, "members with the job's state compute on another kind of machine");
        }
    }

    /// A member is gone without having been asked to leave.
    fn lose(&mut self, name: &MemberName, cause: LossCause, reason: &str) {
        let Some(peer) = self.peers.remove(name) else { return };
        self.record(HistoryEvent::Lost { member: name.clone(), cause, reason: reason.to_owned() });
        if !peer.is_in_group() {
            return;
        }
        self.losses.push(Loss { member: name.clone(), reason: reason.to_owned() });
        if let Some(group) = &mut self.group {
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
        self.sequence += 1;
        let entry = HistoryEntry { sequence: self.sequence, at: self.now, event };
        self.out.push(CoordinatorCommand::Record(entry.clone()));
        self.history.push_back(entry);
        if self.history.len() > HISTORY {
            self.history.pop_front();
        }
    }
}

#[cfg(test)]
mod tests;
