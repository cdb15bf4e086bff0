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

/// A micro-batch with the factors of the member it belongs to.
struct Part<'a> {
    /// Place among the step's micro-batches.
    index: usize,
    prepared: Prepared<'a>,
    factors: Factors,
}

impl Learner {
    /// `members`: the micro-batches of every member of the step; this process computes them all.
    pub(super) fn accumulate_gradients(&mut self, step: u64, members: &[&[MicroBatch]]) -> Result<LossReport, LearnerError> {
        let (parts, counts) = self.prepare(members)?;
        let key = DropPathKey { seed: self.optimization.seed, step };
        let run = |part: &Part<'_>| {
            let options = RunOptions { key, prediction_factor: part.factors.prediction };
            forward::run(&self.model, part.prepared.batch(), &part.prepared.layout, options)
        };
        let mut generation = 0.0;
        let contrastive = if let [only] = parts.as_slice() {
            let outcome = run(only)?;
            let contrast = self.contrast(&parts, std::slice::from_ref(&outcome.features))?;
            generation += self.backward(&outcome, contrast.as_ref().and_then(|contrast| contrast.parts.first()))?;
            contrast
        } else {
            let features = parts.iter().map(|part| self.detached_features(part, key)).collect::<Result<Vec<_>, _>>()?;
            let contrast = self.contrast(&parts, &features)?;
            for (index, part) in parts.iter().enumerate() {
                generation += self.backward(&run(part)?, contrast.as_ref().and_then(|contrast| contrast.parts.get(index)))?;
            }
            contrast
        };
        self.complete_gradients(contrastive.as_ref()).map_err(|source| LearnerError::Backward { source })?;
        self.report(counts, generation, contrastive.as_ref())
    }

    /// Checks and lays out every micro-batch, and gives it the factors of its member.
    fn prepare<'a>(&self, members: &[&'a [MicroBatch]]) -> Result<(Vec<Part<'a>>, Counts), LearnerError> {
        let side = self.model.config().shape.vision.image_size;
        let mut index = 0;
        let mut prepared = Vec::new();
        for member in members {
            let mut own = Vec::new();
            for batch in *member {
                let part = Prepared::new(batch, &self.rules, side, Extent::Losses);
                own.push(part.map_err(|source| LearnerError::Batch { index, source })?);
                index += 1;
            }
            prepared.push(own);
        }
        let counts: Vec<Counts> = prepared.iter().map(|own| own.iter().map(Prepared::counts).sum()).collect();
        let mut parts = Vec::with_capacity(index);
        for (own, of_member) in prepared.into_iter().zip(&counts) {
            let factors = Factors::new(self.normalization(), *of_member, &counts);
            for prepared in own {
                parts.push(Part { index: parts.len(), prepared, factors });
            }
        }
        Ok((parts, counts.into_iter().sum()))
    }

    /// The first pass over a micro-batch: features without a graph.
    fn detached_features(&self, part: &Part<'_>, key: DropPathKey) -> Result<Option<Features>, LearnerError> {
        if self.weights.contrastive == 0.0 || part.prepared.counts().contrast == 0 {
            return Ok(None);
        }
        let layout = part.prepared.contrast_layout(&self.rules).map_err(|source| LearnerError::Batch { index: part.index, source })?;
        let options = RunOptions { key, prediction_factor: 0.0 };
        tch::no_grad(|| forward::run(&self.model, part.prepared.batch(), &layout, options)).map(|outcome| outcome.features)
    }

    /// The contrastive loss over all micro-batches; `None` when no image has a context or the loss has no weight.
    fn contrast(&self, parts: &[Part<'_>], features: &[Option<Features>]) -> Result<Option<StepContrast>, LearnerError> {
        let present: Vec<&Features> = features.iter().flatten().collect();
        if present.is_empty() || self.weights.contrastive == 0.0 {
            return Ok(None);
        }
        let compute = || -> Result<StepContrast, TchError> {
            let join = |pick: fn(&Features) -> &Tensor| {
                Tensor::f_cat(&present.iter().map(|features| pick(features)).collect::<Vec<_>>(), 0)?.f_detach()
            };
            let (images, texts) = (join(|features| &features.images)?, join(|features| &features.texts)?);
            let factors: Vec<f64> = parts
                .iter()
                .zip(features)
                .filter_map(|(part, features)| {
                    features.as_ref().map(|features| (part, features.images.size().first().copied().unwrap_or_default()))
                })
                .flat_map(|(part, count)| std::iter::repeat_n(part.factors.contrast, count as usize))
                .collect();
            let factors = Tensor::f_from_slice(&factors)?.f_to_kind(images.kind())?.f_to_device(images.device())?;
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
