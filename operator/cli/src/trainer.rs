//! Finds `lcl-trainer` and becomes it: same process, same terminal, so signals and the exit code need no passing on.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Error, anyhow};

use crate::arguments::PassedOn;

const PROGRAM: &str = "lcl-trainer";
/// Environment variable that names another program.
const OVERRIDE: &str = "LCL_TRAINER";

/// `lcl COMMAND ARGUMENTS…` becomes `lcl-trainer COMMAND ARGUMENTS…`. Returns only when that fails.
pub(crate) fn hand_over(command: &str, passed_on: PassedOn) -> Result<ExitCode, Error> {
    become_trainer(std::iter::once(OsString::from(command)).chain(passed_on.arguments))
}

/// Replaces this process by the trainer. Returns only when that fails.
pub(crate) fn become_trainer(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<ExitCode, Error> {
    become_with(arguments, Stdio::inherit())
}

/// The same, with a file as the trainer's standard input.
pub(crate) fn become_trainer_with(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>, input: File) -> Result<ExitCode, Error> {
    become_with(arguments, input.into())
}

fn become_with(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>, input: Stdio) -> Result<ExitCode, Error> {
    let program = find();
    let error = Command::new(&program).args(arguments).stdin(input).exec();
    let program = program.display();
    Err(match error.kind() {
        io::ErrorKind::NotFound => anyhow!(
            "there is no program {program}: it belongs beside lcl or in PATH, or name it in the environment variable {OVERRIDE} \
             (built by `cargo build --release -p lcl-trainer`)"
        ),
        _ => Error::new(error).context(format!("cannot execute {program}")),
    })
}

fn find() -> PathBuf {
    if let Some(program) = env::var_os(OVERRIDE).filter(|program| !program.is_empty()) {
        return program.into();
    }
    // Links are followed: `kubectl-lcl` may be one to `lcl`.
    let beside = env::current_exe().and_then(|own| own.canonicalize()).ok().map(|own| own.with_file_name(PROGRAM));
    beside.filter(|program| program.is_file()).unwrap_or_else(|| PROGRAM.into())
}
