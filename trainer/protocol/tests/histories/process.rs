//! One simulated process: the member's machine and a training thread that does what it is told, one thing at a time.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use lcl_protocol::{
    Activity, ConnectionId, Flags, Generation, Identity, Incarnation, Member, MemberCommand, MemberEvent, MemberName, MemberSettings,
    Moves, Plan, Refusal, Role, StateLabel, StoreRequest, StoreResponse, ToCoordinator, spread,
};

use crate::simulation::GLOBAL_BATCH;

/// A process's own work in a step, and that of a slow one.
const WORK: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(40)];
/// Number of the store operation that has to succeed before a checkpoint is made visible.
const FENCE: u64 = 9;

/// Weights and moments, as far as they matter here: the line of steps that led to them.
pub(crate) type Line = Vec<StateLabel>;

/// The collectives between processes, and what was done in them: what a real cluster's network and GPUs would be.
#[derive(Debug, Default)]
pub(crate) struct Fabric {
    /// Who arrived at a step of a generation, and with which flags and state.
    pub(crate) arrivals: BTreeMap<(Generation, u64), BTreeMap<u32, (Flags, Line)>>,
    /// Ranks that are ready to leave in order.
    pub(crate) leaving: BTreeMap<Generation, BTreeSet<u32>>,
    /// Ranks that have dropped their group.
    pub(crate) dropped: BTreeMap<Generation, Vec<u32>>,
    /// States on their way: generation, receiver's rank, and which half.
    pub(crate) transfers: BTreeMap<(Generation, u32, usize), (u32, Line)>,
    /// The only checkpoint.
    pub(crate) storage: Option<Line>,
    /// The plan under which a process works in a generation, by rank.
    pub(crate) members: BTreeMap<(Generation, u32), usize>,
    /// The slots that it has by it.
    pub(crate) slots: BTreeMap<(Generation, u32), Vec<u64>>,
    /// Every committed step with the rank that applied it.
    pub(crate) commits: BTreeMap<StateLabel, Vec<u32>>,
}

#[derive(Debug)]
enum Stage {
    Building,
    /// The machine has the word.
    Waiting,
    /// Receives and passes on one half after the other; what it has done is taken out of its moves.
    Recovering {
        moves: Moves,
        half: usize,
        /// What has come. Its own stays until all of that has been passed on.
        received: Option<Line>,
    },
    Training,
    Finished,
    /// Waits for the others to leave, too.
    Leaving,
}

#[derive(Debug)]
struct Work {
    plan: Plan,
    stage: Stage,
}

/// See the module's description.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(crate) struct Process {
    pub(crate) id: usize,
    pub(crate) member: Member,
    pub(crate) connection: Option<ConnectionId>,
    pub(crate) opening: bool,
    pub(crate) hung: bool,
    /// Its own work takes several times that of the others.
    pub(crate) slow: bool,
    pub(crate) alive: bool,
    pub(crate) draining: bool,
    pub(crate) name: MemberName,
    pub(crate) incarnation: Incarnation,
    pub(crate) line: Option<Line>,
    /// What the member's machine asked of the driver and of the training thread.
    pub(crate) outbox: Vec<ToCoordinator>,
    pub(crate) disconnect: bool,
    todo: VecDeque<MemberCommand>,
    work: Option<Work>,
    /// The generation of which a checkpoint is to be made visible, when the coordinator's store answers.
    saving: Option<Generation>,
    saved_step: Option<u64>,
}

impl Process {
    /// `before`: the process that its worker has started before it; without one its worker is new, too.
    pub(crate) fn new(id: usize, slot: u8, before: Option<Incarnation>, now: Duration) -> Self {
        let name = MemberName { worker: format!("w-{slot}"), index: 0 };
        // The numbers of runs fall, as the times of their starts do on a clock that goes back: the order must not depend on them.
        let new = Incarnation { run: u64::MAX - id as u64, start: 1 };
        let incarnation = before.map_or(new, |before| Incarnation { start: before.start + 1, ..before });
        let identity = Identity { name: name.clone(), incarnation, node: format!("n-{}", slot / 2), address: format!("10.0.0.{id}") };
        let settings = MemberSettings {
            identity,
            config_digest: "digest".to_owned(),
            machine: None,
            heartbeat_interval: Duration::from_millis(100),
            coordinator_timeout: Duration::from_millis(600),
        };
        let mut process = Self {
            id,
            member: Member::new(settings, now),
            connection: None,
            opening: false,
            hung: false,
            slow: false,
            alive: true,
            draining: false,
            name,
            incarnation,
            line: None,
            outbox: Vec::new(),
            disconnect: false,
            todo: VecDeque::new(),
            work: None,
            saving: None,
            saved_step: None,
        };
        process.tell(now, MemberEvent::Tick);
        process
    }

    /// Has the machine take in an event and sorts what comes out.
    pub(crate) fn tell(&mut self, now: Duration, event: MemberEvent) {
        if matches!(event, MemberEvent::Disconnected { .. }) {
            // The client cancels what no answer can come to any more.
            self.saving = None;
        }
        let commands = self.member.handle(now, event).expect("the simulated training thread keeps to the rules");
        for command in commands {
            match command {
                MemberCommand::Connect => self.opening = true,
                MemberCommand::Disconnect { .. } => (self.disconnect, self.saving) = (true, None),
                // What was said after the stream was dropped goes nowhere; the machine must not do it.
                MemberCommand::Send(message) => {
                    assert!(!self.disconnect, "{message:?} is sent on a dropped stream");
                    self.outbox.push(message);
                }
                other => self.todo.push_back(other),
            }
        }
    }

    /// The training thread does one thing. `last`: the step at which training ends.
    pub(crate) fn work(&mut self, now: Duration, fabric: &mut Fabric, last: u64) {
        if let Some(command) = self.next_command() {
            return self.obey(now, fabric, command);
        }
        if self.saving.is_some() {
            return;
        }
        let held = self.step();
        let Some(work) = &mut self.work else { return };
        let (generation, rank, world) = (work.plan.generation, work.plan.rank, work.plan.world);
        match &mut work.stage {
            Stage::Waiting | Stage::Finished => {}
            Stage::Leaving => {
                let all = fabric.leaving.get(&generation).is_some_and(|ranks| ranks.len() == world as usize);
                if all || fabric.dropped.contains_key(&generation) {
                    self.drop_group(now, fabric, None);
                }
            }
            Stage::Building => {
                if fabric.dropped.contains_key(&generation) {
                    self.drop_group(now, fabric, Some("a peer is gone while the group is built"));
                }
            }
            Stage::Recovering { moves, half, received } => match moves.halves.get_mut(*half) {
                // It can die, or lose its group, before this.
                None => {
                    self.line = received.take().or(self.line.take());
                    let step = self.step();
                    self.recovered(now, generation, step);
                }
                Some(hop) if let Some(from) = hop.from => {
                    if let Some((source, line)) = fabric.transfers.remove(&(generation, rank, *half)) {
                        assert_eq!(source, from);
                        assert!(received.as_ref().is_none_or(|other| *other == line), "the halves are of two states");
                        (hop.from, *received) = (None, Some(line));
                    } else if fabric.dropped.get(&generation).is_some_and(|ranks| ranks.contains(&from)) {
                        self.drop_group(now, fabric, Some("the source is gone"));
                    }
                }
                Some(hop) if hop.to.is_empty() => *half += 1,
                Some(hop) => {
                    // One receiver at a time, so that a source can die between two.
                    let receiver = hop.to.remove(0);
                    if let (None, Some(base)) = (&received, work.plan.base) {
                        assert_eq!(held, base.step, "the source is at the base");
                    }
                    let line = received.clone().or(self.line.clone()).expect("a source holds a state");
                    fabric.transfers.insert((generation, receiver, *half), (rank, line));
                }
            },
            Stage::Training if held == last => {
                if rank == 0 && self.saved_step != Some(last) {
                    // Without a coordinator that leads this group the last checkpoint has to wait.
                    if fabric.dropped.contains_key(&generation) {
                        self.drop_group(now, fabric, Some("a peer is gone"));
                    } else {
                        self.ask_to_save(now, generation);
                    }
                    return;
                }
                work.stage = Stage::Finished;
                self.tell(now, MemberEvent::Finished { generation });
            }
            Stage::Training => {
                let step = held + 1;
                let arrived = fabric.arrivals.entry((generation, step)).or_default();
                let all = arrived.len() == world as usize;
                if !arrived.contains_key(&rank) {
                    assert!(!all, "a rank that arrived twice, or one too many");
                    let line = self.line.clone().unwrap_or_default();
                    for (_, other) in arrived.values() {
                        assert_eq!(*other, line, "members of {generation} hold different states before step {step}");
                    }
                    arrived.insert(rank, (self.member.flags(), line));
                } else if all {
                    self.commit(now, fabric);
                } else if fabric.dropped.contains_key(&generation) {
                    self.drop_group(now, fabric, Some("a peer is gone"));
                }
            }
        }
    }

    /// While it waits for the fence of a checkpoint it does nothing else, unless the group has to be dropped.
    fn next_command(&mut self) -> Option<MemberCommand> {
        if self.saving.is_none() {
            return self.todo.pop_front();
        }
        let is_urgent = |command: &MemberCommand| {
            matches!(command, MemberCommand::StoreResponse { .. } | MemberCommand::AbortGroup { .. } | MemberCommand::Exit { .. })
        };
        self.todo.iter().position(is_urgent).and_then(|place| self.todo.remove(place))
    }

    /// A collective fails on this process alone, even one that has completed on others.
    pub(crate) fn fail(&mut self, now: Duration, fabric: &mut Fabric) {
        if self.work.is_some() {
            self.drop_group(now, fabric, Some("connection reset by peer"));
        }
    }

    /// The process is gone: its peers see its sockets close.
    pub(crate) fn die(&mut self, fabric: &mut Fabric) {
        self.alive = false;
        self.todo.clear();
        if let Some(work) = self.work.take() {
            fabric.dropped.entry(work.plan.generation).or_default().push(work.plan.rank);
        }
    }

    fn obey(&mut self, now: Duration, fabric: &mut Fabric, command: MemberCommand) {
        match command {
            MemberCommand::FormGroup(plan) => {
                assert!(self.work.is_none(), "two groups at once");
                let generation = plan.generation;
                let before = fabric.members.insert((generation, plan.rank), self.id);
                assert_eq!(before, None, "two members of {generation} with rank {}", plan.rank);
                let slots = plan.division.slots_of(plan.seat, GLOBAL_BATCH).into_iter().flatten().collect();
                fabric.slots.insert((generation, plan.rank), slots);
                self.work = Some(Work { plan, stage: Stage::Building });
                self.member.set_activity(Activity::default());
                let request = StoreRequest::Add { key: "arrived".to_owned(), amount: 1 };
                self.tell(now, MemberEvent::Store { generation, id: 1, request });
            }
            MemberCommand::StoreResponse { generation, id, response } => self.rendezvous(now, fabric, generation, id, &response),
            MemberCommand::Recover { role, base, .. } => {
                let Some(work) = &mut self.work else { return };
                assert_ne!(role, Role::Level);
                assert_eq!(matches!(role, Role::Restore | Role::Follow), base.is_none());
                if role == Role::Restore {
                    self.line = Some(fabric.storage.clone().unwrap_or_default());
                }
                let moves = match role {
                    Role::Level => Moves::default(),
                    Role::Send(moves) | Role::Receive(moves) => moves,
                    // Nobody but rank 0 has what it begins with: that members compare it is not played here.
                    Role::Restore | Role::Follow => {
                        let has: Vec<bool> = (0..work.plan.world).map(|rank| rank == 0).collect();
                        spread(&has).into_iter().nth(work.plan.rank as usize).expect("a rank of the group")
                    }
                };
                work.stage = Stage::Recovering { moves, half: 0, received: None };
            }
            MemberCommand::Train { step, .. } => {
                assert_eq!(step, self.step());
                if let Some(work) = &mut self.work {
                    work.stage = Stage::Training;
                }
            }
            MemberCommand::WriteCheckpoint { generation, step } => {
                assert_eq!(step, self.step());
                if self.work.as_ref().is_some_and(|work| work.plan.rank == 0) {
                    self.ask_to_save(now, generation);
                }
            }
            MemberCommand::LeaveGroup { generation } => {
                if let Some(work) = &mut self.work {
                    fabric.leaving.entry(generation).or_default().insert(work.plan.rank);
                    work.stage = Stage::Leaving;
                }
            }
            MemberCommand::AbortGroup { .. } => {
                // The collective may have completed already: then the update is applied, whatever the coordinator says.
                if self.completed(fabric) && self.id.is_multiple_of(2) {
                    self.commit(now, fabric);
                }
                self.drop_group(now, fabric, None);
            }
            MemberCommand::Exit { .. } => {
                self.disconnect = true;
                self.die(fabric);
            }
            // Whether rightly so, the simulation has checked.
            MemberCommand::GiveUp(Refusal::Superseded { .. }) => self.die(fabric),
            MemberCommand::GiveUp(refusal) => panic!("process {} of {} was refused: {refusal}", self.id, self.name),
            MemberCommand::Connect | MemberCommand::Disconnect { .. } | MemberCommand::Send(_) => unreachable!("not for this thread"),
        }
    }

    /// All add one; who makes it the world's size lets all go.
    fn rendezvous(&mut self, now: Duration, fabric: &mut Fabric, generation: Generation, id: u64, response: &StoreResponse) {
        if id == FENCE {
            return self.fenced(now, fabric, generation, response);
        }
        let Some(work) = self.work.as_mut().filter(|work| work.plan.generation == generation) else { return };
        let world = i64::from(work.plan.world);
        let key = || "go".to_owned();
        match (id, response) {
            _ if !matches!(work.stage, Stage::Building) => {}
            (_, StoreResponse::Cancelled { .. }) => self.drop_group(now, fabric, Some("the rendezvous was cancelled")),
            (1, StoreResponse::Number(arrived)) => {
                assert!(*arrived <= world, "{arrived} of {world} arrived at {generation}");
                if *arrived == world {
                    self.tell(now, MemberEvent::Store { generation, id: 2, request: StoreRequest::Set { key: key(), value: vec![1] } });
                }
                self.tell(now, MemberEvent::Store { generation, id: 3, request: StoreRequest::Get { key: key() } });
            }
            // A doubled answer finds the group formed already, and ends above.
            (3, StoreResponse::Value(_)) => {
                work.stage = Stage::Waiting;
                self.tell(now, MemberEvent::GroupFormed { generation });
            }
            _ => {}
        }
    }

    fn completed(&self, fabric: &Fabric) -> bool {
        let Some(work) = &self.work else { return false };
        let arrived = fabric.arrivals.get(&(work.plan.generation, self.step() + 1));
        matches!(work.stage, Stage::Training) && arrived.is_some_and(|arrived| arrived.len() == work.plan.world as usize)
    }

    fn commit(&mut self, now: Duration, fabric: &mut Fabric) {
        let Some(work) = &self.work else { return };
        let (generation, rank) = (work.plan.generation, work.plan.rank);
        let step = self.step() + 1;
        let label = StateLabel { step, generation };
        assert_eq!(fabric.members.get(&(generation, rank)), Some(&self.id), "only members of {generation} commit in it");
        fabric.commits.entry(label).or_default().push(rank);
        let arrived = fabric.arrivals.get(&(generation, step)).into_iter().flat_map(BTreeMap::values);
        let agreed = arrived.fold(Flags::NONE, |agreed, (flags, _)| agreed | *flags);
        self.line.get_or_insert_default().push(label);
        self.member.set_activity(Activity { step_work: Some(WORK[usize::from(self.slow)]), ..Activity::default() });
        self.tell(now, MemberEvent::Committed { generation, step, agreed });
    }

    /// A checkpoint is written; whether it may become visible is asked of the generation's store.
    fn ask_to_save(&mut self, now: Duration, generation: Generation) {
        if self.saving.is_none() {
            self.saving = Some(generation);
            self.tell(now, MemberEvent::Store { generation, id: FENCE, request: StoreRequest::CountKeys });
        }
    }

    fn fenced(&mut self, now: Duration, fabric: &mut Fabric, generation: Generation, response: &StoreResponse) {
        if self.saving.take_if(|saving| *saving == generation).is_some() && matches!(response, StoreResponse::Number(_)) {
            self.save(now, fabric, generation);
        }
    }

    fn save(&mut self, now: Duration, fabric: &mut Fabric, generation: Generation) {
        self.saved_step = Some(self.step());
        // Folders carry step and generation, and restore takes the highest.
        let newest = |line: &Option<Line>| line.as_ref().and_then(|line| line.last().copied());
        if newest(&fabric.storage) <= newest(&self.line) {
            fabric.storage.clone_from(&self.line);
        }
        let step = self.step();
        self.tell(now, MemberEvent::CheckpointCommitted { generation, saved: step.into() });
    }

    fn recovered(&mut self, now: Duration, generation: Generation, step: u64) {
        // Until the machine says `Train`, there is nothing to do.
        if let Some(work) = &mut self.work {
            work.stage = Stage::Waiting;
        }
        self.tell(now, MemberEvent::Recovered { generation, step });
    }

    fn drop_group(&mut self, now: Duration, fabric: &mut Fabric, failure: Option<&str>) {
        let Some(work) = self.work.take() else { return };
        let generation = work.plan.generation;
        self.saving = None;
        fabric.dropped.entry(generation).or_default().push(work.plan.rank);
        self.tell(now, MemberEvent::GroupClosed { generation, failure: failure.map(str::to_owned) });
    }

    fn step(&self) -> u64 {
        self.line.as_ref().map_or(0, |line| line.len() as u64)
    }
}
