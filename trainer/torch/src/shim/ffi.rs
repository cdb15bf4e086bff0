//! The C interface of `shim/lcl_shim.cpp`, `shim/lcl_profile.cpp`, `shim/lcl_collectives.cpp` and `shim/lcl_nccl.cpp`, declared one to one. Only the modules beside this one call it.

use std::ffi::{c_char, c_int, c_void};

/// `at::Tensor*`.
pub(super) type RawTensor = *mut c_void;

/// `lcl_adamw_arguments`.
#[repr(C)]
pub(super) struct AdamWArguments {
    pub(super) parameters: *mut RawTensor,
    pub(super) first_moments: *mut RawTensor,
    pub(super) second_moments: *mut RawTensor,
    pub(super) count: usize,
    pub(super) step: i64,
    pub(super) learning_rate: f64,
    pub(super) beta1: f64,
    pub(super) beta2: f64,
    pub(super) weight_decay: f64,
    pub(super) epsilon: f64,
    pub(super) gradient_scale: f64,
}

/// `lcl_autocast_state`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AutocastState {
    pub(super) device_type: i32,
    pub(super) enabled: i32,
    pub(super) dtype: i32,
    pub(super) cache_enabled: i32,
}

/// `lcl_cuda_memory`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct CudaMemory {
    pub(super) allocated: i64,
    pub(super) peak_allocated: i64,
    pub(super) reserved: i64,
    pub(super) peak_reserved: i64,
}

/// `lcl_run`.
pub(super) type Run = unsafe extern "C" fn(*mut c_void, *const RawTensor, usize, *mut RawTensor) -> c_int;
/// `lcl_drop`.
pub(super) type Drop = unsafe extern "C" fn(*mut c_void);

/// `lcl_string`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ShimString {
    pub(super) data: *const c_char,
    pub(super) size: usize,
}

/// `lcl_store`.
#[repr(C)]
pub(super) struct StoreCallbacks {
    pub(super) data: *mut c_void,
    pub(super) set: unsafe extern "C" fn(*mut c_void, ShimString, *const u8, usize, i64) -> c_int,
    pub(super) get: unsafe extern "C" fn(*mut c_void, ShimString, *mut c_void, i64) -> c_int,
    pub(super) compare_set: unsafe extern "C" fn(*mut c_void, ShimString, ShimString, ShimString, *mut c_void, i64) -> c_int,
    pub(super) add: unsafe extern "C" fn(*mut c_void, ShimString, i64, *mut i64, i64) -> c_int,
    pub(super) remove: unsafe extern "C" fn(*mut c_void, ShimString, *mut i32, i64) -> c_int,
    pub(super) check: unsafe extern "C" fn(*mut c_void, *const ShimString, usize, *mut i32, i64) -> c_int,
    pub(super) count: unsafe extern "C" fn(*mut c_void, *mut i64, i64) -> c_int,
    pub(super) wait: unsafe extern "C" fn(*mut c_void, *const ShimString, usize, i64) -> c_int,
    pub(super) drop: Drop,
}

/// `lcl_moment`.
#[repr(C)]
pub(super) struct Moment {
    opaque: [u8; 0],
}

/// `lcl_device`.
#[repr(C)]
pub(super) struct Device {
    opaque: [u8; 0],
}

/// `lcl_group`.
#[repr(C)]
pub(super) struct Group {
    opaque: [u8; 0],
}

/// `lcl_interrupter`.
#[repr(C)]
pub(super) struct Interrupter {
    opaque: [u8; 0],
}

/// `lcl_bucket_options`.
#[repr(C)]
pub(super) struct BucketOptions {
    pub(super) first_bucket_bytes: usize,
    pub(super) bucket_bytes: usize,
    pub(super) compresses: i32,
}

/// `lcl_passing`.
#[repr(C)]
pub(super) struct Passing {
    pub(super) tensor: RawTensor,
    pub(super) rank: i32,
    pub(super) tag: i32,
}

/// `lcl_nccl_arguments`: passed from C++ to C++ only.
#[repr(C)]
pub(super) struct NcclArguments {
    opaque: [u8; 0],
}

/// `lcl_nccl_interface`.
#[repr(C)]
pub(super) struct NcclInterface {
    pub(super) interface: i32,
    pub(super) built_with: i32,
    pub(super) running: unsafe extern "C" fn(version: *mut i32) -> c_int,
    pub(super) form: unsafe extern "C" fn(arguments: *const NcclArguments, backend: *mut c_void) -> c_int,
    pub(super) is_ready: unsafe extern "C" fn(backend: *const c_void, ready: *mut i32) -> c_int,
    pub(super) last_error: unsafe extern "C" fn() -> *const c_char,
}

/// `lcl_group_arguments`.
#[repr(C)]
pub(super) struct GroupArguments {
    pub(super) store: StoreCallbacks,
    pub(super) prefix: *const c_char,
    pub(super) device: *const Device,
    pub(super) rank: i32,
    pub(super) size: i32,
    pub(super) timeout: i64,
}

unsafe extern "C" {
    pub(super) fn lcl_bytes_assign(value: *mut c_void, data: *const u8, size: usize);
    pub(super) fn lcl_device_open(host: *const c_char, device: *mut *mut Device) -> c_int;
    pub(super) fn lcl_device_drop(device: *mut Device);
    pub(super) fn lcl_group_form(arguments: *const GroupArguments, group: *mut *mut Group) -> c_int;
    pub(super) fn lcl_operations(started: *mut u64, waited: *mut u64);
    pub(super) fn lcl_group_add_nccl(group: *mut Group, nccl: *const NcclInterface, device: i32, timeout: i64) -> c_int;
    pub(super) fn lcl_group_drop(group: *mut Group, grace: i64, gone: unsafe extern "C" fn(context: *mut c_void), context: *mut c_void);
    pub(super) fn lcl_group_interrupter(group: *mut Group) -> *mut Interrupter;
    pub(super) fn lcl_interrupter_fire(interrupter: *mut Interrupter, reason: *const c_char);
    pub(super) fn lcl_interrupter_drop(interrupter: *mut Interrupter);
    pub(super) fn lcl_group_all_reduce(group: *mut Group, tensor: RawTensor, timeout: i64) -> c_int;
    pub(super) fn lcl_group_broadcast(group: *mut Group, tensor: RawTensor, root: i32, timeout: i64) -> c_int;
    pub(super) fn lcl_group_all_gather(group: *mut Group, input: RawTensor, outputs: *mut RawTensor, count: usize, timeout: i64) -> c_int;
    pub(super) fn lcl_group_all_to_all(
        group: *mut Group,
        input: RawTensor,
        input_counts: *const i64,
        output: RawTensor,
        output_counts: *const i64,
        count: usize,
        timeout: i64,
    ) -> c_int;
    pub(super) fn lcl_group_send(group: *mut Group, tensor: RawTensor, rank: i32, tag: i32, timeout: i64) -> c_int;
    pub(super) fn lcl_group_receive(group: *mut Group, tensor: RawTensor, rank: i32, tag: i32, timeout: i64) -> c_int;
    pub(super) fn lcl_group_relay(
        group: *mut Group,
        incoming: *const Passing,
        incoming_count: usize,
        outgoing: *const Passing,
        outgoing_count: usize,
        timeout: i64,
    ) -> c_int;
    pub(super) fn lcl_group_attach(group: *mut Group, parameters: *mut RawTensor, count: usize, options: *const BucketOptions) -> c_int;
    pub(super) fn lcl_group_prepare(group: *mut Group, timeout: i64) -> c_int;
    pub(super) fn lcl_group_reached(group: *mut Group, reached: *mut u8, count: usize) -> c_int;
    pub(super) fn lcl_group_finish(group: *mut Group) -> c_int;
    pub(super) fn lcl_group_bucket_failure(group: *mut Group, failed: *mut i32) -> c_int;
    pub(super) fn lcl_observe_buckets(observer: extern "C" fn(c_int));
    pub(super) fn lcl_last_error() -> *const c_char;
    pub(super) fn lcl_set_error(message: *const c_char);
    pub(super) fn lcl_linear_cross_entropy(
        hidden: RawTensor,
        weight: RawTensor,
        labels: RawTensor,
        scale: f64,
        loss: *mut RawTensor,
        terms: *mut RawTensor,
    ) -> c_int;
    pub(super) fn lcl_adamw_step(arguments: *const AdamWArguments) -> c_int;
    pub(super) fn lcl_gradient_norm(parameters: *mut RawTensor, count: usize, norm: *mut f64) -> c_int;
    pub(super) fn lcl_scale_gradients(parameters: *mut RawTensor, count: usize, factor: f64) -> c_int;
    pub(super) fn lcl_take_gradients(parameters: *mut RawTensor, count: usize, gradients: *mut RawTensor) -> c_int;
    pub(super) fn lcl_set_gradients(parameters: *mut RawTensor, count: usize, gradients: *mut RawTensor) -> c_int;
    pub(super) fn lcl_add_tensors(sums: *mut RawTensor, next: *mut RawTensor, count: usize) -> c_int;
    pub(super) fn lcl_zero_gradients(parameters: *mut RawTensor, count: usize, keep_memory: c_int) -> c_int;
    pub(super) fn lcl_autocast_enter(device_type: i32, enabled: i32, dtype: i32, previous: *mut AutocastState) -> c_int;
    pub(super) fn lcl_autocast_leave(previous: *const AutocastState) -> c_int;
    pub(super) fn lcl_checkpoint(
        closure: *mut c_void,
        run: Run,
        drop: Drop,
        inputs: *const RawTensor,
        count: usize,
        output: *mut RawTensor,
    ) -> c_int;
    pub(super) fn lcl_linear(input: RawTensor, weight: RawTensor, bias: RawTensor, output: *mut RawTensor) -> c_int;
    pub(super) fn lcl_take_values(
        values: *mut c_void,
        kind: i32,
        sizes: *const i64,
        dimensions: usize,
        owner: *mut c_void,
        drop: Drop,
        tensor: *mut RawTensor,
    ) -> c_int;
    pub(super) fn lcl_retain_memory();
    pub(super) fn lcl_retained_bytes() -> usize;
    pub(super) fn lcl_set_deterministic(enabled: i32) -> c_int;
    pub(super) fn lcl_libraries(text: *mut c_char, size: i64) -> c_int;
    pub(super) fn lcl_set_intra_op_threads(threads: i32) -> c_int;
    pub(super) fn lcl_set_inter_op_threads(threads: i32) -> c_int;
    pub(super) fn lcl_intra_op_threads(threads: *mut i32) -> c_int;
    pub(super) fn lcl_cuda_load(loaded: *mut i32) -> c_int;
    pub(super) fn lcl_cuda_device_count(count: *mut i32) -> c_int;
    pub(super) fn lcl_cuda_synchronize(device: i32) -> c_int;
    pub(super) fn lcl_pin_memory(tensor: RawTensor, pinned: *mut RawTensor) -> c_int;
    pub(super) fn lcl_cuda_moment_now(device: i32, moment: *mut *mut Moment) -> c_int;
    pub(super) fn lcl_cuda_copy_after(
        moment: *const Moment,
        tensors: *const RawTensor,
        places: *const *mut c_void,
        count: usize,
        failed: *mut usize,
    ) -> c_int;
    pub(super) fn lcl_cuda_moment_drop(moment: *mut Moment);
    pub(super) fn lcl_cuda_lock_memory(data: *mut c_void, bytes: usize) -> c_int;
    pub(super) fn lcl_cuda_unlock_memory(data: *mut c_void) -> c_int;
    pub(super) fn lcl_cuda_supports_bfloat16(device: i32, supported: *mut i32) -> c_int;
    pub(super) fn lcl_cuda_device_name(device: i32, text: *mut c_char, size: i64) -> c_int;
    pub(super) fn lcl_cuda_memory_statistics(device: i32, memory: *mut CudaMemory) -> c_int;
    pub(super) fn lcl_cuda_reset_peak_memory(device: i32) -> c_int;
    pub(super) fn lcl_profile_begin(with_cuda: i32) -> c_int;
    pub(super) fn lcl_profile_end(path: *const c_char) -> c_int;
}
