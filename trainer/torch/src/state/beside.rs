//! A copy of the state that is made on another thread while training goes on.
//!
//! A step reads parameters and moments until its update, and so may the copy. Whoever changes them waits for its end first: that is the only
//! rule, and [`Readers`] keeps it.

use std::{
    cell::RefCell,
    convert::Infallible,
    panic,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, TryRecvError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    StateError,
    host::{HostState, HostTensor, Source},
};
use crate::probe::{self, Phase};

/// Who reads the state besides the learner's own thread.
#[derive(Debug, Default)]
pub(crate) struct Readers(RefCell<Option<Reader>>);

#[derive(Debug)]
struct Reader {
    /// Closed when the state is read no more, however the copy ended.
    end: Receiver<Infallible>,
    waited: Arc<AtomicU64>,
}

impl Readers {
    /// Returns when nobody reads the state any more. To be called before it is changed.
    pub(crate) fn wait(&self) {
        let Some(Reader { end, waited }) = self.0.take() else { return };
        if end.try_recv() == Err(TryRecvError::Empty) {
            let begun = Instant::now();
            probe::reach(Phase::CopyAwaited);
            // Nothing is ever sent.
            let _ = end.recv();
            waited.fetch_add(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// Copies on a thread of its own; see [`crate::Learner::copy_state_beside`].
    pub(crate) fn copy(
        &self,
        source: Source,
        mut memory: HostState,
        done: impl FnOnce(Result<Vec<HostTensor>, StateError>) + Send + 'static,
    ) -> Result<StateCopy, StateError> {
        // One at a time: the one before has long ended, unless it was given up.
        self.wait();
        let (sender, end) = mpsc::channel();
        let waited = Arc::new(AtomicU64::new(0));
        let work = move || {
            let reading = sender;
            let copied = memory.copy_from(&source, 1);
            drop((source, reading));
            done(copied.map(|()| memory.tensors()));
            memory
        };
        let thread = thread::Builder::new().name("copy".to_owned()).spawn(work).map_err(|source| StateError::Thread { source })?;
        *self.0.borrow_mut() = Some(Reader { end, waited: Arc::clone(&waited) });
        Ok(StateCopy { thread: Some(thread), waited })
    }
}

/// A copy that is made while training goes on. Dropping it waits for its end.
#[derive(Debug)]
pub struct StateCopy {
    thread: Option<JoinHandle<HostState>>,
    waited: Arc<AtomicU64>,
}

impl StateCopy {
    /// How long the learner has stood still for it so far.
    #[must_use]
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.waited.load(Ordering::Relaxed))
    }

    /// The memory, for the next copy; waits for the end of this one.
    #[must_use]
    pub fn into_memory(mut self) -> HostState {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(memory)) => memory,
            Some(Err(panic)) => panic::resume_unwind(panic),
            None => HostState::default(),
        }
    }
}

impl Drop for StateCopy {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // What it met is told by its result.
            let _ = thread.join();
        }
    }
}
