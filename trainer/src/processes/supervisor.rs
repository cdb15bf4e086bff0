//! Keeps child processes alive: starts them, notices their ends, starts them again with a growing pause.
//!
//! Comes in: what to start, what of it is needed (which may change), and a request to stop. Goes out: how the whole ended, with its cause in
//! one line.
//! A worker supervises its members with it, the local launcher the coordinator and the workers. It knows nothing of either.
//!
//! Every child's standard input is a pipe that this process holds: it ends with this process, however that ends, and the child with it.
//! While a supervisor lives it waits for every child of the process, also for orphans that were handed to it (it is process 1 in a
//! container); so nothing else in the process may wait for children.

mod child;
mod deaths;

use std::{
    error::Error,
    io,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use lcl_trainer_config::ExitCode;
use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitOptions, set_child_subreaper, wait},
};

use self::{
    child::{describe, reap, send},
    deaths::Deaths,
};
use crate::processes::stop::StopRequest;

/// Between two looks at the processes.
const POLL: Duration = Duration::from_millis(20);
/// For the others to end once one has said that the job is complete. They were told at the same time; one that was just being started again
/// may have missed it.
const AFTER_COMPLETION: Duration = Duration::from_secs(30);
/// For helpers to end after SIGTERM, and for what was killed to be gone.
const AFTERMATH: Duration = Duration::from_secs(5);

/// Times that a process may end without its last checkpoint, however far apart: between two it may train for hours, and a volume that took no
/// checkpoint three times wants a person's eyes.
const MOST_UNSAVED: u32 = 3;

/// A process to be kept alive.
#[derive(Clone, Debug)]
pub struct Role {
    /// For messages.
    pub name: String,
    /// Whether the job is done by it. The others help: they are needed for as long as one that works runs, and are ended after them.
    pub works: bool,
    /// Whether it is started again after it has left in order without having been asked to by this process.
    pub returns: bool,
}

/// What a supervisor starts.
pub trait Crew {
    /// Why something cannot be started.
    type Error: Error + 'static;

    /// How to start process `index`. Streams that are to be read are piped; the standard input is the supervisor's.
    fn command(&mut self, index: usize) -> Result<Command, Self::Error>;

    /// Process `index` runs; its piped streams are in `child`.
    fn started(&mut self, index: usize, child: &mut Child) -> Result<(), Self::Error>;

    /// Process `index` has ended: what it said last, if that is of use to explain it.
    fn last_words(&mut self, index: usize) -> Option<String>;

    /// Whether process `index` is needed. One that is not any more is asked to leave as by a stop, and may take its time; it is started
    /// again when it is needed again. Asked at every look at the processes, so it has to be quick.
    fn needs(&mut self, _index: usize) -> bool {
        true
    }

    /// A process that is needed besides the `count` that are known: it becomes process `count`.
    fn further(&mut self, _count: usize) -> Option<Role> {
        None
    }
}

/// How the whole ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The code to return.
    pub code: ExitCode,
    /// Why, in one line.
    pub cause: String,
}

/// The processes cannot be kept alive.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError<E: Error + 'static> {
    /// The crew cannot say how to start a process, or cannot use what was started.
    #[error(transparent)]
    Crew(E),
    /// A process cannot be started.
    #[error("starting {name}")]
    Start {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The system does not tell how children end.
    #[error("waiting for child processes")]
    Wait {
        /// Why.
        source: io::Error,
    },
}

/// When processes are started again, and when not any more.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Asks for an orderly stop.
    pub stop: StopRequest,
    /// After this long those that work and have not left are killed.
    pub patience: Option<Duration>,
    /// Before a process is started again; doubled for each of its deaths within the window.
    pub first_pause: Duration,
    /// Deaths of one process within the window after which the whole fails.
    pub most_deaths: u32,
    /// See there.
    pub window: Duration,
}

impl Rules {
    /// Quick after a single death; with eight deaths in ten minutes the pauses add up to half a minute, and something is wrong.
    #[must_use]
    pub fn new(stop: StopRequest) -> Self {
        let (first_pause, window) = (Duration::from_millis(200), Duration::from_mins(10));
        Self { stop, patience: None, first_pause, most_deaths: 8, window }
    }
}

enum State {
    /// Started at this time.
    Due(Instant),
    /// The pipe is held open.
    Running(Pid, #[expect(dead_code, reason = "its end tells the child that this process is gone")] Option<ChildStdin>),
    Ended,
}

struct Process {
    role: Role,
    state: State,
    deaths: Deaths,
    /// Ends without the last checkpoint.
    unsaved: u32,
    /// It was not needed any more: it was asked to leave, or has left.
    released: bool,
}

impl Process {
    fn new(role: Role, now: Instant) -> Self {
        Self { role, state: State::Due(now), deaths: Deaths::default(), unsaved: 0, released: false }
    }
}

struct Supervisor<'a, C> {
    crew: &'a mut C,
    processes: Vec<Process>,
    rules: Rules,
    /// Since when those that work have been asked to leave.
    stopping: Option<Instant>,
    /// Since when one of them has said that the job is complete.
    complete: Option<Instant>,
    /// What is remembered for the end.
    outcome: Option<Outcome>,
}

/// Starts `processes`, in this order, and keeps them alive until the job is done, cannot be done, or is stopped. Nothing of it
/// runs any more when this returns.
pub fn supervise<C: Crew>(crew: &mut C, processes: Vec<Role>, rules: Rules) -> Result<Outcome, SupervisorError<C::Error>> {
    // Children of a child that died come here instead of to process 1, so that they are seen to end, too.
    set_child_subreaper(Some(rustix::process::getpid())).map_err(|errno| SupervisorError::Wait { source: errno.into() })?;
    let now = Instant::now();
    let processes = processes.into_iter().map(|role| Process::new(role, now)).collect();
    Supervisor { crew, processes, rules, stopping: None, complete: None, outcome: None }.run()
}

impl<C: Crew> Supervisor<'_, C> {
    fn run(mut self) -> Result<Outcome, SupervisorError<C::Error>> {
        loop {
            self.follow_needs();
            self.start_due()?;
            self.stop_when_asked();
            while let Some((pid, status)) = reap().map_err(|source| SupervisorError::Wait { source })? {
                if let Some(outcome) = self.note(pid, status) {
                    return Ok(outcome);
                }
            }
            if self.processes.iter().filter(|process| process.role.works).all(|process| matches!(process.state, State::Ended)) {
                return Ok(self.result());
            }
            self.kill_late();
            thread::sleep(POLL);
        }
    }

    fn start_due(&mut self) -> Result<(), SupervisorError<C::Error>> {
        for (index, process) in self.processes.iter_mut().enumerate() {
            if !matches!(process.state, State::Due(at) if Instant::now() >= at) {
                continue;
            }
            let name = &process.role.name;
            let mut command = self.crew.command(index).map_err(SupervisorError::Crew)?;
            // In a group of its own: a Ctrl-C of the terminal reaches this process alone, which passes it on once.
            let child = command.stdin(Stdio::piped()).process_group(0).spawn();
            let mut child = child.map_err(|source| SupervisorError::Start { name: name.clone(), source })?;
            tracing::debug!(process = name, id = child.id(), "started");
            process.state = State::Running(Pid::from_child(&child), child.stdin.take());
            self.crew.started(index, &mut child).map_err(SupervisorError::Crew)?;
        }
        Ok(())
    }

    /// Asks those to leave that are not needed any more, and has those started that are.
    fn follow_needs(&mut self) {
        if self.stopping.is_some() || self.complete.is_some() {
            return;
        }
        let now = Instant::now();
        while let Some(role) = self.crew.further(self.processes.len()) {
            self.processes.push(Process::new(role, now));
        }
        for (index, process) in self.processes.iter_mut().enumerate() {
            match (self.crew.needs(index), process.released, &process.state) {
                (false, false, state) => {
                    tracing::info!(process = process.role.name, "not needed any more: it is asked to leave");
                    process.released = true;
                    match state {
                        State::Running(pid, _) => send(*pid, Signal::TERM),
                        State::Due(_) | State::Ended => process.state = State::Ended,
                    }
                }
                // One that is still leaving comes back once it has left.
                (true, true, State::Ended) => *process = Process::new(process.role.clone(), now),
                _ => {}
            }
        }
    }

    fn stop_when_asked(&mut self) {
        if !self.rules.stop.is_asked() || self.stopping.is_some() {
            return;
        }
        self.stopping = Some(Instant::now());
        for process in self.processes.iter_mut().filter(|process| process.role.works) {
            match process.state {
                // A second signal would not let it leave in order.
                State::Running(..) if process.released => {}
                State::Running(pid, _) => send(pid, Signal::TERM),
                State::Due(_) => process.state = State::Ended,
                State::Ended => {}
            }
        }
    }

    /// A child has ended. The outcome of the whole, if that decides it.
    fn note(&mut self, pid: Pid, status: ExitStatus) -> Option<Outcome> {
        let now = Instant::now();
        let place = self.processes.iter().position(|process| matches!(process.state, State::Running(running, _) if running == pid));
        // An orphan: only waited for.
        let index = place?;
        let is_over = self.complete.is_some() || self.stopping.is_some();
        let words = self.crew.last_words(index);
        let process = self.processes.get_mut(index)?;
        process.state = State::Ended;
        let code = status.code().and_then(ExitCode::from_code);
        let cause = describe(&process.role.name, status, words);
        if matches!(code, Some(ExitCode::Permanent | ExitCode::Usage)) {
            return Some(Outcome { code: ExitCode::Permanent, cause });
        }
        if code == Some(ExitCode::Superseded) && !is_over {
            // Whatever this process starts is refused, too; what started this process may start another.
            return Some(Outcome { code: ExitCode::Retryable, cause });
        }
        if code == Some(ExitCode::Unfit) && !is_over && !process.released {
            // So is whatever is started here.
            return Some(Outcome { code: ExitCode::Unfit, cause });
        }
        if process.role.works {
            match code {
                Some(ExitCode::Success) => {
                    self.complete.get_or_insert(now);
                    return None;
                }
                // Whatever became of it: nobody waits for it.
                _ if process.released && !is_over => {
                    tracing::info!("{cause}; it is not needed any more");
                    return None;
                }
                Some(ExitCode::Preempted) if is_over || !process.role.returns => return None,
                // It had only just been started, and did not take signals over yet.
                None if self.stopping.is_some() && status.signal() == Some(Signal::TERM.as_raw()) => return None,
                _ if is_over => {
                    tracing::warn!("{cause}");
                    self.outcome.get_or_insert(Outcome { code: ExitCode::Retryable, cause });
                    return None;
                }
                _ => {}
            }
        }
        if code == Some(ExitCode::Unsaved) {
            process.unsaved += 1;
            if process.unsaved >= MOST_UNSAVED {
                let cause = format!("{cause}; so it ended {} times", process.unsaved);
                return Some(Outcome { code: ExitCode::Unsaved, cause });
            }
        }
        let Rules { first_pause, most_deaths, window, .. } = self.rules;
        let (deaths, pause) = process.deaths.note(now, window, first_pause);
        if deaths >= most_deaths {
            let cause = format!("{cause}; it died {deaths} times within {} minutes", window.as_secs() / 60);
            return Some(Outcome { code: ExitCode::Retryable, cause });
        }
        tracing::warn!(process = process.role.name, pid = pid.as_raw_nonzero().get(), ?pause, deaths, "{cause}; it is started again");
        process.state = State::Due(now + pause);
        None
    }

    /// All that work have ended.
    fn result(&mut self) -> Outcome {
        if self.complete.is_some() {
            return Outcome { code: ExitCode::Success, cause: "the job is complete".to_owned() };
        }
        let asked = self.stopping.is_some();
        self.outcome.take().unwrap_or_else(|| Outcome {
            code: ExitCode::Preempted,
            cause: if asked { "asked to end by a signal" } else { "asked to end by the coordinator" }.to_owned(),
        })
    }

    fn kill_late(&mut self) {
        let is_late = |since: Option<Instant>, patience: Option<Duration>| {
            since.zip(patience).filter(|(since, patience)| since.elapsed() >= *patience).map(|(_, patience)| patience)
        };
        let Some(patience) = is_late(self.complete, Some(AFTER_COMPLETION)).or_else(|| is_late(self.stopping, self.rules.patience)) else {
            return;
        };
        for process in self.processes.iter_mut().filter(|process| process.role.works) {
            match process.state {
                State::Running(pid, _) => {
                    tracing::warn!(process = process.role.name, "killed: it did not leave within {patience:?}");
                    send(pid, Signal::KILL);
                }
                State::Due(_) => process.state = State::Ended,
                State::Ended => {}
            }
        }
    }
}

impl<C> Drop for Supervisor<'_, C> {
    /// Helpers are asked to end; what works is killed, if it still runs. Then everything that is left is waited for: it ends with its
    /// standard input.
    fn drop(&mut self) {
        for process in &self.processes {
            if let State::Running(pid, _) = process.state {
                send(pid, if process.role.works { Signal::KILL } else { Signal::TERM });
            }
        }
        // The pipes go with it.
        let mut running: Vec<Pid> = self.processes.drain(..).filter_map(|process| process.state.running()).collect();
        let begun = Instant::now();
        loop {
            match wait(WaitOptions::NOHANG) {
                Err(Errno::INTR) => {}
                // Nobody is left.
                Err(_) => return,
                Ok(Some((pid, _))) => running.retain(|other| *other != pid),
                Ok(None) if begun.elapsed() < AFTERMATH => thread::sleep(POLL),
                Ok(None) => break,
            }
        }
        for pid in running {
            send(pid, Signal::KILL);
        }
    }
}

impl State {
    fn running(&self) -> Option<Pid> {
        if let Self::Running(pid, _) = self { Some(*pid) } else { None }
    }
}
