//! Safe Rust over `shim/*.cpp`: what libtorch has and tch 0.24 does not.
//!
//! Comes in: tch tensors and plain numbers. Goes out: tch tensors, or a [`ShimError`] with libtorch's own words.
//! Holds no model knowledge and no policy; nothing here keeps state between calls but libtorch's own thread-local and global switches.
#![allow(unsafe_code, reason = "the one place where Rust calls the C++ shim; every call is wrapped in a safe function beside it")]

pub mod autocast;
pub mod checkpoint;
pub(crate) mod collectives;
pub mod cross_entropy;
pub mod cuda;
mod ffi;
pub mod linear;
pub mod nccl;
pub(crate) mod optimizer;
pub mod process;
pub mod profile;
pub mod runtime;
pub(crate) mod sockets;
mod store;
pub mod values;

pub use autocast::AutocastGuard;
pub use checkpoint::checkpoint;
pub use cross_entropy::{linear_cross_entropy, linear_cross_entropy_scaled, linear_cross_entropy_terms};

use std::ffi::{CStr, c_char, c_int};

use tch::{TchError, Tensor};

/// libtorch refused an operation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{operation} failed: {message}")]
pub struct ShimError {
    /// What was asked for.
    pub operation: &'static str,
    /// What libtorch said.
    pub message: String,
}

impl From<ShimError> for TchError {
    /// For code that mixes both, such as closures given to [`checkpoint()`].
    fn from(error: ShimError) -> Self {
        Self::Torch(error.to_string())
    }
}

/// What the shim writes into a place for text.
fn text_of(operation: &'static str, write: impl FnOnce(*mut c_char, i64) -> c_int) -> Result<String, ShimError> {
    const SIZE: usize = 1024;
    let mut place = [0u8; SIZE];
    check(operation, write(place.as_mut_ptr().cast(), SIZE as i64))?;
    let text = CStr::from_bytes_until_nul(&place).map(CStr::to_string_lossy);
    Ok(text.unwrap_or_default().into_owned())
}

/// Turns a status of the shim into a result, taking the thread's last error.
fn check(operation: &'static str, status: c_int) -> Result<(), ShimError> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: the shim returns a NUL-terminated string that lives until this thread's next failure; it is copied at once.
    let message = unsafe { CStr::from_ptr(ffi::lcl_last_error()) }.to_string_lossy().into_owned();
    Err(ShimError { operation, message })
}

/// The `at::Tensor*` behind a tch tensor, borrowed.
fn raw(tensor: &Tensor) -> ffi::RawTensor {
    tensor.as_ptr().cast_mut().cast()
}

/// Takes ownership of a tensor that the shim made.
///
/// # Safety
/// `tensor` is an `at::Tensor*` from the shim that nobody else owns.
unsafe fn own(tensor: ffi::RawTensor) -> Tensor {
    // SAFETY: the caller's promise.
    unsafe { Tensor::from_ptr(tensor.cast()) }
}
