//! The coordinator's machine: decides membership, and answers the store of the running generation.
//!
//! Comes in: [`CoordinatorEvent`]s, each with the time. Goes out: [`CoordinatorCommand`]s, and by [`Coordinator::deadline`] when it wants
//! to be called again. It keeps nothing that the members could not tell it: after a restart it starts empty, with a higher epoch.
//!
//! A generation is *open* while its group trains. It is closed by the first sign that its group is broken or has left as agreed; from then
//! on its members owe a report of what they hold. When nobody owes a report any more, the next generation is formed of those who are
//! there. One who does not report in time is evicted.

mod forming;
mod group;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use crate::{
    Attach, EndReason, Flags, Generation, HistoryEntry, HistoryEvent, Identity, Loss, MemberName, MemberStatus, PROTOCOL_VERSION, Phase,
    Refusal, ReportCause, StateLabel, Status, ToCoordinator, ToMember, World,
};
use group::Group;

/// Entries of history that a status carries: a few recoveries of a large job, and still small.
const HISTORY: usize = 64;

/// Number by which the driver knows a stream. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// What does not change while a coordinator lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoordinatorSettings {
    /// Higher than that of every coordinator of this job before.
    pub epoch: u64,
    /// Bounds on the number of members at the start.
    pub world: World,
    /// How long to wait for the desired members once the fewest are there, before the first generation.
    pub formation_wait: Duration,
    /// A member not heard of for this long is lost.
    pub heartbeat_timeout: Duration,
    /// A member that has not reported this long after its generation was closed is evicted. Longer than a step takes, since a report
    /// waits until the training thread has let go.
    pub report_timeout: Duration,
}

/// What happens to the coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
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
}

/// A member that is attached.
#[derive(Debug)]
struct Peer {
    connection: ConnectionId,
    identity: Identity,
    held: Option<StateLabel>,
    heard: Duration,
    /// Still in the group of the last generation: training, or owing a report.
    in_group: bool,
    draining: bool,
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
    peers: BTreeMap<MemberName, Peer>,
    /// Highest incarnation seen of each name.
    incarnations: BTreeMap<MemberName, u64>,
    group: Option<Group>,
    /// Since when the fewest members have been there without a group.
    enough_since: Option<Duration>,
    /// Generations in a row that committed nothing.
    fruitless: u32,
    /// When the last open generation was closed, until the next one has committed.
    broken_at: Option<Duration>,
    losses: Vec<Loss>,
    /// Asked to stop.
    stopping: bool,
    ended: Option<EndReason>,
    step: u64,
    last_checkpoint: Option<u64>,
    history: VecDeque<HistoryEntry>,
    sequence: u64,
    /// No member or stream can be overdue before this; what is heard in between only makes it later.
    next_check: Option<Duration>,
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
            peers: BTreeMap::new(),
            incarnations: BTreeMap::new(),
            group: None,
            enough_since: None,
            fruitless: 0,
            broken_at: None,
            losses: Vec::new(),
            stopping: false,
            ended: None,
            step: 0,
            last_checkpoint: None,
            history: VecDeque::new(),
            sequence: 0,
            next_check: None,
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
                    self.lose(&name, &format!("stream closed: {reason}"));
                }
            }
            CoordinatorEvent::Tick => {}
            CoordinatorEvent::SetWorld(world) => self.world = world,
            CoordinatorEvent::DrainWorker { worker } => {
                self.peers.values_mut().filter(|peer| peer.identity.name.worker == worker).for_each(|peer| peer.draining = true);
            }
            CoordinatorEvent::Stop => {
                self.stopping = true;
                self.peers.values_mut().for_each(|peer| peer.draining = true);
            }
        }
        self.evict_overdue();
        self.settle();
        std::mem::take(&mut self.out)
    }

    /// When to call with [`CoordinatorEvent::Tick`] at the latest; `None`: nothing is awaited.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        [self.next_check, self.report_deadline(), self.forming_deadline()].into_iter().flatten().min()
    }

    /// What the outside may know.
    #[must_use]
    pub fn status(&self) -> Status {
        let phase = match (self.ended, &self.group) {
            (Some(reason), _) => Phase::Ended(reason),
            (None, Some(group)) if group.is_open() => Phase::Running,
            (None, Some(_)) => Phase::Recovering,
            (None, None) => Phase::Waiting,
        };
        let members = self.peers.values().map(|peer| MemberStatus {
            name: peer.identity.name.clone(),
            node: peer.identity.node.clone(),
            rank: self.group.as_ref().filter(|_| peer.in_group).and_then(|group| group.rank_of(&peer.identity.name)),
            step: peer.held.map(|held| held.step),
        });
        Status {
            phase,
            generation: self.generation,
            world: self.world,
            members: members.collect(),
            step: self.step,
            last_checkpoint: self.last_checkpoint,
            history: self.history.iter().cloned().collect(),
        }
    }

    fn on_message(&mut self, connection: ConnectionId, message: ToCoordinator) {
        let Some(link) = self.links.get(&connection) else { return };
        let message = match (&link.member, message) {
            (None, ToCoordinator::Attach(attach)) => return self.attach(connection, attach),
            // The first message names the member; anything else before it, or a second one, means nothing.
            (None, _) | (Some(_), ToCoordinator::Attach(_)) => return,
            (Some(_), message) => message,
        };
        let now = self.now;
        let Some(peer) = link.member.as_ref().and_then(|name| self.peers.get_mut(name)) else { return };
        peer.heard = now;
        let name = peer.identity.name.clone();
        match message {
            ToCoordinator::Attach(_) => {}
            ToCoordinator::Heartbeat { generation, held } => {
                self.send(connection, ToMember::Alive { generation: self.generation });
                if let Some(generation) = generation {
                    self.progress(&name, generation, held);
                }
            }
            ToCoordinator::Report { generation, held, cause } => self.report(&name, generation, held, &cause),
            ToCoordinator::Drain { .. } => peer.draining = true,
            ToCoordinator::CheckpointCommitted { generation, step } => {
                let current = self.group.as_ref().is_some_and(|group| group.generation == generation);
                if current && peer.in_group {
                    self.last_checkpoint = self.last_checkpoint.max(Some(step));
                }
            }
            ToCoordinator::Finished { generation, step } => self.finished(&name, generation, step),
            ToCoordinator::Store { generation, id, request } => self.store(connection, generation, id, request),
        }
    }

    fn attach(&mut self, connection: ConnectionId, attach: Attach) {
        let Attach { identity, config_digest, known, held, draining, .. } = match self.accept(attach) {
            Ok(attach) => attach,
            Err(reason) => {
                self.send(connection, ToMember::Refused { generation: self.generation, reason });
                return self.close(connection);
            }
        };
        let name = identity.name.clone();
        if let Some(old) = self.peers.get(&name).map(|peer| peer.connection) {
            self.links.remove(&old);
            self.lose(&name, "it attached anew");
            self.out.push(CoordinatorCommand::Close { connection: old });
        }
        // A member may know a generation of this epoch that this process never formed: then another coordinator had the same epoch.
        // Going on above it keeps numbers from being used twice.
        self.generation = self.generation.max(known.unwrap_or(self.generation));
        self.incarnations.insert(name.clone(), identity.incarnation);
        self.config_digest.get_or_insert(config_digest);
        if let Some(link) = self.links.get_mut(&connection) {
            link.member = Some(name.clone());
        }
        self.record(HistoryEvent::Joined { member: name.clone() });
        let draining = draining || self.stopping;
        self.peers.insert(name, Peer { connection, identity, held, heard: self.now, in_group: false, draining });
        self.send(connection, ToMember::Attached { generation: self.generation });
    }

    fn accept(&self, attach: Attach) -> Result<Attach, Refusal> {
        let member = attach.identity.name.to_string();
        if attach.protocol_version != PROTOCOL_VERSION {
            return Err(Refusal::ProtocolVersion { member, version: attach.protocol_version, coordinator: PROTOCOL_VERSION });
        }
        if let Some(known) = attach.known.filter(|known| known.epoch > self.settings.epoch) {
            return Err(Refusal::StaleCoordinator { member, epoch: self.settings.epoch, known });
        }
        let newest = self.incarnations.get(&attach.identity.name).copied().unwrap_or(0);
        if attach.identity.incarnation < newest {
            return Err(Refusal::Superseded { member, incarnation: attach.identity.incarnation, newest });
        }
        match &self.config_digest {
            Some(expected) if *expected != attach.config_digest => {
                Err(Refusal::Configuration { member, digest: attach.config_digest, expected: expected.clone() })
            }
            _ => Ok(attach),
        }
    }

    /// A member is gone without having been asked to leave.
    fn lose(&mut self, name: &MemberName, reason: &str) {
        let Some(peer) = self.peers.remove(name) else { return };
        self.record(HistoryEvent::Lost { member: name.clone(), reason: reason.to_owned() });
        if !peer.in_group {
            return;
        }
        self.losses.push(Loss { member: name.clone(), reason: reason.to_owned() });
        if let Some(group) = &mut self.group {
            group.forget(peer.connection);
        }
        self.break_group(&format!("member {name} on node {} was lost: {reason}", peer.identity.node));
    }

    fn evict(&mut self, name: &MemberName, reason: &str) {
        let Some(connection) = self.peers.get(name).map(|peer| peer.connection) else { return };
        self.send(connection, ToMember::Evicted { generation: self.generation, reason: reason.to_owned() });
        self.close(connection);
        self.lose(name, reason);
    }

    fn evict_overdue(&mut self) {
        if self.next_check.is_some_and(|check| self.now >= check) {
            self.evict_silent();
        }
        if self.report_deadline().is_some_and(|deadline| self.now >= deadline) {
            let owing: Vec<MemberName> = self.peers.iter().filter(|(_, peer)| peer.in_group).map(|(name, _)| name.clone()).collect();
            for name in owing {
                self.evict(&name, &format!("no report within {:?} after its generation ended", self.settings.report_timeout));
            }
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
            self.evict(&name, &format!("nothing heard of it for {timeout:?}"));
        }
        let unnamed = self.links.values().filter(|link| link.member.is_none()).map(|link| link.opened);
        self.next_check = self.peers.values().map(|peer| peer.heard).chain(unnamed).min().map(|heard| heard + timeout);
    }

    /// A member leaves in order.
    fn dismiss(&mut self, name: &MemberName, reason: EndReason) {
        let Some(peer) = self.peers.remove(name) else { return };
        self.record(HistoryEvent::Left { member: name.clone(), reason });
        self.send(peer.connection, ToMember::End { generation: self.generation, reason });
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
        self.history.push_back(HistoryEntry { sequence: self.sequence, at: self.now, event });
        if self.history.len() > HISTORY {
            self.history.pop_front();
        }
    }
}

#[cfg(test)]
mod tests;
