//! One sample as the model sees it, for `lcl data show`.
//!
//! Comes in: a shard, which sample and which transform. Goes out: caption, token limits and pixels, also as PNG. The same functions as in training
//! make them. It writes no index and no file.

use std::path::Path;

use lcl_trainer_config::{AugmentationConfig, ModelShape, Objective, SampleKeys};

use crate::{
    batch::SkipCause,
    dataset::{Choose, Dataset, DatasetError, Reading},
    draw::{self, Draw, IMAGE_SIZE_LIMIT},
    image::{CropBox, ImageError, ImageTransform, Scratch, probe, to_png},
    index::for_each_sample,
    retry::sleep,
    sequence::{SequenceLimits, SequenceLimitsError},
    shard,
    tokenizer::Tokenizer,
};

/// What is done to the image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ShowTransform {
    /// The training transform with the crop of (seed, step 0, slot = sample).
    Train(AugmentationConfig),
    /// The evaluation transform.
    Evaluate,
    /// The training transform with this crop.
    Crop(CropBox),
}

/// What to show.
#[derive(Clone, Debug)]
pub struct ShowOptions {
    /// Number of the sample in the shard, from 0, among those that pass the filter.
    pub sample: u64,
    /// Which files are images and captions, and which samples count.
    pub keys: SampleKeys,
    /// Seed of the crop, the caption and the image-first choice.
    pub seed: u64,
    /// Side of the transformed image in pixels; the token limits is that of `model`, whatever the size.
    pub size: u32,
    /// What is done to the image.
    pub transform: ShowTransform,
    /// Decode at a reduced scale where the crop allows it, as the training option of that name does.
    pub reduced_scale_decoding: bool,
    /// Gives the token limits.
    pub model: ModelShape,
    /// Decides what a sequence has to fit.
    pub objective: Objective,
    /// Probability that the image precedes its caption.
    pub image_first_probability: f64,
}

/// A sample as the model sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// Samples in the shard.
    pub samples: u64,
    /// What the sample's file names have in common.
    pub key: String,
    /// The caption as it lies in the shard.
    pub caption: String,
    /// Whether the image precedes the caption; meaningful for the LCL objective.
    pub image_first: bool,
    /// Token ids of the sequence, not padded.
    pub tokens: Vec<i64>,
    /// The text of every token, or the name of a special one.
    pub names: Vec<String>,
    /// Columns of the image in the shard.
    pub width: u32,
    /// Its rows.
    pub height: u32,
    /// The part that was kept; `None` for the evaluation transform, which resizes before it crops.
    pub crop: Option<CropBox>,
    /// The transformed image, `[3, size, size]`, normalised.
    pub pixels: Vec<f32>,
    /// The transformed image as PNG, with the normalisation undone.
    pub png: Vec<u8>,
}

/// A sample cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// The shard cannot be read.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The model's shape leaves no room for a sequence.
    #[error(transparent)]
    Limits(#[from] SequenceLimitsError),
    /// Training skips this record.
    #[error(
        "sample {sample} (`{key}`) is a bad record: {cause}; training leaves its slot empty (looked for {keys}; its files are {})",
        .files.join(", ")
    )]
    Skipped {
        /// Number of the sample in the shard.
        sample: u64,
        /// What its file names have in common.
        key: String,
        /// Why.
        cause: SkipCause,
        /// What was looked for.
        keys: Box<SampleKeys>,
        /// The extensions of its files.
        files: Vec<String>,
    },
    /// The image cannot be used, or not with this crop.
    #[error("image of sample {sample} (`{key}`)")]
    Image {
        /// Number of the sample in the shard.
        sample: u64,
        /// What its file names have in common.
        key: String,
        /// Why.
        source: ImageError,
    },
    /// The size is 0 or absurd.
    #[error("size is {size}, but must lie in 1..={limit}")]
    Size {
        /// The size.
        size: u32,
        /// Largest allowed.
        limit: u32,
    },
}

/// Reads one sample of a shard and does to it what training does.
pub fn show(shard: &Path, options: &ShowOptions) -> Result<Shown, ShowError> {
    let &ShowOptions { sample, seed, size, objective, .. } = options;
    if !(1..=IMAGE_SIZE_LIMIT).contains(&size) {
        return Err(ShowError::Size { size, limit: IMAGE_SIZE_LIMIT });
    }
    let dataset = Dataset::of_shard(shard, &options.keys)?;
    let (_, key) = dataset.key(sample)?;
    let draw = Draw { seed, step: 0, slot: sample };
    let read = match dataset.read_with(sample, Choose::Drawn(draw), sleep)? {
        Reading::Sample(read) => read,
        Reading::Skipped(cause) => {
            let files = extensions(shard, &options.keys, dataset.start(sample)?)?;
            return Err(ShowError::Skipped { sample, key, cause, keys: Box::new(options.keys.clone()), files });
        }
    };
    let image = image(read.image(), draw, options).map_err(|source| ShowError::Image { sample, key: key.clone(), source })?;
    let image_first = draw.image_first(options.image_first_probability);
    let tokenizer = Tokenizer::clip();
    let tokens = draw::tokens(&tokenizer.encode(&read.caption), image_first, &SequenceLimits::new(&options.model)?, objective);
    let names = tokenizer.describe(&tokens);
    let Image { width, height, crop, pixels, png } = image;
    Ok(Shown {
        samples: dataset.samples_per_pass(),
        key,
        caption: read.caption,
        image_first,
        tokens,
        names,
        width,
        height,
        crop,
        pixels,
        png,
    })
}

/// The extensions of the files of the sample that begins at this byte.
fn extensions(path: &Path, keys: &SampleKeys, start: u64) -> Result<Vec<String>, DatasetError> {
    let mut found = Vec::new();
    for_each_sample(path, &shard::open(path)?, keys, |files| {
        if files.start == start {
            found = files.extensions.iter().map(|extension| String::from_utf8_lossy(extension).into_owned()).collect();
        }
    })?;
    Ok(found)
}

/// An image before and after the transform.
struct Image {
    width: u32,
    height: u32,
    crop: Option<CropBox>,
    pixels: Vec<f32>,
    png: Vec<u8>,
}

fn image(bytes: &[u8], draw: Draw, options: &ShowOptions) -> Result<Image, ImageError> {
    let transform = ImageTransform { reduced_scale_decoding: options.reduced_scale_decoding, ..ImageTransform::new(options.size) };
    let probed = probe(bytes)?;
    let (width, height) = (probed.width, probed.height);
    let (mut scratch, mut pixels) = (Scratch::new(), vec![0.0; transform.output_len()]);
    let crop = match options.transform {
        ShowTransform::Train(augmentation) => Some(draw.crop(augmentation, width, height)),
        ShowTransform::Crop(crop) => Some(crop),
        ShowTransform::Evaluate => None,
    };
    match crop {
        Some(crop) => transform.crop(bytes, crop, &mut scratch, &mut pixels)?,
        None => transform.evaluate(bytes, &mut scratch, &mut pixels)?,
    };
    let png = to_png(&pixels, options.size);
    Ok(Image { width, height, crop, pixels, png })
}

#[cfg(test)]
mod tests;
