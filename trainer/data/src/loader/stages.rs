//! What data threads spend their time with.
//!
//! Comes in: moments at which a thread went from one stage to the next. Goes out: seconds of each stage, over all threads. It decides nothing.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Time of all data threads together, by what they did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages {
    /// Reading from storage, waits between attempts included.
    pub read: Duration,
    /// Decoding, cropping and resizing images.
    pub decode: Duration,
    /// Tokenizing, laying out sequences and putting batches together.
    pub compose: Duration,
    /// Waiting because enough batches are ready: time in which the threads limit nothing.
    pub wait: Duration,
}

impl Stages {
    /// What was added since `before`.
    pub(super) fn since(self, before: Self) -> Self {
        let Self { read, decode, compose, wait } = self;
        Self {
            read: read.saturating_sub(before.read),
            decode: decode.saturating_sub(before.decode),
            compose: compose.saturating_sub(before.compose),
            wait: wait.saturating_sub(before.wait),
        }
    }
}

/// Where the threads add up their time, in nanoseconds.
#[derive(Debug, Default)]
pub(super) struct Sums {
    read: AtomicU64,
    decode: AtomicU64,
    compose: AtomicU64,
    wait: AtomicU64,
}

impl Sums {
    /// Adds what a thread noted, which begins anew.
    pub(super) fn add(&self, stages: &mut Stages) {
        let Stages { read, decode, compose, wait } = std::mem::take(stages);
        for (sum, time) in [(&self.read, read), (&self.decode, decode), (&self.compose, compose), (&self.wait, wait)] {
            sum.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    pub(super) fn get(&self) -> Stages {
        let time = |sum: &AtomicU64| Duration::from_nanos(sum.load(Ordering::Relaxed));
        Stages { read: time(&self.read), decode: time(&self.decode), compose: time(&self.compose), wait: time(&self.wait) }
    }
}

/// A clock that is read once at each change of the stage.
pub(super) struct Watch {
    last: Instant,
}

impl Watch {
    pub(super) fn start() -> Self {
        Self { last: Instant::now() }
    }

    /// The time since it was last asked.
    pub(super) fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.last, now)
    }
}
