//! What befalls a run: drawn from its seed, played at its time.

use std::{ops::RangeInclusive, time::Duration};

use lcl_protocol::World;

use crate::scene::WORKERS;

/// Faults begin within this time, counted from the start.
pub(crate) const UNREST: Duration = Duration::from_secs(9);

/// No fault lasts longer.
const LONGEST: Duration = Duration::from_secs(8);

/// A host that faults can befall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    Worker(usize),
    /// The coordinator that was started last.
    Coordinator,
    /// The one before, which may still run.
    FormerCoordinator,
}

/// One thing that is done to the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A worker's process starts, unless it runs.
    Start(usize),
    /// It is killed.
    Crash(usize),
    /// It stands still.
    Hang(usize),
    Resume(usize),
    /// Its training thread stands still.
    Stall(usize),
    GoOn(usize),
    /// It is asked to end by a signal.
    Terminate(usize),
    /// The coordinator is asked to let it go.
    Drain(usize),
    /// What is sent between two hosts is lost.
    Cut(Host, Host),
    /// Only in this direction.
    CutOneWay(Host, Host),
    /// What is sent between two hosts waits.
    Hold(Host, Host),
    /// The way between two hosts is free, and what waited arrives.
    Free(Host, Host),
    /// Messages between two hosts take up to this many milliseconds.
    Slow(Host, Host, u64),
    /// Writing to the storage takes long.
    SlowStorage,
    FastStorage,
    Resize(World),
    Checkpoint,
    /// The coordinator is killed.
    CrashCoordinator,
    /// It is started again.
    StartCoordinator,
    /// Another one is started while the one before still runs.
    ReplaceCoordinator,
    /// A worker's name service hears of the newest coordinator.
    Reroute(usize),
    /// A worker's name service names the coordinator before it.
    Misroute(usize),
    /// All coordinators but the newest are killed.
    RetireCoordinators,
    /// Everything that was done is undone.
    Quiet,
    Stop,
}

/// A run as it was drawn.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    pub(crate) world: World,
    pub(crate) faults: Vec<(Duration, Fault)>,
    pub(crate) end: End,
}

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By its last step.
    Complete,
    /// By a stop while members and coordinators come and go.
    StopInUnrest,
    /// By a stop that meets nothing but streams that break for a moment: what was trained has to be saved.
    Stop,
}

/// Draws faults in pairs: what is done, and what undoes it.
struct Draw {
    random: fastrand::Rng,
    /// Workers that run from the start.
    desired: usize,
    faults: Vec<(Duration, Fault)>,
}

impl Scenario {
    /// The run of a seed.
    pub(crate) fn draw(seed: u64) -> Self {
        let mut draw = Draw { random: fastrand::Rng::with_seed(seed), desired: 0, faults: Vec::new() };
        let min = draw.random.u32(1..=2);
        let desired = draw.random.u32(min.max(2)..=4);
        let world = World::new(min, desired, desired + draw.random.u32(0..=1)).unwrap_or_else(|error| panic!("{error}"));
        draw.desired = desired as usize;
        for worker in 0..draw.desired {
            let at = draw.milliseconds(0..=400);
            draw.faults.push((at, Fault::Start(worker)));
        }
        for _ in 0..draw.random.usize(5..=14) {
            let at = Duration::from_millis(600) + draw.milliseconds(0..=UNREST.as_millis() as u64 - 600);
            draw.trouble(at);
        }
        let end = match draw.random.u32(0..8) {
            0 => End::StopInUnrest,
            1 | 2 => End::Stop,
            _ => End::Complete,
        };
        match end {
            End::Complete => {}
            End::StopInUnrest => {
                let at = Duration::from_secs(2) + draw.milliseconds(0..=UNREST.as_millis() as u64);
                draw.faults.push((at, Fault::Stop));
            }
            End::Stop => draw.stop(),
        }
        draw.faults.sort_by_key(|(at, _)| *at);
        Self { seed, world, faults: draw.faults, end }
    }
}

impl Draw {
    fn milliseconds(&mut self, range: RangeInclusive<u64>) -> Duration {
        Duration::from_millis(self.random.u64(range))
    }

    /// Mostly one of those that run.
    fn worker(&mut self) -> usize {
        let among = if self.random.u32(0..5) == 0 { WORKERS } else { self.desired };
        self.random.usize(0..among)
    }

    /// Two hosts that talk to each other.
    fn pair(&mut self) -> (Host, Host) {
        let first = self.worker();
        if self.random.bool() {
            return (Host::Worker(first), Host::Coordinator);
        }
        let second = self.worker();
        let second = if first == second { (first + 1) % WORKERS } else { second };
        (Host::Worker(first), Host::Worker(second))
    }

    /// Everything is quiet when the stop comes, but for one stream.
    fn stop(&mut self) {
        let quiet = UNREST + LONGEST + Duration::from_millis(100);
        self.faults.push((quiet, Fault::Quiet));
        self.faults.extend((0..self.desired).map(|worker| (quiet, Fault::Start(worker))));
        let stop = quiet + Duration::from_secs(4) + self.milliseconds(0..=500);
        self.faults.push((stop, Fault::Stop));
        let worker = Host::Worker(self.random.usize(0..self.desired));
        let at = stop.saturating_sub(Duration::from_millis(600)) + self.milliseconds(0..=900);
        self.both(at, Fault::Hold(worker, Host::Coordinator), 300..=1_200, Fault::Free(worker, Host::Coordinator));
    }

    fn both(&mut self, at: Duration, fault: Fault, lasts: RangeInclusive<u64>, undone: Fault) {
        let until = at + self.milliseconds(lasts);
        self.faults.extend([(at, fault), (until, undone)]);
    }

    fn trouble(&mut self, at: Duration) {
        let worker = self.worker();
        match self.random.u32(0..21) {
            0 | 1 => self.both(at, Fault::Crash(worker), 50..=3_000, Fault::Start(worker)),
            2 => self.both(at, Fault::Hang(worker), 100..=4_000, Fault::Resume(worker)),
            3 => self.both(at, Fault::Stall(worker), 100..=5_000, Fault::GoOn(worker)),
            4 => self.both(at, Fault::Terminate(worker), 2_000..=4_000, Fault::Start(worker)),
            5 => self.both(at, Fault::Drain(worker), 2_000..=4_000, Fault::Start(worker)),
            6 | 7 => {
                let (a, b) = self.pair();
                self.both(at, Fault::Cut(a, b), 100..=3_000, Fault::Free(a, b));
            }
            8 => {
                let (a, b) = self.pair();
                let (from, to) = if self.random.bool() { (a, b) } else { (b, a) };
                self.both(at, Fault::CutOneWay(from, to), 100..=3_000, Fault::Free(a, b));
            }
            9 | 10 => {
                let (a, b) = self.pair();
                self.both(at, Fault::Hold(a, b), 50..=3_000, Fault::Free(a, b));
            }
            11 => {
                let (a, b) = self.pair();
                let most = self.random.u64(20..=400);
                self.both(at, Fault::Slow(a, b, most), 500..=3_000, Fault::Slow(a, b, 10));
            }
            12 => {
                let desired = self.random.u32(1..=4);
                let world = World::new(self.random.u32(1..=desired.min(2)), desired, desired + self.random.u32(0..=1));
                self.faults.extend(world.map(|world| (at, Fault::Resize(world))));
                self.faults.push((at, Fault::Start(worker)));
            }
            13 => self.faults.extend([(at, Fault::Checkpoint), (at, Fault::Start(worker))]),
            14 => self.both(at, Fault::CrashCoordinator, 10..=3_000, Fault::StartCoordinator),
            15 | 16 => {
                // A member that is cut off while it writes: the others go on without it.
                self.both(at, Fault::SlowStorage, 500..=5_000, Fault::FastStorage);
                let (worker, coordinator) = (Host::Worker(worker), Host::Coordinator);
                let cut = at + self.milliseconds(0..=1_500);
                self.both(cut, Fault::Cut(worker, coordinator), 1_000..=3_000, Fault::Free(worker, coordinator));
            }
            17 | 18 => self.replace(at),
            _ => self.split(at, worker),
        }
    }

    /// Another coordinator, of which the workers hear one after the other.
    fn replace(&mut self, at: Duration) {
        self.faults.push((at, Fault::ReplaceCoordinator));
        for worker in 0..WORKERS {
            let heard = at + self.milliseconds(0..=2_000);
            self.faults.push((heard, Fault::Reroute(worker)));
        }
        if self.random.bool() {
            let retired = at + self.milliseconds(0..=4_000);
            return self.faults.push((retired, Fault::RetireCoordinators));
        }
        // It has formed a generation when one of its members loses it, and is led back to the one before.
        let (crashed, led_back) = (self.worker(), self.worker());
        let at_crash = at + self.milliseconds(500..=1_000);
        self.both(at_crash, Fault::Crash(crashed), 50..=500, Fault::Start(crashed));
        let lost = at + self.milliseconds(1_500..=3_000);
        let (worker, coordinator) = (Host::Worker(led_back), Host::Coordinator);
        self.both(lost, Fault::Cut(worker, coordinator), 2_000..=4_000, Fault::Free(worker, coordinator));
        self.both(lost, Fault::Misroute(led_back), 3_000..=4_500, Fault::Reroute(led_back));
        self.faults.push((at + LONGEST, Fault::RetireCoordinators));
    }

    /// Another coordinator leads on while the one before, cut off from the others, is found by a worker that starts.
    fn split(&mut self, at: Duration, late: usize) {
        self.faults.push((at, Fault::ReplaceCoordinator));
        for worker in (0..WORKERS).filter(|worker| *worker != late) {
            self.faults.extend([(at, Fault::Cut(Host::Worker(worker), Host::FormerCoordinator)), (at, Fault::Reroute(worker))]);
        }
        self.both(at + Duration::from_millis(500), Fault::Crash(late), 1_500..=3_000, Fault::Start(late));
        let retired = at + self.milliseconds(5_000..=7_000);
        self.faults.extend([(retired, Fault::RetireCoordinators), (retired, Fault::Reroute(late))]);
    }
}
