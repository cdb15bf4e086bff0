//! How losses are averaged, and the contrastive loss over all images of a step.
//!
//! Comes in: counts and detached features. Goes out: factors, the loss and its gradients with respect to the features.
//! The caller puts these gradients into one backward pass of its own rows; no exchange between members ever happens inside of it.

use lcl_trainer_config::Normalization;
use tch::{Kind, TchError, Tensor};

/// What a member (or a micro-batch) has to average over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Positions whose next token is predicted.
    pub predictions: u64,
    /// Images with a context before them.
    pub contrast: u64,
}

impl std::iter::Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |a, b| Self { predictions: a.predictions + b.predictions, contrast: a.contrast + b.contrast })
    }
}

/// Factors that turn one member's sums of terms into its part of the losses: the parts of all members add up to the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factors {
    /// Of every cross-entropy of a predicted token.
    pub prediction: f64,
    /// Of every image's contrastive term.
    pub contrast: f64,
}

impl Factors {
    /// `own`: counts of the member. `members`: counts of all members, its own among them.
    ///
    /// [`Normalization::Global`] averages over everything. [`Normalization::PerRank`] averages over each member's own terms and then over
    /// members, as the reference does. A member or batch without terms has factor 0, so its part is 0 and not NaN.
    #[must_use]
    pub fn new(normalization: Normalization, own: Counts, members: &[Counts]) -> Self {
        let inverse = |count: u64| if count == 0 { 0.0 } else { 1.0 / count as f64 };
        match normalization {
            Normalization::Global => {
                let all: Counts = members.iter().copied().sum();
                Self { prediction: inverse(all.predictions), contrast: inverse(all.contrast) }
            }
            Normalization::PerRank => {
                let share = inverse(members.len() as u64);
                Self { prediction: share * inverse(own.predictions), contrast: share * inverse(own.contrast) }
            }
        }
    }
}

/// The contrastive loss of n consecutive images and texts of a step, and its gradients. Losses and temperature gradients of all parts
/// add up to the step's.
#[derive(Debug)]
pub struct Contrast {
    /// Scalar.
    pub loss: Tensor,
    /// What it is the sum of, without the factors: `[n]`, ½ (cross-entropy of image i over all texts + cross-entropy of text i over all
    /// images).
    pub terms: Tensor,
    /// `[n, E]`.
    pub image_gradient: Tensor,
    /// `[n, E]`.
    pub text_gradient: Tensor,
    /// Scalar.
    pub logit_scale_gradient: Tensor,
}

impl Contrast {
    /// The gradients of (images, texts) in consecutive pieces of the given numbers of rows; `None` for an empty one.
    pub(crate) fn split(&self, counts: impl Iterator<Item = i64>) -> Result<Vec<Option<[Tensor; 2]>>, TchError> {
        let mut start = 0;
        let pieces = counts.map(|count| {
            let piece = |gradient: &Tensor| gradient.f_narrow(0, start, count);
            let pair = if count > 0 { Some([piece(&self.image_gradient)?, piece(&self.text_gradient)?]) } else { None };
            start += count;
            Ok(pair)
        });
        pieces.collect()
    }
}

/// The similarities of n consecutive images to all texts, and of their texts to all images.
///
/// With them and the sums that other members computed over theirs, a member gets its own gradients without the other G − n rows.
#[derive(Debug)]
pub(crate) struct ContrastRows {
    start: i64,
    /// `[n, G]`: own images by all texts.
    of_images: Tensor,
    /// `[n, G]`: own texts by all images.
    of_texts: Tensor,
    log_sums: Tensor,
}

impl ContrastRows {
    /// Rows `start` to `start + count` of L2-normalised `images` and `texts` `[G, E]`.
    pub(crate) fn new(images: &Tensor, texts: &Tensor, logit_scale: &Tensor, start: i64, count: i64) -> Result<Self, TchError> {
        tch::no_grad(|| {
            let of_images = similarities(&images.f_narrow(0, start, count)?, texts, logit_scale)?;
            let of_texts = similarities(&texts.f_narrow(0, start, count)?, images, logit_scale)?;
            let log_sums =
                Tensor::f_stack(&[of_images.f_logsumexp([1].as_slice(), false)?, of_texts.f_logsumexp([1].as_slice(), false)?], 1)?;
            Ok(Self { start, of_images, of_texts, log_sums })
        })
    }

    /// `[n, 2]`: log Σ exp of each image over all texts, and of its text over all images.
    pub(crate) fn log_sums(&self) -> &Tensor {
        &self.log_sums
    }

    /// The part's loss and gradients, given everybody's [`ContrastRows::log_sums`] `[G, 2]` and `factors` `[G]`.
    ///
    /// The derivative of the loss by the similarity of image i and text j is ½ (fᵢ pᵢⱼ + fⱼ qᵢⱼ) − [i = j] fᵢ, where p is image i's
    /// distribution over texts, and q text j's over images.
    pub(crate) fn finish(
        self,
        images: &Tensor,
        texts: &Tensor,
        logit_scale: &Tensor,
        log_sums: &Tensor,
        factors: &Tensor,
    ) -> Result<Contrast, TchError> {
        let Self { start, of_images, of_texts, log_sums: own_sums } = self;
        let count = own_sums.size2()?.0;
        tch::no_grad(|| {
            let own_factors = factors.f_narrow(0, start, count)?;
            // Derivatives by one side's rows of similarities. `row` and `column` pick this side's sums and the other's.
            let derivative = |rows: &Tensor, row: i64, column: i64| -> Result<Tensor, TchError> {
                let over_row = rows.f_sub(&own_sums.f_narrow(1, row, 1)?)?.f_exp_()?.f_mul_(&own_factors.f_unsqueeze(1)?)?;
                let over_column = rows.f_sub(&log_sums.f_select(1, column)?)?.f_exp_()?.f_mul_(factors)?;
                let sum = over_row.f_add(&over_column)?.f_mul_scalar_(0.5)?;
                let _ = sum.f_diagonal(start, 0, 1)?.f_sub_(&own_factors)?;
                Ok(sum)
            };
            let (by_images, by_texts) = (derivative(&of_images, 0, 1)?, derivative(&of_texts, 1, 0)?);
            let scale = logit_scale.f_exp()?;
            let own_pairs = of_images.f_diagonal(start, 0, 1)?;
            let terms = own_sums.f_sum_dim_intlist([1].as_slice(), false, None::<Kind>)?.f_mul_scalar(0.5)?.f_sub(&own_pairs)?;
            Ok(Contrast {
                loss: terms.f_mul(&own_factors)?.f_sum(None::<Kind>)?,
                terms,
                image_gradient: by_images.f_matmul(texts)?.f_mul_(&scale)?,
                text_gradient: by_texts.f_matmul(images)?.f_mul_(&scale)?,
                logit_scale_gradient: by_images.f_mul(&of_images)?.f_sum(None::<Kind>)?,
            })
        })
    }
}

/// Similarities `[G, G]` of images (rows) and texts (columns) at temperature exp(`logit_scale`).
pub(crate) fn similarities(images: &Tensor, texts: &Tensor, logit_scale: &Tensor) -> Result<Tensor, TchError> {
    images.f_matmul(&texts.f_transpose(0, 1)?)?.f_mul(&logit_scale.f_exp()?)
}

/// Symmetric cross-entropy between all images and all texts of a step (CLIP, arXiv 2103.00020, figure 3; LCL §3.2):
/// Σᵢ `factors`ᵢ · ½ (cross-entropy of image i over all texts + cross-entropy of text i over all images).
///
/// `images` and `texts` are L2-normalised `[G, E]`, G > 0, in the same order; `factors` is `[G]`. None of them needs gradients.
pub fn contrast(images: &Tensor, texts: &Tensor, logit_scale: &Tensor, factors: &Tensor) -> Result<Contrast, TchError> {
    let rows = ContrastRows::new(images, texts, logit_scale, 0, images.size2()?.0)?;
    let log_sums = rows.log_sums().shallow_clone();
    rows.finish(images, texts, logit_scale, &log_sums, factors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(predictions: u64, contrast: u64) -> Counts {
        Counts { predictions, contrast }
    }

    #[test]
    fn global_averages_over_everything_and_per_rank_over_each_members_own() {
        let members = [counts(10, 1), counts(30, 3)];
        let check = |normalization, own: usize, prediction: f64, contrast: f64| {
            assert_eq!(Factors::new(normalization, members[own], &members), Factors { prediction, contrast }, "{normalization:?} {own}");
        };
        check(Normalization::Global, 0, 1.0 / 40.0, 1.0 / 4.0);
        check(Normalization::Global, 1, 1.0 / 40.0, 1.0 / 4.0);
        check(Normalization::PerRank, 0, 1.0 / 20.0, 1.0 / 2.0);
        check(Normalization::PerRank, 1, 1.0 / 60.0, 1.0 / 6.0);
    }

    #[test]
    fn nothing_to_average_over_gives_zero() {
        for normalization in [Normalization::Global, Normalization::PerRank] {
            let factors = Factors::new(normalization, counts(0, 0), &[counts(0, 0)]);
            assert_eq!(factors, Factors { prediction: 0.0, contrast: 0.0 });
        }
    }

    #[test]
    fn contrast_of_two_pairs_equals_the_value_worked_out_by_hand() -> Result<(), TchError> {
        // Similarities [[2, 0], [0, 2]]: every term is ln(1 + e^-2).
        let unit = Tensor::f_eye(2, (Kind::Double, tch::Device::Cpu))?;
        let logit_scale = Tensor::from(2f64.ln());
        let found = contrast(&unit, &unit, &logit_scale, &Tensor::from_slice(&[0.5f64, 0.5]))?;
        assert!((f64::try_from(&found.loss)? - (1.0 + (-2f64).exp()).ln()).abs() < 1e-12);
        // d/d ln(s) of ln(1 + e^-s) is -s / (1 + e^s).
        assert!((f64::try_from(&found.logit_scale_gradient)? + 2.0 / (1.0 + 2f64.exp())).abs() < 1e-12);
        Ok(())
    }
}
