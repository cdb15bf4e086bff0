//! What happens to a run: directed plans, and plans drawn from a seed. Pure.

use std::{fmt, time::Duration};

use fastrand::Rng;
use lcl_trainer::processes::fail_point::{Action, Place};

/// Faults of a drawn plan that come early, at places that every group comes to in every step, or at a step: so many at least are hit.
pub(crate) const SURE: usize = 3;
/// A tensor in the middle of a transfer: the state of the tests' model has some two hundred.
const MIDDLE: u32 = 90;
/// The places in a step.
const IN_A_STEP: [Place; 6] = [Place::Data, Place::Forward, Place::Bucket, Place::Reduced, Place::BeforeUpdate, Place::AfterUpdate];

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
    /// Whether it trains on a mixture of pairs and documents instead of pairs.
    pub(crate) mixture: bool,
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
        let Self { name, seed, workers, exact, mixture, end, .. } = self;
        let (mode, data) = (if *exact { "exact" } else { "fast" }, if *mixture { "a mixture" } else { "pairs" });
        writeln!(formatter, "{name}: seed {seed}, {workers} workers, {mode}, {data}, {end:?}")?;
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

    /// The command that repeats it alone.
    pub(crate) fn again(&self) -> String {
        match self.end {
            End::Steps(_) => format!("make chaos ONLY=many_runs RUNS=1 SEED={}", self.seed),
            End::WhenAllWereHit => format!("make chaos ONLY=everywhere PLAN={}", self.name),
        }
    }

    /// One fault after the other, each in a step in a group of at least so many members: a list of (place, what, number). The number is the
    /// rank in a step, the tensor in a transfer, and completed steps when a group is formed: with 1 it is for one that holds a state.
    fn directed(name: &str, exact: bool, workers: u32, faults: &[(Place, What, u32)]) -> Self {
        let chain = faults.iter().enumerate().map(|(index, (place, what, number))| {
            let mut keys = vec![if index == 0 { "from=4".to_owned() } else { format!("after={}", index - 1) }];
            match place {
                // They are met while the group changes, by whoever has to do it.
                Place::Form => keys.push(format!("from={number}")),
                Place::Send | Place::Receive => keys.push(format!("part={number}")),
                Place::Leave => {}
                // The leader's work.
                Place::Copy | Place::Shard | Place::Manifest => keys.push(format!("members={workers}")),
                _ => keys.extend([format!("members={workers}"), format!("rank={number}")]),
            }
            if *place == Place::Bucket {
                keys.push(format!("part={}", number % 2));
            }
            Fault { when: When::At { place: *place, keys: keys.join(",") }, what: *what }
        });
        let name = if exact { name.to_owned() } else { format!("fast-{name}") };
        Self { name, seed: 1, workers, exact, mixture: false, end: End::WhenAllWereHit, faults: chain.collect() }
    }

    /// Every directed plan, in both modes.
    pub(crate) fn all_directed() -> Vec<Self> {
        let of_mode = |exact| Self::everywhere(exact).into_iter().chain(Self::rare(exact)).chain([Self::short(exact)]);
        [true, false].into_iter().flat_map(of_mode).collect()
    }

    /// Five faults at every place: a run for two places of a step and one of a change of the group each, which every change meets.
    pub(crate) fn everywhere(exact: bool) -> Vec<Self> {
        use What::{Join, Kill, KillCoordinator, Pause, Terminate};
        let runs = [
            (Place::Data, Place::Forward, Place::Form),
            (Place::Bucket, Place::Reduced, Place::Leave),
            (Place::BeforeUpdate, Place::AfterUpdate, Place::Send),
            (Place::Shard, Place::Manifest, Place::Receive),
            (Place::Copy, Place::Shard, Place::Form),
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
            Self::directed(&format!("{}-{}-{}", first.name(), second.name(), change.name()), exact, 3, &faults)
        };
        runs.into_iter().map(plan).collect()
    }

    /// What is rarer, or takes longer.
    pub(crate) fn rare(exact: bool) -> [Self; 4] {
        use What::{Drain, Freeze, Kill, KillCoordinatorAndMember, KillWorker, TerminateWorker};
        let at_once = [
            (Place::Data, KillCoordinatorAndMember, 1),
            (Place::Forward, Drain, 0),
            (Place::AfterUpdate, KillCoordinatorAndMember, 0),
            (Place::Reduced, TerminateWorker, 1),
            (Place::BeforeUpdate, KillWorker, 2),
            (Place::Send, KillCoordinatorAndMember, 0),
        ];
        // The group is formed anew by those who are left, long before a killed member is back: they are met while they recover from the kill.
        let one_after_the_other = [
            (Place::Data, Kill, 0),
            (Place::Form, Kill, 1),
            (Place::Reduced, Kill, 1),
            (Place::Send, Kill, MIDDLE),
            (Place::AfterUpdate, Kill, 2),
            (Place::Receive, Kill, MIDDLE),
            (Place::Bucket, Kill, 1),
            (Place::Form, KillCoordinatorAndMember, 1),
        ];
        // Long enough to be evicted. Those at a change follow a kill, which makes one.
        let frozen = [
            (Place::Bucket, Freeze, 1),
            (Place::Data, Kill, 0),
            (Place::Form, Freeze, 1),
            (Place::Forward, Kill, 1),
            (Place::Send, Freeze, MIDDLE),
            (Place::Reduced, Freeze, 0),
            (Place::Manifest, Freeze, 0),
        ];
        // With the source the only whole state is lost: both begin from storage.
        let last_source = [(Place::Data, Kill, 0), (Place::Send, Kill, MIDDLE), (Place::Reduced, Kill, 1), (Place::Receive, Kill, MIDDLE)];
        [
            Self::directed("coordinator-and-member", exact, 3, &at_once),
            Self::directed("kill-after-kill", exact, 3, &one_after_the_other),
            Self::directed("frozen", exact, 3, &frozen),
            Self::directed("last-source", exact, 2, &last_source),
        ]
    }

    /// A few faults on a mixture, for `make test`: one dies in the recovery from the death of another, and a source in the middle of a
    /// transfer.
    pub(crate) fn short(exact: bool) -> Self {
        let faults = [(Place::Bucket, What::Kill, 1), (Place::Form, What::Kill, 1), (Place::Send, What::Kill, MIDDLE)];
        Self { mixture: true, ..Self::directed("short", exact, 3, &faults) }
    }

    /// A plan drawn from a seed: at least [`SURE`] faults in at least forty steps. Every third one trains on a mixture.
    pub(crate) fn drawn(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let workers = rng.u32(2..=4);
        let exact = rng.u32(0..4) > 0;
        let steps = if exact { rng.u64(60..=160) } else { rng.u64(40..=60) };
        let count = rng.usize(SURE..=6);
        let mut faults: Vec<Fault> = Vec::new();
        for index in 0..count {
            let mut what = draw_deed(&mut rng);
            // It takes long, so there is one in a run.
            while what == What::Freeze && faults.iter().any(|fault| fault.what == What::Freeze) {
                what = draw_deed(&mut rng);
            }
            let when = if index < SURE { draw_sure(&mut rng, steps) } else { draw_any(&mut rng, workers, steps) };
            faults.push(Fault { when, what });
        }
        Self { name: format!("seed-{seed}"), seed, workers, exact, mixture: seed.is_multiple_of(3), end: End::Steps(steps), faults }
    }
}

fn draw_deed(rng: &mut Rng) -> What {
    match rng.u32(0..20) {
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
    }
}

/// In the first half of the run, where every group comes by: it may have a single member, and the first time may be the last one.
fn draw_sure(rng: &mut Rng, steps: u64) -> When {
    let from = rng.u64(1..steps / 2);
    if rng.u32(0..3) == 0 {
        return draw_step(rng, from);
    }
    let place = IN_A_STEP[rng.usize(0..IN_A_STEP.len())];
    let mut keys = vec![format!("from={from}")];
    if rng.bool() {
        keys.push("rank=0".to_owned());
    }
    if place == Place::Bucket {
        keys.push(format!("part={}", rng.u32(0..2)));
    }
    When::At { place, keys: keys.join(",") }
}

/// Anywhere: some are never come to.
fn draw_any(rng: &mut Rng, workers: u32, steps: u64) -> When {
    let from = rng.u64(1..steps * 3 / 4);
    if rng.u32(0..3) == 0 {
        return draw_step(rng, from);
    }
    // The copy has its directed runs; with it the seeds that were run before would be other runs.
    let places: Vec<Place> = Place::ALL.into_iter().filter(|place| *place != Place::Copy).collect();
    let place = places[rng.usize(0..places.len())];
    let mut keys = vec![format!("from={from}")];
    match place {
        Place::Form | Place::Leave | Place::Copy | Place::Shard | Place::Manifest => {}
        Place::Send | Place::Receive => keys.push(format!("part={}", rng.u32(0..100))),
        Place::Bucket => keys.extend([format!("part={}", rng.u32(0..2)), format!("rank={}", rng.u32(0..workers))]),
        _ => keys.push(format!("rank={}", rng.u32(0..workers))),
    }
    When::At { place, keys: keys.join(",") }
}

fn draw_step(rng: &mut Rng, step: u64) -> When {
    When::Step { step: step as usize, delay: Duration::from_millis(rng.u64(0..60)) }
}
