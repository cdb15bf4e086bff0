//! A run under way: does to it what is planned, when and where it is planned.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use lcl_tests::{
    process::{self, Running, await_condition, descendants},
    run::Run,
};
use lcl_trainer::processes::fail_point::Hit;
use lcl_trainer_config::ExitCode;
use rustix::process::Signal;

use crate::{
    deeds,
    plan::{End, Fault, Plan, SURE, What, When},
    watch::Watch,
};

/// Longest run on a busy machine.
const PATIENCE: Duration = Duration::from_mins(20);
/// Between two looks at the run.
const POLL: Duration = Duration::from_millis(3);
/// How long a member is stopped for a moment.
const PAUSE: Duration = Duration::from_millis(150);
/// The longest that one stopped for long waits on a busy machine for the others to go on without it: they do after the heartbeat's time-out
/// of 10 s.
const FREEZE: Duration = Duration::from_mins(3);
/// Steps after the last fault that has to be hit.
const AFTERMATH: usize = 6;
/// Steps in which a replacement or a joiner comes in on a busy machine. After so many without a change of the group, the one that the next
/// fault waits for has already been: a joiner may come in with a generation that is formed for another reason.
const QUIET: usize = 150;
/// Where a deed was done that no member waited for.
const ANY_MOMENT: &str = "any moment";

/// A run under way, and what is still to be done to it.
pub(crate) struct Show {
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
    /// Processes that were asked to leave: a second signal would end them at once.
    leaving: Vec<u32>,
    /// Faults that were hit, and steps that there were, when something was last done.
    last_deed: (usize, usize),
}

struct Stopped {
    what: What,
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
    /// Starts a run.
    pub(crate) fn begin(plan: &Plan, run: &Run, folder: PathBuf, environment: Vec<(&'static str, String)>) -> Result<Self> {
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
            leaving: Vec::new(),
            last_deed: (0, 0),
        })
    }

    /// What was done, and where.
    pub(crate) fn hits(&self) -> Vec<(What, String)> {
        self.hit.values().cloned().collect()
    }

    /// Processes that were stopped, from when to when, as Unix times.
    pub(crate) fn absent(&self) -> Vec<(u32, f64, f64)> {
        self.absent.clone()
    }

    /// What there is to read about the processes.
    pub(crate) fn keep_logs(&self, folder: &Path) -> Result<()> {
        fs::write(folder.join("local.log"), self.local.stderr()?)?;
        fs::write(folder.join("local.out"), self.local.stdout()?)?;
        fs::write(folder.join("processes.txt"), format!("{:#?}", descendants(self.local.id())?))?;
        for (index, worker) in self.joined.iter().enumerate() {
            fs::write(folder.join(format!("joined-{index}.log")), worker.stderr()?)?;
        }
        Ok(())
    }

    /// Does what is planned until the run has ended.
    pub(crate) fn play(&mut self, run: &Run, watch: &Watch) -> Result<()> {
        watch.follow(self.local.id());
        let begun = Instant::now();
        let mut last = None;
        while !self.local.has_ended()? {
            ensure!(begun.elapsed() < PATIENCE, "the run has not ended after {PATIENCE:?}; hit so far: {:?}", self.hit);
            let steps = count_steps(run)?;
            self.look_at_members(steps, run)?;
            self.look_at_the_clock(steps, run)?;
            self.joined.iter().for_each(|worker| watch.follow(worker.id()));
            self.let_go_on(steps, run)?;
            self.provoke(steps)?;
            self.leaving.retain(|process| deeds::is_alive(*process));
            if self.plan.end == End::WhenAllWereHit && self.hit.len() == self.plan.faults.len() && self.is_at_rest() {
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
        self.await_joined()?;
        self.expect_hits()
    }

    fn await_joined(&mut self) -> Result<()> {
        for worker in self.joined.drain(..) {
            let finished = worker.wait()?;
            let fine = [ExitCode::Success.code(), ExitCode::Preempted.code()].map(i32::from);
            // Asked to leave before it had taken signals over.
            if finished.status.signal() == Some(Signal::TERM.as_raw()) {
                continue;
            }
            ensure!(fine.contains(&finished.code()?), "a further worker: {:?}: {}", finished.status, last_lines(&finished.stderr));
        }
        Ok(())
    }

    /// A directed run is nothing without each of its faults, a drawn one without so many that it is a test of anything.
    fn expect_hits(&self) -> Result<()> {
        let all = self.plan.faults.len();
        let fewest = if self.plan.end == End::WhenAllWereHit { all } else { SURE };
        let missed = self.plan.faults.iter().enumerate().filter(|(index, _)| !self.hit.contains_key(index));
        let missed = missed.fold(String::new(), |text, (index, fault)| format!("{text}\n  {index}: {fault}"));
        ensure!(
            self.hit.len() >= fewest,
            "only {} of {all} faults were hit, which is less than {fewest}; never hit:{missed}",
            self.hit.len()
        );
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
        if self.have_one_leave("member")? {
            self.last_deed.1 = steps;
        }
        Ok(())
    }

    /// Nobody is stopped or leaving.
    fn is_at_rest(&self) -> bool {
        self.stopped.is_empty() && self.leaving.is_empty()
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
            let mut place = hit.place.name();
            match what {
                What::Kill => {}
                What::Pause | What::Freeze => self.note_stopped(what, hit.process, steps),
                _ => {
                    // Another fault may have ended the one that waits.
                    let waits = deeds::is_alive(hit.process);
                    ensure!(waits || self.plan.end != End::WhenAllWereHit, "the member that waited is gone: {hit:?}");
                    if !self.act(what, waits.then_some(&hit), steps, run)? {
                        continue;
                    }
                    fs::write(self.folder.join(format!("{index}.go")), "")?;
                    place = if waits { place } else { ANY_MOMENT };
                }
            }
            self.hit.insert(index, (what, place.to_owned()));
        }
        Ok(())
    }

    /// Deeds whose time has come. One that finds nobody to whom it could be done is still due.
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
                    if self.act(what, None, steps, run)? {
                        self.hit.insert(index, (what, ANY_MOMENT.to_owned()));
                    }
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn note_stopped(&mut self, what: What, process: u32, steps: usize) {
        let (patience, steps) = if what == What::Freeze { (FREEZE, steps + 3) } else { (PAUSE, usize::MAX) };
        self.stopped.push(Stopped { what, process, since: unix_time(), until: Instant::now() + patience, steps });
    }

    fn let_go_on(&mut self, steps: usize, run: &Run) -> Result<()> {
        let complete = steps as u64 >= run.config.optimization.steps;
        for stopped in std::mem::take(&mut self.stopped) {
            let is_over = Instant::now() >= stopped.until;
            if !is_over && steps < stopped.steps && !complete {
                self.stopped.push(stopped);
                continue;
            }
            self.go_on(&stopped);
            let was_evicted = stopped.what != What::Freeze || steps >= stopped.steps || complete;
            ensure!(was_evicted, "the others did not go on without process {}, which was stopped for {FREEZE:?}", stopped.process);
        }
        Ok(())
    }

    fn go_on(&mut self, stopped: &Stopped) {
        deeds::signal(stopped.process, Signal::CONT);
        // Until it has been heard of again.
        self.absent.push((stopped.process, stopped.since - 1.0, unix_time() + 5.0));
    }

    /// Does something from outside, and says whether it was done: whoever is meant may not be there just now. `hit`: the member that waits
    /// meanwhile.
    fn act(&mut self, what: What, hit: Option<&Hit>, steps: usize, run: &Run) -> Result<bool> {
        match what {
            What::Kill => self.signal_one("member", Signal::KILL),
            What::Pause | What::Freeze => {
                let Some(process) = self.one("member")? else { return Ok(false) };
                let is_stopped = deeds::signal(process.id, Signal::STOP);
                if is_stopped {
                    self.note_stopped(what, process.id, steps);
                }
                Ok(is_stopped)
            }
            What::Terminate => match hit {
                Some(hit) => Ok(self.have_leave(hit.process)),
                None => self.have_one_leave("member"),
            },
            What::TerminateWorker => self.have_one_leave("worker"),
            What::KillWorker => self.signal_one("worker", Signal::KILL),
            What::KillCoordinator => self.signal_one("lcl-coordinator", Signal::KILL),
            What::KillCoordinatorAndMember => {
                let member = match hit {
                    Some(hit) => Some(hit.process),
                    None => self.one("member")?.map(|process| process.id),
                };
                let (Some(coordinator), Some(member)) = (self.one("lcl-coordinator")?, member) else { return Ok(false) };
                Ok(deeds::signal(coordinator.id, Signal::KILL) && deeds::signal(member, Signal::KILL))
            }
            What::Drain => {
                let (Some(worker), Some(address)) = (self.one("worker")?, deeds::coordinator_address(self.local.id())?) else {
                    return Ok(false);
                };
                deeds::drain(address, &worker.worker)
            }
            What::Join => self.join(run),
        }
    }

    fn join(&mut self, run: &Run) -> Result<bool> {
        let Some(address) = deeds::coordinator_address(self.local.id())? else { return Ok(false) };
        if !deeds::set_world(address, 1, self.plan.workers + 1)? {
            return Ok(false);
        }
        // The one that joined before leaves: no more members than the machine can bear.
        if let Some(before) = self.joined.last_mut()
            && !before.has_ended()?
        {
            let before = before.id();
            self.have_leave(before);
        }
        self.names += 1;
        let name = format!("{}-x-{}", run.config.job, self.names);
        self.joined.push(deeds::join(run.arguments_of("worker", &[])?, address, &name, &self.environment)?);
        Ok(true)
    }

    /// One of the launcher's processes of a kind, if there is any just now.
    fn one(&mut self, kind: &str) -> Result<Option<deeds::Process>> {
        let all = deeds::processes(self.local.id(), kind)?;
        Ok((!all.is_empty()).then(|| all[self.rng.usize(0..all.len())].clone()))
    }

    fn have_one_leave(&mut self, kind: &str) -> Result<bool> {
        Ok(self.one(kind)?.is_some_and(|process| self.have_leave(process.id)))
    }

    fn have_leave(&mut self, process: u32) -> bool {
        let is_asked = deeds::signal(process, Signal::TERM);
        if is_asked {
            self.leaving.push(process);
        }
        is_asked
    }

    fn signal_one(&mut self, kind: &str, signal: Signal) -> Result<bool> {
        Ok(self.one(kind)?.is_some_and(|process| deeds::signal(process.id, signal)))
    }
}

impl Drop for Show {
    /// After an error somebody may still be stopped, who could not end with the launcher.
    fn drop(&mut self) {
        for stopped in &self.stopped {
            deeds::signal(stopped.process, Signal::CONT);
        }
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
