//! What happens in a run: the lines of `metrics.jsonl` (one a step) and of `run.jsonl` (everything else).
//!
//! The step lines are the ledger too: which slots of which pass a step trained on, in which generation, and what it left out.
//! Everything else that reports a run (terminal, `TensorBoard` files, the HTML page) is made from these records.
//! This module holds no file and no clock.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// Something that happened. `event` says what when it is printed or written to `run.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Record {
    /// A process began or went on with the run.
    Started(Started),
    /// One step.
    Step(Box<StepRecord>),
    /// A checkpoint is complete in the store.
    CheckpointCommitted(CheckpointCommitted),
    /// A checkpoint could not be written; training goes on.
    CheckpointFailed(CheckpointFailed),
    /// A process left the run in an orderly way.
    Ended(Ended),
}

/// A process began or went on with the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Started {
    /// Steps that were complete: 0 for a new run, else those of the restored checkpoint.
    pub completed_steps: u64,
    /// Who writes from here on.
    #[serde(rename = "group", alias = "generation")]
    pub generation: GenerationRecord,
    /// Unix time in seconds.
    pub time: f64,
    /// Name of the job.
    pub job: String,
    /// Steps the run shall have at its end.
    pub steps: u64,
    /// Steps of the learning rate's linear part. Older lines lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u64>,
    /// Samples a step.
    pub global_batch_size: u64,
    /// Samples a pass.
    pub samples_per_pass: u64,
    /// Numbers in all parameters.
    pub parameters: u64,
    /// Where the model lives, as `cpu` or `cuda:0`.
    pub device: String,
}

/// Who wrote a line. A later writer has a greater number and its lines count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GenerationRecord {
    /// Grows with every start of the run.
    pub epoch: u64,
    /// Grows with every change of the membership within an epoch.
    #[serde(rename = "number", alias = "n")]
    pub n: u64,
}

impl fmt::Display for GenerationRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { epoch, n } = *self;
        fmt::Display::fmt(&lcl_protocol::Generation { epoch, n }, f)
    }
}

impl From<lcl_protocol::Generation> for GenerationRecord {
    fn from(generation: lcl_protocol::Generation) -> Self {
        Self { epoch: generation.epoch, n: generation.n }
    }
}

/// One step: its place in the data, its losses and what it took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Number of the step, from 0.
    pub step: u64,
    /// Who computed it.
    #[serde(rename = "group", alias = "generation")]
    pub generation: GenerationRecord,
    /// Unix time in seconds at the step's end.
    pub time: f64,
    /// The slots trained, by pass: two entries when the batch runs across the end of a pass.
    pub slots: Vec<SlotRange>,
    /// Sum of BLAKE3 over (slot, pass, sample) of every row: two computations of a step on the same samples agree in it.
    pub samples_digest: String,
    /// Sequences in the batch, left-out samples not counted.
    pub rows: u64,
    /// Images in the batch.
    pub images: u64,
    /// Tokens in the batch, padding not counted.
    pub tokens: u64,
    /// The sources of a mixture, in its order. Their passes are their own; `slots` then has one entry, of pass 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceRecord>,
    /// Samples whose slot stayed empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped_samples: Vec<SkippedSample>,
    /// Documents that gave no sequence, and which took their place: each of these is an extra use of a sample, beside its own turn in the pass.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub redrawn_samples: Vec<RedrawnSample>,
    /// Images that were used although their files have faults that cost no pixel, by fault.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tolerated_images: BTreeMap<String, u64>,
    /// Whether the update was left out: a loss or a gradient was not finite, or no sample of the batch could be used.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub update_skipped: bool,
    /// Weighted sum of the losses.
    #[serde(with = "nullable")]
    pub loss: f64,
    /// Generation loss, unweighted.
    #[serde(with = "nullable")]
    pub generation_loss: f64,
    /// Contrastive loss, unweighted.
    #[serde(with = "nullable")]
    pub contrastive_loss: f64,
    /// L2 norm of all gradients before clipping.
    #[serde(with = "nullable")]
    pub gradient_norm: f64,
    /// Learning rate of the update.
    pub learning_rate: f64,
    /// exp of the temperature parameter after the update.
    #[serde(with = "nullable")]
    pub logit_scale: f64,
    /// Rows over the time since the previous step's end.
    pub samples_per_second: f64,
    /// Seconds from having the batch to the end of the update.
    pub step_seconds: f64,
    /// Seconds the step waited for its batch.
    pub data_wait_seconds: f64,
    /// What the data threads of the member that writes this did since the step before. Older lines lack it, and those of a member without slots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_stages: Option<DataStages>,
}

/// Seconds of all data threads together, by what they did. They work ahead: it is not the step's own batch that they prepared meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataStages {
    /// Threads.
    pub threads: u64,
    /// Reading from storage.
    pub read: f64,
    /// Decoding and resizing images.
    pub decode: f64,
    /// Tokenizing, laying out and putting batches together.
    pub compose: f64,
    /// Waiting because enough batches were ready.
    pub wait: f64,
}

impl DataStages {
    /// From what a loader measured.
    #[must_use]
    pub fn new(threads: usize, stages: lcl_data::Stages) -> Self {
        let lcl_data::Stages { read, decode, compose, wait } = stages;
        let [read, decode, compose, wait] = [read, decode, compose, wait].map(|time| time.as_secs_f64());
        Self { threads: threads as u64, read, decode, compose, wait }
    }

    /// The stage that the threads are longest at, and its part of the time in which they work.
    #[must_use]
    pub fn limit(&self) -> (&'static str, f64) {
        let stages = [("read", self.read), ("decode", self.decode), ("compose", self.compose)];
        let longest = stages.into_iter().fold(("read", 0.0), |longest, stage| if stage.1 > longest.1 { stage } else { longest });
        (longest.0, longest.1 / (self.read + self.decode + self.compose).max(f64::MIN_POSITIVE))
    }
}

/// Consecutive slots of one pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRange {
    /// The pass, from 0.
    pub pass: u64,
    /// First slot.
    pub first: u64,
    /// One past the last slot.
    pub end: u64,
}

/// A sample whose slot stayed empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedSample {
    /// Its slot in the global batch.
    pub slot: u64,
    /// Its pass.
    pub pass: u64,
    /// Its number in the data set.
    pub sample: u64,
    /// Why it was left out.
    pub cause: String,
}

/// What a step took of a source of a mixture, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// Its name.
    pub name: String,
    /// First position of its own sequence of passes that belongs to this step.
    pub first: u64,
    /// Position after the last one: where the next step begins.
    pub end: u64,
    /// Sequences of it in the batch, left-out samples not counted.
    pub rows: u64,
    /// Images in these.
    pub images: u64,
    /// Tokens in these.
    pub tokens: u64,
    /// Tokens of these that were predicted. Older lines lack it.
    #[serde(default)]
    pub predicted_tokens: u64,
    /// Generation loss of its rows, unweighted: the mean over all of its predicted tokens in the global batch. Absent without any, and when it
    /// is not finite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation_loss: Option<f64>,
    /// Images of these that had a context before them and so were contrasted, with all others of the step. Older lines lack it.
    #[serde(default)]
    pub contrastive_images: u64,
    /// Contrastive loss of its rows, unweighted: the mean over these images. Absent without any, and when it is not finite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contrastive_loss: Option<f64>,
    /// Its part of the longest wait that a member had for its part of the batch: in the proportion of the time that this member's data threads
    /// were at the slots of each source. Those of all sources add up to that wait. Older lines lack it.
    #[serde(default)]
    pub data_wait_seconds: f64,
}

/// A sample in whose place another one was used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RedrawnSample {
    /// Its slot in the global batch.
    pub slot: u64,
    /// Its pass.
    pub pass: u64,
    /// Its number in the data set.
    pub sample: u64,
    /// Why it gave no sequence.
    pub cause: String,
    /// How many were drawn in its place until one gave a sequence.
    pub attempts: u32,
    /// The number of that one.
    pub used: u64,
}

/// A checkpoint is complete in the store.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointCommitted {
    /// Completed steps in it.
    pub completed_steps: u64,
    /// Who wrote it.
    #[serde(rename = "group", alias = "generation")]
    pub generation: GenerationRecord,
    /// Seconds that training stood still for the copy to host memory on the process that records it: to begin it, and until it was done when
    /// the next update had to wait for it. In a group each member copies its part, so the others stand still for about as long.
    pub stall_seconds: f64,
    /// Seconds from the end of the copy until the store had everything, of all members.
    pub write_seconds: f64,
    /// Bytes of its files.
    pub bytes: u64,
}

/// A checkpoint could not be written; training goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointFailed {
    /// Completed steps in it.
    pub completed_steps: u64,
    /// Who tried.
    #[serde(rename = "group", alias = "generation")]
    pub generation: GenerationRecord,
    /// What went wrong.
    pub reason: String,
    /// Failures of this process so far, this one included.
    pub failures: u64,
}

/// A process left the run in an orderly way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// Completed steps.
    pub completed_steps: u64,
    /// Who leaves.
    #[serde(rename = "group", alias = "generation")]
    pub generation: GenerationRecord,
    /// Unix time in seconds.
    pub time: f64,
    /// Why.
    pub reason: EndReason,
    /// Hash over names, shapes and bytes of all parameters.
    pub parameter_hash: String,
    /// Samples left out by this process, by cause.
    pub skipped_samples: BTreeMap<String, u64>,
    /// Images used by this process although their files have faults that cost no pixel, by fault.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tolerated_images: BTreeMap<String, u64>,
    /// Steps of this process whose update was left out.
    pub skipped_updates: u64,
    /// Seconds from the first step's beginning to the last one's end.
    pub training_seconds: f64,
    /// Rows this process trained on.
    pub rows: u64,
}

/// Why a process left the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// The last step is done.
    Completed,
    /// Asked to stop.
    Preempted,
    /// Too many steps in a row without an update: a loss or gradient was not finite, or no sample was usable.
    Diverged,
    /// Too many records could not be used.
    BadData,
    /// The last step is done, and none of the whole run had an update.
    NothingTrained,
}

impl Record {
    /// Steps complete when the record was written. A run that goes on from `n` steps keeps exactly the records up to `n`.
    #[must_use]
    pub fn completed_steps(&self) -> u64 {
        match self {
            Self::Started(record) => record.completed_steps,
            Self::Step(record) => record.step.saturating_add(1),
            Self::CheckpointCommitted(record) => record.completed_steps,
            Self::CheckpointFailed(record) => record.completed_steps,
            Self::Ended(record) => record.completed_steps,
        }
    }
}

/// JSON has no word for NaN and infinity: both are written as `null` and read as NaN.
mod nullable {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        value.is_finite().then_some(*value).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A step record with plain figures, for tests of what is made from it.
    pub(crate) fn step_record(step: u64) -> StepRecord {
        StepRecord {
            step,
            generation: GenerationRecord { epoch: 1, n: 0 },
            time: 1_000.0 + step as f64,
            slots: vec![SlotRange { pass: 0, first: 0, end: 8 }],
            samples_digest: format!("digest-{step}"),
            rows: 8,
            images: 8,
            tokens: 100,
            sources: Vec::new(),
            skipped_samples: Vec::new(),
            redrawn_samples: Vec::new(),
            tolerated_images: BTreeMap::new(),
            update_skipped: false,
            loss: 10.0 / (step + 1) as f64,
            generation_loss: 9.0 / (step + 1) as f64,
            contrastive_loss: 2.0,
            gradient_norm: 1.5,
            learning_rate: 1e-3,
            logit_scale: 14.3,
            samples_per_second: 50.0,
            step_seconds: 0.1,
            data_wait_seconds: 0.01,
            data_stages: None,
        }
    }

    #[test]
    fn a_loss_that_is_not_a_number_is_written_as_null_and_read_back_as_one() {
        let record = StepRecord { loss: f64::NAN, gradient_norm: f64::INFINITY, update_skipped: true, ..step_record(3) };
        let line = serde_json::to_string(&Record::Step(Box::new(record))).unwrap();
        assert!(line.contains(r#""loss":null"#) && line.contains(r#""gradient_norm":null"#), "{line}");
        let Record::Step(read) = serde_json::from_str(&line).unwrap() else { panic!("another record came back") };
        assert!(read.loss.is_nan() && read.gradient_norm.is_nan() && read.update_skipped);
        assert_eq!(read.step, 3);
    }

    #[test]
    fn a_step_line_reads_as_documented() {
        let line = serde_json::to_value(Record::Step(Box::new(step_record(0)))).unwrap();
        for field in ["step", "group", "slots", "loss", "learning_rate", "logit_scale", "samples_per_second", "data_wait_seconds"] {
            assert!(line.get(field).is_some(), "{field} is missing in {line}");
        }
        assert_eq!(line["event"], "step");
    }
}
