//! The optimizer's kernels over lists of parameters; [`crate::optimizer`] holds the state and the rule.
#![allow(unsafe_code, reason = "calls the C++ shim")]

use std::{borrow::Borrow, os::raw::c_int, ptr};

use tch::Tensor;

use super::{ShimError, check, ffi, own, raw};

/// Arguments of one fused update.
pub(crate) struct Update<'a> {
    pub(crate) parameters: &'a [&'a Tensor],
    pub(crate) first_moments: &'a [&'a Tensor],
    pub(crate) second_moments: &'a [&'a Tensor],
    /// 1 for the first update.
    pub(crate) step: i64,
    pub(crate) learning_rate: f64,
    pub(crate) betas: [f64; 2],
    pub(crate) weight_decay: f64,
    pub(crate) epsilon: f64,
    /// Gradients are multiplied by it first.
    pub(crate) gradient_scale: f64,
}

fn pointers<T: Borrow<Tensor>>(tensors: &[T]) -> Vec<ffi::RawTensor> {
    tensors.iter().map(|tensor| raw(tensor.borrow())).collect()
}

/// `AdamW` on every parameter that has a gradient.
pub(crate) fn adamw_step(update: &Update<'_>) -> Result<(), ShimError> {
    let count = update.parameters.len();
    if update.first_moments.len() != count || update.second_moments.len() != count {
        return Err(ShimError {
            operation: "optimizer update",
            message: format!(
                "{count} parameters with {} first and {} second moments",
                update.first_moments.len(),
                update.second_moments.len()
            ),
        });
    }
    let mut parameters = pointers(update.parameters);
    let mut first_moments = pointers(update.first_moments);
    let mut second_moments = pointers(update.second_moments);
    let arguments = ffi::AdamWArguments {
        parameters: parameters.as_mut_ptr(),
        first_moments: first_moments.as_mut_ptr(),
        second_moments: second_moments.as_mut_ptr(),
        count,
        step: update.step,
        learning_rate: update.learning_rate,
        beta1: update.betas[0],
        beta2: update.betas[1],
        weight_decay: update.weight_decay,
        epsilon: update.epsilon,
        gradient_scale: update.gradient_scale,
    };
    // SAFETY: three arrays of `count` live tensors.
    check("optimizer update", unsafe { ffi::lcl_adamw_step(&raw const arguments) })
}

/// L2 norm over all gradients.
pub(crate) fn gradient_norm(parameters: &[&Tensor]) -> Result<f64, ShimError> {
    let mut pointers = pointers(parameters);
    let mut norm = 0.0;
    // SAFETY: an array of live tensors, a valid place for the number.
    check("gradient norm", unsafe { ffi::lcl_gradient_norm(pointers.as_mut_ptr(), pointers.len(), &raw mut norm) })?;
    Ok(norm)
}

/// Multiplies every gradient.
pub(crate) fn scale_gradients(parameters: &[&Tensor], factor: f64) -> Result<(), ShimError> {
    let mut pointers = pointers(parameters);
    // SAFETY: an array of live tensors.
    check("scaling gradients", unsafe { ffi::lcl_scale_gradients(pointers.as_mut_ptr(), pointers.len(), factor) })
}

/// Sets every gradient to zero, or drops it.
pub(crate) fn zero_gradients(parameters: &[&Tensor], keep_memory: bool) -> Result<(), ShimError> {
    let mut pointers = pointers(parameters);
    // SAFETY: an array of live tensors.
    check("zeroing gradients", unsafe { ffi::lcl_zero_gradients(pointers.as_mut_ptr(), pointers.len(), c_int::from(keep_memory)) })
}

/// All gradients in the order of the parameters, zero where there is none; the parameters have none afterwards.
pub(crate) fn take_gradients(parameters: &[&Tensor]) -> Result<Vec<Tensor>, ShimError> {
    let mut pointers = pointers(parameters);
    let mut gradients = vec![ptr::null_mut(); parameters.len()];
    // SAFETY: an array of live tensors, and as many places, all written on success only.
    check("taking gradients", unsafe { ffi::lcl_take_gradients(pointers.as_mut_ptr(), pointers.len(), gradients.as_mut_ptr()) })?;
    // SAFETY: new tensors of the shim.
    Ok(gradients.into_iter().map(|gradient| unsafe { own(gradient) }).collect())
}

/// Gives every parameter its gradient, which shares its memory with the tensor of this list.
pub(crate) fn set_gradients(parameters: &[&Tensor], gradients: &[Tensor]) -> Result<(), ShimError> {
    let operation = "setting gradients";
    same_length(operation, parameters.len(), gradients.len())?;
    let (mut parameters, mut gradients) = (pointers(parameters), pointers(gradients));
    // SAFETY: two arrays of equally many live tensors.
    check(operation, unsafe { ffi::lcl_set_gradients(parameters.as_mut_ptr(), parameters.len(), gradients.as_mut_ptr()) })
}

/// Adds to every tensor its counterpart.
pub(crate) fn add_tensors(sums: &mut [Tensor], next: &[Tensor]) -> Result<(), ShimError> {
    let operation = "adding gradients";
    same_length(operation, sums.len(), next.len())?;
    let (mut sums, mut next) = (pointers(sums), pointers(next));
    // SAFETY: two arrays of equally many live tensors.
    check(operation, unsafe { ffi::lcl_add_tensors(sums.as_mut_ptr(), next.as_mut_ptr(), sums.len()) })
}

fn same_length(operation: &'static str, left: usize, right: usize) -> Result<(), ShimError> {
    if left == right {
        return Ok(());
    }
    Err(ShimError { operation, message: format!("{left} tensors and {right}") })
}
