//! The steps of one process: batch, update, record, checkpoint when due, until the last step or a stop.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    path::PathBuf,
    process,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use lcl_checkpoint::while_away;
use lcl_data::{Batch, Loader, LoaderOptions, Orders};
use lcl_torch::{StepReport, parameter_count};
use lcl_trainer_config::ExitCode;

use super::{
    STOP_POLL, TrainError, TrainOptions, bad_data,
    bad_records::{KEPT_LINES, TooManyBad, too_many_bad},
    describe::{
        OfSources, add_counts, count_sources, count_tolerated, redrawn_sample, samples_digest, share_wait, slots_of, source_records,
        tolerated_images,
    },
    ledger::{Writing, write_record},
    metadata, nothing_trained,
    prepare::{Prepared, Progress, Provenance, suspect, with_provenance},
    saver::{Facts, Saver},
    share::{Setting, train_step},
};
use crate::{
    display::Display,
    journal::{METRICS_FILE, RUN_FILE},
    records::{DataStages, EndReason, Ended, GenerationRecord, Record, SkippedSample, Started, StepRecord},
    state_log::{self, Origin},
    stop::StopRequest,
    tensorboard::EventFile,
};

/// The state of the loop.
pub(super) struct StepLoop {
    run: Prepared,
    order: Orders,
    loader: Loader,
    saver: Saver,
    display: Display,
    events: EventFile,
    stop: StopRequest,
    totals: Totals,
    writing: Writing,
}

/// What this process did.
#[derive(Debug, Default)]
struct Totals {
    rows: u64,
    /// The last steps' lines.
    lines: VecDeque<StepRecord>,
    bad: Option<TooManyBad>,
    skipped_samples: BTreeMap<String, u64>,
    tolerated_images: BTreeMap<String, u64>,
    skipped_updates: u64,
    begin: Option<Instant>,
    last_end: Option<Instant>,
}

/// What one step took and gave.
struct Measured<'a> {
    batch: &'a Batch,
    report: &'a StepReport,
    data_wait: Duration,
    step_seconds: f64,
    since_last_end: f64,
    data_stages: DataStages,
}

impl StepLoop {
    pub(super) fn new(run: Prepared, options: &TrainOptions) -> Result<Self, TrainError> {
        let Prepared { config, progress, generation, .. } = &run;
        let loader_options = LoaderOptions {
            model: config.model.shape.clone(),
            objective: config.model.objective,
            seed: config.optimization.seed,
            global_batch_size: config.optimization.global_batch_size,
            slots: (0..config.optimization.global_batch_size).into(),
            first_step: progress.completed_steps,
            last_step: config.optimization.steps.max(progress.completed_steps),
        };
        let order = run.dataset.order(config.optimization.seed, config.optimization.global_batch_size);
        let loader = Loader::start(Arc::clone(&run.dataset), &config.data, loader_options)?;
        let committed = run.restored.map(|_| progress.completed_steps);
        let saver = Saver::new(run.folder.store().clone(), &config.checkpoint, *generation, committed, &run.learner);
        let unique = format!("{}.{}.{}", host_name(), process::id(), generation.epoch);
        // TensorBoard's points stand at completed steps; those after the restored one are dropped.
        let before = while_away(|| run.folder.event_files())?;
        let events = EventFile::create(run.folder.path(), &before, unix_time(), &unique, progress.completed_steps + 1)
            .map_err(|source| TrainError::Events { source })?;
        Ok(Self {
            order,
            loader,
            saver,
            events,
            display: Display::new(options.output, &options.multi),
            stop: options.stop.clone(),
            totals: Totals::default(),
            writing: Writing::default(),
            run,
        })
    }

    /// Runs to the last step, a stop or an error.
    pub(super) fn run(mut self) -> Result<ExitCode, TrainError> {
        let steps = self.run.config.optimization.steps;
        let most_skips = self.run.config.optimization.max_consecutive_skipped_steps;
        self.record(&self.started());
        self.totals.begin = Some(Instant::now());
        let reason = loop {
            let step = self.run.progress.completed_steps;
            if self.run.progress.consecutive_skips >= most_skips {
                break EndReason::Diverged;
            }
            self.totals.bad = too_many_bad(self.totals.lines.iter().rev(), self.run.config.data.max_bad_fraction);
            if self.totals.bad.is_some() {
                break EndReason::BadData;
            }
            if step >= steps {
                let is_trained = self.run.learner.completed_updates() > 0;
                break if is_trained { EndReason::Completed } else { EndReason::NothingTrained };
            }
            let asked = Instant::now();
            if !self.is_batch_there() {
                break EndReason::Preempted;
            }
            self.step(step, asked)?;
            for record in self.saver.poll() {
                self.record(&record);
            }
            if self.saver.is_due(step + 1) && step + 1 < steps && self.run.progress.consecutive_skips == 0 {
                self.save()?;
            }
        };
        self.end(reason)
    }

    /// Waits for the next batch; false when a stop is asked for first. The store that it comes from may hang.
    fn is_batch_there(&self) -> bool {
        loop {
            if self.stop.is_asked() {
                return false;
            }
            if self.loader.wait(STOP_POLL) {
                return true;
            }
        }
    }

    /// Does a step, whose batch was asked for at `asked`.
    fn step(&mut self, step: u64, asked: Instant) -> Result<(), TrainError> {
        let batch = self.loader.next().ok_or(TrainError::DataEnded { step })??;
        let begin = Instant::now();
        let report = self.update(step, &batch)?;
        let end = Instant::now();
        let measured = Measured {
            batch: &batch,
            report: &report,
            data_wait: begin - asked,
            step_seconds: (end - begin).as_secs_f64(),
            since_last_end: (end - self.totals.last_end.unwrap_or(asked)).as_secs_f64(),
            data_stages: DataStages::new(self.run.config.data.threads, self.loader.stages()),
        };
        let record = self.step_record(&measured);
        self.totals.last_end = Some(end);
        self.totals.rows += record.rows;
        for skipped in &record.skipped_samples {
            *self.totals.skipped_samples.entry(skipped.cause.clone()).or_default() += 1;
        }
        add_counts(&mut self.totals.tolerated_images, &record.tolerated_images);
        let Progress { completed_steps, consecutive_skips } = &mut self.run.progress;
        *completed_steps = step + 1;
        if record.update_skipped {
            self.totals.skipped_updates += 1;
        }
        *consecutive_skips = if report.skipped { *consecutive_skips + 1 } else { 0 };
        state_log::note(&self.run.learner, self.generation(), step + 1, Origin::Trained)?;
        if record.update_skipped {
            tracing::warn!(step, rows = batch.rows.len(), loss = report.total, gradient = report.gradient_norm, "update left out");
            if record.rows > 0 {
                suspect(self.run.restored, step);
            }
        }
        if self.totals.lines.len() == KEPT_LINES {
            self.totals.lines.pop_front();
        }
        self.totals.lines.push_back(record.clone());
        self.record(&Record::Step(Box::new(record)));
        Ok(())
    }

    fn update(&mut self, step: u64, batch: &Batch) -> Result<StepReport, TrainError> {
        let Self { order, run: Prepared { config, device, learner, .. }, .. } = self;
        if batch.rows.is_empty() {
            // Without a gradient there is nothing to update: not the moments either.
            return Ok(StepReport {
                total: f64::NAN,
                generation: f64::NAN,
                contrastive: f64::NAN,
                gradient_norm: f64::NAN,
                logit_scale: f64::NAN,
                learning_rate: learner.learning_rate(step),
                contrastive_images: 0,
                generation_positions: 0,
                skipped: true,
                sources: Vec::new(),
            });
        }
        let (report, _) = train_step(learner, Setting { config, device: *device, order }, batch, None)?;
        Ok(report)
    }

    fn step_record(&self, measured: &Measured<'_>) -> StepRecord {
        let Measured { batch, report, .. } = measured;
        let optimization = &self.run.config.optimization;
        let rows = batch.rows.len() as u64;
        let slots = optimization.global_batch_size;
        let order = &self.order;
        let (counts, waits) = (count_sources(batch, order), share_wait(measured.data_wait, &self.loader.spent(), order));
        let sources = OfSources { counts: &counts, losses: &report.sources, waits: &waits };
        StepRecord {
            step: batch.step,
            generation: self.generation(),
            time: unix_time(),
            slots: slots_of(batch.step, slots, order),
            sources: source_records(batch.step, slots, order, &sources),
            samples_digest: samples_digest(batch),
            rows,
            images: batch.images as u64,
            tokens: batch.tokens.len() as u64,
            skipped_samples: batch
                .skipped
                .iter()
                .map(|skipped| SkippedSample {
                    slot: skipped.slot,
                    pass: skipped.pass,
                    sample: skipped.sample,
                    cause: skipped.cause.to_string(),
                })
                .collect(),
            redrawn_samples: batch.rows.iter().filter_map(redrawn_sample).collect(),
            tolerated_images: tolerated_images(count_tolerated(batch)),
            update_skipped: report.skipped,
            loss: report.total,
            generation_loss: report.generation,
            // A single image has a loss of minus zero, which reads oddly.
            contrastive_loss: report.contrastive + 0.0,
            gradient_norm: report.gradient_norm,
            learning_rate: report.learning_rate,
            logit_scale: report.logit_scale,
            samples_per_second: rows as f64 / measured.since_last_end.max(f64::MIN_POSITIVE),
            step_seconds: measured.step_seconds,
            data_wait_seconds: measured.data_wait.as_secs_f64(),
            data_stages: Some(measured.data_stages),
        }
    }

    fn save(&mut self) -> Result<(), TrainError> {
        let facts = self.facts();
        let records = self.saver.save(&self.run.learner, facts)?;
        for record in records {
            self.record(&record);
        }
        // What the journal holds shall survive a loss of power as the checkpoint does.
        self.run.journal.sync_in_background();
        let files = self.files();
        self.run.folder.upload(&files);
        Ok(())
    }

    fn end(mut self, reason: EndReason) -> Result<ExitCode, TrainError> {
        let training_seconds = self.totals.begin.map_or(0.0, |begin| begin.elapsed().as_secs_f64());
        let mut saved = Ok(());
        if matches!(reason, EndReason::Completed | EndReason::Preempted | EndReason::BadData) {
            let facts = self.facts();
            let (records, result) = self.saver.finish(&self.run.learner, facts);
            for record in records {
                self.record(&record);
            }
            saved = result;
        }
        let rows = self.totals.rows;
        let ended = Ended {
            completed_steps: self.run.progress.completed_steps,
            generation: self.generation(),
            time: unix_time(),
            reason,
            parameter_hash: self.run.learner.parameter_hash()?,
            skipped_samples: self.totals.skipped_samples.clone(),
            tolerated_images: std::mem::take(&mut self.totals.tolerated_images),
            skipped_updates: self.totals.skipped_updates,
            training_seconds,
            rows,
        };
        self.record(&Record::Ended(ended));
        let files = self.files();
        if let Err(reason) = self.run.folder.finish_upload(&files) {
            tracing::error!(reason, "the last metrics are not in the store");
        }
        saved?;
        match reason {
            EndReason::Completed => Ok(ExitCode::Success),
            EndReason::Preempted => Ok(ExitCode::Preempted),
            EndReason::Diverged => Err(TrainError::Diverged { count: self.run.progress.consecutive_skips }),
            EndReason::BadData => Err(bad_data(self.totals.bad)),
            EndReason::NothingTrained => Err(nothing_trained(self.run.config.optimization.steps, rows, &self.totals.skipped_samples)),
        }
    }

    /// Writes a record everywhere. A disk that is full is reported once and does not stop training.
    fn record(&mut self, record: &Record) {
        self.display.show(record);
        let written = write_record(record, &mut self.run.journal, &mut self.events);
        self.writing.note(written, self.run.folder.store().uri());
    }

    fn started(&self) -> Record {
        let Prepared { config, dataset, device, learner, progress, .. } = &self.run;
        Record::Started(Started {
            completed_steps: progress.completed_steps,
            generation: self.generation(),
            time: unix_time(),
            job: config.job.clone(),
            steps: config.optimization.steps,
            warmup_steps: Some(learner.warmup_steps()),
            global_batch_size: config.optimization.global_batch_size,
            samples_per_pass: dataset.samples_per_pass(),
            parameters: parameter_count(&config.model),
            device: device_name(*device),
        })
    }

    fn facts(&self) -> Facts {
        let Prepared { config, identity, machine, learner, progress, .. } = &self.run;
        Facts {
            completed_steps: progress.completed_steps,
            config_digest: identity.digest(),
            metadata: with_provenance(
                metadata(config, identity, learner, progress.consecutive_skips),
                Provenance { job: None, machine: machine.as_deref() },
            ),
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        let folder = self.run.folder.path();
        vec![folder.join(METRICS_FILE), folder.join(RUN_FILE), self.events.path().to_owned()]
    }

    fn generation(&self) -> GenerationRecord {
        GenerationRecord { epoch: self.run.generation.epoch, n: self.run.generation.n }
    }
}

pub(super) fn device_name(device: lcl_torch::Device) -> String {
    match device {
        lcl_torch::Device::Cuda(index) => format!("cuda:{index}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// For the names of event files only.
pub(super) fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| "localhost".to_owned(), |name| name.trim().to_owned())
}

pub(super) fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}
