//! The simulated world: the coordinator, processes, streams with everything that is on its way, and the invariants.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use lcl_protocol::{
    ConnectionId, Coordinator, CoordinatorCommand, CoordinatorEvent, CoordinatorSettings, EndReason, Generation, HistoryEvent, LossCause,
    MemberEvent, MemberName, Phase, Plan, Refusal, Role, SlowEviction, StateLabel, Status, Ticket, ToCoordinator, ToMember, World,
};

use crate::process::{Fabric, Process};

/// Names of members; a new process takes the first that no live one bears.
const NAMES: u8 = 4;
/// Samples per step. Not divisible by 3, so that shares differ.
pub(crate) const GLOBAL_BATCH: u64 = 16;
/// Steps that must be trained after the faults have stopped.
const STEPS_TO_COME: u64 = 12;
/// Rounds of 20 ms within which they must be: 40 s, against time-outs of 0.6 s, 1 s and 2 s and a longest delay of 5 s.
const BOUND: u32 = 2000;

#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// One message of a stream arrives.
    DeliverUp(u8),
    DeliverDown(u8),
    /// The next message of a stream arrives, and will arrive again.
    RepeatUp(u8),
    RepeatDown(u8),
    /// A training thread does one thing.
    Work(u8),
    /// All that can happen without a fault, several times.
    Rounds(u8),
    Join(u8),
    /// A worker of a name that a live process bears: it was given up, on a node that is cut off, and lives on.
    Double(u8),
    Crash(u8),
    /// The process crashes, and its worker starts another.
    Restart(u8),
    /// A stream breaks for both sides; what was on its way up still arrives.
    Break(u8),
    FailCollective(u8),
    /// A process stands still.
    Hang(u8),
    Resume(u8),
    /// A process gets slow, or as quick as the others again.
    Slow(u8),
    /// SIGTERM.
    Drain(u8),
    DrainWorker(u8),
    SetWorld {
        desired: u8,
        more: u8,
    },
    /// A checkpoint is asked for.
    Checkpoint,
    /// Milliseconds.
    Advance(u16),
    RestartCoordinator,
    /// It is gone, and no other is there until the next restart.
    LoseCoordinator,
}

#[derive(Clone, Debug)]
enum Item<T> {
    Message(T),
    Closed,
}

#[derive(Debug)]
struct Stream {
    process: usize,
    up: VecDeque<Item<ToCoordinator>>,
    down: VecDeque<Item<ToMember>>,
}

#[derive(Debug)]
pub(crate) struct Simulation {
    now: Duration,
    world: World,
    coordinator: Coordinator,
    epoch: u64,
    streams: BTreeMap<ConnectionId, Stream>,
    processes: Vec<Process>,
    /// Who has had the place of each name under this coordinator: runs with their tickets, the newest last.
    places: BTreeMap<String, Vec<(u64, Ticket)>>,
    refused: BTreeSet<usize>,
    fabric: Fabric,
    next_connection: u64,
    last_step: u64,
    highest: Option<Generation>,
    /// The committed step, and the last entry of the history, after the event before.
    step: u64,
    seen: u64,
    bases: BTreeMap<Generation, (u32, Option<StateLabel>)>,
    broken: usize,
    /// Members that were evicted for being slow, with the generation that it ended.
    pub(crate) too_slow: Vec<(MemberName, Generation)>,
    coordinator_is_away: bool,
}

fn coordinator(epoch: u64, world: World, now: Duration) -> Coordinator {
    let settings = CoordinatorSettings {
        epoch,
        world,
        formation_wait: Duration::from_millis(300),
        heartbeat_timeout: Duration::from_secs(1),
        report_timeout: Duration::from_secs(2),
        stall_timeout: Duration::from_secs(1),
        slow_eviction: SlowEviction::new(2.0, Duration::from_millis(600)).ok(),
    };
    Coordinator::new(settings, now)
}

fn pick<T>(index: u8, candidates: &[T]) -> Option<&T> {
    candidates.get(usize::from(index) % candidates.len().max(1))
}

impl Simulation {
    pub(crate) fn new() -> Self {
        let world = World::new(1, 2, 3).unwrap();
        Self {
            now: Duration::ZERO,
            world,
            coordinator: coordinator(1, world, Duration::ZERO),
            epoch: 1,
            streams: BTreeMap::new(),
            processes: Vec::new(),
            places: BTreeMap::new(),
            refused: BTreeSet::new(),
            fabric: Fabric::default(),
            next_connection: 0,
            last_step: u64::MAX,
            highest: None,
            step: 0,
            seen: 0,
            bases: BTreeMap::new(),
            broken: 0,
            too_slow: Vec::new(),
            coordinator_is_away: false,
        }
    }

    pub(crate) fn status(&self) -> Status {
        self.coordinator.status()
    }

    pub(crate) fn generations(&self) -> usize {
        self.bases.len()
    }

    /// Generations that ended by a failure.
    pub(crate) fn broken(&self) -> usize {
        self.broken
    }

    /// The most steps that any process holds.
    pub(crate) fn trained(&self) -> usize {
        self.processes.iter().filter_map(|process| process.line.as_ref()).map(Vec::len).max().unwrap_or(0)
    }

    /// The coordinator is gone, and no stream can be opened until another one is there.
    fn lose_coordinator(&mut self) {
        self.restart_coordinator();
        self.coordinator_is_away = true;
    }

    pub(crate) fn apply(&mut self, action: &Action) {
        match *action {
            Action::DeliverUp(index) => self.deliver_up(index, false),
            Action::RepeatUp(index) => self.deliver_up(index, true),
            Action::DeliverDown(index) => self.deliver_down(index, false),
            Action::RepeatDown(index) => self.deliver_down(index, true),
            Action::Work(index) => {
                let active = self.active();
                if let Some(process) = pick(index, &active) {
                    self.work(*process);
                }
            }
            Action::Rounds(count) => (0..count).for_each(|_| self.round()),
            Action::Join(name) => self.join(name),
            Action::Double(index) => {
                if let Some(process) = pick(index, &self.alive()).copied() {
                    self.start(self.slot(process), None);
                }
            }
            Action::Crash(index) => {
                if let Some(process) = pick(index, &self.alive()).copied() {
                    self.crash(process);
                }
            }
            Action::Restart(index) => {
                if let Some(process) = pick(index, &self.alive()).copied() {
                    self.crash(process);
                    self.start(self.slot(process), Some(process));
                }
            }
            Action::Break(index) => {
                let streams: Vec<_> = self.streams.keys().copied().collect();
                if let Some(connection) = pick(index, &streams) {
                    self.break_stream(*connection);
                }
            }
            Action::FailCollective(index) => {
                if let Some(process) = pick(index, &self.active()).copied() {
                    self.processes[process].fail(self.now, &mut self.fabric);
                    self.flush(process);
                }
            }
            Action::Hang(index) => {
                if let Some(process) = pick(index, &self.alive()).copied() {
                    self.processes[process].hung = true;
                }
            }
            Action::Resume(index) => {
                if let Some(process) = pick(index, &self.alive()).copied() {
                    self.processes[process].hung = false;
                }
            }
            Action::Slow(index) => {
                if let Some(process) = pick(index, &self.alive()).copied() {
                    self.processes[process].slow ^= true;
                }
            }
            Action::Drain(index) => {
                if let Some(process) = pick(index, &self.active()).copied() {
                    self.processes[process].draining = true;
                    self.tell(process, MemberEvent::Drain);
                }
            }
            Action::DrainWorker(name) => {
                let worker = format!("w-{}", name % NAMES);
                self.processes.iter_mut().filter(|process| process.name.worker == worker).for_each(|process| process.draining = true);
                self.coordinate(CoordinatorEvent::DrainWorker { worker });
            }
            Action::SetWorld { desired, more } => {
                let desired = u32::from(desired);
                self.world = World::new(desired.min(2), desired, desired + u32::from(more)).unwrap();
                self.coordinate(CoordinatorEvent::SetWorld(self.world));
            }
            Action::Checkpoint => self.coordinate(CoordinatorEvent::Checkpoint { from: None }),
            Action::Advance(milliseconds) => self.advance(Duration::from_millis(milliseconds.into())),
            Action::RestartCoordinator => self.restart_coordinator(),
            Action::LoseCoordinator => self.lose_coordinator(),
        }
    }

    /// The faults stop: with enough members, training comes to its end, and everybody is told so.
    pub(crate) fn finish(&mut self) {
        self.processes.iter_mut().for_each(|process| process.hung = false);
        self.coordinator_is_away = false;
        let highest = self.processes.iter().filter_map(|process| process.line.as_ref()).map(Vec::len).max().unwrap_or(0);
        self.last_step = highest as u64 + STEPS_TO_COME;
        for _ in 0..BOUND {
            if self.coordinator.status().phase == Phase::Ended(EndReason::Complete) && self.alive().is_empty() {
                return self.check_end();
            }
            if self.coordinator.status().phase != Phase::Ended(EndReason::Complete) {
                let staying = self.processes.iter().filter(|process| process.alive && !process.draining).count();
                if staying < self.world.desired() as usize {
                    self.join(0);
                }
            }
            self.round();
        }
        panic!("no end within the bound: {:#?}\nprocesses {:#?}", self.coordinator.status(), self.alive_processes());
    }

    fn alive_processes(&self) -> Vec<&Process> {
        self.processes.iter().filter(|process| process.alive).collect()
    }

    pub(crate) fn alive(&self) -> Vec<usize> {
        self.alive_processes().iter().map(|process| process.id).collect()
    }

    fn active(&self) -> Vec<usize> {
        self.processes.iter().filter(|process| process.alive && !process.hung).map(|process| process.id).collect()
    }

    fn join(&mut self, name: u8) {
        let taken: BTreeSet<String> = self.alive_processes().iter().map(|process| process.name.worker.clone()).collect();
        let free = (0..NAMES).map(|offset| (name.wrapping_add(offset)) % NAMES).find(|name| !taken.contains(&format!("w-{name}")));
        if let Some(name) = free {
            self.start(name, None);
        }
    }

    fn start(&mut self, slot: u8, before: Option<usize>) {
        let before = before.map(|before| self.processes[before].incarnation);
        self.processes.push(Process::new(self.processes.len(), slot, before, self.now));
    }

    fn slot(&self, process: usize) -> u8 {
        let worker = &self.processes[process].name.worker;
        (0..NAMES).find(|slot| *worker == format!("w-{slot}")).expect("a name of the simulation")
    }

    fn crash(&mut self, process: usize) {
        self.processes[process].die(&mut self.fabric);
        self.hang_up(process);
    }

    fn check_places(&mut self, commands: &[CoordinatorCommand]) {
        let sent = commands.iter().filter_map(|command| match command {
            CoordinatorCommand::Send { connection, message } => Some((self.streams.get(connection)?.process, message.clone())),
            _ => None,
        });
        let sent: Vec<(usize, ToMember)> = sent.collect();
        for (process, message) in &sent {
            if let ToMember::Attached { ticket, .. } = message {
                self.check_place(*process, *ticket);
            }
        }
        for (process, message) in &sent {
            if let ToMember::Refused { reason, .. } = message {
                self.check_refusal(*process, reason);
            }
        }
    }

    /// The place of a name goes to newer runs only; who has lost it once to another run does not get it back from the same coordinator.
    fn check_place(&mut self, process: usize, ticket: Ticket) {
        let Process { name, incarnation, .. } = &self.processes[process];
        assert!(!self.refused.contains(&process), "process {process} of {name} is attached after it was refused for good");
        let line = self.places.entry(name.worker.clone()).or_default();
        match line.last() {
            Some((run, own)) if *run == incarnation.run => assert_eq!(ticket, *own, "a run has one ticket"),
            before => {
                assert!(before.is_none_or(|(_, before)| *before < ticket), "process {process} takes the place of a newer one: {line:?}");
                assert!(line.iter().all(|(run, _)| *run != incarnation.run), "a run takes its place back: {line:?}");
                line.push((incarnation.run, ticket));
            }
        }
    }

    /// Only a newer process that has the place, or had it, is a reason to refuse one for good.
    fn check_refusal(&mut self, process: usize, reason: &Refusal) {
        let Refusal::Superseded { own, newest, .. } = reason else { panic!("process {process} is refused: {reason}") };
        let Process { name, incarnation, .. } = &self.processes[process];
        let (run, ticket) = *self.places[&name.worker].last().expect("somebody has the place");
        assert_eq!(newest.ticket, ticket);
        if run == incarnation.run {
            let by = self
                .processes
                .iter()
                .find(|other| other.name == *name && other.incarnation.run == run && other.incarnation.start > own.start);
            assert!(by.is_some(), "nothing newer than process {process} was started by its worker");
        } else {
            assert!(own.ticket < ticket, "process {process} of {name} with {own} is no older than {newest}");
        }
        self.refused.insert(process);
    }

    fn restart_coordinator(&mut self) {
        self.epoch += 1;
        self.coordinator_is_away = false;
        self.coordinator = coordinator(self.epoch, self.world, self.now);
        self.places.clear();
        self.refused.clear();
        self.seen = 0;
        // Every stream breaks for the members; the new coordinator never hears of them.
        for (connection, stream) in std::mem::take(&mut self.streams) {
            let process = &mut self.processes[stream.process];
            if process.connection == Some(connection) {
                process.connection = None;
                self.tell(stream.process, MemberEvent::Disconnected { reason: "the coordinator is gone".to_owned() });
            }
        }
    }

    /// Everything that can happen without a fault, once; 20 ms pass.
    fn round(&mut self) {
        for process in self.active() {
            self.open(process);
        }
        let streams: Vec<ConnectionId> = self.streams.keys().copied().collect();
        for connection in streams {
            while self.arrive_up(connection, false) {}
            while self.arrive_down(connection, false) {}
        }
        for process in self.active() {
            self.work(process);
        }
        self.advance(Duration::from_millis(20));
    }

    fn advance(&mut self, by: Duration) {
        self.now += by;
        self.coordinate(CoordinatorEvent::Tick);
        for process in self.active() {
            self.tell(process, MemberEvent::Tick);
        }
    }

    fn work(&mut self, process: usize) {
        self.open(process);
        self.processes[process].work(self.now, &mut self.fabric, self.last_step);
        self.flush(process);
    }

    fn open(&mut self, process: usize) {
        if self.coordinator_is_away || !std::mem::take(&mut self.processes[process].opening) {
            return;
        }
        self.next_connection += 1;
        let connection = ConnectionId(self.next_connection);
        self.streams.insert(connection, Stream { process, up: VecDeque::new(), down: VecDeque::new() });
        self.processes[process].connection = Some(connection);
        self.coordinate(CoordinatorEvent::Opened { connection });
        self.tell(process, MemberEvent::Connected);
    }

    fn tell(&mut self, process: usize, event: MemberEvent) {
        self.processes[process].tell(self.now, event);
        self.flush(process);
    }

    /// Puts on its way what a process sends.
    fn flush(&mut self, process: usize) {
        let sender = &mut self.processes[process];
        let messages = std::mem::take(&mut sender.outbox);
        if let Some(stream) = sender.connection.and_then(|connection| self.streams.get_mut(&connection)) {
            stream.up.extend(messages.into_iter().map(Item::Message));
        }
        if std::mem::take(&mut sender.disconnect) {
            self.hang_up(process);
        }
    }

    /// The process's end of its stream closes.
    fn hang_up(&mut self, process: usize) {
        let connection = self.processes[process].connection.take();
        if let Some(stream) = connection.and_then(|connection| self.streams.get_mut(&connection)) {
            stream.up.push_back(Item::Closed);
            stream.down.clear();
        }
    }

    fn break_stream(&mut self, connection: ConnectionId) {
        let Some(stream) = self.streams.get_mut(&connection) else { return };
        stream.up.push_back(Item::Closed);
        stream.down.clear();
        stream.down.push_back(Item::Closed);
    }

    fn deliver_up(&mut self, index: u8, again: bool) {
        let busy: Vec<_> = self.streams.iter().filter(|(_, stream)| !stream.up.is_empty()).map(|(connection, _)| *connection).collect();
        if let Some(connection) = pick(index, &busy) {
            self.arrive_up(*connection, again);
        }
    }

    fn deliver_down(&mut self, index: u8, again: bool) {
        let busy: Vec<_> = self.streams.iter().filter(|(_, stream)| !stream.down.is_empty()).map(|(connection, _)| *connection).collect();
        if let Some(connection) = pick(index, &busy) {
            self.arrive_down(*connection, again);
        }
    }

    /// The next item of a stream reaches the coordinator.
    fn arrive_up(&mut self, connection: ConnectionId, again: bool) -> bool {
        let Some(stream) = self.streams.get_mut(&connection) else { return false };
        let Some(item) = stream.up.pop_front() else { return false };
        match item {
            Item::Message(message) => {
                if again && !matches!(message, ToCoordinator::Store { .. }) {
                    stream.up.push_front(Item::Message(message.clone()));
                }
                self.coordinate(CoordinatorEvent::Message { connection, message });
            }
            Item::Closed => {
                let process = stream.process;
                self.streams.remove(&connection);
                self.lose_stream(process, connection);
                self.coordinate(CoordinatorEvent::Closed { connection, reason: "connection reset by peer".to_owned() });
            }
        }
        true
    }

    /// The next item of a stream reaches the member, unless it stands still.
    fn arrive_down(&mut self, connection: ConnectionId, again: bool) -> bool {
        let Some(stream) = self.streams.get_mut(&connection) else { return false };
        let process = stream.process;
        if self.processes[process].hung && self.processes[process].alive {
            return false;
        }
        let Some(item) = stream.down.pop_front() else { return false };
        if self.processes[process].connection != Some(connection) {
            return true;
        }
        match item {
            Item::Message(message) => {
                if again {
                    stream.down.push_front(Item::Message(message.clone()));
                }
                self.tell(process, MemberEvent::Message(message));
            }
            Item::Closed => self.lose_stream(process, connection),
        }
        true
    }

    fn lose_stream(&mut self, process: usize, connection: ConnectionId) {
        if self.processes[process].connection == Some(connection) {
            self.processes[process].connection = None;
            self.tell(process, MemberEvent::Disconnected { reason: "connection reset by peer".to_owned() });
        }
    }

    fn coordinate(&mut self, event: CoordinatorEvent) {
        let commands = self.coordinator.handle(self.now, event);
        self.check_places(&commands);
        self.check_plans(&commands);
        for command in commands {
            match command {
                CoordinatorCommand::Send { connection, message } => {
                    if let Some(stream) = self.streams.get_mut(&connection) {
                        stream.down.push_back(Item::Message(message));
                    }
                }
                CoordinatorCommand::Close { connection } => {
                    if let Some(stream) = self.streams.get_mut(&connection) {
                        stream.down.push_back(Item::Closed);
                    }
                }
                CoordinatorCommand::Record(entry) => {
                    if let HistoryEvent::Lost { member, cause: LossCause::Slow, .. } = entry.event {
                        self.check_too_slow(member);
                    }
                }
            }
        }
        self.check_status();
    }

    /// What must hold of a generation when it is formed.
    fn check_plans(&mut self, commands: &[CoordinatorCommand]) {
        let plans: Vec<(ConnectionId, &Plan)> = commands
            .iter()
            .filter_map(|command| match command {
                CoordinatorCommand::Send { connection, message: ToMember::Form(plan) } => Some((*connection, plan)),
                _ => None,
            })
            .collect();
        let Some((_, first)) = plans.first() else { return };
        let Plan { generation, world, base, list_digest, ref division, .. } = **first;
        assert!(self.highest.is_none_or(|highest| generation > highest), "{generation} after {:?}", self.highest);
        self.highest = Some(generation);
        assert!((self.world.min()..=self.world.max()).contains(&world), "{world} members, allowed {:?}", self.world);
        let ranks: BTreeSet<u32> = plans.iter().map(|(_, plan)| plan.rank).collect();
        assert!(plans.len() == world as usize && ranks == (0..world).collect(), "{generation} has not one list of members: {plans:?}");
        let mut slots: Vec<u64> = plans.iter().flat_map(|(_, plan)| division.slots_of(plan.seat, GLOBAL_BATCH)).flatten().collect();
        slots.sort_unstable();
        assert_eq!(slots, (0..GLOBAL_BATCH).collect::<Vec<_>>(), "every slot belongs to one member");
        assert_eq!(division.members(), world);
        let mut sources = BTreeSet::new();
        let mut receivers = BTreeSet::new();
        for (connection, plan) in &plans {
            assert_eq!((plan.generation, plan.world, plan.base, plan.list_digest), (generation, world, base, list_digest));
            assert_eq!(plan.division, *division);
            // A process whose stream is broken is not live as far as anyone can know.
            let live = self.streams.get(connection).map(|stream| &self.processes[stream.process]);
            if let Some(process) = live.filter(|process| process.alive && process.connection == Some(*connection)) {
                assert_eq!(process.member.generation(), None, "{} still has a group", process.name);
                let held = process.member.held();
                assert!(held <= base, "{} holds {held:?}, but {generation} goes on from {base:?}", process.name);
                assert_eq!(matches!(plan.role, Role::Level | Role::Send(_)), held.is_some() && held == base, "{plan:?} with {held:?}");
            }
            match &plan.role {
                Role::Level => {}
                Role::Restore | Role::Follow => {
                    assert_eq!((plan.role == Role::Restore, base), (plan.rank == 0, None), "{plan:?}");
                }
                Role::Send(moves) | Role::Receive(moves) => {
                    assert_eq!(matches!(plan.role, Role::Receive(_)), moves.receives(), "{plan:?}");
                    for (half, hop) in moves.halves.iter().enumerate() {
                        sources.extend(hop.to.iter().map(|to| (half, plan.rank, *to)));
                        receivers.extend(hop.from.map(|from| (half, from, plan.rank)));
                    }
                }
            }
        }
        assert_eq!(sources, receivers, "sources and receivers agree");
        // A step counts as committed when all members of its generation hold it: so it is lost with all of them, and not before.
        for member in self.coordinator.status().members {
            assert!(member.step <= base.map(|base| base.step), "{generation} goes on from {base:?}, but there is {member:?}");
        }
        let before = self.bases.insert(generation, (world, base));
        assert_eq!(before, None, "{generation} was formed twice");
    }

    /// One in a generation at most, and never so that the others are too few.
    fn check_too_slow(&mut self, member: MemberName) {
        let status = self.coordinator.status();
        assert!(
            self.too_slow.iter().all(|(_, generation)| *generation != status.generation),
            "{member} is the second of {}",
            status.generation
        );
        assert!(status.members.len() >= self.world.min() as usize, "without {member} there are too few: {status:?}");
        self.too_slow.push((member, status.generation));
    }

    fn check_status(&mut self) {
        let status = self.coordinator.status();
        // A group that is taken over may be older than one that the coordinator before formed and nobody heard of.
        let is_taken_over = status.generation.epoch < self.epoch;
        assert!(self.highest.is_none_or(|highest| status.generation >= highest || status.generation.n == 0 || is_taken_over), "{status:?}");
        if status.step < self.step && status.generation.epoch == self.epoch && status.generation.n > 0 {
            // One event may commit steps and lose them again: a member reports more than was known of it, and leaves with it.
            let went_back = status.history.iter().filter(|entry| entry.sequence > self.seen).any(|entry| match entry.event {
                HistoryEvent::WentBack { from, to } => from >= self.step && to == status.step,
                _ => false,
            });
            assert!(went_back, "the committed step fell from {} to {} without a word: {status:#?}", self.step, status.step);
        }
        self.step = status.step;
        self.seen = status.history.last().map_or(0, |entry| entry.sequence);
        self.broken = status.history.iter().filter(|entry| matches!(entry.event, HistoryEvent::Broken { .. })).count();
        let later = self.coordinator.deadline().is_none_or(|deadline| deadline > self.now);
        let unmet = status.wanted_checkpoint.is_none_or(|from| status.saved_step() < Some(from) && from <= status.step);
        assert!(unmet, "a checkpoint is wanted that is there, or of a step that is not: {status:?}");
        assert!(later, "a deadline that has passed asks for a call again and again: {:?}", self.coordinator.deadline());
    }

    /// The line of states that was saved at the end holds each step once, and each was computed whole.
    fn check_end(&self) {
        let line = self.fabric.storage.as_ref().expect("the last step is saved");
        let steps: Vec<u64> = line.iter().map(|label| label.step).collect();
        assert_eq!(steps, (1..=self.last_step).collect::<Vec<_>>(), "no step is left out or repeated");
        assert!(line.windows(2).all(|pair| pair[0].generation <= pair[1].generation), "generations never decrease: {line:?}");
        for label in line {
            let arrived = &self.fabric.arrivals[&(label.generation, label.step)];
            let mut slots: Vec<u64> = arrived.keys().flat_map(|rank| self.fabric.slots[&(label.generation, *rank)].clone()).collect();
            slots.sort_unstable();
            assert_eq!(slots, (0..GLOBAL_BATCH).collect::<Vec<_>>(), "{label}: every slot by exactly one member");
            let mut by = self.fabric.commits[label].clone();
            by.sort_unstable();
            by.dedup();
            assert_eq!(by.len(), self.fabric.commits[label].len(), "{label} was committed twice by one member");
        }
    }
}
