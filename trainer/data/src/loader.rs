//! Threads that load batches ahead of the training loop.
//!
//! Comes in: a [`Dataset`] and which steps and slots are wanted. Goes out: [`Batch`]es in step order, whose content depends on neither the number
//! of threads nor on where it starts. Threads share the slots of a batch, so that the first batch comes as soon as all of them together can
//! make it; they work at most `prefetch` batches ahead, which bounds the memory. It must not skip or reorder anything to go faster.

mod ahead;
mod assembly;
mod queue;
mod slot_loader;
mod slots;
mod stages;
mod view;

use std::{fmt, io, sync::Arc, thread::JoinHandle, time::Duration};

use lcl_trainer_config::{DataConfig, Field, ModelShape, Objective};

pub use view::{Seen, Viewed, Viewer};

use crate::{
    batch::Batch,
    dataset::{Dataset, DatasetError},
    loader::{queue::Queue, slot_loader::SlotLoader},
    sequence::SequenceLimitsError,
};

pub use slots::Slots;
pub use stages::Stages;

/// Which steps and slots are wanted, and for which model.
#[derive(Clone, Debug)]
pub struct LoaderOptions {
    /// Gives image size, context length and special tokens.
    pub model: ModelShape,
    /// Decides what a sequence has to fit.
    pub objective: Objective,
    /// Seed of order, crops and image-first choices.
    pub seed: u64,
    /// Slots of a step over all members.
    pub global_batch_size: u64,
    /// The slots of this member, ascending and within `0..global_batch_size`.
    pub slots: Slots,
    /// First step whose batch is delivered.
    pub first_step: u64,
    /// Step after the last one.
    pub last_step: u64,
}

/// Loads batches in the background; an iterator over them in step order, whose `next` blocks until the batch is ready. After an error it
/// ends. Dropping it stops and joins its threads.
pub struct Loader {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
    /// What [`Loader::stages`] has told already.
    told: Stages,
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Loader({} threads)", self.threads.len())
    }
}

/// No further batch can be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    /// The options contradict each other.
    #[error("loader option {field} is {value}, but {rule}")]
    Options {
        /// The option.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it has to be.
        rule: &'static str,
    },
    /// A setting of the job cannot be used.
    #[error("{} is {value}, but {rule}", Field(field))]
    Setting {
        /// Path of the field in the trainer's configuration.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it has to be.
        rule: &'static str,
    },
    /// The model's shape leaves no room for a sequence.
    #[error(transparent)]
    Limits(#[from] SequenceLimitsError),
    /// The system gives no further thread.
    #[error("starting data thread {number}")]
    Spawn {
        /// Its number, from 0.
        number: usize,
        /// The system's error.
        source: io::Error,
    },
    /// A sample's shard cannot be read.
    #[error("reading the data of step {step}, slot {slot}")]
    Read {
        /// The step.
        step: u64,
        /// The slot of the global batch.
        slot: u64,
        /// What went wrong.
        source: Box<DatasetError>,
    },
    /// A fault in this program.
    #[error("a data thread panicked on step {step}, slot {slot} (sample {sample}): {message}; please report this")]
    Panicked {
        /// The step.
        step: u64,
        /// The slot of the global batch.
        slot: u64,
        /// The sample that was being loaded.
        sample: u64,
        /// What the panic said.
        message: String,
    },
}

impl Loader {
    /// Starts `config.threads` threads; they load at most `config.prefetch` batches ahead.
    pub fn start(dataset: Arc<Dataset>, config: &DataConfig, options: LoaderOptions) -> Result<Self, LoaderError> {
        check(config, &options)?;
        let slot_loader = Arc::new(SlotLoader::new(dataset, config, options)?);
        let queue = Arc::new(Queue::new(slot_loader.options(), config.prefetch));
        let ahead = if slot_loader.has_objects() { ahead::THREADS } else { 0 };
        // From here on dropping it stops the threads that have been started.
        let mut loader = Self { queue, threads: Vec::with_capacity(config.threads), told: Stages::default() };
        for number in 0..config.threads {
            let (queue, slot_loader) = (Arc::clone(&loader.queue), Arc::clone(&slot_loader));
            let thread = std::thread::Builder::new()
                .name(format!("data-{number}"))
                .spawn(move || queue.heard_in(|| queue::work(&queue, &slot_loader)));
            loader.threads.push(thread.map_err(|source| LoaderError::Spawn { number, source })?);
        }
        let fetched = Arc::new(ahead::Ahead::default());
        for number in config.threads..config.threads + ahead {
            let (queue, slot_loader, fetched) = (Arc::clone(&loader.queue), Arc::clone(&slot_loader), Arc::clone(&fetched));
            let thread = std::thread::Builder::new()
                .name(format!("data-{number}"))
                .spawn(move || queue.heard_in(|| fetched.work(&queue, &slot_loader)));
            loader.threads.push(thread.map_err(|source| LoaderError::Spawn { number, source })?);
        }
        Ok(loader)
    }

    /// Waits until the next batch, an error or the end is there, or for so long; whether it is. Who has to hear something else meanwhile asks again
    /// and again.
    #[must_use]
    pub fn wait(&self, longest: Duration) -> bool {
        self.queue.wait(longest)
    }

    /// How long threads were at the slots of each source in the batch that was delivered last, added up over threads: reading, decoding,
    /// laying out, and waiting between attempts to read. Sources beyond its end had no slot in it. Who waits for a batch waits for those
    /// sources in this proportion.
    #[must_use]
    pub fn spent(&self) -> Vec<Duration> {
        self.queue.spent()
    }
}

impl Loader {
    /// What its threads spent their time with since this was asked last, or since it was started.
    pub fn stages(&mut self) -> Stages {
        let all = self.queue.stages.get();
        all.since(std::mem::replace(&mut self.told, all))
    }
}

impl Iterator for Loader {
    type Item = Result<Batch, LoaderError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.queue.take()
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.queue.stop();
        for thread in self.threads.drain(..) {
            // Panics were caught within the thread and delivered as errors.
            drop(thread.join());
        }
    }
}

fn check(config: &DataConfig, options: &LoaderOptions) -> Result<(), LoaderError> {
    let require = |holds: bool, field, value: &dyn fmt::Debug, rule| {
        if holds { Ok(()) } else { Err(LoaderError::Options { field, value: format!("{value:?}"), rule }) }
    };
    for (field, value) in [("data.threads", config.threads), ("data.prefetch", config.prefetch)] {
        if value < 1 {
            return Err(LoaderError::Setting { field, value: value.to_string(), rule: "must be at least 1" });
        }
    }
    let slots = &options.slots;
    require(slots.count() > 0, "slots", slots, "must not be empty")?;
    require(slots.ascend(), "slots", slots, "must ascend")?;
    require(slots.end() <= options.global_batch_size, "slots", slots, "must end within the global batch")?;
    require(options.first_step <= options.last_step, "first_step", &options.first_step, "must not exceed last_step")?;
    let fits = options.last_step.checked_mul(options.global_batch_size).is_some();
    require(fits, "last_step", &options.last_step, "times the global batch must stay below 2^64")
}

#[cfg(test)]
mod tests;
