//! The vision tower and what joins it to the language model: images to patch tokens, patch tokens to one vector and to image tokens.

use lcl_trainer_config::ModelShape;
use tch::{TchError, Tensor};

use super::{
    ModelError,
    block::{Arrangement, Block, BlockCall, scaled_dot_product},
    drop_path::DropPath,
    layers::{Linear, Norm, gather_rows},
    weights::Weights,
};

/// Vision transformer.
#[derive(Debug)]
pub(crate) struct VisionTower {
    patch_size: i64,
    patch_embedding: Tensor,
    class_embedding: Tensor,
    positions: Tensor,
    first_norm: Norm,
    blocks: Vec<Block>,
    last_norm: Norm,
    checkpointing: bool,
}

impl VisionTower {
    pub(crate) fn new(weights: &Weights, shape: &ModelShape, checkpointing: bool) -> Result<Self, ModelError> {
        Ok(Self {
            patch_size: shape.vision.patch_size,
            patch_embedding: weights.get("visual.conv1.weight")?,
            class_embedding: weights.get("visual.class_embedding")?,
            positions: weights.get("visual.positional_embedding")?,
            first_norm: weights.norm("visual.ln_pre")?,
            blocks: weights.blocks("visual", shape.vision.layers, shape.vision.heads)?,
            last_norm: weights.norm("visual.ln_post")?,
            checkpointing,
        })
    }

    /// Images `[n, 3, S, S]` → patch tokens `[n · N, W]`. The class token takes part in the blocks and is dropped after them.
    pub(crate) fn forward(&self, images: &Tensor, drop_path: Option<&DropPath>) -> Result<Tensor, TchError> {
        let (count, ..) = images.size4()?;
        let patches = self.embed(images)?;
        let (tokens, width) = (self.positions.size2()?.0, self.positions.size2()?.1);
        let class = self.class_embedding.f_expand([count, 1, width], false)?.f_to_kind(patches.kind())?;
        let stream = Tensor::f_cat(&[class, patches], 1)?.f_add(&self.positions)?.f_view([count * tokens, width])?;
        let mut stream = self.first_norm.forward(&stream)?;
        let arrangement = Arrangement::Full { rows: count, length: tokens };
        let drop_path = drop_path.map(|drop_path| drop_path.place(images.device())).transpose()?;
        for (index, block) in self.blocks.iter().enumerate() {
            let drop_path = drop_path.as_ref().map_or([None, None], |drop_path| drop_path.of_block(index));
            let call = BlockCall { arrangement: &arrangement, drop_path, keep: None };
            stream = if self.checkpointing { block.forward_checkpointed(&stream, &call)? } else { block.forward(&stream, &call)? };
        }
        let patches = stream.f_view([count, tokens, width])?.f_narrow(1, 1, tokens - 1)?;
        self.last_norm.forward(&patches.f_reshape([count * (tokens - 1), width])?)
    }

    /// The convolution whose stride is its kernel's size, as a matrix product over cut-out patches: `[n, 3, S, S]` → `[n, N, W]`.
    fn embed(&self, images: &Tensor) -> Result<Tensor, TchError> {
        let (count, channels, side, _) = images.size4()?;
        let (patch, grid) = (self.patch_size, side / self.patch_size);
        let patches = images
            .f_view([count, channels, grid, patch, grid, patch])?
            .f_permute([0, 2, 4, 1, 3, 5])?
            .f_reshape([count * grid * grid, channels * patch * patch])?;
        let weight = self.patch_embedding.f_view([-1, channels * patch * patch])?;
        patches.f_linear(&weight, None::<&Tensor>)?.f_view([count, grid * grid, -1])
    }
}

/// Attention pooling with one learned query, and the projection of single patches by the same values and output.
#[derive(Debug)]
pub(crate) struct Pooling {
    heads: i64,
    query: Tensor,
    query_norm: Norm,
    key_norm: Norm,
    value_norm: Norm,
    query_linear: Linear,
    key_linear: Linear,
    value_linear: Linear,
    output: Linear,
}

/// What the pooling makes of the patch tokens.
#[derive(Debug)]
pub(crate) struct Pooled {
    /// One vector per image, `[n, E]`, not normalised.
    pub(crate) latent: Tensor,
    /// Every patch's value vector, `[n · N, E]`; [`Pooling::project`] makes image tokens of it.
    pub(crate) values: Tensor,
}

impl Pooling {
    pub(crate) fn new(weights: &Weights, shape: &ModelShape) -> Result<Self, ModelError> {
        let name = |part: &str| format!("pool_project.pooler.{part}");
        let linear = |part: &str| -> Result<Linear, ModelError> {
            let bias = weights.get(&name(&format!("cross_attn.{part}_bias")))?;
            Ok(Linear { weight: weights.get(&name(&format!("cross_attn.{part}.weight")))?, bias: Some(bias) })
        };
        Ok(Self {
            heads: shape.pool_heads,
            query: weights.get("pool_project.query_token")?,
            query_norm: weights.norm(&name("norm1_q"))?,
            key_norm: weights.norm(&name("norm1_k"))?,
            value_norm: weights.norm(&name("norm1_v"))?,
            query_linear: linear("q")?,
            key_linear: linear("k")?,
            value_linear: linear("v")?,
            output: Linear { weight: weights.get(&name("cross_attn.proj.weight"))?, bias: None },
        })
    }

    /// Patch tokens `[n · N, W]` → one vector per image and the patches' values.
    pub(crate) fn forward(&self, patches: &Tensor, images: i64) -> Result<Pooled, TchError> {
        let width = self.output.weight.size2()?.1;
        let heads_first = |rows: &Tensor, count: i64| rows.f_view([count, -1, self.heads, width / self.heads])?.f_transpose(1, 2);
        let query = self.query_linear.forward(&self.query_norm.forward(&self.query.f_view([1, -1])?)?)?;
        let query = heads_first(&query, 1)?.f_expand([images, self.heads, 1, width / self.heads], false)?;
        let keys = self.key_linear.forward(&self.key_norm.forward(patches)?)?;
        let values = self.value_linear.forward(&self.value_norm.forward(patches)?)?;
        let context = scaled_dot_product(&query, &heads_first(&keys, images)?, &heads_first(&values, images)?, false)?;
        let latent = self.output.forward(&context.f_reshape([images, width])?)?;
        Ok(Pooled { latent, values })
    }

    /// Values of patches, all or those at `index`, → image tokens `[K, E]`.
    pub(crate) fn project(&self, values: &Tensor, index: Option<&Tensor>) -> Result<Tensor, TchError> {
        match index {
            Some(index) => self.output.forward(&gather_rows(values, index)?),
            None => self.output.forward(values),
        }
    }
}
