//! Preparing one slot: reading its sample, laying out its tokens, transforming its image.
//!
//! Comes in: (step, slot). Goes out: tokens and pixels, or why there are none; a pure function of the data set and (seed, step, slot).

use std::sync::Arc;

use lcl_trainer_config::DataConfig;

use crate::{
    batch::{Row, SkipCause, Skipped},
    dataset::{Dataset, DatasetError, Location, Reading},
    draw::{self, Draw, IMAGE_SIZE_LIMIT},
    image::{ImageTransform, Scratch},
    loader::{LoaderError, LoaderOptions, assembly::Prepared},
    retry::Stop,
    sequence::Layout,
    tokenizer::Tokenizer,
};

/// Turns slots into rows.
pub(super) struct Preparer {
    dataset: Arc<Dataset>,
    tokenizer: Tokenizer,
    layout: Layout,
    transform: ImageTransform,
    config: DataConfig,
    options: LoaderOptions,
}

/// What one thread keeps from slot to slot.
pub(super) struct Buffers {
    scratch: Scratch,
    pixels: Vec<f32>,
}

impl Buffers {
    /// The image of the row prepared last, `[3, S, S]`.
    pub(super) fn pixels(&self) -> &[f32] {
        &self.pixels
    }
}

impl Preparer {
    pub(super) fn new(dataset: Arc<Dataset>, config: &DataConfig, options: LoaderOptions) -> Result<Self, LoaderError> {
        let size = options.model.vision.image_size;
        let size = u32::try_from(size).ok().filter(|size| (1..=IMAGE_SIZE_LIMIT).contains(size)).ok_or_else(|| LoaderError::Setting {
            field: "model.shape.vision.imageSize",
            value: size.to_string(),
            rule: "must lie in 1..=16384",
        })?;
        let transform = ImageTransform { reduced_scale_decoding: config.reduced_scale_decoding, ..ImageTransform::new(size) };
        let layout = Layout::new(&options.model)?;
        Ok(Self { dataset, tokenizer: Tokenizer::clip(), layout, transform, config: config.clone(), options })
    }

    pub(super) fn options(&self) -> &LoaderOptions {
        &self.options
    }

    pub(super) fn buffers(&self) -> Buffers {
        Buffers { scratch: Scratch::new(), pixels: vec![0.0; self.transform.output_len()] }
    }

    /// Which sample stands in the slot.
    pub(super) fn locate(&self, step: u64, slot: u64) -> Location {
        // The options were checked: no index reaches 2^64.
        self.dataset.locate(self.options.seed, step * self.options.global_batch_size + slot)
    }

    /// Prepares the slot; a row's image is left in `buffers`. Stopping `waits` ends those between attempts to read.
    pub(super) fn prepare(&self, step: u64, slot: u64, buffers: &mut Buffers, waits: &Stop) -> Result<Prepared, DatasetError> {
        let Location { pass, sample, .. } = self.locate(step, slot);
        let skipped = |cause: SkipCause, detail: &str| {
            self.dataset.log_skipped(sample, cause, detail);
            Ok(Prepared::Skipped(Skipped { slot, pass, sample, cause }))
        };
        let record = match self.dataset.read_with(sample, |delay| waits.wait(delay))? {
            Reading::Sample(record) => record,
            Reading::Skipped(cause) => return skipped(cause, ""),
        };
        let draw = Draw { seed: self.options.seed, step, slot };
        let crop = |width, height| draw.crop(self.config.augmentation, width, height);
        let tolerated = match self.transform.train(record.image(), crop, &mut buffers.scratch, &mut buffers.pixels) {
            Ok(tolerated) => tolerated,
            Err(error) => return skipped(error.cause(), &error.to_string()),
        };
        if let Some(fault) = tolerated {
            self.dataset.log_tolerated(sample, fault);
        }
        let image_first = draw.image_first(self.config.image_first_probability);
        let caption = self.tokenizer.encode(&record.caption);
        let tokens = draw::tokens(&caption, image_first, &self.layout, self.options.objective);
        Ok(Prepared::Row(Row { slot, pass, sample, images: 1, tolerated }, tokens))
    }
}
