//! `spec.model`: sizes, objective, regularisers and arithmetic.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is trained.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("has(self.preset) != has(self.shape)", "exactly one of preset and shape must be given"),
    validation = Rule::new("(has(self.preset) ? self.preset : '') == (has(oldSelf.preset) ? oldSelf.preset : '')")
        .message("must not change after the job was created")
        .field_path(".preset"),
    validation = Rule::new("has(self.shape) == has(oldSelf.shape) && (!has(self.shape) || self.shape == oldSelf.shape)")
        .message("must not change after the job was created")
        .field_path(".shape"),
    validation = Rule::new(
        "has(self.dropPath) == has(oldSelf.dropPath) && (!has(self.dropPath) || self.dropPath == oldSelf.dropPath)"
    )
    .message("must not change after the job was created")
    .field_path(".dropPath"),
    validation = Rule::new(
        "has(self.layerScale) == has(oldSelf.layerScale) && (!has(self.layerScale) || self.layerScale == oldSelf.layerScale)"
    )
    .message("must not change after the job was created")
    .field_path(".layerScale"),
    validation = Rule::new("!has(self.shape) || has(self.objective.clip) || self.shape.text.width == self.shape.embedDim")
        .message("must equal embedDim: the language model takes the image's tokens among its own (clip alone does not)")
        .field_path(".shape.text.width"),
)]
pub struct ModelSpec {
    /// A named model size; either this or `shape` must be given. `vit-b-16-laion` (249.92 M parameters), `vit-b-32-laion` (177.66 M) and
    /// `vit-l-14-laion` (the paper's main model) for images of 224 pixels with captions, `vit-b-32-mmc4` (178.64 M) for documents of up to
    /// 2,048 tokens, for tests and demonstrations `tiny` (14.4 M, images of 64 pixels, captions) and `tiny-mmc4` (the same for documents of up
    /// to 256 tokens).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "PresetName")]
    pub preset: Option<PresetName>,
    /// Explicit sizes in place of a preset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<ModelShapeSpec>,
    /// Which losses are computed. Default: `lcl` with the weights of the paper.
    #[serde(default)]
    #[x_kube(validation = ("self == oldSelf", "must not change after the job was created"))]
    pub objective: ObjectiveSpec,
    /// Highest drop-path probability of the vision tower; it rises linearly from 0 at the first block to this at the last. 0 switches it
    /// off. Default: that of the preset (0.2 for vit-l-14-laion as in the paper, 0 for all others as in the released code), 0 with `shape`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 0.99))]
    pub drop_path: Option<f64>,
    /// Initial value of the vision tower's layer-scale parameters; 0 trains without layer-scale. Default: that of the preset (1e-5 for
    /// vit-l-14-laion, none for all others as in the released code), none with `shape`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 10.0))]
    pub layer_scale: Option<f64>,
    /// Recompute each block's activations in the backward pass instead of keeping them: less memory, more time, the same result.
    #[serde(default)]
    pub activation_checkpointing: bool,
    /// Arithmetic of matrix products: `Float32`, or `Bfloat16` with parameters and moments in float32. Norms, similarities and losses are
    /// float32 in every case.
    #[serde(default)]
    #[x_kube(validation = ("self == oldSelf", "must not change after the job was created"))]
    pub precision: PrecisionSpec,
}

/// A named model size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PresetName {
    /// ViT-B/16, images of 224 pixels, captions; 249.92 M parameters.
    #[serde(rename = "vit-b-16-laion")]
    VitB16Laion,
    /// ViT-B/32, images of 224 pixels, captions; 177.66 M parameters.
    #[serde(rename = "vit-b-32-laion")]
    VitB32Laion,
    /// ViT-B/32, images of 224 pixels, documents of up to 2,048 tokens; 178.64 M parameters.
    #[serde(rename = "vit-b-32-mmc4")]
    VitB32Mmc4,
    /// ViT-L/14, images of 224 pixels, captions; the paper's main model.
    #[serde(rename = "vit-l-14-laion")]
    VitL14Laion,
    /// Images of 64 pixels; for tests and demonstrations.
    #[serde(rename = "tiny")]
    Tiny,
    /// Images of 64 pixels, documents of up to 256 tokens; for tests and demonstrations.
    #[serde(rename = "tiny-mmc4")]
    TinyMmc4,
}

/// Sizes of the vision tower, the language model and what joins them. The vocabulary is always CLIP's with three image tokens.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.embedDim % self.poolHeads == 0").message("must divide embedDim").field_path(".poolHeads"),
    validation = Rule::new(
        "self.text.contextLength > (self.vision.imageSize / self.vision.patchSize) * (self.vision.imageSize / self.vision.patchSize) + 4"
    )
    .message("must exceed the tokens of one image ((imageSize / patchSize) squared) plus 4")
    .field_path(".text.contextLength"),
)]
pub struct ModelShapeSpec {
    /// The vision transformer.
    pub vision: VisionShapeSpec,
    /// The causal language model.
    pub text: TextShapeSpec,
    /// Width of the shared contrastive space, and with the objective `lcl` of the language model.
    #[schemars(range(min = 1, max = 65_536))]
    pub embed_dim: i32,
    /// Heads of the attention pooling; divides `embedDim`.
    #[schemars(range(min = 1, max = 1024))]
    pub pool_heads: i32,
}

/// Sizes of the vision transformer.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.imageSize % self.patchSize == 0").message("must divide imageSize").field_path(".patchSize"),
    validation = Rule::new("self.width % self.heads == 0").message("must divide width").field_path(".heads"),
)]
pub struct VisionShapeSpec {
    /// Side of the square input image in pixels.
    #[schemars(range(min = 1, max = 4096))]
    pub image_size: i32,
    /// Side of a square patch in pixels; divides `imageSize`.
    #[schemars(range(min = 1, max = 4096))]
    pub patch_size: i32,
    /// Channels of the residual stream.
    #[schemars(range(min = 1, max = 65_536))]
    pub width: i32,
    /// Number of blocks.
    #[schemars(range(min = 1, max = 1024))]
    pub layers: i32,
    /// Attention heads per block; divides `width`.
    #[schemars(range(min = 1, max = 1024))]
    pub heads: i32,
}

/// Sizes of the language model.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.width % self.heads == 0").message("must divide width").field_path(".heads"))]
pub struct TextShapeSpec {
    /// Channels of the residual stream.
    #[schemars(range(min = 1, max = 65_536))]
    pub width: i32,
    /// Number of blocks.
    #[schemars(range(min = 1, max = 1024))]
    pub layers: i32,
    /// Attention heads per block; divides `width`.
    #[schemars(range(min = 1, max = 1024))]
    pub heads: i32,
    /// Longest sequence in tokens, those of the image included.
    #[schemars(range(min = 6, max = 1_048_576))]
    pub context_length: i32,
}

/// Which losses are computed: exactly one member must be given.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.lcl) != has(self.clip)", "exactly one of lcl and clip must be given"))]
pub struct ObjectiveSpec {
    /// Latent Compression Learning: the weighted sum of generation and contrast.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lcl: Option<LclObjectiveSpec>,
    /// The paper's baseline: both towers of the same sizes, symmetric contrastive loss only. Write `clip: {}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<ClipObjectiveSpec>,
}

impl Default for ObjectiveSpec {
    fn default() -> Self {
        Self { lcl: Some(LclObjectiveSpec::default()), clip: None }
    }
}

/// Weights of the two losses.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "self.generationWeight > 0.0 || self.contrastiveWeight > 0.0",
    "at least one of generationWeight and contrastiveWeight must be positive"
))]
pub struct LclObjectiveSpec {
    /// Weight of the generation loss (text after the image). Default: 1, as in the paper.
    #[serde(default = "default_generation_weight")]
    #[schemars(range(min = 0.0, max = 1e6))]
    pub generation_weight: f64,
    /// Weight of the contrastive loss (text before the image). Default: 0.1, as in the paper.
    #[serde(default = "default_contrastive_weight")]
    #[schemars(range(min = 0.0, max = 1e6))]
    pub contrastive_weight: f64,
}

impl Default for LclObjectiveSpec {
    fn default() -> Self {
        Self { generation_weight: default_generation_weight(), contrastive_weight: default_contrastive_weight() }
    }
}

/// The paper's weights (arXiv 2406.07543), used by the released code too.
fn default_generation_weight() -> f64 {
    1.0
}

fn default_contrastive_weight() -> f64 {
    0.1
}

/// The contrastive baseline has no settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClipObjectiveSpec {}

/// Arithmetic of matrix products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PrecisionSpec {
    /// IEEE single precision throughout.
    #[default]
    Float32,
    /// Matrix products in bfloat16; parameters and moments stay float32.
    Bfloat16,
}
