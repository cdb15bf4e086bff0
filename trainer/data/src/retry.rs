//! Reading again after an error that may pass.
//!
//! Comes in: an operation and a way to wait. Goes out: its result, after as many attempts as it took. It decides only whether and how long to
//! wait; a sample is never given up here in favour of another.

use std::{
    io,
    sync::{Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::random::{SlotRandom, Stream};

/// Wait before the second attempt: long enough for an interrupted call, short against a step.
const FIRST_DELAY: Duration = Duration::from_millis(10);

/// Longest wait between two attempts, so that a storage that is back is noticed within seconds.
const DELAY_CAP: Duration = Duration::from_secs(5);

/// Attempts before the error is reported. With the two figures above this is somewhat more than a minute: a network file system's fail-over takes
/// seconds to tens of seconds, an object store may be away for a minute, and what lasts longer wants a person's eyes.
const ATTEMPTS: u32 = 30;

/// Time after which there is no further attempt, where each of them takes long by itself: a store that takes a request and says nothing.
const TIME_LIMIT: Duration = Duration::from_mins(3);

/// A request to stop that a waiting thread hears at once.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    requested: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    /// Asks everyone who waits to stop.
    pub(crate) fn request(&self) {
        *self.requested.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Whether a stop is requested.
    pub(crate) fn is_requested(&self) -> bool {
        *self.requested.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for `delay` or until a stop is requested; true when it was.
    pub(crate) fn wait(&self, delay: Duration) -> bool {
        let requested = self.requested.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(requested, delay, |requested| !*requested);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Waits between attempts where no loader asks to stop; for [`with_retries`]. Whoever opens a data set may have this thread hear a stop.
pub(crate) fn sleep(delay: Duration) -> bool {
    let Some(stop) = lcl_objects::Stop::of_thread() else {
        std::thread::sleep(delay);
        return false;
    };
    let begun = Instant::now();
    while !stop.is_asked() {
        let left = delay.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return false;
        }
        std::thread::sleep(left.min(lcl_objects::POLL));
    }
    true
}

/// Does `work` in a thread that was started by one that hears `stop`, so that this one does too.
pub(crate) fn hearing<T>(stop: Option<&lcl_objects::Stop>, work: impl FnOnce() -> T) -> T {
    match stop {
        Some(stop) => stop.clone().heard_in(work),
        None => work(),
    }
}

/// Whether another attempt can succeed: errors of devices, networks and exhausted resources, not those of names, rights and contents.
pub(crate) fn is_transient(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    // These have no kind of their own.
    let by_number = matches!(error.raw_os_error(), Some(libc::EIO | libc::EMFILE | libc::ENFILE | libc::EREMOTEIO | libc::ENOBUFS));
    by_number
        || matches!(
            error.kind(),
            Kind::Interrupted
                | Kind::WouldBlock
                | Kind::TimedOut
                | Kind::ConnectionReset
                | Kind::ConnectionAborted
                | Kind::ConnectionRefused
                | Kind::NotConnected
                | Kind::HostUnreachable
                | Kind::NetworkUnreachable
                | Kind::NetworkDown
                | Kind::StaleNetworkFileHandle
                | Kind::ResourceBusy
                | Kind::OutOfMemory
        )
}

/// Whether what went wrong may go well the next time, as an error of any depth says: storage that does not answer, or a disk without room.
#[must_use]
pub fn may_pass(error: &(dyn std::error::Error + 'static)) -> bool {
    use io::ErrorKind as Kind;
    let passes = |error: &io::Error| is_transient(error) || matches!(error.kind(), Kind::StorageFull | Kind::QuotaExceeded);
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(|error| error.downcast_ref::<io::Error>().is_some_and(passes))
}

/// Runs `operation` until it succeeds, fails for good, fails too often, or `wait` says to stop; then returns its last result.
///
/// `system_error` finds the system's error in the operation's; an error without one is final. `key` spreads the waiting times of different
/// callers. `wait` returns true to stop.
pub(crate) fn with_retries<T, E: std::error::Error>(
    key: u64,
    mut wait: impl FnMut(Duration) -> bool,
    system_error: impl Fn(&E) -> Option<&io::Error>,
    mut operation: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let (mut attempt, begun) = (1, Instant::now());
    loop {
        let error = match operation() {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let Some(cause) = system_error(&error).filter(|cause| is_transient(cause)) else { return Err(error) };
        if attempt == ATTEMPTS || begun.elapsed() > TIME_LIMIT {
            return Err(error);
        }
        let delay = delay(key, attempt);
        tracing::warn!(attempt, of = ATTEMPTS, ?delay, cause = chain(cause), "{error}: trying again");
        if wait(delay) {
            return Err(error);
        }
        attempt += 1;
    }
}

/// An error with all that is behind it: an object's says what its store answered only there.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string);
    causes.collect::<Vec<_>>().join(": ")
}

/// Wait after the attempt of this number, from 1: doubling up to the cap, then spread over its upper half.
fn delay(key: u64, attempt: u32) -> Duration {
    let full = FIRST_DELAY.saturating_mul(1_u32.checked_shl(attempt - 1).unwrap_or(u32::MAX)).min(DELAY_CAP);
    full.mul_f64(0.5 + 0.5 * SlotRandom::new(0, key, u64::from(attempt), Stream::Backoff).uniform())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_number(number: i32) -> io::Error {
        io::Error::from_raw_os_error(number)
    }

    /// Runs an operation that fails with `errors` one after the other and then succeeds; returns the result and the waits.
    fn check(errors: Vec<io::Error>, stop_after: usize) -> (Result<usize, io::Error>, Vec<Duration>) {
        let mut errors = errors.into_iter();
        let (mut calls, mut waits) = (0, Vec::new());
        let result = with_retries(
            1,
            |delay| {
                waits.push(delay);
                waits.len() >= stop_after
            },
            |error| Some(error),
            || {
                calls += 1;
                errors.next().map_or(Ok(calls), Err)
            },
        );
        (result, waits)
    }

    #[test]
    fn errors_that_may_pass_are_tried_again() {
        let numbers = [libc::EIO, libc::EINTR, libc::ESTALE, libc::ETIMEDOUT, libc::EMFILE, libc::EAGAIN];
        let (result, waits) = check(numbers.into_iter().map(of_number).collect(), usize::MAX);
        assert_eq!(result.expect("the seventh attempt succeeds"), 7);
        assert_eq!(waits.len(), 6);
    }

    #[test]
    fn errors_of_names_rights_and_contents_are_final() {
        for error in [of_number(libc::ENOENT), of_number(libc::EACCES), of_number(libc::EISDIR), io::ErrorKind::UnexpectedEof.into()] {
            let (result, waits) = check(vec![error], usize::MAX);
            assert!(result.is_err() && waits.is_empty());
        }
    }

    #[test]
    fn attempts_and_waits_are_bounded() {
        let (result, waits) = check((0..100).map(|_| of_number(libc::EIO)).collect(), usize::MAX);
        assert!(result.is_err());
        assert_eq!(waits.len() as u32, ATTEMPTS - 1);
        assert!(waits.iter().all(|wait| *wait <= DELAY_CAP && *wait >= FIRST_DELAY / 2));
        let total: Duration = waits.iter().sum();
        assert!((60..110).contains(&total.as_secs()), "{total:?}");
    }

    #[test]
    fn a_request_to_stop_ends_the_attempts() {
        let (result, waits) = check((0..100).map(|_| of_number(libc::EIO)).collect(), 3);
        assert!(result.is_err());
        assert_eq!(waits.len(), 3);
    }

    #[test]
    fn a_request_to_stop_wakes_a_waiting_thread() {
        let stop = Stop::default();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| stop.wait(Duration::from_hours(1)));
            stop.request();
            assert!(waiting.join().expect("the thread does not panic"));
        });
        assert!(stop.wait(Duration::ZERO));
    }
}
