//! Activation checkpointing: a part of the model is run without keeping its activations and run again in the backward pass.
#![allow(unsafe_code, reason = "calls the C++ shim, which calls back")]

use std::{
    any::Any,
    ffi::{CString, c_int, c_void},
    mem::ManuallyDrop,
    panic::{AssertUnwindSafe, catch_unwind},
    ptr, slice,
};

use tch::{TchError, Tensor};

use super::{ShimError, check, ffi, own, raw};

/// Runs `function(inputs)` without keeping what its backward pass needs, and runs it again, with gradients, when that pass comes.
///
/// Gradients flow to those `inputs` that require them and to every parameter the function uses. The autocast state of the first run
/// holds in the second. The function must compute the same both times: randomness has to come from values it holds.
/// It runs on the thread of the backward pass (another one for CUDA), hence `Send`; it is dropped once, with the graph.
/// When no input requires gradients it runs plainly once, since libtorch would then leave its parameters without gradients.
///
/// # Errors
/// Whatever `function` returns or panics with: from this call in the first run, from `backward` in the second.
pub fn checkpoint<F>(inputs: &[&Tensor], function: F) -> Result<Tensor, ShimError>
where
    F: Fn(&[Tensor]) -> Result<Tensor, TchError> + Send + 'static,
{
    let pointers: Vec<ffi::RawTensor> = inputs.iter().map(|input| raw(input)).collect();
    let closure = Box::into_raw(Box::new(function)).cast::<c_void>();
    let mut output = ptr::null_mut();
    // SAFETY: `run` and `drop_closure` are instantiated for the closure's own type; the shim drops it exactly once.
    let status = unsafe {
        ffi::lcl_checkpoint(closure, run::<F>, drop_closure::<F>, pointers.as_ptr(), pointers.len(), &raw mut output)
    };
    check("checkpointed function", status)?;
    // SAFETY: a new tensor of the shim.
    Ok(unsafe { own(output) })
}

/// Calls the closure; what goes wrong becomes the shim's last error.
unsafe extern "C" fn run<F>(closure: *mut c_void, inputs: *const ffi::RawTensor, count: usize, output: *mut ffi::RawTensor) -> c_int
where
    F: Fn(&[Tensor]) -> Result<Tensor, TchError>,
{
    // SAFETY: the shim passes what `checkpoint` gave it and `count` live tensors.
    let (function, inputs) = unsafe { (&*closure.cast::<F>(), slice::from_raw_parts(inputs, count)) };
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // The shim owns the inputs: shallow copies are handed to the closure.
        // SAFETY: live tensors of the shim, not dropped here.
        let inputs: Vec<Tensor> = inputs.iter().map(|&input| ManuallyDrop::new(unsafe { own(input) }).shallow_clone()).collect();
        function(&inputs)
    }));
    let message = match outcome {
        Ok(Ok(mut tensor)) => {
            let pointer = tensor.as_mut_ptr().cast();
            // Ownership passes to the shim.
            std::mem::forget(tensor);
            // SAFETY: the shim's place for the result.
            unsafe { *output = pointer };
            return 0;
        }
        Ok(Err(error)) => error.to_string(),
        Err(panic) => format!("panic: {}", panic_message(panic.as_ref())),
    };
    let message = CString::new(message.replace('\0', " ")).unwrap_or_default();
    // SAFETY: a NUL-terminated string; the shim copies it.
    unsafe { ffi::lcl_set_error(message.as_ptr()) };
    1
}

unsafe extern "C" fn drop_closure<F>(closure: *mut c_void) {
    // A panic of a destructor must not pass through C++.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: made by `Box::into_raw` in `checkpoint`, dropped once.
        drop(unsafe { Box::from_raw(closure.cast::<F>()) });
    }));
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a message")
}
