//! The background writer: training hands over a snapshot and goes on.

use std::{
    collections::VecDeque,
    num::NonZeroUsize,
    sync::mpsc::{Receiver, TryRecvError},
    time::{Duration, Instant},
};

use crate::{
    id::CheckpointId,
    retention::{Retention, decide_removals},
    store::{CheckpointStore, StoreError},
    tensor::{InvalidTensor, Snapshot, validate},
    write::{WriteError, describe, write_checkpoint},
};

/// How the writer works.
#[derive(Clone, Copy, Debug)]
pub struct WriterOptions {
    /// What is kept after each commit; `None`: everything, also what writes that did not end have left.
    pub retention: Option<Retention>,
    /// Shards under way at once, and so the most threads that are taken from training.
    pub threads: NonZeroUsize,
    /// Files per checkpoint; `None`: one per 128 MiB.
    pub shards: Option<NonZeroUsize>,
}

impl Default for WriterOptions {
    fn default() -> Self {
        // Two: one hashes while the other waits for the disk.
        Self { retention: None, threads: NonZeroUsize::MIN.saturating_add(1), shards: None }
    }
}

/// A checkpoint that is complete, and durable if the store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Which.
    pub id: CheckpointId,
    /// Bytes of its shards.
    pub bytes: u64,
    /// From the hand-over to the commit.
    pub duration: Duration,
    /// What retention removed.
    pub removed: Vec<CheckpointId>,
    /// What retention could not do; it is tried again after the next commit.
    pub retention_problems: Vec<String>,
}

/// A snapshot was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The one before is still being written.
    #[error("{} is still being written", busy_with)]
    Busy {
        /// What is being written.
        busy_with: CheckpointId,
        /// The snapshot, handed back.
        snapshot: Box<Snapshot>,
    },
    /// The state cannot be saved.
    #[error("cannot write {id}")]
    Tensors {
        /// The checkpoint.
        id: CheckpointId,
        /// Which tensor and why.
        #[source]
        source: InvalidTensor,
    },
    /// It is not later than the one before.
    #[error("{id} is not later than {last}, which was submitted before")]
    NotLater {
        /// The checkpoint.
        id: CheckpointId,
        /// The one before.
        last: CheckpointId,
    },
    /// The store's threads are gone.
    #[error("cannot write {id}")]
    Store {
        /// The checkpoint.
        id: CheckpointId,
        /// Why.
        #[source]
        source: Box<StoreError>,
    },
}

/// Writes checkpoints in the background, one at a time and in order.
///
/// [`Self::submit`] returns at once. While a write is under way it refuses the next snapshot and hands it back: the caller decides
/// whether to skip it or to [`Self::wait`] and submit again, so a later checkpoint never overtakes an earlier one and at most one
/// state's worth of host memory is held. Results are kept in order until [`Self::poll`] or [`Self::wait`] takes them. A failed write
/// changes nothing for the checkpoints before it nor for the next submit, except that the same step may be submitted again.
///
/// Dropping the writer waits for the write under way and logs its result: a caller that has to know calls [`Self::wait`] first.
#[derive(Debug)]
pub struct CheckpointWriter {
    store: CheckpointStore,
    options: WriterOptions,
    under_way: Option<(CheckpointId, Receiver<Result<Committed, WriteError>>)>,
    finished: VecDeque<Result<Committed, WriteError>>,
    last_committed: Option<CheckpointId>,
}

impl CheckpointWriter {
    /// A writer that has nothing to do yet.
    #[must_use]
    pub fn new(store: CheckpointStore, options: WriterOptions) -> Self {
        Self { store, options, under_way: None, finished: VecDeque::new(), last_committed: None }
    }

    /// Hands a snapshot over.
    pub fn submit(&mut self, snapshot: Snapshot) -> Result<(), SubmitError> {
        let id = snapshot.id();
        self.collect();
        if let Some((busy_with, _)) = self.under_way {
            return Err(SubmitError::Busy { busy_with, snapshot: Box::new(snapshot) });
        }
        if let Some(last) = self.last_committed.filter(|last| id <= *last) {
            return Err(SubmitError::NotLater { id, last });
        }
        validate(&snapshot.tensors).map_err(|source| SubmitError::Tensors { id, source })?;
        let (store, options) = (self.store.clone(), self.options);
        let receiver = self
            .store
            .spawn(write_and_retain(store, snapshot, options))
            .map_err(|source| SubmitError::Store { id, source: Box::new(source) })?;
        self.under_way = Some((id, receiver));
        Ok(())
    }

    /// A write is under way.
    pub fn is_busy(&mut self) -> bool {
        self.collect();
        self.under_way.is_some()
    }

    /// The next result, if there is one already.
    pub fn poll(&mut self) -> Option<Result<Committed, WriteError>> {
        self.collect();
        self.finished.pop_front()
    }

    /// The next result; waits for the write under way. `None` when there is neither.
    pub fn wait(&mut self) -> Option<Result<Committed, WriteError>> {
        if self.finished.is_empty()
            && let Some((id, receiver)) = self.under_way.take()
        {
            let result = receiver.recv().unwrap_or(Err(WriteError::Stopped { id }));
            self.note(result);
        }
        self.finished.pop_front()
    }

    /// The newest checkpoint that this writer has committed.
    pub fn last_committed(&mut self) -> Option<CheckpointId> {
        self.collect();
        self.last_committed
    }

    /// Takes the result of a write that has ended.
    fn collect(&mut self) {
        let Some((id, receiver)) = &self.under_way else { return };
        let result = match receiver.try_recv() {
            Ok(result) => result,
            Err(TryRecvError::Empty) => return,
            Err(TryRecvError::Disconnected) => Err(WriteError::Stopped { id: *id }),
        };
        self.under_way = None;
        self.note(result);
    }

    fn note(&mut self, result: Result<Committed, WriteError>) {
        if let Ok(committed) = &result {
            self.last_committed = Some(committed.id);
        }
        self.finished.push_back(result);
    }
}

impl Drop for CheckpointWriter {
    fn drop(&mut self) {
        while let Some(result) = self.wait() {
            match result {
                Ok(Committed { id, .. }) => tracing::info!(checkpoint = %id, "checkpoint committed"),
                Err(error) => tracing::error!(error = %describe(&error), "checkpoint not written"),
            }
        }
    }
}

async fn write_and_retain(store: CheckpointStore, snapshot: Snapshot, options: WriterOptions) -> Result<Committed, WriteError> {
    let start = Instant::now();
    let manifest = write_checkpoint(&store, snapshot, options.shards, options.threads).await?;
    let id = manifest.id();
    let duration = start.elapsed();
    let (removed, retention_problems) = match options.retention {
        Some(retention) => retain(&store, id, retention).await,
        None => (Vec::new(), Vec::new()),
    };
    Ok(Committed { id, bytes: manifest.bytes(), duration, removed, retention_problems })
}

/// Removes what a commit has made superfluous. Failing to is no reason to call the commit failed.
async fn retain(store: &CheckpointStore, committed: CheckpointId, retention: Retention) -> (Vec<CheckpointId>, Vec<String>) {
    let entries = match store.list_entries().await {
        Ok(entries) => entries,
        Err(error) => return (Vec::new(), vec![describe(&error)]),
    };
    let (mut removed, mut problems) = (Vec::new(), Vec::new());
    for id in decide_removals(&entries, committed, retention) {
        match store.remove_folder(id).await {
            Ok(()) => removed.push(id),
            Err(error) => {
                tracing::warn!(checkpoint = %id, error = %describe(&error), "superfluous checkpoint could not be removed");
                problems.push(describe(&error));
            }
        }
    }
    (removed, problems)
}
