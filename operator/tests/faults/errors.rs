//! Plans by which requests of the operator fail, wait or are cut, from a job's creation on.

use std::{
    collections::BTreeMap,
    env,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};

use super::{
    lab::{Lab, Place, uids},
    phases::Phase,
    proxy::{Fate, Passed, Proxy},
    support::{Operator, tell},
};

/// Workers of each job.
const WORKERS: u32 = 2;
/// What happens to the job, one after the other: sizes change last.
const PHASES: [Phase; 3] = [Phase::Creation, Phase::Recovery, Phase::ScaleDown];

/// When the API server's answer, real or not, is about a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The write is not carried out.
    Before,
    /// It is.
    After,
}

enum Rule {
    /// Every so many writes.
    Every(usize, Stage, Fate),
    /// The first request of this kind about pods.
    First(&'static str, Fate),
    /// Watches forget what follows after so many events.
    Expire(usize),
    /// Every request waits for so long.
    Delay(Duration),
    /// All of it, drawn.
    Drawn(Mutex<fastrand::Rng>),
}

/// How requests fail.
pub(crate) struct Plan {
    name: String,
    rule: Rule,
    writes: AtomicUsize,
    /// An operator that cannot begin ends, and is started again by who runs it.
    has_begun: AtomicBool,
}

fn answer(code: u16, reason: &'static str) -> Fate {
    Fate::Answer { code, reason, retry_after: (code == 429).then_some(1) }
}

impl Plan {
    /// Fixed ones, and one that is drawn from the variable SEED, or from anything.
    pub(crate) fn all() -> Result<Vec<Self>> {
        let given = env::var("SEED").ok().filter(|seed| !seed.is_empty());
        let seed = given.map_or_else(|| Ok(fastrand::u64(..=u64::from(u32::MAX))), |seed| seed.parse()).context("SEED")?;
        tell(&format!("faults: SEED={seed}"));
        let rules = [
            ("error", Rule::Every(3, Stage::Before, answer(500, "InternalError"))),
            ("late-error", Rule::Every(3, Stage::After, answer(500, "InternalError"))),
            ("conflict", Rule::Every(3, Stage::Before, answer(409, "Conflict"))),
            ("busy", Rule::Every(3, Stage::Before, answer(429, "TooManyRequests"))),
            ("delete-conflict", Rule::First("DELETE", answer(409, "Conflict"))),
            ("cut", Rule::Every(3, Stage::Before, Fate::Cut)),
            ("late-cut", Rule::Every(3, Stage::After, Fate::Cut)),
            ("gone", Rule::Expire(3)),
            ("slow", Rule::Delay(Duration::from_millis(300))),
            (&format!("drawn-{seed}"), Rule::Drawn(Mutex::new(fastrand::Rng::with_seed(seed)))),
        ];
        Ok(rules
            .map(|(name, rule)| Self { name: name.to_owned(), rule, writes: AtomicUsize::new(0), has_begun: AtomicBool::new(false) })
            .into())
    }

    async fn meet(self: Arc<Self>, passed: Passed) -> Fate {
        // The lease is another matter (control_plane/election.rs).
        if passed.is(&passed.method, "leases") || !self.has_begun.load(Ordering::Relaxed) {
            return Fate::Pass;
        }
        let stage = if passed.status.is_none() { Stage::Before } else { Stage::After };
        match &self.rule {
            Rule::Every(every, at, fate) if *at == stage && passed.is_work() => {
                let number = self.writes.fetch_add(1, Ordering::Relaxed) + 1;
                if number.is_multiple_of(*every) { fate.clone() } else { Fate::Pass }
            }
            Rule::First(method, fate) if stage == Stage::Before && passed.is(method, "pods") => {
                if self.writes.fetch_add(1, Ordering::Relaxed) == 0 { fate.clone() } else { Fate::Pass }
            }
            Rule::Every(..) | Rule::First(..) => Fate::Pass,
            Rule::Expire(after) => Fate::Expire { after: *after },
            Rule::Delay(delay) => {
                if stage == Stage::Before {
                    tokio::time::sleep(*delay).await;
                }
                Fate::Pass
            }
            Rule::Drawn(random) => {
                let (pause, fate) = draw(&mut random.lock().unwrap(), stage, &passed);
                tokio::time::sleep(pause).await;
                fate
            }
        }
    }
}

fn draw(random: &mut fastrand::Rng, stage: Stage, passed: &Passed) -> (Duration, Fate) {
    let pause = if stage == Stage::Before { Duration::from_millis(random.u64(0..200)) } else { Duration::ZERO };
    let fate = match (passed.is_watch, random.u8(0..20)) {
        (true, _) => Fate::Expire { after: random.usize(1..12) },
        (_, 0) => answer(500, "InternalError"),
        (_, 1) => Fate::Cut,
        (_, 2) if stage == Stage::Before => answer(429, "TooManyRequests"),
        (_, 3) if stage == Stage::Before && passed.is_work() => answer(409, "Conflict"),
        _ => Fate::Pass,
    };
    (pause, fate)
}

/// Under a plan a job is created, loses a worker, and shrinks.
pub(crate) fn run(lab: &Lab, plan: Plan) -> Result<()> {
    let name = plan.name.clone();
    run_plan(lab, plan).with_context(|| format!("under the plan {name}"))
}

fn run_plan(lab: &Lab, plan: Plan) -> Result<()> {
    let place = lab.place(&format!("plan-{}", plan.name))?;
    let plan = Arc::new(plan);
    let meeting = Arc::clone(&plan);
    let proxy = Proxy::start(&lab.kubeconfig, move |passed, _| Arc::clone(&meeting).meet(passed))?;
    let operator = place.start_operator(&proxy.kubeconfig)?;
    plan.has_begun.store(true, Ordering::Relaxed);
    survive(&place, &operator).with_context(|| operator.complaints().unwrap_or_default())?;
    operator.terminate()?;
    place.delete_job()
}

fn survive(place: &Place, operator: &Operator) -> Result<()> {
    let (mut before, mut failed) = (BTreeMap::new(), Vec::new());
    for phase in PHASES {
        let mut expected = phase.expected(WORKERS, &before);
        expected.after(&mut failed);
        phase.begin(place, WORKERS)?;
        expected.wait_for_rest(place, || false)?;
        place.look_once_more(operator, || false)?;
        // Of an answer that has not come it may have to be looked for once more.
        expected.wait_for_rest(place, || false)?;
        expected.check_end(place).with_context(|| phase.name())?;
        before = uids(&place.pods()?);
    }
    Ok(())
}
