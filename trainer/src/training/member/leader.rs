//! What the member of rank 0 does for all: checkpoints, `metrics.jsonl`, event files, the terminal.

use lcl_checkpoint::Generation as CheckpointGeneration;
use lcl_data::Dataset;
use lcl_protocol::Generation;
use lcl_torch::{Device, Learner};
use lcl_trainer_config::TrainerConfig;

use super::tally::Tally;
use crate::{
    display::Display,
    identity::Identity,
    journal::Journal,
    records::{EndReason, Ended, GenerationRecord, Record, Started, StepRecord},
    run_folder::RunFolder,
    tensorboard::EventFile,
    training::{
        TrainError, TrainOptions,
        describe::scalars,
        metadata,
        prepare::Progress,
        saver::{Facts, Saver},
        step_loop::{device_name, host_name, unix_time},
    },
};

/// Rank 0's open files.
pub(super) struct Leader {
    folder: RunFolder,
    journal: Journal,
    events: EventFile,
    display: Display,
    saver: Saver,
    generation: Generation,
    rows: u64,
    skipped_updates: u64,
    begin: f64,
}

impl Leader {
    /// Takes over the run's files. Lines of steps that the leader before could not write any more come from `tally`.
    #[expect(clippy::too_many_arguments, reason = "a leader is made of the whole member")]
    pub(super) fn begin(
        generation: Generation,
        config: &TrainerConfig,
        options: &TrainOptions,
        dataset: &Dataset,
        learner: &Learner,
        device: Device,
        progress: Progress,
        restored: Option<u64>,
        tally: &Tally,
    ) -> Result<Self, TrainError> {
        // Not locked: who leads is the coordinator's decision, and a leader that was evicted may still exist for a while. Its journal is
        // another file by then, and its checkpoints carry its generation.
        let folder = RunFolder::open_as_member(&config.checkpoint.uri)?;
        let (journal, opened) = Journal::open(folder.path(), progress.completed_steps)?;
        let unique = format!("{}.{}.{}-{}", host_name(), std::process::id(), generation.epoch, generation.n);
        let events = EventFile::create(folder.path(), unix_time(), &unique, progress.completed_steps + 1)
            .map_err(|source| TrainError::Events { source })?;
        let saver = Saver::new(folder.store().clone(), &config.checkpoint, checkpoint_generation(generation), restored, learner);
        let mut leader = Self {
            folder,
            journal,
            events,
            display: Display::new(options.output, &options.multi),
            saver,
            generation,
            rows: 0,
            skipped_updates: 0,
            begin: unix_time(),
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
            global_batch_size: config.optimization.global_batch_size,
            samples_per_pass: dataset.samples_per_pass(),
            parameters: lcl_torch::parameter_count(&config.model),
            device: device_name(device),
        }));
        Ok(leader)
    }

    /// The same leader in the next generation: what it writes from here on carries that.
    pub(super) fn set_generation(&mut self, generation: Generation, config: &TrainerConfig, learner: &Learner) {
        if generation != self.generation {
            self.generation = generation;
            for record in self.saver.wait_for_writer() {
                self.record(&record);
            }
            let committed = self.saver.committed();
            self.saver = Saver::new(self.folder.store().clone(), &config.checkpoint, checkpoint_generation(generation), committed, learner);
        }
    }

    pub(super) fn record_step(&mut self, record: StepRecord) {
        self.rows += record.rows;
        self.skipped_updates += u64::from(record.update_skipped);
        self.record(&Record::Step(Box::new(record)));
    }

    /// Saves when a checkpoint is due; steps of the checkpoints that became complete.
    pub(super) fn after_step(
        &mut self,
        learner: &Learner,
        progress: Progress,
        steps: u64,
        config: &TrainerConfig,
        identity: &Identity,
    ) -> Result<Vec<u64>, TrainError> {
        let mut records = self.saver.poll();
        let step = progress.completed_steps;
        if self.saver.is_due(step) && step < steps && progress.consecutive_skips == 0 {
            records.extend(self.saver.save(learner, facts(learner, progress, config, identity))?);
            self.journal.sync_in_background();
        }
        Ok(self.record_all(&records))
    }

    /// Saves the state as it is and waits for it; the step when it is in the store.
    pub(super) fn save_now(&mut self, learner: &Learner, progress: Progress, config: &TrainerConfig, identity: &Identity) -> Option<u64> {
        let (records, saved) = self.saver.finish(learner, facts(learner, progress, config, identity));
        self.record_all(&records);
        match saved {
            Ok(()) => Some(progress.completed_steps),
            Err(error) => {
                tracing::error!(%error, "the checkpoint that was asked for is not in the store");
                None
            }
        }
    }

    /// The last checkpoint.
    pub(super) fn finish(
        &mut self,
        learner: &Learner,
        progress: Progress,
        config: &TrainerConfig,
        identity: &Identity,
    ) -> Result<u64, TrainError> {
        let (records, saved) = self.saver.finish(learner, facts(learner, progress, config, identity));
        self.record_all(&records);
        saved?;
        Ok(progress.completed_steps)
    }

    /// The last line of the run, or of this leader.
    pub(super) fn end(&mut self, is_complete: bool, learner: &Learner, progress: Progress) -> Result<(), TrainError> {
        for record in self.saver.wait_for_writer() {
            self.record(&record);
        }
        let ended = Ended {
            completed_steps: progress.completed_steps,
            generation: self.generation_record(),
            time: unix_time(),
            reason: if is_complete { EndReason::Completed } else { EndReason::Preempted },
            parameter_hash: learner.parameter_hash()?,
            skipped_samples: std::collections::BTreeMap::new(),
            skipped_updates: self.skipped_updates,
            training_seconds: unix_time() - self.begin,
            rows: self.rows,
        };
        self.record(&Record::Ended(ended));
        Ok(())
    }

    fn record_all(&mut self, records: &[Record]) -> Vec<u64> {
        records
            .iter()
            .filter_map(|record| {
                self.record(record);
                if let Record::CheckpointCommitted(checkpoint) = record { Some(checkpoint.completed_steps) } else { None }
            })
            .collect()
    }

    fn record(&mut self, record: &Record) {
        self.display.show(record);
        let scalars = scalars(record);
        let mut written = self.journal.append(record);
        if written.is_ok() && !scalars.is_empty() {
            written = self.events.scalars(unix_time(), record.completed_steps(), &scalars);
        }
        if let Err(error) = written {
            tracing::warn!(%error, folder = %self.folder.path().display(), "metrics wait in memory: the file takes none");
        }
    }

    fn generation_record(&self) -> GenerationRecord {
        GenerationRecord { epoch: self.generation.epoch, n: self.generation.n }
    }
}

fn checkpoint_generation(generation: Generation) -> CheckpointGeneration {
    CheckpointGeneration { epoch: generation.epoch, n: generation.n }
}

fn facts(learner: &Learner, progress: Progress, config: &TrainerConfig, identity: &Identity) -> Facts {
    Facts {
        completed_steps: progress.completed_steps,
        config_digest: identity.digest(),
        metadata: metadata(config, identity, learner.completed_updates(), progress.consecutive_skips),
    }
}
