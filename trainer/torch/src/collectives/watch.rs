//! The thread of a group that ends what its sockets do not end.
//!
//! Gloo wakes its waiters when a connection fails, but not the one whose message is partly on its way (`shim/interrupt.h`): a killed peer or
//! an abort left it asleep until its time-out. So each group has a thread that looks whether it was aborted or has lost a connection, and
//! then interrupts it. It also watches over what follows: see [`AbortHandle::with_rescue`].

use std::{
    io, thread,
    time::{Duration, Instant},
};

use super::abort::AbortHandle;

/// How often connections are looked at: one `readlink` each. Gloo itself notices nearly every loss within milliseconds.
const LOOK: Duration = Duration::from_millis(100);
/// How long after the loss of a connection libtorch's own error may take to arrive. It tells more than an interruption.
const GRACE: Duration = Duration::from_millis(300);

/// Starts the thread. It ends with the group. `interrupt` may block.
pub(super) fn start(handle: AbortHandle, interrupt: impl Fn(&str) + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name("lcl-group-watch".to_owned()).spawn(move || run(&handle, interrupt)).map(drop)
}

fn run(handle: &AbortHandle, interrupt: impl Fn(&str) + Send + 'static) {
    let Some(reason) = reason_to_interrupt(handle) else { return };
    // A member that forms may wait in the store for one that is gone.
    handle.disconnect();
    // On a thread of its own: aborting NCCL may hang, and then somebody has to notice.
    let interrupting = thread::Builder::new().name("lcl-interrupt".to_owned()).spawn(move || interrupt(reason));
    if interrupting.is_ok() {
        handle.rescue();
    }
}

/// Waits for the reason; none when the group ends by itself.
fn reason_to_interrupt(handle: &AbortHandle) -> Option<&'static str> {
    let mut lost: Option<Instant> = None;
    loop {
        if handle.wait(LOOK) {
            return None;
        }
        if handle.is_aborted() {
            return Some("the group was aborted");
        }
        if handle.has_lost_a_connection() && lost.get_or_insert_with(Instant::now).elapsed() >= GRACE {
            return Some("a connection to another member was lost");
        }
    }
}
