//! Which slots each node of a job has, as its coordinator deals them out.

use std::{collections::BTreeMap, ops::Range, time::Duration};

use lcl_protocol::{
    Attach, ConnectionId, Coordinator, CoordinatorCommand, CoordinatorEvent, CoordinatorSettings, Identity, Incarnation, MemberName,
    PROTOCOL_VERSION, Plan, ReportCause, StateLabel, Ticket, ToCoordinator, ToMember, World,
};

/// Members of a node.
const MEMBERS: u32 = 8;

/// Longer than anything takes here.
const LONG: Duration = Duration::from_hours(1);

/// Nodes and the slots of each, by the number of the node: one that comes back has another, since it comes without what it has read.
pub(super) type Shares = BTreeMap<u64, Vec<Range<u64>>>;

/// A job whose members do what their coordinator says.
pub(super) struct Job {
    coordinator: Coordinator,
    now: Duration,
    batch: u64,
    nodes: Vec<Vec<ConnectionId>>,
    plans: BTreeMap<ConnectionId, Plan>,
}

impl Job {
    /// Nodes that sort in the order of their numbers.
    pub(super) fn new(nodes: u32, batch: u64) -> Self {
        let members = nodes * MEMBERS;
        let world = World::new(1, members, members).expect("bounds");
        let settings = CoordinatorSettings {
            epoch: 1,
            world,
            formation_wait: LONG,
            heartbeat_timeout: LONG,
            report_timeout: LONG,
            stall_timeout: LONG,
            slow_eviction: None,
        };
        let coordinator = Coordinator::new(settings, Duration::ZERO);
        let mut job = Self { coordinator, now: Duration::ZERO, batch, nodes: Vec::new(), plans: BTreeMap::new() };
        (0..nodes).for_each(|node| job.start(&format!("node-{node:03}")));
        assert_eq!(job.plans.len(), members as usize, "all are in a group");
        job
    }

    /// A node is there. Members that train make room for it, if there is any.
    pub(super) fn start(&mut self, name: &str) {
        let number = self.nodes.len() as u64;
        let mut connections = Vec::new();
        for index in 0..MEMBERS {
            let connection = ConnectionId(number * u64::from(MEMBERS) + u64::from(index));
            let incarnation = Incarnation { run: number, start: 1 };
            let name = MemberName { worker: format!("worker-of-{name}"), index };
            let node = name.worker.clone();
            let attach = Attach {
                protocol_version: PROTOCOL_VERSION,
                identity: Identity { name, incarnation, node, address: String::new() },
                ticket: Some(Ticket { epoch: 1, n: number + 1 }),
                config_digest: String::new(),
                machine: None,
                known: None,
                held: None,
                draining: false,
                group: None,
                saved: None,
            };
            self.event(CoordinatorEvent::Opened { connection });
            self.say(connection, ToCoordinator::Attach(Box::new(attach)));
            connections.push(connection);
        }
        self.nodes.push(connections);
        if self.plans.len() < self.coordinator.status().world.max() as usize {
            self.form_anew(&ReportCause::Agreed);
        }
    }

    /// A node is gone; those who are left go on.
    pub(super) fn lose(&mut self, node: u64) {
        for connection in std::mem::take(&mut self.nodes[node as usize]) {
            self.plans.remove(&connection);
            self.event(CoordinatorEvent::Closed { connection, reason: "reset".to_owned() });
        }
        self.form_anew(&ReportCause::Aborted);
    }

    /// The members of the group leave it, and those who are there form the next one.
    fn form_anew(&mut self, cause: &ReportCause) {
        for (connection, plan) in std::mem::take(&mut self.plans) {
            let generation = plan.generation;
            let held = Some(StateLabel { step: generation.n, generation });
            self.say(connection, ToCoordinator::Report { generation, held, cause: cause.clone() });
        }
        // Generations that commit nothing are formed after a pause.
        self.now += Duration::from_secs(10);
        self.event(CoordinatorEvent::Tick);
    }

    fn say(&mut self, connection: ConnectionId, message: ToCoordinator) {
        self.event(CoordinatorEvent::Message { connection, message });
    }

    fn event(&mut self, event: CoordinatorEvent) {
        for command in self.coordinator.handle(self.now, event) {
            if let CoordinatorCommand::Send { connection, message: ToMember::Form(plan) } = command {
                self.plans.insert(connection, plan);
            }
        }
    }

    /// The slots of each node.
    pub(super) fn shares(&self) -> Shares {
        self.shares_by(|plan| plan.division.slots_of(plan.seat, self.batch))
    }

    /// What it would be if the members divided the batch evenly in the order of their ranks, as if there had never been others.
    pub(super) fn shares_by_rank(&self) -> Shares {
        self.shares_by(|plan| {
            let bound = |rank: u32| self.batch * u64::from(rank) / u64::from(plan.world);
            let slots = bound(plan.rank)..bound(plan.rank + 1);
            vec![slots]
        })
    }

    fn shares_by(&self, slots: impl Fn(&Plan) -> Vec<Range<u64>>) -> Shares {
        let of_node = |members: &Vec<ConnectionId>| members.iter().filter_map(|member| self.plans.get(member)).flat_map(&slots).collect();
        (0..).zip(self.nodes.iter().map(of_node)).collect()
    }
}
