//! How the process keeps memory between steps.
//!
//! A training step frees and asks for the same gigabytes again and again; giving them back to the system in between costs a page fault
//! for every 4 KiB. [`retain_memory`] ends that for tensors (an allocator of ours in libtorch, `shim/retaining_allocator.h`) and for
//! everything else (thresholds of the C library's allocator). Nothing has to be set in the environment.
#![allow(unsafe_code, reason = "mallopt has no safe form")]

use crate::shim::runtime;

/// Keeps freed memory for the next step. Call it once, at process start, before the first tensor; later is harmless but less useful.
///
/// Tensors' memory is then never given back to the system, except when the system has no more.
pub fn retain_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: documented parameters of `mallopt`; it only changes the allocator's thresholds.
    unsafe {
        // Blocks below 1 GiB come from the heap: one that is mapped by itself is unmapped when freed.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        // The top of the heap is never given back.
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
        // The heap grows in steps that make growing rare; what is not touched costs nothing.
        libc::mallopt(libc::M_TOP_PAD, 64 << 20);
    }
    runtime::retain_memory();
}
