//! Losses and gradients of a step, accumulated over its micro-batches.

use tch::{Kind, TchError, Tensor};

use super::{
    Learner, LearnerError, LossReport,
    forward::{self, Features, Outcome, Prepared, RunOptions},
};
use crate::{
    batch::MicroBatch,
    layout::Extent,
    loss::{Contrast, Counts, Factors, contrast},
    model::drop_path::DropPathKey,
};

/// The contrastive loss of a step, with the gradients of each micro-batch's features.
struct StepContrast {
    whole: Contrast,
    /// Gradients of (images, texts) per micro-batch; `None` where it has no contrastive image.
    parts: Vec<Option<[Tensor; 2]>>,
}

impl Learner {
    pub(super) fn accumulate_gradients(&mut self, step: u64, micro_batches: &[MicroBatch]) -> Result<LossReport, LearnerError> {
        let side = self.model.config().shape.vision.image_size;
        let prepared = micro_batches
            .iter()
            .enumerate()
            .map(|(index, batch)| {
                Prepared::new(batch, &self.rules, side, Extent::Losses).map_err(|source| LearnerError::Batch { index, source })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let counts: Counts = prepared.iter().map(Prepared::counts).sum();
        let factors = Factors::new(self.normalization(), counts, &[counts]);
        let key = DropPathKey { seed: self.optimization.seed, step };
        let options = RunOptions { key, prediction_factor: factors.prediction };
        let mut generation = 0.0;
        let contrastive = if let [only] = prepared.as_slice() {
            let outcome = forward::run(&self.model, only.batch(), &only.layout, options)?;
            let contrast = self.contrast(std::slice::from_ref(&outcome.features), factors)?;
            generation += self.backward(&outcome, contrast.as_ref().and_then(|contrast| contrast.parts.first()))?;
            contrast
        } else {
            let features = self.detached_features(&prepared, options)?;
            let contrast = self.contrast(&features, factors)?;
            for (index, part) in prepared.iter().enumerate() {
                let outcome = forward::run(&self.model, part.batch(), &part.layout, options)?;
                generation += self.backward(&outcome, contrast.as_ref().and_then(|contrast| contrast.parts.get(index)))?;
            }
            contrast
        };
        self.complete_gradients(contrastive.as_ref()).map_err(|source| LearnerError::Backward { source })?;
        self.report(counts, generation, contrastive.as_ref())
    }

    /// The first pass: features without graphs.
    fn detached_features(&self, prepared: &[Prepared<'_>], options: RunOptions) -> Result<Vec<Option<Features>>, LearnerError> {
        let features = |(index, part): (usize, &Prepared<'_>)| {
            if self.weights.contrastive == 0.0 || part.counts().contrast == 0 {
                return Ok(None);
            }
            let layout = part.layout_for(&self.rules, Extent::Contrast).map_err(|source| LearnerError::Batch { index, source })?;
            tch::no_grad(|| forward::run(&self.model, part.batch(), &layout, options)).map(|outcome| outcome.features)
        };
        prepared.iter().enumerate().map(features).collect()
    }

    /// The contrastive loss over all micro-batches; `None` when no image has a context or the loss has no weight.
    fn contrast(&self, features: &[Option<Features>], factors: Factors) -> Result<Option<StepContrast>, LearnerError> {
        let present: Vec<&Features> = features.iter().flatten().collect();
        if present.is_empty() || self.weights.contrastive == 0.0 {
            return Ok(None);
        }
        let compute = || -> Result<StepContrast, TchError> {
            let join = |pick: fn(&Features) -> &Tensor| {
                Tensor::f_cat(&present.iter().map(|features| pick(features)).collect::<Vec<_>>(), 0)?.f_detach()
            };
            let (images, texts) = (join(|features| &features.images)?, join(|features| &features.texts)?);
            let factors = Tensor::f_full([images.size2()?.0], factors.contrast, (images.kind(), images.device()))?;
            let whole = contrast(&images, &texts, self.model.logit_scale(), &factors)?;
            let mut start = 0;
            let parts = features.iter().map(|features| {
                let Some(features) = features else { return Ok(None) };
                let count = features.images.size2()?.0;
                let part = |gradient: &Tensor| gradient.f_narrow(0, start, count);
                let pair = [part(&whole.image_gradient)?, part(&whole.text_gradient)?];
                start += count;
                Ok(Some(pair))
            });
            let parts = parts.collect::<Result<Vec<_>, TchError>>()?;
            Ok(StepContrast { whole, parts })
        };
        let images = present.iter().map(|features| features.images.size().first().copied().unwrap_or_default().unsigned_abs()).sum();
        compute().map(Some).map_err(|source| LearnerError::Contrast { images, source })
    }

    /// One backward pass over ⟨images, their gradient⟩ + ⟨texts, theirs⟩ + generation. Returns the value of the latter.
    fn backward(&self, outcome: &Outcome, gradients: Option<&Option<[Tensor; 2]>>) -> Result<f64, LearnerError> {
        let compute = || -> Result<f64, TchError> {
            let mut terms = Vec::new();
            if let (Some(features), Some(Some([images, texts]))) = (&outcome.features, gradients) {
                let product = |features: &Tensor, gradient: &Tensor| {
                    features.f_mul(&gradient.f_mul_scalar(self.weights.contrastive)?)?.f_sum(None::<Kind>)
                };
                terms.push(product(&features.images, images)?);
                terms.push(product(&features.texts, texts)?);
            }
            if let Some(generation) = &outcome.generation {
                // Without a factor here the fused loss hands over its gradients as they are.
                let is_one = (self.weights.generation - 1.0).abs() < f64::EPSILON;
                terms.push(if is_one { generation.shallow_clone() } else { generation.f_mul_scalar(self.weights.generation)? });
            }
            let mut terms = terms.into_iter();
            if let Some(first) = terms.next() {
                terms.try_fold(first, |total, term| total.f_add(&term))?.f_backward()?;
            }
            outcome.generation.as_ref().map_or(Ok(0.0), |generation| generation.f_double_value(&[]))
        };
        compute().map_err(|source| LearnerError::Backward { source })
    }

    /// Gives the temperature its gradient, and a gradient of zero to every parameter that no loss of this step reaches: the optimizer
    /// then treats it as any other, as it would if another member's rows had reached it.
    fn complete_gradients(&self, contrast: Option<&StepContrast>) -> Result<(), TchError> {
        let mut terms = Vec::new();
        if let Some(contrast) = contrast {
            let gradient = contrast.whole.logit_scale_gradient.f_mul_scalar(self.weights.contrastive)?;
            terms.push(self.model.logit_scale().f_mul(&gradient)?);
        }
        let without = self.model.parameters().iter().filter(|parameter| !parameter.tensor.grad().defined());
        for parameter in without {
            terms.push(parameter.tensor.f_sum(None::<Kind>)?.f_mul_scalar(0.0)?);
        }
        let mut terms = terms.into_iter();
        match terms.next() {
            Some(first) => terms.try_fold(first, |total, term| total.f_add(&term))?.f_backward(),
            None => Ok(()),
        }
    }

    fn report(&self, counts: Counts, generation: f64, contrast: Option<&StepContrast>) -> Result<LossReport, LearnerError> {
        let contrastive = contrast.map_or(Ok(0.0), |contrast| contrast.whole.loss.f_double_value(&[]));
        let contrastive = contrastive.map_err(|source| LearnerError::Contrast { images: counts.contrast, source })?;
        Ok(LossReport {
            total: self.weights.generation * generation + self.weights.contrastive * contrastive,
            generation,
            contrastive,
            generation_positions: counts.predictions,
            contrastive_images: counts.contrast,
        })
    }
}
