//! How far this process has come in the operations of its groups, for whoever watches it from another thread.

use std::time::Duration;

use crate::shim::collectives::operations;

/// Counters of the whole process, of all its groups together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Operations entered. A bucket of gradients is one of its own.
    pub operations: u64,
    /// Time that the calling threads have waited for operations to complete. A sum of gradients counts from its last bucket on: before
    /// that it overlaps with the backward pass.
    pub waited: Duration,
}

impl Usage {
    /// The counters now.
    #[must_use]
    pub fn now() -> Self {
        let (operations, waited) = operations();
        Self { operations, waited }
    }
}
