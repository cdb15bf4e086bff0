//! What all hosts of one simulated run share, and the hand that moves them: where everyone finds the coordinator, who stands still, what is
//! asked of the job, and the judge.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lcl_protocol::World;

use crate::{judge::Judge, network::Seeker, storage::Storage};

/// Simulated time of one step of the simulation. Several fit into the shortest thing that matters, a training step.
pub(crate) const TICK: Duration = Duration::from_millis(5);

/// Workers that there are at most, each of one member.
pub(crate) const WORKERS: usize = 5;

/// A mistake that is built into the parts that stand for the trainer, the storage and the operator, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A checkpoint is made visible without asking the generation's store whether the generation is still there.
    SkipFence,
    /// An update is made of what had arrived when the group was aborted.
    ApplyAbortedBuffer,
    /// A coordinator is started again with the epoch of the one before.
    ReuseEpoch,
    /// A checkpoint is restored although a later generation wrote it than the one that restores.
    RestoreLater,
}

/// A coordinator's process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Reign {
    /// Counts processes.
    pub(crate) number: u64,
    pub(crate) epoch: u64,
}

/// What is done with one worker.
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Worker {
    /// Its process runs, or is about to.
    pub(crate) is_up: bool,
    /// Its process stands still.
    pub(crate) is_hung: bool,
    /// Its training thread stands still, and only that.
    pub(crate) is_stalled: bool,
    /// Its process was asked to end.
    pub(crate) is_asked_to_end: bool,
    /// The coordinator that its name service names.
    pub(crate) coordinator: usize,
    /// The epoch of the coordinator that it reached last.
    pub(crate) reached: u64,
    /// How often it has looked for a coordinator: as long as this stays the same, so does its stream.
    pub(crate) streams: u64,
}

/// What the hand that moves everything has decided.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) now: Duration,
    pub(crate) workers: [Worker; WORKERS],
    /// The coordinator that was started last.
    pub(crate) coordinator: usize,
    /// By coordinator, the process that runs there.
    pub(crate) reigns: Vec<Reign>,
    last_reign: Reign,
    pub(crate) world: World,
    /// Workers that are to leave.
    pub(crate) drains: [bool; WORKERS],
    pub(crate) is_stopping: bool,
    /// Writing to the storage takes long.
    pub(crate) is_storage_slow: bool,
    /// Checkpoints that were asked for.
    pub(crate) checkpoints: usize,
    /// With this step training ends.
    pub(crate) last_step: u64,
    random: fastrand::Rng,
}

/// See the module's description.
pub(crate) struct Scene {
    pub(crate) bug: Option<Bug>,
    control: Mutex<Control>,
    judge: Mutex<Judge>,
    storage: Mutex<Storage>,
}

pub(crate) fn worker_name(worker: usize) -> String {
    format!("w-{worker}")
}

pub(crate) fn coordinator_name(coordinator: usize) -> String {
    format!("c-{coordinator}")
}

impl Scene {
    pub(crate) fn new(seed: u64, bug: Option<Bug>, world: World) -> Arc<Self> {
        let control = Control {
            now: Duration::ZERO,
            workers: [Worker::default(); WORKERS],
            coordinator: 0,
            reigns: Vec::new(),
            last_reign: Reign::default(),
            world,
            drains: [false; WORKERS],
            is_stopping: false,
            is_storage_slow: false,
            checkpoints: 0,
            last_step: u64::MAX,
            random: fastrand::Rng::with_seed(seed),
        };
        Arc::new(Self { bug, control: Mutex::new(control), judge: Mutex::default(), storage: Mutex::default() })
    }

    // One thread runs all hosts in turn: nobody ever waits for these locks, and nothing is left half done.
    pub(crate) fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn judge(&self) -> MutexGuard<'_, Judge> {
        self.judge.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn storage(&self) -> MutexGuard<'_, Storage> {
        self.storage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Puts a violation on record unless the condition holds.
    pub(crate) fn expect(&self, holds: bool, what: impl FnOnce() -> String) {
        self.judge().expect(holds, what);
    }

    /// A time between the two, of the run's own randomness.
    pub(crate) fn between(&self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.control().random.u64(least..=most))
    }

    /// From 0 to 1.
    pub(crate) fn spread(&self) -> f64 {
        self.control().random.f64()
    }

    /// Which coordinator is found, now.
    pub(crate) fn coordinator_of(&self, seeker: Seeker) -> usize {
        let mut control = self.control();
        match seeker {
            Seeker::Operator => control.coordinator,
            Seeker::Member(worker) => {
                control.workers[worker].streams += 1;
                control.workers[worker].coordinator
            }
        }
    }

    /// Somebody has a connection to what runs there now, which may be another process than when it was asked for.
    pub(crate) fn reaches(&self, seeker: Seeker, coordinator: usize) {
        let mut control = self.control();
        if let Seeker::Member(worker) = seeker {
            control.workers[worker].reached = control.reigns.get(coordinator).map_or(0, |reign| reign.epoch);
        }
    }

    /// A coordinator's process starts. The operator has put its epoch on record before.
    pub(crate) fn coordinator_starts(&self, coordinator: usize) -> Reign {
        let is_reused = self.has(Bug::ReuseEpoch);
        let mut control = self.control();
        let newest = control.coordinator;
        self.expect(coordinator == newest, || format!("coordinator {coordinator} gets an epoch after coordinator {newest}"));
        control.last_reign.number += 1;
        if !is_reused || control.last_reign.epoch == 0 {
            control.last_reign.epoch += 1;
        }
        let reign = control.last_reign;
        if control.reigns.len() <= coordinator {
            control.reigns.resize(coordinator + 1, Reign::default());
        }
        control.reigns[coordinator] = reign;
        reign
    }

    /// How long it takes to write something to the storage.
    pub(crate) fn storage_time(&self) -> Duration {
        let is_slow = self.control().is_storage_slow;
        if is_slow { self.between(200, 1_500) } else { self.between(5, 60) }
    }

    pub(crate) fn worker(&self, worker: usize) -> Worker {
        self.control().workers[worker]
    }
}
