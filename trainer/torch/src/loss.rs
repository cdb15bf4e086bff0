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

/// The contrastive loss and its gradients.
#[derive(Debug)]
pub struct Contrast {
    /// Scalar.
    pub loss: Tensor,
    /// `[G, E]`.
    pub image_gradient: Tensor,
    /// `[G, E]`.
    pub text_gradient: Tensor,
    /// Scalar.
    pub logit_scale_gradient: Tensor,
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
    let leaf = |tensor: &Tensor| tensor.f_detach()?.f_set_requires_grad(true);
    let (images, texts, logit_scale) = (leaf(images)?, leaf(texts)?, leaf(logit_scale)?);
    let loss = tch::with_grad(|| {
        let similarities = similarities(&images, &texts, &logit_scale)?;
        let of_pairs = |dimension| similarities.f_log_softmax(dimension, None::<Kind>)?.f_diagonal(0, 0, 1);
        of_pairs(1)?.f_add(&of_pairs(0)?)?.f_mul(factors)?.f_sum(None::<Kind>)?.f_mul_scalar(-0.5)
    })?;
    let gradients = Tensor::f_run_backward(&[&loss], &[&images, &texts, &logit_scale], false, false)?;
    let [image_gradient, text_gradient, logit_scale_gradient] = <[Tensor; 3]>::try_from(gradients)
        .map_err(|gradients| TchError::Torch(format!("{} gradients of the contrastive loss instead of 3", gradients.len())))?;
    Ok(Contrast { loss: loss.f_detach()?, image_gradient, text_gradient, logit_scale_gradient })
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
