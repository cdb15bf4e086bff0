//! Carries out a plan with real processes, and judges what came of it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    env,
    fmt::Write as _,
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use lcl_tests::{
    data::Fault as BadSample,
    process::{self, Running, await_condition, descendants, exists},
    run::{Run, Workbench},
};
use lcl_trainer::{
    fail_point::{self, Hit},
    state_log,
};
use lcl_trainer_config::{ExactConfig, ExitCode};
use rustix::process::Signal;

use crate::{
    checks, deeds,
    plan::{End, Fault, Plan, What, When},
};

/// Longest run on a busy machine.
const PATIENCE: Duration = Duration::from_mins(20);
/// Between two looks at the run.
const POLL: Duration = Duration::from_millis(3);
/// How long a member is stopped for a moment.
const PAUSE: Duration = Duration::from_millis(150);
/// The longest that one stopped for long waits for the others to go on without it: they do after the heartbeat's time-out of 10 s.
const FREEZE: Duration = Duration::from_secs(40);
/// Steps after the last fault that has to be hit.
const AFTERMATH: usize = 6;
/// Steps in which a replacement or a joiner comes in on a busy machine. After so many without a change of the group, the one that the next
/// fault waits for has already been: a joiner may come in with a generation that is formed for another reason.
const QUIET: usize = 150;
/// Steps of the second start of a run that was asked to stop.
const EPILOGUE: u64 = 6;

/// The undisturbed runs that others are compared with. They grow as far as they are needed.
#[derive(Debug)]
pub(crate) struct Arena {
    folder: PathBuf,
    workbench: Workbench,
    undisturbed: Mutex<HashMap<bool, Undisturbed>>,
}

#[derive(Clone, Debug)]
struct Undisturbed {
    run: Run,
    states: PathBuf,
    steps: u64,
}

/// What became of a plan.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// Completed steps.
    pub(crate) steps: usize,
    /// What was hit.
    pub(crate) hits: Vec<(What, String)>,
    /// Restores from storage, the first one included.
    pub(crate) restores: usize,
    /// Generations.
    pub(crate) generations: usize,
    /// The longest time between two steps.
    pub(crate) longest_gap: f64,
    /// From the start to the end.
    pub(crate) seconds: f64,
}

impl Arena {
    /// One with a data set, below the folder for tests' files.
    pub(crate) fn new() -> Result<Self> {
        // A slot without a sample, so that shards have different numbers of rows.
        let workbench = Workbench::new(&[(7, BadSample::NoCaption)])?;
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("chaos").join(std::process::id().to_string());
        fs::create_dir_all(&folder)?;
        Ok(Self { folder, workbench, undisturbed: Mutex::default() })
    }

    fn begin(&self, name: &str, exact: bool, steps: u64) -> Result<Run> {
        let mut run = self.workbench.begin(name)?;
        let optimization = &mut run.config.optimization;
        (optimization.steps, optimization.global_batch_size) = (steps, 16);
        optimization.exact = exact.then_some(ExactConfig { virtual_shards: 8, threads: 1 });
        run.config.checkpoint.every_steps = 10;
        Ok(run)
    }

    /// The undisturbed run of a mode, at least so long.
    fn undisturbed(&self, exact: bool, steps: u64) -> Result<Undisturbed> {
        let mut all = self.undisturbed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(&exact).filter(|known| known.steps >= steps) {
            return Ok(known.clone());
        }
        let name = if exact { "undisturbed-exact" } else { "undisturbed-fast" };
        let run = self.begin(name, exact, steps)?;
        let states = self.workbench.path(&format!("{name}-states"));
        fs::create_dir_all(&states)?;
        let mut command = std::process::Command::new(process::trainer()?);
        command.args(run.arguments(&["--output", "json"])?).env(state_log::FOLDER, &states);
        process::start_command(command)?.wait()?.expect_code(0)?;
        let grown = Undisturbed { run, states, steps };
        all.insert(exact, grown.clone());
        Ok(grown)
    }

    /// Carries out a plan. On a failure everything that it left is kept, and said where.
    pub(crate) fn carry_out(&self, plan: &Plan) -> Result<Outcome> {
        let folder = self.folder.join(&plan.name);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("plan.txt"), plan.to_string())?;
        let mut running = None;
        let result = self.attempt(plan, &folder, &mut running);
        match &result {
            Ok(_) => fs::remove_dir_all(&folder)?,
            Err(error) => {
                if let Some(Show { local, .. }) = &running {
                    fs::write(folder.join("local.log"), local.stderr()?)?;
                    fs::write(folder.join("local.out"), local.stdout()?)?;
                    fs::write(folder.join("processes.txt"), format!("{:#?}", descendants(local.id())?))?;
                }
                fs::write(folder.join("error.txt"), format!("{error:#}\n"))?;
                copy(&self.workbench.path(&plan.name), &folder.join("run"))?;
            }
        }
        drop(running);
        fs::remove_dir_all(self.workbench.path(&plan.name)).ok();
        result.with_context(|| {
            let repeat = match plan.end {
                End::Steps(_) => format!("make chaos RUNS=1 SEED={}", plan.seed),
                End::WhenAllWereHit => format!("PLAN={} cargo test -p lcl-trainer --test chaos everywhere", plan.name),
            };
            format!("{plan}everything it left lies in {}; again: {repeat}\n", folder.display())
        })
    }

    fn attempt(&self, plan: &Plan, folder: &Path, running: &mut Option<Show>) -> Result<Outcome> {
        let (hits, states) = (folder.join("hits"), folder.join("states"));
        fs::create_dir_all(&hits)?;
        fs::create_dir_all(&states)?;
        let steps = if let End::Steps(steps) = plan.end { steps } else { 1_000_000 };
        let mut run = self.begin(&plan.name, plan.exact, steps)?;
        let environment = vec![
            (fail_point::FAULTS, plan.environment()),
            (fail_point::FOLDER, hits.display().to_string()),
            (state_log::FOLDER, states.display().to_string()),
        ];
        let show = running.insert(Show::begin(plan, &run, hits, environment)?);
        let mut outcome = Outcome::default();
        let begun = Instant::now();
        let watching = Watch::default();
        thread::scope(|scope| -> Result<()> {
            let (id, run, watching) = (show.local.id(), &run, &watching);
            let watcher = scope.spawn(move || watching.look(id, run));
            let played = show.play(run);
            watching.is_over.store(true, Ordering::Relaxed);
            let seen = watcher.join().map_err(|_| anyhow::anyhow!("the watcher panicked"))?;
            played.and(seen)
        })?;
        outcome.seconds = begun.elapsed().as_secs_f64();
        outcome.hits = show.hit.values().cloned().collect();
        let absent = std::mem::take(&mut show.absent);
        for process in watching.seen.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            ensure!(!exists(*process), "process {process} is left behind");
        }
        if plan.end == End::WhenAllWereHit {
            let stopped = run.steps()?.len() as u64;
            ensure!(run.newest_checkpoint()?.step == stopped, "checkpoint {:?} of {stopped} steps", run.newest_checkpoint()?);
            run.config.optimization.steps = stopped + EPILOGUE;
            let mut command = std::process::Command::new(process::trainer()?);
            command.args(run.arguments_of("local", &["--workers", "2", "--resume", "--output", "json"])?);
            command.env(state_log::FOLDER, &states);
            process::start_command(command)?.wait()?.expect_code(0)?;
        }
        self.judge(plan, &run, &states, &absent, &mut outcome)?;
        Ok(outcome)
    }

    fn judge(&self, plan: &Plan, run: &Run, states: &Path, absent: &[(u32, f64, f64)], outcome: &mut Outcome) -> Result<()> {
        let steps = run.config.optimization.steps;
        let undisturbed = self.undisturbed(plan.exact, steps)?;
        let states = checks::states(states)?;
        checks::expect_agreement(&states)?;
        if plan.exact {
            checks::expect_same_bits(&states, &checks::hashes(&checks::states(&undisturbed.states)?))?;
        }
        outcome.steps = checks::expect_same_ledger(run, &undisturbed.run, plan.exact)?;
        ensure!(outcome.steps as u64 == steps, "{} of {steps} steps are in the ledger", outcome.steps);
        let last = states.iter().filter(|line| line.step == steps).map(|line| &line.parameter_hash).next_back();
        ensure!(last == Some(&run.hash()?), "the run says that it ended with {}, and its members held {last:?}", run.hash()?);
        outcome.restores = checks::expect_no_needless_restore(&states, absent)?;
        ensure!(checks::expect_whole_checkpoints(run, true)? > 0, "there is no checkpoint at the end");
        ensure!(run.newest_checkpoint()?.step == steps, "the newest checkpoint is {:?}", run.newest_checkpoint()?);
        outcome.longest_gap = checks::longest_gap(run)?;
        outcome.generations = states.iter().map(|line| line.generation).collect::<BTreeSet<_>>().len();
        Ok(())
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // Empty unless something failed.
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Looks at a run from aside, at moments of no meaning to it: its processes, and whether a checkpoint that is visible is whole.
#[derive(Default)]
struct Watch {
    is_over: AtomicBool,
    seen: Mutex<BTreeSet<u32>>,
}

impl Watch {
    fn look(&self, launcher: u32, run: &Run) -> Result<()> {
        let mut looks = 0_u32;
        while !self.is_over.load(Ordering::Relaxed) {
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).extend(descendants(launcher)?.into_iter().map(|(id, _)| id));
            checks::expect_whole_checkpoints(run, looks.is_multiple_of(16))?;
            looks += 1;
            thread::sleep(Duration::from_millis(40));
        }
        Ok(())
    }
}

/// A run under way, and what is still to be done to it.
struct Show {
    local: Running,
    plan: Plan,
    folder: PathBuf,
    environment: Vec<(&'static str, String)>,
    rng: Rng,
    /// Further workers, with how often one was started.
    joined: Vec<Running>,
    names: u32,
    /// What was done, where or when.
    hit: BTreeMap<usize, (What, String)>,
    /// Deeds that are due at a time.
    due: Vec<(Instant, usize)>,
    /// Processes that are stopped: since when, until when at the latest, and after which number of steps.
    stopped: Vec<Stopped>,
    /// Those that were, with Unix times.
    absent: Vec<(u32, f64, f64)>,
    /// Faults that were hit, and steps that there were, when something was last done.
    last_deed: (usize, usize),
}

struct Stopped {
    process: u32,
    since: f64,
    until: Instant,
    /// Going on earlier, once the ledger has so many steps.
    steps: usize,
}

fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

impl Show {
    fn begin(plan: &Plan, run: &Run, folder: PathBuf, environment: Vec<(&'static str, String)>) -> Result<Self> {
        process::coordinator()?;
        let mut command = std::process::Command::new(process::trainer()?);
        let workers = plan.workers.to_string();
        command.args(run.arguments_of("local", &["--workers", &workers, "--output", "json", "--log-format", "json"])?);
        command.envs(environment.iter().map(|(key, value)| (*key, value)));
        Ok(Self {
            local: process::start_command(command)?,
            plan: plan.clone(),
            folder,
            environment,
            rng: Rng::with_seed(plan.seed),
            joined: Vec::new(),
            names: 0,
            hit: BTreeMap::new(),
            due: Vec::new(),
            stopped: Vec::new(),
            absent: Vec::new(),
            last_deed: (0, 0),
        })
    }

    /// Does what is planned until the run has ended.
    fn play(&mut self, run: &Run) -> Result<()> {
        let begun = Instant::now();
        let mut last = None;
        while !self.local.has_ended()? {
            ensure!(begun.elapsed() < PATIENCE, "the run has not ended after {PATIENCE:?}; hit so far: {:?}", self.hit);
            let steps = count_steps(run)?;
            self.look_at_members(steps, run)?;
            self.look_at_the_clock(steps, run)?;
            self.let_go_on(steps, run);
            self.provoke(steps)?;
            if self.plan.end == End::WhenAllWereHit && self.hit.len() == self.plan.faults.len() && self.stopped.is_empty() {
                let last = *last.get_or_insert(steps);
                if steps >= last + AFTERMATH {
                    self.stop()?;
                    break;
                }
            }
            thread::sleep(POLL);
        }
        // The last start may have found the ledger complete while a process was stopped.
        for stopped in std::mem::take(&mut self.stopped) {
            self.go_on(&stopped);
        }
        let expected = if self.plan.end == End::WhenAllWereHit { ExitCode::Preempted.code() } else { 0 };
        let status = await_condition("the end of the run", || self.local.status())?;
        ensure!(status.code() == Some(expected.into()), "{status} instead of {expected}: {}", last_lines(&self.local.stderr()?));
        for worker in self.joined.drain(..) {
            let finished = worker.wait()?;
            let fine = [ExitCode::Success.code(), ExitCode::Preempted.code()].map(i32::from);
            // Asked to leave before it had taken signals over.
            if finished.status.signal() == Some(Signal::TERM.as_raw()) {
                continue;
            }
            ensure!(fine.contains(&finished.code()?), "a further worker: {:?}: {}", finished.status, last_lines(&finished.stderr));
        }
        if self.plan.end == End::WhenAllWereHit {
            let missed: Vec<_> = self.plan.faults.iter().enumerate().filter(|(index, _)| !self.hit.contains_key(index)).collect();
            ensure!(missed.is_empty(), "never hit: {missed:?}");
        }
        Ok(())
    }

    /// Has a member leave, and so the group change, when the next fault of a chain is for a change and none is under way.
    fn provoke(&mut self, steps: usize) -> Result<()> {
        let hit = self.hit.len();
        if hit != self.last_deed.0 {
            self.last_deed = (hit, steps);
        }
        let waits_for_change = self.plan.faults.get(hit).is_some_and(Fault::is_for_a_change);
        if self.plan.end != End::WhenAllWereHit || !waits_for_change || !self.stopped.is_empty() || steps < self.last_deed.1 + QUIET {
            return Ok(());
        }
        self.last_deed.1 = steps;
        self.with_one("member", |process| deeds::signal(process.id, Signal::TERM))
    }

    /// All workers leave, those that joined later too.
    fn stop(&mut self) -> Result<()> {
        for worker in &mut self.joined {
            if !worker.has_ended()? {
                worker.signal(Signal::TERM)?;
            }
        }
        self.local.signal(Signal::TERM)
    }

    /// What members have come to since the last look.
    fn look_at_members(&mut self, steps: usize, run: &Run) -> Result<()> {
        for index in 0..self.plan.faults.len() {
            if self.hit.contains_key(&index) {
                continue;
            }
            let Ok(text) = fs::read_to_string(self.folder.join(index.to_string())) else { continue };
            if !text.ends_with('\n') {
                // Being written.
                continue;
            }
            let hit: Hit = serde_json::from_str(&text).context(text)?;
            let what = self.plan.faults[index].what;
            self.hit.insert(index, (what, hit.place.name().to_owned()));
            match what {
                What::Kill => {}
                What::Pause | What::Freeze => self.note_stopped(what, hit.process, steps),
                _ => {
                    self.act(what, Some(&hit), steps, run)?;
                    fs::write(self.folder.join(format!("{index}.go")), "")?;
                }
            }
        }
        Ok(())
    }

    /// Deeds whose time has come.
    fn look_at_the_clock(&mut self, steps: usize, run: &Run) -> Result<()> {
        for (index, Fault { when, what }) in self.plan.faults.clone().into_iter().enumerate() {
            let When::Step { step, delay } = when else { continue };
            if steps < step || self.hit.contains_key(&index) {
                continue;
            }
            let now = Instant::now();
            match self.due.iter().find(|(_, other)| *other == index) {
                None => self.due.push((now + delay, index)),
                Some((due, _)) if now >= *due => {
                    self.hit.insert(index, (what, "any moment".to_owned()));
                    self.act(what, None, steps, run)?;
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn note_stopped(&mut self, what: What, process: u32, steps: usize) {
        let (patience, steps) = if what == What::Freeze { (FREEZE, steps + 3) } else { (PAUSE, usize::MAX) };
        self.stopped.push(Stopped { process, since: unix_time(), until: Instant::now() + patience, steps });
    }

    fn let_go_on(&mut self, steps: usize, run: &Run) {
        let complete = steps as u64 >= run.config.optimization.steps;
        let (over, stopped): (Vec<_>, Vec<_>) = std::mem::take(&mut self.stopped)
            .into_iter()
            .partition(|stopped| Instant::now() >= stopped.until || steps >= stopped.steps || complete);
        self.stopped = stopped;
        for stopped in &over {
            self.go_on(stopped);
        }
    }

    fn go_on(&mut self, stopped: &Stopped) {
        deeds::signal(stopped.process, Signal::CONT);
        // Until it has been heard of again.
        self.absent.push((stopped.process, stopped.since - 1.0, unix_time() + 5.0));
    }

    /// Does something from outside. `hit`: the member that waits meanwhile.
    fn act(&mut self, what: What, hit: Option<&Hit>, steps: usize, run: &Run) -> Result<()> {
        let launcher = self.local.id();
        match what {
            What::Kill => self.with_one("member", |process| deeds::signal(process.id, Signal::KILL))?,
            What::Pause | What::Freeze => {
                if let Some(process) = self.one("member")? {
                    deeds::signal(process.id, Signal::STOP);
                    self.note_stopped(what, process.id, steps);
                }
            }
            What::Terminate => match hit {
                Some(hit) => deeds::signal(hit.process, Signal::TERM),
                None => self.with_one("member", |process| deeds::signal(process.id, Signal::TERM))?,
            },
            What::TerminateWorker => self.with_one("worker", |process| deeds::signal(process.id, Signal::TERM))?,
            What::KillWorker => self.with_one("worker", |process| deeds::signal(process.id, Signal::KILL))?,
            What::KillCoordinator => self.with_one("lcl-coordinator", |process| deeds::signal(process.id, Signal::KILL))?,
            What::KillCoordinatorAndMember => {
                self.with_one("lcl-coordinator", |process| deeds::signal(process.id, Signal::KILL))?;
                match hit {
                    Some(hit) => deeds::signal(hit.process, Signal::KILL),
                    None => self.with_one("member", |process| deeds::signal(process.id, Signal::KILL))?,
                }
            }
            What::Drain => {
                let worker = self.one("worker")?.context("no worker")?.worker;
                deeds::drain(deeds::coordinator_address(launcher)?, &worker)?;
            }
            What::Join => {
                let address = deeds::coordinator_address(launcher)?;
                self.names += 1;
                // The one that joined before leaves: no more members than the machine can bear.
                if let Some(before) = self.joined.last_mut()
                    && !before.has_ended()?
                {
                    before.signal(Signal::TERM)?;
                }
                deeds::set_world(address, 1, self.plan.workers + 1)?;
                let name = format!("{}-x-{}", run.config.job, self.names);
                self.joined.push(deeds::join(run.arguments_of("worker", &[])?, address, &name, &self.environment)?);
            }
        }
        Ok(())
    }

    /// One of the launcher's processes of a kind, if there is any just now.
    fn one(&mut self, kind: &str) -> Result<Option<deeds::Process>> {
        let all = deeds::processes(self.local.id(), kind)?;
        Ok((!all.is_empty()).then(|| all[self.rng.usize(0..all.len())].clone()))
    }

    fn with_one(&mut self, kind: &str, deed: impl FnOnce(&deeds::Process)) -> Result<()> {
        let found = await_condition("a process to do something to", || {
            if self.local.has_ended()? {
                bail!("the run ended before anything could be done to a {kind}")
            }
            self.one(kind)
        })?;
        deed(&found);
        Ok(())
    }
}

/// Lines of the ledger so far, without reading what they say.
fn count_steps(run: &Run) -> Result<usize> {
    match fs::read(run.folder.join("metrics.jsonl")) {
        Ok(bytes) => Ok(bytes.split(|byte| *byte == b'\n').count() - 1),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error.into()),
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].iter().fold(String::new(), |mut text, line| {
        let _ = write!(text, "\n{line}");
        text
    })
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    fs::create_dir_all(to)?;
    for entry in entries {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
