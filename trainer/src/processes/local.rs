//! A job on this machine: the coordinator and every worker in a process of its own, as in a cluster, and what keeps them alive.
//!
//! Comes in: a configuration and how many workers, and while it runs, requests to have more or fewer. Goes out: the exit code of the whole,
//! and on the terminal what the leading member records, once, and what happens to the members. A process that dies is started again, and the
//! others go on meanwhile: a member by its worker, the rest by this one. All end with this process, however it ends: each watches the pipe
//! that the one above it holds open.
//!
//! What is wanted and what is known lies on a [`Board`]: the supervisor looks there which processes are to run, the overseer puts there
//! what the coordinator says, and the control socket answers from it.

mod board;
mod control;
mod gpus;
mod job;
mod workers;

use std::{
    env,
    ffi::OsString,
    io,
    num::NonZeroU32,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use indicatif::MultiProgress;
use lcl_data::{Dataset, may_pass, shard::ListError};
use lcl_protocol::InvalidWorld;
use lcl_trainer_config::{ExitCode, TrainerConfig};

pub(crate) use self::gpus::count as count_gpus;
use self::{
    board::Board,
    control::ControlSocket,
    gpus::{Gpus, TooFewGpus},
    job::{COORDINATOR, Job},
    workers::{Bounds, Workers},
};
use crate::{
    chain,
    command_line::{
        cli::{LogFormat, TimeoutArgs},
        display::{Display, Output},
    },
    processes::{
        stop::StopRequest,
        supervisor::{Role, Rules, SupervisorError, supervise},
    },
    run::run_folder::{RunFolder, RunFolderError},
    training::Begin,
};

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
    /// Most workers that a resize may ask for; `None`: as many as there is work for.
    pub max_workers: Option<NonZeroU32>,
    /// Where to begin.
    pub begin: Begin,
    /// How long the coordinator waits.
    pub timeouts: TimeoutArgs,
    /// Threads of each member; `None`: its share of the processors when its worker starts.
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
    /// A shard is not there.
    #[error("looking for the shards")]
    Shards(#[from] ListError),
    /// The numbers of members contradict each other.
    #[error("the numbers of members")]
    World(#[from] InvalidWorld),
    /// libtorch cannot say which GPUs there are.
    #[error("looking for GPUs")]
    Gpus(#[from] lcl_torch::shim::ShimError),
    /// Not every member would have one.
    #[error("--device cuda was asked for")]
    TooFewGpus(#[from] TooFewGpus),
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
            Self::Shards(error) if may_pass(error) => ExitCode::Retryable,
            Self::Shards(_) | Self::World(_) | Self::TooFewGpus(_) | Self::NoCoordinator { .. } => ExitCode::Permanent,
            Self::Folder(error) if error.is_permanent() => ExitCode::Permanent,
            Self::Folder(_) | Self::Gpus(_) | Self::Supervisor(_) => ExitCode::Retryable,
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
    let members = u64::from(options.workers.get()) * u64::from(options.members_per_worker.get());
    let gpus = Gpus::for_members(members, config.runtime.device, gpus::visible(config.runtime.device)?)?;
    let workers = Workers::new(Bounds::of(config, options, &gpus), options.workers)?;
    let own = env::current_exe().map_err(|source| SupervisorError::Crew(CrewError::Program { source }))?;
    let program = own.with_file_name(COORDINATOR);
    if !program.is_file() {
        return Err(LocalError::NoCoordinator { path: program });
    }
    // Every member would find this out; here nothing is started for it.
    Dataset::look_for_shards(&config.data)?;
    // Nothing is deleted for a run that cannot be.
    if let Begin::Fresh { delete_existing } = options.begin {
        folder.clear(delete_existing)?;
    }
    let mut processes = vec![Role { name: "the coordinator".to_owned(), works: false, returns: true }];
    processes.extend(workers.wanted().map(|number| Role { name: workers.name(number), works: true, returns: true }));
    let board = Arc::new(Mutex::new(Board::new(&config.job, config.optimization.steps, workers, options.stop.clone())));
    let _socket = listen(&folder, &board);
    let display = Arc::new(Mutex::new(Display::new(options.output, &options.multi)));
    let mut job = Job::new(options, folder.store(), [own, program], gpus, board, display);
    let outcome = supervise(&mut job, processes, Rules::new(options.stop.clone()))?;
    if !matches!(outcome.code, ExitCode::Success | ExitCode::Preempted) {
        tracing::error!(exit_code = outcome.code.code(), "{}", outcome.cause);
    }
    // Of use to a supervisor alone, and above this one is none.
    Ok(if outcome.code == ExitCode::Unsaved { ExitCode::Retryable } else { outcome.code })
}

/// Where the run can be asked. Without it the run goes on all the same: not every file system has sockets.
fn listen(folder: &RunFolder, board: &Arc<Mutex<Board>>) -> Option<ControlSocket> {
    let path = folder.path();
    match ControlSocket::open(path, Arc::clone(board)) {
        Ok(socket) => {
            tracing::info!("`lcl status {}` asks this run how it is", path.display());
            Some(socket)
        }
        Err(error) => {
            tracing::warn!(folder = %path.display(), error = chain(&error), "this run cannot be asked for its status, or to change");
            None
        }
    }
}
