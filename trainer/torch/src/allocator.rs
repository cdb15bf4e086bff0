//! How the process keeps memory between steps.
#![allow(unsafe_code, reason = "mallopt has no safe form")]

/// Tells glibc's allocator to keep memory for the next step instead of giving it back to the system. Call it once at process start.
/// Does nothing where the C library is not glibc.
pub fn retain_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: documented parameters of `mallopt`; it only changes the allocator's thresholds.
    unsafe {
        // Never mmap a block of its own (it would be unmapped when freed), never trim the heap, grow it in steps of 64 MiB.
        libc::mallopt(libc::M_MMAP_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TOP_PAD, 64 << 20);
    }
}
