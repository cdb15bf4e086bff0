//! The one configuration that the operator (and `lcl run --local`) writes and the trainer reads, as JSON.
//!
//! Comes in: a validated `LCLTrainingJob`, expanded by `lcl-operator-core` (presets resolved, paths mapped, defaults filled in).
//! Goes out: [`TrainerConfig`], which says everything a training process must know that does not change while it runs.
//! Beside it stands what both sides have to read alike: an entry of the list of shards ([`ShardEntry`]), the keys of a sample's files
//! ([`SampleKeys`]), and what the user calls a field ([`UserField`]).
//! It holds no policy, reads no file and depends on nothing but serde and thiserror.

mod exit_code;
mod fields;
mod keys;
mod model;
mod presets;
mod shards;
mod training;
mod uri;
mod validate;

pub use exit_code::ExitCode;
pub use fields::{Field, UserField};
pub use keys::{CaptionChoice, CaptionFrom, KEYS_LIMIT, KeyKind, KeySeparator, SIDECAR_KEY, SampleKeys};
pub use model::{ModelConfig, ModelShape, Objective, Precision, SpecialTokens, TextShape, VisionShape};
pub use presets::{Preset, UnknownPreset, VOCAB_SIZE};
pub use shards::{LIST_EXTENSION, PATHS_LIMIT, PatternError, ShardEntry, ShardName, ShardPattern, is_object_uri};
pub use training::{
    AugmentationConfig, CACHE_BYTES, CacheConfig, CheckpointConfig, DataConfig, DataSource, Device, DocumentsConfig, ExactConfig,
    GradientCompression, MixedSource, MixtureConfig, MixtureUnit, Mmc4Config, Mmc4Images, Normalization, ObelicsConfig, OptimizationConfig,
    RuntimeConfig, Schedule, ShuffleConfig, TrainerConfig, in_mixture,
};
pub use uri::check_run_uri;
pub use validate::{ConfigError, Rule};

/// Version of the JSON format. A reader refuses any other number.
pub const FORMAT_VERSION: u32 = 1;
