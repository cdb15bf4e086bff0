//! Process-wide switches of libtorch.
#![allow(unsafe_code, reason = "calls the C++ shim")]

use super::{ShimError, check, ffi};

/// Threads of one operator. Set it before the first operator runs on a thread.
pub fn set_intra_op_threads(threads: usize) -> Result<(), ShimError> {
    // SAFETY: plain numbers.
    check("setting the operators' thread count", unsafe { ffi::lcl_set_intra_op_threads(clamp(threads)) })
}

/// Threads that run operators side by side. Once per process, before any of them starts.
pub fn set_inter_op_threads(threads: usize) -> Result<(), ShimError> {
    // SAFETY: plain numbers.
    check("setting the inter-operator thread count", unsafe { ffi::lcl_set_inter_op_threads(clamp(threads)) })
}

/// Threads of one operator, as set or as libtorch chose.
pub fn intra_op_threads() -> Result<usize, ShimError> {
    let mut threads = 0;
    // SAFETY: a valid place for the number.
    check("reading the operators' thread count", unsafe { ffi::lcl_intra_op_threads(&raw mut threads) })?;
    Ok(usize::try_from(threads).unwrap_or(1))
}

/// Operators that cannot give the same bits twice become errors; cuDNN picks its deterministic algorithms.
pub fn set_deterministic(enabled: bool) -> Result<(), ShimError> {
    // SAFETY: plain numbers.
    check("switching deterministic algorithms", unsafe { ffi::lcl_set_deterministic(i32::from(enabled)) })
}

/// libtorch counts threads in `int`.
fn clamp(threads: usize) -> i32 {
    i32::try_from(threads).unwrap_or(i32::MAX)
}
