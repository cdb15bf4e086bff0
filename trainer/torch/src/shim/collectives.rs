//! libtorch's Gloo process group and Reducer behind owned handles; [`crate::collectives`] decides when which may be used.
#![allow(unsafe_code, reason = "calls the C++ shim")]

use std::{
    ffi::{CString, c_int},
    ptr,
    sync::Arc,
    time::Duration,
};

use tch::Tensor;

use super::{ShimError, check, ffi, raw, store};
use crate::collectives::Store;

/// The longest time-out handed to libtorch, which counts in nanoseconds in places: nothing waits for longer than a day.
const LONGEST: Duration = Duration::from_hours(24);

/// Milliseconds, never 0: that means "for ever" to libtorch.
fn milliseconds(timeout: Duration) -> i64 {
    (timeout.min(LONGEST).as_millis() as i64).max(1)
}

fn c_string(operation: &'static str, text: &str) -> Result<CString, ShimError> {
    CString::new(text).map_err(|error| ShimError { operation, message: error.to_string() })
}

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Device(ptr::NonNull<ffi::Device>);

impl Device {
    /// Listens at an address of this host, on a free port.
    pub(crate) fn open(host: &str) -> Result<Self, ShimError> {
        let operation = "opening a device";
        let host = c_string(operation, host)?;
        let mut device = ptr::null_mut();
        // SAFETY: a NUL-terminated string and a place for the result.
        check(operation, unsafe { ffi::lcl_device_open(host.as_ptr(), &raw mut device) })?;
        ptr::NonNull::new(device).map(Self).ok_or_else(|| ShimError { operation, message: "no device".to_owned() })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: made by the shim, dropped once.
        unsafe { ffi::lcl_device_drop(self.0.as_ptr()) };
    }
}

/// What a group is formed of.
pub(crate) struct Formation<'a> {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) prefix: &'a str,
    pub(crate) device: &'a Device,
    pub(crate) rank: usize,
    pub(crate) world_size: usize,
    pub(crate) timeout: Duration,
}

/// A formed group. After an error it may only be dropped.
#[derive(Debug)]
pub(crate) struct RawGroup(ptr::NonNull<ffi::Group>);

// SAFETY: libtorch's group is bound to no thread; `&mut self` on every operation keeps it to one at a time.
unsafe impl Send for RawGroup {}

impl RawGroup {
    /// Waits for all members.
    pub(crate) fn form(formation: Formation<'_>) -> Result<Self, ShimError> {
        let operation = "forming a group";
        let prefix = c_string(operation, formation.prefix)?;
        let arguments = ffi::GroupArguments {
            store: store::callbacks(formation.store),
            prefix: prefix.as_ptr(),
            device: formation.device.0.as_ptr(),
            rank: formation.rank as i32,
            size: formation.world_size as i32,
            timeout: milliseconds(formation.timeout),
        };
        let mut group = ptr::null_mut();
        // SAFETY: everything that the arguments point to lives until the call returns; the shim drops the store's callbacks once.
        check(operation, unsafe { ffi::lcl_group_form(&raw const arguments, &raw mut group) })?;
        ptr::NonNull::new(group).map(Self).ok_or_else(|| ShimError { operation, message: "no group".to_owned() })
    }

    pub(crate) fn all_reduce(&mut self, tensor: &Tensor, timeout: Duration) -> Result<(), ShimError> {
        // SAFETY: here and below, a live group used by this thread alone, and live tensors.
        check("all-reduce", unsafe { ffi::lcl_group_all_reduce(self.0.as_ptr(), raw(tensor), milliseconds(timeout)) })
    }

    pub(crate) fn broadcast(&mut self, tensor: &Tensor, root: usize, timeout: Duration) -> Result<(), ShimError> {
        // SAFETY: as above.
        check("broadcast", unsafe { ffi::lcl_group_broadcast(self.0.as_ptr(), raw(tensor), root as i32, milliseconds(timeout)) })
    }

    pub(crate) fn all_gather(&mut self, input: &Tensor, outputs: &[Tensor], timeout: Duration) -> Result<(), ShimError> {
        let mut outputs: Vec<_> = outputs.iter().map(raw).collect();
        let (pointers, count) = (outputs.as_mut_ptr(), outputs.len());
        // SAFETY: as above.
        check("all-gather", unsafe { ffi::lcl_group_all_gather(self.0.as_ptr(), raw(input), pointers, count, milliseconds(timeout)) })
    }

    pub(crate) fn send(&mut self, tensor: &Tensor, rank: usize, tag: u16, timeout: Duration) -> Result<(), ShimError> {
        // SAFETY: as above.
        check("send", unsafe { ffi::lcl_group_send(self.0.as_ptr(), raw(tensor), rank as i32, tag.into(), milliseconds(timeout)) })
    }

    pub(crate) fn receive(&mut self, tensor: &Tensor, rank: usize, tag: u16, timeout: Duration) -> Result<(), ShimError> {
        // SAFETY: as above.
        check("receive", unsafe { ffi::lcl_group_receive(self.0.as_ptr(), raw(tensor), rank as i32, tag.into(), milliseconds(timeout)) })
    }

    pub(crate) fn attach(&mut self, parameters: &[&Tensor], first_bucket: usize, bucket: usize) -> Result<(), ShimError> {
        let mut pointers: Vec<_> = parameters.iter().map(|tensor| raw(tensor)).collect();
        // SAFETY: as above.
        check("attaching parameters", unsafe {
            ffi::lcl_group_attach(self.0.as_ptr(), pointers.as_mut_ptr(), pointers.len(), first_bucket, bucket)
        })
    }

    pub(crate) fn prepare(&mut self, timeout: Duration) -> Result<(), ShimError> {
        // SAFETY: as above.
        check("preparing the sum of gradients", unsafe { ffi::lcl_group_prepare(self.0.as_ptr(), milliseconds(timeout)) })
    }

    pub(crate) fn reached(&mut self, count: usize) -> Result<Vec<bool>, ShimError> {
        let mut reached = vec![0u8; count];
        // SAFETY: as above; room for `count` answers.
        check("reading which gradients are there", unsafe {
            ffi::lcl_group_reached(self.0.as_ptr(), reached.as_mut_ptr(), reached.len())
        })?;
        Ok(reached.into_iter().map(|mark| mark != 0).collect())
    }

    pub(crate) fn finish(&mut self) -> Result<(), ShimError> {
        // SAFETY: as above.
        check("summing gradients", unsafe { ffi::lcl_group_finish(self.0.as_ptr()) })
    }

    /// Why a bucket of the backward pass failed, if one did.
    pub(crate) fn bucket_failure(&mut self) -> Option<ShimError> {
        let mut failed: c_int = 0;
        // SAFETY: as above.
        let status = unsafe { ffi::lcl_group_bucket_failure(self.0.as_ptr(), &raw mut failed) };
        check("summing gradients", c_int::from(status != 0 || failed != 0)).err()
    }
}

impl Drop for RawGroup {
    fn drop(&mut self) {
        // SAFETY: made by the shim, dropped once.
        unsafe { ffi::lcl_group_drop(self.0.as_ptr()) };
    }
}
