//! The trained encoders by themselves, for retrieval and transfer.

use tch::{TchError, Tensor};

use super::{Learner, LearnerError};
use crate::{
    batch::{HostTokens, check_images},
    layout::Layout,
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
