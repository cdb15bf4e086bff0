//! The coordinator's machine alone with thousands of members, without streams: what one event costs as their number grows.
//!
//! `cargo bench -p lcl-protocol --bench crowd [-- MEMBERS...]` (4096, 8192 and 16384 without). Prints Markdown: processor time of this one
//! thread, which nothing else shares.

use std::time::{Duration, Instant};

use lcl_protocol::{
    Activity, Attach, ConnectionId, Coordinator, CoordinatorCommand, CoordinatorEvent, CoordinatorSettings, Generation, HeldGroup,
    Identity, Incarnation, MemberName, PROTOCOL_VERSION, Phase, Plan, ReportCause, StateLabel, StoreRequest, Ticket, ToCoordinator,
    ToMember, World,
};

const EPOCH: u64 = 7;
/// Members whose streams break at once.
const LOST: usize = 100;

struct Crowd {
    machine: Coordinator,
    now: Duration,
    /// Streams of live members, and the plan that each has got last.
    members: Vec<(ConnectionId, Option<Plan>)>,
    generation: Generation,
    sent: usize,
}

fn main() {
    let sizes: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let sizes = if sizes.is_empty() { vec![4096, 8192, 16384] } else { sizes };
    println!(
        "| members | attach | plans | meet in the store | a heartbeat each | loss of 1: told | reports and plans | loss of {LOST} | taken over | \
         a heartbeat each while one leaves | stop |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for size in sizes {
        let mut crowd = Crowd::new(size);
        let attach = timed(|| crowd.attach(size - 1));
        let form = timed(|| crowd.attach(1));
        let meet = timed(|| crowd.meet());
        let heartbeats = timed(|| crowd.heartbeats());
        let told = timed(|| crowd.lose(1));
        let reports = timed(|| crowd.report());
        let many = timed(|| {
            crowd.lose(LOST);
            crowd.report();
        });
        assert_eq!((crowd.generation.n, crowd.machine.members()), (3, size - 1 - LOST));
        let taken_over = timed(|| crowd.take_over());
        assert_eq!((crowd.machine.phase(), crowd.machine.status().generation.n), (Phase::Running, 3));
        crowd.event(CoordinatorEvent::DrainWorker { worker: "job-w-0".to_owned() });
        let while_one_leaves = timed(|| crowd.heartbeats());
        let stop = timed(|| {
            crowd.event(CoordinatorEvent::Stop);
            crowd.report();
        });
        println!(
            "| {size} | {attach} | {form} | {meet} | {heartbeats} | {told} | {reports} | {many} | {taken_over} | {while_one_leaves} | {stop} |"
        );
        assert!(crowd.sent > 3 * size);
    }
}

/// The first message of the member with this number; eight share a node.
fn attach(number: u64, held: StateLabel, group: Option<HeldGroup>) -> ToCoordinator {
    let identity = Identity {
        name: MemberName { worker: format!("job-w-{}", number / 8), index: (number % 8) as u32 },
        incarnation: Incarnation { run: number, start: 1 },
        node: format!("node-{}", number / 8),
        address: "10.0.0.1".to_owned(),
    };
    ToCoordinator::Attach(Box::new(Attach {
        protocol_version: PROTOCOL_VERSION,
        identity,
        ticket: Some(Ticket { epoch: EPOCH - 1, n: number + 1 }),
        config_digest: "digest".to_owned(),
        machine: None,
        known: None,
        held: Some(held),
        draining: false,
        group,
        saved: None,
    }))
}

/// In milliseconds.
fn timed(work: impl FnOnce()) -> String {
    let begun = Instant::now();
    work();
    format!("{:.1} ms", begun.elapsed().as_secs_f64() * 1000.0)
}

fn machine(epoch: u64, size: usize) -> Coordinator {
    let settings = CoordinatorSettings {
        epoch,
        world: World::new(1, size as u32, size as u32).expect("a size"),
        formation_wait: Duration::from_mins(10),
        heartbeat_timeout: Duration::from_secs(10),
        report_timeout: Duration::from_mins(1),
        stall_timeout: Duration::from_mins(2),
        slow_eviction: None,
    };
    Coordinator::new(settings, Duration::ZERO)
}

impl Crowd {
    fn new(size: usize) -> Self {
        Self {
            machine: machine(EPOCH, size),
            now: Duration::ZERO,
            members: Vec::new(),
            generation: Generation { epoch: EPOCH, n: 0 },
            sent: 0,
        }
    }

    /// Takes in an event as the driver does: it asks for the next deadline after each.
    fn event(&mut self, event: CoordinatorEvent) {
        self.now += Duration::from_micros(1);
        for command in self.machine.handle(self.now, event) {
            if let CoordinatorCommand::Send { connection, message } = command {
                self.sent += 1;
                if let ToMember::Form(plan) = message {
                    self.generation = plan.generation;
                    if let Ok(at) = self.members.binary_search_by_key(&connection, |(connection, _)| *connection) {
                        self.members[at].1 = Some(plan);
                    }
                }
            }
        }
        assert!(self.machine.deadline().is_none_or(|deadline| deadline > self.now));
    }

    fn say(&mut self, connection: ConnectionId, message: ToCoordinator) {
        self.event(CoordinatorEvent::Message { connection, message });
    }

    fn attach(&mut self, count: usize) {
        for number in (self.members.len() as u64..).take(count) {
            let connection = ConnectionId(number);
            self.members.push((connection, None));
            self.event(CoordinatorEvent::Opened { connection });
            self.say(connection, attach(number, StateLabel { step: 5, generation: self.generation }, None));
        }
    }

    /// Another coordinator takes the place of this one, and all attach to it with the group that they hold.
    fn take_over(&mut self) {
        self.machine = machine(EPOCH + 1, self.members.len());
        let generation = self.generation;
        for (connection, plan) in std::mem::take(&mut self.members) {
            let Some(plan) = plan.filter(|plan| plan.generation == generation) else { continue };
            let Plan { rank, world, seat, list_digest, ref division, .. } = plan;
            let held = HeldGroup { generation, rank, world, seat, seats: division.seats(), list_digest, finished: false };
            self.event(CoordinatorEvent::Opened { connection });
            self.say(connection, attach(connection.0, StateLabel { step: 6, generation }, Some(held)));
            self.members.push((connection, None));
        }
    }

    /// As an NCCL group meets: one sets a name, the others get it, all are counted, and all wait for the last.
    fn meet(&mut self) {
        let keys = || vec!["go".to_owned()];
        for (index, connection) in self.connections().into_iter().enumerate() {
            let name = "name".to_owned();
            let first = if index == 0 { StoreRequest::Set { key: name, value: vec![0; 128] } } else { StoreRequest::Get { key: name } };
            self.ask(connection, 0, first);
            self.ask(connection, 1, StoreRequest::Add { key: "count".to_owned(), amount: 1 });
            self.ask(connection, 2, StoreRequest::Wait { keys: keys() });
        }
        let first = self.members[0].0;
        self.ask(first, 3, StoreRequest::Set { key: "go".to_owned(), value: Vec::new() });
    }

    fn connections(&self) -> Vec<ConnectionId> {
        self.members.iter().map(|(connection, _)| *connection).collect()
    }

    fn ask(&mut self, connection: ConnectionId, id: u64, request: StoreRequest) {
        let generation = self.generation;
        self.say(connection, ToCoordinator::Store { generation, id, request });
    }

    fn heartbeats(&mut self) {
        let generation = Some(self.generation);
        let held = Some(StateLabel { step: 6, generation: self.generation });
        for connection in self.connections() {
            self.say(connection, ToCoordinator::Heartbeat { generation, held, activity: Activity::default() });
        }
    }

    /// The streams of some, spread over all, break.
    fn lose(&mut self, count: usize) {
        let stride = self.members.len() / count;
        for index in (0..count).rev() {
            let (connection, _) = self.members.remove(index * stride + stride / 2);
            self.event(CoordinatorEvent::Closed { connection, reason: "reset".to_owned() });
        }
    }

    fn report(&mut self) {
        let generation = self.generation;
        let held = Some(StateLabel { step: 6, generation });
        for connection in self.connections() {
            self.say(connection, ToCoordinator::Report { generation, held, cause: ReportCause::Aborted });
        }
    }
}
