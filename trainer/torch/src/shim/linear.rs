//! A linear layer by the library whose products are the fastest on this processor.
#![allow(unsafe_code, reason = "calls the C++ shim")]

use std::ptr;

use tch::Tensor;

use super::{ShimError, check, ffi, own, raw};

/// Input `[T, in]` times the transpose of weight `[out, in]`, and bias `[out]`: `[T, out]`. In float32 on a processor by oneDNN where that is
/// faster than MKL (any but Intel's that has AVX-512), elsewhere and under autocast by libtorch's own operator.
///
/// # Errors
/// libtorch's, when the sizes do not fit.
pub fn linear(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, ShimError> {
    let mut output = ptr::null_mut();
    let bias = bias.map_or(ptr::null_mut(), raw);
    // SAFETY: the arguments are live tensors or null, `output` is written on success only.
    check("linear layer", unsafe { ffi::lcl_linear(raw(input), raw(weight), bias, &raw mut output) })?;
    // SAFETY: a new tensor of the shim.
    Ok(unsafe { own(output) })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, TchError};

    use super::*;

    fn noise(size: &[i64], kind: Kind) -> Tensor {
        let count: i64 = size.iter().product();
        (Tensor::arange(count, (Kind::Double, Device::Cpu)) * 0.73 + 0.1).sin().view(size).to_kind(kind).set_requires_grad(true)
    }

    /// Output and gradients by this layer, or by the definition in float64.
    fn outcome(size: [i64; 3], has_bias: bool, exact: bool) -> Result<Vec<Tensor>, TchError> {
        let [rows, inputs, outputs] = size;
        let kind = if exact { Kind::Double } else { Kind::Float };
        let leaves = [noise(&[rows, inputs], kind), noise(&[outputs, inputs], kind), noise(&[outputs], kind)];
        let [input, weight, bias] = &leaves;
        let bias = has_bias.then_some(bias);
        let output = if exact {
            let product = input.matmul(&weight.tr());
            bias.map_or(product.shallow_clone(), |bias| &product + bias)
        } else {
            linear(input, weight, bias)?
        };
        let weights = noise(&[rows, outputs], kind).detach();
        let leaves: Vec<&Tensor> = [input, weight].into_iter().chain(bias).collect();
        let mut all = Tensor::f_run_backward(&[&(&output * &weights).sum(kind)], &leaves, false, false)?;
        all.push(output.detach());
        Ok(all.into_iter().map(|tensor| tensor.to_kind(Kind::Double)).collect())
    }

    #[test]
    fn output_and_gradients_are_those_of_the_definition() -> Result<(), TchError> {
        for size in [[1, 1, 1], [7, 24, 40], [130, 40, 24], [64, 32, 32]] {
            for has_bias in [false, true] {
                for (found, expected) in outcome(size, has_bias, false)?.iter().zip(&outcome(size, has_bias, true)?) {
                    assert_eq!(found.size(), expected.size(), "{size:?}");
                    let apart = ((found - expected).norm() / expected.norm()).double_value(&[]);
                    assert!(apart < 1e-5, "{size:?}, bias {has_bias}: off by {apart:.1e}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn no_rows_and_sizes_that_do_not_fit() {
        let tensor = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
        assert_eq!(linear(&tensor(&[0, 3]), &tensor(&[5, 3]), None).unwrap().size(), [0, 5]);
        assert!(linear(&tensor(&[2, 4]), &tensor(&[5, 3]), None).is_err());
    }
}
