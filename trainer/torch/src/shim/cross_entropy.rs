//! Fused linear layer and cross-entropy: the logits of the language model's head are never kept.
#![allow(unsafe_code, reason = "calls the C++ shim")]

use std::ptr;

use tch::Tensor;

use super::{ShimError, check, ffi, own, raw};

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
    // SAFETY: the arguments are live tensors, `loss` is written on success only.
    let status = unsafe { ffi::lcl_linear_cross_entropy(raw(hidden), raw(weight), raw(labels), scale, &raw mut loss) };
    check("fused linear and cross-entropy", status)?;
    // SAFETY: a new tensor of the shim.
    Ok(unsafe { own(loss) })
}

/// [`linear_cross_entropy_scaled`] with scale 1: the sum.
pub fn linear_cross_entropy(hidden: &Tensor, weight: &Tensor, labels: &Tensor) -> Result<Tensor, ShimError> {
    linear_cross_entropy_scaled(hidden, weight, labels, 1.0)
}
