//! The newest lines of `metrics.jsonl`, which every member of a group could write.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Instant,
};

use lcl_data::Location;
use lcl_protocol::Generation;
use lcl_torch::StepReport;

use super::{
    bad_records::{KEPT_LINES, TooManyBad, too_many_bad},
    describe::{OfSources, slots_of, source_records, tolerated_images},
    exchange::{Shared, Wanted},
    unix_time,
};
use crate::run::records::{DataStages, GenerationRecord, RedrawnSample, SkippedSample, StepRecord};

/// Lines kept by every member: a new leader writes those that the one before it could not write any more.
pub(super) const KEPT: usize = KEPT_LINES;

/// Times of a step.
pub(super) struct Seconds {
    pub(super) data_wait: f64,
    pub(super) step: f64,
    pub(super) end: Instant,
    /// Of this member's data threads.
    pub(super) stages: Option<DataStages>,
}

/// The newest lines.
#[derive(Debug, Default)]
pub(super) struct Tally {
    records: VecDeque<StepRecord>,
    last_end: Option<Instant>,
}

impl Tally {
    /// The line of a step that was just committed, the same on all members but for its times.
    pub(super) fn record(
        &mut self,
        wanted: &Wanted<'_>,
        generation: Generation,
        shared: &Shared,
        report: &StepReport,
        seconds: &Seconds,
    ) -> StepRecord {
        let since = self.last_end.map_or(seconds.data_wait + seconds.step, |last| (seconds.end - last).as_secs_f64());
        self.last_end = Some(seconds.end);
        let batch = wanted.batch;
        let sources = OfSources { counts: &shared.sources, losses: &report.sources, waits: &shared.waits };
        let record = StepRecord {
            step: wanted.step,
            generation: GenerationRecord { epoch: generation.epoch, n: generation.n },
            time: unix_time(),
            slots: slots_of(wanted.step, batch, wanted.order),
            sources: source_records(wanted.step, batch, wanted.order, &sources),
            samples_digest: shared.samples.to_string(),
            rows: shared.rows,
            images: shared.images,
            tokens: shared.tokens,
            skipped_samples: shared
                .skipped
                .iter()
                .map(|(slot, cause)| {
                    let Location { pass, sample, .. } = wanted.locate(*slot);
                    SkippedSample { slot: *slot, pass, sample, cause: cause.to_string() }
                })
                .collect(),
            redrawn_samples: shared
                .redrawn
                .iter()
                .map(|(slot, cause, attempts)| {
                    let Location { source, pass, sample, .. } = wanted.locate(*slot);
                    let (slot, used) = (*slot, wanted.order.redraw(source, wanted.step, *slot, *attempts));
                    RedrawnSample { slot, pass, sample, cause: cause.to_string(), attempts: *attempts, used }
                })
                .collect(),
            tolerated_images: tolerated_images(shared.tolerated),
            update_skipped: report.skipped,
            loss: report.total,
            generation_loss: report.generation,
            // A single image has a loss of minus zero, which reads oddly.
            contrastive_loss: report.contrastive + 0.0,
            gradient_norm: report.gradient_norm,
            learning_rate: report.learning_rate,
            logit_scale: report.logit_scale,
            samples_per_second: shared.rows as f64 / since.max(f64::MIN_POSITIVE),
            step_seconds: seconds.step,
            data_wait_seconds: seconds.data_wait,
            data_stages: seconds.stages,
        };
        if self.records.len() == KEPT {
            self.records.pop_front();
        }
        self.records.push_back(record.clone());
        record
    }

    /// Whether too many of the last records could not be used.
    pub(super) fn too_many_bad(&self, most: f64) -> Option<TooManyBad> {
        too_many_bad(self.records.iter().rev(), most)
    }

    /// Rows that the members read in the steps of these lines, and samples that they left out, by cause.
    pub(super) fn read_and_skipped(&self) -> (u64, BTreeMap<String, u64>) {
        let mut causes = BTreeMap::new();
        for skipped in self.records.iter().flat_map(|record| &record.skipped_samples) {
            *causes.entry(skipped.cause.clone()).or_default() += 1;
        }
        (self.records.iter().map(|record| record.rows).sum(), causes)
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

    /// This member's lines led to a state that it does not go on from.
    pub(super) fn forget(&mut self) {
        self.records.clear();
    }

    /// Lines of steps from `first` to before `end`, the newest of each.
    pub(super) fn since(&self, first: u64, end: u64) -> Vec<StepRecord> {
        (first..end).filter_map(|step| self.records.iter().rev().find(|record| record.step == step).cloned()).collect()
    }
}
