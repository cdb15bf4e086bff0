//! Starting this process anew: the way out of a driver that hangs.
#![allow(unsafe_code, reason = "marks descriptors that libtorch opened")]

use std::{io, os::unix::process::CommandExt, process::Command};

/// Replaces this process by a fresh start of its program, with the same arguments, environment, standard streams and process id. May be called
/// from any thread: the others are gone. Everything else that is open is closed; libtorch opens sockets that would stay otherwise.
///
/// Returns only if it fails.
#[must_use]
pub fn start_anew() -> io::Error {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return error,
    };
    // SAFETY: it closes nothing yet; descriptors are closed when the new program begins.
    if unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) } != 0 {
        return io::Error::last_os_error();
    }
    Command::new(program).args(std::env::args_os().skip(1)).exec()
}
