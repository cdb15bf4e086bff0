//! Threads that have the bytes of coming samples fetched, where they come from an object store.
//!
//! Comes in: which slots are wanted. Goes out: nothing but bytes in the cache. Since the order is computed, what is needed is known long before. All
//! lanes begin a window at the same step; without this each would wait for its first bytes there.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{queue::Queue, slot_loader::SlotLoader};

/// Threads of a member. With eight members a node has 32 requests under way, which fills 10 Gbit/s.
pub(super) const THREADS: usize = 4;

/// Steps that are looked ahead: about a minute of training, in which a node fetches the next window of each of its lanes at 50 MB/s.
const STEPS: u64 = 64;

/// Wait after an error. The loader meets it too, tries again, and tells.
const DELAY: Duration = Duration::from_secs(1);

/// Which slot is fetched next, for all threads.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    next: AtomicU64,
}

impl Ahead {
    /// Fetches slot by slot until there are no more; what a thread runs.
    pub(super) fn work(&self, queue: &Arc<Queue>, slot_loader: &SlotLoader) {
        let options = slot_loader.options();
        let slots = options.slots.count();
        loop {
            let number = self.next.fetch_add(1, Relaxed);
            let (step, slot) = (options.first_step + number / slots, options.slots.at(number % slots));
            let Some(slot) = slot else { return };
            if step >= options.last_step || !queue.wait_until_near(step, STEPS) {
                return;
            }
            if slot_loader.fetch(step, slot).is_err() && queue.waits.wait(DELAY) {
                return;
            }
        }
    }
}
