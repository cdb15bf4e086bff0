//! Members and the coordinator as they are ([`Member`], [`Coordinator`], [`spread`]), with a network, a store and steps that only take time.
//!
//! Nothing here decides who belongs to a group, who sends a state to whom or when a step is given up: that the machines do. The training
//! thread is played: what it asks of the generation's store, what it reads, hashes and sends, and how long that takes.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    time::Duration,
};

use lcl_protocol::{
    Activity, ActivityStage, ConnectionId, Coordinator, CoordinatorCommand, CoordinatorEvent, CoordinatorSettings, Flags, Generation,
    Identity, Incarnation, Member, MemberCommand, MemberEvent, MemberName, MemberSettings, Moves, Plan, Role, StoreRequest, StoreResponse,
    ToMember, World, spread,
};

use crate::{network::travel, settings::Settings};

/// As the trainer's coordinator has them.
const FORMATION_WAIT: Duration = Duration::from_secs(30);
const REPORT_TIMEOUT: Duration = Duration::from_mins(1);
const STALL_TIMEOUT: Duration = Duration::from_mins(2);
const COORDINATOR_TIMEOUT: Duration = Duration::from_mins(1);
/// Members whose entries share a value of the store, as the trainer's groups have it.
const TOGETHER: usize = 4096;
/// Store requests of a group that forms: telling of itself, counting, letting go, waiting, and then reading the values.
const TELL: u64 = 1;
const COUNT: u64 = 2;
const LET_GO: u64 = 3;
const WAIT: u64 = 4;
const READ: u64 = 10;
/// Store requests of members that leave in order.
const LEAVE: u64 = 100;
const ALL_LEFT: u64 = 101;
const PART: u64 = 102;

enum Event {
    Start(usize),
    Opened(usize, ConnectionId),
    Arrives(CoordinatorEvent),
    Serve,
    CoordinatorTick,
    Hears(ConnectionId, ToMember),
    MemberTick(usize),
    Trains(usize, MemberEvent),
    StepDone(Generation, u64, Flags),
    Nothing,
}

/// A member's process.
struct Process {
    machine: Member,
    number: usize,
    is_alive: bool,
    connection: Option<ConnectionId>,
    plan: Option<Plan>,
}

/// What has become of a group.
#[derive(Debug, Default)]
pub(crate) struct Group {
    /// Processes by rank.
    processes: Vec<usize>,
    met: usize,
    roles: BTreeMap<usize, Option<Role>>,
    ready: usize,
    /// Since when its members are in a step.
    step_since: Option<f64>,
    is_broken: bool,
    /// Its members leave in order.
    is_leaving: bool,
    /// When all were connected, all held one state, and steps were done.
    pub(crate) formed: f64,
    pub(crate) level: f64,
    pub(crate) steps: Vec<f64>,
    /// Members that received the state; halves of it that one sent, at most; ranks that it passed, at most.
    pub(crate) received: usize,
    pub(crate) halves: usize,
    pub(crate) chain: u32,
}

/// See the module's description.
pub(crate) struct Simulation {
    settings: Settings,
    /// The steps of the checkpoint in the store, if there is one.
    saved: Option<u64>,
    pub(crate) now: f64,
    clock: Duration,
    queue: BinaryHeap<Reverse<(Duration, u64)>>,
    events: BTreeMap<u64, Event>,
    sequence: u64,
    coordinator: Coordinator,
    inbox: VecDeque<CoordinatorEvent>,
    is_serving: bool,
    ticks: Duration,
    pub(crate) messages: u64,
    processes: Vec<Process>,
    connections: BTreeMap<ConnectionId, usize>,
    pub(crate) groups: BTreeMap<Generation, Group>,
}

fn duration(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

impl Simulation {
    /// A job whose members all start at once. `saved`: the steps of the checkpoint that they find.
    pub(crate) fn new(settings: &Settings, members: usize, saved: Option<u64>) -> Self {
        let coordinator = CoordinatorSettings {
            epoch: 1,
            world: World::new(1, members as u32, members as u32).expect("a group has members"),
            formation_wait: FORMATION_WAIT,
            heartbeat_timeout: duration(settings.heartbeat_timeout),
            report_timeout: REPORT_TIMEOUT,
            stall_timeout: STALL_TIMEOUT,
            slow_eviction: None,
        };
        let mut simulation = Self {
            settings: settings.clone(),
            saved,
            now: 0.0,
            clock: Duration::ZERO,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            sequence: 0,
            coordinator: Coordinator::new(coordinator, Duration::ZERO),
            inbox: VecDeque::new(),
            is_serving: false,
            ticks: Duration::MAX,
            messages: 0,
            processes: Vec::new(),
            connections: BTreeMap::new(),
            groups: BTreeMap::new(),
        };
        for number in 0..members {
            simulation.start(number, 0.0);
        }
        simulation
    }

    /// A process of the member with this number starts.
    fn start(&mut self, number: usize, at: f64) {
        let (node, process) = (self.settings.node_of(number), self.processes.len());
        let settings = MemberSettings {
            identity: Identity {
                name: MemberName { worker: format!("job-w-{node:05}"), index: (number % self.settings.members_per_node as usize) as u32 },
                incarnation: Incarnation { run: process as u64, start: 1 },
                node: format!("node-{node:05}"),
                address: "10.0.0.1".to_owned(),
            },
            config_digest: "digest".to_owned(),
            machine: None,
            heartbeat_interval: duration(self.settings.heartbeat),
            coordinator_timeout: COORDINATOR_TIMEOUT,
        };
        self.processes.push(Process { machine: Member::new(settings, duration(at)), number, is_alive: true, connection: None, plan: None });
        self.after(at - self.now, Event::Start(process));
    }

    /// Members are lost: their processes end, which the others' kernels tell, or their node is silent. Replacements come.
    pub(crate) fn lose(&mut self, numbers: impl IntoIterator<Item = usize>, is_silent: bool) {
        for number in numbers {
            for index in 0..self.processes.len() {
                let process = &mut self.processes[index];
                if process.number != number || !process.is_alive {
                    continue;
                }
                process.is_alive = false;
                if let Some(plan) = &process.plan
                    && let Some(group) = self.groups.get_mut(&plan.generation)
                {
                    group.is_broken = true;
                }
                if let (Some(connection), false) = (process.connection, is_silent) {
                    let closed = CoordinatorEvent::Closed { connection, reason: "connection reset by peer".to_owned() };
                    self.after(self.settings.latency, Event::Arrives(closed));
                }
            }
            let seen = if is_silent { self.settings.heartbeat_timeout } else { 0.0 };
            self.start(number, self.now + seen + self.settings.restart);
        }
    }

    /// Goes on until `is_enough`; whether that has come to pass within an hour of the model's time.
    pub(crate) fn run_until(&mut self, is_enough: impl Fn(&Self) -> bool) -> bool {
        while !is_enough(self) {
            let Some(Reverse((at, sequence))) = self.queue.pop() else { return false };
            let Some(event) = self.events.remove(&sequence) else { continue };
            (self.now, self.clock) = (at.as_secs_f64(), at);
            if self.now > 3600.0 {
                return false;
            }
            self.happens(at, event);
        }
        true
    }

    /// Lets time pass.
    pub(crate) fn pass(&mut self, seconds: f64) {
        let end = self.now + seconds;
        self.after(seconds, Event::Nothing);
        assert!(self.run_until(|simulation| simulation.now + 1e-9 >= end), "time passes");
    }

    /// Goes on until so many members have done a step together; gives their generation.
    pub(crate) fn run_until_step(&mut self, members: usize, steps: usize) -> Generation {
        let is_there = |simulation: &Self| {
            let newest = simulation.groups.last_key_value();
            newest.is_some_and(|(_, group)| group.processes.len() == members && group.steps.len() >= steps)
        };
        assert!(self.run_until(is_there), "{members} members do {steps} steps: {:?}", self.coordinator.status().history.last());
        *self.groups.last_key_value().expect("it is there").0
    }

    fn after(&mut self, seconds: f64, event: Event) {
        self.at(self.clock + duration(seconds.max(0.0)), event);
    }

    fn at(&mut self, at: Duration, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((at.max(self.clock), self.sequence)));
        self.events.insert(self.sequence, event);
    }

    fn happens(&mut self, at: Duration, event: Event) {
        match event {
            Event::Start(process) => self.tell(process, MemberEvent::Tick),
            Event::Opened(process, connection) => {
                self.processes[process].connection = Some(connection);
                self.connections.insert(connection, process);
                self.inbox.push_back(CoordinatorEvent::Opened { connection });
                self.wake();
                self.tell(process, MemberEvent::Connected);
            }
            Event::Arrives(event) => {
                self.inbox.push_back(event);
                self.wake();
            }
            Event::Serve => self.serve(at),
            Event::CoordinatorTick => {
                self.ticks = Duration::MAX;
                self.inbox.push_back(CoordinatorEvent::Tick);
                self.wake();
            }
            Event::Hears(connection, message) => {
                if let Some(process) = self.connections.get(&connection).copied() {
                    self.tell(process, MemberEvent::Message(message));
                }
            }
            Event::MemberTick(process) => {
                let is_due = self.processes[process].machine.deadline().is_some_and(|deadline| deadline <= at);
                if is_due {
                    self.tell(process, MemberEvent::Tick);
                }
            }
            Event::Trains(process, event) => self.tell(process, event),
            Event::StepDone(generation, step, agreed) => self.step_done(generation, step, agreed),
            Event::Nothing => {}
        }
    }

    fn wake(&mut self) {
        if !self.is_serving {
            self.is_serving = true;
            self.after(0.0, Event::Serve);
        }
    }

    /// The coordinator takes in one event and sends what follows, one message after the other.
    fn serve(&mut self, at: Duration) {
        let Some(event) = self.inbox.pop_front() else {
            self.is_serving = false;
            return;
        };
        let mut busy = self.settings.message;
        for command in self.coordinator.handle(at, event) {
            let CoordinatorCommand::Send { connection, message } = command else { continue };
            let bytes = match &message {
                ToMember::Store { response: StoreResponse::Value(value), .. } => value.len(),
                _ => 0,
            };
            busy += self.settings.message + bytes as f64 / self.settings.coordinator_bandwidth;
            self.messages += 1;
            self.after(busy + self.settings.latency, Event::Hears(connection, message));
        }
        self.messages += 1;
        self.after(busy, Event::Serve);
        if let Some(deadline) = self.coordinator.deadline().filter(|deadline| *deadline < self.ticks) {
            self.ticks = deadline;
            self.at(deadline, Event::CoordinatorTick);
        }
    }

    /// A member's machine takes in an event.
    fn tell(&mut self, process: usize, event: MemberEvent) {
        if !self.processes[process].is_alive {
            return;
        }
        let commands = self.processes[process].machine.handle(self.clock, event).expect("the played training thread keeps to the rules");
        for command in commands {
            self.obey(process, command);
        }
        if let Some(deadline) = self.processes[process].machine.deadline() {
            self.at(deadline, Event::MemberTick(process));
        }
    }

    fn obey(&mut self, process: usize, command: MemberCommand) {
        match command {
            MemberCommand::Connect => {
                let connection = ConnectionId(self.sequence);
                self.after(2.0 * self.settings.latency, Event::Opened(process, connection));
            }
            MemberCommand::Disconnect { reason } => {
                if let Some(connection) = self.processes[process].connection.take() {
                    self.after(self.settings.latency, Event::Arrives(CoordinatorEvent::Closed { connection, reason }));
                }
            }
            MemberCommand::Send(message) => {
                if let Some(connection) = self.processes[process].connection {
                    self.after(self.settings.latency, Event::Arrives(CoordinatorEvent::Message { connection, message }));
                }
            }
            MemberCommand::FormGroup(plan) => self.form(process, plan),
            MemberCommand::StoreResponse { generation, id, response } => self.answered(process, generation, id, &response),
            MemberCommand::Recover { generation, role, .. } => self.recover(process, generation, Some(role)),
            MemberCommand::Train { generation, .. } => self.train(process, generation),
            MemberCommand::LeaveGroup { generation } => {
                if let Some(group) = self.groups.get_mut(&generation) {
                    group.is_leaving = true;
                }
                self.ask(process, generation, LEAVE, StoreRequest::Add { key: "left".to_owned(), amount: 1 });
            }
            MemberCommand::AbortGroup { generation, .. } => {
                let seen = self.groups.get(&generation).map_or(self.now, |group| {
                    let own_work = group.step_since.map(|since| since + self.settings.step * self.settings.unseen);
                    self.now.max(own_work.unwrap_or(self.now))
                });
                self.close(process, generation, seen + self.settings.drop - self.now);
            }
            MemberCommand::WriteCheckpoint { .. } | MemberCommand::Exit { .. } | MemberCommand::GiveUp(_) => {}
        }
    }

    fn ask(&mut self, process: usize, generation: Generation, id: u64, request: StoreRequest) {
        self.tell(process, MemberEvent::Store { generation, id, request });
    }

    fn close(&mut self, process: usize, generation: Generation, after: f64) {
        if let Some(group) = self.groups.get_mut(&generation) {
            group.is_broken = true;
        }
        self.after(after, Event::Trains(process, MemberEvent::GroupClosed { generation, failure: None }));
    }

    fn enter(&mut self, process: usize, stage: ActivityStage) {
        self.processes[process].machine.set_activity(Activity { stage, ..Activity::default() });
    }

    fn form(&mut self, process: usize, plan: Plan) {
        let group = self.groups.entry(plan.generation).or_default();
        group.processes.resize(plan.world as usize, usize::MAX);
        group.processes[plan.rank as usize] = process;
        let (generation, part) = (plan.generation, plan.rank as usize / TOGETHER);
        self.processes[process].plan = Some(plan);
        self.enter(process, ActivityStage::Transferring);
        let value = vec![0; self.settings.entry_bytes as usize];
        self.ask(process, generation, TELL, StoreRequest::Append { key: format!("members/{part}"), value });
    }

    /// Goes on with what it asks of the store.
    fn answered(&mut self, process: usize, generation: Generation, id: u64, response: &StoreResponse) {
        let Some(plan) = self.processes[process].plan.as_ref().filter(|plan| plan.generation == generation) else { return };
        let (world, key) = (plan.world, |key: &str| key.to_owned());
        match (id, response) {
            (_, StoreResponse::Cancelled { .. } | StoreResponse::Refused { .. }) => {}
            (TELL, _) => self.ask(process, generation, COUNT, StoreRequest::Add { key: key("told"), amount: 1 }),
            (COUNT, StoreResponse::Number(told)) => {
                if *told == i64::from(world) {
                    self.ask(process, generation, LET_GO, StoreRequest::Set { key: key("all-told"), value: Vec::new() });
                }
                self.ask(process, generation, WAIT, StoreRequest::Wait { keys: vec![key("all-told")] });
            }
            (WAIT, _) => self.ask(process, generation, READ, StoreRequest::Get { key: key("members/0") }),
            (LEAVE, StoreResponse::Number(left)) => {
                if *left == i64::from(world) {
                    self.ask(process, generation, ALL_LEFT, StoreRequest::Set { key: key("all-left"), value: Vec::new() });
                }
                self.ask(process, generation, PART, StoreRequest::Wait { keys: vec![key("all-left")] });
            }
            (PART, _) => self.close(process, generation, self.settings.drop),
            (id, StoreResponse::Value(_)) if id >= READ => {
                let next = id + 1 - READ;
                if (next as usize) < (world as usize).div_ceil(TOGETHER) {
                    self.ask(process, generation, READ + next, StoreRequest::Get { key: format!("members/{next}") });
                } else {
                    self.met(generation);
                }
            }
            _ => {}
        }
    }

    /// One more member knows all others. With the last of them they connect, and exchange what each of them is.
    fn met(&mut self, generation: Generation) {
        let Some(group) = self.groups.get_mut(&generation) else { return };
        group.met += 1;
        if group.met < group.processes.len() || group.is_broken {
            return;
        }
        let processes = group.processes.clone();
        let seconds = self.settings.connect + self.settings.exchange(processes.len());
        group.formed = self.now + seconds;
        for process in processes {
            self.after(seconds, Event::Trains(process, MemberEvent::GroupFormed { generation }));
        }
    }

    /// A member has a role before the first step, or none. With the last of them the state spreads.
    fn recover(&mut self, process: usize, generation: Generation, role: Option<Role>) {
        let Some(rank) = self.processes[process].plan.as_ref().map(|plan| plan.rank as usize) else { return };
        let Some(group) = self.groups.get_mut(&generation).filter(|group| !group.is_broken) else { return };
        group.roles.insert(rank, role);
        if group.roles.len() < group.processes.len() {
            return;
        }
        let roles = std::mem::take(&mut group.roles);
        let (processes, members) = (group.processes.clone(), group.processes.len());
        let restores = matches!(roles.get(&0), Some(Some(Role::Restore)));
        let mut starts = vec![self.now; members];
        let moves: Vec<Moves> = if restores {
            // Rank 0 reads, each hashes what it has, and all tell each other. At the very start all have drawn the same.
            let read = if self.saved.is_some() { self.settings.read() } else { 0.0 };
            starts = vec![self.now + read + self.settings.hash() + self.settings.exchange(members); members];
            spread(&(0..members).map(|rank| rank == 0 || self.saved.is_none()).collect::<Vec<_>>())
        } else {
            let moves = |role: &Option<Role>| match role {
                Some(Role::Send(moves) | Role::Receive(moves)) => moves.clone(),
                _ => Moves::default(),
            };
            roles.values().map(moves).collect()
        };
        let nodes: Vec<usize> = processes.iter().map(|process| self.settings.node_of(self.processes[*process].number)).collect();
        let done = travel(&self.settings, &nodes, &moves, &starts);
        self.note_moves(generation, &moves);
        for (rank, process) in processes.into_iter().enumerate() {
            if roles.get(&rank).is_some_and(Option::is_some) {
                let verify = if moves[rank].receives() { self.settings.hash() } else { 0.0 };
                let base = self.processes[process].plan.as_ref().and_then(|plan| plan.base);
                let step = base.map_or(self.saved.unwrap_or(0), |base| base.step);
                self.after(done[rank] + verify - self.now, Event::Trains(process, MemberEvent::Recovered { generation, step }));
            }
        }
    }

    fn note_moves(&mut self, generation: Generation, moves: &[Moves]) {
        let Some(group) = self.groups.get_mut(&generation) else { return };
        group.received = moves.iter().filter(|moves| moves.receives()).count();
        group.halves = moves.iter().map(|moves| moves.halves.iter().map(|hop| hop.to.len()).sum()).max().unwrap_or(0);
        group.chain = moves.iter().flat_map(|moves| &moves.halves).map(|hop| hop.depth).max().unwrap_or(0);
    }

    /// A member is ready for its first step. A machine that has nothing to receive says so at once, before others are.
    fn train(&mut self, process: usize, generation: Generation) {
        self.enter(process, ActivityStage::Training);
        let is_level = self.processes[process].plan.as_ref().is_some_and(|plan| plan.role == Role::Level);
        if is_level {
            self.recover(process, generation, None);
        }
        let Some(group) = self.groups.get_mut(&generation).filter(|group| !group.is_broken) else { return };
        group.ready += 1;
        if group.ready == group.processes.len() {
            group.level = self.now;
            self.step(generation);
        }
    }

    /// A step begins: what members wish is told in its exchange.
    fn step(&mut self, generation: Generation) {
        let Some(group) = self.groups.get_mut(&generation) else { return };
        let exchange = self.settings.exchange(group.processes.len());
        group.step_since = Some(self.now + exchange);
        let machine = |process: &usize| &self.processes[*process].machine;
        let step = group.processes.first().and_then(|process| machine(process).held()).map_or(0, |held| held.step) + 1;
        let agreed = group.processes.iter().fold(Flags::NONE, |agreed, process| agreed | machine(process).flags());
        self.after(exchange + self.settings.step, Event::StepDone(generation, step, agreed));
    }

    /// All have applied the update, unless the group was broken meanwhile.
    fn step_done(&mut self, generation: Generation, step: u64, agreed: Flags) {
        let Some(group) = self.groups.get_mut(&generation).filter(|group| !group.is_broken) else { return };
        group.steps.push(self.now);
        group.step_since = None;
        for process in group.processes.clone() {
            self.tell(process, MemberEvent::Committed { generation, step, agreed });
        }
        if self.groups.get(&generation).is_some_and(|group| !group.is_broken && !group.is_leaving) {
            self.step(generation);
        }
    }
}
