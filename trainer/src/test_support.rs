//! Configurations for this crate's tests.

use lcl_trainer_config::{
    CheckpointConfig, DataConfig, DataSource, Device, FORMAT_VERSION, GradientCompression, ModelConfig, ModelShape, Normalization,
    Objective, OptimizationConfig, Precision, RuntimeConfig, Schedule, SpecialTokens, TextShape, TrainerConfig, VisionShape,
};

/// A model of some thousand numbers beside its vocabulary.
pub(crate) fn tiny_config() -> TrainerConfig {
    TrainerConfig {
        version: FORMAT_VERSION,
        job: "test".to_owned(),
        model: ModelConfig {
            shape: ModelShape {
                vision: VisionShape { image_size: 32, patch_size: 16, width: 32, layers: 2, heads: 2 },
                text: TextShape { width: 32, layers: 2, heads: 2, context_length: 24, vocab_size: 49_411 },
                embed_dim: 32,
                pool_heads: 2,
                special_tokens: SpecialTokens::CLIP,
            },
            objective: Objective::Lcl { generation_weight: 1.0, contrastive_weight: 0.1 },
            drop_path: 0.0,
            layer_scale: None,
            activation_checkpointing: false,
            precision: Precision::Float32,
        },
        data: DataConfig { max_bad_fraction: 1.0, prefetch: 1, ..DataConfig::new(DataSource::webdataset(vec!["a.tar".to_owned()])) },
        optimization: OptimizationConfig {
            steps: 10,
            global_batch_size: 8,
            micro_batch_size: None,
            learning_rate: 1e-3,
            weight_decay: 0.1,
            betas: [0.9, 0.98],
            epsilon: 1e-6,
            schedule: Schedule::Cosine { warmup_steps: Some(2) },
            gradient_clip: None,
            normalization: Normalization::Global,
            gradient_compression: GradientCompression::None,
            exact: None,
            seed: 1,
            max_consecutive_skipped_steps: 3,
        },
        checkpoint: CheckpointConfig { uri: "file:///nowhere".to_owned(), every_steps: 5, keep_last: 2, keep_every_steps: None },
        runtime: RuntimeConfig { device: Device::Cpu, threads: Some(1) },
    }
}
