//! Losses and gradients of a step, accumulated over its micro-batches.

use tch::{Kind, TchError, Tensor};

use super::{
    Learner, LearnerError, LossReport,
    by_source::{self, PartLosses},
    exchange::{Exchange, GlobalFeatures},
    forward::{self, Features, Outcome, Prepared, PreparedRows, RunOptions},
};
use crate::{
    loss::{Contrast, ContrastRows, Counts, Factors},
    model::drop_path::DropPathKey,
    step_span,
};

/// The part of the contrastive loss that this process computes, with the gradients of each micro-batch's features.
struct StepContrast {
    whole: Contrast,
    /// Gradients of (images, texts) per micro-batch; `None` where it has no contrastive image.
    parts: Vec<Option<[Tensor; 2]>>,
}

/// A micro-batch with the factors of the member it belongs to.
struct Weighted<'a> {
    /// Place among the step's micro-batches.
    index: usize,
    prepared: &'a Prepared,
    factors: Factors,
}

/// What a member of the step averages over, and the factors that follow.
#[derive(Clone, Copy)]
struct OfMember {
    counts: Counts,
    factors: Factors,
}

impl Learner {
    /// `members`: the rows of the members that this process computes; all of the step, or its own in a group.
    pub(super) fn accumulate_gradients(
        &mut self,
        step: u64,
        members: &[&PreparedRows],
        exchange: &mut Exchange<'_>,
    ) -> Result<LossReport, LearnerError> {
        let (parts, every) = self.with_factors(members, exchange)?;
        let key = DropPathKey { seed: self.optimization.seed, step };
        let run = |part: &Weighted<'_>| {
            let options = RunOptions { key, prediction_factor: part.factors.prediction, predicts: true, terms: self.sources > 0 };
            forward::run(&self.model, part.prepared.batch(), &part.prepared.layout, options)
        };
        let mut losses = PartLosses::new(self.sources);
        let contrastive = if let [only] = parts.as_slice() {
            let outcome = run(only)?;
            let contrast = self.contrast(std::slice::from_ref(&outcome.features), &every, exchange)?;
            exchange.prepare_sum(self.model.parameters(), self.optimization.gradient_compression)?;
            let gradients = contrast.as_ref().and_then(|contrast| contrast.parts.first());
            self.backward(only.prepared, &outcome, gradients, &mut losses, exchange)?;
            contrast
        } else {
            let features = parts.iter().map(|part| self.detached_features(part, key)).collect::<Result<Vec<_>, _>>()?;
            let contrast = self.contrast(&features, &every, exchange)?;
            if parts.is_empty() {
                exchange.prepare_sum(self.model.parameters(), self.optimization.gradient_compression)?;
            }
            for (index, part) in parts.iter().enumerate() {
                let outcome = run(part)?;
                if index + 1 == parts.len() {
                    // Until here gradients were accumulated on this member alone.
                    exchange.prepare_sum(self.model.parameters(), self.optimization.gradient_compression)?;
                }
                let gradients = contrast.as_ref().and_then(|contrast| contrast.parts.get(index));
                self.backward(part.prepared, &outcome, gradients, &mut losses, exchange)?;
            }
            contrast
        };
        self.complete_gradients(contrastive.as_ref(), exchange)?;
        let counts: Counts = every.iter().map(|of_member| of_member.counts).sum();
        if let Some(contrast) = &contrastive {
            let read = by_source::read(&contrast.whole.loss, (self.sources > 0).then_some(&contrast.whole.terms));
            let (loss, terms) = read.map_err(|source| LearnerError::Contrast { images: counts.contrast, source })?;
            losses.contrastive = loss;
            losses.add_images(parts.iter().map(|part| part.prepared), &terms);
        }
        Ok(self.loss_report(counts, exchange.finish_sum(losses)?))
    }

    /// Gives every micro-batch the factors of its member.
    fn with_factors<'a>(
        &self,
        members: &[&'a PreparedRows],
        exchange: &mut Exchange<'_>,
    ) -> Result<(Vec<Weighted<'a>>, Vec<OfMember>), LearnerError> {
        let local: Vec<Counts> = members.iter().map(|rows| rows.counts()).collect();
        let all = exchange.counts(&local)?;
        let of_member = |counts: Counts| OfMember { counts, factors: Factors::new(self.normalization(), counts, &all) };
        let mut parts = Vec::new();
        for (rows, counts) in members.iter().zip(local) {
            let factors = of_member(counts).factors;
            for prepared in &rows.0 {
                parts.push(Weighted { index: parts.len(), prepared, factors });
            }
        }
        Ok((parts, all.iter().copied().map(of_member).collect()))
    }

    /// The first pass over a micro-batch: features without a graph.
    fn detached_features(&self, part: &Weighted<'_>, key: DropPathKey) -> Result<Option<Features>, LearnerError> {
        if self.weights.contrastive == 0.0 || part.prepared.counts().contrast == 0 {
            return Ok(None);
        }
        let layout = part.prepared.contrast_layout(&self.rules).map_err(|source| LearnerError::Batch { index: part.index, source })?;
        let options = RunOptions { key, prediction_factor: 0.0, predicts: false, terms: false };
        tch::no_grad(|| forward::run(&self.model, part.prepared.batch(), &layout, options)).map(|outcome| outcome.features)
    }

    /// The contrastive loss over all members and micro-batches; `None` when no image has a context or the loss has no weight.
    fn contrast(
        &self,
        features: &[Option<Features>],
        every: &[OfMember],
        exchange: &mut Exchange<'_>,
    ) -> Result<Option<StepContrast>, LearnerError> {
        let _span = step_span!("contrast");
        let images: u64 = every.iter().map(|of_member| of_member.counts.contrast).sum();
        // The same decision on all members: they know each other's counts.
        if images == 0 || self.weights.contrastive == 0.0 {
            return Ok(None);
        }
        let failed = |source| LearnerError::Contrast { images, source };
        let own_images = self.join_features(features, |features| &features.images).map_err(failed)?;
        let own_texts = self.join_features(features, |features| &features.texts).map_err(failed)?;
        let count = own_images.size().first().copied().unwrap_or(0);
        // One process may compute several members; its rows are then all of theirs.
        let rows: Vec<u64> = every.iter().map(|of_member| of_member.counts.contrast).collect();
        let global = exchange.features(own_images, own_texts, &rows)?;
        let own = ContrastRows::new(&global.images, &global.texts, self.model.logit_scale(), global.start, count).map_err(failed)?;
        let log_sums = exchange.gather_rows(own.log_sums(), &rows)?;
        self.contrast_of_rows(features, every, &global, own, &log_sums).map(Some).map_err(failed)
    }

    /// One side of the features of all micro-batches of this process, `[n, E]`, detached.
    pub(super) fn join_features(&self, features: &[Option<Features>], side: fn(&Features) -> &Tensor) -> Result<Tensor, TchError> {
        let present: Vec<&Tensor> = features.iter().flatten().map(side).collect();
        if present.is_empty() {
            return Tensor::f_zeros([0, self.model.config().shape.embed_dim], (self.model.kind(), self.model.device()));
        }
        Tensor::f_cat(&present, 0)?.f_detach()
    }

    /// This process's part of the loss, and the gradients of its rows.
    fn contrast_of_rows(
        &self,
        features: &[Option<Features>],
        every: &[OfMember],
        global: &GlobalFeatures,
        own: ContrastRows,
        log_sums: &Tensor,
    ) -> Result<StepContrast, TchError> {
        let factors: Vec<f64> = every
            .iter()
            .flat_map(|of_member| std::iter::repeat_n(of_member.factors.contrast, of_member.counts.contrast as usize))
            .collect();
        let factors = Tensor::f_from_slice(&factors)?.f_to_kind(global.images.kind())?.f_to_device(global.images.device())?;
        let whole = own.finish(&global.images, &global.texts, self.model.logit_scale(), log_sums, &factors)?;
        let parts = whole.split(features.iter().map(|features| features.as_ref().map_or(0, Features::count)))?;
        Ok(StepContrast { whole, parts })
    }

    /// One backward pass over ⟨images, their gradient⟩ + ⟨texts, theirs⟩ + generation. Adds the latter to `losses`.
    pub(super) fn backward(
        &self,
        prepared: &Prepared,
        outcome: &Outcome,
        gradients: Option<&Option<[Tensor; 2]>>,
        losses: &mut PartLosses,
        exchange: &mut Exchange<'_>,
    ) -> Result<(), LearnerError> {
        let _span = step_span!("backward");
        let mut compute = || -> Result<(), TchError> {
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
                let loss = &generation.loss;
                terms.push(if is_one { loss.shallow_clone() } else { loss.f_mul_scalar(self.weights.generation)? });
            }
            let mut terms = terms.into_iter();
            if let Some(first) = terms.next() {
                terms.try_fold(first, |total, term| total.f_add(&term))?.f_backward()?;
            }
            if let Some(generation) = &outcome.generation {
                let (loss, terms) = by_source::read(&generation.loss, generation.terms.as_ref())?;
                losses.generation += loss;
                losses.add_predictions(prepared, &terms);
            }
            Ok(())
        };
        compute().map_err(|source| exchange.backward_error(source))
    }

    /// Gives the temperature its gradient, and a gradient of zero to every parameter that no loss of this step reaches: the optimizer
    /// then treats it as any other, as it would if another member's rows had reached it. In a group, a parameter that the last backward
    /// pass has not reached gets nothing added here, and its sum over members can start.
    fn complete_gradients(&self, contrast: Option<&StepContrast>, exchange: &mut Exchange<'_>) -> Result<(), LearnerError> {
        let incomplete = exchange.incomplete(self.model.parameters())?;
        let compute = || -> Result<(), TchError> {
            let mut terms = Vec::new();
            if let Some(contrast) = contrast {
                terms.push(self.temperature_term(&contrast.whole.logit_scale_gradient)?);
            }
            for (parameter, _) in self.model.parameters().iter().zip(incomplete).filter(|(_, incomplete)| *incomplete) {
                terms.push(parameter.tensor.f_sum(None::<Kind>)?.f_mul_scalar(0.0)?);
            }
            let mut terms = terms.into_iter();
            match terms.next() {
                Some(first) => terms.try_fold(first, |total, term| total.f_add(&term))?.f_backward(),
                None => Ok(()),
            }
        };
        compute().map_err(|source| exchange.backward_error(source))
    }

    /// What has the temperature's gradient, given that of the contrastive loss.
    pub(super) fn temperature_term(&self, gradient: &Tensor) -> Result<Tensor, TchError> {
        self.model.logit_scale().f_mul(&gradient.f_mul_scalar(self.weights.contrastive)?)
    }

    pub(super) fn loss_report(&self, counts: Counts, losses: PartLosses) -> LossReport {
        let PartLosses { generation, contrastive, sources } = losses;
        LossReport {
            total: self.weights.generation * generation + self.weights.contrastive * contrastive,
            generation,
            contrastive,
            generation_positions: counts.predictions,
            contrastive_images: counts.contrast,
            sources,
        }
    }
}
