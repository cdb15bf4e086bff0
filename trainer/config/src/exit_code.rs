//! How a training process says why it ended: the one list of exit codes that the trainer returns and the operator and the CLI read.
//!
//! Success and usage errors keep the codes every program uses (0, and 2 from the argument parser); the others follow `sysexits.h`, so that
//! none collides with a shell's own (126 and above) or with a death by signal (128 + n).

use std::{fmt, process};

/// Why a training process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ExitCode {
    /// The last step is done and its checkpoint committed.
    Success = 0,
    /// The command line is wrong. The argument parser's own code; never retried.
    Usage = 2,
    /// Starting again with the same input would fail again: bad configuration, missing data, a refused resume, a diverged loss.
    /// `EX_DATAERR`.
    Permanent = 65,
    /// The last step is done, and its checkpoint cannot be written: said to a supervisor, which tries only a few times more, since
    /// each may train the same steps again. `EX_IOERR`.
    Unsaved = 74,
    /// It may go well the next time: storage not reachable, disk full, a peer lost, out of memory. `EX_TEMPFAIL`.
    /// Anything unknown, a death by signal included, is treated like this.
    Retryable = 75,
    /// Asked to stop (SIGTERM or SIGINT), finished its step and committed a checkpoint. Start again to continue; no failure is counted.
    Preempted = 80,
    /// Of a member: a newer process bears its name, so that nothing its worker starts will be let in again. The worker ends; what started
    /// the worker may start another.
    Superseded = 81,
    /// This machine fails the self-test: its processor, its GPU or its network does not do what is asked of it. Another machine may.
    Unfit = 82,
}

impl ExitCode {
    /// Every code.
    pub const ALL: [Self; 8] =
        [Self::Success, Self::Usage, Self::Permanent, Self::Unsaved, Self::Retryable, Self::Preempted, Self::Superseded, Self::Unfit];

    /// The number the process returns.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// What a returned number means; `None` for a number that no trainer returns on purpose (treat it as [`Self::Retryable`]).
    #[must_use]
    pub fn from_code(code: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|exit| i32::from(exit.code()) == code)
    }

    /// Whether starting again with the same input can lead further.
    #[must_use]
    pub const fn is_worth_another_try(self) -> bool {
        matches!(self, Self::Unsaved | Self::Retryable | Self::Preempted | Self::Superseded | Self::Unfit)
    }
}

impl fmt::Display for ExitCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Success => "success",
            Self::Usage => "usage",
            Self::Permanent => "permanent failure",
            Self::Unsaved => "the last checkpoint is not written",
            Self::Retryable => "retryable failure",
            Self::Preempted => "preempted",
            Self::Superseded => "superseded",
            Self::Unfit => "the machine is unfit",
        })
    }
}

impl From<ExitCode> for process::ExitCode {
    fn from(exit: ExitCode) -> Self {
        exit.code().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_read_back_and_collides_with_nothing_a_shell_or_a_signal_uses() {
        for exit in ExitCode::ALL {
            assert_eq!(ExitCode::from_code(exit.code().into()), Some(exit));
            assert!(exit.code() < 126, "{exit}");
            assert_eq!(ExitCode::ALL.iter().filter(|other| other.code() == exit.code()).count(), 1, "{exit}");
        }
        // 1 and 101 are what an unexpected error and a panic return: neither may read as a decision.
        for unknown in [1, 101, 137, -1] {
            assert_eq!(ExitCode::from_code(unknown), None);
        }
    }
}
