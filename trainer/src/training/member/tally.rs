//! What all members know about a step's samples, and the line of `metrics.jsonl` that every one of them could write.

use std::{
    collections::VecDeque,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use lcl_data::{Batch, Dataset, SkipCause};
use lcl_protocol::Generation;
use lcl_torch::{
    StepReport,
    collectives::{Group, GroupError},
};
use lcl_trainer_config::TrainerConfig;

use crate::{
    records::{GenerationRecord, SkippedSample, StepRecord},
    training::describe::{count_tokens, digest_of_samples, slot_ranges},
};

/// Lines kept by every member: a new leader writes those that the one before it could not write any more.
pub(super) const KEPT: usize = 256;

/// What the members' parts of a step's batch are together.
#[derive(Debug)]
pub(super) struct Shared {
    /// Samples that could be read.
    pub(super) rows: u64,
    images: u64,
    tokens: u64,
    /// Slot and cause of every sample that could not.
    skipped: Vec<(u64, SkipCause)>,
}

/// Times of a step.
pub(super) struct Seconds {
    pub(super) data_wait: f64,
    pub(super) step: f64,
    pub(super) end: Instant,
}

/// The newest lines.
#[derive(Debug, Default)]
pub(super) struct Tally {
    records: VecDeque<StepRecord>,
    last_end: Option<Instant>,
}

impl Tally {
    /// Every member learns of all samples of the step before anything is computed from them.
    pub(super) fn exchange(group: &mut Group, batch: &Batch, timeout: Duration) -> Result<Shared, GroupError> {
        let own = [batch.rows.len() as i64, batch.image_count as i64, count_tokens(batch) as i64, batch.skipped.len() as i64];
        let all = group.exchange(&own, timeout)?;
        let sum = |index: usize| all.iter().filter_map(|numbers| numbers.get(index)).sum::<i64>().unsigned_abs();
        let most = all.iter().filter_map(|numbers| numbers.get(3)).max().copied().unwrap_or_default();
        let mut skipped = Vec::new();
        if most > 0 {
            let causes = |cause: SkipCause| SkipCause::ALL.iter().position(|other| *other == cause).unwrap_or_default() as i64;
            let mut list: Vec<i64> = batch.skipped.iter().flat_map(|skipped| [skipped.slot as i64, causes(skipped.cause)]).collect();
            // Everyone's list has the length of the longest; a negative slot is none.
            list.resize(2 * most.unsigned_abs() as usize, -1);
            for numbers in group.exchange(&list, timeout)? {
                for pair in numbers.chunks_exact(2) {
                    if let ([slot, cause], true) = (pair, pair.first().is_some_and(|slot| *slot >= 0))
                        && let Some(cause) = usize::try_from(*cause).ok().and_then(|cause| SkipCause::ALL.get(cause))
                    {
                        skipped.push((slot.unsigned_abs(), *cause));
                    }
                }
            }
            skipped.sort_by_key(|(slot, _)| *slot);
        }
        Ok(Shared { rows: sum(0), images: sum(1), tokens: sum(2), skipped })
    }

    /// The line of a step that was just committed, the same on all members but for its times.
    #[expect(clippy::too_many_arguments, reason = "a line has as many sources")]
    pub(super) fn record(
        &mut self,
        config: &TrainerConfig,
        dataset: &Dataset,
        generation: Generation,
        step: u64,
        shared: &Shared,
        report: &StepReport,
        seconds: &Seconds,
    ) -> StepRecord {
        let batch = config.optimization.global_batch_size;
        let sample = |slot: u64| dataset.locate(config.optimization.seed, step * batch + slot);
        let read = (0..batch).filter(|slot| shared.skipped.iter().all(|(skipped, _)| skipped != slot));
        let since = self.last_end.map_or(seconds.data_wait + seconds.step, |last| (seconds.end - last).as_secs_f64());
        self.last_end = Some(seconds.end);
        let record = StepRecord {
            step,
            generation: GenerationRecord { epoch: generation.epoch, n: generation.n },
            time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64()),
            slots: slot_ranges(step, batch, dataset.samples_per_pass()),
            samples_digest: digest_of_samples(read.map(|slot| {
                let location = sample(slot);
                [slot, location.pass, location.sample]
            })),
            rows: shared.rows,
            images: shared.images,
            tokens: shared.tokens,
            skipped_samples: shared
                .skipped
                .iter()
                .map(|(slot, cause)| {
                    let location = sample(*slot);
                    SkippedSample { slot: *slot, pass: location.pass, sample: location.sample, cause: cause.to_string() }
                })
                .collect(),
            update_skipped: report.skipped,
            loss: report.total,
            generation_loss: report.generation,
            contrastive_loss: report.contrastive + 0.0,
            gradient_norm: report.gradient_norm,
            learning_rate: report.learning_rate,
            logit_scale: report.logit_scale,
            samples_per_second: shared.rows as f64 / since.max(f64::MIN_POSITIVE),
            step_seconds: seconds.step,
            data_wait_seconds: seconds.data_wait,
        };
        if self.records.len() == KEPT {
            self.records.pop_front();
        }
        self.records.push_back(record.clone());
        record
    }

    /// The lines for a member that has none: whoever leads next may be new.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        // A record is plain data with string keys: turning it into JSON cannot fail.
        serde_json::to_vec(&self.records).unwrap_or_default()
    }

    /// Takes the lines of another member in place of its own, which led to another state.
    pub(super) fn replace(&mut self, bytes: &[u8]) -> Result<(), serde_json::Error> {
        self.records = serde_json::from_slice(bytes)?;
        Ok(())
    }

    /// Lines of steps from `first` to before `end`, the newest of each.
    pub(super) fn since(&self, first: u64, end: u64) -> Vec<StepRecord> {
        (first..end).filter_map(|step| self.records.iter().rev().find(|record| record.step == step).cloned()).collect()
    }
}
