//! The operator under faults, against a real API server and nodes that are played: whatever befalls it or its requests, a job comes to the
//! same end.

mod support;

#[path = "faults/clock.rs"]
mod clock;
#[path = "faults/crowd.rs"]
mod crowd;
#[path = "faults/errors.rs"]
mod errors;
#[path = "../core/tests/support/jobs.rs"]
mod jobs;
#[path = "support/kubelet.rs"]
mod kubelet;
#[path = "faults/lab.rs"]
mod lab;
#[path = "faults/leftovers.rs"]
mod leftovers;
#[path = "support/member.rs"]
mod member;
#[path = "faults/phases.rs"]
mod phases;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "faults/writes.rs"]
mod writes;

use std::{collections::VecDeque, env, sync::Mutex, thread};

use anyhow::{Context, Result, ensure};

use errors::Plan;
use lab::Lab;
use phases::Phase;
use support::tell;
use writes::{Ends, Mode, Sequence};

/// Sequences that run at a time: they take processors for starting operators, and wait in between.
const SIDE_BY_SIDE: usize = 5;

/// Does all of it, whatever becomes of a part, and fails with everything that went wrong. Plans mostly wait, so all of them run at a time.
fn do_all(
    lab: &Lab,
    sequences: impl IntoIterator<Item = Sequence>,
    plans: Vec<Plan>,
    further: impl FnOnce(&Lab) -> Result<()> + Send,
) -> Result<Ends> {
    let (queue, ends) = (Mutex::new(sequences.into_iter().collect::<VecDeque<_>>()), Ends::default());
    let failures = Mutex::new(Vec::new());
    let note = |result: Result<()>| {
        if let Err(error) = result {
            failures.lock().unwrap().push(format!("{error:#}"));
        }
    };
    let next = || queue.lock().unwrap().pop_front();
    thread::scope(|scope| {
        scope.spawn(|| note(further(lab)));
        for plan in plans {
            scope.spawn(|| note(errors::run(lab, plan)));
        }
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                while let Some(sequence) = next() {
                    note(writes::run(lab, sequence, &ends));
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    ensure!(failures.is_empty(), "{}", failures.join("\n\n"));
    Ok(ends)
}

fn sequences(workers: u32) -> impl Iterator<Item = Sequence> {
    let each = move |phase| [Mode::Kill, Mode::Cut].map(|mode| Sequence { phase, mode, workers });
    Phase::ALL.into_iter().flat_map(each)
}

#[test]
fn a_job_comes_to_the_same_end_wherever_its_operator_is_killed_whatever_becomes_of_a_request_and_whatever_the_clock_says() -> Result<()> {
    let lab = Lab::start()?;
    let ends = do_all(&lab, sequences(2), Plan::all()?, |lab| clock::is_ahead(lab).and_then(|()| clock::renews(lab)))?;
    // Fewer would mean that the writes were not seen.
    for (phase, fewest) in
        [(Phase::Creation, 9), (Phase::ScaleDown, 2), (Phase::Recovery, 4), (Phase::CoordinatorLoss, 4), (Phase::Drain, 3)]
    {
        ends.check(phase, fewest)?;
    }
    Ok(())
}

#[test]
#[ignore = "minutes: `make faults` runs it; WORKERS says of how many"]
fn the_same_of_a_large_job() -> Result<()> {
    let workers = env::var("WORKERS").ok().filter(|workers| !workers.is_empty());
    let workers = workers.map_or(Ok(32), |workers| workers.parse()).context("WORKERS")?;
    let lab = Lab::start()?;
    let ends = do_all(&lab, sequences(workers), Vec::new(), |_| Ok(()))?;
    tell(&format!("{workers} workers: {}", ends.describe()));
    ends.check(Phase::Creation, workers as usize + 8)
}
