//! Loading one slot: reading its sample, laying out its tokens, transforming its image.
//!
//! Comes in: (step, slot). Goes out: tokens and pixels, or why there are none; a pure function of the data set and (seed, step, slot).

use std::{sync::Arc, time::Duration};

use lcl_trainer_config::{DataConfig, Objective};

use crate::{
    batch::{Buffer, RedrawCause, SkipCause, Skipped, Tolerated},
    dataset::{Choose, Dataset, DatasetError, Room},
    document::{Composer, Document},
    documents::Asked,
    draw::{self, Draw, IMAGE_SIZE_LIMIT},
    image::{ImageTransform, Scratch},
    loader::{
        LoaderError, LoaderOptions,
        assembly::{Content, Loaded},
        stages::{Stages, Watch},
    },
    mmc4::SlotChoices,
    order::{Location, Orders},
    retry::Stop,
    sequence::SequenceLimits,
    tokenizer::Tokenizer,
};

/// Documents that are tried for a slot. Where fewer than one in fifty is of use, the data are wrong, and the slot stays empty.
const ATTEMPTS: u32 = 50;

/// Turns slots into rows.
pub(super) struct SlotLoader {
    dataset: Arc<Dataset>,
    order: Orders,
    tokenizer: Tokenizer,
    limits: SequenceLimits,
    transform: ImageTransform,
    config: DataConfig,
    options: LoaderOptions,
}

/// What one thread keeps from slot to slot.
pub(super) struct Buffers {
    scratch: Scratch,
    composer: Composer,
    document: Document,
    room: Room,
    /// A cleaned caption, and its ids.
    cleaned: String,
    ids: Vec<u32>,
    /// Numbers of the images of a document whose pixels are there, in their order.
    decoded: Vec<u32>,
    tolerated: Vec<Tolerated>,
    /// Time of the stages of the slot at hand.
    pub(super) stages: Stages,
}

/// Buffers of a row, empty when they are taken.
#[derive(Default)]
pub(super) struct Filled {
    pub(super) pixels: Buffer,
    pub(super) tokens: Buffer<i64>,
}

impl SlotLoader {
    pub(super) fn new(dataset: Arc<Dataset>, config: &DataConfig, options: LoaderOptions) -> Result<Self, LoaderError> {
        let size = options.model.vision.image_size;
        let size = u32::try_from(size).ok().filter(|size| (1..=IMAGE_SIZE_LIMIT).contains(size)).ok_or_else(|| LoaderError::Setting {
            field: "model.shape.vision.imageSize",
            value: size.to_string(),
            rule: "must lie in 1..=16384",
        })?;
        let transform = ImageTransform { reduced_scale_decoding: config.reduced_scale_decoding, ..ImageTransform::new(size) };
        let limits = SequenceLimits::new(&options.model)?;
        if dataset.has_documents() && options.objective == Objective::Clip {
            let rule = "must be lcl for documents: their images have no caption of their own";
            return Err(LoaderError::Setting { field: "model.objective.kind", value: "clip".to_owned(), rule });
        }
        let order = dataset.order(options.seed, options.global_batch_size);
        Ok(Self { dataset, order, tokenizer: Tokenizer::clip(), limits, transform, config: config.clone(), options })
    }

    pub(super) fn options(&self) -> &LoaderOptions {
        &self.options
    }

    pub(super) fn buffers(&self) -> Buffers {
        let composer = Composer::new(self.tokenizer);
        Buffers {
            scratch: Scratch::new(),
            composer,
            document: Document::new(),
            room: Room::default(),
            cleaned: String::new(),
            ids: Vec::new(),
            decoded: Vec::new(),
            tolerated: Vec::new(),
            stages: Stages::default(),
        }
    }

    /// Which sample stands in the slot.
    pub(super) fn locate(&self, step: u64, slot: u64) -> Location {
        // The options were checked: no index reaches 2^64.
        self.order.locate(step * self.options.global_batch_size + slot)
    }

    /// Whether samples come from object stores.
    pub(super) fn has_objects(&self) -> bool {
        self.dataset.has_objects()
    }

    /// Has the bytes of a slot's sample at hand.
    pub(super) fn fetch(&self, step: u64, slot: u64) -> Result<(), DatasetError> {
        self.dataset.fetch(self.locate(step, slot).sample)
    }

    /// The number of the source that a slot is of.
    pub(super) fn source_of(&self, loaded: &Loaded) -> usize {
        let sample = match loaded {
            Loaded::Row(content) => content.sample,
            Loaded::Skipped(skipped) => skipped.sample,
        };
        self.order.source_of(sample)
    }

    /// Loads the slot; `filled`, which is empty, becomes the row's. Stopping `waits` ends those between attempts to read.
    pub(super) fn load(&self, step: u64, slot: u64, buffers: &mut Buffers, filled: Filled, waits: &Stop) -> Result<Loaded, DatasetError> {
        let draw = Draw { seed: self.options.seed, step, slot };
        self.load_at(draw, self.locate(step, slot), buffers, filled, waits)
    }

    /// As [`SlotLoader::load`], for a sample that stands in the slot of `draw`.
    pub(super) fn load_at(
        &self,
        draw: Draw,
        location: Location,
        buffers: &mut Buffers,
        filled: Filled,
        waits: &Stop,
    ) -> Result<Loaded, DatasetError> {
        if self.dataset.is_document(location.sample) {
            return self.load_document(draw, location, buffers, filled, waits);
        }
        let Filled { mut pixels, mut tokens } = filled;
        let (Location { pass, sample, .. }, Draw { slot, .. }) = (location, draw);
        let skipped = |cause: SkipCause, detail: &str| {
            self.dataset.log_skipped(sample, cause, detail);
            Ok(Loaded::Skipped(Skipped { slot, pass, sample, cause }))
        };
        let mut watch = Watch::start();
        let read = self.dataset.read_into(&mut buffers.room, sample, Choose::Drawn(draw), |delay| waits.wait(delay));
        buffers.stages.read += watch.lap();
        if let Some(cause) = read? {
            return skipped(cause, "");
        }
        let crop = |width, height| draw.crop(self.config.augmentation, width, height);
        pixels.resize(self.transform.output_len(), 0);
        let transformed = self.transform.train_bytes(buffers.room.sample.image(), crop, &mut buffers.scratch, &mut pixels);
        buffers.stages.decode += watch.lap();
        let tolerated = match transformed {
            Ok(tolerated) => tolerated,
            Err(error) => return skipped(error.cause(), &error.to_string()),
        };
        if let Some(fault) = tolerated {
            self.dataset.log_tolerated(sample, fault);
        }
        let image_first = draw.image_first(self.config.image_first_probability);
        let Buffers { room, cleaned, ids, .. } = buffers;
        ids.clear();
        self.tokenizer.append(&room.sample.caption, cleaned, ids);
        draw::append_tokens((ids, image_first), &self.limits, self.options.objective, &mut tokens);
        let tolerated = tolerated.into_iter().collect();
        buffers.stages.compose += watch.lap();
        Ok(Loaded::Row(Content { slot, pass, sample, used: sample, redrawn: None, tokens, pixels, images: 1, tolerated }))
    }

    /// As [`SlotLoader::load`], for documents: one that gives no sequence is replaced by another.
    fn load_document(
        &self,
        draw: Draw,
        location: Location,
        buffers: &mut Buffers,
        mut filled: Filled,
        waits: &Stop,
    ) -> Result<Loaded, DatasetError> {
        let (Draw { step, slot, .. }, Location { source, pass, sample, .. }) = (draw, location);
        let mut first = None;
        for attempt in 0..ATTEMPTS {
            let used = if attempt == 0 { sample } else { self.order.redraw(source, step, slot, attempt) };
            match self.try_document(used, (draw, attempt), buffers, &mut filled, waits)? {
                Ok(images) => {
                    let Filled { pixels, tokens } = filled;
                    for fault in &buffers.tolerated {
                        self.dataset.log_tolerated(used, *fault);
                    }
                    let (redrawn, tolerated) = (first.map(|cause| (cause, attempt)), buffers.tolerated.clone());
                    return Ok(Loaded::Row(Content { slot, pass, sample, used, redrawn, tokens, pixels, images, tolerated }));
                }
                Err(cause) => {
                    self.dataset.log_redrawn(used, cause);
                    first.get_or_insert(cause);
                }
            }
        }
        self.dataset.log_skipped(sample, SkipCause::NoDocument, "");
        Ok(Loaded::Skipped(Skipped { slot, pass, sample, cause: SkipCause::NoDocument }))
    }

    /// The number of images of a document, whose sequence and pixels are left in `filled`; or why there is none.
    pub(super) fn try_document(
        &self,
        sample: u64,
        (draw, attempt): (Draw, u32),
        buffers: &mut Buffers,
        Filled { pixels, tokens }: &mut Filled,
        waits: &Stop,
    ) -> Result<Result<usize, RedrawCause>, DatasetError> {
        let Buffers { scratch, composer, document, decoded, tolerated, stages, .. } = buffers;
        let (mut watch, mut decoding) = (Watch::start(), Duration::ZERO);
        let bytes = self.transform.output_len();
        pixels.clear();
        decoded.clear();
        tolerated.clear();
        let mut decode = |image: u32, encoded: &[u8]| {
            let mut watch = Watch::start();
            let begin = pixels.len();
            pixels.resize(begin + bytes, 0);
            let crop = |width, height| draw.crop_in_document(self.config.augmentation, (attempt, image), width, height);
            let Some(place) = pixels.get_mut(begin..) else { return false };
            let transformed = self.transform.train_bytes(encoded, crop, scratch, place);
            decoding += watch.lap();
            let Ok(fault) = transformed else {
                pixels.truncate(begin);
                return false;
            };
            tolerated.extend(fault);
            decoded.push(image);
            true
        };
        let choices = SlotChoices::new(draw.seed, draw.step, draw.slot, attempt);
        let before_probability = self.config.image_first_probability;
        let mut wait = |delay| waits.wait(delay);
        let mut asked = Asked { choices, before_probability, decode: &mut decode, wait: &mut wait, document };
        let (source, own) = self.dataset.document(sample)?;
        let found = source.read(own, &mut asked);
        let reading = watch.lap();
        stages.decode += decoding;
        stages.read += reading.saturating_sub(decoding);
        let found = found?;
        if let Err(cause) = found {
            return Ok(Err(cause));
        }
        let sequence = match composer.compose(document, &self.limits) {
            Ok(sequence) => sequence,
            Err(cause) => return Ok(Err(cause)),
        };
        keep(sequence.images, decoded, pixels, bytes);
        tokens.clear();
        tokens.extend_from_slice(sequence.tokens);
        let images = sequence.images.len();
        stages.compose += watch.lap();
        Ok(Ok(images))
    }
}

/// Leaves of the images in `pixels`, `bytes` each and numbered by `decoded`, those of `kept` in this order.
fn keep(kept: &[u32], decoded: &[u32], pixels: &mut Buffer, bytes: usize) {
    // As long as nothing but the end of a document is cut off, they lie in this order already.
    if !decoded.starts_with(kept) {
        let places = kept.iter().filter_map(|image| decoded.iter().position(|other| other == image));
        let all = places.flat_map(|place| pixels.get(place * bytes..(place + 1) * bytes).unwrap_or_default().to_vec()).collect();
        **pixels = all;
    }
    pixels.truncate(kept.len() * bytes);
}
