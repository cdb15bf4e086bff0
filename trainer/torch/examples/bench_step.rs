//! The training step of `lcl-torch`, measured; `bench/step_compare.py` runs it in turns with the same model in `PyTorch` (`bench/step.py`).
//!
//! The last line it prints is JSON with the same fields as that script's. Batches are made by the same formula, and with `--weights`
//! (written by `step.py --save-weights`) both sides start from the same model and must print the same losses.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use lcl_torch::{Device, Kind, Learner, MicroBatch, StateTensor, Tensor, allocator, choose_device, set_threads, shim::cuda};
use lcl_trainer_config::{
    AugmentationConfig, CheckpointConfig, DataConfig, DataSource, Device as Wanted, FORMAT_VERSION, GradientCompression, ModelConfig,
    ModelShape, Normalization, Objective, OptimizationConfig, Precision, Preset, RuntimeConfig, Schedule, SpecialTokens, TextShape,
    TrainerConfig, VisionShape,
};
use safetensors::SafeTensors;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Size {
    /// 61.2 M parameters: image 224, patch 32, both towers 384/6/6, context 130, vocabulary 49,411; 16 rows of 77 text tokens.
    #[value(name = "61m")]
    Medium,
    /// The `tiny` preset; 64 rows of 24 text tokens.
    Tiny,
}

#[derive(Debug, Parser)]
#[command(about = "Measure the training step")]
struct Arguments {
    #[arg(long, value_enum, default_value = "61m")]
    model: Size,
    #[arg(long, default_value = "float32", value_parser = ["float32", "bfloat16"])]
    precision: String,
    #[arg(long, default_value = "cpu", value_parser = ["cpu", "cuda"])]
    device: String,
    #[arg(long)]
    rows: Option<usize>,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[arg(long, default_value_t = 2)]
    warmup: usize,
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// Initial weights, a safetensors file of the reference's names.
    #[arg(long)]
    weights: Option<PathBuf>,
    /// Leave the C library's allocator as it is.
    #[arg(long)]
    default_allocator: bool,
}

/// Rows and text tokens of each.
struct BatchShape {
    rows: usize,
    text_tokens: usize,
}

fn shape(size: Size) -> (ModelShape, BatchShape) {
    match size {
        Size::Medium => (
            ModelShape {
                vision: VisionShape { image_size: 224, patch_size: 32, width: 384, layers: 6, heads: 6 },
                text: TextShape { width: 384, layers: 6, heads: 6, context_length: 130, vocab_size: 49_411 },
                embed_dim: 384,
                pool_heads: 6,
                special_tokens: SpecialTokens::CLIP,
            },
            BatchShape { rows: 16, text_tokens: 77 },
        ),
        Size::Tiny => (Preset::Tiny.shape(), BatchShape { rows: 64, text_tokens: 24 }),
    }
}

fn config(shape: ModelShape, arguments: &Arguments, rows: usize) -> TrainerConfig {
    let precision = if arguments.precision == "bfloat16" { Precision::Bfloat16 } else { Precision::Float32 };
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
        data: DataConfig {
            source: DataSource::Webdataset { shards: vec!["unused.tar".to_owned()] },
            index_path: None,
            image_first_probability: 0.5,
            augmentation: AugmentationConfig::default(),
            reduced_scale_decoding: false,
            threads: 1,
            prefetch: 1,
        },
        optimization: OptimizationConfig {
            steps: 1_000_000,
            global_batch_size: rows as u64,
            micro_batch_size: None,
            learning_rate: 3e-4,
            weight_decay: 0.1,
            betas: [0.9, 0.98],
            epsilon: 1e-6,
            schedule: Schedule::Constant { warmup_steps: 0 },
            gradient_clip: None,
            normalization: Normalization::Global,
            gradient_compression: GradientCompression::None,
            exact: None,
            seed: 0,
            max_consecutive_skipped_steps: 1,
        },
        checkpoint: CheckpointConfig { uri: "file:///unused".to_owned(), every_steps: 1, keep_last: 1, keep_every_steps: None },
        runtime: RuntimeConfig { device: Wanted::Cpu, threads: Some(arguments.threads) },
    }
}

/// Half the rows image first, half text first.
fn batch(shape: &ModelShape, batch: &BatchShape, device: Device) -> Result<MicroBatch> {
    let patches = usize::try_from(shape.vision.tokens())?;
    let mut tokens = Vec::new();
    for row in 0..batch.rows {
        let text = (0..batch.text_tokens).map(|k| 1 + ((row * 7919 + k * 104_729) % 49_405) as i64);
        let image = [49_409].into_iter().chain(std::iter::repeat_n(49_408, patches)).chain([49_410]);
        if row % 2 == 0 {
            tokens.extend(image.chain(text).chain([49_407]));
        } else {
            tokens.extend([49_406].into_iter().chain(text).chain(image));
        }
    }
    let side = shape.vision.image_size;
    let rows = batch.rows as i64;
    let pixels = Tensor::f_arange(rows * 3 * side * side, (Kind::Double, Device::Cpu))?.f_mul_scalar(0.37)?.f_sin()?;
    Ok(MicroBatch {
        tokens: Tensor::from_slice(&tokens).f_view([rows, -1])?,
        images: pixels.f_to_kind(Kind::Float)?.f_view([rows, 3, side, side])?.f_to_device(device)?,
        slots: (0..batch.rows as u64).collect(),
        image_rows: None,
    })
}

fn load_weights(learner: &mut Learner, path: &PathBuf) -> Result<()> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let file = SafeTensors::deserialize(&bytes).with_context(|| format!("reading {}", path.display()))?;
    let views = file.tensors();
    let tensors = views.iter().map(|(name, view)| StateTensor { name, shape: view.shape(), data: view.data() });
    Ok(learner.load_parameters(tensors)?)
}

/// What the kernel counted for this process.
struct Usage {
    /// Minor page faults.
    faults: i64,
    /// Largest resident size in bytes.
    peak: i64,
    /// Time of all its threads on a processor, in seconds, to a hundredth.
    processor: f64,
}

fn usage() -> Result<Usage> {
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM in /proc/self/status")?;
    let peak: i64 = peak.trim().trim_end_matches(" kB").trim().parse()?;
    let statistics = fs::read_to_string("/proc/self/stat")?;
    // Fields after the program's name in parentheses start with the third: 10 is faults, 14 and 15 are ticks of 10 ms.
    let fields: Vec<&str> = statistics.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |number: usize| -> Result<i64> { Ok(fields.get(number - 3).context("too few fields in /proc/self/stat")?.parse()?) };
    Ok(Usage { faults: field(10)?, peak: peak * 1024, processor: (field(14)? + field(15)?) as f64 / 100.0 })
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if !arguments.default_allocator {
        allocator::retain_memory();
    }
    set_threads(Some(arguments.threads))?;
    let device = choose_device(if arguments.device == "cuda" { Wanted::Cuda } else { Wanted::Cpu }, 0)?;
    let (shape, mut batch_shape) = shape(arguments.model);
    batch_shape.rows = arguments.rows.unwrap_or(batch_shape.rows);
    let config = config(shape.clone(), &arguments, batch_shape.rows);
    let mut learner = Learner::new(&config, device)?;
    if let Some(path) = &arguments.weights {
        load_weights(&mut learner, path)?;
    }
    let micro_batches = [batch(&shape, &batch_shape, device)?];
    let (mut seconds, mut processor_seconds, mut losses, mut faults) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for step in 0..arguments.warmup + arguments.steps {
        let before = usage()?;
        let start = Instant::now();
        let report = learner.train_step(step as u64, &micro_batches)?;
        if let Device::Cuda(index) = device {
            cuda::synchronize(index)?;
        }
        let elapsed = start.elapsed().as_secs_f64();
        ensure!(!report.skipped, "step {step} was skipped: loss {}, gradient norm {}", report.total, report.gradient_norm);
        losses.push(report.total);
        if step >= arguments.warmup {
            let after = usage()?;
            seconds.push(elapsed);
            processor_seconds.push(after.processor - before.processor);
            faults += after.faults - before.faults;
        }
    }
    if seconds.is_empty() {
        bail!("--steps must be at least 1");
    }
    let peak = match device {
        Device::Cuda(index) => cuda::memory_statistics(index)?.peak_allocated as i64,
        _ => usage()?.peak,
    };
    let parameters: usize = learner.model().parameters().iter().map(|parameter| parameter.tensor.numel()).sum();
    let mut result = BTreeMap::new();
    result.insert("side", serde_json::json!("lcl-torch"));
    result.insert("parameters", serde_json::json!(parameters));
    result.insert("rows", serde_json::json!(batch_shape.rows));
    result.insert("page_faults_per_step", serde_json::json!(faults / seconds.len() as i64));
    result.insert("seconds", serde_json::json!(seconds));
    result.insert("processor_seconds", serde_json::json!(processor_seconds));
    result.insert("losses", serde_json::json!(losses));
    result.insert("peak_bytes", serde_json::json!(peak));
    println!("{}", serde_json::to_string(&result)?);
    Ok(())
}
