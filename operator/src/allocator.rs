//! How the process keeps memory.
//!
//! The C library gives every thread that allocates an arena of its own, up to eight for each processor, and what lies free in one is of no
//! use to the others: of an operator's memory that was a fifth on two processors. Its threads wait for the network, so one arena does. What
//! comes free between what stays (lists of objects that are read, one after the other, into what is kept of them) it gives back to the system
//! when it is asked to.

/// Has all threads share one arena. To be called before there are any.
pub fn share_arena() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[allow(unsafe_code, reason = "mallopt has no safe form")]
    // SAFETY: a documented parameter of `mallopt`; it only changes how many arenas the allocator makes.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives back what is free.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[allow(unsafe_code, reason = "malloc_trim has no safe form")]
    // SAFETY: it may be called at any time, by any thread; it touches nothing that is allocated.
    unsafe {
        libc::malloc_trim(0);
    }
}
