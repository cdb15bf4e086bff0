//! Single child processes: their ends, signals to them, and an end in words.

use std::{io, os::unix::process::ExitStatusExt, process::ExitStatus};

use lcl_trainer_config::ExitCode;
use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitOptions, kill_process, wait},
};

/// A child that has ended, if there is one.
pub(super) fn reap() -> io::Result<Option<(Pid, ExitStatus)>> {
    match wait(WaitOptions::NOHANG) {
        Ok(found) => Ok(found.map(|(pid, status)| (pid, ExitStatus::from_raw(status.as_raw())))),
        // No children, or a signal meanwhile.
        Err(Errno::CHILD | Errno::INTR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Sends a signal to a child that was not waited for yet.
pub(super) fn send(pid: Pid, signal: Signal) {
    // It is a child that was not waited for yet, so the number is its own; it may have ended, which is no failure.
    let _ = kill_process(pid, signal);
}

/// How a process ended, with what it said last where that explains it.
pub(super) fn describe(name: &str, status: ExitStatus, words: Option<String>) -> String {
    let code = status.code();
    let mut text = match (status.signal(), code.and_then(ExitCode::from_code)) {
        (Some(signal), _) => format!("{name} was killed by signal {signal}"),
        (None, Some(exit)) => format!("{name} ended: {exit} (exit code {})", exit.code()),
        (None, None) => format!("{name} ended with exit code {}", code.unwrap_or_default()),
    };
    if let Some(words) = words.filter(|_| !status.success() && status.signal().is_none_or(|signal| signal != Signal::KILL.as_raw())) {
        text.push_str(": ");
        text.push_str(&words);
    }
    text
}
