//! Ending a group's operations from another thread.

use std::{
    fmt, io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{store::Store, watch};
use crate::shim::{collectives::Interrupter, sockets::Connection};

/// Called when a group that is forming is aborted.
type Wake = Box<dyn Fn() + Send>;

/// What to do when an operation does not end although it was aborted.
struct Rescue {
    deadline: Duration,
    act: Box<dyn Fn() + Send + Sync>,
}

/// What a group's operations are doing. They run on one thread, one within another at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    /// Operations that have begun and not ended.
    running: u32,
    /// How often one has begun or ended.
    changes: u64,
    /// Whether the group is gone, with all that ran in it.
    is_closed: bool,
}

#[derive(Default)]
struct Reach {
    /// Where the group forms, and where its members meet to leave.
    store: Option<Arc<dyn Store>>,
    /// Wakes the thread that waits for the group to form.
    wake: Option<Wake>,
    /// The group's connections.
    connections: Vec<Connection>,
    progress: Progress,
}

#[derive(Default)]
struct Control {
    aborted: AtomicBool,
    reach: Mutex<Reach>,
    changed: Condvar,
    rescue: Option<Rescue>,
}

/// Aborts one group, formed or forming. Clones abort the same group.
#[derive(Clone, Default)]
pub struct AbortHandle(Arc<Control>);

impl fmt::Debug for AbortHandle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AbortHandle").field("aborted", &self.is_aborted()).finish_non_exhaustive()
    }
}

impl AbortHandle {
    /// A handle for the next group. A handle whose group is gone must not be used for another one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// As [`AbortHandle::new`]. When one of the group's operations, or its closing, goes on for `deadline` after the group was aborted or
    /// has lost a connection, `act` is called once, from a thread of the group's. A driver that hangs cannot be helped from within its
    /// process; the process can start itself anew.
    #[must_use]
    pub fn with_rescue(deadline: Duration, act: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(Control { rescue: Some(Rescue { deadline, act: Box::new(act) }), ..Control::default() }))
    }

    /// Makes pending and later operations of the group fail, within milliseconds for operations on a formed group. Returns at once.
    ///
    /// Connections are shut down: closing them would not wake Gloo's waiters. Whom that does not wake, the group's own thread does
    /// ([`super::watch`]). Other members see the loss of this one.
    pub fn abort(&self) {
        self.0.aborted.store(true, Ordering::Release);
        self.disconnect();
        self.0.changed.notify_all();
    }

    /// Whether [`AbortHandle::abort`] was called.
    #[must_use]
    pub fn is_aborted(&self) -> bool {
        self.0.aborted.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, Reach> {
        self.0.reach.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on an abort reaches a group that is forming.
    pub(super) fn begin(&self, store: Arc<dyn Store>, wake: Wake) {
        let mut reach = self.lock();
        reach.store = Some(store);
        reach.wake = Some(wake);
        drop(reach);
        if self.is_aborted() {
            self.disconnect();
        }
    }

    /// From here on an abort reaches a formed group.
    pub(super) fn formed(&self, connections: Vec<Connection>, interrupter: Interrupter) -> io::Result<()> {
        let mut reach = self.lock();
        reach.wake = None;
        reach.connections = connections;
        drop(reach);
        if self.is_aborted() {
            self.disconnect();
        }
        watch::start(self.clone(), move |reason| interrupter.fire(reason))
    }

    /// Ends whatever waits, without marking the group as aborted: after an error, and when it is dropped.
    pub(super) fn disconnect(&self) {
        let (store, wake, connections) = {
            let mut reach = self.lock();
            (reach.store.take(), reach.wake.take(), std::mem::take(&mut reach.connections))
        };
        for connection in connections {
            connection.shut_down();
        }
        if let Some(store) = store {
            store.cancel();
        }
        if let Some(wake) = wake {
            wake();
        }
    }

    /// An operation begins, or the group is about to be dropped.
    pub(super) fn enter(&self) {
        let mut reach = self.lock();
        reach.progress.running += 1;
        reach.progress.changes += 1;
    }

    /// An operation has ended.
    pub(super) fn leave(&self) {
        let mut reach = self.lock();
        reach.progress.running = reach.progress.running.saturating_sub(1);
        reach.progress.changes += 1;
    }

    /// The group is gone.
    pub(super) fn closed(&self) {
        self.lock().progress.is_closed = true;
        self.0.changed.notify_all();
    }

    /// Waits for a change, or for `patience`. Whether the group is gone.
    pub(super) fn wait(&self, patience: Duration) -> bool {
        let reach = self.lock();
        if reach.progress.is_closed {
            return true;
        }
        self.0.changed.wait_timeout(reach, patience).unwrap_or_else(PoisonError::into_inner).0.progress.is_closed
    }

    /// Whether one of the group's connections is gone while the group is in use.
    pub(super) fn has_lost_a_connection(&self) -> bool {
        self.lock().connections.iter().any(|connection| !connection.is_open())
    }

    /// See [`super::Group::received_bytes`].
    pub(super) fn received_bytes(&self) -> Option<u64> {
        self.lock().connections.iter().map(Connection::received_bytes).sum()
    }

    /// After the group was interrupted: returns when it is gone, or after the rescue of an operation that does not end.
    pub(super) fn rescue(&self) {
        let progress = |handle: &Self| handle.lock().progress;
        let (mut last, mut since) = (progress(self), Instant::now());
        let Some(Rescue { deadline, act }) = &self.0.rescue else { return };
        loop {
            if self.wait(deadline.saturating_sub(since.elapsed())) {
                return;
            }
            let now = progress(self);
            if now != last || now.running == 0 {
                // Something goes on, or nothing does: a thread that computes will find the group aborted.
                (last, since) = (now, Instant::now());
            } else if since.elapsed() >= *deadline {
                act();
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc::{RecvTimeoutError, channel},
        thread,
    };

    use super::*;

    const SHORT: Duration = Duration::from_millis(40);
    const LONG: Duration = Duration::from_mins(1);

    /// A handle whose rescue sends a message.
    fn rescued(deadline: Duration) -> (AbortHandle, std::sync::mpsc::Receiver<()>) {
        let (sender, receiver) = channel();
        let sender = Mutex::new(sender);
        let act = move || sender.lock().unwrap_or_else(PoisonError::into_inner).send(()).expect("a listener");
        (AbortHandle::with_rescue(deadline, act), receiver)
    }

    #[test]
    fn an_operation_that_an_abort_does_not_end_is_rescued_even_if_interrupting_it_hangs() {
        let (handle, rescues) = rescued(SHORT);
        let (sender, interrupted) = channel();
        handle.enter();
        watch::start(handle.clone(), move |reason| {
            sender.send(reason.to_owned()).expect("a listener");
            loop {
                thread::park();
            }
        })
        .expect("a thread");
        assert_eq!(rescues.recv_timeout(2 * SHORT), Err(RecvTimeoutError::Timeout), "nobody has aborted it yet");
        handle.abort();
        assert!(interrupted.recv_timeout(LONG).expect("an interruption").contains("aborted"));
        rescues.recv_timeout(LONG).expect("a rescue");
    }

    #[test]
    fn a_thread_that_computes_or_closes_the_group_needs_no_rescue() {
        for closes in [false, true] {
            let (handle, rescues) = rescued(SHORT);
            handle.enter();
            watch::start(handle.clone(), |_| {}).expect("a thread");
            handle.abort();
            handle.leave();
            if closes {
                handle.closed();
            }
            assert!(rescues.recv_timeout(4 * SHORT).is_err(), "closes: {closes}");
            handle.closed();
        }
    }
}
