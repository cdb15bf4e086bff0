//! CUDA devices, without linking libtorch's CUDA half: it is loaded when it is there, so one program serves both kinds of machine.
#![allow(unsafe_code, reason = "calls the C++ shim")]

use std::{
    ffi::c_void,
    ops::Range,
    ptr::{self, NonNull},
};

use tch::Tensor;

use super::{ShimError, check, ffi, own, raw, text_of};

/// Loads libtorch's CUDA half once; false when it is missing or its libraries are. Call it before the first CUDA tensor.
pub fn load() -> Result<bool, ShimError> {
    let mut loaded = 0;
    // SAFETY: a valid place for the answer.
    check("loading libtorch_cuda", unsafe { ffi::lcl_cuda_load(&raw mut loaded) })?;
    Ok(loaded != 0)
}

/// Devices that can be used; 0 without a GPU, driver or CUDA build of libtorch.
pub fn device_count() -> Result<usize, ShimError> {
    let mut count = 0;
    // SAFETY: a valid place for the number.
    check("counting CUDA devices", unsafe { ffi::lcl_cuda_device_count(&raw mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Waits until everything launched on the device is done.
pub fn synchronize(device: usize) -> Result<(), ShimError> {
    // SAFETY: plain numbers.
    check("waiting for a CUDA device", unsafe { ffi::lcl_cuda_synchronize(index(device)) })
}

/// A copy of a tensor of host memory in memory that a GPU can read while the processor goes on.
pub fn pin_memory(tensor: &Tensor) -> Result<Tensor, ShimError> {
    let mut pinned = std::ptr::null_mut();
    // SAFETY: a live tensor and a place for the result.
    check("pinning memory", unsafe { ffi::lcl_pin_memory(raw(tensor), &raw mut pinned) })?;
    // SAFETY: a new tensor of the shim's.
    Ok(unsafe { own(pinned) })
}

/// What a device has been told so far.
#[derive(Debug)]
pub struct Moment(NonNull<ffi::Moment>);

// SAFETY: an event of CUDA belongs to no thread; it is used by one at a time, since nothing here gives out a second handle.
unsafe impl Send for Moment {}

/// A copy from a device failed.
#[derive(Debug)]
pub struct CopyFailure {
    /// Which of the tensors, where that is known.
    pub index: Option<usize>,
    /// Why.
    pub source: ShimError,
}

impl Moment {
    /// What the calling thread has told the device so far.
    pub fn now(device: usize) -> Result<Self, ShimError> {
        let mut moment = ptr::null_mut();
        // SAFETY: a valid place for the result.
        check("noting what a CUDA device was told", unsafe { ffi::lcl_cuda_moment_now(index(device), &raw mut moment) })?;
        NonNull::new(moment)
            .map(Self)
            .ok_or_else(|| ShimError { operation: "noting what a CUDA device was told", message: "there is nothing".to_owned() })
    }

    /// Copies tensors of that device to host memory, each into a place of its size, once the device has done what it had been told at this
    /// moment, and beside whatever it was told since: nobody may change the tensors meanwhile. Returns when the bytes are there. Runs beside
    /// other work only where the memory is locked ([`LockedBytes::lock`]).
    pub fn copy(&self, copies: &mut [(&Tensor, &mut [u8])]) -> Result<(), CopyFailure> {
        for (index, (tensor, place)) in copies.iter().enumerate() {
            let bytes = tensor.numel() * tensor.kind().elt_size_in_bytes();
            if bytes != place.len() || !tensor.device().is_cuda() {
                let message = format!("{bytes} bytes on {:?} do not go into a place of {} bytes", tensor.device(), place.len());
                return Err(CopyFailure { index: Some(index), source: ShimError { operation: "copying from a CUDA device", message } });
            }
        }
        let tensors: Vec<ffi::RawTensor> = copies.iter().map(|(tensor, _)| raw(tensor)).collect();
        let places: Vec<*mut c_void> = copies.iter_mut().map(|(_, place)| place.as_mut_ptr().cast()).collect();
        let mut failed = copies.len();
        // SAFETY: a live moment; as many live tensors as places, each of its tensor's size; nothing writes there any more on return.
        let status =
            unsafe { ffi::lcl_cuda_copy_after(self.0.as_ptr(), tensors.as_ptr(), places.as_ptr(), tensors.len(), &raw mut failed) };
        check("copying from a CUDA device", status)
            .map_err(|source| CopyFailure { index: Some(failed).filter(|failed| *failed < copies.len()), source })
    }
}

impl Drop for Moment {
    fn drop(&mut self) {
        // SAFETY: nobody else has it.
        unsafe { ffi::lcl_cuda_moment_drop(self.0.as_ptr()) }
    }
}

/// Bytes in host memory that may be page-locked: a GPU then writes them while the processor goes on.
#[derive(Debug)]
pub struct LockedBytes {
    memory: Box<[u8]>,
    /// Where the bytes are: from the beginning of a page, and the rest of their last page is here, too. Two that shared a page could not both
    /// be locked.
    range: Range<usize>,
    is_locked: bool,
}

/// What CUDA locks at a time on x86-64; where pages are larger, neighbours may fail to be locked, which is told.
const PAGE: usize = 4096;

impl LockedBytes {
    /// So many bytes, not locked, in memory that is touched: none is left to the first write.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        // A zero would be left to the first write.
        let memory = vec![1; bytes + 2 * PAGE].into_boxed_slice();
        let begin = memory.as_ptr().align_offset(PAGE).min(PAGE);
        Self { memory, range: begin..begin + bytes, is_locked: false }
    }

    /// Locks them until they are dropped, unless they are.
    pub fn lock(&mut self) -> Result<(), ShimError> {
        let whole_pages = self.range.len().next_multiple_of(PAGE);
        if !self.is_locked && whole_pages > 0 {
            // SAFETY: memory of that size, which stays where it is until `drop` lets it go.
            check("locking host memory", unsafe { ffi::lcl_cuda_lock_memory(self.as_mut_slice().as_mut_ptr().cast(), whole_pages) })?;
            self.is_locked = true;
        }
        Ok(())
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.memory.get(self.range.clone()).unwrap_or_default()
    }

    /// The bytes, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        self.memory.get_mut(self.range.clone()).unwrap_or_default()
    }
}

impl Drop for LockedBytes {
    fn drop(&mut self) {
        if self.is_locked {
            // SAFETY: it was locked under this address. That it fails is of no interest to memory that goes.
            let _ = unsafe { ffi::lcl_cuda_unlock_memory(self.as_mut_slice().as_mut_ptr().cast()) };
        }
    }
}

/// Whether the device multiplies bfloat16 matrices in hardware (compute capability 8.0).
pub fn supports_bfloat16(device: usize) -> Result<bool, ShimError> {
    let mut supported = 0;
    // SAFETY: a valid place for the answer.
    check("asking for bfloat16 support", unsafe { ffi::lcl_cuda_supports_bfloat16(index(device), &raw mut supported) })?;
    Ok(supported != 0)
}

/// What kind of GPU it is, in its maker's words.
pub fn device_name(device: usize) -> Result<String, ShimError> {
    // SAFETY: a place of that size.
    text_of("asking for a GPU's name", |text, size| unsafe { ffi::lcl_cuda_device_name(index(device), text, size) })
}

/// Device memory of this process in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryStatistics {
    /// Held by tensors.
    pub allocated: u64,
    /// Most ever held by tensors since the start or the last reset.
    pub peak_allocated: u64,
    /// Held by libtorch's allocator.
    pub reserved: u64,
    /// Most ever held by libtorch's allocator since the start or the last reset.
    pub peak_reserved: u64,
}

/// Device memory of this process.
pub fn memory_statistics(device: usize) -> Result<MemoryStatistics, ShimError> {
    let mut memory = ffi::CudaMemory::default();
    // SAFETY: a valid place for the numbers.
    check("reading CUDA memory statistics", unsafe { ffi::lcl_cuda_memory_statistics(index(device), &raw mut memory) })?;
    let bytes = |value: i64| u64::try_from(value).unwrap_or(0);
    Ok(MemoryStatistics {
        allocated: bytes(memory.allocated),
        peak_allocated: bytes(memory.peak_allocated),
        reserved: bytes(memory.reserved),
        peak_reserved: bytes(memory.peak_reserved),
    })
}

/// Starts the peaks of [`memory_statistics`] anew.
pub fn reset_peak_memory(device: usize) -> Result<(), ShimError> {
    // SAFETY: plain numbers.
    check("resetting CUDA memory statistics", unsafe { ffi::lcl_cuda_reset_peak_memory(index(device)) })
}

/// libtorch counts devices in `int`; a number that does not fit is no device.
fn index(device: usize) -> i32 {
    i32::try_from(device).unwrap_or(-1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_counted_with_and_without_a_gpu() -> Result<(), ShimError> {
        let count = device_count()?;
        assert!(count == 0 || load()?, "{count} devices without libtorch_cuda");
        for device in 0..count {
            synchronize(device)?;
            supports_bfloat16(device)?;
            assert!(!device_name(device)?.is_empty());
            reset_peak_memory(device)?;
            let memory = memory_statistics(device)?;
            assert!(memory.peak_allocated >= memory.allocated && memory.reserved >= memory.allocated, "{memory:?}");
        }
        Ok(())
    }

    #[test]
    fn bytes_to_be_locked_have_their_pages_for_themselves() {
        for bytes in [0, 1, PAGE - 1, PAGE, 3 * PAGE + 5] {
            let mut place = LockedBytes::new(bytes);
            assert_eq!(place.as_slice().len(), bytes);
            let (begin, held) = (place.as_slice().as_ptr().addr(), place.memory.as_ptr_range());
            assert!(bytes == 0 || begin.is_multiple_of(PAGE), "{begin:#x}");
            assert!(held.start.addr() <= begin && begin + bytes.next_multiple_of(PAGE) <= held.end.addr());
            place.as_mut_slice().fill(7);
            assert!(place.as_slice().iter().all(|byte| *byte == 7));
        }
    }

    #[test]
    fn memory_is_not_locked_where_there_is_no_gpu_and_the_error_says_so() -> Result<(), ShimError> {
        let mut place = LockedBytes::new(10);
        if device_count()? == 0 {
            let message = place.lock().err().map(|error| error.to_string()).unwrap_or_default();
            assert!(message.contains("cudaHostRegister") || message.contains("CUDA error"), "{message}");
        } else {
            place.lock()?;
            place.lock()?;
        }
        Ok(())
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error_with_its_number() -> Result<(), ShimError> {
        let check = |outcome: Result<(), ShimError>, device: &str| {
            let message = outcome.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(message.contains(&format!("there is no CUDA device {device}")), "{message}");
        };
        let missing = device_count()?;
        check(synchronize(missing), &missing.to_string());
        check(Moment::now(missing).map(drop), &missing.to_string());
        check(supports_bfloat16(missing).map(drop), &missing.to_string());
        check(device_name(missing).map(drop), &missing.to_string());
        check(memory_statistics(missing).map(drop), &missing.to_string());
        check(reset_peak_memory(missing), &missing.to_string());
        check(synchronize(usize::MAX), "-1");
        Ok(())
    }
}
