//! Renders the trainer's configuration from a valid job.

use lcl_crds::{CacheSpec, GradientCompressionSpec, NormalizationSpec};
use lcl_trainer_config::{
    AugmentationConfig, CACHE_BYTES, CacheConfig, CheckpointConfig, DataConfig, Device, ExactConfig, FORMAT_VERSION, GradientCompression,
    Normalization, OptimizationConfig, RuntimeConfig, ShuffleConfig, TrainerConfig,
};

use crate::{job::ValidatedJob, paths::PathMapping};

/// What the configuration depends on besides the job: where its processes run.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// From paths in the worker's container to paths where the trainer runs.
    pub paths: PathMapping,
    /// Where the model lives.
    pub device: Device,
    /// Threads of libtorch's operators; `None`: one per core.
    pub threads: Option<usize>,
    /// Folder of the cache of data, when the job does not say; `None`: where the user's caches are.
    pub cache_folder: Option<&'static str>,
    /// Threads that read and decode, when the job does not say; at least one.
    pub data_threads: usize,
}

/// The trainer's configuration: presets expanded, defaults filled in, paths mapped. Always passes [`TrainerConfig::validate`].
#[must_use]
pub fn render_trainer_config(job: &ValidatedJob, surroundings: &Surroundings) -> TrainerConfig {
    let spec = job.spec();
    TrainerConfig {
        version: FORMAT_VERSION,
        job: job.name().to_owned(),
        model: job.model().clone(),
        data: render_data(job, surroundings),
        optimization: render_optimization(job),
        checkpoint: CheckpointConfig {
            uri: surroundings.paths.map_uri(&spec.checkpoint.uri),
            every_steps: spec.checkpoint.every_steps.unsigned_abs(),
            keep_last: spec.checkpoint.keep_last.unsigned_abs(),
            keep_every_steps: spec.checkpoint.keep_every_steps.map(i64::unsigned_abs),
        },
        runtime: RuntimeConfig { device: surroundings.device, threads: surroundings.threads },
    }
}

fn render_data(job: &ValidatedJob, surroundings: &Surroundings) -> DataConfig {
    let data = &job.spec().data;
    let paths = &surroundings.paths;
    DataConfig {
        source: job.source().clone().map(&|shard| paths.map_shard(shard), &|folder| paths.map(folder)),
        index_path: data.index_path.as_deref().map(|path| paths.map(path)),
        cache: render_cache(data.cache.as_ref(), surroundings),
        image_first_probability: data.image_first_probability,
        augmentation: AugmentationConfig { scale: data.augmentation.scale, ratio: data.augmentation.ratio },
        reduced_scale_decoding: data.reduced_scale_decoding,
        shuffle: data.shuffle.as_ref().map_or_else(ShuffleConfig::default, |shuffle| ShuffleConfig {
            lanes: shuffle.lanes.map(i64::unsigned_abs),
            window: shuffle.window.unsigned_abs(),
        }),
        max_bad_fraction: data.max_bad_fraction,
        threads: data.threads.map_or(surroundings.data_threads.max(1), |threads| threads.unsigned_abs() as usize),
        prefetch: data.prefetch.unsigned_abs() as usize,
    }
}

fn render_cache(spec: Option<&CacheSpec>, surroundings: &Surroundings) -> CacheConfig {
    let path = spec.and_then(|cache| cache.path.as_deref()).map(|path| surroundings.paths.map(path));
    let bytes = spec.and_then(|cache| cache.size_gib).map_or(CACHE_BYTES, |size| size.unsigned_abs() << 30);
    CacheConfig { path: path.or_else(|| surroundings.cache_folder.map(str::to_owned)), bytes }
}

fn render_optimization(job: &ValidatedJob) -> OptimizationConfig {
    let optimization = &job.spec().optimization;
    OptimizationConfig {
        steps: optimization.steps.unsigned_abs(),
        global_batch_size: optimization.global_batch_size.unsigned_abs(),
        micro_batch_size: optimization.micro_batch_size.map(i64::unsigned_abs),
        learning_rate: optimization.learning_rate,
        weight_decay: optimization.weight_decay,
        betas: optimization.betas,
        epsilon: optimization.epsilon,
        schedule: job.schedule(),
        gradient_clip: optimization.gradient_clip,
        normalization: match optimization.normalization {
            NormalizationSpec::Global => Normalization::Global,
            NormalizationSpec::PerRank => Normalization::PerRank,
        },
        gradient_compression: match optimization.gradient_compression {
            GradientCompressionSpec::None => GradientCompression::None,
            GradientCompressionSpec::Bf16 => GradientCompression::Bf16,
        },
        exact: optimization.exact.as_ref().map(|exact| ExactConfig {
            virtual_shards: exact.virtual_shards.unsigned_abs(),
            threads: exact.threads.unsigned_abs(),
            verify_every_steps: exact.verify_every_steps.map(i64::unsigned_abs),
        }),
        seed: optimization.seed.unsigned_abs(),
        max_consecutive_skipped_steps: optimization.max_consecutive_skipped_steps.unsigned_abs(),
    }
}
