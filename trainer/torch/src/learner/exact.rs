//! Steps whose result does not depend on the number of members: bit for bit.
//!
//! The global batch is cut into a fixed number of virtual shards. Everything is computed per shard, with shapes that depend on the shard
//! alone, and gradients are summed over the shards along a fixed tree ([`super::tree`]). Members own consecutive shards; aligned partial
//! sums travel, the owner of a part of the parameters finishes the tree for it, and all receive the sum.
//!
//! Needs the same number of threads, the same libtorch and the same instruction set on all members.

use std::ops::Range;

use lcl_trainer_config::Normalization;
use tch::{TchError, Tensor};

use super::{
    Learner, LearnerError, LossReport,
    by_source::{self, PartLosses},
    exchange::{Exchange, GlobalFeatures},
    forward::{self, Features, Outcome, Prepared, PreparedRows, RunOptions},
    shard_gradients::ShardGradients,
};
use crate::{
    batch::MicroBatch,
    checksum::checksum,
    loss::{ContrastRows, Counts, Factors},
    model::drop_path::DropPathKey,
    shim::optimizer as kernels,
    step_span,
};

/// The virtual shards that a process computes.
#[derive(Clone, Copy, Debug)]
pub struct OwnShards<'a> {
    /// Micro-batches of each of its shards, in the order of the shards: those that [`shards_of`] gives it. How a shard is cut into
    /// micro-batches must not depend on the number of members.
    pub shards: &'a [&'a [MicroBatch]],
    /// Virtual shards of the global batch.
    pub total: usize,
    /// Whether all shards' activations fit into memory at once, so that no forward pass is run twice. Changes the cost alone.
    pub keep_activations: bool,
}

/// Shards of member `rank` of `world`: consecutive, in rank order, the first ranks one more when they do not divide.
#[must_use]
pub fn shards_of(rank: usize, world: usize, total: usize) -> Range<usize> {
    let (share, rest) = (total / world, total % world);
    let start = rank * share + rank.min(rest);
    start..start + share + usize::from(rank < rest)
}

/// As [`OwnShards`], once the rows are prepared.
#[derive(Clone, Copy, Debug)]
pub struct PreparedShards<'a> {
    /// As [`OwnShards::shards`].
    pub shards: &'a [PreparedRows],
    /// As [`OwnShards::total`].
    pub total: usize,
    /// As [`OwnShards::keep_activations`].
    pub keep_activations: bool,
    /// A shard that a second member computes in this step, too; the same on all members.
    pub verified: Option<Verified<'a>>,
}

/// A shard whose gradient two members compute, and compare bit by bit before anything is updated.
#[derive(Clone, Copy, Debug)]
pub struct Verified<'a> {
    /// Its number.
    pub shard: usize,
    /// Its rows, on the second member; on all others `None`. When they are `None` there, too, nothing is compared.
    pub rows: Option<&'a PreparedRows>,
}

/// What the contrastive loss says about one shard.
struct ShardContrast {
    loss: Tensor,
    /// What it is the sum of, one an image.
    terms: Tensor,
    /// Gradients of (images, texts) per micro-batch; `None` where it has no contrastive image.
    parts: Vec<Option<[Tensor; 2]>>,
    logit_scale_gradient: Tensor,
}

/// Of the own shards, and of one that is computed a second time.
type Contrasts = (Option<Vec<ShardContrast>>, Option<ShardContrast>);

impl Learner {
    pub(super) fn accumulate_exactly(
        &mut self,
        step: u64,
        given: PreparedShards<'_>,
        exchange: &mut Exchange<'_>,
    ) -> Result<LossReport, LearnerError> {
        let (rank, world) = exchange.place();
        self.check_shards(given, rank, world)?;
        let own = shards_of(rank, world, given.total);
        let shards = given.shards;
        let counts = exchange.shard_counts(&shards.iter().map(PreparedRows::counts).collect::<Vec<_>>(), given.total)?;
        let factors = Factors::new(Normalization::Global, Counts::default(), &counts);
        let key = DropPathKey { seed: self.optimization.seed, step };
        let run = |prepared: &Prepared, predicts: bool| {
            let options = RunOptions { key, prediction_factor: factors.prediction, predicts, terms: predicts && self.sources > 0 };
            forward::run(&self.model, prepared.batch(), &prepared.layout, options)
        };
        let prepared = || shards.iter().flat_map(|shard| &shard.0);
        // The same positions in both passes: other shapes could give other bits.
        let mut kept: Vec<Outcome> = Vec::new();
        let mut features: Vec<Option<Features>> = Vec::new();
        for prepared in prepared() {
            let outcome = if given.keep_activations { run(prepared, true)? } else { tch::no_grad(|| run(prepared, false))? };
            features
                .push(outcome.features.as_ref().map(Features::detached).transpose().map_err(|source| LearnerError::Forward { source })?);
            if given.keep_activations {
                kept.push(outcome);
            }
        }
        let second = given.verified.and_then(|verified| verified.rows.map(|rows| (verified.shard, rows)));
        let again = second.map(|(_, rows)| rows.0.iter().map(|prepared| run(prepared, true)).collect::<Result<Vec<_>, _>>()).transpose()?;
        let (contrast, contrast_again) = self.contrast_shards(shards, &features, second, &counts, factors, exchange)?;

        let mut kept = kept.into_iter();
        let mut sums = ShardGradients::new(given.total);
        // Of the gradient of the shard that two members compute, where it is computed.
        let mut found = None;
        let mut losses = Vec::new();
        for (index, shard) in shards.iter().enumerate() {
            let contrast = contrast.as_ref().map(|contrast| &contrast[index]);
            let mut of_shard = PartLosses::new(self.sources);
            for (place, prepared) in shard.0.iter().enumerate() {
                let outcome = kept.next().map_or_else(|| run(prepared, true), Ok)?;
                self.backward(prepared, &outcome, contrast.and_then(|contrast| contrast.parts.get(place)), &mut of_shard, exchange)?;
            }
            self.finish_shard(shard, contrast, &mut of_shard).map_err(|source| exchange.backward_error(source))?;
            losses.push(of_shard);
            // Without any left here, the next shard's are written and not added.
            let gradients = kernels::take_gradients(&self.parameter_tensors()).map_err(LearnerError::Update)?;
            if given.verified.is_some_and(|verified| verified.shard == own.start + index) {
                found = Some(checksum(&gradients).map_err(LearnerError::Hash)?);
            }
            sums.push(own.start + index, gradients).map_err(|source| LearnerError::Backward { source })?;
        }
        if let (Some((_, rows)), Some(outcomes)) = (second, again) {
            let mut unused = PartLosses::new(self.sources);
            for (place, (prepared, outcome)) in rows.0.iter().zip(&outcomes).enumerate() {
                let contrast = contrast_again.as_ref().and_then(|contrast| contrast.parts.get(place));
                self.backward(prepared, outcome, contrast, &mut unused, exchange)?;
            }
            self.finish_shard(rows, contrast_again.as_ref(), &mut unused).map_err(|source| exchange.backward_error(source))?;
            let gradients = kernels::take_gradients(&self.parameter_tensors()).map_err(LearnerError::Update)?;
            found = Some(checksum(&gradients).map_err(LearnerError::Hash)?);
        }
        if let Some(Verified { shard, .. }) = given.verified {
            exchange.compare(shard, found)?;
        }
        let sum = exchange.sum_along_tree(sums, given.total)?;
        let losses = exchange.shard_losses(&losses, given.total)?;
        kernels::set_gradients(&self.parameter_tensors(), &sum).map_err(LearnerError::Update)?;
        Ok(self.loss_report(counts.iter().copied().sum(), losses))
    }

    fn check_shards(&self, given: PreparedShards<'_>, rank: usize, world: usize) -> Result<(), LearnerError> {
        let expected = shards_of(rank, world, given.total).len();
        if self.normalization() != Normalization::Global {
            return Err(LearnerError::Shards { reason: "exact mode needs the global normalisation".to_owned() });
        }
        if world > given.total || given.shards.len() != expected {
            let found = given.shards.len();
            let reason =
                format!("rank {rank} of {world} has {found} of {} virtual shards instead of {expected}, and each needs one", given.total);
            return Err(LearnerError::Shards { reason });
        }
        Ok(())
    }

    /// The contrastive loss per shard, and of a shard that is computed a second time; nothing when no image has a context or the loss has no
    /// weight.
    fn contrast_shards(
        &self,
        shards: &[PreparedRows],
        features: &[Option<Features>],
        second: Option<(usize, &PreparedRows)>,
        counts: &[Counts],
        factors: Factors,
        exchange: &mut Exchange<'_>,
    ) -> Result<Contrasts, LearnerError> {
        let _span = step_span!("contrast");
        let images: u64 = counts.iter().map(|counts| counts.contrast).sum();
        if images == 0 || self.weights.contrastive == 0.0 {
            return Ok((None, None));
        }
        let failed = |source| LearnerError::Contrast { images, source };
        let rows = exchange.rows_of_members(counts);
        let own_images = self.join_features(features, |features| &features.images).map_err(failed)?;
        let own_texts = self.join_features(features, |features| &features.texts).map_err(failed)?;
        let global = exchange.features(own_images, own_texts, &rows)?;
        let mut start = global.start;
        let similar = shards.iter().map(|shard| {
            let count = shard.counts().contrast as i64;
            let rows = ContrastRows::new(&global.images, &global.texts, self.model.logit_scale(), start, count);
            start += count;
            rows
        });
        let similar: Vec<ContrastRows> = similar.collect::<Result<_, _>>().map_err(failed)?;
        let own: Vec<&Tensor> = similar.iter().map(ContrastRows::log_sums).collect();
        let own = Tensor::f_cat(&own, 0).map_err(failed)?;
        let log_sums = exchange.gather_rows(&own, &rows)?;
        let factors = Tensor::f_full([images as i64], factors.contrast, (global.images.kind(), global.images.device())).map_err(failed)?;
        let second = second.map(|(shard, rows)| {
            let start = counts.iter().take(shard).map(|counts| counts.contrast as i64).sum();
            let count = rows.counts().contrast as i64;
            let similar = ContrastRows::new(&global.images, &global.texts, self.model.logit_scale(), start, count)?;
            let pairs: Vec<i64> = rows.0.iter().map(|prepared| prepared.counts().contrast as i64).collect();
            self.contrast_shard(similar, &pairs, &global, &log_sums, &factors)
        });
        let second = second.transpose().map_err(failed)?;
        let mut features = features.iter();
        let parts = similar.into_iter().zip(shards).map(|(rows, shard)| {
            let pairs = features.by_ref().take(shard.0.len()).map(|features| features.as_ref().map_or(0, Features::count));
            self.contrast_shard(rows, &pairs.collect::<Vec<_>>(), &global, &log_sums, &factors)
        });
        Ok((Some(parts.collect::<Result<_, _>>().map_err(failed)?), second))
    }

    /// `pairs`: how many each micro-batch has.
    fn contrast_shard(
        &self,
        rows: ContrastRows,
        pairs: &[i64],
        global: &GlobalFeatures,
        log_sums: &Tensor,
        factors: &Tensor,
    ) -> Result<ShardContrast, TchError> {
        let whole = rows.finish(&global.images, &global.texts, self.model.logit_scale(), log_sums, factors)?;
        let parts = whole.split(pairs.iter().copied())?;
        Ok(ShardContrast { loss: whole.loss, terms: whole.terms, parts, logit_scale_gradient: whole.logit_scale_gradient })
    }

    /// The temperature's part of the gradient; adds the shard's contrastive loss to `losses`.
    fn finish_shard(&self, shard: &PreparedRows, contrast: Option<&ShardContrast>, losses: &mut PartLosses) -> Result<(), TchError> {
        let Some(contrast) = contrast else { return Ok(()) };
        self.temperature_term(&contrast.logit_scale_gradient)?.f_backward()?;
        let (loss, terms) = by_source::read(&contrast.loss, (self.sources > 0).then_some(&contrast.terms))?;
        losses.contrastive = loss;
        losses.add_images(shard.0.iter(), &terms);
        Ok(())
    }

    fn parameter_tensors(&self) -> Vec<&Tensor> {
        self.model.parameters().iter().map(|parameter| &parameter.tensor).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_ranks_have_one_shard_more() {
        assert_eq!((0..3).map(|rank| shards_of(rank, 3, 8)).collect::<Vec<_>>(), [0..3, 3..6, 6..8]);
        assert_eq!(shards_of(0, 1, 8), 0..8);
    }
}
