//! The language model: tokens and image tokens in document order to hidden states, and the two heads that read them.

use lcl_trainer_config::ModelShape;
use tch::{TchError, Tensor};

use super::{
    ModelError,
    block::{Arrangement, Block, BlockCall},
    layers::{Norm, gather_rows},
    weights::Weights,
};
use crate::{
    placement::Placement,
    shim::cross_entropy::{linear_cross_entropy_scaled, linear_cross_entropy_terms},
};

/// Causal text transformer.
#[derive(Debug)]
pub(crate) struct LanguageModel {
    token_embedding: Tensor,
    positions: Tensor,
    blocks: Vec<Block>,
    feature_norm: Norm,
    feature_projection: Tensor,
    head: Option<(Norm, Tensor)>,
    checkpointing: bool,
}

impl LanguageModel {
    pub(crate) fn new(weights: &Weights, shape: &ModelShape, has_head: bool, checkpointing: bool) -> Result<Self, ModelError> {
        let head = if has_head { Some((weights.norm("lm_head.0")?, weights.get("lm_head.1.weight")?)) } else { None };
        Ok(Self {
            token_embedding: weights.get("text.token_embedding.weight")?,
            positions: weights.get("text.positional_embedding")?,
            blocks: weights.blocks("text", shape.text.layers, shape.text.heads)?,
            feature_norm: weights.norm("text.ln_final")?,
            feature_projection: weights.get("text.text_projection")?,
            head,
            checkpointing,
        })
    }

    /// Image tokens `[K, W]`, one per image target of the placement, → hidden states of its outputs, `[outputs, W]`.
    pub(crate) fn forward(&self, placement: &Placement, image_tokens: Option<&Tensor>) -> Result<Tensor, TchError> {
        let mut stream = gather_rows(&self.token_embedding, placement.tokens())?;
        if let Some(image_tokens) = image_tokens {
            stream = stream.f_index_copy_(0, placement.image_targets(), &image_tokens.f_to_kind(self.token_embedding.kind())?)?;
        }
        let mut stream = stream.f_add(&gather_rows(&self.positions, placement.positions())?)?;
        let arrangement = Arrangement::Causal(placement.packing());
        let last = self.blocks.len().saturating_sub(1);
        for (index, block) in self.blocks.iter().enumerate() {
            // Behind the last block only the outputs are read.
            let keep = if index == last { placement.outputs() } else { None };
            let call = BlockCall { arrangement: &arrangement, drop_path: [None, None], keep };
            stream = if self.checkpointing { block.forward_checkpointed(&stream, &call)? } else { block.forward(&stream, &call)? };
        }
        Ok(stream)
    }

    /// Hidden states `[K, W]` → contrastive text features `[K, E]`, not normalised.
    pub(crate) fn features(&self, hidden: &Tensor) -> Result<Tensor, TchError> {
        self.feature_norm.forward(hidden)?.f_matmul(&self.feature_projection)
    }

    /// `scale` times the sum of the cross-entropies of predicting `labels` `[K]` from hidden states `[K, W]`; the logits are never kept.
    pub(crate) fn prediction_loss(&self, hidden: &Tensor, labels: &Tensor, scale: f64) -> Result<Tensor, TchError> {
        let (norm, weight) = self.head()?;
        Ok(linear_cross_entropy_scaled(&norm.forward(hidden)?, weight, labels, scale)?)
    }

    /// As [`LanguageModel::prediction_loss`], and the cross-entropies themselves, `[K]`.
    pub(crate) fn prediction_terms(&self, hidden: &Tensor, labels: &Tensor, scale: f64) -> Result<(Tensor, Tensor), TchError> {
        let (norm, weight) = self.head()?;
        Ok(linear_cross_entropy_terms(&norm.forward(hidden)?, weight, labels, scale)?)
    }

    /// Hidden states `[K, W]` → logits `[K, V]`.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Result<Tensor, TchError> {
        let (norm, weight) = self.head()?;
        norm.forward(hidden)?.f_linear(weight, None::<&Tensor>)
    }

    fn head(&self) -> Result<&(Norm, Tensor), TchError> {
        self.head.as_ref().ok_or_else(|| TchError::Torch("a model of the CLIP objective has no language head".to_owned()))
    }
}
