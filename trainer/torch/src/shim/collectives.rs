//! libtorch's process groups and Reducer behind owned handles; [`crate::collectives`] decides when which may be used.
#![allow(unsafe_code, reason = "calls the C++ shim")]

use std::{
    ffi::{CString, c_int, c_void},
    ptr,
    sync::Arc,
    time::Duration,
};

use tch::Tensor;

use super::{ShimError, check, ffi, nccl::Nccl, raw, store};
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

/// Operations that this process has started in any group, and how long it has waited for them. Called from any thread.
pub(crate) fn operations() -> (u64, Duration) {
    let (mut started, mut waited) = (0, 0);
    // SAFETY: two places for the results.
    unsafe { ffi::lcl_operations(&raw mut started, &raw mut waited) };
    (started, Duration::from_nanos(waited))
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

/// How long the threads of a group that is dropped may take to end before they are left to themselves. An operation that was interrupted
/// ends within milliseconds, or not before its time-out (see `shim/interrupt.h`). NCCL is not waited for.
const GRACE: Duration = Duration::from_millis(500);

/// How gradients are summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BucketOptions {
    pub(crate) first_bucket_bytes: usize,
    pub(crate) bucket_bytes: usize,
    /// Whether float32 travels as bfloat16.
    pub(crate) compresses: bool,
}

/// Ends a group's operations from another thread. It may outlive the group.
#[derive(Debug)]
pub(crate) struct Interrupter(ptr::NonNull<ffi::Interrupter>);

// SAFETY: the shim's interrupters may be used from any thread, several at a time.
unsafe impl Send for Interrupter {}
// SAFETY: as above.
unsafe impl Sync for Interrupter {}

impl Interrupter {
    /// Pending and later operations fail with `reason`. With NCCL this aborts the communicator, and may take long.
    pub(crate) fn fire(&self, reason: &str) {
        let reason = CString::new(reason.replace('\0', " ")).unwrap_or_default();
        // SAFETY: a live interrupter; the shim copies the text.
        unsafe { ffi::lcl_interrupter_fire(self.0.as_ptr(), reason.as_ptr()) };
    }
}

impl Drop for Interrupter {
    fn drop(&mut self) {
        // SAFETY: made by the shim, dropped once.
        unsafe { ffi::lcl_interrupter_drop(self.0.as_ptr()) };
    }
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

    /// Adds NCCL for tensors on that CUDA device, and waits for all members.
    pub(crate) fn add_nccl(&mut self, nccl: Nccl, device: usize, timeout: Duration) -> Result<(), ShimError> {
        let device = i32::try_from(device).unwrap_or(-1);
        // SAFETY: here and below, a live group used by this thread alone, and live tensors. The interface lives for ever.
        check("forming NCCL's part of the group", unsafe {
            ffi::lcl_group_add_nccl(self.0.as_ptr(), nccl.interface(), device, milliseconds(timeout))
        })
    }

    /// What ends this group's operations from another thread.
    pub(crate) fn interrupter(&mut self) -> Result<Interrupter, ShimError> {
        // SAFETY: as above.
        let interrupter = unsafe { ffi::lcl_group_interrupter(self.0.as_ptr()) };
        let none = || ShimError { operation: "reaching the group", message: "no interrupter".to_owned() };
        ptr::NonNull::new(interrupter).map(Interrupter).ok_or_else(none)
    }

    /// Drops the group. `gone` is called from any thread when that is done, perhaps before this returns; NCCL takes half a second after it, or
    /// hangs for ever.
    pub(crate) fn close(self, gone: impl FnOnce() + Send + 'static) {
        let group = std::mem::ManuallyDrop::new(self);
        // SAFETY: nobody drops it a second time.
        unsafe { drop_group(group.0, Box::new(gone)) };
    }

    pub(crate) fn all_reduce(&mut self, tensor: &Tensor, timeout: Duration) -> Result<(), ShimError> {
        // SAFETY: as above.
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

    pub(crate) fn all_to_all(
        &mut self,
        input: &Tensor,
        input_counts: &[i64],
        output: &Tensor,
        output_counts: &[i64],
        timeout: Duration,
    ) -> Result<(), ShimError> {
        let (inputs, outputs, count) = (input_counts.as_ptr(), output_counts.as_ptr(), input_counts.len().min(output_counts.len()));
        // SAFETY: as above; `count` numbers in both lists.
        check("all-to-all", unsafe {
            ffi::lcl_group_all_to_all(self.0.as_ptr(), raw(input), inputs, raw(output), outputs, count, milliseconds(timeout))
        })
    }

    pub(crate) fn send(&mut self, tensor: &Tensor, rank: usize, tag: u16, timeout: Duration) -> Result<(), ShimError> {
        // SAFETY: as above.
        check("send", unsafe { ffi::lcl_group_send(self.0.as_ptr(), raw(tensor), rank as i32, tag.into(), milliseconds(timeout)) })
    }

    pub(crate) fn receive(&mut self, tensor: &Tensor, rank: usize, tag: u16, timeout: Duration) -> Result<(), ShimError> {
        // SAFETY: as above.
        check("receive", unsafe { ffi::lcl_group_receive(self.0.as_ptr(), raw(tensor), rank as i32, tag.into(), milliseconds(timeout)) })
    }

    /// Receives tensors from ranks, and sends others, each under its tag. All are in host memory.
    pub(crate) fn relay(
        &mut self,
        incoming: &[(&Tensor, usize, u16)],
        outgoing: &[(&Tensor, usize, u16)],
        timeout: Duration,
    ) -> Result<(), ShimError> {
        let passing = |passing: &(&Tensor, usize, u16)| {
            let (tensor, rank, tag) = *passing;
            ffi::Passing { tensor: raw(tensor), rank: rank as i32, tag: tag.into() }
        };
        let incoming: Vec<_> = incoming.iter().map(passing).collect();
        let outgoing: Vec<_> = outgoing.iter().map(passing).collect();
        // SAFETY: as above; as many of each as is said.
        check("passing on", unsafe {
            ffi::lcl_group_relay(
                self.0.as_ptr(),
                incoming.as_ptr(),
                incoming.len(),
                outgoing.as_ptr(),
                outgoing.len(),
                milliseconds(timeout),
            )
        })
    }

    pub(crate) fn attach(&mut self, parameters: &[&Tensor], options: BucketOptions) -> Result<(), ShimError> {
        let mut pointers: Vec<_> = parameters.iter().map(|tensor| raw(tensor)).collect();
        let BucketOptions { first_bucket_bytes, bucket_bytes, compresses } = options;
        let options = ffi::BucketOptions { first_bucket_bytes, bucket_bytes, compresses: i32::from(compresses) };
        // SAFETY: as above.
        check("attaching parameters", unsafe {
            ffi::lcl_group_attach(self.0.as_ptr(), pointers.as_mut_ptr(), pointers.len(), &raw const options)
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

/// Has `observer` called with the number of every bucket whose sum is about to start, on the thread of the backward pass.
pub(crate) fn observe_buckets(observer: extern "C" fn(c_int)) {
    // SAFETY: a function that lives as long as the program.
    unsafe { ffi::lcl_observe_buckets(observer) };
}

impl Drop for RawGroup {
    fn drop(&mut self) {
        // SAFETY: nobody drops it a second time.
        unsafe { drop_group(self.0, Box::new(|| {})) };
    }
}

/// # Safety
/// The group was made by the shim, and nobody uses it afterwards.
unsafe fn drop_group(group: ptr::NonNull<ffi::Group>, gone: GoneListener) {
    // SAFETY: as the function's; the listener is called once.
    unsafe { ffi::lcl_group_drop(group.as_ptr(), milliseconds(GRACE), tell_gone, Box::into_raw(Box::new(gone)).cast()) };
}

/// What is called when a group is gone.
type GoneListener = Box<dyn FnOnce() + Send>;

/// # Safety
/// `context` is a `Box<GoneListener>` that nobody else uses.
unsafe extern "C" fn tell_gone(context: *mut c_void) {
    // SAFETY: as the function's.
    let listener = unsafe { Box::from_raw(context.cast::<GoneListener>()) };
    listener();
}
