//! SIGTERM and SIGINT: the first asks for an orderly stop, the second ends the process at once.
//!
//! Goes out: a flag that the step loop reads between two steps. Nothing is done in the signal handler but to set it.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};

/// What a shell returns for a death by signal n is 128 + n; a second signal looks like one.
const DEATH_BY_SIGNAL: i32 = 128;

/// Whether the process was asked to stop.
#[derive(Clone, Debug, Default)]
pub struct StopRequest {
    asked: Arc<AtomicBool>,
}

impl StopRequest {
    /// Takes over SIGTERM and SIGINT of this process.
    pub fn from_signals() -> io::Result<Self> {
        let request = Self::default();
        for signal in [SIGTERM, SIGINT] {
            // Order matters: the first signal finds the flag unset here and sets it in the next line.
            flag::register_conditional_shutdown(signal, DEATH_BY_SIGNAL + signal, Arc::clone(&request.asked))?;
            flag::register(signal, Arc::clone(&request.asked))?;
        }
        Ok(request)
    }

    /// Whether a stop was asked for.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Does `work` in this thread; what it waits for of object stores ends when a stop is asked for.
    pub fn heard_in<T>(&self, work: impl FnOnce() -> T) -> T {
        let request = self.clone();
        lcl_data::Stop::new(move || request.is_asked()).heard_in(work)
    }

    /// Asks for a stop.
    pub fn ask(&self) {
        self.asked.store(true, Ordering::Relaxed);
    }
}
