//! Fused linear layer and cross-entropy: the logits of the language model's head are never kept.
#![allow(unsafe_code, reason = "calls the C++ shim")]

use std::ptr;

use tch::Tensor;

use super::{ShimError, check, ffi, own, raw};

/// What errors call it.
const OPERATION: &str = "fused linear and cross-entropy";

/// `scale` times the sum over the rows of the cross-entropy of `softmax(hidden · weightᵀ)` against `labels`.
///
/// `hidden` is `[P, W]`, `weight` `[V, W]`, `labels` `[P]` int64 in `0..V`; `P` may be 0.
/// Returns a scalar: float64 for float64 input, else float32. Under autocast the matrix products run in autocast's type; softmax and
/// sums do not. Gradients of `hidden` and `weight` are formed during this call, `scale` included, and handed over in one backward pass:
/// as they are when the gradient of the result is 1, multiplied by it otherwise. A second backward pass through the same call is an
/// error. Without a need for gradients only the loss is computed.
///
/// # Errors
/// Shapes or types that do not fit, a label outside `0..V` (on a GPU libtorch's own check stops the device instead).
pub fn linear_cross_entropy_scaled(hidden: &Tensor, weight: &Tensor, labels: &Tensor, scale: f64) -> Result<Tensor, ShimError> {
    let mut loss = ptr::null_mut();
    // SAFETY: the arguments are live tensors, `loss` is written on success only; nobody asks for terms.
    let status = unsafe { ffi::lcl_linear_cross_entropy(raw(hidden), raw(weight), raw(labels), scale, &raw mut loss, ptr::null_mut()) };
    check(OPERATION, status)?;
    // SAFETY: a new tensor of the shim.
    Ok(unsafe { own(loss) })
}

/// As [`linear_cross_entropy_scaled`], and every row's cross-entropy `[P]`: not scaled, and no part of the graph. They are computed
/// anyhow; asking for them costs their memory, and changes no bit of the sum and the gradients.
///
/// # Errors
/// As [`linear_cross_entropy_scaled`].
pub fn linear_cross_entropy_terms(hidden: &Tensor, weight: &Tensor, labels: &Tensor, scale: f64) -> Result<(Tensor, Tensor), ShimError> {
    let (mut loss, mut terms) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: the arguments are live tensors, `loss` and `terms` are written on success only.
    let status = unsafe { ffi::lcl_linear_cross_entropy(raw(hidden), raw(weight), raw(labels), scale, &raw mut loss, &raw mut terms) };
    check(OPERATION, status)?;
    // SAFETY: new tensors of the shim.
    Ok(unsafe { (own(loss), own(terms)) })
}

/// [`linear_cross_entropy_scaled`] with scale 1: the sum.
pub fn linear_cross_entropy(hidden: &Tensor, weight: &Tensor, labels: &Tensor) -> Result<Tensor, ShimError> {
    linear_cross_entropy_scaled(hidden, weight, labels, 1.0)
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "these values have no rounding error")]
mod tests {
    use tch::{Device, Kind, Reduction, TchError};

    use super::*;
    use crate::shim::AutocastGuard;

    /// A problem with labels at the ends of the vocabulary and of its tiles.
    struct Problem {
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
    }

    /// Loss, gradient of hidden, gradient of the weight.
    type Outcome = [Tensor; 3];

    fn noise(shape: [i64; 2], scale: f64, kind: Kind) -> Tensor {
        // A fixed formula: no generator shared with other tests.
        let count = shape[0] * shape[1];
        let angles = (Tensor::arange(count, (Kind::Double, Device::Cpu)) * 12.9898 + 4.1).sin() * 43_758.545;
        ((&angles - angles.floor()) * (2.0 * scale) - scale).view(shape).to_kind(kind)
    }

    impl Problem {
        fn new(rows: i64, vocabulary: i64, width: i64, kind: Kind) -> Self {
            let mut labels: Vec<i64> = (0..rows).map(|row| (row * 7919) % vocabulary).collect();
            // Tiles have at least 256 and at most 8192 entries, multiples of 64.
            let ends = [0, 255, 256, 8191, 8192, vocabulary - 1];
            for (label, end) in labels.iter_mut().zip(ends) {
                *label = end.min(vocabulary - 1);
            }
            let hidden = noise([rows, width], 1.0, kind).set_requires_grad(true);
            let weight = noise([vocabulary, width], 1.0, kind).set_requires_grad(true);
            Self { hidden, weight, labels: Tensor::from_slice(&labels) }
        }

        fn leaves(&self, kind: Kind) -> [Tensor; 2] {
            [&self.hidden, &self.weight].map(|tensor| tensor.detach().to_kind(kind).set_requires_grad(true))
        }

        fn plain(&self, kind: Kind, scale: f64) -> Result<Outcome, TchError> {
            let [hidden, weight] = self.leaves(kind);
            let logits = hidden.f_linear(&weight, None::<&Tensor>)?.f_to_kind(if kind == Kind::Double { kind } else { Kind::Float })?;
            let loss = logits.f_cross_entropy_loss(&self.labels, None::<&Tensor>, Reduction::Sum, -100, 0.0)? * scale;
            loss.f_backward()?;
            Ok([loss.detach(), hidden.grad(), weight.grad()])
        }

        fn fused(&self, kind: Kind, scale: f64, autocast: bool) -> Result<Outcome, TchError> {
            let [hidden, weight] = self.leaves(kind);
            let guard = if autocast { Some(AutocastGuard::bfloat16(Device::Cpu)?) } else { None };
            let loss = linear_cross_entropy_scaled(&hidden, &weight, &self.labels, scale)?;
            drop(guard);
            loss.f_backward()?;
            Ok([loss.detach(), hidden.grad(), weight.grad()])
        }
    }

    /// Relative L2 distance.
    fn distance(a: &Tensor, b: &Tensor) -> f64 {
        let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
        ((&a - &b).norm() / b.norm()).double_value(&[])
    }

    fn check(name: &str, found: &Outcome, expected: &Outcome, tolerances: [f64; 2]) {
        for ((part, tolerance), (found, expected)) in ["loss", "gradient of hidden", "gradient of the weight"]
            .iter()
            .zip([tolerances[0], tolerances[1], tolerances[1]])
            .zip(found.iter().zip(expected))
        {
            let error = distance(found, expected);
            assert!(error <= tolerance, "{name}: {part} is off by {error:.2e}, more than {tolerance:.0e}");
        }
    }

    #[test]
    fn float32_agrees_with_float64_of_libtorch() -> Result<(), TchError> {
        for (rows, vocabulary, width) in [(1, 1, 1), (1, 300, 8), (7, 512, 32), (100, 20_000, 24), (333, 5_003, 48), (2_000, 700, 16)] {
            let problem = Problem::new(rows, vocabulary, width, Kind::Float);
            let name = format!("{rows} rows, {vocabulary} entries, width {width}");
            if vocabulary > 1 {
                check(&name, &problem.fused(Kind::Float, 1.0, false)?, &problem.plain(Kind::Double, 1.0)?, [1e-6, 5e-6]);
            } else {
                let [loss, hidden, weight] = problem.fused(Kind::Float, 1.0, false)?;
                assert_eq!(
                    (loss.double_value(&[]), hidden.abs().max().double_value(&[]), weight.abs().max().double_value(&[])),
                    (0.0, 0.0, 0.0)
                );
            }
        }
        Ok(())
    }

    #[test]
    fn the_terms_of_the_rows_are_what_the_sum_is_made_of_and_change_none_of_its_bits() -> Result<(), TchError> {
        // Tiles in float32 and under autocast, several blocks of rows, and the general form in float64.
        for (rows, vocabulary, kind, autocast) in [
            (33, 5_003, Kind::Float, false),
            (33, 5_003, Kind::Float, true),
            (1_500, 49_411, Kind::Float, false),
            (2_100, 50, Kind::Double, false),
            (0, 50, Kind::Float, false),
        ] {
            let problem = Problem::new(rows, vocabulary, 8, kind);
            let expected = problem.fused(kind, 0.25, autocast)?;
            let [hidden, weight] = problem.leaves(kind);
            let guard = if autocast { Some(AutocastGuard::bfloat16(Device::Cpu)?) } else { None };
            let (loss, terms) = linear_cross_entropy_terms(&hidden, &weight, &problem.labels, 0.25)?;
            drop(guard);
            loss.f_backward()?;
            assert_eq!([loss.detach(), hidden.grad(), weight.grad()], expected, "{rows} rows");
            assert_eq!((terms.size(), terms.requires_grad()), (vec![rows], false));
            // Each row alone.
            let logits = problem.hidden.detach().to_kind(Kind::Double).matmul(&problem.weight.detach().to_kind(Kind::Double).tr());
            let of_rows = logits.f_cross_entropy_loss(&problem.labels, None::<&Tensor>, Reduction::None, -100, 0.0)?;
            let apart = if rows == 0 { 0.0 } else { (terms.to_kind(Kind::Double) - of_rows).abs().max().double_value(&[]) };
            assert!(apart < if autocast { 0.1 } else { 1e-4 }, "a row of {rows} is off by {apart:.1e}");
        }
        Ok(())
    }

    #[test]
    fn several_row_blocks_add_up() -> Result<(), TchError> {
        // More than 256 MiB of logits: two blocks.
        let problem = Problem::new(1_500, 49_411, 8, Kind::Float);
        check("two blocks", &problem.fused(Kind::Float, 1.0, false)?, &problem.plain(Kind::Float, 1.0)?, [1e-6, 5e-6]);
        Ok(())
    }

    #[test]
    fn float64_agrees_to_its_own_precision() -> Result<(), TchError> {
        let problem = Problem::new(50, 3_000, 24, Kind::Double);
        check("float64", &problem.fused(Kind::Double, 0.3, false)?, &problem.plain(Kind::Double, 0.3)?, [1e-12, 1e-12]);
        Ok(())
    }

    /// The form that a GPU takes, whose blocks hold at least 256 MiB: three of each.
    #[test]
    fn the_general_form_adds_up_over_several_blocks_in_every_type() -> Result<(), TchError> {
        let problem = Problem::new(700, 49_411, 8, Kind::Double);
        check("float64", &problem.fused(Kind::Double, 0.3, false)?, &problem.plain(Kind::Double, 0.3)?, [1e-12, 1e-12]);
        let problem = Problem::new(1_100, 49_411, 8, Kind::BFloat16);
        let (exact, plain) = (problem.plain(Kind::Double, 0.01)?, problem.plain(Kind::BFloat16, 0.01)?);
        let fused = problem.fused(Kind::BFloat16, 0.01, false)?;
        for index in 0..3 {
            let (found, allowed) = (distance(&fused[index], &exact[index]), distance(&plain[index], &exact[index]));
            // Hidden states of 16 bits get a gradient that is rounded before and after the scale.
            assert!(
                found <= (1.3 * allowed).max(1e-5) && found < 2e-2,
                "part {index} is off by {found:.2e}, plain operators by {allowed:.2e}"
            );
        }
        Ok(())
    }

    #[test]
    fn bfloat16_autocast_is_at_least_as_accurate_as_plain_operators_in_bfloat16() -> Result<(), TchError> {
        let problem = Problem::new(200, 10_000, 64, Kind::Float);
        let exact = problem.plain(Kind::Double, 0.01)?;
        let plain = problem.plain(Kind::BFloat16, 0.01)?;
        let fused = problem.fused(Kind::Float, 0.01, true)?;
        for index in 0..3 {
            let (found, allowed) = (distance(&fused[index], &exact[index]), distance(&plain[index], &exact[index]));
            // Both round the same products to bfloat16; what is left differs in the third digit either way.
            assert!(
                found <= (1.05 * allowed).max(1e-5) && found < 2e-2,
                "part {index} is off by {found:.2e}, plain operators by {allowed:.2e}"
            );
            assert_eq!(fused[index].kind(), Kind::Float);
        }
        Ok(())
    }

    #[test]
    fn scale_and_the_gradient_of_the_result_multiply() -> Result<(), TchError> {
        let problem = Problem::new(9, 400, 8, Kind::Float);
        let [hidden, weight] = problem.leaves(Kind::Float);
        let loss = linear_cross_entropy_scaled(&hidden, &weight, &problem.labels, 0.25)?;
        (&loss * 3.0).f_backward()?;
        check("0.25 by 3", &[loss.detach() * 3.0, hidden.grad(), weight.grad()], &problem.plain(Kind::Double, 0.75)?, [1e-6, 5e-6]);
        Ok(())
    }

    #[test]
    fn certain_predictions_keep_their_small_gradients() -> Result<(), TchError> {
        // The label's softmax is 1 - 2e-4: 1 subtracted from it after rounding to bfloat16 would leave nothing right.
        for autocast in [false, true] {
            let hidden = Tensor::from_slice(&[1f32, 0.0, 0.0, 1.0]).view([2, 2]);
            let weight = Tensor::zeros([300, 2], (Kind::Float, Device::Cpu));
            for index in 0..2 {
                let _ = weight.get(index).narrow(0, index, 1).fill_(14.25);
            }
            let problem = Problem {
                hidden: hidden.set_requires_grad(true),
                weight: weight.set_requires_grad(true),
                labels: Tensor::from_slice(&[0i64, 1]),
            };
            let (found, expected) = (problem.fused(Kind::Float, 1.0, autocast)?, problem.plain(Kind::Double, 1.0)?);
            check(&format!("autocast {autocast}"), &found, &expected, [2e-3, if autocast { 4e-3 } else { 1e-5 }]);
        }
        Ok(())
    }

    #[test]
    fn huge_logits_do_not_overflow() -> Result<(), TchError> {
        let mut problem = Problem::new(12, 1_000, 16, Kind::Float);
        problem.weight = problem.weight.detach() * 3_000.0;
        check("logits up to 20,000", &problem.fused(Kind::Float, 1.0, false)?, &problem.plain(Kind::Float, 1.0)?, [1e-6, 5e-6]);
        Ok(())
    }

    #[test]
    fn what_is_not_finite_shows_in_the_loss_and_the_gradients() -> Result<(), TchError> {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for autocast in [false, true] {
                let problem = Problem::new(40, 600, 8, Kind::Float);
                let _ = problem.hidden.detach().get(17).get(3).fill_(bad);
                let [loss, hidden, weight] = problem.fused(Kind::Float, 1.0, autocast)?;
                for (part, tensor) in [("loss", loss), ("hidden", hidden), ("weight", weight)] {
                    assert!(!tensor.sum(Kind::Double).double_value(&[]).is_finite(), "{bad}, autocast {autocast}: {part} hides it");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn no_rows_give_zero_and_zero_gradients() -> Result<(), TchError> {
        for kind in [Kind::Float, Kind::Double] {
            let hidden = Tensor::zeros([0, 8], (kind, Device::Cpu)).set_requires_grad(true);
            let weight = noise([20, 8], 1.0, kind).set_requires_grad(true);
            let loss = linear_cross_entropy(&hidden, &weight, &Tensor::zeros([0], (Kind::Int64, Device::Cpu)))?;
            loss.f_backward()?;
            assert_eq!(loss.double_value(&[]), 0.0);
            assert_eq!(hidden.grad().size(), [0, 8]);
            assert_eq!(weight.grad().abs().max().double_value(&[]), 0.0);
        }
        Ok(())
    }

    #[test]
    fn only_the_gradients_that_are_needed_are_computed() -> Result<(), TchError> {
        let problem = Problem::new(20, 500, 8, Kind::Float);
        let [expected_loss, expected_hidden, expected_weight] = problem.fused(Kind::Float, 1.0, false)?;
        let [hidden, weight] = problem.leaves(Kind::Float);
        linear_cross_entropy(&hidden, &weight.detach(), &problem.labels)?.f_backward()?;
        linear_cross_entropy(&hidden.detach(), &weight, &problem.labels)?.f_backward()?;
        assert_eq!(hidden.grad(), expected_hidden);
        assert_eq!(weight.grad(), expected_weight);
        let without = tch::no_grad(|| linear_cross_entropy(&hidden, &weight, &problem.labels))?;
        assert!(!without.requires_grad());
        assert_eq!(without, expected_loss);
        Ok(())
    }

    #[test]
    fn the_same_call_gives_the_same_bits() -> Result<(), TchError> {
        let problem = Problem::new(150, 9_000, 32, Kind::Float);
        let first = problem.fused(Kind::Float, 1.0, false)?;
        for _ in 0..3 {
            assert_eq!(problem.fused(Kind::Float, 1.0, false)?, first);
        }
        Ok(())
    }

    #[test]
    fn a_second_backward_pass_is_an_error() -> Result<(), TchError> {
        let problem = Problem::new(4, 300, 8, Kind::Float);
        let [hidden, weight] = problem.leaves(Kind::Float);
        let loss = linear_cross_entropy(&hidden, &weight, &problem.labels)?;
        let run = || Tensor::f_run_backward(&[&loss], &[&hidden, &weight], true, false);
        run()?;
        let message = run().err().map(|error| error.to_string()).unwrap_or_default();
        assert!(message.contains("already taken by an earlier backward pass"), "{message}");
        Ok(())
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_numbers() {
        let check = |hidden: [i64; 2], weight: [i64; 2], labels: &[i64], expected: &str| {
            let (hidden, weight) = (noise(hidden, 1.0, Kind::Float), noise(weight, 1.0, Kind::Float));
            let error = linear_cross_entropy(&hidden, &weight, &Tensor::from_slice(labels)).err();
            let message = error.map(|error| error.to_string()).unwrap_or_default();
            assert!(message.starts_with("fused linear and cross-entropy failed") && message.contains(expected), "{message}");
        };
        check([2, 8], [10, 8], &[3, 10], "labels lie in 3..=10, must lie in 0..10");
        check([2, 8], [10, 8], &[-1, 1], "labels lie in -1..=1, must lie in 0..10");
        check([2, 8], [10, 7], &[0, 1], "sizes do not fit: hidden [2, 8], weight [10, 7], labels [2]");
        check([3, 8], [10, 8], &[0, 1], "labels [2]");
    }
}
