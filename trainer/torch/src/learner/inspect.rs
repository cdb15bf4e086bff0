//! Every intermediate output of a forward pass, for comparison with other implementations.

use tch::{TchError, Tensor};

use super::{Learner, LearnerError, forward::Prepared};
use crate::{batch::MicroBatch, layout::Extent, loss::similarities, model::layers::gather_rows, placement::Placement};

/// Intermediate outputs of one micro-batch, without drop-path. `n` images, `c` contrastive ones, `p` predicted tokens.
#[derive(Debug)]
pub struct Inspection {
    /// Pooled image vectors before normalisation, `[n, E]`.
    pub image_latent: Tensor,
    /// Image tokens, `[n, N, E]`.
    pub image_tokens: Tensor,
    /// Hidden states of every position, padding included, `[rows, length, W]`.
    pub text_outputs: Tensor,
    /// Normalised image side of the contrastive loss, `[c, E]`.
    pub image_features: Tensor,
    /// Normalised text side, `[c, E]`.
    pub text_features: Tensor,
    /// Similarities at the temperature, images by texts, `[c, c]`.
    pub similarities: Tensor,
    /// `[p, V]`; empty with the CLIP objective.
    pub logits: Tensor,
    /// `[p]`.
    pub labels: Tensor,
}

impl Learner {
    /// Runs a micro-batch with at least one row and one image through the model and keeps everything.
    pub fn inspect(&self, batch: &MicroBatch) -> Result<Inspection, LearnerError> {
        let shape = &self.model.config().shape;
        let wrong = |source| LearnerError::Batch { index: 0, source };
        let prepared = Prepared::new(batch.shallow_clone(), &self.rules, shape.vision.image_size, Extent::Everything).map_err(wrong)?;
        let layout = &prepared.layout;
        let (images, tokens) = (layout.image_rows.len() as i64, shape.vision.tokens());
        let pooled = self.see(&batch.images)?;
        let compute = || -> Result<Inspection, TchError> {
            let placement = Placement::new(layout, (images * tokens) as usize, self.model.device())?;
            let guard = self.model.autocast()?;
            let image_tokens = self.model.image_tokens(&pooled, None)?;
            let targets = if layout.image_targets.is_empty() { None } else { Some(&image_tokens) };
            let hidden = self.model.read(&placement, targets)?;
            let texts = self.model.text_features(&gather_rows(&hidden, placement.contrast_texts())?)?;
            let predicting = match placement.predictions() {
                Some(index) => gather_rows(&hidden, index)?,
                None => hidden.shallow_clone(),
            };
            let logits = if layout.labels.is_empty() { Tensor::new() } else { self.model.logits(&predicting)? };
            drop(guard);
            let image_features = self.model.normalize(&gather_rows(&pooled.latent, placement.contrast_images())?)?;
            let text_features = self.model.normalize(&texts)?;
            Ok(Inspection {
                image_latent: pooled.latent.shallow_clone(),
                image_tokens: image_tokens.f_view([images, tokens, -1])?,
                text_outputs: hidden.f_view([layout.rows as i64, layout.length as i64, -1])?,
                similarities: similarities(&image_features, &text_features, self.model.logit_scale())?,
                image_features,
                text_features,
                logits,
                labels: placement.labels().shallow_clone(),
            })
        };
        tch::no_grad(compute).map_err(|source| LearnerError::Forward { source })
    }
}
