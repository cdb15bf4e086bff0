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
    let status = unsafe { ffi::lcl_checkpoint(closure, run::<F>, drop_closure::<F>, pointers.as_ptr(), pointers.len(), &raw mut output) };
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

pub(super) fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use tch::{Device, Kind};

    use super::*;
    use crate::shim::AutocastGuard;

    /// Counts the runs of the closure that holds it, and its drops.
    #[derive(Clone, Default)]
    struct Counters {
        runs: Arc<AtomicUsize>,
        drops: Arc<AtomicUsize>,
    }

    struct Token(Counters);

    impl Drop for Token {
        fn drop(&mut self) {
            self.0.drops.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl Token {
        /// Number of this run, from 1.
        fn run(&self) -> usize {
            self.0.runs.fetch_add(1, Ordering::SeqCst) + 1
        }
    }

    impl Counters {
        fn token(&self) -> Token {
            Token(self.clone())
        }

        fn get(&self) -> (usize, usize) {
            (self.runs.load(Ordering::SeqCst), self.drops.load(Ordering::SeqCst))
        }
    }

    fn leaf(values: &[f32]) -> Tensor {
        Tensor::from_slice(values).set_requires_grad(true)
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor).unwrap_or_default()
    }

    #[test]
    fn gradients_of_inputs_and_parameters_equal_those_of_a_plain_run() -> Result<(), TchError> {
        let run = |checkpointed: bool| -> Result<[Vec<f32>; 4], TchError> {
            let (a, b, parameter) = (leaf(&[1.0, 2.0, 3.0]), leaf(&[4.0, 5.0, 6.0]), leaf(&[0.5, -1.0, 2.0]));
            let held = parameter.shallow_clone();
            let function = move |inputs: &[Tensor]| (inputs[0].f_mul(&inputs[1])?.f_mul(&held))?.f_sin();
            // The inputs are no leaves, as in a model.
            let (x, y) = (a.f_mul_scalar(2.0)?, b.f_mul_scalar(0.5)?);
            let output = if checkpointed { checkpoint(&[&x, &y], function)? } else { function(&[x, y])? };
            output.f_sum(Kind::Float)?.f_backward()?;
            Ok([values(&output), values(&a.grad()), values(&b.grad()), values(&parameter.grad())])
        };
        assert_eq!(run(true)?, run(false)?);
        Ok(())
    }

    #[test]
    fn an_input_without_need_for_gradients_gets_none() -> Result<(), TchError> {
        let (a, constant) = (leaf(&[1.0, 2.0]), Tensor::from_slice(&[3f32, 4.0]));
        let output = checkpoint(&[&a, &constant], |inputs| inputs[0].f_mul(&inputs[1]))?;
        output.f_sum(Kind::Float)?.f_backward()?;
        assert_eq!(values(&a.grad()), [3.0, 4.0]);
        assert!(!constant.grad().defined());
        Ok(())
    }

    #[test]
    fn the_function_runs_twice_and_is_dropped_once_with_the_graph() -> Result<(), TchError> {
        let counters = Counters::default();
        let (token, a) = (counters.token(), leaf(&[2.0]));
        let output = checkpoint(&[&a], move |inputs| {
            token.run();
            inputs[0].f_square()
        })?;
        assert_eq!(counters.get(), (1, 0));
        output.f_backward()?;
        assert_eq!(counters.get().0, 2);
        drop(output);
        assert_eq!(counters.get(), (2, 1));
        Ok(())
    }

    #[test]
    fn without_gradients_it_runs_once_and_is_dropped_at_once() -> Result<(), TchError> {
        for without_grad in [true, false] {
            let counters = Counters::default();
            let (token, a) = (counters.token(), leaf(&[2.0]));
            let input = if without_grad { a.shallow_clone() } else { a.detach() };
            let call = || {
                checkpoint(&[&input], move |inputs| {
                    token.run();
                    inputs[0].f_square()
                })
            };
            let output = if without_grad { tch::no_grad(call)? } else { call()? };
            assert_eq!(values(&output), [4.0]);
            assert_eq!(counters.get(), (1, 1), "without_grad {without_grad}");
        }
        Ok(())
    }

    #[test]
    fn parameters_get_their_gradients_also_when_no_input_needs_one() -> Result<(), TchError> {
        let (input, parameter) = (Tensor::from_slice(&[3f32]), leaf(&[2.0]));
        let held = parameter.shallow_clone();
        checkpoint(&[&input], move |inputs| inputs[0].f_mul(&held))?.f_backward()?;
        assert_eq!(values(&parameter.grad()), [3.0]);
        Ok(())
    }

    #[test]
    fn errors_and_panics_of_either_run_come_back_as_errors() {
        for failing_run in [1, 2] {
            for panics in [false, true] {
                let counters = Counters::default();
                let (token, a) = (counters.token(), leaf(&[2.0]));
                let outcome = checkpoint(&[&a], move |inputs| {
                    if token.run() == failing_run {
                        assert!(!panics, "wanted failure");
                        return Err(TchError::Shape("wanted failure".to_owned()));
                    }
                    inputs[0].f_square()
                });
                let message = match outcome {
                    Err(error) => error.to_string(),
                    Ok(output) => output.f_backward().err().map(|error| error.to_string()).unwrap_or_default(),
                };
                assert!(message.contains("wanted failure"), "run {failing_run}, panics {panics}: {message}");
                assert_eq!(message.contains("panic: "), panics, "{message}");
                assert_eq!(counters.get(), (failing_run, 1), "run {failing_run}, panics {panics}");
            }
        }
    }

    #[test]
    fn the_second_run_has_the_autocast_state_of_the_first() -> Result<(), TchError> {
        let kinds = Arc::new(std::sync::Mutex::new(Vec::new()));
        let (seen, a) = (Arc::clone(&kinds), Tensor::eye(4, (Kind::Float, Device::Cpu)).set_requires_grad(true));
        let guard = AutocastGuard::bfloat16(Device::Cpu)?;
        let output = checkpoint(&[&a], move |inputs| {
            let product = inputs[0].f_matmul(&inputs[0])?;
            if let Ok(mut kinds) = seen.lock() {
                kinds.push(product.kind());
            }
            Ok(product)
        })?;
        drop(guard);
        output.f_sum(Kind::Float)?.f_backward()?;
        assert_eq!(kinds.lock().map(|kinds| kinds.clone()).unwrap_or_default(), [Kind::BFloat16, Kind::BFloat16]);
        // And the caller's state afterwards is the caller's.
        assert_eq!(a.matmul(&a).kind(), Kind::Float);
        Ok(())
    }

    #[test]
    fn checkpoints_nest() -> Result<(), TchError> {
        let a = leaf(&[0.3, -0.7]);
        let output = checkpoint(&[&a], |inputs| {
            let inner = checkpoint(&[&inputs[0]], |inputs| inputs[0].f_sin())?;
            inner.f_square()
        })?;
        output.f_sum(Kind::Float)?.f_backward()?;
        let expected: Vec<f32> = [0.3f32, -0.7].iter().map(|x| 2.0 * x.sin() * x.cos()).collect();
        let found = values(&a.grad());
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} instead of {expected:?}");
        Ok(())
    }
}
