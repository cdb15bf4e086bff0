//! Talking to a job that runs on this machine: what can be asked of its launcher, and how the launcher is found.
//!
//! Comes in: a run's folder and a [`Request`]. Goes out: the launcher's [`Answer`], over a Unix socket in that folder which belongs to the
//! user who started the run. One line of JSON each way, then the connection ends. The socket's other end is `local/control.rs`.
//!
//! A socket that a killed launcher left behind is recognised by nobody listening on it: there is no file that could say something else.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    net::Shutdown,
    num::NonZeroU32,
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::processes::membership::{Group, Happening};

/// The socket's name in the run's folder.
pub const SOCKET: &str = "control.sock";
/// For the launcher's answer. It gives it at once; a machine may be busy.
const ANSWER: Duration = Duration::from_secs(10);
/// Longest line either way: a status of a thousand members is a tenth of it.
pub(crate) const LONGEST_LINE: u64 = 1 << 20;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "command")]
pub enum Request {
    /// How the run is.
    Status,
    /// To have this many workers.
    Resize {
        /// How many.
        workers: NonZeroU32,
    },
    /// To let a worker leave, and not to replace it.
    Drain {
        /// Its name.
        worker: String,
    },
    /// To write a checkpoint and go on.
    Checkpoint,
    /// To end after a checkpoint.
    Stop,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub enum Answer {
    /// How the run is.
    Status(Box<RunStatus>),
    /// The wanted workers are these now; the status tells when it is so.
    Accepted(Resized),
    /// A checkpoint is written, or there is one that is as new; the status tells when it is there.
    Saving(Saving),
    /// The run ends after a checkpoint.
    Stopping(Stopping),
    /// It is not done.
    Refused {
        /// Why, and what to do.
        reason: String,
    },
}

/// What a command has changed. Repeated, it changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resized {
    /// Wanted workers from now on.
    pub workers: u32,
    /// Those that are started for it.
    pub starting: Vec<String>,
    /// Those that leave after their step.
    pub leaving: Vec<String>,
}

/// A checkpoint that was asked for. Asked for again before the next step is known to be done, it is the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saving {
    /// It will be of this step or a later one.
    pub from: u64,
    /// Whether there is one already.
    pub is_committed: bool,
    /// Step of the newest one.
    pub last_checkpoint: Option<u64>,
}

/// A stop that was asked for. Repeated, it changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopping {
    /// Workers that still run.
    pub leaving: Vec<String>,
    /// Completed steps, as far as known; some more may follow.
    pub step: Option<u64>,
}

/// How a run is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunStatus {
    /// Name of the job.
    pub job: String,
    /// Steps that the run shall have at its end.
    pub steps: u64,
    /// The launcher's process.
    pub pid: u32,
    /// Where the coordinator listens; absent before it does.
    pub coordinator: Option<String>,
    /// Why the coordinator cannot be seen at the moment; then `group` is what was seen last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unseen: Option<String>,
    /// The group; absent before anything was seen of it.
    pub group: Option<Group>,
    /// How many workers are wanted, and may be.
    pub size: Size,
    /// The workers, those that are leaving included.
    pub workers: Vec<WorkerStatus>,
    /// The last things that happened to the members, the oldest first.
    pub history: Vec<Happening>,
    /// Unix time in seconds of this answer.
    pub time: f64,
}

/// Numbers of workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Wanted.
    pub wanted: u32,
    /// Fewest that a resize may ask for.
    pub min: u32,
    /// Most, as far as spec.elastic bounds it.
    pub max: Option<u32>,
}

/// A worker of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its name.
    pub name: String,
    /// `running`, `starting` (it does not run at this moment), or `leaving`.
    pub state: String,
    /// Its process.
    pub pid: Option<u32>,
    /// Its members that are attached to the coordinator.
    pub members: Vec<MemberStatus>,
}

/// A member that is attached to the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// `WORKER/INDEX`.
    pub name: String,
    /// Its rank in the group; absent for one that waits to be let in.
    pub rank: Option<u32>,
    /// Completed steps of the state it holds, as last heard.
    pub step: Option<u64>,
}

/// The launcher cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no such folder.
    #[error("cannot look into {}: name the folder of a run (its spec.checkpoint.uri)", folder.display())]
    Folder {
        /// As it was given.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nobody listens.
    #[error(
        "no run is going on in {}: `lcl run MANIFEST --local` starts one or goes on with it (one that consists of a single process, without \
         spec.elastic, cannot be asked; its metrics.jsonl tells how far it is)",
        folder.display()
    )]
    NoRun {
        /// The folder.
        folder: PathBuf,
    },
    /// Somebody listens who cannot be talked to.
    #[error("cannot {action} the process that runs the job in {} (its socket belongs to the user who started it)", folder.display())]
    Talk {
        /// What was tried.
        action: &'static str,
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The answer is none.
    #[error("the answer of the job's launcher in {} is not as expected: use programs of one release", folder.display())]
    Answer {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// It refuses.
    #[error("{reason}")]
    Refused {
        /// Why, and what to do.
        reason: String,
    },
}

/// Asks the launcher of the run in `folder`. A refusal is an error.
pub fn ask(folder: &Path, request: &Request) -> Result<Answer, ControlError> {
    let owned = || folder.to_owned();
    let opened = File::open(folder).map_err(|source| ControlError::Folder { folder: owned(), source })?;
    let mut stream = match UnixStream::connect(in_folder(&opened, SOCKET)) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Err(ControlError::NoRun { folder: owned() });
        }
        Err(source) => return Err(ControlError::Talk { action: "reach", folder: owned(), source }),
    };
    let failed = |source| ControlError::Talk { action: "get an answer from", folder: owned(), source };
    let line = exchange(&mut stream, request).map_err(failed)?;
    match serde_json::from_str(&line) {
        Ok(Answer::Refused { reason }) => Err(ControlError::Refused { reason }),
        Ok(answer) => Ok(answer),
        Err(source) => Err(ControlError::Answer { folder: owned(), source }),
    }
}

fn exchange(stream: &mut UnixStream, request: &Request) -> io::Result<String> {
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    write_line(stream, request)?;
    stream.shutdown(Shutdown::Write)?;
    read_line(stream)
}

/// Writes one line of JSON.
pub(crate) fn write_line(stream: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Reads one line, of a bounded length.
pub(crate) fn read_line(stream: &mut impl Read) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(stream.take(LONGEST_LINE)).read_line(&mut line)?;
    if line.ends_with('\n') { Ok(line) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// A name in an open folder, as a path short enough for a socket's address, whose 108 bytes the folder's own path may exceed.
pub(crate) fn in_folder(folder: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name)
}
