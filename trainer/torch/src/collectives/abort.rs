//! Ending a group's operations from another thread.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use super::store::Store;
use crate::shim::sockets::Connection;

/// Called when a group that is forming is aborted.
type Wake = Box<dyn Fn() + Send>;

#[derive(Default)]
struct Reach {
    /// Where the group forms, and where its members meet to leave.
    store: Option<Arc<dyn Store>>,
    /// Wakes the thread that waits for the group to form.
    wake: Option<Wake>,
    /// The group's connections.
    connections: Vec<Connection>,
}

#[derive(Default)]
struct Control {
    aborted: AtomicBool,
    reach: Mutex<Reach>,
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

    /// Makes pending and later operations of the group fail, within milliseconds for operations on a formed group. Returns at once.
    ///
    /// Connections are shut down: closing them would not wake Gloo's waiters. Other members see the loss of this one.
    pub fn abort(&self) {
        self.0.aborted.store(true, Ordering::Release);
        self.disconnect();
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
    pub(super) fn formed(&self, connections: Vec<Connection>) {
        let mut reach = self.lock();
        reach.wake = None;
        reach.connections = connections;
        drop(reach);
        if self.is_aborted() {
            self.disconnect();
        }
    }

    /// Ends whatever waits, without marking the group as aborted: after an error, and when it is dropped.
    pub(super) fn disconnect(&self) {
        let Reach { store, wake, connections } = std::mem::take(&mut *self.lock());
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
}
