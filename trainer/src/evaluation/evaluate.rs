//! `evaluate retrieval`: encodes held-out pairs and counts how often the right partner is found.
//!
//! Comes in: a trained model and shards it was not trained on. Goes out: an [`Evaluation`]. The counting is in [`crate::evaluation::retrieval`].

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use lcl_data::{
    Dataset, DatasetError,
    dataset::Reading,
    image::{ImageTransform, Scratch, to_png},
    sequence::{SequenceLimits, SequenceLimitsError, caption_sequence},
    shard::ListOrigin,
    tokenizer::Tokenizer,
};
use lcl_torch::{Kind, Learner, LearnerError, TchError, Tensor};
use lcl_trainer_config::{CacheConfig, DataConfig, DataSource, Device, Field, SampleKeys};

use crate::{
    command_line::cli::KeyArgs,
    evaluation::{
        retrieval::{Evaluation, Gallery, WrongSize},
        trained::{Source, Trained, TrainedError},
    },
};

/// Pairs encoded at once: enough to keep the cores busy, little memory.
pub(crate) const BATCH: usize = 64;
/// Captions shown for an example.
const SHOWN: usize = 3;

/// What to evaluate.
#[derive(Clone, Debug)]
pub struct EvaluateOptions {
    /// The model.
    pub source: Source,
    /// Held-out shards.
    pub shards: Vec<String>,
    /// Which files of a sample are looked for; what is left out is as in training.
    pub keys: KeyArgs,
    /// Folder for their indexes, when not beside them.
    pub index_path: Option<String>,
    /// What it is called.
    pub name: String,
    /// Where the model computes.
    pub device: Device,
    /// Threads of libtorch's operators.
    pub threads: Option<usize>,
}

/// The evaluation failed.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The model cannot be read.
    #[error("reading the model")]
    Trained(#[from] TrainedError),
    /// The shards cannot be read.
    #[error("reading the held-out shards")]
    Dataset(#[from] DatasetError),
    /// The model's sequences cannot hold a caption.
    #[error("laying out captions")]
    Limits(#[from] SequenceLimitsError),
    /// The keys that were asked for cannot be met.
    #[error("{option} {rule}")]
    Keys {
        /// The option.
        option: &'static str,
        /// What it has to be.
        rule: &'static str,
    },
    /// No sample could be used.
    #[error("none of the {samples} samples can be used ({})", counted(.causes))]
    NoSample {
        /// Samples in the shards.
        samples: u64,
        /// Why, by cause.
        causes: BTreeMap<String, u64>,
    },
    /// The model predicts no text.
    #[error("the model was trained with the clip objective, which predicts no text: there is no generation loss to measure")]
    NoGeneration,
    /// The images or texts could not be encoded.
    #[error("encoding images and texts")]
    Learner(#[from] LearnerError),
    /// libtorch failed.
    #[error("comparing images and texts")]
    Compare(#[from] TchError),
    /// The similarities are not a square.
    #[error("comparing images and texts")]
    Size(#[from] WrongSize),
    /// The image size does not fit.
    #[error("{} is {size}, which is no size of an image", Field("model.shape.vision.imageSize"))]
    ImageSize {
        /// The size.
        size: i64,
    },
}

/// A model and the held-out pairs that it is measured on.
pub(crate) struct Opened {
    pub(crate) trained: Trained,
    pub(crate) learner: Learner,
    pub(crate) dataset: Dataset,
    pub(crate) transform: ImageTransform,
    pub(crate) limits: SequenceLimits,
}

/// Reads the model and opens the shards.
pub(crate) fn open(options: &EvaluateOptions) -> Result<Opened, EvaluateError> {
    let trained = Trained::read(&options.source)?;
    let learner = trained.learner(options.device, options.threads)?;
    let keys = options
        .keys
        .or(trained.config.data.source.keys().unwrap_or(&SampleKeys::default()))
        .map_err(|(option, rule)| EvaluateError::Keys { option, rule })?;
    let data = DataConfig {
        source: DataSource::Webdataset { shards: options.shards.clone(), keys },
        index_path: options.index_path.clone(),
        // Where the run was has another disk.
        cache: CacheConfig::default(),
        ..trained.config.data.clone()
    };
    let dataset = Dataset::open_from(&data, ListOrigin::Arguments)?;
    let size = trained.config.model.shape.vision.image_size;
    let transform = ImageTransform::new(u32::try_from(size).map_err(|_| EvaluateError::ImageSize { size })?);
    let limits = SequenceLimits::new(&trained.config.model.shape)?;
    Ok(Opened { trained, learner, dataset, transform, limits })
}

/// The usable pairs of the shards, encoded.
struct Encoded {
    captions: Vec<String>,
    images: Vec<Tensor>,
    texts: Vec<Tensor>,
    samples: Vec<u64>,
    skipped: BTreeMap<String, u64>,
}

/// Evaluates retrieval over all usable pairs of the shards, with so many examples.
pub fn retrieval(options: &EvaluateOptions, shown: usize) -> Result<Evaluation, EvaluateError> {
    let Opened { trained, learner, dataset, transform, limits } = open(options)?;
    let encoded = encode(&learner, &dataset, &transform, &limits)?;
    if encoded.captions.is_empty() {
        return Err(EvaluateError::NoSample { samples: dataset.samples_per_pass(), causes: encoded.skipped });
    }
    let (images, texts) = (Tensor::f_cat(&encoded.images, 0)?, Tensor::f_cat(&encoded.texts, 0)?);
    let similarities = images.f_matmul(&texts.f_transpose(0, 1)?)?.f_contiguous()?.f_view([-1])?;
    let similarities = Vec::<f32>::try_from(&similarities)?;
    let gallery = Gallery::new(&encoded.captions, &similarities)?;
    Ok(Evaluation {
        name: options.name.clone(),
        completed_steps: trained.restored.id.step,
        gallery: encoded.captions.len(),
        distinct_captions: gallery.distinct_captions(),
        skipped: encoded.skipped.values().sum::<u64>() as usize,
        image_to_text: gallery.image_to_text(),
        text_to_image: gallery.text_to_image(),
        examples: examples(&gallery, &encoded, &dataset, &transform, shown)?,
    })
}

fn encode(learner: &Learner, dataset: &Dataset, transform: &ImageTransform, limits: &SequenceLimits) -> Result<Encoded, EvaluateError> {
    let tokenizer = Tokenizer::clip();
    let mut scratch = Scratch::new();
    let mut encoded =
        Encoded { captions: Vec::new(), images: Vec::new(), texts: Vec::new(), samples: Vec::new(), skipped: BTreeMap::new() };
    let mut pixels = Vec::new();
    let mut sequences = Vec::new();
    let total = dataset.samples_per_pass();
    for sample in 0..total {
        let begin = pixels.len();
        let skipped = match dataset.read(sample)? {
            Reading::Sample(pair) => {
                pixels.resize(begin + transform.output_len(), 0.0);
                let target = pixels.get_mut(begin..).unwrap_or_default();
                match transform.evaluate(pair.image(), &mut scratch, target) {
                    Ok(_) => {
                        sequences.push(caption_sequence(&tokenizer.encode(&pair.caption), limits));
                        encoded.captions.push(pair.caption);
                        encoded.samples.push(sample);
                        None
                    }
                    Err(error) => {
                        pixels.truncate(begin);
                        Some(error.cause())
                    }
                }
            }
            Reading::Skipped(cause) => Some(cause),
        };
        if let Some(cause) = skipped {
            *encoded.skipped.entry(cause.to_string()).or_default() += 1;
        }
        if sequences.len() == BATCH || (sample + 1 == total && !sequences.is_empty()) {
            encode_batch(learner, transform, &pixels, &sequences, &mut encoded)?;
            pixels.clear();
            sequences.clear();
        }
    }
    Ok(encoded)
}

fn encode_batch(
    learner: &Learner,
    transform: &ImageTransform,
    pixels: &[f32],
    sequences: &[Vec<i64>],
    encoded: &mut Encoded,
) -> Result<(), EvaluateError> {
    let (count, side) = (sequences.len() as i64, i64::from(transform.size));
    let images = Tensor::f_from_slice(pixels)?.f_view([count, 3, side, side])?.f_to_device(learner.model().device())?;
    let length = sequences.iter().map(Vec::len).max().unwrap_or(0);
    let tokens: Vec<i64> =
        sequences.iter().flat_map(|sequence| sequence.iter().copied().chain(std::iter::repeat_n(0, length - sequence.len()))).collect();
    let tokens = Tensor::f_from_slice(&tokens)?.f_view([count, length as i64])?;
    let to_host = |tensor: Tensor| tensor.f_to_device(lcl_torch::Device::Cpu)?.f_to_kind(Kind::Float);
    encoded.images.push(to_host(learner.encode_images(&images)?)?);
    encoded.texts.push(to_host(learner.encode_texts(&tokens)?)?);
    Ok(())
}

/// Examples spread evenly over the gallery, so that nobody picked them.
fn examples(
    gallery: &Gallery<'_>,
    encoded: &Encoded,
    dataset: &Dataset,
    transform: &ImageTransform,
    wanted: usize,
) -> Result<Vec<crate::evaluation::retrieval::Example>, EvaluateError> {
    let count = encoded.captions.len();
    let wanted = wanted.min(count);
    let mut scratch = Scratch::new();
    let mut examples = Vec::new();
    for place in (0..wanted).map(|index| (2 * index + 1) * count / (2 * wanted)) {
        let (Some(mut example), Some(sample)) = (gallery.example(place, SHOWN), encoded.samples.get(place)) else { continue };
        let mut pixels = vec![0.0; transform.output_len()];
        if let Reading::Sample(pair) = dataset.read(*sample)?
            && transform.evaluate(pair.image(), &mut scratch, &mut pixels).is_ok()
        {
            example.image_png_base64 = Some(STANDARD.encode(to_png(&pixels, transform.size)));
        }
        examples.push(example);
    }
    Ok(examples)
}

/// Causes with how often each was met, most frequent first.
pub(crate) fn counted(causes: &BTreeMap<String, u64>) -> String {
    let mut causes: Vec<_> = causes.iter().collect();
    causes.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    causes.iter().map(|(cause, count)| format!("{cause}: {count}")).collect::<Vec<_>>().join(", ")
}

/// The evaluation for people.
#[must_use]
pub fn to_text(evaluation: &Evaluation) -> String {
    use std::fmt::Write;
    let mut text = format!(
        "{} after {} steps: gallery of {} pairs, {} distinct captions (an equal caption counts as found)",
        evaluation.name, evaluation.completed_steps, evaluation.gallery, evaluation.distinct_captions
    );
    if evaluation.skipped > 0 {
        let _ = write!(text, ", {} unusable samples left out", evaluation.skipped);
    }
    text.push('\n');
    for (name, direction) in [("image → text", &evaluation.image_to_text), ("text → image", &evaluation.text_to_image)] {
        let _ = write!(text, "  {name}");
        for recall in &direction.recalls {
            let (recall, chance, k) = (100.0 * recall.recall, 100.0 * recall.chance, recall.k);
            let _ = write!(text, "   @{k} {recall:.1} % (chance {chance:.1} %)");
        }
        text.push('\n');
    }
    for example in &evaluation.examples {
        let _ = writeln!(text, "  an image of \"{}\" (right caption at rank {}):", example.caption, example.rank);
        for found in &example.retrieved {
            let mark = if found.correct { "✓" } else { " " };
            let _ = writeln!(text, "    {mark} {:.3}  {}", found.similarity, found.caption);
        }
    }
    text
}
