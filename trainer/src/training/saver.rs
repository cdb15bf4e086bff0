//! When a checkpoint is due, and handing this process's part of it to the background writer.
//!
//! Comes in: the learner after a step; in a group, with whom it is shared. Goes out: [`Record`]s of what was committed or failed. A checkpoint
//! that is due is copied from a GPU while the next step computes ([`Learner::copy_state_beside`]): training stands still as long as that step's
//! update has to wait for the copy. On a processor, where a copy takes from the step what it takes, and for a checkpoint that is waited for,
//! it is made at once. A write that fails, or a copy beside training, is reported and tried again at the next checkpoint.
//!
//! The members of a group call it at the same steps with the same answers to every question that is not a function of the step: whether
//! somebody is still busy, and whether the state is in the store already.

use std::{
    env, mem,
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use lcl_checkpoint::{
    CheckpointId, CheckpointStore, CheckpointWriter, ComingTensors, Committed, Dtype, Generation, Meeting, Moment, Part, Retention,
    Snapshot, SubmitError, TensorData, TensorSpec, WriteError, WritePlan, WriterOptions,
};
use lcl_torch::{Device, HostState, HostTensor, Learner, LearnerError, StateCopy};
use lcl_trainer_config::CheckpointConfig;
use serde_json::Value;

use crate::{
    chain,
    processes::fail_point::{self, Place},
    run::records::{CheckpointCommitted, CheckpointFailed, GenerationRecord, Record},
};

/// Longest wait for a checkpoint of a group that has to be there before it goes on: far more than one of a large model takes on a slow
/// store, and still an end when a member's store hangs.
pub(super) const LONGEST_WAIT: Duration = Duration::from_mins(10);
/// How often who waits looks whether its group is still there.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

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
    /// The own part is as it should be, but another member's is not, or the group is over: the next group tries again.
    #[error("the last checkpoint, of step {step}, was given up: {reason}")]
    Disbanded {
        /// Completed steps.
        step: u64,
        /// Why.
        reason: String,
    },
}

/// With whom a member saves.
#[derive(Debug)]
pub(super) struct Together {
    /// The group's.
    pub(super) generation: Generation,
    /// The member's rank; rank 0 commits.
    pub(super) rank: usize,
    /// Members of the group.
    pub(super) world: NonZeroUsize,
    /// Where they meet.
    pub(super) meeting: Arc<dyn Meeting>,
}

/// Those who write a checkpoint together, at work.
#[derive(Debug)]
struct Writers {
    plan: Arc<WritePlan>,
    rank: usize,
    meeting: Arc<dyn Meeting>,
    /// Checkpoints that this group has tried to write.
    attempts: u64,
}

/// Why the last checkpoint that failed did.
#[derive(Debug)]
struct Failure {
    step: u64,
    reason: String,
    is_of_others: bool,
}

/// The host memory for copies.
#[derive(Debug)]
enum Memory {
    Idle(HostState),
    /// A copy is being made, or was and is being written.
    Copying(StateCopy),
}

impl Memory {
    /// For the next copy; waits for the end of the one before.
    fn take(&mut self) -> HostState {
        match mem::replace(self, Self::Idle(HostState::default())) {
            Self::Idle(memory) => memory,
            Self::Copying(copy) => copy.into_memory(),
        }
    }
}

/// Saves checkpoints in the background.
#[derive(Debug)]
pub struct Saver {
    writer: CheckpointWriter,
    memory: Memory,
    policy: CheckpointConfig,
    /// Whether copies for checkpoints that are due are made beside the next step.
    copies_beside: bool,
    generation: Generation,
    /// `None`: this process writes alone.
    writers: Option<Writers>,
    /// How long training stood still for the checkpoint that is being written until its copy was begun.
    stall: Duration,
    failures: u64,
    last_failure: Option<Failure>,
    /// Completed steps of the newest checkpoint in the store, as far as it is known here.
    committed: Option<u64>,
    /// The checkpoint that is being written.
    under_way: Option<CheckpointId>,
}

impl Saver {
    /// A saver for a run whose newest checkpoint has `committed` steps and that only this process writes. Takes the host memory for copies
    /// of the learner's state.
    #[must_use]
    pub fn new(
        store: CheckpointStore,
        policy: &CheckpointConfig,
        generation: Generation,
        committed: Option<u64>,
        learner: &Learner,
    ) -> Self {
        Self::with(store, policy, (generation, committed), learner.prepare_host_state(), None, learner.model().device())
    }

    /// A saver for a member of a group. Takes the host memory for its part.
    pub(super) fn shared(
        store: CheckpointStore,
        policy: &CheckpointConfig,
        committed: Option<u64>,
        together: Together,
        learner: &Learner,
    ) -> Self {
        let generation = together.generation;
        let (writers, host) = Writers::begin(together, learner);
        Self::with(store, policy, (generation, committed), host, Some(writers), learner.model().device())
    }

    fn with(
        store: CheckpointStore,
        policy: &CheckpointConfig,
        (generation, committed): (Generation, Option<u64>),
        host: HostState,
        writers: Option<Writers>,
        device: Device,
    ) -> Self {
        let retention = Retention {
            keep_last: NonZeroU32::new(policy.keep_last).unwrap_or(NonZeroU32::MIN),
            keep_every_steps: policy.keep_every_steps.and_then(NonZeroU64::new),
        };
        let options = WriterOptions { retention: Some(retention), at: Some(reach), ..WriterOptions::default() };
        Self {
            writer: CheckpointWriter::new(store, options),
            memory: Memory::Idle(host),
            copies_beside: device.is_cuda() || env::var_os(fail_point::COPY_BESIDE).is_some(),
            policy: policy.clone(),
            generation,
            writers,
            stall: Duration::ZERO,
            failures: 0,
            last_failure: None,
            committed,
            under_way: None,
        }
    }

    /// From here on the members of another group write together.
    pub(super) fn join(&mut self, together: Together, learner: &Learner) {
        if self.generation == together.generation && self.writers.is_some() {
            return;
        }
        self.generation = together.generation;
        let (writers, host) = Writers::begin(together, learner);
        (self.writers, self.memory) = (Some(writers), Memory::Idle(host));
    }

    /// Whether a checkpoint is to be taken after `completed` steps.
    #[must_use]
    pub fn is_due(&self, completed: u64) -> bool {
        completed.is_multiple_of(self.policy.every_steps) || self.is_kept_for_good(completed)
    }

    fn is_kept_for_good(&self, completed: u64) -> bool {
        self.policy.keep_every_steps.is_some_and(|every| completed.is_multiple_of(every))
    }

    /// Whether a checkpoint is being written.
    #[must_use]
    pub fn is_busy(&mut self) -> bool {
        self.writer.is_busy()
    }

    /// Copies the state and hands it to the writer. While the one before is still being written, this one is left out with a warning,
    /// unless it is one that is kept for good: then training waits.
    pub fn save(&mut self, learner: &Learner, facts: Facts) -> Result<Vec<Record>, LearnerError> {
        let is_busy = self.is_busy();
        self.save_unless(is_busy, learner, facts, &|| false)
    }

    /// As [`Self::save`], where `is_busy` says whether any member of the group was busy, and `is_over` whether the group is.
    pub(super) fn save_unless(
        &mut self,
        is_busy: bool,
        learner: &Learner,
        facts: Facts,
        is_over: &dyn Fn() -> bool,
    ) -> Result<Vec<Record>, LearnerError> {
        let mut records = self.poll();
        if is_busy {
            if !self.is_kept_for_good(facts.completed_steps) {
                tracing::warn!(
                    step = facts.completed_steps,
                    still_writing = self.under_way.map(|id| id.step),
                    "checkpoint left out: the one before is still being written; consider a greater spec.checkpoint.everySteps"
                );
                return Ok(records);
            }
            records.extend(self.wait(LONGEST_WAIT, is_over));
        }
        let step = facts.completed_steps;
        let submitted = if self.copies_beside { self.submit_beside(learner, facts)? } else { self.submit(learner, facts)? };
        if let Err(error) = submitted {
            records.push(self.failed(step, chain(&error), false));
        }
        Ok(records)
    }

    /// Saves the last state of the process and waits until it is in the store. Does nothing when it is there already.
    pub fn finish(&mut self, learner: &Learner, facts: Facts) -> (Vec<Record>, Result<(), FinalSaveError>) {
        let mut records = self.wait_for_writer();
        if self.committed == Some(facts.completed_steps) {
            return (records, Ok(()));
        }
        let (more, result) = self.save_and_wait(learner, facts, &|| false);
        records.extend(more);
        (records, result)
    }

    /// As [`Self::finish`], by this process alone, whoever wrote with it before. For one whose group is over.
    pub(super) fn finish_alone(&mut self, learner: &Learner, facts: Facts) -> (Vec<Record>, Result<(), FinalSaveError>) {
        if self.writers.take().is_some() {
            self.memory = Memory::Idle(learner.prepare_host_state());
        }
        self.finish(learner, facts)
    }

    /// Saves the state of a step, and waits until it is in the store or the group is over.
    pub(super) fn save_and_wait(
        &mut self,
        learner: &Learner,
        facts: Facts,
        is_over: &dyn Fn() -> bool,
    ) -> (Vec<Record>, Result<(), FinalSaveError>) {
        let step = facts.completed_steps;
        let mut records = Vec::new();
        match self.submit(learner, facts) {
            Err(source) => return (records, Err(FinalSaveError::Copy { step, source })),
            Ok(Err(error)) => records.push(self.failed(step, chain(&error), false)),
            Ok(Ok(())) => records.extend(self.wait(LONGEST_WAIT, is_over)),
        }
        if self.committed == Some(step) {
            return (records, Ok(()));
        }
        let result = match self.last_failure.take().filter(|failure| failure.step == step) {
            Some(Failure { reason, is_of_others: true, .. }) => FinalSaveError::Disbanded { step, reason },
            Some(Failure { reason, .. }) => FinalSaveError::NotWritten { step, reason },
            // It is being committed or cleared away, and the store does not answer.
            None => FinalSaveError::NotWritten { step, reason: format!("the store did not answer within {LONGEST_WAIT:?}") },
        };
        (records, Err(result))
    }

    /// What happened since the last call.
    pub fn poll(&mut self) -> Vec<Record> {
        let mut records = Vec::new();
        while let Some(result) = self.writer.poll() {
            records.push(self.note(result));
        }
        records
    }

    /// Completed steps of the newest checkpoint in the store, as far as this process knows.
    #[must_use]
    pub fn committed(&self) -> Option<u64> {
        self.committed
    }

    /// Sets what [`Self::committed`] says, when the state was replaced by one of a checkpoint of that many steps, or of none.
    pub(super) fn set_committed(&mut self, committed: Option<u64>) {
        self.committed = committed;
    }

    /// Waits for the checkpoint that is being written.
    pub fn wait_for_writer(&mut self) -> Vec<Record> {
        self.wait(LONGEST_WAIT, &|| false)
    }

    /// Waits for the checkpoint that is being written. What others write with this member is given up when that takes too long or
    /// `is_over` says so; what is written alone is waited for in any case.
    pub(super) fn wait(&mut self, patience: Duration, is_over: &dyn Fn() -> bool) -> Vec<Record> {
        let begin = Instant::now();
        while self.is_busy() && !self.writer.wait_for(LOOK_AGAIN) {
            let reason = if is_over() {
                "its group is over".to_owned()
            } else if begin.elapsed() >= patience {
                format!("it was not complete within {patience:?}")
            } else {
                continue;
            };
            if !self.writer.abandon(&reason) && self.writers.is_some() {
                // About to be visible, or being cleared away: its result comes later.
                break;
            }
        }
        self.poll()
    }

    /// The group is over: what its members were writing together is given up, unless it is about to be visible.
    pub(super) fn disband(&mut self, reason: &str) -> Vec<Record> {
        self.writer.abandon(reason);
        self.poll()
    }

    /// Copies the state at once.
    fn submit(&mut self, learner: &Learner, facts: Facts) -> Result<Result<(), SubmitError>, LearnerError> {
        let begin = Instant::now();
        let mut memory = self.memory.take();
        let copied = learner.copy_state_into(&mut memory);
        let tensors = copied.is_ok().then(|| data_of(memory.tensors()));
        self.memory = Memory::Idle(memory);
        copied?;
        let Facts { completed_steps: step, config_digest, metadata } = facts;
        let (id, generation) = (CheckpointId { step, generation: self.generation }, self.generation);
        let tensors = tensors.unwrap_or_default();
        let submitted = match &mut self.writers {
            None => self.writer.submit(Snapshot { step, generation, config_digest, metadata, tensors }),
            Some(writers) => self.writer.submit_part(writers.part(id, tensors, config_digest, metadata)),
        };
        self.begun(id, begin, &submitted);
        Ok(submitted)
    }

    /// Begins to copy the state, which the next step computes beside.
    fn submit_beside(&mut self, learner: &Learner, facts: Facts) -> Result<Result<(), SubmitError>, LearnerError> {
        let begin = Instant::now();
        let (handover, tensors) = ComingTensors::new();
        let memory = self.memory.take();
        if let Some(failure) = memory.lock_failure() {
            tracing::debug!(error = chain(failure), "copies for checkpoints do not run beside training");
        }
        let done = |copied: Result<Vec<HostTensor>, _>| handover.give(copied.map(data_of).map_err(|error| chain(&error)));
        self.memory = Memory::Copying(learner.copy_state_beside(memory, done)?);
        let Facts { completed_steps: step, config_digest, metadata } = facts;
        let (id, generation) = (CheckpointId { step, generation: self.generation }, self.generation);
        let submitted = match &mut self.writers {
            None => {
                let plan = Arc::new(WritePlan::new(specs_of(learner), NonZeroUsize::MIN, None));
                self.writer.submit_coming(Snapshot { step, generation, config_digest, metadata, tensors }, plan)
            }
            Some(writers) => self.writer.submit_coming_part(writers.part(id, tensors, config_digest, metadata)),
        };
        self.begun(id, begin, &submitted);
        Ok(submitted)
    }

    fn begun(&mut self, id: CheckpointId, begin: Instant, submitted: &Result<(), SubmitError>) {
        self.stall = begin.elapsed();
        if submitted.is_ok() {
            self.under_way = Some(id);
        }
    }

    /// How long training stood still for the checkpoint that was written last.
    fn stall_seconds(&self) -> f64 {
        let waited = if let Memory::Copying(copy) = &self.memory { copy.waited() } else { Duration::ZERO };
        (self.stall + waited).as_secs_f64()
    }

    fn note(&mut self, result: Result<Committed, WriteError>) -> Record {
        let id = self.under_way.take().unwrap_or(CheckpointId { step: 0, generation: self.generation });
        match result {
            Ok(committed) => {
                self.committed = Some(committed.id.step);
                Record::CheckpointCommitted(CheckpointCommitted {
                    completed_steps: committed.id.step,
                    generation: record_of(committed.id.generation),
                    stall_seconds: self.stall_seconds(),
                    write_seconds: committed.duration.as_secs_f64(),
                    bytes: committed.bytes,
                })
            }
            Err(error) => self.failed_in(id, chain(&error), error.is_of_others()),
        }
    }

    fn failed(&mut self, step: u64, reason: String, is_of_others: bool) -> Record {
        self.failed_in(CheckpointId { step, generation: self.generation }, reason, is_of_others)
    }

    fn failed_in(&mut self, id: CheckpointId, reason: String, is_of_others: bool) -> Record {
        self.failures += 1;
        let (step, failures) = (id.step, self.failures);
        tracing::warn!(step, failures, reason, "checkpoint not written; tried again at the next one");
        self.last_failure = Some(Failure { step, reason: reason.clone(), is_of_others });
        Record::CheckpointFailed(CheckpointFailed { completed_steps: step, generation: record_of(id.generation), reason, failures })
    }
}

impl Writers {
    fn begin(together: Together, learner: &Learner) -> (Self, HostState) {
        let Together { rank, world, meeting, .. } = together;
        let plan = WritePlan::new(specs_of(learner), world, None);
        let host = learner.prepare_host_part(plan.tensors_of(rank).map(|tensor| tensor.name.clone()));
        (Self { plan: Arc::new(plan), rank, meeting, attempts: 0 }, host)
    }

    /// The own part of the next attempt.
    fn part<T>(&mut self, id: CheckpointId, tensors: T, config_digest: String, metadata: Value) -> Part<T> {
        self.attempts += 1;
        let (plan, meeting) = (Arc::clone(&self.plan), Arc::clone(&self.meeting));
        Part { id, plan, writer: self.rank, tensors, config_digest, metadata, meeting, attempt: self.attempts }
    }
}

fn specs_of(learner: &Learner) -> Vec<TensorSpec> {
    let spec = |(name, tensor): (String, lcl_torch::Tensor)| TensorSpec {
        name,
        shape: tensor.size().iter().map(|size| *size as usize).collect(),
        dtype: Dtype::F32,
    };
    learner.state().into_iter().map(spec).collect()
}

fn data_of(tensors: Vec<HostTensor>) -> Vec<TensorData> {
    let data = |HostTensor { name, shape, bytes }| TensorData { name, shape, dtype: Dtype::F32, data: Bytes::from_owner(bytes) };
    tensors.into_iter().map(data).collect()
}

fn record_of(generation: Generation) -> GenerationRecord {
    GenerationRecord { epoch: generation.epoch, n: generation.n }
}

/// Points at which a test may have this process die.
fn reach(moment: Moment) {
    fail_point::reach(match moment {
        Moment::ShardsWritten => Place::Shard,
        Moment::BeforeManifest => Place::Manifest,
    });
}
