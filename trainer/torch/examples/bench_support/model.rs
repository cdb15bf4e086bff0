//! What the benchmarks of steps measure: models, batches, weights; `bench/step.py` has the same.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use clap::ValueEnum;
use lcl_torch::{Device, Kind, Learner, MicroBatch, StateTensor, Tensor};
use lcl_trainer_config::{
    CheckpointConfig, DataConfig, DataSource, Device as Wanted, FORMAT_VERSION, GradientCompression, ModelConfig, ModelShape,
    Normalization, Objective, OptimizationConfig, Precision, Preset, RuntimeConfig, Schedule, SpecialTokens, TextShape, TrainerConfig,
    VisionShape,
};
use safetensors::SafeTensors;

/// A model by its size.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Size {
    /// 61.2 M parameters: image 224, patch 32, both towers 384/6/6, context 130, vocabulary 49,411; rows of 77 text tokens.
    #[value(name = "61m")]
    Medium,
    /// The `tiny` preset; rows of 24 text tokens.
    Tiny,
    /// The `vit-b-16-laion` preset, 249.9 M parameters; rows of 77 text tokens.
    #[value(name = "b16")]
    Large,
    /// The `vit-l-14-laion` preset, 467.9 M parameters; rows of 77 text tokens.
    #[value(name = "l14")]
    Largest,
}

/// The model.
pub(crate) fn shape(size: Size) -> ModelShape {
    match size {
        Size::Medium => ModelShape {
            vision: VisionShape { image_size: 224, patch_size: 32, width: 384, layers: 6, heads: 6 },
            text: TextShape { width: 384, layers: 6, heads: 6, context_length: 130, vocab_size: 49_411 },
            embed_dim: 384,
            pool_heads: 6,
            special_tokens: SpecialTokens::CLIP,
        },
        Size::Tiny => Preset::Tiny.shape(),
        Size::Large => Preset::VitB16Laion.shape(),
        Size::Largest => Preset::VitL14Laion.shape(),
    }
}

/// Text tokens of a row.
pub(crate) fn text_tokens(size: Size) -> usize {
    match size {
        Size::Medium | Size::Large | Size::Largest => 77,
        Size::Tiny => 24,
    }
}

/// What both measure, with a global batch of `rows`.
pub(crate) fn config(shape: ModelShape, precision: &str, rows: usize, threads: usize) -> TrainerConfig {
    let precision = if precision == "bfloat16" { Precision::Bfloat16 } else { Precision::Float32 };
    TrainerConfig {
        version: FORMAT_VERSION,
        job: "bench".to_owned(),
        model: ModelConfig {
            shape,
            objective: Objective::Lcl { generation_weight: 1.0, contrastive_weight: 0.1 },
            drop_path: 0.0,
            layer_scale: None,
            activation_checkpointing: false,
            precision,
        },
        data: DataConfig { max_bad_fraction: 1.0, prefetch: 1, ..DataConfig::new(DataSource::webdataset(vec!["unused.tar".to_owned()])) },
        optimization: OptimizationConfig {
            steps: 1_000_000,
            global_batch_size: rows as u64,
            micro_batch_size: None,
            learning_rate: 3e-4,
            weight_decay: 0.1,
            betas: [0.9, 0.98],
            epsilon: 1e-6,
            schedule: Schedule::Constant { warmup_steps: Some(0) },
            gradient_clip: None,
            normalization: Normalization::Global,
            gradient_compression: GradientCompression::None,
            exact: None,
            seed: 0,
            max_consecutive_skipped_steps: 1,
        },
        checkpoint: CheckpointConfig { uri: "file:///unused".to_owned(), every_steps: 1, keep_last: 1, keep_every_steps: None },
        runtime: RuntimeConfig { device: Wanted::Cpu, threads: Some(threads) },
    }
}

/// Rows `first..first + count` of the global batch of `total`: half of all image first, half text first.
pub(crate) fn batch(shape: &ModelShape, text_tokens: usize, total: usize, first: usize, count: usize) -> Result<MicroBatch> {
    let patches = usize::try_from(shape.vision.tokens())?;
    let mut tokens = Vec::new();
    for row in first..first + count {
        let text = (0..text_tokens).map(|k| 1 + ((row * 7919 + k * 104_729) % 49_405) as i64);
        let image = [49_409].into_iter().chain(std::iter::repeat_n(49_408, patches)).chain([49_410]);
        if row % 2 == 0 {
            tokens.extend(image.chain(text).chain([49_407]));
        } else {
            tokens.extend([49_406].into_iter().chain(text).chain(image));
        }
    }
    let side = shape.vision.image_size;
    let pixels = Tensor::f_arange(total as i64 * 3 * side * side, (Kind::Double, Device::Cpu))?.f_mul_scalar(0.37)?.f_sin()?;
    let images = pixels.f_to_kind(Kind::Float)?.f_view([total as i64, 3, side, side])?;
    Ok(MicroBatch {
        tokens: Tensor::from_slice(&tokens).f_view([count as i64, -1])?,
        images: images.f_narrow(0, first as i64, count as i64)?.f_contiguous()?,
        slots: (first as u64..(first + count) as u64).collect(),
        image_rows: None,
        sources: Vec::new(),
    })
}

/// Puts the weights of a safetensors file of the reference's names into the model.
pub(crate) fn load_weights(learner: &mut Learner, path: &Path) -> Result<()> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let file = SafeTensors::deserialize(&bytes).with_context(|| format!("reading {}", path.display()))?;
    let views = file.tensors();
    let tensors = views.iter().map(|(name, view)| StateTensor { name, shape: view.shape(), data: view.data() });
    Ok(learner.load_parameters(tensors)?)
}

/// Largest resident size in bytes.
pub(crate) fn peak() -> Result<i64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM in /proc/self/status")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<i64>()? * 1024)
}
