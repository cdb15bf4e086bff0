//! The processes of a job on this machine, as the supervisor needs them: how each is started, and what becomes of what it prints.

use std::{
    io::{self, Write},
    net::SocketAddr,
    num::NonZero,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use indicatif::MultiProgress;
use lcl_checkpoint::CheckpointStore;
use lcl_coordinator::{Overseer, Security, Sight};
use serde_json::Value;

use super::{CrewError, LocalOptions, board::Board, gpus::Gpus};
use crate::{
    chain,
    command_line::{
        cli::TimeoutArgs,
        display::{Display, LogWriter},
    },
    evaluation::forward::{LastWords, Readers},
    processes::{
        processors,
        supervisor::{Crew, Role},
    },
    run::records::Record,
};

/// The coordinator's program, beside this one.
pub(super) const COORDINATOR: &str = "lcl-coordinator";
/// Ten of these fit into either time-out, as they are by default; the environment's are for a cluster, whose coordinator may have another.
const HEARTBEAT_INTERVAL: &str = "1";
const COORDINATOR_TIMEOUT: &str = "10";
const REPORT_TIMEOUT: &str = "60";
/// For the coordinator's first word: it does nothing before but start.
const ANNOUNCEMENT: Duration = Duration::from_secs(30);

/// The crew of a job: process 0 is the coordinator, process n + 1 is worker n.
pub(super) struct Job<'a> {
    options: &'a LocalOptions,
    store: &'a CheckpointStore,
    own: PathBuf,
    coordinator: PathBuf,
    gpus: Gpus,
    board: Arc<Mutex<Board>>,
    display: Arc<Mutex<Display>>,
    /// Of every process's newest incarnation.
    output: Vec<(usize, LastWords, Readers)>,
}

/// The number of the worker that is process `index`; `None` for the coordinator.
fn worker_of(index: usize) -> Option<u32> {
    index.checked_sub(1).map(|worker| worker.try_into().unwrap_or(u32::MAX))
}

impl<'a> Job<'a> {
    /// `programs`: the trainer's and the coordinator's.
    pub(super) fn new(
        options: &'a LocalOptions,
        store: &'a CheckpointStore,
        programs: [PathBuf; 2],
        gpus: Gpus,
        board: Arc<Mutex<Board>>,
        display: Arc<Mutex<Display>>,
    ) -> Self {
        let [own, coordinator] = programs;
        Self { options, store, own, coordinator, gpus, board, display, output: Vec::new() }
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// With the bounds that are in force now, not those of the start.
    fn coordinator(&self) -> Result<Command, CrewError> {
        let mut command = Command::new(&self.coordinator);
        let (address, world) = {
            let board = self.board();
            (board.coordinator(), board.world())
        };
        let listen = address.map_or_else(|| "127.0.0.1:0".to_owned(), |address| address.to_string());
        let [min, desired, max] = [world.min(), world.desired(), world.max()].map(|members| members.to_string());
        without_certificates(&mut command);
        command
            .args(["--insecure", "--ends-with-stdin", "--listen", &listen, "--epoch", &self.store.claim_epoch()?.to_string()])
            .args(["--min-members", &min, "--desired-members", &desired, "--max-members", &max])
            .args(["--report-timeout", REPORT_TIMEOUT])
            .args(timeouts(self.options.timeouts))
            .args(["--log-format", self.options.log_format.name()]);
        Ok(command)
    }

    fn worker(&self, number: u32) -> Command {
        let options = self.options;
        let (name, coordinator, members_in_all) = {
            let board = self.board();
            (board.name(number), board.coordinator(), board.world().desired())
        };
        // As many as are wanted now: those that run keep the threads that they have.
        let share = || processors::share(thread::available_parallelism().map_or(1, NonZero::get), members_in_all);
        let threads = options.threads.or_else(share);
        let mut command = Command::new(&self.own);
        without_certificates(&mut command);
        let members = options.members_per_worker.get() as usize;
        let first = number as usize * members;
        command
            .envs(self.gpus.variable(first..first + members))
            .args(["--log-format", options.log_format.name(), "worker", "--insecure", "--ends-with-stdin", "--config"])
            .arg(&options.config_file)
            .args(["--worker", &name, "--members-per-worker", &options.members_per_worker.to_string()])
            // Not the ones of a pod that this may run in. Records come as JSON, and are shown here.
            .args(["--node", "localhost", "--host", "127.0.0.1", "--termination-log", "/dev/null", "--output", "json"])
            .args(["--heartbeat-interval", HEARTBEAT_INTERVAL, "--coordinator-timeout", COORDINATOR_TIMEOUT])
            .args(coordinator.iter().flat_map(|address| ["--coordinator".to_owned(), address.to_string()]))
            .args(threads.iter().flat_map(|threads| ["--threads".to_owned(), threads.to_string()]))
            .args(&options.passed_on);
        command
    }

    /// The coordinator listens: from now on it is followed. That it cannot be is no reason not to train.
    fn follow(&self, address: SocketAddr) {
        let (board, display) = (Arc::clone(&self.board), Arc::clone(&self.display));
        let tell = move |sight: Sight| {
            let shown = board.lock().unwrap_or_else(PoisonError::into_inner).see(sight);
            if let Some((group, news)) = shown {
                display.lock().unwrap_or_else(PoisonError::into_inner).show_members(&group, &news);
            }
        };
        let mut board = self.board();
        board.set_coordinator(address);
        match Overseer::start(&address.to_string(), &Security::Insecure, board.world(), tell) {
            Ok(overseer) => board.set_overseer(overseer),
            Err(error) => tracing::warn!(error = chain(&error), "what happens to the members cannot be shown"),
        }
    }
}

/// The coordinator's arguments for them.
fn timeouts(timeouts: TimeoutArgs) -> Vec<String> {
    let TimeoutArgs { heartbeat_timeout, stall_timeout, formation_wait, evict_slow_factor, evict_slow_after } = timeouts;
    let waits = [("--heartbeat-timeout", heartbeat_timeout), ("--stall-timeout", stall_timeout), ("--formation-wait", formation_wait)];
    let slow = evict_slow_factor.map(|factor| [("--evict-slow-factor", factor), ("--evict-slow-after", evict_slow_after.as_secs_f64())]);
    let arguments = waits.map(|(name, wait)| (name, wait.as_secs_f64())).into_iter().chain(slow.into_iter().flatten());
    arguments.flat_map(|(name, value)| [name.to_owned(), value.to_string()]).collect()
}

/// Everything talks on loopback. Certificates that the environment names are for a cluster.
fn without_certificates(command: &mut Command) {
    command.env_remove("LCL_TLS_CERTIFICATE").env_remove("LCL_TLS_KEY").env_remove("LCL_TLS_CA");
}

impl Crew for Job<'_> {
    type Error = CrewError;

    fn command(&mut self, index: usize) -> Result<Command, CrewError> {
        let mut command = match worker_of(index) {
            None => self.coordinator()?,
            Some(number) => self.worker(number),
        };
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command)
    }

    fn started(&mut self, index: usize, child: &mut Child) -> Result<(), CrewError> {
        let (words, mut readers) = (LastWords::default(), Readers::default());
        let failed = |source| CrewError::Output { name: format!("process {index}"), source };
        let (sender, announced) = sync_channel(1);
        if let Some(stdout) = child.stdout.take() {
            if index == 0 {
                readers.read(stdout, hear_announcement(sender)).map_err(failed)?;
            } else {
                readers.read(stdout, show_records(&self.display, &self.options.multi)).map_err(failed)?;
            }
        }
        if let Some(stderr) = child.stderr.take() {
            let (words, mut logs) = (words.clone(), LogWriter::new(self.options.multi.clone()));
            let say = move |line: &str| {
                words.hear(line);
                // A terminal that went away is no reason to stop.
                drop(logs.write_all(format!("{line}\n").as_bytes()));
            };
            readers.read(stderr, say).map_err(failed)?;
        }
        if index == 0 && self.board().coordinator().is_none() {
            let Ok(address) = announced.recv_timeout(ANNOUNCEMENT) else {
                drop(readers);
                return Err(CrewError::Silent { words: words.get() });
            };
            self.follow(address);
        }
        if let Some(number) = worker_of(index) {
            self.board().started(number, child.id());
        }
        self.output.push((index, words, readers));
        Ok(())
    }

    fn last_words(&mut self, index: usize) -> Option<String> {
        if let Some(number) = worker_of(index) {
            self.board().ended(number);
        }
        let place = self.output.iter().position(|(other, ..)| *other == index)?;
        let (_, words, readers) = self.output.swap_remove(place);
        // Its last lines may be on their way.
        drop(readers);
        words.get()
    }

    fn needs(&mut self, index: usize) -> bool {
        worker_of(index).is_none_or(|number| self.board().wants(number))
    }

    /// Numbers are given out without gaps, so the next one is the only one that can be missing.
    fn further(&mut self, count: usize) -> Option<Role> {
        let number = worker_of(count)?;
        let board = self.board();
        board.wants(number).then(|| Role { name: board.name(number), works: true, returns: true })
    }
}

/// The coordinator's line that says where it listens.
fn hear_announcement(sender: SyncSender<SocketAddr>) -> impl FnMut(&str) + Send + 'static {
    move |line| {
        let said = serde_json::from_str::<Value>(line).ok().filter(|said| said["event"] == "listening");
        if let Some(address) = said.and_then(|said| said["address"].as_str()?.parse().ok()) {
            // Only the first coordinator's is waited for.
            let _ = sender.try_send(address);
        }
    }
}

/// What the leading member records, wherever it runs; other lines as they are.
fn show_records(display: &Arc<Mutex<Display>>, multi: &MultiProgress) -> impl FnMut(&str) + Send + 'static {
    let (display, multi) = (Arc::clone(display), multi.clone());
    move |line| match serde_json::from_str::<Record>(line) {
        Ok(record) => display.lock().unwrap_or_else(PoisonError::into_inner).show(&record),
        Err(_) => multi.suspend(|| drop(writeln!(io::stdout(), "{line}"))),
    }
}
