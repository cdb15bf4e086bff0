//! One run: hosts over turmoil's network, faults at their times, the judge after every step, and the end that has to come once the faults
//! have stopped.

use std::{fmt, sync::Arc, time::Duration};

use lcl_protocol::EndReason;
use turmoil::{Builder, Sim};

use crate::{
    fault::{End, Fault, Host, Scenario},
    member,
    scene::{Bug, Scene, TICK, WORKERS, coordinator_name, worker_name},
    service,
};

/// Training has to have advanced this long after the faults have stopped, and all have left who were asked to: every time-out of the
/// protocol, and a group that is formed in vain, fit into it several times.
const ADVANCE_BOUND: Duration = Duration::from_secs(20);
/// The job has to have ended, with nothing left running.
const END_BOUND: Duration = Duration::from_secs(40);
/// Steps to the last one, counted from the most that any process held when the faults stopped.
const STEPS_TO_COME: u64 = 30;

const OPERATOR: &str = "operator";

/// What a run showed.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) violations: Vec<String>,
    pub(crate) generations: usize,
    pub(crate) steps: u64,
    /// Of simulated time.
    pub(crate) took: Duration,
    /// The same for the same run.
    pub(crate) digest: u64,
    pub(crate) story: String,
}

struct Run<'a> {
    scene: Arc<Scene>,
    scenario: &'a Scenario,
    sim: Sim<'static>,
    coordinators: usize,
    is_up: bool,
}

impl fmt::Debug for Run<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run").field("scenario", &self.scenario).finish_non_exhaustive()
    }
}

/// Runs a scenario to its end or to the first violation.
pub(crate) fn run(scenario: &Scenario, bug: Option<Bug>, is_verbose: bool) -> Outcome {
    let scene = Scene::new(scenario.seed, bug, scenario.world);
    if is_verbose {
        scene.judge().be_verbose();
    }
    let sim = Builder::new()
        .rng_seed(scenario.seed)
        .tick_duration(TICK)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(10))
        .simulation_duration(Duration::from_hours(1))
        .tcp_capacity(1024)
        .enable_random_order()
        .build();
    let mut run = Run { scene: Arc::clone(&scene), scenario, sim, coordinators: 0, is_up: false };
    let went = run.play().and_then(|()| run.end());
    if let Err(Ended::Broken(reason)) = went {
        scene.expect(false, || format!("a host ended by an error: {reason}"));
    }
    let judge = scene.judge();
    Outcome {
        violations: judge.violations().to_vec(),
        generations: judge.generations(),
        steps: judge.highest(),
        took: run.sim.elapsed(),
        digest: judge.digest(),
        story: judge.story(),
    }
}

/// Why a run does not go on.
enum Ended {
    Violated,
    Broken(String),
}

impl Run<'_> {
    /// Starts the hosts and plays all faults.
    fn play(&mut self) -> Result<(), Ended> {
        self.add_coordinator();
        for worker in 0..WORKERS {
            let scene = Arc::clone(&self.scene);
            self.sim.host(worker_name(worker), move || {
                let scene = Arc::clone(&scene);
                async move { if scene.worker(worker).is_up { Box::pin(member::run(scene, worker)).await } else { Ok(()) } }
            });
        }
        let scene = Arc::clone(&self.scene);
        self.sim.host(OPERATOR, move || service::operator(Arc::clone(&scene)));
        for (at, fault) in self.scenario.faults.clone() {
            while self.sim.elapsed() < at {
                self.step()?;
            }
            self.apply(fault);
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), Ended> {
        let now = self.sim.elapsed();
        self.scene.control().now = now;
        self.scene.judge().now = now;
        self.sim.step().map_err(|error| Ended::Broken(error.to_string()))?;
        if self.scene.judge().violations().is_empty() { Ok(()) } else { Err(Ended::Violated) }
    }

    fn steps_until(&mut self, bound: Duration, holds: impl Fn(&mut Self) -> bool) -> Result<bool, Ended> {
        let until = self.sim.elapsed() + bound;
        while self.sim.elapsed() < until {
            if holds(self) {
                return Ok(true);
            }
            self.step()?;
        }
        Ok(false)
    }

    fn add_coordinator(&mut self) {
        let (scene, index) = (Arc::clone(&self.scene), self.coordinators);
        self.coordinators += 1;
        self.is_up = true;
        self.scene.control().coordinator = index;
        self.sim.host(coordinator_name(index), move || {
            // Before it runs: of two that start at once the later one has the higher epoch.
            let reign = scene.coordinator_starts(index);
            service::coordinator(Arc::clone(&scene), reign)
        });
    }

    fn name(&self, host: Host) -> String {
        match host {
            Host::Worker(worker) => worker_name(worker),
            Host::Coordinator => coordinator_name(self.coordinators - 1),
            Host::FormerCoordinator => coordinator_name(self.coordinators.saturating_sub(2)),
        }
    }

    fn apply(&mut self, fault: Fault) {
        self.scene.judge().note(&format!("=== {fault:?}"));
        match fault {
            Fault::Start(worker) => self.start(worker),
            Fault::Crash(worker) => {
                self.sim.crash(worker_name(worker));
                self.scene.control().workers[worker].is_up = false;
            }
            Fault::Hang(worker) => self.scene.control().workers[worker].is_hung = true,
            Fault::Resume(worker) => self.scene.control().workers[worker].is_hung = false,
            Fault::Stall(worker) => self.scene.control().workers[worker].is_stalled = true,
            Fault::GoOn(worker) => self.scene.control().workers[worker].is_stalled = false,
            Fault::Terminate(worker) => self.scene.control().workers[worker].is_asked_to_end = true,
            Fault::Drain(worker) => self.scene.control().drains[worker] = true,
            Fault::Cut(a, b) => self.sim.partition(self.name(a), self.name(b)),
            Fault::CutOneWay(from, to) => self.sim.partition_oneway(self.name(from), self.name(to)),
            Fault::Hold(a, b) => self.sim.hold(self.name(a), self.name(b)),
            Fault::Free(a, b) => self.sim.release(self.name(a), self.name(b)),
            Fault::Slow(a, b, most) => self.sim.set_link_max_message_latency(self.name(a), self.name(b), Duration::from_millis(most)),
            Fault::SlowStorage => self.scene.control().is_storage_slow = true,
            Fault::FastStorage => self.scene.control().is_storage_slow = false,
            Fault::Resize(world) => self.scene.control().world = world,
            Fault::Checkpoint => self.scene.control().checkpoints += 1,
            Fault::CrashCoordinator => {
                self.sim.crash(coordinator_name(self.coordinators - 1));
                self.is_up = false;
            }
            Fault::StartCoordinator => self.start_coordinator(),
            Fault::ReplaceCoordinator => self.add_coordinator(),
            Fault::Reroute(worker) => self.scene.control().workers[worker].coordinator = self.coordinators - 1,
            Fault::Misroute(worker) => self.scene.control().workers[worker].coordinator = self.coordinators.saturating_sub(2),
            Fault::RetireCoordinators => {
                for index in 0..self.coordinators - 1 {
                    self.sim.crash(coordinator_name(index));
                }
            }
            Fault::Quiet => self.calm(),
            Fault::Stop => self.scene.control().is_stopping = true,
        }
    }

    /// A worker's process starts again: another pod, which nobody has asked for anything yet.
    fn start(&mut self, worker: usize) {
        let name = worker_name(worker);
        let mut control = self.scene.control();
        // Somebody who is to leave has to have gone before he is replaced.
        if self.sim.is_host_running(name.as_str()) && control.workers[worker].is_up {
            return;
        }
        control.drains[worker] = false;
        control.workers[worker].is_asked_to_end = false;
        control.workers[worker].is_up = true;
        drop(control);
        self.sim.bounce(name);
    }

    fn start_coordinator(&mut self) {
        if !self.is_up {
            self.sim.bounce(coordinator_name(self.coordinators - 1));
            self.is_up = true;
        }
    }

    /// The faults stop.
    fn calm(&mut self) {
        self.scene.judge().note("=== the faults stop");
        let hosts: Vec<String> = (0..WORKERS).map(worker_name).chain((0..self.coordinators).map(coordinator_name)).collect();
        for (place, a) in hosts.iter().enumerate() {
            for b in &hosts[place + 1..] {
                self.sim.release(a.as_str(), b.as_str());
                self.sim.set_link_max_message_latency(a.as_str(), b.as_str(), Duration::from_millis(10));
            }
        }
        for worker in 0..WORKERS {
            for fault in [Fault::Resume(worker), Fault::GoOn(worker), Fault::Reroute(worker)] {
                self.apply(fault);
            }
        }
        self.apply(Fault::FastStorage);
        self.apply(Fault::RetireCoordinators);
        self.start_coordinator();
    }

    /// Workers that run and were not asked to leave.
    fn staying(&self) -> usize {
        let control = self.scene.control();
        (0..WORKERS)
            .filter(|worker| control.workers[*worker].is_up && !control.workers[*worker].is_asked_to_end && !control.drains[*worker])
            .count()
    }

    /// Workers that run and were asked to leave.
    fn leaving(&self) -> usize {
        let up = self.scene.control().workers.iter().filter(|worker| worker.is_up).count();
        up - self.staying()
    }

    fn nobody_runs(&mut self) -> bool {
        self.scene.control().workers.iter().all(|worker| !worker.is_up)
    }

    /// With enough members, and nothing in the way, training advances and the job ends.
    fn end(&mut self) -> Result<(), Ended> {
        self.calm();
        let before = self.scene.judge().highest();
        if self.scenario.end == End::Complete {
            let advanced = self.steps_until(ADVANCE_BOUND, |run| {
                run.fill();
                run.scene.judge().highest() >= before + 5 && run.leaving() == 0
            })?;
            let (step, leaving) = (self.scene.judge().highest(), self.leaving());
            self.scene.expect(advanced, || {
                format!(
                    "{ADVANCE_BOUND:?} after the faults stopped at step {before}, step {step} was reached and {leaving} still have to leave"
                )
            });
            // From what anybody has by now: a last step that some have passed and others have not is none.
            let highest = self.scene.judge().highest();
            self.scene.control().last_step = highest + STEPS_TO_COME;
        }
        let ended = self.steps_until(END_BOUND, |run| {
            let is_over = run.scene.judge().exits().iter().any(|(_, reason, _)| *reason != EndReason::Drained);
            if !is_over && run.scenario.end == End::Complete {
                run.fill();
            }
            run.nobody_runs()
        })?;
        let control = format!("{:?}", self.scene.control());
        self.scene.expect(ended, || format!("something still runs {END_BOUND:?} after the faults have stopped: {control}"));
        let last_step = self.scene.control().last_step;
        let mut judge = self.scene.judge();
        match self.scenario.end {
            End::Complete => judge.complete(last_step),
            End::Stop => judge.stopped(),
            End::StopInUnrest => {}
        }
        Ok(())
    }

    /// Enough workers run.
    fn fill(&mut self) {
        let desired = self.scene.control().world.desired() as usize;
        for worker in 0..WORKERS {
            if self.staying() < desired && !self.scene.worker(worker).is_up {
                self.start(worker);
            }
        }
    }
}
