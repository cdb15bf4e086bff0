//! A wish to stop, heard by threads that wait for a store.
//!
//! Comes in: a function that says whether a stop is asked for. Goes out: whether it is, for whoever waits in a thread that hears it. Requests of other
//! threads wait as long as the store takes. It ends nothing by itself: what is asked of a store ends with an error.

use std::{cell::RefCell, fmt, future::Future, pin::pin, sync::Arc, time::Duration};

/// How often a wait looks whether a stop is asked for: well below a second, and nothing beside a request.
pub const POLL: Duration = Duration::from_millis(100);

/// Asks whether to stop.
#[derive(Clone)]
pub struct Stop(Arc<dyn Fn() -> bool + Send + Sync>);

thread_local! {
    /// What this thread hears.
    static HEARD: RefCell<Option<Stop>> = const { RefCell::new(None) };
}

/// Puts back what a thread heard before, after a panic too.
struct Before(Option<Stop>);

impl Drop for Before {
    fn drop(&mut self) {
        HEARD.set(self.0.take());
    }
}

impl Stop {
    /// One that asks `is_asked` each time.
    pub fn new(is_asked: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(is_asked))
    }

    /// Whether a stop is asked for.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        (self.0)()
    }

    /// Does `work` in this thread, whose waits for stores hear it meanwhile.
    pub fn heard_in<T>(self, work: impl FnOnce() -> T) -> T {
        let _before = Before(HEARD.replace(Some(self)));
        work()
    }

    /// What this thread hears: for threads that it starts.
    #[must_use]
    pub fn of_thread() -> Option<Self> {
        HEARD.with_borrow(Clone::clone)
    }

    /// Whether a stop is asked for that this thread hears.
    #[must_use]
    pub fn is_heard() -> bool {
        Self::of_thread().is_some_and(|stop| stop.is_asked())
    }
}

impl fmt::Debug for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stop")
    }
}

/// What comes of `work`, or nothing when a stop is asked for first.
pub(crate) async fn until_asked<T>(stop: Option<Stop>, work: impl Future<Output = T>) -> Option<T> {
    let Some(stop) = stop else { return Some(work.await) };
    let mut work = pin!(work);
    while !stop.is_asked() {
        if let Ok(done) = tokio::time::timeout(POLL, &mut work).await {
            return Some(done);
        }
    }
    None
}
