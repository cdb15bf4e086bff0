//! Which device a process computes on, and with how many threads.

use lcl_trainer_config::Device as Wanted;
use tch::Device;

use crate::shim::{ShimError, cuda, runtime};

/// The wanted device is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A GPU is demanded where libtorch sees none.
    #[error("--device cuda was asked for, but this libtorch is no CUDA build: have LIBTORCH lead to one, or use auto or cpu")]
    NoCuda,
    /// A GPU is demanded, libtorch is a CUDA build, and sees none: the driver, or the GPU.
    #[error("--device cuda was asked for, but the driver shows no GPU here: check nvidia-smi on this machine")]
    NoGpu,
    /// There are fewer GPUs than the index asks for.
    #[error("GPU {index} is wanted, but this machine has {count}")]
    Index {
        /// The wanted index.
        index: usize,
        /// GPUs here.
        count: usize,
    },
    /// libtorch could not be asked or set up.
    #[error("setting up libtorch")]
    Runtime(#[from] ShimError),
}

/// The device for the member with this index on its machine: `cuda:index` when a GPU is wanted or there, else the CPU.
pub fn choose_device(wanted: Wanted, index: usize) -> Result<Device, DeviceError> {
    if wanted == Wanted::Cpu {
        return Ok(Device::Cpu);
    }
    let has_cuda = cuda::load()?;
    let count = if has_cuda { cuda::device_count()? } else { 0 };
    match (wanted, count) {
        (Wanted::Cuda, 0) if has_cuda => Err(DeviceError::NoGpu),
        (Wanted::Cuda, 0) => Err(DeviceError::NoCuda),
        (_, 0) => Ok(Device::Cpu),
        (_, count) if index >= count => Err(DeviceError::Index { index, count }),
        _ => Ok(Device::Cuda(index)),
    }
}

/// Sets how many threads libtorch's operators use; `None`: one per core. Results on the CPU depend on it in their last bits.
pub fn set_threads(threads: Option<usize>) -> Result<(), DeviceError> {
    let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    Ok(runtime::set_intra_op_threads(threads)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_there_and_a_missing_gpu_is_an_error_only_when_demanded() -> Result<(), DeviceError> {
        assert_eq!(choose_device(Wanted::Cpu, 3)?, Device::Cpu);
        let gpus = if cuda::load()? { cuda::device_count()? } else { 0 };
        if gpus == 0 {
            assert_eq!(choose_device(Wanted::Auto, 0)?, Device::Cpu);
            assert!(matches!(choose_device(Wanted::Cuda, 0), Err(DeviceError::NoCuda | DeviceError::NoGpu)));
        } else {
            assert_eq!(choose_device(Wanted::Auto, 0)?, Device::Cuda(0));
            assert!(matches!(choose_device(Wanted::Cuda, gpus), Err(DeviceError::Index { .. })));
        }
        Ok(())
    }
}
