//! Autocast: matrix products in bfloat16, everything sensitive in float32, by libtorch's own lists of operations.
#![allow(unsafe_code, reason = "calls the C++ shim")]

use std::marker::PhantomData;

use tch::Device;

use super::{ShimError, check, ffi};

/// `c10::ScalarType::BFloat16`.
const BFLOAT16: i32 = 15;

/// While it lives, autocast is set for one device type on this thread. Guards nest; each puts the former state back when dropped, also
/// while unwinding. The casts of weights that libtorch caches are freed with the outermost guard.
///
/// The backward pass belongs outside of it.
#[derive(Debug)]
pub struct AutocastGuard {
    previous: ffi::AutocastState,
    /// The state belongs to this thread.
    not_send: PhantomData<*const ()>,
}

impl AutocastGuard {
    /// Autocast to bfloat16 for operations on `device`.
    pub fn bfloat16(device: Device) -> Result<Self, ShimError> {
        Self::enter(device, true)
    }

    /// No autocast for operations on `device`, for a stretch of float32 inside of a region that has it.
    pub fn disabled(device: Device) -> Result<Self, ShimError> {
        Self::enter(device, false)
    }

    fn enter(device: Device, enabled: bool) -> Result<Self, ShimError> {
        let mut previous = ffi::AutocastState::default();
        // SAFETY: `previous` is a valid place for the former state.
        let status = unsafe { ffi::lcl_autocast_enter(device_type(device)?, i32::from(enabled), BFLOAT16, &raw mut previous) };
        check("switching autocast", status)?;
        Ok(Self { previous, not_send: PhantomData })
    }
}

impl Drop for AutocastGuard {
    fn drop(&mut self) {
        // SAFETY: `previous` was filled by `lcl_autocast_enter`. It cannot fail for a device type that it accepted.
        unsafe { ffi::lcl_autocast_leave(&raw const self.previous) };
    }
}

/// `c10::DeviceType` of a device.
fn device_type(device: Device) -> Result<i32, ShimError> {
    match device {
        Device::Cpu => Ok(0),
        Device::Cuda(_) => Ok(1),
        Device::Mps | Device::Vulkan => {
            Err(ShimError { operation: "switching autocast", message: format!("{device:?} is neither the CPU nor a CUDA device") })
        }
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "these values have no rounding error")]
mod tests {
    use std::panic::catch_unwind;

    use tch::{Kind, Tensor};

    use super::*;

    /// The type matrix products come out in at this moment.
    fn product_kind() -> Kind {
        let matrix = Tensor::eye(4, (Kind::Float, Device::Cpu));
        matrix.matmul(&matrix).kind()
    }

    #[test]
    fn guards_nest_and_put_the_former_state_back() -> Result<(), ShimError> {
        assert_eq!(product_kind(), Kind::Float);
        let outer = AutocastGuard::bfloat16(Device::Cpu)?;
        assert_eq!(product_kind(), Kind::BFloat16);
        {
            let _inner = AutocastGuard::disabled(Device::Cpu)?;
            assert_eq!(product_kind(), Kind::Float);
            let _innermost = AutocastGuard::bfloat16(Device::Cpu)?;
            assert_eq!(product_kind(), Kind::BFloat16);
        }
        assert_eq!(product_kind(), Kind::BFloat16);
        drop(outer);
        assert_eq!(product_kind(), Kind::Float);
        Ok(())
    }

    #[test]
    fn unwinding_puts_the_former_state_back() {
        let outcome = catch_unwind(|| {
            let _guard = AutocastGuard::bfloat16(Device::Cpu);
            assert_eq!(product_kind(), Kind::Float, "this panic is wanted");
        });
        assert!(outcome.is_err());
        assert_eq!(product_kind(), Kind::Float);
    }

    #[test]
    fn the_state_of_another_device_is_its_own() -> Result<(), ShimError> {
        let _guard = AutocastGuard::bfloat16(Device::Cuda(0))?;
        assert_eq!(product_kind(), Kind::Float);
        Ok(())
    }

    #[test]
    fn cached_casts_of_weights_end_with_the_outermost_guard() -> Result<(), ShimError> {
        let weight = Tensor::eye(4, (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let product = || -> Result<f64, ShimError> {
            let _guard = AutocastGuard::bfloat16(Device::Cpu)?;
            Ok(weight.matmul(&Tensor::ones([4, 1], (Kind::Float, Device::Cpu))).sum(Kind::Float).double_value(&[]))
        };
        assert_eq!(product()?, 4.0);
        let _ = weight.detach().fill_(1.0);
        assert_eq!(product()?, 16.0, "the weight's former values came out of the cache");
        Ok(())
    }

    #[test]
    fn a_device_without_autocast_is_refused() {
        let message = AutocastGuard::bfloat16(Device::Mps).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(message.contains("Mps is neither the CPU nor a CUDA device"), "{message}");
    }
}
