//! A group on one machine: the coordinator in this process, every member in one of its own, and what keeps them alive.
//!
//! Comes in: a configuration and how many members. Goes out: the exit code of the whole. A member that dies is started again, and the
//! others go on meanwhile. Members end with this process, however it ends: each watches the pipe that this process holds open.

use std::{
    env,
    ffi::OsString,
    io,
    net::SocketAddr,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use lcl_coordinator::{Security, ServeError, serve};
use lcl_protocol::{CoordinatorSettings, InvalidWorld, World};
use lcl_trainer_config::{ExitCode, TrainerConfig};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{net::TcpListener, runtime::Runtime};

use crate::{
    run_folder::{RunFolder, RunFolderError},
    stop::StopRequest,
    training::Begin,
};

/// Wait for all members at the start, and for a replacement before going on with fewer is none: survivors go on at once.
const FORMATION_WAIT: Duration = Duration::from_mins(1);
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(10);
const REPORT_TIMEOUT: Duration = Duration::from_mins(1);
/// Between two looks at the members.
const POLL: Duration = Duration::from_millis(20);
/// Before a member is started again; doubled for each of its deaths within [`WINDOW`].
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Deaths of one member within [`WINDOW`] after which the run fails.
const MOST_DEATHS: usize = 8;
const WINDOW: Duration = Duration::from_mins(10);

/// What to start.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// The configuration's file, for the members.
    pub config_file: PathBuf,
    /// Members wanted.
    pub members: u32,
    /// Fewest to train with.
    pub min_members: u32,
    /// Where to begin.
    pub begin: Begin,
    /// Further arguments of every member.
    pub passed_on: Vec<OsString>,
    /// Asks for an orderly stop.
    pub stop: StopRequest,
}

/// The group could not be run.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The run's folder cannot be used.
    #[error("opening the run's folder")]
    Folder(#[from] RunFolderError),
    /// No epoch can be claimed.
    #[error("using the checkpoint store")]
    Store(#[from] lcl_checkpoint::StoreError),
    /// The numbers of members contradict each other.
    #[error("the numbers of members")]
    World(#[from] InvalidWorld),
    /// The coordinator cannot be started.
    #[error("starting the coordinator")]
    Coordinator {
        /// Why.
        source: io::Error,
    },
    /// The coordinator ended.
    #[error("the coordinator ended")]
    Serve(#[from] ServeError),
    /// A member cannot be started or watched.
    #[error("starting or watching member {index}")]
    Member {
        /// Its number.
        index: u32,
        /// Why.
        source: io::Error,
    },
    /// A member dies again and again.
    #[error("member {index} died {deaths} times within {WINDOW:?}, the last time with {status}: its messages stand above")]
    KeepsDying {
        /// Its number.
        index: u32,
        /// How often.
        deaths: usize,
        /// The last time.
        status: ExitStatus,
    },
}

/// A member's process and its history.
struct Member {
    index: u32,
    state: State,
    deaths: Vec<Instant>,
}

enum State {
    Running(Child),
    /// Dead; started again at this time.
    Pausing(Instant),
    Ended(ExitStatus),
}

/// Runs the group to its end.
pub fn run(config: &TrainerConfig, options: &LocalOptions) -> Result<ExitCode, LocalError> {
    // Its lock keeps another run out for as long as this one lives.
    let folder = RunFolder::open(&config.checkpoint.uri)?;
    if let Begin::Fresh { delete_existing } = options.begin {
        folder.clear(delete_existing)?;
    }
    let settings = CoordinatorSettings {
        epoch: folder.store().claim_epoch()?,
        world: World::new(options.min_members, options.members, options.members)?,
        formation_wait: FORMATION_WAIT,
        heartbeat_timeout: HEARTBEAT_TIMEOUT,
        report_timeout: REPORT_TIMEOUT,
    };
    let failed = |source| LocalError::Coordinator { source };
    let runtime = Runtime::new().map_err(failed)?;
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    runtime.spawn(async move {
        if let Err(error) = serve(listener, settings, Security::Insecure, std::future::pending()).await {
            tracing::error!("the coordinator ended: {error}");
        }
    });
    let mut group = Group { job: &config.job, options, address, members: Vec::new(), is_stopping: false };
    for index in 0..options.members {
        let child = group.start(index)?;
        group.members.push(Member { index, state: State::Running(child), deaths: Vec::new() });
    }
    group.watch()
}

struct Group<'a> {
    job: &'a str,
    options: &'a LocalOptions,
    address: SocketAddr,
    members: Vec<Member>,
    is_stopping: bool,
}

impl Group<'_> {
    fn start(&self, index: u32) -> Result<Child, LocalError> {
        let failed = |source| LocalError::Member { index, source };
        Command::new(env::current_exe().map_err(failed)?)
            .arg("member")
            .arg("--config")
            .arg(&self.options.config_file)
            .args(["--insecure", "--ends-with-stdin", "--coordinator"])
            .arg(self.address.to_string())
            .arg("--worker")
            .arg(format!("{}-w-{index}", self.job))
            .args(&self.options.passed_on)
            .stdin(Stdio::piped())
            // A Ctrl-C of the terminal reaches this process alone, which passes it on once.
            .process_group(0)
            .spawn()
            .map_err(failed)
    }

    fn watch(mut self) -> Result<ExitCode, LocalError> {
        loop {
            if self.options.stop.is_asked() && !self.is_stopping {
                self.is_stopping = true;
                self.signal_all();
            }
            for place in 0..self.members.len() {
                if let Some(code) = self.look_at(place)? {
                    return Ok(code);
                }
            }
            if self.members.iter().all(|member| matches!(member.state, State::Ended(_))) {
                let all = |code: ExitCode| {
                    self.members
                        .iter()
                        .all(|member| matches!(&member.state, State::Ended(status) if status.code() == Some(code.code().into())))
                };
                return Ok(if all(ExitCode::Success) { ExitCode::Success } else { ExitCode::Preempted });
            }
            thread::sleep(POLL);
        }
    }

    /// The exit code of the whole when this member's end decides it.
    fn look_at(&mut self, place: usize) -> Result<Option<ExitCode>, LocalError> {
        let is_over =
            self.is_stopping || self.members.iter().any(|member| matches!(&member.state, State::Ended(status) if status.success()));
        let Some(member) = self.members.get_mut(place) else { return Ok(None) };
        let index = member.index;
        match &mut member.state {
            State::Ended(_) => {}
            State::Pausing(until) => {
                if Instant::now() >= *until {
                    let child = self.start(index)?;
                    if let Some(member) = self.members.get_mut(place) {
                        member.state = State::Running(child);
                    }
                }
            }
            State::Running(child) => {
                let Some(status) = child.try_wait().map_err(|source| LocalError::Member { index, source })? else { return Ok(None) };
                let code = status.code().unwrap_or_default();
                if status.signal().is_none() && code == i32::from(ExitCode::Permanent.code()) {
                    return Ok(Some(ExitCode::Permanent));
                }
                let ended_in_order = status.success() || code == i32::from(ExitCode::Preempted.code());
                if ended_in_order || is_over {
                    member.state = State::Ended(status);
                    return Ok(None);
                }
                let now = Instant::now();
                member.deaths.retain(|death| now.duration_since(*death) < WINDOW);
                member.deaths.push(now);
                let deaths = member.deaths.len();
                if deaths >= MOST_DEATHS {
                    return Err(LocalError::KeepsDying { index, deaths, status });
                }
                let pause = FIRST_PAUSE * 2_u32.pow(deaths as u32 - 1);
                tracing::warn!(member = index, %status, ?pause, "a member died; it is started again, the others go on");
                member.state = State::Pausing(now + pause);
            }
        }
        Ok(None)
    }

    fn signal_all(&mut self) {
        for member in &mut self.members {
            match &member.state {
                State::Running(child) => {
                    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                        // It may have ended by now.
                        let _ = kill_process(pid, Signal::TERM);
                    }
                }
                State::Pausing(_) => member.state = State::Ended(ExitStatus::default()),
                State::Ended(_) => {}
            }
        }
    }
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let State::Running(child) = &mut member.state {
                // It may have ended by now.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}
