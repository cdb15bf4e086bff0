//! The deaths of one process: how many there were lately, and how long it waits before it is started again. Pure.

use std::time::{Duration, Instant};

/// Those within a window.
#[derive(Debug, Default)]
pub(super) struct Deaths(Vec<Instant>);

impl Deaths {
    /// One more. How many there were within `window`, and the pause before the next start: `first` after one, doubled for each further one.
    pub(super) fn note(&mut self, now: Instant, window: Duration, first: Duration) -> (u32, Duration) {
        self.0.retain(|death| now.duration_since(*death) < window);
        self.0.push(now);
        let count = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        (count, first.saturating_mul(2_u32.saturating_pow(count - 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_mins(10);
    const FIRST: Duration = Duration::from_millis(200);

    #[test]
    fn the_pause_doubles_with_every_death_and_begins_anew_after_a_window_without_one() {
        let (mut deaths, begin) = (Deaths::default(), Instant::now());
        let mut note = |seconds: u64| deaths.note(begin + Duration::from_secs(seconds), WINDOW, FIRST);
        let milliseconds = |count: u32, pause: u64| (count, Duration::from_millis(pause));
        assert_eq!(
            [note(0), note(1), note(2), note(3)],
            [milliseconds(1, 200), milliseconds(2, 400), milliseconds(3, 800), milliseconds(4, 1600)]
        );
        // Only the last of them is less than a window ago.
        assert_eq!(note(602), milliseconds(2, 400));
        assert_eq!(note(1202), milliseconds(1, 200));
    }

    #[test]
    fn many_deaths_are_a_long_pause_and_no_overflow() {
        let (mut deaths, now) = (Deaths::default(), Instant::now());
        let pauses: Vec<Duration> = (0..100).map(|_| deaths.note(now, WINDOW, FIRST).1).collect();
        assert!(pauses.is_sorted() && pauses[99] > WINDOW, "{pauses:?}");
    }
}
