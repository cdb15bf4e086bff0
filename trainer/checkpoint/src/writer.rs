//! The background writer: training hands over a snapshot and goes on.

use std::{
    collections::VecDeque,
    num::NonZeroUsize,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    },
    time::{Duration, Instant},
};

use crate::{
    id::CheckpointId,
    plan::WritePlan,
    retention::{Retention, decide_removals},
    store::{CheckpointStore, StoreError},
    tensor::{ComingTensors, InvalidTensor, Snapshot},
    write::{Attempt, Manner, Moment, Part, Stage, Work, WriteError, describe, write},
};

/// How the writer works.
#[derive(Clone, Copy, Debug)]
pub struct WriterOptions {
    /// What is kept after each commit; `None`: everything, also what writes that did not end have left.
    pub retention: Option<Retention>,
    /// Shards under way at once, and so the most threads that are taken from training.
    pub threads: NonZeroUsize,
    /// Files per checkpoint that is written whole; `None`: one per 128 MiB.
    pub shards: Option<NonZeroUsize>,
    /// Called at every [`Moment`] of a write, on a thread of its own that it may block; for tests.
    pub at: Option<fn(Moment)>,
}

impl Default for WriterOptions {
    fn default() -> Self {
        // Two: one hashes while the other waits for the disk.
        Self { retention: None, threads: NonZeroUsize::MIN.saturating_add(1), shards: None, at: None }
    }
}

/// A checkpoint that is complete, and durable if the store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Which.
    pub id: CheckpointId,
    /// Bytes of its shards; where another writer has committed, of the tensors of the own part.
    pub bytes: u64,
    /// From the hand-over of the tensors to the commit.
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
    /// The one before is still being written; a part, or what is still being copied, is not handed back.
    #[error("{busy_with} is still being written")]
    Occupied {
        /// What is being written.
        busy_with: CheckpointId,
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
/// A checkpoint that several write is submitted by each of them with [`Self::submit_part`]. It counts for each of them when it is
/// committed, and can be given up with [`Self::abandon`] when they do not belong together any more.
///
/// Dropping the writer gives up a part, waits for any other write under way, and logs its result: a caller that has to know calls
/// [`Self::wait`] first.
#[derive(Debug)]
pub struct CheckpointWriter {
    store: CheckpointStore,
    options: WriterOptions,
    under_way: Option<UnderWay>,
    finished: VecDeque<Result<Committed, WriteError>>,
    last_committed: Option<CheckpointId>,
    /// The last two that several wrote, the newer one last.
    attempts: [Option<Attempt>; 2],
}

#[derive(Debug)]
struct UnderWay {
    id: CheckpointId,
    stage: Arc<Stage>,
    is_part: bool,
    result: Receiver<Result<Committed, WriteError>>,
}

impl CheckpointWriter {
    /// A writer that has nothing to do yet.
    #[must_use]
    pub fn new(store: CheckpointStore, options: WriterOptions) -> Self {
        Self { store, options, under_way: None, finished: VecDeque::new(), last_committed: None, attempts: [None; 2] }
    }

    /// Hands a snapshot over.
    pub fn submit(&mut self, snapshot: Snapshot) -> Result<(), SubmitError> {
        let id = snapshot.id();
        self.collect();
        if let Some(UnderWay { id: busy_with, .. }) = self.under_way {
            return Err(SubmitError::Busy { busy_with, snapshot: Box::new(snapshot) });
        }
        self.check_order(id)?;
        let work = Work::whole(snapshot, self.options.shards).map_err(|source| SubmitError::Tensors { id, source })?;
        self.begin(id, work, false)
    }

    /// Hands a part of a checkpoint over that others write the rest of.
    pub fn submit_part(&mut self, part: Part) -> Result<(), SubmitError> {
        self.begin_part(part, Work::part)
    }

    /// Begins a checkpoint whose tensors, those of `plan`, are still being copied. From here on the writer is busy; when they cannot be copied
    /// the write fails.
    pub fn submit_coming(&mut self, snapshot: Snapshot<ComingTensors>, plan: Arc<WritePlan>) -> Result<(), SubmitError> {
        let id = snapshot.id();
        self.check_idle()?;
        self.check_order(id)?;
        let work = Work::whole_coming(snapshot, plan).map_err(|source| SubmitError::Tensors { id, source })?;
        self.begin(id, work, false)
    }

    /// As [`Self::submit_coming`] for a part of a checkpoint that others write the rest of.
    pub fn submit_coming_part(&mut self, part: Part<ComingTensors>) -> Result<(), SubmitError> {
        self.begin_part(part, Work::part_coming)
    }

    fn begin_part<T>(
        &mut self,
        part: Part<T>,
        work: impl FnOnce(Part<T>, Option<Attempt>) -> Result<Work, InvalidTensor>,
    ) -> Result<(), SubmitError> {
        let id = part.id;
        self.check_idle()?;
        self.check_order(id)?;
        let attempt = Attempt { id, number: part.attempt, writers: part.plan.writers() };
        let [read, last] = self.attempts;
        let work = work(part, read).map_err(|source| SubmitError::Tensors { id, source })?;
        self.attempts = [last, Some(attempt)];
        self.begin(id, work, true)
    }

    fn check_idle(&mut self) -> Result<(), SubmitError> {
        self.collect();
        match self.under_way {
            Some(UnderWay { id: busy_with, .. }) => Err(SubmitError::Occupied { busy_with }),
            None => Ok(()),
        }
    }

    /// Within a generation steps only grow; a later generation may have gone back.
    fn check_order(&self, id: CheckpointId) -> Result<(), SubmitError> {
        let order = |id: CheckpointId| (id.generation, id.step);
        match self.last_committed.filter(|last| order(id) <= order(*last)) {
            Some(last) => Err(SubmitError::NotLater { id, last }),
            None => Ok(()),
        }
    }

    fn begin(&mut self, id: CheckpointId, work: Work, is_part: bool) -> Result<(), SubmitError> {
        let (store, options, stage) = (self.store.clone(), self.options, Arc::new(Stage::default()));
        let result = self
            .store
            .spawn(write_and_retain(store, id, work, options, Arc::clone(&stage)))
            .map_err(|source| SubmitError::Store { id, source: Box::new(source) })?;
        self.under_way = Some(UnderWay { id, stage, is_part, result });
        Ok(())
    }

    /// Gives up the part under way: it fails at once and will never be committed; what lies of it in the store is left to retention.
    /// `false`: there is none, or it is being committed or cleared away just now and its result has to be waited for.
    pub fn abandon(&mut self, reason: &str) -> bool {
        self.collect();
        let Some(UnderWay { id, .. }) = self.under_way.take_if(|under_way| under_way.is_part && under_way.stage.abandon()) else {
            return false;
        };
        self.finished.push_back(Err(WriteError::Abandoned { id, reason: reason.to_owned() }));
        true
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
        while self.finished.is_empty() && self.under_way.is_some() {
            self.wait_for(Duration::MAX);
        }
        self.finished.pop_front()
    }

    /// Waits for the write under way, at most this long. Whether there is none any more.
    pub fn wait_for(&mut self, patience: Duration) -> bool {
        let Some(UnderWay { id, result, .. }) = &self.under_way else { return true };
        let result = match result.recv_timeout(patience) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => return false,
            Err(RecvTimeoutError::Disconnected) => Err(WriteError::Stopped { id: *id }),
        };
        self.under_way = None;
        self.note(result);
        true
    }

    /// The newest checkpoint that this writer has committed.
    pub fn last_committed(&mut self) -> Option<CheckpointId> {
        self.collect();
        self.last_committed
    }

    /// Takes the result of a write that has ended.
    fn collect(&mut self) {
        let Some(UnderWay { id, result, .. }) = &self.under_way else { return };
        let result = match result.try_recv() {
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
        self.abandon("the process leaves");
        while let Some(result) = self.wait() {
            match result {
                Ok(Committed { id, .. }) => tracing::info!(checkpoint = %id, "checkpoint committed"),
                Err(error) => tracing::error!(error = %describe(&error), "checkpoint not written"),
            }
        }
    }
}

async fn write_and_retain(
    store: CheckpointStore,
    id: CheckpointId,
    mut work: Work,
    options: WriterOptions,
    stage: Arc<Stage>,
) -> Result<Committed, WriteError> {
    work.gather().await;
    let start = Instant::now();
    let commits = work.commits();
    let manner = Manner { parallel: options.threads, at: options.at };
    let bytes = write(&store, work, manner, &stage).await?;
    let duration = start.elapsed();
    let (removed, retention_problems) = match options.retention {
        Some(retention) if commits => retain(&store, id, retention).await,
        _ => (Vec::new(), Vec::new()),
    };
    Ok(Committed { id, bytes, duration, removed, retention_problems })
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
