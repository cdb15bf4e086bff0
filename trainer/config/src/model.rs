//! What is trained: shapes, regularisers, objective and precision.

use serde::{Deserialize, Serialize};

/// Everything that determines the parameters' names, shapes and the forward computation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelConfig {
    /// Sizes of both towers.
    pub shape: ModelShape,
    /// Which losses are computed.
    pub objective: Objective,
    /// Highest drop-path probability of the vision tower; rises linearly from 0 at the first block to this at the last.
    /// 0 switches it off.
    pub drop_path: f64,
    /// Initial value of the vision tower's layer-scale, or `None` for no layer-scale parameters.
    pub layer_scale: Option<f64>,
    /// Recompute each block's activations in the backward pass instead of keeping them.
    pub activation_checkpointing: bool,
    /// Arithmetic of matrix products. Norms, softmax, similarities and losses are float32 in every case.
    pub precision: Precision,
}

/// Sizes of the vision tower, the language model and what joins them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelShape {
    /// The vision tower.
    pub vision: VisionShape,
    /// The language model.
    pub text: TextShape,
    /// Width of the shared contrastive space.
    pub embed_dim: i64,
    /// Heads of the attention pooling.
    pub pool_heads: i64,
    /// Ids of the tokens with a meaning of their own.
    pub special_tokens: SpecialTokens,
}

/// Vision transformer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VisionShape {
    /// Side of the square input image in pixels.
    pub image_size: i64,
    /// Side of a square patch in pixels; divides `image_size`.
    pub patch_size: i64,
    /// Channels of the residual stream.
    pub width: i64,
    /// Number of blocks.
    pub layers: i64,
    /// Attention heads per block; divides `width`.
    pub heads: i64,
}

/// Causal text transformer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TextShape {
    /// Channels of the residual stream.
    pub width: i64,
    /// Number of blocks.
    pub layers: i64,
    /// Attention heads per block; divides `width`.
    pub heads: i64,
    /// Longest sequence in tokens, image tokens included.
    pub context_length: i64,
    /// Entries of the token embedding and of the LM head.
    pub vocab_size: i64,
}

/// Ids of the tokens with a meaning of their own. Padding is always id 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SpecialTokens {
    /// `<start_of_text>`
    pub start_of_text: i64,
    /// `<end_of_text>`
    pub end_of_text: i64,
    /// `<img_placehold>`: a position filled by an image token.
    pub image_placeholder: i64,
    /// `<start_of_img>`
    pub start_of_image: i64,
    /// `<end_of_img>`
    pub end_of_image: i64,
}

impl SpecialTokens {
    /// The ids of the CLIP vocabulary (49,408 entries) plus the three image tokens.
    pub const CLIP: Self =
        Self { start_of_text: 49_406, end_of_text: 49_407, image_placeholder: 49_408, start_of_image: 49_409, end_of_image: 49_410 };
}

impl VisionShape {
    /// Patch tokens of one image, the class token not counted.
    #[must_use]
    pub fn tokens(&self) -> i64 {
        let side = self.image_size / self.patch_size;
        side * side
    }
}

/// Which losses are computed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, tag = "kind")]
pub enum Objective {
    /// Latent Compression Learning: `generation_weight` · generation + `contrastive_weight` · contrast.
    #[serde(rename_all = "camelCase")]
    Lcl {
        /// Weight of the generation loss (text after the image).
        generation_weight: f64,
        /// Weight of the contrastive loss (text before the image).
        contrastive_weight: f64,
    },
    /// The paper's baseline: image and text towers of the same shape, symmetric contrastive loss only.
    Clip,
}

/// Arithmetic of matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Precision {
    /// IEEE single precision throughout.
    Float32,
    /// Matrix products in bfloat16 under autocast; parameters and moments stay float32.
    Bfloat16,
}
