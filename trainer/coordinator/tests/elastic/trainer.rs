//! A training thread that only pretends: its state is a number, its collectives are a shared map. It blocks in them as a real one does,
//! and only the abort wakes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use lcl_coordinator::{ClientOptions, Commands, MemberClient, Security, StoreError};
use lcl_protocol::{
    Activity, EndReason, Flags, Generation, Hop, Identity, Incarnation, MemberCommand, MemberEvent, MemberName, MemberSettings, Moves,
    Plan, Refusal, Role, spread,
};

/// Samples per step; no multiple of 3.
const GLOBAL_BATCH: u64 = 8;
/// The longest any single wait may take.
const PATIENCE: Duration = Duration::from_mins(1);

/// Processes are numbered against the order in which they start, as by a clock that goes back: nothing may depend on it.
static RUN: AtomicU64 = AtomicU64::new(u64::MAX);

/// One step of one generation, as far as its collective has come.
#[derive(Debug, Default)]
struct Collective {
    /// What each rank held and wished.
    arrived: BTreeMap<u32, (u64, Flags)>,
    /// What each had computed.
    slots: Vec<u64>,
    /// Whether this is the last step; decided once, when the last rank arrives.
    last: bool,
}

#[derive(Debug, Default)]
struct Shared {
    collectives: BTreeMap<(Generation, u64), Collective>,
    /// Groups that a member has to let go of.
    aborted: BTreeSet<(Generation, u64)>,
    /// Who committed a step of a generation, by run.
    commits: BTreeMap<(u64, Generation), Vec<u64>>,
    restores: usize,
    last_checkpoint: Option<u64>,
}

/// What connects the processes.
#[derive(Debug, Default)]
pub(crate) struct Fabric {
    shared: Mutex<Shared>,
    changed: Condvar,
    /// Training ends with the step whose collective completes next.
    pub(crate) finish: AtomicBool,
}

impl Fabric {
    /// Blocks until all ranks have arrived: what was agreed, and whether it is the last step. `None`: aborted.
    fn all_reduce(&self, plan: &Plan, run: u64, step: u64, state: u64, flags: Flags) -> Option<(Flags, bool)> {
        let key = (plan.generation, step);
        let mut shared = self.shared.lock().unwrap();
        let collective = shared.collectives.entry(key).or_default();
        collective.arrived.insert(plan.rank, (state, flags));
        collective.slots.extend(plan.division.slots_of(plan.seat, GLOBAL_BATCH).into_iter().flatten());
        if collective.arrived.len() == plan.world as usize {
            collective.last = self.finish.load(Ordering::SeqCst);
            self.changed.notify_all();
        }
        let waiting = |shared: &mut Shared| {
            let complete = shared.collectives[&key].arrived.len() == plan.world as usize;
            !complete && !shared.aborted.contains(&(plan.generation, run))
        };
        let (shared, patience) = self.changed.wait_timeout_while(shared, PATIENCE, waiting).unwrap();
        assert!(!patience.timed_out(), "nobody aborted step {step} of {}", plan.generation);
        let collective = &shared.collectives[&key];
        if collective.arrived.len() < plan.world as usize {
            return None;
        }
        let states: BTreeSet<u64> = collective.arrived.values().map(|(state, _)| *state).collect();
        assert_eq!(states.len(), 1, "members of {} differ before step {step}", plan.generation);
        Some((collective.arrived.values().fold(Flags::NONE, |agreed, (_, flags)| agreed | *flags), collective.last))
    }

    fn abort(&self, generation: Generation, run: u64) {
        self.shared.lock().unwrap().aborted.insert((generation, run));
        self.changed.notify_all();
    }

    /// Waits until someone has arrived at this step.
    pub(crate) async fn until_steps(self: &Arc<Self>, step: u64) {
        let fabric = Arc::clone(self);
        let wait = move || {
            let not_there = |shared: &mut Shared| !shared.collectives.keys().any(|(_, at)| *at >= step);
            drop(fabric.changed.wait_while(fabric.shared.lock().unwrap(), not_there).unwrap());
        };
        tokio::task::spawn_blocking(wait).await.unwrap();
    }

    pub(crate) fn restores(&self) -> usize {
        self.shared.lock().unwrap().restores
    }

    pub(crate) fn last_checkpoint(&self) -> Option<u64> {
        self.shared.lock().unwrap().last_checkpoint
    }

    fn commit(&self, step: u64, generation: Generation, run: u64) {
        self.shared.lock().unwrap().commits.entry((step, generation)).or_default().push(run);
    }

    /// From the first step to the last, each was committed, at most once by a member, and in the last generation that committed it every
    /// slot was in the sum once. (Not every member of it need have committed: one that aborted after its part was sent has the step from
    /// another.)
    pub(crate) fn check_ledger(&self) {
        let shared = self.shared.lock().unwrap();
        let last: BTreeMap<u64, Generation> = shared.commits.keys().copied().collect();
        let steps: Vec<u64> = last.keys().copied().collect();
        assert_eq!(steps, (1..=steps.len() as u64).collect::<Vec<_>>());
        assert!(last.values().is_sorted(), "a later step of an earlier generation");
        for (step, generation) in last {
            let by = &shared.commits[&(step, generation)];
            assert_eq!(by.iter().collect::<BTreeSet<_>>().len(), by.len(), "step {step} was committed twice by one member");
            let mut slots = shared.collectives[&(generation, step)].slots.clone();
            slots.sort_unstable();
            assert_eq!(slots, (0..GLOBAL_BATCH).collect::<Vec<_>>(), "step {step} of {generation}");
        }
    }
}

/// How a trainer ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ended(EndReason),
    Superseded,
    Killed,
}

/// A member: a client, and the thread that pretends to train.
pub(crate) struct Trainer {
    thread: JoinHandle<Outcome>,
    killed: Arc<AtomicBool>,
}

impl Trainer {
    pub(crate) fn start(coordinator: SocketAddr, worker: &str, fabric: &Arc<Fabric>) -> Self {
        Self::start_with(coordinator, worker, fabric, None)
    }

    /// `step_work`: what it tells of its own work in a step.
    pub(crate) fn start_with(coordinator: SocketAddr, worker: &str, fabric: &Arc<Fabric>, step_work: Option<Duration>) -> Self {
        let run = RUN.fetch_sub(1, Ordering::Relaxed);
        let identity = Identity {
            name: MemberName { worker: worker.to_owned(), index: 0 },
            incarnation: Incarnation { run, start: 1 },
            node: "loopback".to_owned(),
            address: "127.0.0.1".to_owned(),
        };
        let settings = MemberSettings {
            identity,
            config_digest: "digest".to_owned(),
            machine: None,
            heartbeat_interval: Duration::from_millis(20),
            coordinator_timeout: Duration::from_secs(10),
        };
        let aborter = Arc::clone(fabric);
        let options = ClientOptions {
            on_abort: Box::new(move |generation, _| aborter.abort(generation, run)),
            activity: Box::new(move || Activity { step_work, ..Activity::default() }),
            ..ClientOptions::new(coordinator.to_string(), Security::Insecure)
        };
        let killed = Arc::new(AtomicBool::new(false));
        let (client, commands) = MemberClient::start(options, settings).unwrap();
        let process = Process { client, commands, fabric: Arc::clone(fabric), run, state: None, plan: None, killed: Arc::clone(&killed) };
        Self { thread: thread::spawn(move || process.run()), killed }
    }

    /// Its process is gone: before a step it drops everything, and its stream breaks.
    pub(crate) fn kill(self) {
        self.killed.store(true, Ordering::SeqCst);
        assert_eq!(self.join(), Outcome::Killed);
    }

    pub(crate) fn join(self) -> Outcome {
        self.thread.join().unwrap()
    }
}

struct Process {
    client: MemberClient,
    commands: Commands,
    fabric: Arc<Fabric>,
    run: u64,
    /// Completed steps, and a number that depends on every one of them.
    state: Option<(u64, u64)>,
    plan: Option<Plan>,
    killed: Arc<AtomicBool>,
}

impl Process {
    fn run(mut self) -> Outcome {
        loop {
            let command = self.commands.next(PATIENCE).expect("the machine always says what comes next");
            if let Some(outcome) = self.obey(command) {
                return outcome;
            }
        }
    }

    fn tell(&self, event: MemberEvent) {
        self.client.report(event).unwrap();
    }

    fn close(&mut self, failure: Option<String>) {
        if let Some(plan) = self.plan.take() {
            self.tell(MemberEvent::GroupClosed { generation: plan.generation, failure });
        }
    }

    fn obey(&mut self, command: MemberCommand) -> Option<Outcome> {
        match command {
            MemberCommand::FormGroup(plan) => {
                let generation = plan.generation;
                let formed = self.rendezvous(&plan);
                self.plan = Some(plan);
                match formed {
                    Ok(()) => self.tell(MemberEvent::GroupFormed { generation }),
                    Err(error) => self.close(Some(error.to_string())),
                }
            }
            MemberCommand::Recover { generation, role, .. } => match self.recover(generation, role) {
                Ok(step) => self.tell(MemberEvent::Recovered { generation, step }),
                Err(error) => self.close(Some(error.to_string())),
            },
            MemberCommand::Train { .. } => return self.train(),
            MemberCommand::WriteCheckpoint { generation, step } => {
                if self.plan.as_ref().is_some_and(|plan| plan.rank == 0) {
                    self.fabric.shared.lock().unwrap().last_checkpoint = Some(step);
                    self.tell(MemberEvent::CheckpointCommitted { generation, saved: step.into() });
                }
            }
            MemberCommand::LeaveGroup { .. } | MemberCommand::AbortGroup { .. } => self.close(None),
            MemberCommand::Exit { reason, .. } => return Some(Outcome::Ended(reason)),
            MemberCommand::GiveUp(Refusal::Superseded { .. }) => return Some(Outcome::Superseded),
            other => panic!("not for the training thread: {other:?}"),
        }
        None
    }

    /// All add one; who makes it the world's size lets all go.
    fn rendezvous(&self, plan: &Plan) -> Result<(), StoreError> {
        let store = self.client.store(plan.generation);
        if store.add("arrived", 1, PATIENCE)? == i64::from(plan.world) {
            store.set("go", b"", PATIENCE)?;
        }
        store.wait(&["go".to_owned()], PATIENCE)
    }

    /// States travel through the store: it blocks, and is cancelled, as a real transfer is.
    fn recover(&mut self, generation: Generation, role: Role) -> Result<u64, StoreError> {
        let store = self.client.store(generation);
        let plan = self.plan.as_ref().unwrap();
        let moves = match role {
            Role::Level => Moves::default(),
            Role::Send(moves) | Role::Receive(moves) => moves,
            Role::Restore | Role::Follow => {
                let has: Vec<bool> = (0..plan.world).map(|rank| rank == 0).collect();
                spread(&has).swap_remove(plan.rank as usize)
            }
        };
        // One half after the other; each is the whole of this small state.
        for (half, Hop { from, to, .. }) in moves.halves.into_iter().enumerate() {
            if from.is_some() {
                let bytes = store.get(&format!("state-{}-{half}", plan.rank), PATIENCE)?;
                let (step, number) = bytes.split_at(8);
                self.state = Some((u64::from_le_bytes(step.try_into().unwrap()), u64::from_le_bytes(number.try_into().unwrap())));
            } else if self.state.is_none() {
                self.fabric.shared.lock().unwrap().restores += 1;
            }
            let (step, number) = *self.state.get_or_insert((0, 1));
            for rank in to {
                store.set(&format!("state-{rank}-{half}"), &[step.to_le_bytes(), number.to_le_bytes()].concat(), PATIENCE)?;
            }
        }
        let step = self.state.map_or(0, |(step, _)| step);
        Ok(step)
    }

    /// Steps until something else is to be done.
    fn train(&mut self) -> Option<Outcome> {
        let plan = self.plan.clone().unwrap();
        let generation = plan.generation;
        loop {
            if self.killed.load(Ordering::SeqCst) {
                return Some(Outcome::Killed);
            }
            if let Some(command) = self.commands.try_next() {
                // A checkpoint alone does not end training.
                let goes_on = matches!(command, MemberCommand::WriteCheckpoint { .. });
                let outcome = self.obey(command);
                if goes_on {
                    continue;
                }
                return outcome;
            }
            let (step, number) = self.state.unwrap();
            let step = step + 1;
            let agreed = self.fabric.all_reduce(&plan, self.run, step, number, self.client.flags());
            let Some((agreed, last)) = agreed else {
                self.close(Some("aborted".to_owned()));
                return None;
            };
            self.state = Some((step, (number ^ step).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ generation.n));
            self.fabric.commit(step, generation, self.run);
            self.tell(MemberEvent::Committed { generation, step, agreed });
            if last {
                self.tell(MemberEvent::Finished { generation });
                return None;
            }
        }
    }
}
