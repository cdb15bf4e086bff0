//! What the member of rank 0 does for all, and a process that trains alone for itself: `metrics.jsonl`, event files, the terminal.

mod files;

use std::{collections::BTreeMap, time::Instant};

use lcl_checkpoint::CheckpointStore;
use lcl_protocol::Generation;
use lcl_torch::Learner;

pub(super) use self::files::{Files, Open, Place};
use super::{TrainError, TrainOptions, describe::add_counts, device_name, prepare::Progress, stepper::Stepper, tally::KEPT, unix_time};
use crate::{
    command_line::display::Display,
    run::records::{EndReason, Ended, GenerationRecord, Record, Started, StepRecord},
};

/// Step lines written since the files went to an object store, from which on they go again. Whoever leads next, perhaps on another node,
/// reads them there and has the newest [`KEPT`] lines itself: half of them leaves the upload as many steps of time.
const MOST_UNSENT: usize = KEPT / 2;

/// Rank 0's part.
pub(super) struct Leader {
    files: Files,
    display: Display,
    generation: Generation,
    rows: u64,
    skipped_samples: BTreeMap<String, u64>,
    tolerated_images: BTreeMap<String, u64>,
    skipped_updates: u64,
    begin: Instant,
    /// Step lines since the last upload began.
    unsent: usize,
}

impl Leader {
    /// Takes over the run's files. Lines of steps that the leader before could not write any more come from the tally.
    pub(super) fn begin(
        store: &CheckpointStore,
        generation: Generation,
        stepper: &Stepper,
        options: &TrainOptions,
    ) -> Result<Self, TrainError> {
        let completed_steps = stepper.progress.completed_steps;
        let place = Place { store: store.clone(), generation, completed_steps };
        let files = Files::begin(place, stepper.tally.since(0, completed_steps))?;
        let mut leader = Self::with(files, generation, stepper, options);
        leader.upload();
        Ok(leader)
    }

    /// With these files.
    pub(super) fn with(files: Files, generation: Generation, stepper: &Stepper, options: &TrainOptions) -> Self {
        let mut leader = Self {
            files,
            display: Display::new(options.output, &options.multi),
            generation,
            rows: 0,
            skipped_samples: BTreeMap::new(),
            tolerated_images: BTreeMap::new(),
            skipped_updates: 0,
            begin: Instant::now(),
            unsent: 0,
        };
        let Stepper { config, dataset, learner, progress, .. } = stepper;
        leader.record(&Record::Started(Started {
            completed_steps: progress.completed_steps,
            generation: leader.generation_record(),
            time: unix_time(),
            job: config.job.clone(),
            steps: config.optimization.steps,
            warmup_steps: Some(learner.warmup_steps()),
            global_batch_size: config.optimization.global_batch_size,
            samples_per_pass: dataset.samples_per_pass(),
            parameters: lcl_torch::parameter_count(&config.model),
            device: device_name(learner.model().device()),
        }));
        leader
    }

    /// An error when the run's files cannot be written, ever.
    pub(super) fn check(&mut self) -> Result<(), TrainError> {
        self.files.check()
    }

    /// Whether nobody else can have led since: else another leader's lines stand in a file that this one does not have open.
    pub(super) fn leads_on_in(&self, generation: Generation) -> bool {
        follows(self.generation, generation)
    }

    /// The same leader in the next generation: what it writes from here on carries that. Members who are new have no lines from before.
    pub(super) fn set_generation(&mut self, generation: Generation) {
        self.generation = generation;
        self.upload();
    }

    /// Has what the journal holds survive a loss of power, or of this node, as a checkpoint does.
    pub(super) fn sync(&mut self) {
        self.files.sync();
        self.upload();
    }

    fn upload(&mut self) {
        if self.files.upload() {
            self.unsent = 0;
        }
    }

    pub(super) fn record_step(&mut self, record: StepRecord) {
        self.rows += record.rows;
        self.skipped_updates += u64::from(record.update_skipped);
        for skipped in &record.skipped_samples {
            *self.skipped_samples.entry(skipped.cause.clone()).or_default() += 1;
        }
        add_counts(&mut self.tolerated_images, &record.tolerated_images);
        if record.update_skipped {
            let StepRecord { step, rows, loss, gradient_norm, .. } = record;
            tracing::warn!(step, rows, loss, gradient_norm, "update left out");
        }
        self.record(&Record::Step(Box::new(record)));
        self.unsent += 1;
        if self.unsent >= MOST_UNSENT {
            self.upload();
        }
    }

    /// The last line of the run, or of this leader.
    pub(super) fn end(&mut self, reason: EndReason, learner: &Learner, progress: Progress) -> Result<(), TrainError> {
        let ended = Ended {
            completed_steps: progress.completed_steps,
            generation: self.generation_record(),
            time: unix_time(),
            reason,
            parameter_hash: learner.parameter_hash()?,
            skipped_samples: self.skipped_samples.clone(),
            tolerated_images: self.tolerated_images.clone(),
            skipped_updates: self.skipped_updates,
            training_seconds: self.begin.elapsed().as_secs_f64(),
            rows: self.rows,
        };
        self.record(&Record::Ended(ended));
        self.files.finish();
        Ok(())
    }

    pub(super) fn record(&mut self, record: &Record) {
        self.display.show(record);
        self.files.write(record);
    }

    fn generation_record(&self) -> GenerationRecord {
        GenerationRecord { epoch: self.generation.epoch, n: self.generation.n }
    }
}

/// Whether there is no generation between the two. A coordinator numbers its generations without a gap; between the last of one and the
/// first of the next there may have been others.
fn follows(earlier: Generation, later: Generation) -> bool {
    later == earlier || later == earlier.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Once a leader that had missed a generation went on writing to the file that its successor had replaced: 46 lines were lost.
    #[test]
    fn a_leader_that_missed_a_generation_opens_the_files_anew() {
        let generation = |epoch, n| Generation { epoch, n };
        assert!(follows(generation(1, 4), generation(1, 4)));
        assert!(follows(generation(1, 4), generation(1, 5)));
        assert!(!follows(generation(1, 4), generation(1, 6)));
        assert!(!follows(generation(1, 4), generation(2, 1)));
        assert!(!follows(generation(1, 4), generation(2, 5)));
    }
}
