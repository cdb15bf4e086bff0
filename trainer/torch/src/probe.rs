//! Places in a step at which an observer is called: a test makes a process die or stop exactly there.
//!
//! Comes in: one function for the whole process. Without it a place costs a load and a branch. It knows nothing of what the observer does.

use std::{ffi::c_int, sync::OnceLock};

use crate::shim::collectives::observe_buckets;

/// Target of the spans that a step is made of, for traces: `trace_span!(target: STEP, …)`. Nobody enters them unless a trace is asked for.
pub const STEP: &str = "lcl::step";

/// Enters a span of a step, which ends with the value.
#[macro_export]
macro_rules! step_span {
    ($($name:tt)*) => {
        ::tracing::trace_span!(target: $crate::probe::STEP, $($name)*).entered()
    };
}

/// A place in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Before the first forward pass.
    Forward,
    /// Before gradients travel: the number of the bucket, from 0. In exact mode 0 is before the partial sums are exchanged and 1 before the
    /// finished parts are.
    Bucket(usize),
    /// Every gradient is summed; losses are not exchanged yet.
    Reduced,
    /// Before the update. All exchanges of the step are done.
    BeforeUpdate,
    /// After the update.
    AfterUpdate,
    /// Before the state is copied, on the thread that copies it.
    Copy,
    /// The state is to be changed, and a copy of it is not done yet.
    CopyAwaited,
}

static OBSERVER: OnceLock<fn(Phase)> = OnceLock::new();

/// Has `observer` called at every place from now on, on whichever thread gets there. The first observer of a process stays.
pub fn observe(observer: fn(Phase)) {
    if OBSERVER.set(observer).is_ok() {
        observe_buckets(reach_bucket);
    }
}

pub(crate) fn reach(phase: Phase) {
    if let Some(observer) = OBSERVER.get() {
        observer(phase);
    }
}

extern "C" fn reach_bucket(index: c_int) {
    reach(Phase::Bucket(usize::try_from(index).unwrap_or_default()));
}
