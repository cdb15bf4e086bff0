//! NCCL, in an object of its own that is loaded when a group has members on GPUs: one program serves both kinds of machine.
//!
//! The object is part of the program and is loaded from memory, so that it can neither be missing nor be another build's. What it needs from
//! outside is libtorch's CUDA half, which [`super::cuda::load`] brings along.
#![allow(unsafe_code, reason = "loads an object and calls it")]

use std::{
    ffi::{CStr, CString, c_int},
    fs::File,
    io::{self, Write},
    os::fd::{AsRawFd, FromRawFd, IntoRawFd},
    sync::OnceLock,
};

use super::{ShimError, cuda, ffi};

/// `LCL_NCCL_INTERFACE`.
const INTERFACE: i32 = 2;

/// `lcl_nccl_open`.
type Open = unsafe extern "C" fn() -> *const ffi::NcclInterface;

/// NCCL of this process.
#[derive(Clone, Copy)]
pub struct Nccl(&'static ffi::NcclInterface);

impl std::fmt::Debug for Nccl {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Nccl(built with {})", version(self.built_with()))
    }
}

/// The object, as it is loaded.
#[doc(hidden)]
#[must_use]
pub fn object() -> &'static [u8] {
    include_bytes!(concat!(env!("OUT_DIR"), "/liblcl_nccl.so"))
}

/// Loads NCCL once, for a process that computes on a GPU.
pub fn load() -> Result<Nccl, ShimError> {
    static LOADED: OnceLock<Result<Nccl, ShimError>> = OnceLock::new();
    LOADED.get_or_init(|| load_with(cuda::load()?)).clone()
}

fn load_with(has_cuda: bool) -> Result<Nccl, ShimError> {
    if !has_cuda {
        return Err(failure(
            "libtorch's CUDA half cannot be loaded: libtorch_cuda.so has to lie beside libtorch_cpu.so (LIBTORCH must be a CUDA build), \
             and the libraries it names have to be there: CUDA 13, cuDNN 9, NCCL 2.28.9 or newer",
        ));
    }
    let nccl = open(libc::RTLD_NOW)?;
    let running = nccl.running()?;
    if running < nccl.built_with() {
        return Err(failure(&format!(
            "libnccl.so.2 is NCCL {}, libtorch was built with {}: install that version or a newer one",
            version(running),
            version(nccl.built_with())
        )));
    }
    Ok(nccl)
}

/// Loads the object without asking for a GPU; with `RTLD_LAZY` also where libtorch's CUDA half is not there. For tests.
#[doc(hidden)]
pub fn open(mode: c_int) -> Result<Nccl, ShimError> {
    let file = in_memory(object()).map_err(|error| failure(&format!("the object cannot be held in memory: {error}")))?;
    let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default();
    // SAFETY: an object of this program, whose initialisers only set up its own data. It stays loaded.
    let handle = unsafe { libc::dlopen(path.as_ptr(), mode | libc::RTLD_LOCAL) };
    if handle.is_null() {
        return Err(failure(&format!("{}; libtorch has to be the version that this program was built with, 2.11.0", loader_error())));
    }
    // The loader knows objects by their names: no other file may get this one while it is loaded.
    let _ = file.into_raw_fd();
    // SAFETY: a live handle and a NUL-terminated name.
    let function = unsafe { libc::dlsym(handle, c"lcl_nccl_open".as_ptr()) };
    if function.is_null() {
        return Err(failure(&loader_error()));
    }
    // SAFETY: that function's type in `shim/lcl_nccl.h`.
    let function = unsafe { std::mem::transmute::<*mut libc::c_void, Open>(function) };
    // SAFETY: it has no arguments and returns a constant of the object.
    let interface = unsafe { function().as_ref() };
    match interface {
        Some(interface) if interface.interface == INTERFACE => Ok(Nccl(interface)),
        _ => Err(failure("the object is of another build than the program")),
    }
}

impl Nccl {
    pub(super) fn interface(self) -> *const ffi::NcclInterface {
        self.0
    }

    /// The version whose headers it was compiled with, as NCCL numbers them: 22809 is 2.28.9.
    #[must_use]
    pub fn built_with(self) -> i32 {
        self.0.built_with
    }

    /// The version that libtorch uses here. libtorch's CUDA half is loaded.
    fn running(self) -> Result<i32, ShimError> {
        let mut version = 0;
        // SAFETY: a valid place for the number.
        if unsafe { (self.0.running)(&raw mut version) } == 0 {
            return Ok(version);
        }
        // SAFETY: a NUL-terminated string that lives until this thread's next failure; it is copied at once.
        Err(failure(&unsafe { CStr::from_ptr((self.0.last_error)()) }.to_string_lossy()))
    }
}

/// 22809 as 2.28.9.
fn version(number: i32) -> String {
    format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100)
}

fn failure(message: &str) -> ShimError {
    ShimError { operation: "loading NCCL", message: message.to_owned() }
}

fn loader_error() -> String {
    // SAFETY: a NUL-terminated string of the loader, or none; it is copied at once.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "the loader gives no reason".to_owned();
    }
    // SAFETY: as above.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// A file without a name.
fn in_memory(bytes: &[u8]) -> io::Result<File> {
    // SAFETY: a NUL-terminated name.
    let descriptor = unsafe { libc::memfd_create(c"liblcl_nccl.so".as_ptr(), libc::MFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    let mut file = unsafe { File::from_raw_fd(descriptor) };
    file.write_all(bytes)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_of_this_program_says_what_it_was_built_with() -> Result<(), ShimError> {
        // Functions that are not called need not be there: libtorch's CUDA half is not loaded by this test.
        let nccl = open(libc::RTLD_LAZY)?;
        assert_eq!((nccl.built_with(), version(nccl.built_with()).as_str()), (22809, "2.28.9"));
        Ok(())
    }

    #[test]
    fn without_a_gpus_libraries_the_error_says_what_has_to_be_there() {
        let message = load_with(false).map(drop).expect_err("there is no CUDA").to_string();
        assert!(message.contains("libtorch_cuda.so has to lie beside libtorch_cpu.so") && message.contains("NCCL 2.28.9"), "{message}");
        if !cuda::load().expect("an answer") {
            let message = open(libc::RTLD_NOW).map(drop).expect_err("its symbols are not there").to_string();
            assert!(message.contains("undefined symbol") && message.contains("2.11.0"), "{message}");
        }
    }
}
