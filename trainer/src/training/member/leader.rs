//! What the member of rank 0 does for all: `metrics.jsonl`, event files, the terminal.

use std::{collections::BTreeMap, path::PathBuf, time::Instant};

use lcl_checkpoint::while_away;
use lcl_data::Dataset;
use lcl_protocol::Generation;
use lcl_torch::Learner;
use lcl_trainer_config::TrainerConfig;

use super::tally::{KEPT, Tally};
use crate::{
    display::Display,
    journal::{Journal, METRICS_FILE, RUN_FILE},
    records::{EndReason, Ended, GenerationRecord, Record, Started, StepRecord},
    run_folder::RunFolder,
    tensorboard::EventFile,
    training::{
        TrainError, TrainOptions,
        describe::add_counts,
        ledger::{Writing, write_record},
        prepare::Progress,
        step_loop::{device_name, host_name, unix_time},
    },
};

/// Step lines written since the files went to an object store, from which on they go again. Whoever leads next, perhaps on another node,
/// reads them there and has the newest [`KEPT`] lines itself: half of them leaves the upload as many steps of time.
const MOST_UNSENT: usize = KEPT / 2;

/// Rank 0's open files.
pub(super) struct Leader {
    folder: RunFolder,
    journal: Journal,
    events: EventFile,
    display: Display,
    generation: Generation,
    rows: u64,
    skipped_samples: BTreeMap<String, u64>,
    tolerated_images: BTreeMap<String, u64>,
    skipped_updates: u64,
    begin: Instant,
    /// Step lines since the last upload began.
    unsent: usize,
    writing: Writing,
}

impl Leader {
    /// Takes over the run's files. Lines of steps that the leader before could not write any more come from `tally`.
    pub(super) fn begin(
        generation: Generation,
        config: &TrainerConfig,
        options: &TrainOptions,
        dataset: &Dataset,
        learner: &Learner,
        progress: Progress,
        tally: &Tally,
    ) -> Result<Self, TrainError> {
        // Not locked: who leads is the coordinator's decision, and a leader that was evicted may still exist for a while. Its journal is
        // another file by then, and its checkpoints carry its generation.
        let folder = RunFolder::open_as_member(&config.checkpoint.uri)?;
        // A volume that is away for a moment must not cost the state that this member holds.
        let (journal, opened) = while_away(|| Journal::open(folder.path(), progress.completed_steps))?;
        let unique = format!("{}.{}.{}-{}", host_name(), std::process::id(), generation.epoch, generation.n);
        let before = while_away(|| folder.event_files())?;
        let events = while_away(|| EventFile::create(folder.path(), &before, unix_time(), &unique, progress.completed_steps + 1));
        let events = events.map_err(|source| TrainError::Events { source })?;
        let mut leader = Self {
            folder,
            journal,
            events,
            display: Display::new(options.output, &options.multi),
            generation,
            rows: 0,
            skipped_samples: BTreeMap::new(),
            tolerated_images: BTreeMap::new(),
            skipped_updates: 0,
            begin: Instant::now(),
            unsent: 0,
            writing: Writing::default(),
        };
        for record in tally.since(opened.end, progress.completed_steps) {
            leader.record(&Record::Step(Box::new(record)));
        }
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
        leader.upload();
        Ok(leader)
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
        self.journal.sync_in_background();
        self.upload();
    }

    fn upload(&mut self) {
        let files = self.files();
        if self.folder.upload(&files) {
            self.unsent = 0;
        }
    }

    fn files(&self) -> [PathBuf; 3] {
        let folder = self.folder.path();
        [folder.join(METRICS_FILE), folder.join(RUN_FILE), self.events.path().to_owned()]
    }

    pub(super) fn record_step(&mut self, record: StepRecord) {
        self.rows += record.rows;
        self.skipped_updates += u64::from(record.update_skipped);
        for skipped in &record.skipped_samples {
            *self.skipped_samples.entry(skipped.cause.clone()).or_default() += 1;
        }
        add_counts(&mut self.tolerated_images, &record.tolerated_images);
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
        let files = self.files();
        if let Err(reason) = self.folder.finish_upload(&files) {
            tracing::error!(reason, "the last metrics are not in the store");
        }
        Ok(())
    }

    pub(super) fn record(&mut self, record: &Record) {
        self.display.show(record);
        let written = write_record(record, &mut self.journal, &mut self.events);
        self.writing.note(written, self.folder.path());
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
