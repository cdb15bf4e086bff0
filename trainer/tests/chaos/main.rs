//! Real processes, and what can befall them: kills, stops, joins, leaves and the loss of the coordinator, at named places in a member and
//! at any moment. Whatever happens, the run ends as if nothing had.
//!
//! `cargo test --workspace --test chaos` has a few runs drawn from seeds and a short directed one.
//! `make chaos RUNS=100 SEED=1` has every fault at every place in both modes, and draws a hundred. `ONLY=everywhere` and `ONLY=many_runs` do
//! one of both, `PLAN=frozen` a single directed run. A run that fails prints its plan and the command that repeats it, and leaves its logs.
//!
//! That it can fail was shown by putting bugs back: `docs/decisions/0020-chaos.md`.

mod arena;
mod checks;
mod deeds;
mod plan;
mod show;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    path::Path,
    process::Command,
    sync::Mutex,
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use lcl_trainer::processes::fail_point::Place;

use arena::{Arena, Outcome};
use plan::{End, Plan, SURE, What, When};

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
fn every_fault_is_planned_at_every_place_in_both_modes() {
    let faults = [What::Kill, What::Pause, What::Terminate, What::Join, What::KillCoordinator];
    for exact in [true, false] {
        let planned: BTreeSet<(Place, What)> = Plan::everywhere(exact)
            .iter()
            .inspect(|plan| assert_eq!(plan.exact, exact))
            .flat_map(|plan| &plan.faults)
            .filter_map(|fault| if let When::At { place, .. } = &fault.when { Some((*place, fault.what)) } else { None })
            .collect();
        for (place, what) in Place::ALL.into_iter().flat_map(|place| faults.map(|what| (place, what))) {
            assert!(planned.contains(&(place, what)), "{what:?} at {place:?}, exact {exact}");
        }
    }
}

#[test]
fn no_two_directed_plans_have_the_same_name() {
    let plans = Plan::all_directed();
    assert_eq!(plans.iter().map(|plan| &plan.name).collect::<BTreeSet<_>>().len(), plans.len());
}

/// What `make` would do when given what a failing run prints.
#[test]
fn the_command_that_a_failing_run_prints_repeats_this_run_alone() -> Result<()> {
    let drawn = ("many_runs", "RUNS=1 SEED=7 PLAN= ");
    let directed = ("faults_everywhere_leave_a_run_as_if_undisturbed", "RUNS= SEED= PLAN=fast-frozen ");
    let frozen = Plan::all_directed().into_iter().find(|plan| plan.name == "fast-frozen").context("no such plan")?;
    for (plan, (test, variables)) in [(Plan::drawn(7), drawn), (frozen, directed)] {
        let again = plan.again();
        let words = again.strip_prefix("make ").context("not by make")?.split(' ');
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut make = Command::new("make");
        make.arg("--dry-run").args(words).current_dir(root);
        for variable in ["MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "RUNS", "SEED", "PLAN", "ONLY"] {
            make.env_remove(variable);
        }
        let shown = String::from_utf8(make.output()?.stdout)?;
        let (built, run) = shown.trim_end().rsplit_once('\n').context("make does too little")?;
        assert!(built.ends_with("cargo build --workspace --bin lcl-coordinator --bin lcl-trainer --test chaos"), "{shown}");
        let (cargo, arguments) = run.split_once(" -- ").context("no arguments for the test")?;
        assert_eq!(cargo, format!("{variables}cargo test --workspace --test chaos"));
        // It is listed without this, too, but not run.
        assert!(arguments.contains(" --ignored "), "{run}");
        let listed = Command::new(env::current_exe()?).args(arguments.split_whitespace()).arg("--list").output()?;
        assert!(String::from_utf8(listed.stdout)?.starts_with(&format!("{test}: test\n\n1 test,")), "{again}");
    }
    Ok(())
}

#[test]
fn every_drawn_plan_has_enough_faults_that_every_run_comes_to() {
    for plan in (1..=1000).map(Plan::drawn) {
        let End::Steps(steps) = plan.end else { panic!("{plan}") };
        let early = |step: u64| step < steps / 2;
        let sure = plan.faults.iter().filter(|fault| match &fault.when {
            When::Step { step, .. } => early(*step as u64),
            When::At { place, keys } => {
                let every_step = !matches!(
                    place,
                    Place::Form | Place::Leave | Place::Send | Place::Receive | Place::Copy | Place::Shard | Place::Manifest
                );
                let from = keys.split(',').find_map(|key| key.strip_prefix("from=")?.parse().ok());
                every_step && from.is_some_and(early) && !["rank=1", "rank=2", "rank=3"].iter().any(|rank| keys.contains(rank))
            }
        });
        assert!(sure.count() >= SURE, "{plan}");
    }
}

/// `carry_out` fails when a fault that was planned was not hit.
#[test]
#[ignore = "takes a quarter of an hour; part of `make chaos`"]
fn faults_everywhere_leave_a_run_as_if_undisturbed() -> Result<()> {
    let wanted = variable("PLAN");
    let mut plans = Plan::all_directed();
    plans.retain(|plan| wanted.as_ref().is_none_or(|wanted| *wanted == plan.name));
    ensure!(!plans.is_empty(), "no plan is called {wanted:?}");
    carry_out(plans, tell).map(drop)
}

/// A directed run, and the first seeds of either mode.
#[test]
fn a_few_faults_leave_a_run_as_if_undisturbed() -> Result<()> {
    let fast = (1..100).map(Plan::drawn).find(|plan| !plan.exact).context("no seed is for fast mode")?;
    let exact = (1..100).map(Plan::drawn).filter(|plan| plan.exact).take(2);
    carry_out([Plan::short(true), fast].into_iter().chain(exact).collect(), tell).map(drop)
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
