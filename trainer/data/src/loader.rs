//! Threads that prepare batches ahead of the training loop.

use std::{ops::Range, sync::Arc};

use lcl_trainer_config::{DataConfig, ModelShape, Objective};

use crate::{
    batch::Batch,
    dataset::{Dataset, DatasetError},
};

/// Which steps and slots are wanted, and for which model.
#[derive(Clone, Debug)]
pub struct LoaderOptions {
    /// Gives image size, context length and special tokens.
    pub model: ModelShape,
    /// Decides the token layout.
    pub objective: Objective,
    /// Seed of order, crops and image-first choices.
    pub seed: u64,
    /// Slots of a step over all members.
    pub global_batch_size: u64,
    /// The slots of this member, within `0..global_batch_size`.
    pub slots: Range<u64>,
    /// First step whose batch is delivered.
    pub first_step: u64,
    /// Step after the last one.
    pub last_step: u64,
}

/// Prepares batches in the background. Dropping it stops and joins its threads.
#[derive(Debug)]
pub struct Loader {}

/// No further batch can be prepared.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    /// A sample's shard cannot be read.
    #[error("reading step {step}, slot {slot}")]
    Read {
        /// The step.
        step: u64,
        /// The slot of the global batch.
        slot: u64,
        /// What went wrong.
        source: DatasetError,
    },
}

impl Loader {
    /// Starts the threads; they prepare at most `config.prefetch` batches ahead.
    pub fn start(_dataset: Arc<Dataset>, _config: &DataConfig, _options: LoaderOptions) -> Result<Self, LoaderError> {
        todo!("being written")
    }

    /// The next batch in step order, or `None` after the last step or an error. Blocks until it is ready.
    #[allow(clippy::should_implement_trait, reason = "also implemented as Iterator when done")]
    pub fn next(&mut self) -> Option<Result<Batch, LoaderError>> {
        todo!("being written")
    }
}
