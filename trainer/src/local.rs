//! A job on this machine: the coordinator and every worker in a process of its own, as in a cluster, and what keeps them alive.
//!
//! Comes in: a configuration and how many workers. Goes out: the exit code of the whole, and on the terminal what the leading member
//! records, once. A process that dies is started again, and the others go on meanwhile: a member by its worker, the rest by this one.
//! All end with this process, however it ends: each watches the pipe that the one above it holds open.

use std::{
    env,
    ffi::OsString,
    io::{self, Write},
    net::SocketAddr,
    num::NonZeroU32,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{SyncSender, sync_channel},
    },
    time::Duration,
};

use indicatif::MultiProgress;
use lcl_checkpoint::CheckpointStore;
use lcl_protocol::{InvalidWorld, World};
use lcl_trainer_config::{ExitCode, TrainerConfig};
use serde_json::Value;

use crate::{
    cli::LogFormat,
    display::{Display, LogWriter, Output},
    forward::{LastWords, Readers},
    records::Record,
    run_folder::{RunFolder, RunFolderError},
    stop::StopRequest,
    supervisor::{Crew, Role, Rules, SupervisorError, supervise},
    training::Begin,
};

/// The coordinator's program, beside this one.
const COORDINATOR: &str = "lcl-coordinator";
/// Seconds to wait for all members at the start, and for a replacement before going on with fewer is none: survivors go on at once.
const FORMATION_WAIT: &str = "60";
const HEARTBEAT_TIMEOUT: &str = "10";
/// Ten of these fit into either time-out; the environment's are for a cluster, whose coordinator may have another.
const HEARTBEAT_INTERVAL: &str = "1";
const COORDINATOR_TIMEOUT: &str = "10";
const REPORT_TIMEOUT: &str = "60";
/// For the coordinator's first word: it does nothing before but start.
const ANNOUNCEMENT: Duration = Duration::from_secs(30);

/// What to start.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// The configuration's file, for the members.
    pub config_file: PathBuf,
    /// Workers wanted.
    pub workers: NonZeroU32,
    /// Members of each.
    pub members_per_worker: NonZeroU32,
    /// Fewest workers to train with.
    pub min_workers: NonZeroU32,
    /// Where to begin.
    pub begin: Begin,
    /// Threads of each member.
    pub threads: Option<usize>,
    /// Further arguments of every worker.
    pub passed_on: Vec<OsString>,
    /// What is shown.
    pub output: Output,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// What log lines are drawn around.
    pub multi: MultiProgress,
    /// Asks for an orderly stop.
    pub stop: StopRequest,
}

/// The job could not be run.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The run's folder cannot be used.
    #[error("opening the run's folder")]
    Folder(#[from] RunFolderError),
    /// The numbers of members contradict each other.
    #[error("the numbers of members")]
    World(#[from] InvalidWorld),
    /// A program that is needed is not there.
    #[error("there is no program {}: it belongs beside lcl-trainer (built by `cargo build --release -p {COORDINATOR}`)", path.display())]
    NoCoordinator {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The processes cannot be kept alive.
    #[error(transparent)]
    Supervisor(#[from] SupervisorError<CrewError>),
}

impl LocalError {
    /// What the process returns for it.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::World(_)
            | Self::NoCoordinator { .. }
            | Self::Folder(RunFolderError::NotLocal { .. } | RunFolderError::NotEmpty { .. }) => ExitCode::Permanent,
            Self::Folder(_) | Self::Supervisor(_) => ExitCode::Retryable,
        }
    }
}

/// A process cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum CrewError {
    /// No epoch can be claimed for a coordinator.
    #[error("using the checkpoint store")]
    Store(#[from] lcl_checkpoint::StoreError),
    /// This program's own path is not known.
    #[error("finding this program")]
    Program {
        /// Why.
        source: io::Error,
    },
    /// What a process prints cannot be read.
    #[error("reading what {name} prints")]
    Output {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The coordinator did not say where it listens.
    #[error("the coordinator did not start{}", words.as_ref().map(|words| format!(": {words}")).unwrap_or_default())]
    Silent {
        /// What it said instead.
        words: Option<String>,
    },
}

/// Runs the job to its end.
pub fn run(config: &TrainerConfig, options: &LocalOptions) -> Result<ExitCode, LocalError> {
    // Its lock keeps another run out for as long as this one lives.
    let folder = RunFolder::open(&config.checkpoint.uri)?;
    if let Begin::Fresh { delete_existing } = options.begin {
        folder.clear(delete_existing)?;
    }
    let [min, desired] = [options.min_workers, options.workers].map(|workers| workers.saturating_mul(options.members_per_worker).get());
    let world = World::new(min, desired, desired)?;
    let own = env::current_exe().map_err(|source| SupervisorError::Crew(CrewError::Program { source }))?;
    let program = own.with_file_name(COORDINATOR);
    if !program.is_file() {
        return Err(LocalError::NoCoordinator { path: program });
    }
    let mut processes = vec![Role { name: "the coordinator".to_owned(), works: false, returns: true }];
    processes.extend((0..options.workers.get()).map(|index| Role {
        name: worker_name(config, index as usize),
        works: true,
        returns: true,
    }));
    let display = Arc::new(Mutex::new(Display::new(options.output, &options.multi)));
    let mut job =
        Job { config, options, store: folder.store(), world, own, coordinator: program, address: None, display, output: Vec::new() };
    let outcome = supervise(&mut job, processes, Rules::new(options.stop.clone()))?;
    if !matches!(outcome.code, ExitCode::Success | ExitCode::Preempted) {
        tracing::error!(exit_code = outcome.code.code(), "{}", outcome.cause);
    }
    Ok(outcome.code)
}

/// As the operator names a worker's pod.
fn worker_name(config: &TrainerConfig, index: usize) -> String {
    format!("{}-w-{index}", config.job)
}

struct Job<'a> {
    config: &'a TrainerConfig,
    options: &'a LocalOptions,
    store: &'a CheckpointStore,
    world: World,
    own: PathBuf,
    coordinator: PathBuf,
    /// Where the first coordinator listens, and so all after it.
    address: Option<SocketAddr>,
    display: Arc<Mutex<Display>>,
    /// Of every process's newest incarnation.
    output: Vec<(usize, LastWords, Readers)>,
}

impl Job<'_> {
    fn coordinator(&self) -> Result<Command, CrewError> {
        let mut command = Command::new(&self.coordinator);
        let listen = self.address.map_or_else(|| "127.0.0.1:0".to_owned(), |address| address.to_string());
        let [min, desired, max] = [self.world.min(), self.world.desired(), self.world.max()].map(|members| members.to_string());
        without_certificates(&mut command);
        command
            .args(["--insecure", "--ends-with-stdin", "--listen", &listen, "--epoch", &self.store.claim_epoch()?.to_string()])
            .args(["--min-members", &min, "--desired-members", &desired, "--max-members", &max])
            .args(["--formation-wait", FORMATION_WAIT, "--heartbeat-timeout", HEARTBEAT_TIMEOUT, "--report-timeout", REPORT_TIMEOUT])
            .args(["--log-format", self.options.log_format.name()]);
        Ok(command)
    }

    fn worker(&self, index: usize) -> Command {
        let options = self.options;
        let mut command = Command::new(&self.own);
        without_certificates(&mut command);
        command
            .args(["--log-format", options.log_format.name(), "worker", "--insecure", "--ends-with-stdin", "--config"])
            .arg(&options.config_file)
            .args(["--worker", &worker_name(self.config, index), "--members-per-worker", &options.members_per_worker.to_string()])
            // Not the ones of a pod that this may run in. Records come as JSON, and are shown here.
            .args(["--node", "localhost", "--host", "127.0.0.1", "--termination-log", "/dev/null", "--output", "json"])
            .args(["--heartbeat-interval", HEARTBEAT_INTERVAL, "--coordinator-timeout", COORDINATOR_TIMEOUT])
            .args(self.address.iter().flat_map(|address| ["--coordinator".to_owned(), address.to_string()]))
            .args(options.threads.iter().flat_map(|threads| ["--threads".to_owned(), threads.to_string()]))
            .args(&options.passed_on);
        command
    }
}

/// Everything talks on loopback. Certificates that the environment names are for a cluster.
fn without_certificates(command: &mut Command) {
    command.env_remove("LCL_TLS_CERTIFICATE").env_remove("LCL_TLS_KEY").env_remove("LCL_TLS_CA");
}

impl Crew for Job<'_> {
    type Error = CrewError;

    fn command(&mut self, index: usize) -> Result<Command, CrewError> {
        let mut command = match index.checked_sub(1) {
            None => self.coordinator()?,
            Some(worker) => self.worker(worker),
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
        if index == 0 && self.address.is_none() {
            let address = announced.recv_timeout(ANNOUNCEMENT).ok();
            if address.is_none() {
                drop(readers);
                return Err(CrewError::Silent { words: words.get() });
            }
            self.address = address;
        }
        self.output.push((index, words, readers));
        Ok(())
    }

    fn last_words(&mut self, index: usize) -> Option<String> {
        let place = self.output.iter().position(|(other, ..)| *other == index)?;
        let (_, words, readers) = self.output.swap_remove(place);
        // Its last lines may be on their way.
        drop(readers);
        words.get()
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
