//! The operator under faults, against a real API server and nodes that are played: whatever befalls it or its requests, a job comes to the
//! same end.

mod support;

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
#[path = "faults/phases.rs"]
mod phases;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "faults/writes.rs"]
mod writes;

use std::{collections::VecDeque, env, sync::Mutex, thread};

use anyhow::{Context, Result};

use errors::Plan;
use lab::Lab;
use phases::Phase;
use support::tell;
use writes::{Ends, Mode, Sequence};

/// Of these most wait most of the time.
const SIDE_BY_SIDE: usize = 5;

/// Something that takes a while and needs a namespace of its own.
enum Work {
    Sequence(Sequence),
    Plan(Plan),
}

/// Does all of it, whatever becomes of a part, and fails with everything that went wrong.
fn do_all(lab: &Lab, work: impl IntoIterator<Item = Work>) -> Result<Ends> {
    let (queue, ends, failures) = (Mutex::new(work.into_iter().collect::<VecDeque<_>>()), Ends::default(), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                loop {
                    let Some(work) = queue.lock().unwrap().pop_front() else { return };
                    let result = match work {
                        Work::Sequence(sequence) => writes::run(lab, sequence, &ends),
                        Work::Plan(plan) => errors::run(lab, plan),
                    };
                    if let Err(error) = result {
                        failures.lock().unwrap().push(format!("{error:#}"));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    anyhow::ensure!(failures.is_empty(), "{}", failures.join("\n\n"));
    Ok(ends)
}

fn sequences(workers: u32) -> impl Iterator<Item = Work> {
    let each = move |phase| [Mode::Kill, Mode::Cut].map(|mode| Work::Sequence(Sequence { phase, mode, workers }));
    Phase::ALL.into_iter().flat_map(each)
}

#[test]
fn a_job_comes_to_the_same_end_wherever_its_operator_is_killed_and_whatever_becomes_of_a_request() -> Result<()> {
    let lab = Lab::start()?;
    let plans = Plan::all()?.into_iter().map(Work::Plan);
    let ends = do_all(&lab, sequences(2).chain(plans))?;
    // Fewer would mean that the writes were not seen.
    for (phase, fewest) in [(Phase::Creation, 9), (Phase::ScaleDown, 2), (Phase::Recovery, 4), (Phase::CoordinatorLoss, 4)] {
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
    let ends = do_all(&lab, sequences(workers))?;
    tell(&format!("{workers} workers: {}", ends.describe()));
    ends.check(Phase::Creation, workers as usize + 8)
}
