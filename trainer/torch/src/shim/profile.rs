//! libtorch's own profiler: operators, and on a GPU its kernels.
#![allow(unsafe_code, reason = "calls the C++ shim")]

use std::{ffi::CString, os::unix::ffi::OsStrExt, path::Path, ptr};

use tch::Device;

use super::{ShimError, check, ffi};

/// Runs `work` and writes what it had libtorch do to a file, in the format of Chrome's traces: operators of this thread and of the backward
/// pass, and on a GPU every kernel and copy. For measurements: it takes time and memory with every operator.
///
/// # Errors
/// The profiler does not begin, or the trace cannot be written; what `work` returns is lost then.
pub fn record<T>(device: Device, path: &Path, work: impl FnOnce() -> T) -> Result<T, ShimError> {
    /// Ends the profiler when `work` panics.
    struct Running;
    impl Drop for Running {
        fn drop(&mut self) {
            // SAFETY: without a path nothing is written.
            let _ = unsafe { ffi::lcl_profile_end(ptr::null()) };
        }
    }

    const OPERATION: &str = "recording what libtorch does";
    let text = CString::new(path.as_os_str().as_bytes())
        .map_err(|error| ShimError { operation: OPERATION, message: format!("{}: {error}", path.display()) })?;
    // SAFETY: a plain number.
    check(OPERATION, unsafe { ffi::lcl_profile_begin(i32::from(device.is_cuda())) })?;
    let running = Running;
    let result = work();
    std::mem::forget(running);
    // SAFETY: NUL-terminated.
    check(OPERATION, unsafe { ffi::lcl_profile_end(text.as_ptr()) })?;
    Ok(result)
}
