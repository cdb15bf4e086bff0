//! Real processes, and what can befall them: kills, stops, joins, leaves and the loss of the coordinator, at named places in a member and
//! at any moment. Whatever happens, the run ends as if nothing had.
//!
//! `cargo test -p lcl-trainer --test chaos` has every fault at every place once, and a few runs drawn from seeds.
//! `make chaos RUNS=100 SEED=1` draws more. A run that fails prints its plan and the command that repeats it, and leaves its logs.
//!
//! That it can fail was shown by putting bugs back: `docs/decisions/0020-chaos.md`.

mod arena;
mod checks;
mod deeds;
mod plan;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    sync::Mutex,
    thread,
};

use anyhow::{Result, anyhow};
use lcl_trainer::fail_point::Place;

use arena::{Arena, Outcome};
use plan::{Plan, What, When};

/// Runs at a time: most of the time a run waits for a process to start.
const AT_ONCE: usize = 2;

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|text| !text.is_empty())
}

fn number(name: &str, default: u64) -> Result<u64> {
    variable(name).map_or(Ok(default), |text| text.parse().map_err(|error| anyhow!("{name}={text}: {error}")))
}

/// Carries out plans, some at a time; all of them, whatever becomes of one.
fn carry_out(plans: Vec<Plan>, tell: impl Fn(&Plan, &Result<Outcome>) + Sync) -> Result<Vec<Outcome>> {
    let arena = Arena::new()?;
    let (waiting, results) = (Mutex::new(plans.into_iter()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let Some(plan) = waiting.lock().ok().and_then(|mut plans| plans.next()) else { return };
                    let result = arena.carry_out(&plan);
                    tell(&plan, &result);
                    if let Ok(mut results) = results.lock() {
                        results.push(result);
                    }
                }
            });
        }
    });
    let results = results.into_inner().map_err(|error| anyhow!("{error}"))?;
    let failed = results.iter().filter(|result| result.is_err()).count();
    let all = results.len();
    results.into_iter().collect::<Result<Vec<_>>>().map_err(|error| error.context(format!("{failed} of {all} runs failed; one of them")))
}

fn tell(plan: &Plan, result: &Result<Outcome>) {
    match result {
        Ok(outcome) => println!("{}: {outcome:?}", plan.name),
        Err(error) => println!("{} FAILED: {error:#}", plan.name),
    }
}

#[test]
fn every_fault_is_planned_at_every_place() {
    let plans = Plan::everywhere();
    let planned: BTreeSet<(Place, What)> = plans
        .iter()
        .flat_map(|plan| &plan.faults)
        .filter_map(|fault| if let When::At { place, .. } = &fault.when { Some((*place, fault.what)) } else { None })
        .collect();
    let faults = [What::Kill, What::Pause, What::Terminate, What::Join, What::KillCoordinator];
    for (place, what) in Place::ALL.into_iter().flat_map(|place| faults.map(|what| (place, what))) {
        assert!(planned.contains(&(place, what)), "{what:?} at {place:?}");
    }
}

/// `carry_out` fails when a fault that was planned was not hit.
#[test]
#[ignore = "takes minutes; part of `make chaos`"]
fn faults_everywhere_leave_a_run_as_if_undisturbed() -> Result<()> {
    let wanted = variable("PLAN");
    let plans = Plan::everywhere().into_iter().chain([Plan::rare()]);
    carry_out(plans.filter(|plan| wanted.as_ref().is_none_or(|wanted| *wanted == plan.name)).collect(), tell).map(drop)
}

#[test]
fn faults_at_random_leave_a_run_as_if_undisturbed() -> Result<()> {
    carry_out((1..=2).map(Plan::drawn).collect(), tell).map(drop)
}

/// `make chaos`.
#[test]
#[ignore = "takes as long as it is told to"]
fn many_runs() -> Result<()> {
    let (runs, first) = (number("RUNS", 10)?, number("SEED", 1)?);
    let outcomes = Mutex::new(Vec::new());
    let result = carry_out((first..first + runs).map(Plan::drawn).collect(), |plan, result| {
        tell(plan, result);
        if let (Ok(outcome), Ok(mut outcomes)) = (result, outcomes.lock()) {
            outcomes.push((plan.seed, outcome.clone()));
        }
    });
    summarize(runs, first, &outcomes.into_inner().map_err(|error| anyhow!("{error}"))?);
    result.map(drop)
}

fn summarize(runs: u64, first: u64, outcomes: &[(u64, Outcome)]) {
    let sum = |of: fn(&Outcome) -> usize| outcomes.iter().map(|(_, outcome)| of(outcome)).sum::<usize>();
    println!(
        "\n{runs} runs from seed {first}, {} failed; {} steps, {} generations, {} restores from storage, first starts included",
        runs - outcomes.len() as u64,
        sum(|outcome| outcome.steps),
        sum(|outcome| outcome.generations),
        sum(|outcome| outcome.restores),
    );
    if let Some((seed, longest)) = outcomes.iter().max_by(|(_, left), (_, right)| left.longest_gap.total_cmp(&right.longest_gap)) {
        println!("longest time without a step: {:.2} s (seed {seed})", longest.longest_gap);
    }
    let mut faults = BTreeMap::<(What, &str), u32>::new();
    for (what, place) in outcomes.iter().flat_map(|(_, outcome)| &outcome.hits) {
        *faults.entry((*what, place)).or_default() += 1;
    }
    for what in What::ALL {
        let places = faults.iter().filter(|((other, _), _)| *other == what);
        let places: Vec<String> = places.map(|((_, place), count)| format!("{place} {count}")).collect();
        println!("  {:<24} {}", format!("{what:?}"), places.join(", "));
    }
}
