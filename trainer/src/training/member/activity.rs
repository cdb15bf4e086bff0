//! What this member's training thread is doing, kept where the client's thread can read it.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use lcl_checkpoint::CheckpointStore;
use lcl_protocol::{Activity, ActivityStage, SourceProgress, TrainingProgress};
use lcl_torch::collectives::Usage;

use crate::run::records::{SourceRecord, StepRecord};

/// Weight of the newest step in the mean: the last ten or so count.
const NEWEST: f64 = 0.1;

/// Written by the training thread, read by the client's.
#[derive(Debug, Default)]
pub(super) struct ActivityCell {
    /// An [`ActivityStage`], as a number.
    stage: AtomicU8,
    /// Operations of the process when it entered the stage.
    base: AtomicU64,
    /// The store that a checkpoint is read from: how far that is counts as operations.
    reading: Mutex<Option<CheckpointStore>>,
    /// Mean of the own work in a step, in microseconds; 0 before the first.
    work: AtomicU64,
    /// How training comes along, when this member tells of it for all.
    training: Mutex<TrainingMeans>,
    /// Of the sources of a mixture, when this member tells of them for all.
    sources: Mutex<Vec<SourceMeans>>,
}

/// Loss and pace of the last steps.
#[derive(Debug, Default)]
struct TrainingMeans {
    loss: Faded,
    samples_per_second: Faded,
}

/// A source's figures in the last steps.
#[derive(Debug, Default)]
struct SourceMeans {
    name: String,
    samples: u64,
    generation: Faded,
    contrastive: Faded,
    data_wait: Faded,
}

/// A mean in which old terms fade.
#[derive(Debug, Default)]
struct Faded {
    sum: f64,
    count: f64,
}

impl Faded {
    /// A step had so many terms with this mean; none without a mean.
    fn add(&mut self, mean: Option<f64>, count: u64) {
        let count = if mean.is_some() { count as f64 } else { 0.0 };
        self.sum = (1.0 - NEWEST) * self.sum + mean.unwrap_or_default() * count;
        self.count = (1.0 - NEWEST) * self.count + count;
    }

    fn mean(&self) -> Option<f64> {
        // What is left of a term after so many steps that it no longer says anything.
        (self.count > f64::MIN_POSITIVE).then(|| self.sum / self.count)
    }
}

impl ActivityCell {
    /// Another kind of work begins.
    pub(super) fn enter(&self, stage: ActivityStage) {
        self.base.store(Usage::now().operations, Ordering::Release);
        self.stage.store(stage as u8, Ordering::Release);
    }

    /// From now on a checkpoint is read from this store; `None`: no longer.
    pub(super) fn read_from(&self, store: Option<CheckpointStore>) {
        *self.reading.lock().unwrap_or_else(PoisonError::into_inner) = store;
    }

    /// A step has taken this long, of which so much was waiting for others.
    pub(super) fn step(&self, took: Duration, waited: Duration) {
        let work = took.saturating_sub(waited).as_micros() as f64;
        let mean = match self.work.load(Ordering::Relaxed) {
            0 => work,
            mean => (1.0 - NEWEST) * mean as f64 + NEWEST * work,
        };
        self.work.store((mean as u64).max(1), Ordering::Relaxed);
    }

    /// What a step took of the sources of a mixture, and what came of it.
    pub(super) fn sources(&self, records: &[SourceRecord]) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if sources.len() != records.len() {
            *sources = records.iter().map(|record| SourceMeans { name: record.name.clone(), ..SourceMeans::default() }).collect();
        }
        for (source, record) in sources.iter_mut().zip(records) {
            source.samples = record.end;
            source.generation.add(record.generation_loss, record.predicted_tokens);
            source.contrastive.add(record.contrastive_loss, record.contrastive_images);
            source.data_wait.add(Some(record.data_wait_seconds), 1);
        }
    }

    /// What a step came to.
    pub(super) fn training(&self, record: &StepRecord) {
        let mut training = self.training.lock().unwrap_or_else(PoisonError::into_inner);
        training.loss.add(Some(record.loss).filter(|loss| loss.is_finite()), 1);
        training.samples_per_second.add(Some(record.samples_per_second), 1);
    }

    /// Another member tells for all.
    pub(super) fn forget(&self) {
        *self.training.lock().unwrap_or_else(PoisonError::into_inner) = TrainingMeans::default();
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// For the next heartbeat.
    pub(super) fn read(&self) -> Activity {
        let work = self.work.load(Ordering::Relaxed);
        let stage = match self.stage.load(Ordering::Acquire) {
            stage if stage == ActivityStage::Preparing as u8 => ActivityStage::Preparing,
            stage if stage == ActivityStage::Transferring as u8 => ActivityStage::Transferring,
            _ => ActivityStage::Training,
        };
        let read = self.reading.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(0, CheckpointStore::bytes_read);
        Activity {
            stage,
            operations: Usage::now().operations.saturating_sub(self.base.load(Ordering::Acquire)) + read,
            step_work: (work > 0).then(|| Duration::from_micros(work)),
            training: self.training.lock().unwrap_or_else(PoisonError::into_inner).progress(),
            sources: self.sources.lock().unwrap_or_else(PoisonError::into_inner).iter().map(SourceMeans::progress).collect(),
        }
    }
}

impl TrainingMeans {
    fn progress(&self) -> Option<TrainingProgress> {
        Some(TrainingProgress { samples_per_second: self.samples_per_second.mean()?, loss: self.loss.mean() })
    }
}

impl SourceMeans {
    fn progress(&self) -> SourceProgress {
        SourceProgress {
            name: self.name.clone(),
            samples: self.samples,
            generation_loss: self.generation.mean(),
            contrastive_loss: self.contrastive.mean(),
            data_wait: Duration::try_from_secs_f64(self.data_wait.mean().unwrap_or_default()).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_of_a_source_are_means_over_terms_and_a_step_without_it_changes_none_of_them() {
        let cell = ActivityCell::default();
        assert_eq!(cell.read().sources, []);
        let record = |end, generation_loss, predicted_tokens, data_wait_seconds| SourceRecord {
            name: "pairs".to_owned(),
            first: 0,
            end,
            rows: 1,
            images: 1,
            tokens: 9,
            predicted_tokens,
            generation_loss,
            contrastive_images: 0,
            contrastive_loss: None,
            data_wait_seconds,
        };
        cell.sources(&[record(4, Some(8.0), 10, 0.0)]);
        cell.sources(&[record(4, None, 0, 0.0)]);
        let told = cell.read().sources;
        assert_eq!((told[0].samples, told[0].generation_loss, told[0].contrastive_loss), (4, Some(8.0), None));
        // Ten times as many tokens count ten times as much, but for what has faded.
        cell.sources(&[record(9, Some(2.0), 100, 1.0)]);
        let told = cell.read().sources.remove(0);
        let (before, loss) = (10.0 * 0.9 * 0.9, told.generation_loss.unwrap());
        assert!((loss - (8.0 * before + 200.0) / (before + 100.0)).abs() < 1e-12, "{loss}");
        assert!(told.data_wait > Duration::from_millis(300) && told.data_wait < Duration::from_millis(400), "{told:?}");
        cell.forget();
        assert_eq!(cell.read().sources, []);
    }

    #[test]
    fn waiting_is_no_work_and_old_steps_fade() {
        let cell = ActivityCell::default();
        assert_eq!(cell.read().step_work, None);
        cell.step(Duration::from_millis(30), Duration::from_millis(20));
        assert_eq!(cell.read().step_work, Some(Duration::from_millis(10)));
        for _ in 0..100 {
            cell.step(Duration::from_millis(20), Duration::ZERO);
        }
        let work = cell.read().step_work.unwrap();
        assert!(work > Duration::from_millis(19), "{work:?}");
    }
}
