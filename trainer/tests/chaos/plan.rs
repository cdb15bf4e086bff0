//! What happens to a run: directed plans, and plans drawn from a seed. Pure.

use std::{fmt, time::Duration};

use fastrand::Rng;
use lcl_trainer::fail_point::{Action, Place};

/// A run and what is done to it.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// What the run is called.
    pub(crate) name: String,
    /// Of everything that is drawn while it runs.
    pub(crate) seed: u64,
    /// Workers at the start, with a member each.
    pub(crate) workers: u32,
    /// Whether the result has the same bits whatever happens.
    pub(crate) exact: bool,
    /// Where it ends.
    pub(crate) end: End,
    /// In the order in which they are armed.
    pub(crate) faults: Vec<Fault>,
}

/// Where a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// At its last step.
    Steps(u64),
    /// Some steps after every fault was hit, which all must be: it is asked to stop, and goes on to its end in a second start.
    WhenAllWereHit,
}

/// A fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// When it happens.
    pub(crate) when: When,
    /// What happens.
    pub(crate) what: What,
}

/// When a fault happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// A member comes to this place; `keys` as the environment variable has them.
    At {
        /// The place.
        place: Place,
        /// What else must hold.
        keys: String,
    },
    /// So long after the ledger has so many steps.
    Step {
        /// The steps.
        step: usize,
        /// So long.
        delay: Duration,
    },
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum What {
    /// A member is killed.
    Kill,
    /// A member is stopped for a moment.
    Pause,
    /// A member is stopped until the others have gone on without it.
    Freeze,
    /// A member is asked to leave by SIGTERM.
    Terminate,
    /// A worker is asked to leave by SIGTERM.
    TerminateWorker,
    /// The coordinator is told to let a worker leave.
    Drain,
    /// A further worker joins.
    Join,
    /// A worker is killed, and its member with it.
    KillWorker,
    /// The coordinator is killed.
    KillCoordinator,
    /// The coordinator and a member are killed at once.
    KillCoordinatorAndMember,
}

impl What {
    /// All of them.
    pub(crate) const ALL: [Self; 10] = [
        Self::Kill,
        Self::Pause,
        Self::Freeze,
        Self::Terminate,
        Self::TerminateWorker,
        Self::Drain,
        Self::Join,
        Self::KillWorker,
        Self::KillCoordinator,
        Self::KillCoordinatorAndMember,
    ];

    /// What the member does that comes to the place. Where the fault is the test's deed, it waits there meanwhile.
    pub(crate) fn action(self) -> Action {
        match self {
            Self::Kill => Action::Kill,
            Self::Pause | Self::Freeze => Action::Stop,
            _ => Action::Hold,
        }
    }
}

impl Fault {
    /// Whether it happens while a group changes, and not in a step or a checkpoint.
    pub(crate) fn is_for_a_change(&self) -> bool {
        matches!(&self.when, When::At { place: Place::Form | Place::Leave | Place::Send | Place::Receive, .. })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.when {
            When::At { place, keys } => write!(formatter, "{:?} at {}@{keys}", self.what, place.name()),
            When::Step { step, delay } => write!(formatter, "{:?} {delay:?} after step {step}", self.what),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, seed, workers, exact, end, .. } = self;
        writeln!(formatter, "{name}: seed {seed}, {workers} workers, {}, {end:?}", if *exact { "exact" } else { "fast" })?;
        self.faults.iter().enumerate().try_for_each(|(index, fault)| writeln!(formatter, "  {index}: {fault}"))
    }
}

impl Plan {
    /// The environment variable that arms the members. Faults that are not theirs keep their numbers.
    pub(crate) fn environment(&self) -> String {
        let fault = |fault: &Fault| match &fault.when {
            When::At { place, keys } => format!("{}@{keys}:{}", place.name(), fault.what.action().name()),
            // A step that no run comes to.
            When::Step { .. } => format!("data@step={}:hold", u64::MAX),
        };
        self.faults.iter().map(fault).collect::<Vec<_>>().join(";")
    }

    /// One fault after the other, each in a group of at least so many members: a list of (place, what, rank).
    pub(crate) fn directed(name: &str, workers: u32, faults: &[(Place, What, u32)]) -> Self {
        let chain = faults.iter().enumerate().map(|(index, (place, what, rank))| {
            let mut keys = vec![if index == 0 { "from=4".to_owned() } else { format!("after={}", index - 1) }];
            match place {
                // They are met while the group changes, by whoever has to do it.
                Place::Form | Place::Leave | Place::Send | Place::Receive => {}
                // The leader's work.
                Place::Shard | Place::Manifest => keys.push(format!("members={workers}")),
                _ => keys.extend([format!("members={workers}"), format!("rank={rank}")]),
            }
            if *place == Place::Bucket {
                keys.push(format!("part={}", rank % 2));
            }
            Fault { when: When::At { place: *place, keys: keys.join(",") }, what: *what }
        });
        Self { name: name.to_owned(), seed: 1, workers, exact: true, end: End::WhenAllWereHit, faults: chain.collect() }
    }

    /// Five faults at every place: a run for two places of a step and one of a change of the group each, which every change meets.
    pub(crate) fn everywhere() -> Vec<Self> {
        use What::{Join, Kill, KillCoordinator, Pause, Terminate};
        let runs = [
            (Place::Data, Place::Forward, Place::Form),
            (Place::Bucket, Place::Reduced, Place::Leave),
            (Place::BeforeUpdate, Place::AfterUpdate, Place::Send),
            (Place::Shard, Place::Manifest, Place::Receive),
        ];
        let plan = |(first, second, change): (Place, Place, Place)| {
            // After a kill, a leave and a join the group changes, and the next fault finds it changing.
            let faults = [
                (first, Kill, 0),
                (change, Pause, 0),
                (second, Pause, 1),
                (second, Kill, 1),
                (change, KillCoordinator, 0),
                (first, KillCoordinator, 2),
                (first, Join, 1),
                (change, Kill, 0),
                (second, Terminate, 2),
                (change, Terminate, 0),
                (second, Join, 0),
                (change, Join, 0),
                (second, KillCoordinator, 1),
                (first, Terminate, 0),
                (first, Pause, 2),
            ];
            Self::directed(&format!("{}-{}-{}", first.name(), second.name(), change.name()), 3, &faults)
        };
        runs.into_iter().map(plan).collect()
    }

    /// What is rarer, or takes longer.
    pub(crate) fn rare() -> Self {
        let faults = [
            (Place::Bucket, What::Freeze, 1),
            (Place::Data, What::KillCoordinatorAndMember, 1),
            (Place::Forward, What::Drain, 0),
            (Place::AfterUpdate, What::KillCoordinatorAndMember, 0),
            (Place::Reduced, What::TerminateWorker, 1),
            (Place::BeforeUpdate, What::KillWorker, 2),
            (Place::Send, What::KillCoordinatorAndMember, 0),
        ];
        Self::directed("rare", 3, &faults)
    }

    /// A plan drawn from a seed: at least three faults in at least thirty steps.
    pub(crate) fn drawn(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let workers = rng.u32(2..=4);
        let exact = rng.u32(0..4) > 0;
        let steps = if exact { rng.u64(60..=160) } else { rng.u64(40..=60) };
        let count = rng.usize(3..=6);
        let mut faults: Vec<Fault> = (0..count).map(|_| draw(&mut rng, workers, steps)).collect();
        // A process that was killed eight times makes the job fail; so do few of many.
        while faults.iter().filter(|fault| fault.what == What::Freeze).count() > 1 {
            let index = faults.iter().position(|fault| fault.what == What::Freeze).unwrap_or_default();
            faults.remove(index);
            faults.push(draw(&mut rng, workers, steps));
        }
        Self { name: format!("seed-{seed}"), seed, workers, exact, end: End::Steps(steps), faults }
    }
}

fn draw(rng: &mut Rng, workers: u32, steps: u64) -> Fault {
    let what = match rng.u32(0..20) {
        0..=5 => What::Kill,
        6..=8 => What::Pause,
        9 => What::Freeze,
        10 => What::Terminate,
        11 => What::TerminateWorker,
        12 => What::Drain,
        13 | 14 => What::Join,
        15 => What::KillWorker,
        16 | 17 => What::KillCoordinator,
        _ => What::KillCoordinatorAndMember,
    };
    let last = steps * 3 / 4;
    if rng.u32(0..3) == 0 {
        let (step, delay) = (rng.usize(1..last as usize), Duration::from_millis(rng.u64(0..60)));
        return Fault { when: When::Step { step, delay }, what };
    }
    let place = Place::ALL[rng.usize(0..Place::ALL.len())];
    let mut keys = vec![format!("from={}", rng.u64(1..last))];
    match place {
        Place::Form | Place::Leave | Place::Shard | Place::Manifest => {}
        Place::Send | Place::Receive => keys.push(format!("part={}", rng.u32(0..100))),
        Place::Bucket => keys.extend([format!("part={}", rng.u32(0..2)), format!("rank={}", rng.u32(0..workers))]),
        _ => keys.push(format!("rank={}", rng.u32(0..workers))),
    }
    Fault { when: When::At { place, keys: keys.join(",") }, what }
}
