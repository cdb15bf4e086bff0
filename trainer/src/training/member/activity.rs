//! What this member's training thread is doing, kept where the client's thread can read it.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use lcl_protocol::Activity;
use lcl_torch::collectives::Usage;

/// Weight of the newest step in the mean: the last ten or so count.
const NEWEST: f64 = 0.1;

/// Written by the training thread, read by the client's.
#[derive(Debug, Default)]
pub(super) struct ActivityCell {
    /// Operations of the process when its generation began to train.
    base: AtomicU64,
    /// Mean of the own work in a step, in microseconds; 0 before the first.
    work: AtomicU64,
}

impl ActivityCell {
    /// A generation begins to train.
    pub(super) fn begin(&self) {
        self.base.store(Usage::now().operations, Ordering::Release);
    }

    /// A step has taken this long, of which so much was waiting for others.
    pub(super) fn step(&self, took: Duration, waited: Duration) {
        let work = took.saturating_sub(waited).as_micros() as f64;
        let mean = match self.work.load(Ordering::Relaxed) {
            0 => work,
            mean => (1.0 - NEWEST) * mean as f64 + NEWEST * work,
        };
        self.work.store((mean as u64).max(1), Ordering::Relaxed);
    }

    /// For the next heartbeat.
    pub(super) fn read(&self) -> Activity {
        let work = self.work.load(Ordering::Relaxed);
        Activity {
            operations: Usage::now().operations.saturating_sub(self.base.load(Ordering::Acquire)),
            step_work: (work > 0).then(|| Duration::from_micros(work)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_no_work_and_old_steps_fade() {
        let cell = ActivityCell::default();
        assert_eq!(cell.read().step_work, None);
        cell.step(Duration::from_millis(30), Duration::from_millis(20));
        assert_eq!(cell.read().step_work, Some(Duration::from_millis(10)));
        for _ in 0..100 {
            cell.step(Duration::from_millis(20), Duration::ZERO);
        }
        let work = cell.read().step_work.unwrap();
        assert!(work > Duration::from_millis(19), "{work:?}");
    }
}
