//! `spec.optimization`: the optimizer's rule and its schedule.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the model is trained. Defaults are the recipe of the released code for image-text pairs.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(COSINE_WARMUP_FITS)
        .message("must not exceed optimization.steps")
        .field_path(".schedule.cosine.warmupSteps"),
    validation = Rule::new(CONSTANT_WARMUP_FITS)
        .message("must not exceed optimization.steps")
        .field_path(".schedule.constant.warmupSteps"),
    validation = Rule::new("!has(self.microBatchSize) || self.microBatchSize <= self.globalBatchSize")
        .message("must not exceed optimization.globalBatchSize")
        .field_path(".microBatchSize"),
    validation = Rule::new("!has(self.exact) || self.globalBatchSize % self.exact.virtualShards == 0")
        .message("must be a multiple of optimization.exact.virtualShards (the default is 8)")
        .field_path(".globalBatchSize"),
    validation = Rule::new("!has(self.exact) || self.normalization == 'Global'")
        .message("must be Global when optimization.exact is given")
        .field_path(".normalization"),
    validation = Rule::new("!has(self.exact) || self.gradientCompression == 'None'")
        .message("must be None when optimization.exact is given")
        .field_path(".gradientCompression"),
    validation = Rule::new("has(self.exact) == has(oldSelf.exact) && (!has(self.exact) || self.exact == oldSelf.exact)")
        .message("must not change after the job was created")
        .field_path(".exact"),
)]
pub struct OptimizationSpec {
    /// Steps of the whole job; one step is one update over the global batch.
    #[schemars(range(min = 1, max = 1_000_000_000_000i64))]
    pub steps: i64,
    /// Samples per step over all members. Constant while the number of workers changes.
    #[schemars(range(min = 1, max = 16_777_216))]
    #[x_kube(validation = ("self == oldSelf", "must not change after the job was created"))]
    pub global_batch_size: i64,
    /// Most samples one member holds in memory at once; its share is cut into the fewest equal parts that fit. The result does not
    /// depend on it. Default: the whole share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16_777_216))]
    pub micro_batch_size: Option<i64>,
    /// Peak learning rate. Default: 5e-4 (released code, pairs).
    #[serde(default = "default_learning_rate")]
    #[schemars(range(min = 1e-12, max = 10.0))]
    pub learning_rate: f64,
    /// Decoupled weight decay of tensors with two or more dimensions. Default: 0.2 (released code; the paper's main run has 0.1).
    #[serde(default = "default_weight_decay")]
    #[schemars(range(min = 0.0, max = 10.0))]
    pub weight_decay: f64,
    /// Decay rates of the optimizer's (`AdamW`) two moments. Default: 0.9 and 0.98 (released code).
    #[serde(default = "default_betas")]
    #[schemars(inner(range(min = 0.0, max = 0.999_999_999)))]
    #[x_kube(validation = ("self == oldSelf", "must not change after the job was created"))]
    pub betas: [f64; 2],
    /// Added to the square root of the second moment. Default: 1e-6 (released code).
    #[serde(default = "default_epsilon")]
    #[schemars(range(min = 1e-16, max = 1.0))]
    #[x_kube(validation = ("self == oldSelf", "must not change after the job was created"))]
    pub epsilon: f64,
    /// Learning rate over the steps. Default: `cosine` (paper and released code).
    #[serde(default)]
    pub schedule: ScheduleSpec,
    /// Largest allowed L2 norm of all gradients together. Default: no clipping (released code).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1e-9, max = 1e9))]
    pub gradient_clip: Option<f64>,
    /// How losses are averaged over the members: `Global`, by the counts of the whole global batch, so that the result does not depend on
    /// the number of members; or `PerRank`, by each member's own counts and then the mean over members, as the released code does.
    #[serde(default)]
    #[x_kube(validation = ("self == oldSelf", "must not change after the job was created"))]
    pub normalization: NormalizationSpec,
    /// Fixes the order of every addition, so that the result has the same bits whatever happens to the workers: killed, replaced, more or
    /// fewer. Costs time; without it sums are as fast as can be, and results agree up to rounding. The bits depend on `microBatchSize`,
    /// on the processor's or GPU's type and on the program's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<ExactSpec>,
    /// How gradients travel between the members: `None`, as they are; or `Bf16`, rounded to 16 bits, which halves what the network carries
    /// and costs accuracy (a relative error of some thousandths in the gradient). Matters to jobs whose network is slower than their steps.
    #[serde(default)]
    #[x_kube(validation = ("self == oldSelf", "must not change after the job was created"))]
    pub gradient_compression: GradientCompressionSpec,
    /// Seed of the initial weights, the order of samples and every random choice.
    #[serde(default)]
    #[schemars(range(min = 0))]
    #[x_kube(validation = ("self == oldSelf", "must not change after the job was created"))]
    pub seed: i64,
    /// The job fails after this many steps in a row with a non-finite loss or gradient. Such a step is skipped and counted.
    #[serde(default = "default_max_consecutive_skipped_steps")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_consecutive_skipped_steps: i32,
}

const COSINE_WARMUP_FITS: &str = "!has(self.schedule.cosine) || !has(self.schedule.cosine.warmupSteps) \
    || self.schedule.cosine.warmupSteps <= self.steps";

const CONSTANT_WARMUP_FITS: &str = "!has(self.schedule.constant) || !has(self.schedule.constant.warmupSteps) \
    || self.schedule.constant.warmupSteps <= self.steps";

/// Learning rate over the steps: exactly one member must be given. It may change while the job exists.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.cosine) != has(self.constant)", "exactly one of cosine and constant must be given"))]
pub struct ScheduleSpec {
    /// Linear from 0 to the peak over `warmupSteps`, then half a cosine to 0 at the last step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cosine: Option<WarmupSpec>,
    /// Linear from 0 to the peak over `warmupSteps`, then constant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constant: Option<WarmupSpec>,
}

impl Default for ScheduleSpec {
    fn default() -> Self {
        Self { cosine: Some(WarmupSpec::default()), constant: None }
    }
}

/// The linear part of a schedule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WarmupSpec {
    /// Steps of the linear part. When left out: 2,000 (paper and released code), but at most a tenth of `steps`. What a run begins with it
    /// keeps, also when `steps` changes later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub warmup_steps: Option<i64>,
}

/// How losses are averaged over the members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NormalizationSpec {
    /// By the counts of the whole global batch: the result does not depend on the number of members.
    #[default]
    Global,
    /// By each member's own counts, then the mean over members, as the released code does.
    PerRank,
}

/// How gradients travel between the members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum GradientCompressionSpec {
    /// As they are.
    #[default]
    None,
    /// Rounded to 16 bits (bfloat16) and summed in them.
    Bf16,
}

/// Exact mode: the global batch is computed in a fixed number of parts, which are summed along a fixed tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ExactSpec {
    /// Parts of the global batch; must divide it, and each member needs at least one. Default: 8.
    #[schemars(range(min = 1, max = 65536))]
    pub virtual_shards: i32,
    /// Processor threads of each member's computation. Default: 1.
    #[schemars(range(min = 1, max = 1024))]
    pub threads: i32,
    /// Steps after which two members compute one of the parts and compare the bits of its gradient: what a processor or accelerator computes
    /// wrongly is found before anything is updated by it, the members are named, and the step is done again. Costs the second computation of a
    /// part, and nothing in between. Without it none is computed twice.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub verify_every_steps: Option<i64>,
}

impl Default for ExactSpec {
    fn default() -> Self {
        Self { virtual_shards: 8, threads: 1, verify_every_steps: None }
    }
}

fn default_learning_rate() -> f64 {
    5e-4
}

fn default_weight_decay() -> f64 {
    0.2
}

fn default_betas() -> [f64; 2] {
    [0.9, 0.98]
}

fn default_epsilon() -> f64 {
    1e-6
}

/// Ten: one bad batch is survived, a diverged run ends within seconds to minutes.
fn default_max_consecutive_skipped_steps() -> i32 {
    10
}
