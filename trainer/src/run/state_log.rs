//! What every member holds after every step, for tests: equal states are seen at each step, not only at the end. A test aid: without the
//! environment variable it costs one load a step.
//!
//! Comes in: `LCL_STATE_LOG`, a folder. Goes out: a file of lines ([`StateLine`]) for every member's process.

use std::{
    env,
    fs::{File, OpenOptions},
    io::{self, Write},
    path::PathBuf,
    process,
    sync::{Mutex, OnceLock, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use lcl_protocol::Role;
use lcl_torch::{Learner, LearnerError};
use serde::{Deserialize, Serialize};

use crate::run::records::GenerationRecord;

/// The folder.
pub const FOLDER: &str = "LCL_STATE_LOG";

/// How a member came to what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// By a step.
    Trained,
    /// It held it already, and sent it to others.
    Sent,
    /// From another member, or it had the same already.
    Received,
    /// From storage, or by initialising.
    Restored,
}

impl From<&Role> for Origin {
    fn from(role: &Role) -> Self {
        match role {
            Role::Level | Role::Send(_) => Self::Sent,
            Role::Receive(_) | Role::Follow => Self::Received,
            Role::Restore => Self::Restored,
        }
    }
}

/// What a member holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StateLine {
    /// The member.
    pub member: String,
    /// Its process.
    pub process: u32,
    /// The generation in which it came to this state.
    pub generation: GenerationRecord,
    /// Completed steps.
    pub step: u64,
    /// How it came to it.
    pub origin: Origin,
    /// Hash of all parameters.
    pub parameter_hash: String,
    /// Unix time in seconds.
    pub time: f64,
}

struct Log {
    member: String,
    file: Mutex<File>,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Opens the file of this process, if one is wanted. To be called before training.
pub fn open(member: &str) -> io::Result<()> {
    let Some(folder) = env::var_os(FOLDER) else { return Ok(()) };
    let path = PathBuf::from(folder).join(format!("{}.jsonl", process::id()));
    let file = Mutex::new(OpenOptions::new().create(true).append(true).open(path)?);
    // A second one in the same process would be a second run.
    let _ = LOG.set(Log { member: member.to_owned(), file });
    Ok(())
}

/// Writes down what is held now, after `step` steps.
pub fn note(learner: &Learner, generation: impl Into<GenerationRecord>, step: u64, origin: impl Into<Origin>) -> Result<(), LearnerError> {
    let Some(log) = LOG.get() else { return Ok(()) };
    let line = StateLine {
        member: log.member.clone(),
        process: process::id(),
        generation: generation.into(),
        step,
        origin: origin.into(),
        parameter_hash: learner.parameter_hash()?,
        time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64()),
    };
    // Plain data with string keys: turning it into JSON cannot fail. One write, so that a kill leaves whole lines or none.
    let text = serde_json::to_string(&line).unwrap_or_default() + "\n";
    if let Err(error) = log.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(text.as_bytes()) {
        tracing::error!(%error, "the state is not logged");
    }
    Ok(())
}
