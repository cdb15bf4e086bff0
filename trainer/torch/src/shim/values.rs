//! Tensors of numbers that Rust has computed, without a copy.
#![allow(unsafe_code, reason = "hands memory to the C++ shim, which gives it back")]

use std::{ffi::c_void, ptr};

use tch::Tensor;

use super::{ShimError, check, ffi, own};

/// A number that a tensor may hold.
pub trait Value: Copy + Send + 'static {
    /// libtorch's number of its type (`c10::ScalarType`).
    const KIND: i32;
}

impl Value for f32 {
    const KIND: i32 = 6;
}

impl Value for i64 {
    const KIND: i32 = 4;
}

impl Value for u8 {
    const KIND: i32 = 0;
}

/// A tensor of this size on the host, whose memory is that of `values`: nothing is copied, and none of libtorch's threads is woken.
///
/// # Errors
/// When `values` has another length than the size says.
pub fn tensor_of<T: Value>(values: Vec<T>, size: &[i64]) -> Result<Tensor, ShimError> {
    const OPERATION: &str = "making a tensor of values";
    let count: i64 = size.iter().product();
    if usize::try_from(count) != Ok(values.len()) {
        return Err(ShimError { operation: OPERATION, message: format!("{} values do not have the size {size:?}", values.len()) });
    }
    let mut values = Box::new(values);
    let (first, mut tensor) = (values.as_mut_ptr().cast::<c_void>(), ptr::null_mut());
    let owner = Box::into_raw(values).cast::<c_void>();
    // SAFETY: `first` points to `count` numbers of this kind, which live until `release` is called with their owner: the shim calls it exactly
    // once, also on an error.
    let status = unsafe { ffi::lcl_take_values(first, T::KIND, size.as_ptr(), size.len(), owner, release::<T>, &raw mut tensor) };
    check(OPERATION, status)?;
    // SAFETY: a new tensor of the shim.
    Ok(unsafe { own(tensor) })
}

unsafe extern "C" fn release<T>(owner: *mut c_void) {
    // SAFETY: made by `Box::into_raw` in `tensor_of`, released once.
    drop(unsafe { Box::from_raw(owner.cast::<Vec<T>>()) });
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn a_tensor_has_the_values_and_their_memory() {
        let values: Vec<i64> = (0..6).collect();
        let place = values.as_ptr();
        let tensor = tensor_of(values, &[2, 3]).unwrap();
        assert_eq!((tensor.size(), tensor.kind(), tensor.data_ptr().cast_const().cast()), (vec![2, 3], Kind::Int64, place));
        let view = tensor.get(1);
        drop(tensor);
        assert_eq!(Vec::<i64>::try_from(&view).unwrap(), [3, 4, 5], "a view keeps the memory");
        assert_eq!(Vec::<f32>::try_from(tensor_of(vec![0.5_f32, 1.5], &[2]).unwrap()).unwrap(), [0.5, 1.5]);
        let none = tensor_of(Vec::<u8>::new(), &[0, 3]).unwrap();
        assert_eq!((none.size(), none.kind()), (vec![0, 3], Kind::Uint8));
        assert_eq!(
            tensor_of(vec![1_u8; 4], &[3]).unwrap_err().to_string(),
            "making a tensor of values failed: 4 values do not have the size [3]"
        );
    }
}
