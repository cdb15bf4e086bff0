//! Single samples as training would see them, for looking at data.
//!
//! Comes in: a data set and the settings of training. Goes out: tokens and pictures of the samples that are asked for, made by what makes
//! batches. The draws of a sample are those of step 0 and the slot of its number.

use std::{path::PathBuf, sync::Arc};

use lcl_trainer_config::DataConfig;

use crate::{
    dataset::{Dataset, DatasetError},
    draw::Draw,
    image::bytes_to_png,
    loader::{
        LoaderError, LoaderOptions,
        assembly::{Content, Loaded},
        slot_loader::{Buffers, Filled, SlotLoader},
    },
    order::Location,
    retry::Stop,
};

/// Makes samples visible.
pub struct Viewer {
    slot_loader: SlotLoader,
    dataset: Arc<Dataset>,
    buffers: Buffers,
    size: u32,
    stop: Stop,
}

impl std::fmt::Debug for Viewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Viewer")
    }
}

/// A sample as the model sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Viewed {
    /// The source that it is of; "data" when there is but one.
    pub source: String,
    /// Its shard.
    pub shard: PathBuf,
    /// What it is called there.
    pub key: String,
    /// Token ids and pictures; or why there are none.
    pub content: Result<Seen, String>,
}

/// What the model gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Token ids, not padded.
    pub tokens: Vec<i64>,
    /// The images in their order, as PNG.
    pub images: Vec<Vec<u8>>,
}

impl Viewer {
    /// Sees samples of `dataset` as a run with these settings does; of `options` model, objective and seed count.
    pub fn new(dataset: &Arc<Dataset>, config: &DataConfig, options: LoaderOptions) -> Result<Self, LoaderError> {
        // It was checked to be a size when the slot loader is made.
        let size = u32::try_from(options.model.vision.image_size).unwrap_or(0);
        let slot_loader = SlotLoader::new(Arc::clone(dataset), config, options)?;
        let buffers = slot_loader.buffers();
        Ok(Self { slot_loader, dataset: Arc::clone(dataset), buffers, size, stop: Stop::default() })
    }

    /// The sample of this number. Errors that may pass are retried for about a minute.
    pub fn view(&mut self, sample: u64) -> Result<Viewed, DatasetError> {
        let (shard, key) = self.dataset.key(sample)?;
        let source = self.dataset.source_name(sample).to_owned();
        let draw = Draw { seed: self.slot_loader.options().seed, step: 0, slot: sample };
        let content = if self.dataset.is_document(sample) {
            let mut filled = Filled::default();
            let tried = self.slot_loader.try_document(sample, (draw, 0), &mut self.buffers, &mut filled, &self.stop)?;
            tried.map(|images| self.seen(&filled.tokens, images, &filled.pixels)).map_err(|cause| cause.name().to_owned())
        } else {
            let location = Location { pass: 0, source: 0, position: sample, sample };
            match self.slot_loader.load_at(draw, location, &mut self.buffers, Filled::default(), &self.stop)? {
                Loaded::Row(Content { tokens, images, pixels, .. }) => Ok(self.seen(&tokens, images, &pixels)),
                Loaded::Skipped(skipped) => Err(skipped.cause.name().to_owned()),
            }
        };
        Ok(Viewed { source, shard, key, content })
    }

    fn seen(&self, tokens: &[i64], images: usize, pixels: &[u8]) -> Seen {
        let bytes = pixels.len() / images.max(1);
        let images = pixels.chunks_exact(bytes.max(1)).take(images).map(|rgb| bytes_to_png(rgb, self.size)).collect();
        Seen { tokens: tokens.to_vec(), images }
    }
}
