//! Small models and micro-batches for the tests of training.

use lcl_torch::{Device, Kind, Learner, LearnerOptions, MicroBatch, Tensor, set_threads};
use lcl_trainer_config::{
    CheckpointConfig, DataConfig, DataSource, Device as WantedDevice, FORMAT_VERSION, GradientCompression, ModelConfig, ModelShape,
    Normalization, Objective, OptimizationConfig, Precision, RuntimeConfig, Schedule, SpecialTokens, TextShape, TrainerConfig, VisionShape,
};

const SPECIAL: SpecialTokens =
    SpecialTokens { start_of_text: 60, end_of_text: 61, image_placeholder: 62, start_of_image: 63, end_of_image: 64 };
const IMAGE_SIDE: i64 = 8;
const TOKENS_PER_IMAGE: usize = 4;

/// A model small enough for hundreds of steps in a test, with every regulariser on.
pub(crate) fn config() -> TrainerConfig {
    let vision = VisionShape { image_size: IMAGE_SIDE, patch_size: 4, width: 24, layers: 3, heads: 2 };
    let text = TextShape { width: 16, layers: 2, heads: 2, context_length: 40, vocab_size: 65 };
    TrainerConfig {
        version: FORMAT_VERSION,
        job: "test".to_owned(),
        model: ModelConfig {
            shape: ModelShape { vision, text, embed_dim: 16, pool_heads: 2, special_tokens: SPECIAL },
            objective: Objective::Lcl { generation_weight: 1.0, contrastive_weight: 0.1 },
            drop_path: 0.4,
            layer_scale: Some(0.5),
            activation_checkpointing: false,
            precision: Precision::Float32,
        },
        data: DataConfig { max_bad_fraction: 1.0, prefetch: 1, ..DataConfig::new(DataSource::webdataset(vec!["none.tar".to_owned()])) },
        optimization: OptimizationConfig {
            steps: 100,
            global_batch_size: 8,
            micro_batch_size: None,
            learning_rate: 1e-3,
            weight_decay: 0.1,
            betas: [0.9, 0.98],
            epsilon: 1e-6,
            schedule: Schedule::Constant { warmup_steps: Some(0) },
            gradient_clip: Some(1.0),
            normalization: Normalization::Global,
            gradient_compression: GradientCompression::None,
            exact: None,
            seed: 11,
            max_consecutive_skipped_steps: 1,
        },
        checkpoint: CheckpointConfig { uri: "file:///unused".to_owned(), every_steps: 1, keep_last: 1, keep_every_steps: None },
        runtime: RuntimeConfig { device: WantedDevice::Cpu, threads: None },
    }
}

pub(crate) fn learner_of_kind(config: &TrainerConfig, kind: Kind) -> Learner {
    // Tests run side by side on models too small to share: more threads would only wait for each other.
    set_threads(Some(1)).expect("one thread");
    config.validate().expect("a configuration that keeps the rules");
    Learner::with_options(config, Device::Cpu, LearnerOptions { kind, ..LearnerOptions::default() }).expect("a learner")
}

pub(crate) fn learner(config: &TrainerConfig) -> Learner {
    learner_of_kind(config, Kind::Float)
}

/// A row as words: `sot`, `eot`, `image` (start, tokens and end), or `tK` for K text tokens.
fn tokens_of(row: &str) -> (Vec<i64>, usize) {
    let (mut tokens, mut images) = (Vec::new(), 0);
    for word in row.split_whitespace() {
        match word {
            "sot" => tokens.push(SPECIAL.start_of_text),
            "eot" => tokens.push(SPECIAL.end_of_text),
            "image" => {
                tokens.push(SPECIAL.start_of_image);
                tokens.extend([SPECIAL.image_placeholder; TOKENS_PER_IMAGE]);
                tokens.push(SPECIAL.end_of_image);
                images += 1;
            }
            text => {
                let count: i64 = text.trim_start_matches('t').parse().expect("a number of text tokens");
                let start = tokens.len() as i64;
                tokens.extend((0..count).map(|index| 1 + (start * 7 + index * 13 + row.len() as i64) % 59));
            }
        }
    }
    (tokens, images)
}

/// A micro-batch of rows, padded to the longest. Row i has slot `slots[i]`; the image at a slot does not depend on its batch.
pub(crate) fn batch(rows: &[(&str, u64)]) -> MicroBatch {
    let rows: Vec<_> = rows.iter().map(|(row, slot)| (tokens_of(row), *slot)).collect();
    let length = rows.iter().map(|((tokens, _), _)| tokens.len()).max().unwrap_or(0);
    let mut tokens = Vec::new();
    let mut images = Vec::new();
    let mut image_rows = Vec::new();
    for (index, ((row, count), slot)) in rows.iter().enumerate() {
        tokens.extend(row.iter().copied().chain(std::iter::repeat_n(0, length - row.len())));
        for image in 0..*count {
            images.push(picture(slot * 10 + image as u64));
            image_rows.push(index as u32);
        }
    }
    let none = || Tensor::zeros([0, 3, IMAGE_SIDE, IMAGE_SIDE], (Kind::Float, Device::Cpu));
    MicroBatch {
        tokens: Tensor::from_slice(&tokens).view([rows.len() as i64, length as i64]),
        images: if images.is_empty() { none() } else { Tensor::stack(&images, 0) },
        slots: rows.iter().map(|(_, slot)| *slot).collect(),
        image_rows: Some(image_rows),
        sources: rows.iter().map(|(_, slot)| source_of(*slot)).collect(),
    }
}

/// A picture that depends on its number alone.
fn picture(number: u64) -> Tensor {
    let pixels = 3 * IMAGE_SIDE * IMAGE_SIDE;
    let values: Vec<f32> = (0..pixels).map(|pixel| ((pixel as f32 * 0.37 + number as f32 * 1.7).sin() * 43.0).sin()).collect();
    Tensor::from_slice(&values).view([3, IMAGE_SIDE, IMAGE_SIDE])
}

/// Documents and pairs of all kinds: images first, last, between; none at all; one without context; ragged lengths.
pub(crate) const ROWS: [(&str, u64); 8] = [
    ("image t5 eot", 0),
    ("sot t3 image", 1),
    ("sot t9 image t4 image t2 eot", 2),
    ("t17", 3),
    ("sot t1 image t12 eot", 4),
    ("t2 image image t3 eot", 5),
    ("image t1 image t6 eot", 6),
    ("sot t7 image", 7),
];

/// The same rows as three micro-batches of uneven size; the second has no image.
pub(crate) fn split_rows() -> Vec<MicroBatch> {
    vec![batch(&ROWS[..3]), batch(&ROWS[3..4]), batch(&ROWS[4..])]
}

/// Relative L2 distance over all gradients.
pub(crate) fn distance(found: &[(&str, Tensor)], expected: &[(&str, Tensor)]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let (mut difference, mut norm) = (0.0, 0.0);
    for ((name, a), (other, b)) in found.iter().zip(expected) {
        assert_eq!(name, other);
        assert!(a.defined() && b.defined(), "{name} has no gradient");
        let square = |tensor: Tensor| tensor.to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[]);
        difference += square(a - b);
        norm += square(b.shallow_clone());
    }
    (difference / norm).sqrt()
}

/// Gradients of a step, detached from the learner.
pub(crate) fn gradients<'a>(learner: &'a mut Learner, step: u64, micro_batches: &[MicroBatch]) -> Vec<(&'a str, Tensor)> {
    learner.compute_gradients(step, micro_batches).expect("gradients");
    learner.gradients().into_iter().map(|(name, gradient)| (name, gradient.copy())).collect()
}

/// Sources that rows are of.
pub(crate) const SOURCES: usize = 3;

/// The source of a slot's row; no row is of the last one.
pub(crate) fn source_of(slot: u64) -> u32 {
    u32::from(slot % 3 == 1)
}
