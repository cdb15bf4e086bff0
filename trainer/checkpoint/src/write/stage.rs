//! Whether a write can still be given up.

use std::sync::atomic::{AtomicU8, Ordering};

use super::WriteError;
use crate::id::CheckpointId;

const UNDER_WAY: u8 = 0;
const DECIDED: u8 = 1;
const ABANDONED: u8 = 2;

/// Shared by a write and by who may give it up: exactly one of them wins.
#[derive(Debug, Default)]
pub(crate) struct Stage(AtomicU8);

impl Stage {
    /// Gives the write up: from here on it neither commits nor removes anything. `false`: it is about to do one of them, and its result has
    /// to be waited for.
    pub(crate) fn abandon(&self) -> bool {
        self.turn(ABANDONED) == ABANDONED
    }

    /// Whether it can still be given up, and was not.
    pub(super) fn is_under_way(&self) -> bool {
        self.0.load(Ordering::SeqCst) == UNDER_WAY
    }

    /// Fails when the write was given up.
    pub(super) fn check(&self, id: CheckpointId) -> Result<(), WriteError> {
        if self.0.load(Ordering::SeqCst) == ABANDONED { Err(abandoned(id)) } else { Ok(()) }
    }

    /// From here on it cannot be given up; fails when it was.
    pub(super) fn decide(&self, id: CheckpointId) -> Result<(), WriteError> {
        if self.turn(DECIDED) == DECIDED { Ok(()) } else { Err(abandoned(id)) }
    }

    /// What it is afterwards: `to`, unless it was turned otherwise before.
    fn turn(&self, to: u8) -> u8 {
        self.0.compare_exchange(UNDER_WAY, to, Ordering::SeqCst, Ordering::SeqCst).map_or_else(|before| before, |_| to)
    }
}

fn abandoned(id: CheckpointId) -> WriteError {
    WriteError::Abandoned { id, reason: "it was given up while it was being written".to_owned() }
}
