//! Process-wide switches of libtorch.
#![allow(unsafe_code, reason = "calls the C++ shim")]

use super::{ShimError, check, ffi, text_of};

/// From now on large CPU tensors come from regions that are kept; see [`crate::allocator`].
pub(crate) fn retain_memory() {
    // SAFETY: it only stores a pointer. Tensors made before keep their own way of being freed.
    unsafe { ffi::lcl_retain_memory() }
}

/// Address space of the kept regions in bytes; 0 before [`crate::allocator::retain_memory`] and the first large tensor.
#[must_use]
pub fn retained_bytes() -> usize {
    // SAFETY: no arguments.
    unsafe { ffi::lcl_retained_bytes() }
}

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

/// Operators that cannot give the same bits twice become errors; cuDNN picks its deterministic algorithms; products of matrices do not
/// depend on where their operands lie in memory. Before the first operator of the process: MKL looks only once.
pub fn set_deterministic(enabled: bool) -> Result<(), ShimError> {
    // SAFETY: plain numbers.
    check("switching deterministic algorithms", unsafe { ffi::lcl_set_deterministic(i32::from(enabled)) })
}

/// What libtorch computes with on the CPU: its version, the instruction set it has chosen, MKL's version and oneDNN's, each as it says it.
pub fn libraries() -> Result<[String; 4], ShimError> {
    // SAFETY: a place of that size.
    let text = text_of("asking libtorch for its libraries", |text, size| unsafe { ffi::lcl_libraries(text, size) })?;
    let mut lines = text.lines().map(str::to_owned);
    Ok([(); 4].map(|()| lines.next().unwrap_or_default()))
}

/// libtorch counts threads in `int`.
fn clamp(threads: usize) -> i32 {
    i32::try_from(threads).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::*;

    #[test]
    fn thread_counts_are_set_and_zero_is_refused() -> Result<(), ShimError> {
        let before = intra_op_threads()?;
        set_intra_op_threads(before + 1)?;
        assert_eq!(intra_op_threads()?, before + 1);
        set_intra_op_threads(before)?;
        let message = set_intra_op_threads(0).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(message.contains("thread count is 0, must be at least 1"), "{message}");
        assert!(set_inter_op_threads(0).is_err());
        Ok(())
    }

    #[test]
    fn what_cannot_give_the_same_bits_twice_is_refused_when_asked() -> Result<(), ShimError> {
        let put = || {
            let mut target = Tensor::from_slice(&[0f32, 0.0]);
            target.f_put_(&Tensor::from_slice(&[0i64, 0]), &Tensor::from_slice(&[1f32, 2.0]), false).map(drop)
        };
        assert!(put().is_ok());
        set_deterministic(true)?;
        let refused = put();
        set_deterministic(false)?;
        assert!(refused.err().is_some_and(|error| error.to_string().contains("deterministic")));
        assert!(put().is_ok());
        Ok(())
    }
}
