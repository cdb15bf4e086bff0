//! Who loads which slot, and which batch is ready.
//!
//! Comes in: threads asking for work and the training loop asking for the next batch. Goes out: slots in order, batches in order. It knows
//! nothing of what loading means.

use std::{
    any::Any,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    batch::{Batch, Pool},
    loader::{
        LoaderError, LoaderOptions, Slots,
        assembly::{Loaded, build_batch},
        slot_loader::{Filled, SlotLoader},
        stages::{Stages, Sums, Watch},
    },
    retry::Stop,
};

/// What the threads and the training loop share.
pub(super) struct Queue {
    slots: Slots,
    last_step: u64,
    prefetch: u64,
    /// Heard by threads that wait before another attempt to read.
    pub(super) waits: Arc<Stop>,
    /// What the threads spend their time with.
    pub(super) stages: Sums,
    /// For the pixels and the tokens of a slot, and the pixels of a batch.
    slot_pool: Arc<Pool>,
    token_pool: Arc<Pool<i64>>,
    batch_pool: Arc<Pool>,
    state: Mutex<State>,
    /// There may be work: a batch was taken, or all is over.
    work: Condvar,
    /// The next batch may be ready.
    ready: Condvar,
}

struct State {
    /// Step that is delivered next.
    deliver: u64,
    /// Step and place of the slot that is handed out next.
    next: (u64, usize),
    /// Steps from this one on are not begun: the last one, or one that failed.
    end: u64,
    /// Steps from `deliver` on that were begun, in order.
    begun: VecDeque<Begun>,
    /// Of the batch that was delivered last: [`Queue::spent`].
    spent: Vec<Duration>,
    stopped: bool,
}

/// A batch in the making.
struct Begun {
    slots: Vec<Option<Loaded>>,
    missing: usize,
    /// Time that threads were at the slots of each source.
    spent: Vec<Duration>,
    outcome: Option<Result<Batch, LoaderError>>,
}

/// A slot to load.
#[derive(Clone, Copy)]
struct Work {
    step: u64,
    place: usize,
    slot: u64,
}

impl Queue {
    pub(super) fn new(options: &LoaderOptions, prefetch: usize) -> Self {
        // Those being made, one in use by the training loop and one just handed back.
        let batches = prefetch + 2;
        let slots = options.slots.count() as usize;
        Self {
            slots: options.slots.clone(),
            last_step: options.last_step,
            prefetch: prefetch as u64,
            waits: Arc::default(),
            stages: Sums::default(),
            slot_pool: Pool::new(batches.saturating_mul(slots)),
            token_pool: Pool::new(batches.saturating_mul(slots)),
            batch_pool: Pool::new(batches),
            state: Mutex::new(State {
                deliver: options.first_step,
                next: (options.first_step, 0),
                end: options.last_step,
                begun: VecDeque::new(),
                spent: Vec::new(),
                stopped: false,
            }),
            work: Condvar::new(),
            ready: Condvar::new(),
        }
    }

    /// The next batch or error; waits for it. `None` after the last step and after an error.
    pub(super) fn take(&self) -> Option<Result<Batch, LoaderError>> {
        let mut state = self.lock();
        loop {
            if state.stopped || state.deliver >= self.last_step {
                return None;
            }
            if let Some(outcome) = state.begun.front_mut().and_then(|begun| begun.outcome.take()) {
                state.spent = state.begun.pop_front().map_or_else(Vec::new, |begun| begun.spent);
                state.deliver += 1;
                state.stopped = outcome.is_err();
                self.work.notify_all();
                return Some(outcome);
            }
            state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Time that threads were at the slots of each source in the batch that was taken last; sources beyond its end had none.
    pub(super) fn spent(&self) -> Vec<Duration> {
        self.lock().spent.clone()
    }

    /// Lets every thread end after the slot it is at.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.waits.request();
        self.work.notify_all();
        self.ready.notify_all();
    }

    /// What a thread of the loader does, whose waits for object stores end when it is stopped.
    pub(super) fn heard_in<T>(&self, work: impl FnOnce() -> T) -> T {
        let waits = Arc::clone(&self.waits);
        lcl_objects::Stop::new(move || waits.is_requested()).heard_in(work)
    }

    /// Waits until [`Queue::take`] has something to give, or for so long; whether it has.
    pub(super) fn wait(&self, longest: Duration) -> bool {
        let is_missing = |state: &mut State| {
            !state.stopped && state.deliver < self.last_step && state.begun.front().is_none_or(|begun| begun.outcome.is_none())
        };
        let waited = self.ready.wait_timeout_while(self.lock(), longest, is_missing).unwrap_or_else(PoisonError::into_inner);
        !waited.1.timed_out()
    }

    /// Waits until a step is at most this far ahead; false when all is over.
    pub(super) fn wait_until_near(&self, step: u64, ahead: u64) -> bool {
        let mut state = self.lock();
        loop {
            if state.stopped || step >= state.end {
                return false;
            }
            if step < state.deliver.saturating_add(ahead) {
                return true;
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The next slot to load; waits while enough batches are ahead. `None` when there will be no more.
    fn claim(&self) -> Option<Work> {
        let mut state = self.lock();
        loop {
            let (step, place) = state.next;
            if state.stopped || step >= state.end {
                return None;
            }
            if step - state.deliver < self.prefetch {
                let (count, slot) = (self.slots.count() as usize, self.slots.at(place as u64)?);
                if place == 0 {
                    state.begun.push_back(Begun {
                        slots: (0..count).map(|_| None).collect(),
                        missing: count,
                        spent: Vec::new(),
                        outcome: None,
                    });
                }
                state.next = if place + 1 == count { (step + 1, 0) } else { (step, place + 1) };
                return Some(Work { step, place, slot });
            }
            let mut watch = Watch::start();
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            self.stages.add(&mut Stages { wait: watch.lap(), ..Stages::default() });
        }
    }

    /// Takes what a slot gave, of which source it is and how long a thread was at it; the last one of a batch puts it together, outside the
    /// lock.
    fn complete(&self, work: Work, loaded: Loaded, source: usize, took: Duration) {
        let Work { step, place, .. } = work;
        let mut state = self.lock();
        let Some(begun) = state.begun_at(step) else { return };
        if let Some(slot) = begun.slots.get_mut(place) {
            *slot = Some(loaded);
        }
        if begun.spent.len() <= source {
            begun.spent.resize(source + 1, Duration::ZERO);
        }
        if let Some(spent) = begun.spent.get_mut(source) {
            *spent += took;
        }
        begun.missing -= 1;
        if begun.missing > 0 || begun.outcome.is_some() {
            return;
        }
        let slots = std::mem::take(&mut begun.slots);
        drop(state);
        let mut watch = Watch::start();
        let batch = build_batch(step, slots, self.batch_pool.take());
        self.stages.add(&mut Stages { compose: watch.lap(), ..Stages::default() });
        let mut state = self.lock();
        if let Some(begun) = state.begun_at(step) {
            begun.outcome = Some(Ok(batch));
        }
        self.ready.notify_all();
    }

    /// Makes `step` end the sequence with an error; batches before it are still delivered.
    fn fail(&self, step: u64, error: LoaderError) {
        let mut state = self.lock();
        state.end = state.end.min(step);
        if let Some(begun) = state.begun_at(step) {
            begun.outcome.get_or_insert(Err(error));
        }
        self.work.notify_all();
        self.ready.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn begun_at(&mut self, step: u64) -> Option<&mut Begun> {
        let place = usize::try_from(step.checked_sub(self.deliver)?).ok()?;
        self.begun.get_mut(place)
    }
}

/// Loads slots until there are no more; what a data thread runs.
pub(super) fn work(queue: &Queue, slot_loader: &SlotLoader) {
    let mut buffers = slot_loader.buffers();
    while let Some(work) = queue.claim() {
        let Work { step, slot, .. } = work;
        // Buffers that a panic leaves half-written are overwritten by the next image.
        let result = catch_unwind(AssertUnwindSafe(|| -> Result<(), LoaderError> {
            let begin = Instant::now();
            let filled = Filled { pixels: queue.slot_pool.take(), tokens: queue.token_pool.take() };
            let content = slot_loader.load(step, slot, &mut buffers, filled, &queue.waits).map_err(|source| LoaderError::Read {
                step,
                slot,
                source: Box::new(source),
            })?;
            queue.stages.add(&mut buffers.stages);
            let source = slot_loader.source_of(&content);
            queue.complete(work, content, source, begin.elapsed());
            Ok(())
        }));
        match result {
            Ok(Ok(())) => {}
            Ok(Err(error)) => queue.fail(step, error),
            Err(panic) => {
                let sample = slot_loader.locate(step, slot).sample;
                queue.fail(step, LoaderError::Panicked { step, slot, sample, message: panic_message(panic.as_ref()) });
            }
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests {
    use lcl_trainer_config::{Objective, Preset};

    use super::*;
    use crate::batch::{SkipCause, Skipped};

    /// Threads work ahead: what they spend on the next batch must not be that of the one that is taken.
    #[test]
    fn what_was_spent_is_told_of_the_batch_that_was_taken_and_of_each_source_apart() {
        let options = LoaderOptions {
            model: Preset::Tiny.shape(),
            objective: Objective::Clip,
            seed: 0,
            global_batch_size: 3,
            slots: (0..3).into(),
            first_step: 0,
            last_step: 2,
        };
        let queue = Queue::new(&options, 2);
        let works: Vec<Work> = (0..6).map_while(|_| queue.claim()).collect();
        let finish = |work: &Work, source, seconds| {
            let slot = Skipped { slot: work.slot, pass: 0, sample: 0, cause: SkipCause::NoImage };
            queue.complete(*work, Loaded::Skipped(slot), source, Duration::from_secs(seconds));
        };
        // Of the second step first; sources 0 and 2 have slots in the first, source 1 in the second.
        for work in &works[3..] {
            finish(work, 1, 100);
        }
        finish(&works[2], 2, 5);
        finish(&works[0], 0, 1);
        finish(&works[1], 2, 2);
        let spent = || {
            assert!(queue.take().is_some_and(|batch| batch.is_ok()));
            queue.spent().iter().map(Duration::as_secs).collect::<Vec<_>>()
        };
        assert_eq!(spent(), [1, 0, 7]);
        assert_eq!(spent(), [0, 300]);
    }
}
