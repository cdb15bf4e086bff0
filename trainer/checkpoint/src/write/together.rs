//! What the writers of one checkpoint tell each other, over a key-value store that lives as long as their membership.
//!
//! The committer (writer 0) opens the attempt, waits for every other writer's records, and leaves the outcome; the others wait for that.
//! Nobody waits for ever: the store ends every wait with the membership, a store that came back empty is noticed by the missing opening,
//! and the rest is bounded by a multiple of what the own part took. A committer that has failed says so as soon as there is a store to say
//! it in: others may come to theirs only then, and would wait for its opening until their patience ends.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{Stage, WriteError};
use crate::{id::CheckpointId, manifest::ShardRecord, plan::WritePlan};

/// How long the others are waited for at least: shares are equal, so they take about as long as the own one.
const LEAST_PATIENCE: Duration = Duration::from_mins(1);

/// And this many times as long as the own share took.
const PATIENCE_FACTOR: u32 = 4;

/// How often a writer that waits looks whether the attempt is still open.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Between two attempts to leave a failure in a store that does not answer: a coordinator that was started again is there within a second.
const SAY_AGAIN: Duration = Duration::from_millis(100);

/// The writers' key-value store. Its operations block, and fail as soon as the membership is over: then no writer of it can commit.
pub trait Meeting: fmt::Debug + Send + Sync {
    /// Sets a key.
    fn set(&self, key: &str, value: &[u8]) -> Result<(), MeetingError>;
    /// The value of a key, waiting for it at most this long; `None`: it was not set in that time.
    fn get(&self, key: &str, patience: Duration) -> Result<Option<Vec<u8>>, MeetingError>;
    /// Whether a key is there.
    fn contains(&self, key: &str) -> Result<bool, MeetingError>;
    /// Deletes a key; that it is not there is no error.
    fn delete(&self, key: &str) -> Result<(), MeetingError>;
    /// Whether the membership is over, so that no operation will succeed any more. Otherwise a store that fails may come back, empty.
    fn is_over(&self) -> bool;
}

/// The store did not do what it was asked for, most likely because the membership is over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct MeetingError {
    /// Why.
    pub reason: String,
}

/// What a writer says of its part.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
enum Report {
    /// Its files are in the store.
    Written { plan: String, shards: Vec<ShardRecord> },
    /// They are not.
    Failed { reason: String },
}

/// What the committer says of the whole.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
enum Outcome {
    /// The manifest is visible.
    Committed,
    /// The checkpoint does not exist.
    Failed { reason: String },
}

/// One writer's end of one attempt.
#[derive(Clone, Debug)]
pub(super) struct Together {
    meeting: Arc<dyn Meeting>,
    attempt: Attempt,
    begun: Instant,
}

/// Where the writers of an attempt leave their messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    pub(crate) id: CheckpointId,
    pub(crate) number: u64,
    pub(crate) writers: usize,
}

impl Attempt {
    fn key(self, what: &str) -> String {
        format!("checkpoint/{}/{}/{what}", self.number, self.id)
    }

    fn open_key(self) -> String {
        self.key("open")
    }

    fn part_key(self, writer: usize) -> String {
        self.key(&format!("part-{writer:05}"))
    }

    fn outcome_key(self) -> String {
        self.key("outcome")
    }

    fn all_keys(self) -> Vec<String> {
        (1..self.writers).map(|writer| self.part_key(writer)).chain([self.open_key(), self.outcome_key()]).collect()
    }
}

impl Together {
    pub(super) fn new(meeting: Arc<dyn Meeting>, attempt: Attempt) -> Self {
        Self { meeting, attempt, begun: Instant::now() }
    }

    /// Committer: from here on the others may report. The messages of the attempt before the last one go: whoever has reported in the last
    /// one had read them. Those of the last one stay: a slow writer may not have come to read its outcome yet. When the last one failed before
    /// all had reported, one that is slower still takes the older outcome for lost; nothing in the object store depends on it.
    pub(super) async fn open(&self, read: Option<Attempt>) -> Result<(), WriteError> {
        let (open, old) = (self.attempt.open_key(), read.map(Attempt::all_keys).unwrap_or_default());
        self.ask(move |meeting| {
            old.iter().try_for_each(|key| meeting.delete(key))?;
            meeting.set(&open, &[])
        })
        .await
    }

    /// Committer: every writer's records in the order of the plan's files, the own ones included.
    pub(super) async fn collect(&self, plan: &WritePlan, own: Vec<ShardRecord>) -> Result<Vec<ShardRecord>, WriteError> {
        let (patience, digest) = (self.patience(), plan.digest());
        let mut records = own;
        for writer in 1..plan.writers() {
            let report = self.wait_for(self.attempt.part_key(writer), writer, patience).await?;
            let part_error = |reason| WriteError::Part { id: self.attempt.id, writer, reason };
            match read(&report).map_err(part_error)? {
                Report::Failed { reason } => return Err(part_error(reason)),
                Report::Written { plan, .. } if plan != digest => return Err(WriteError::OtherPlan { id: self.attempt.id, writer }),
                // The order of writers is that of the files.
                Report::Written { shards, .. } => records.extend(shards),
            }
        }
        Ok(records)
    }

    /// Committer: proof that the membership that wrote the parts is not over, and its store still the one in which they were reported.
    pub(super) async fn fence(&self) -> Result<(), WriteError> {
        if self.is_open().await? { Ok(()) } else { Err(WriteError::StoreEmptied { id: self.attempt.id }) }
    }

    /// Committer: tells the others that the checkpoint is there. Whether it could changes nothing for it: all have reported, so they wait
    /// for the outcome, and that ends with the store.
    pub(super) async fn succeed(&self) {
        let key = self.attempt.outcome_key();
        if let Err(error) = self.ask(move |meeting| meeting.set(&key, &write(&Outcome::Committed))).await {
            tracing::debug!(checkpoint = %self.attempt.id, %error, "the other writers learn the outcome by the end of their membership");
        }
    }

    /// Committer: tells the others that there will be no checkpoint. The attempt is opened with it, perhaps again: those who still wait for
    /// that find the outcome. Ends with the membership, and when the write is given up.
    pub(super) async fn fail(&self, reason: String, stage: &Stage) {
        let (patience, outcome) = (self.patience(), write(&Outcome::Failed { reason }));
        let begin = Instant::now();
        loop {
            let (open, key, outcome) = (self.attempt.open_key(), self.attempt.outcome_key(), outcome.clone());
            let said = self.ask(move |meeting| {
                meeting.set(&key, &outcome)?;
                meeting.set(&open, &[])
            });
            let Err(error) = said.await else { return };
            if self.meeting.is_over() || !stage.is_under_way() || begin.elapsed() >= patience {
                tracing::debug!(checkpoint = %self.attempt.id, %error, "the other writers learn the outcome by the end of their membership");
                return;
            }
            tokio::time::sleep(SAY_AGAIN).await;
        }
    }

    /// The others: tells the committer of the own part.
    pub(super) async fn report(&self, writer: usize, plan: &WritePlan, part: Result<Vec<ShardRecord>, String>) -> Result<(), WriteError> {
        let report = part.map_or_else(|reason| Report::Failed { reason }, |shards| Report::Written { plan: plan.digest(), shards });
        let (open, key, patience) = (self.attempt.open_key(), self.attempt.part_key(writer), self.patience());
        let opened = self.ask(move |meeting| meeting.get(&open, patience)).await?;
        if opened.is_none() {
            return Err(WriteError::NoAnswer { id: self.attempt.id, writer: 0, patience });
        }
        self.ask(move |meeting| meeting.set(&key, &write(&report))).await
    }

    /// The others: waits for the outcome.
    pub(super) async fn outcome(&self) -> Result<(), WriteError> {
        let outcome = self.wait_for(self.attempt.outcome_key(), 0, self.patience()).await?;
        self.judge(&outcome)
    }

    /// The others: fails with the outcome if there is one already, and it is a failure.
    pub(super) async fn outcome_so_far(&self) -> Result<(), WriteError> {
        let key = self.attempt.outcome_key();
        let outcome = self.ask(move |meeting| meeting.get(&key, Duration::ZERO)).await?;
        outcome.map_or(Ok(()), |outcome| self.judge(&outcome))
    }

    fn judge(&self, outcome: &[u8]) -> Result<(), WriteError> {
        let not_committed = |reason| WriteError::NotCommitted { id: self.attempt.id, reason };
        match read(outcome).map_err(not_committed)? {
            Outcome::Committed => Ok(()),
            Outcome::Failed { reason } => Err(not_committed(reason)),
        }
    }

    fn patience(&self) -> Duration {
        LEAST_PATIENCE.saturating_add(self.begun.elapsed().saturating_mul(PATIENCE_FACTOR))
    }

    async fn is_open(&self) -> Result<bool, WriteError> {
        let open = self.attempt.open_key();
        self.ask(move |meeting| meeting.contains(&open)).await
    }

    async fn wait_for(&self, key: String, writer: usize, patience: Duration) -> Result<Vec<u8>, WriteError> {
        let begin = Instant::now();
        loop {
            let (wanted, slice) = (key.clone(), LOOK_AGAIN.min(patience.saturating_sub(begin.elapsed())));
            if let Some(value) = self.ask(move |meeting| meeting.get(&wanted, slice)).await? {
                return Ok(value);
            }
            if !self.is_open().await? {
                return Err(WriteError::StoreEmptied { id: self.attempt.id });
            }
            if begin.elapsed() >= patience {
                return Err(WriteError::NoAnswer { id: self.attempt.id, writer, patience });
            }
        }
    }

    async fn ask<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&dyn Meeting) -> Result<T, MeetingError> + Send + 'static,
    ) -> Result<T, WriteError> {
        let (meeting, id) = (Arc::clone(&self.meeting), self.attempt.id);
        match tokio::task::spawn_blocking(move || operation(&*meeting)).await {
            Ok(result) => result.map_err(|source| WriteError::Meeting { id, source }),
            Err(_) => Err(WriteError::Stopped { id }),
        }
    }
}

fn write<T: Serialize>(message: &T) -> Vec<u8> {
    // Of strings and numbers only: there is nothing in it that JSON cannot express.
    serde_json::to_vec(message).unwrap_or_default()
}

fn read<T: for<'a> Deserialize<'a>>(message: &[u8]) -> Result<T, String> {
    serde_json::from_slice(message).map_err(|error| format!("what it said cannot be read ({error}): use images of one release"))
}
