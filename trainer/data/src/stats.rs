//! What a data set holds and how much of it a model sees, for `lcl data stats`.
//!
//! Comes in: a data set and a model's shape. Goes out: counts, and the spread of lengths and sizes over samples that lie evenly in each source
//! ([`SourceStats`]). A sample's sequence is the one that training would make of it with the draws of step 0 and the slot of its number, once as
//! long as it would be without an end, and once cut at the model's context. Of images the headers are read and no pixel is decoded.

mod spread;

use std::{
    collections::BTreeMap,
    num::NonZero,
    sync::atomic::{AtomicU64, Ordering},
};

use lcl_trainer_config::{DataConfig, ModelShape, Objective};
use serde::Serialize;
pub use spread::{Spread, Summary};

use crate::{
    cause::RedrawCause,
    dataset::{Dataset, DatasetError, Reading},
    document::{Composer, Document},
    draw::{self, Draw},
    image::probe,
    index::over_all,
    mmc4::SlotChoices,
    retry::sleep,
    sequence::{SequenceLimits, SequenceLimitsError},
    tokenizer::Tokenizer,
};

/// Samples that a thread looks at one after the other.
const CHUNK: usize = 256;

/// Positions of a context that holds everything: no text has as many tokens as this.
const ENDLESS: i64 = 1 << 40;

/// Classes of a histogram up to the context.
const CLASSES: u64 = 8;

/// For which model, and how many samples are looked at.
#[derive(Clone, Debug)]
pub struct StatsOptions {
    /// Gives context, and tokens of an image.
    pub model: ModelShape,
    /// Decides what a sequence has to fit.
    pub objective: Objective,
    /// Seed of the draws.
    pub seed: u64,
    /// Most samples of a source that are looked at; `None`: all.
    pub most: Option<NonZero<u64>>,
}

/// Statistics cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// The data cannot be read.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The model's shape leaves no room for a sequence.
    #[error(transparent)]
    Limits(#[from] SequenceLimitsError),
}

/// What a source holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SourceStats {
    /// Its name; "data" when there is but one.
    pub source: String,
    /// Shards.
    pub shards: u64,
    /// Bytes of these, those of a store of images included.
    pub shard_bytes: u64,
    /// Samples.
    pub samples: u64,
    /// Images of a pass, as far as the index knows.
    pub images_of_a_pass: u64,
    /// Samples that were looked at.
    pub looked_at: u64,
    /// Of these, those of no use, by cause.
    pub unusable: BTreeMap<String, u64>,
    /// Images of a sample, those included that the context cuts off.
    pub images: Summary,
    /// Bytes of an image's file.
    pub image_bytes: Summary,
    /// Shorter side of an image in pixels.
    pub image_sides: Summary,
    /// Images by the format that their contents have.
    pub formats: BTreeMap<String, u64>,
    /// Tokens of a sample's texts.
    pub text_tokens: Summary,
    /// Tokens of a sample's sequence, images and marks included, without a cut.
    pub sequence_tokens: Summary,
    /// Those in classes: the first number of tokens above each, and how many sequences. The last has no end.
    pub histogram: Vec<(Option<u64>, u64)>,
    /// What the context cuts off.
    pub cut: Cut,
}

/// What a model's context cuts off of the samples that were looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cut {
    /// The context in tokens.
    pub context: u64,
    /// Tokens that an image takes, without its two marks.
    pub image_tokens: u64,
    /// Sequences that are cut.
    pub sequences: u64,
    /// Tokens that are cut off, and all tokens.
    pub tokens: (u64, u64),
    /// Images that are cut off, and all images.
    pub images: (u64, u64),
}

/// What some samples gave.
#[derive(Default)]
struct Tally {
    looked_at: u64,
    unusable: BTreeMap<String, u64>,
    images: Spread,
    image_bytes: Spread,
    image_sides: Spread,
    formats: BTreeMap<String, u64>,
    text_tokens: Spread,
    sequence_tokens: Spread,
    cut: Cut,
}

/// Looks at samples of each source with `config.threads` threads; `progress` hears how many of how many are done.
pub fn stats(
    dataset: &Dataset,
    config: &DataConfig,
    options: &StatsOptions,
    progress: impl Fn(u64, u64) + Sync,
) -> Result<Vec<SourceStats>, StatsError> {
    let mut endless = options.model.clone();
    endless.text.context_length = ENDLESS;
    let limits = (SequenceLimits::new(&options.model)?, SequenceLimits::new(&endless)?);
    let sources = dataset.source_counts();
    let most = |samples: u64| options.most.map_or(samples, |most| samples.min(most.get()));
    let (done, all) = (AtomicU64::new(0), sources.iter().map(|source| most(source.samples)).sum());
    let threads = NonZero::new(config.threads).unwrap_or(NonZero::<usize>::MIN);
    let mut found = Vec::new();
    for source in sources {
        let count = most(source.samples);
        // Evenly: of a few samples in a large source none is next to another.
        let at = |index: u64| source.first + (u128::from(index) * u128::from(source.samples) / u128::from(count.max(1))) as u64;
        let chosen: Vec<u64> = (0..count).map(at).collect();
        let chunks: Vec<&[u64]> = chosen.chunks(CHUNK).collect();
        let tallies = over_all(threads, &chunks, |samples| {
            let mut looker = Looker::new(dataset, config, options, limits);
            for sample in *samples {
                looker.look_at(*sample)?;
                progress(done.fetch_add(1, Ordering::Relaxed) + 1, all);
            }
            Ok::<_, DatasetError>(looker.tally)
        })?;
        let tally = tallies.into_iter().fold(Tally::default(), Tally::and);
        let (context, image_tokens) = (limits.0.context_length() as u64, limits.0.image_tokens() as u64);
        found.push(SourceStats {
            source: source.name,
            shards: source.shards,
            shard_bytes: source.bytes,
            samples: source.samples,
            images_of_a_pass: source.images,
            looked_at: tally.looked_at,
            unusable: tally.unusable,
            images: tally.images.summary(),
            image_bytes: tally.image_bytes.summary(),
            image_sides: tally.image_sides.summary(),
            formats: tally.formats,
            text_tokens: tally.text_tokens.summary(),
            histogram: tally.sequence_tokens.histogram((context / CLASSES).max(1), 2 * CLASSES),
            sequence_tokens: tally.sequence_tokens.summary(),
            cut: Cut { context, image_tokens, ..tally.cut },
        });
    }
    Ok(found)
}

impl Tally {
    fn and(mut self, other: Self) -> Self {
        self.looked_at += other.looked_at;
        for (mine, others) in [(&mut self.unusable, other.unusable), (&mut self.formats, other.formats)] {
            for (name, count) in others {
                *mine.entry(name).or_default() += count;
            }
        }
        self.images.add(&other.images);
        self.image_bytes.add(&other.image_bytes);
        self.image_sides.add(&other.image_sides);
        self.text_tokens.add(&other.text_tokens);
        self.sequence_tokens.add(&other.sequence_tokens);
        self.cut.sequences += other.cut.sequences;
        for (mine, others) in [(&mut self.cut.tokens, other.cut.tokens), (&mut self.cut.images, other.cut.images)] {
            *mine = (mine.0 + others.0, mine.1 + others.1);
        }
        self
    }
}

/// A sequence by its numbers of tokens and images.
#[derive(Clone, Copy)]
struct Size {
    tokens: u64,
    images: u64,
}

/// Looks at samples one after the other.
struct Looker<'a> {
    dataset: &'a Dataset,
    config: &'a DataConfig,
    options: &'a StatsOptions,
    /// That of the model, and one without an end.
    limits: (SequenceLimits, SequenceLimits),
    composer: Composer,
    document: Document,
    tally: Tally,
}

impl<'a> Looker<'a> {
    fn new(dataset: &'a Dataset, config: &'a DataConfig, options: &'a StatsOptions, limits: (SequenceLimits, SequenceLimits)) -> Self {
        let (composer, document) = (Composer::new(Tokenizer::clip()), Document::new());
        Self { dataset, config, options, limits, composer, document, tally: Tally::default() }
    }

    fn look_at(&mut self, sample: u64) -> Result<(), DatasetError> {
        self.tally.looked_at += 1;
        let outcome = if self.dataset.is_document(sample) { self.look_at_document(sample)? } else { self.look_at_pair(sample)? };
        if let Err(cause) = outcome {
            *self.tally.unusable.entry(cause.to_owned()).or_default() += 1;
        }
        Ok(())
    }

    fn look_at_pair(&mut self, sample: u64) -> Result<Result<(), &'static str>, DatasetError> {
        let read = match self.dataset.read(sample)? {
            Reading::Sample(read) => read,
            Reading::Skipped(cause) => return Ok(Err(cause.name())),
        };
        if let Err(cause) = self.look_at_image(read.image()) {
            return Ok(Err(cause));
        }
        let draw = Draw { seed: self.options.seed, step: 0, slot: sample };
        let image_first = draw.image_first(self.config.image_first_probability);
        let caption = Tokenizer::clip().encode(&read.caption);
        let [cut, whole] = [self.limits.0, self.limits.1]
            .map(|limits| draw::tokens(&caption, image_first, &limits, self.options.objective).len() as u64)
            .map(|tokens| Size { tokens, images: 1 });
        self.tally.text_tokens.push(caption.len() as u64);
        self.compare(whole, cut);
        Ok(Ok(()))
    }

    fn look_at_document(&mut self, sample: u64) -> Result<Result<(), &'static str>, DatasetError> {
        let (source, own) = self.dataset.document(sample)?;
        let whole = source.whole(own, &mut |delay| sleep(delay))?;
        let mut readable = Vec::new();
        for (number, image) in &whole.images {
            if image.bytes.as_ref().is_some_and(|bytes| self.look_at_image(bytes).is_ok()) {
                readable.push(*number);
            }
        }
        let mut choices = SlotChoices::new(self.options.seed, 0, sample, 0);
        let fetch = |image: u32| Ok::<_, DatasetError>(readable.contains(&image));
        let (limit, before) = (source.most_images(), self.config.image_first_probability);
        if let Err(cause) = whole.document.lay_out(limit, before, &mut choices, fetch, &mut self.document)? {
            return Ok(Err(cause.name()));
        }
        let mut size_of = |limits: &SequenceLimits| -> Result<Size, RedrawCause> {
            let sequence = self.composer.compose(&self.document, limits)?;
            Ok(Size { tokens: sequence.tokens.len() as u64, images: sequence.images.len() as u64 })
        };
        let whole = match size_of(&self.limits.1) {
            Ok(size) => size,
            Err(cause) => return Ok(Err(cause.name())),
        };
        let cut = size_of(&self.limits.0);
        // Without images with their marks, and the marks of the text.
        let text = whole.tokens.saturating_sub(whole.images * (self.limits.0.image_tokens() as u64 + 2) + 2);
        self.tally.text_tokens.push(text);
        self.compare(whole, cut.unwrap_or(Size { tokens: 0, images: 0 }));
        Ok(cut.map(drop).map_err(RedrawCause::name))
    }

    fn look_at_image(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        let probed = probe(bytes).map_err(|error| error.cause().name())?;
        self.tally.image_bytes.push(bytes.len() as u64);
        self.tally.image_sides.push(u64::from(probed.width.min(probed.height)));
        *self.tally.formats.entry(probed.format.to_string()).or_default() += 1;
        Ok(())
    }

    /// Counts a sequence without an end, and what the model's context leaves of it.
    fn compare(&mut self, whole: Size, cut: Size) {
        self.tally.images.push(whole.images);
        self.tally.sequence_tokens.push(whole.tokens);
        let counts = &mut self.tally.cut;
        counts.sequences += u64::from(cut.tokens < whole.tokens);
        counts.tokens = (counts.tokens.0 + whole.tokens.saturating_sub(cut.tokens), counts.tokens.1 + whole.tokens);
        counts.images = (counts.images.0 + whole.images.saturating_sub(cut.images), counts.images.1 + whole.images);
    }
}

#[cfg(test)]
mod tests;
