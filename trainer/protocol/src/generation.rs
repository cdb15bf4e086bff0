//! Numbers of memberships and labels of states. Pure values.

use std::fmt;

/// Number of a membership: which members, in which rank order. Never decreases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation {
    /// Grows with every coordinator; kept outside it (job status; locally the checkpoint folder).
    pub epoch: u64,
    /// Grows with every membership that a coordinator forms; from 1. 0 stands for "none formed yet".
    pub n: u64,
}

impl Generation {
    /// The membership after this one, by the same coordinator.
    #[must_use]
    pub const fn next(self) -> Self {
        Self { epoch: self.epoch, n: self.n.saturating_add(1) }
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "g{:06}-{:06}", self.epoch, self.n)
    }
}

/// Which weights and moments a member holds. Equal labels mean equal states; the greater label is the one to go on from.
///
/// Ordered by step first, so that nothing computed is thrown away while a member lives that holds it, then by generation: when a step was
/// computed twice, the later generation's result counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StateLabel {
    /// Completed optimizer steps.
    pub step: u64,
    /// The generation that committed the last of them; for a state read from storage or newly initialised, the generation that did so.
    pub generation: Generation,
}

impl fmt::Display for StateLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {} of {}", self.step, self.generation)
    }
}
