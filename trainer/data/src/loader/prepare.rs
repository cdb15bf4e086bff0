//! Preparing one slot: reading its sample, laying out its tokens, transforming its image.
//!
//! Comes in: (step, slot). Goes out: tokens and pixels, or why there are none; a pure function of the data set and (seed, step, slot).

use std::sync::Arc;

use lcl_trainer_config::DataConfig;

use crate::{
    batch::{Buffer, SkipCause, Skipped},
    dataset::{Dataset, DatasetError, Reading},
    draw::{self, Draw, IMAGE_SIZE_LIMIT},
    image::{ImageTransform, Scratch},
    loader::{
        LoaderError, LoaderOptions,
        assembly::{Content, Prepared},
    },
    order::{Location, Order},
    retry::Stop,
    sequence::Layout,
    tokenizer::Tokenizer,
};

/// Turns slots into rows.
pub(super) struct Preparer {
    dataset: Arc<Dataset>,
    order: Order,
    tokenizer: Tokenizer,
    layout: Layout,
    transform: ImageTransform,
    config: DataConfig,
    options: LoaderOptions,
}

/// What one thread keeps from slot to slot.
pub(super) struct Buffers {
    scratch: Scratch,
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
        let order = dataset.order(options.seed, options.global_batch_size);
        Ok(Self { dataset, order, tokenizer: Tokenizer::clip(), layout, transform, config: config.clone(), options })
    }

    pub(super) fn options(&self) -> &LoaderOptions {
        &self.options
    }

    pub(super) fn buffers(&self) -> Buffers {
        Buffers { scratch: Scratch::new() }
    }

    /// Which sample stands in the slot.
    pub(super) fn locate(&self, step: u64, slot: u64) -> Location {
        // The options were checked: no index reaches 2^64.
        self.order.locate(step * self.options.global_batch_size + slot)
    }

    /// Prepares the slot; `pixels`, an empty buffer, takes a row's image. Stopping `waits` ends those between attempts to read.
    pub(super) fn prepare(
        &self,
        step: u64,
        slot: u64,
        buffers: &mut Buffers,
        mut pixels: Buffer,
        waits: &Stop,
    ) -> Result<Prepared, DatasetError> {
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
        pixels.resize(self.transform.output_len(), 0);
        let tolerated = match self.transform.train_bytes(record.image(), crop, &mut buffers.scratch, &mut pixels) {
            Ok(tolerated) => tolerated,
            Err(error) => return skipped(error.cause(), &error.to_string()),
        };
        if let Some(fault) = tolerated {
            self.dataset.log_tolerated(sample, fault);
        }
        let image_first = draw.image_first(self.config.image_first_probability);
        let caption = self.tokenizer.encode(&record.caption);
        let tokens = draw::tokens(&caption, image_first, &self.layout, self.options.objective);
        Ok(Prepared::Row(Content { slot, pass, sample, tokens, pixels, images: 1, tolerated: tolerated.into_iter().collect() }))
    }
}
