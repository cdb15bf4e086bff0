//! When a checkpoint is due, and handing it to the background writer.
//!
//! Comes in: the learner after a step. Goes out: [`Record`]s of what was committed or failed. Training stands still only for the copy to
//! host memory; a write that fails is reported and tried again at the next checkpoint.

use std::{
    num::{NonZeroU32, NonZeroU64},
    time::Instant,
};

use bytes::Bytes;
use lcl_checkpoint::{
    CheckpointStore, CheckpointWriter, Committed, Dtype, Generation, Retention, Snapshot, SubmitError, TensorData, WriteError,
    WriterOptions,
};
use lcl_torch::{HostState, Learner, LearnerError};
use lcl_trainer_config::CheckpointConfig;
use serde_json::Value;

use crate::{
    chain,
    records::{CheckpointCommitted, CheckpointFailed, GenerationRecord, Record},
};

/// What a checkpoint says besides its tensors.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Completed steps.
    pub completed_steps: u64,
    /// Digest of the run's identity.
    pub config_digest: String,
    /// Identity, configuration and counters, to go on with.
    pub metadata: Value,
}

/// The last checkpoint of a process is not in the store.
#[derive(Debug, thiserror::Error)]
pub enum FinalSaveError {
    /// The state could not be copied.
    #[error("cannot copy the state of step {step} to host memory")]
    Copy {
        /// Completed steps.
        step: u64,
        /// Why.
        source: LearnerError,
    },
    /// It could not be handed over or written.
    #[error("the last checkpoint, of step {step}, could not be written: {reason}")]
    NotWritten {
        /// Completed steps.
        step: u64,
        /// Why.
        reason: String,
    },
}

/// Saves checkpoints in the background.
#[derive(Debug)]
pub struct Saver {
    writer: CheckpointWriter,
    host: HostState,
    policy: CheckpointConfig,
    generation: Generation,
    /// Seconds training stood still for the checkpoint that is being written.
    stall_seconds: f64,
    failures: u64,
    /// Completed steps of the newest checkpoint in the store.
    committed: Option<u64>,
    /// Completed steps of the checkpoint that is being written.
    under_way: Option<u64>,
}

impl Saver {
    /// A saver for a run whose newest checkpoint has `committed` steps. Takes the host memory for copies of the learner's state.
    #[must_use]
    pub fn new(
        store: CheckpointStore,
        policy: &CheckpointConfig,
        generation: Generation,
        committed: Option<u64>,
        learner: &Learner,
    ) -> Self {
        let retention = Retention {
            keep_last: NonZeroU32::new(policy.keep_last).unwrap_or(NonZeroU32::MIN),
            keep_every_steps: policy.keep_every_steps.and_then(NonZeroU64::new),
        };
        let options = WriterOptions { retention: Some(retention), ..WriterOptions::default() };
        Self {
            writer: CheckpointWriter::new(store, options),
            host: learner.prepare_host_state(),
            policy: policy.clone(),
            generation,
            stall_seconds: 0.0,
            failures: 0,
            committed,
            under_way: None,
        }
    }

    /// Whether a checkpoint is to be taken after `completed` steps.
    #[must_use]
    pub fn is_due(&self, completed: u64) -> bool {
        completed.is_multiple_of(self.policy.every_steps) || self.is_kept_for_good(completed)
    }

    fn is_kept_for_good(&self, completed: u64) -> bool {
        self.policy.keep_every_steps.is_some_and(|every| completed.is_multiple_of(every))
    }

    /// Copies the state and hands it to the writer. While the one before is still being written, this one is left out with a warning,
    /// unless it is one that is kept for good: then training waits.
    pub fn save(&mut self, learner: &Learner, facts: Facts) -> Result<Vec<Record>, LearnerError> {
        let mut records = self.poll();
        if self.writer.is_busy() {
            if !self.is_kept_for_good(facts.completed_steps) {
                tracing::warn!(
                    step = facts.completed_steps,
                    still_writing = self.under_way,
                    "checkpoint left out: the one before is still being written; consider a greater checkpoint.everySteps"
                );
                return Ok(records);
            }
            records.extend(self.wait());
        }
        let step = facts.completed_steps;
        if let Err(error) = self.submit(learner, facts)? {
            records.push(self.failed(step, chain(&error)));
        }
        Ok(records)
    }

    /// Saves the last state of the process and waits until it is in the store. Does nothing when it is there already.
    pub fn finish(&mut self, learner: &Learner, facts: Facts) -> (Vec<Record>, Result<(), FinalSaveError>) {
        let step = facts.completed_steps;
        let mut records = self.wait();
        if self.committed == Some(step) {
            return (records, Ok(()));
        }
        match self.submit(learner, facts) {
            Err(source) => return (records, Err(FinalSaveError::Copy { step, source })),
            Ok(Err(error)) => records.push(self.failed(step, chain(&error))),
            Ok(Ok(())) => records.extend(self.wait()),
        }
        let reason = records.iter().rev().find_map(|record| match record {
            Record::CheckpointFailed(failed) if failed.completed_steps == step => Some(failed.reason.clone()),
            _ => None,
        });
        let result = if self.committed == Some(step) {
            Ok(())
        } else {
            Err(FinalSaveError::NotWritten { step, reason: reason.unwrap_or_else(|| "the writer gave no reason".to_owned()) })
        };
        (records, result)
    }

    /// What happened since the last call.
    pub fn poll(&mut self) -> Vec<Record> {
        let mut records = Vec::new();
        while let Some(result) = self.writer.poll() {
            records.push(self.note(result));
        }
        records
    }

    /// Completed steps of the newest checkpoint in the store.
    #[must_use]
    pub fn committed(&self) -> Option<u64> {
        self.committed
    }

    /// Waits for the checkpoint that is being written.
    pub fn wait_for_writer(&mut self) -> Vec<Record> {
        self.wait()
    }

    fn wait(&mut self) -> Vec<Record> {
        let mut records = Vec::new();
        while let Some(result) = self.writer.wait() {
            records.push(self.note(result));
        }
        records
    }

    fn submit(&mut self, learner: &Learner, facts: Facts) -> Result<Result<(), SubmitError>, LearnerError> {
        let begin = Instant::now();
        learner.copy_state_into(&mut self.host)?;
        let tensors = self
            .host
            .tensors()
            .iter()
            .map(|tensor| TensorData {
                name: tensor.name.clone(),
                shape: tensor.shape.clone(),
                dtype: Dtype::F32,
                data: Bytes::from_owner(tensor.bytes.clone()),
            })
            .collect();
        let snapshot = Snapshot {
            step: facts.completed_steps,
            generation: self.generation,
            config_digest: facts.config_digest,
            metadata: facts.metadata,
            tensors,
        };
        let submitted = self.writer.submit(snapshot);
        self.stall_seconds = begin.elapsed().as_secs_f64();
        if submitted.is_ok() {
            self.under_way = Some(facts.completed_steps);
        }
        Ok(submitted)
    }

    fn note(&mut self, result: Result<Committed, WriteError>) -> Record {
        let step = self.under_way.take().unwrap_or_default();
        match result {
            Ok(committed) => {
                self.committed = Some(committed.id.step);
                Record::CheckpointCommitted(CheckpointCommitted {
                    completed_steps: committed.id.step,
                    generation: self.generation_record(),
                    stall_seconds: self.stall_seconds,
                    write_seconds: committed.duration.as_secs_f64(),
                    bytes: committed.bytes,
                })
            }
            Err(error) => self.failed(step, chain(&error)),
        }
    }

    fn failed(&mut self, completed_steps: u64, reason: String) -> Record {
        self.failures += 1;
        tracing::warn!(step = completed_steps, failures = self.failures, reason, "checkpoint not written; tried again at the next one");
        Record::CheckpointFailed(CheckpointFailed {
            completed_steps,
            generation: self.generation_record(),
            reason,
            failures: self.failures,
        })
    }

    fn generation_record(&self) -> GenerationRecord {
        GenerationRecord { epoch: self.generation.epoch, n: self.generation.n }
    }
}
