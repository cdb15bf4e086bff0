//! The trained encoders and the language model by themselves, for measurements and transfer.

use tch::{TchError, Tensor};

use super::{Learner, LearnerError, forward::Prepared};
use crate::{
    batch::{HostTokens, MicroBatch, check_images},
    layout::{Extent, Layout},
    model::{Pooled, layers::gather_rows},
    placement::Placement,
};

impl Learner {
    /// Images `[n, 3, S, S]` → L2-normalised vectors `[n, E]` on the model's device. All at once: cut large sets into batches.
    pub fn encode_images(&self, images: &Tensor) -> Result<Tensor, LearnerError> {
        let count = check_images(images, self.model.config().shape.vision.image_size).map_err(LearnerError::Encode)?;
        if count == 0 {
            return self.no_vectors();
        }
        let pooled = self.see(images)?;
        tch::no_grad(|| self.model.normalize(&pooled.latent)).map_err(|source| LearnerError::Forward { source })
    }

    /// Texts `[n, length]` (int64, right-padded with 0) → L2-normalised vectors `[n, E]` on the model's device.
    ///
    /// The feature is read where training reads it: with the LCL objective at a `soi` that takes the place of the first `end_of_text`, or
    /// of the last token if there is none; with the CLIP objective at that token itself.
    pub fn encode_texts(&self, tokens: &Tensor) -> Result<Tensor, LearnerError> {
        let tokens = HostTokens::read(tokens).map_err(LearnerError::Encode)?;
        let layout = Layout::for_texts(&self.rules, tokens.rows()).map_err(LearnerError::Encode)?;
        if tokens.count() == 0 {
            return self.no_vectors();
        }
        let compute = || -> Result<Tensor, TchError> {
            let placement = Placement::new(&layout, 0, self.model.device())?;
            let guard = self.model.autocast()?;
            let hidden = self.model.read(&placement, None)?;
            let features = self.model.text_features(&gather_rows(&hidden, placement.contrast_texts())?)?;
            drop(guard);
            self.model.normalize(&features)
        };
        tch::no_grad(compute).map_err(|source| LearnerError::Forward { source })
    }

    /// Sum of the cross-entropy of the tokens that the generation loss predicts in `batch`, and how many these are; without gradients, without
    /// drop-path. A model of the CLIP objective predicts none.
    pub fn generation_loss(&self, batch: &MicroBatch) -> Result<(f64, u64), LearnerError> {
        let side = self.model.config().shape.vision.image_size;
        let prepared = Prepared::new(batch.shallow_clone(), &self.rules, side, Extent::Losses).map_err(LearnerError::Encode)?;
        let layout = &prepared.layout;
        if layout.labels.is_empty() {
            return Ok((0.0, 0));
        }
        let compute = || -> Result<f64, TchError> {
            let image_tokens = layout.image_rows.len() * self.model.config().shape.vision.tokens() as usize;
            let placement = Placement::new(layout, image_tokens, self.model.device())?;
            let _guard = self.model.autocast()?;
            let image_tokens = if layout.image_targets.is_empty() {
                None
            } else {
                Some(self.model.image_tokens(&self.model.see(&batch.images, None)?, placement.image_sources())?)
            };
            let hidden = self.model.read(&placement, image_tokens.as_ref())?;
            let predicting = match placement.predictions() {
                Some(index) => gather_rows(&hidden, index)?,
                None => hidden,
            };
            self.model.prediction_loss(&predicting, placement.labels(), 1.0)?.f_double_value(&[])
        };
        let sum = tch::no_grad(compute).map_err(|source| LearnerError::Forward { source })?;
        Ok((sum, layout.labels.len() as u64))
    }

    /// The vision tower and pooling without gradients and without drop-path.
    pub(super) fn see(&self, images: &Tensor) -> Result<Pooled, LearnerError> {
        let compute = || -> Result<Pooled, TchError> {
            let _guard = self.model.autocast()?;
            self.model.see(images, None)
        };
        tch::no_grad(compute).map_err(|source| LearnerError::Forward { source })
    }

    fn no_vectors(&self) -> Result<Tensor, LearnerError> {
        let options = (self.model.kind(), self.model.device());
        Tensor::f_zeros([0, self.model.config().shape.embed_dim], options).map_err(|source| LearnerError::Forward { source })
    }
}
