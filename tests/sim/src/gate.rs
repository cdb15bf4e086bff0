//! Processes that stand still, as one that is stopped by a signal or starved of its processor: its connections stay, it does nothing.

use std::{future::poll_fn, pin::pin, task::Poll};

use tokio::time::sleep;

use crate::scene::TICK;

/// Runs `work`, but not while it `is_held`. Time passes for it meanwhile.
pub(crate) async fn gated<F: Future>(is_held: impl Fn() -> bool, work: F) -> F::Output {
    let mut work = pin!(work);
    loop {
        let done = poll_fn(|context| if is_held() { Poll::Ready(None) } else { work.as_mut().poll(context).map(Some) }).await;
        if let Some(output) = done {
            return output;
        }
        while is_held() {
            sleep(TICK).await;
        }
    }
}
