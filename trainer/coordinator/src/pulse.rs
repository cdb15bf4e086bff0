//! Whether the machine's task still turns: a probe must not be told that all is well by a page that another task serves.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// The machine's task turns at least so often, though nothing happens.
pub(crate) const BEAT: Duration = Duration::from_secs(1);
/// A task that has not turned for so long hangs. The slowest turn there is, a status of thousands of members, takes some ten milliseconds.
const STUCK: Duration = Duration::from_secs(10);

/// When the machine's task has turned last.
#[derive(Debug)]
pub(crate) struct Pulse {
    start: Instant,
    /// Milliseconds since the start, and one more: none yet is 0.
    last: AtomicU64,
    has_ended: AtomicBool,
}

/// Why the coordinator is not well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unhealthy {
    /// Its machine has ended.
    #[error("the coordinator has ended")]
    Ended,
    /// Its machine's task does not turn.
    #[error("the coordinator hangs: its task has not turned for {} seconds", .0.as_secs())]
    Stuck(Duration),
}

impl Default for Pulse {
    fn default() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0), has_ended: AtomicBool::new(false) }
    }
}

impl Pulse {
    /// The task has turned.
    pub(crate) fn beat(&self, now: Instant) {
        let since = u64::try_from(now.duration_since(self.start).as_millis()).unwrap_or(u64::MAX);
        self.last.store(since.saturating_add(1), Ordering::Relaxed);
    }

    /// The task is over.
    pub(crate) fn end(&self) {
        self.has_ended.store(true, Ordering::Relaxed);
    }

    /// Well before the first turn, too: then the task is about to begin.
    pub(crate) fn check(&self, now: Instant) -> Result<(), Unhealthy> {
        if self.has_ended.load(Ordering::Relaxed) {
            return Err(Unhealthy::Ended);
        }
        let Some(last) = self.last.load(Ordering::Relaxed).checked_sub(1) else { return Ok(()) };
        let still = now.duration_since(self.start).saturating_sub(Duration::from_millis(last));
        if still < STUCK { Ok(()) } else { Err(Unhealthy::Stuck(still)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_does_not_turn_is_told_from_one_that_waits_and_from_one_that_has_ended() {
        let pulse = Pulse::default();
        let after = |seconds| pulse.start + Duration::from_secs(seconds);
        assert_eq!(pulse.check(after(1_000)), Ok(()), "it has not begun");
        pulse.beat(after(1_000));
        assert_eq!(pulse.check(after(1_009)), Ok(()));
        assert_eq!(pulse.check(after(1_011)), Err(Unhealthy::Stuck(Duration::from_secs(11))));
        pulse.beat(after(1_012));
        assert_eq!(pulse.check(after(1_013)), Ok(()));
        pulse.end();
        assert_eq!(pulse.check(after(1_013)), Err(Unhealthy::Ended));
    }
}
