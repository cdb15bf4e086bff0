//! A job on one machine: the launcher, and below it the coordinator, workers and members as processes.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use lcl_tests::{
    data::Fault,
    process::{self, Running, await_condition, descendants, exists, kill},
    run::{Run, Workbench},
};
use lcl_trainer_config::{ExactConfig, ExitCode};
use rustix::process::Signal;

fn start(run: &Run, more: &[&str]) -> Result<Running> {
    process::coordinator()?;
    process::start(run.arguments_of("local", &[&["--output", "json"], more].concat())?)
}

/// Ids of the processes below `local` whose command line holds `word`.
fn named(local: &Running, word: &str) -> Result<Vec<u32>> {
    Ok(descendants(local.id())?.into_iter().filter(|(_, words)| words.contains(word)).map(|(id, _)| id).collect())
}

/// Waits until the ledger has grown by a few steps.
fn more_steps(run: &Run) -> Result<()> {
    let steps = run.steps()?.len() + 4;
    await_condition("further steps", || run.has_steps(steps))
}

#[test]
fn whatever_is_killed_is_started_again_and_nothing_is_left_at_the_end() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let (alone, mut run) = (workbench.alone(200)?, workbench.begin("local")?);
    run.config.optimization.steps = 200;
    let local = start(&run, &["--workers", "2"])?;
    more_steps(&run)?;
    let mut seen = Vec::new();
    for word in [" member ", " worker ", "lcl-coordinator", "w-0 --members-per-worker"] {
        let before = named(&local, word)?;
        seen.extend(descendants(local.id())?);
        let victim = *before.first().with_context(|| format!("no process is called {word}: {seen:?}"))?;
        kill(victim)?;
        await_condition("a new process in its place", || {
            let now = named(&local, word)?;
            Ok((now.len() == before.len() && !now.contains(&victim)).then_some(()))
        })?;
        more_steps(&run)?;
    }
    let finished = local.wait()?.expect_code(0)?;
    run.expect_same_work(&alone)?;
    ensure!(seen.iter().all(|(id, _)| !exists(*id)), "left behind: {seen:?}");
    // Shown once, though the leader changed.
    let shown = finished.stdout.lines().filter(|line| line.contains(r#""event":"step""#)).count();
    ensure!((200..210).contains(&shown), "{shown} lines for 200 steps");
    ensure!(finished.stdout.lines().filter(|line| line.contains(r#""event":"ended""#)).count() == 1, "{}", finished.stdout);
    Ok(())
}

/// The strongest thing that can be said of recovery: nothing that happened shows in a single bit.
#[test]
fn in_exact_mode_a_disturbed_run_ends_with_the_bits_of_an_undisturbed_one() -> Result<()> {
    // A slot without a sample, so that shards have different numbers of rows.
    let workbench = Workbench::new(&[(7, Fault::NoCaption)])?;
    let begin = |name: &str| -> Result<Run> {
        let mut run = workbench.begin(name)?;
        run.config.optimization.steps = 120;
        run.config.optimization.global_batch_size = 16;
        run.config.optimization.exact = Some(ExactConfig { virtual_shards: 8, threads: 1 });
        Ok(run)
    };
    let (alone, run) = (begin("alone")?, begin("local")?);
    let expected = alone.complete(&[])?;
    let local = start(&run, &["--workers", "3"])?;
    more_steps(&run)?;
    for word in [" member ", "lcl-coordinator", " worker "] {
        let before = named(&local, word)?;
        let victim = *before.last().with_context(|| format!("no process is called {word}"))?;
        kill(victim)?;
        await_condition("a new process in its place", || {
            let now = named(&local, word)?;
            Ok((now.len() == before.len() && !now.contains(&victim)).then_some(()))
        })?;
        more_steps(&run)?;
    }
    local.wait()?.expect_code(0)?;
    let generations: BTreeSet<String> = run.steps()?.iter().map(|line| line["generation"].to_string()).collect();
    ensure!(generations.len() >= 3, "too little was disturbed to show anything: {generations:?}");
    for (step, (got, wanted)) in run.ledger()?.iter().zip(alone.ledger()?).enumerate() {
        ensure!(*got == wanted, "step {step} is {got}, and undisturbed {wanted}; by {:?}", run.steps()?[step]);
    }
    ensure!(run.hash()? == expected, "{} instead of {expected}", run.hash()?);
    Ok(())
}

#[test]
fn a_job_asked_to_stop_saves_and_goes_on_later_and_dies_as_a_whole() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let (alone, run) = (workbench.alone(40)?, workbench.begin("local")?);
    // Fewer than all are too few, so that the first to leave must not leave the others without a checkpoint.
    let local = start(&run, &["--workers", "2", "--min-workers", "2"])?;
    await_condition("seven steps of two members", || run.has_steps(7))?;
    local.signal(Signal::TERM)?;
    local.wait()?.expect_code(ExitCode::Preempted.code())?;
    let stopped_at = run.steps()?.len() as u64;
    ensure!(run.newest_checkpoint()?.step == stopped_at, "checkpoint {:?} of {stopped_at} steps", run.newest_checkpoint()?);

    let local = start(&run, &["--workers", "2", "--resume"])?;
    await_condition("further steps", || run.has_steps(stopped_at as usize + 3))?;
    let processes = descendants(local.id())?;
    ensure!(processes.len() == 5, "{processes:?}");
    local.kill()?;
    await_condition("the end of all", || Ok(processes.iter().all(|(id, _)| !exists(*id)).then_some(())))?;

    let last = start(&run, &["--workers", "1", "--members-per-worker", "3"])?;
    last.wait()?.expect_code(0)?;
    run.expect_same_work(&alone)
}

#[test]
fn a_missing_coordinator_is_named_with_how_to_get_it() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let run = workbench.begin("local")?;
    let folder = tempfile::tempdir()?;
    let trainer = folder.path().join("lcl-trainer");
    std::fs::copy(process::trainer()?, &trainer)?;
    let mut command = std::process::Command::new(&trainer);
    command.args(run.arguments_of("local", &["--workers", "2"])?);
    let finished = process::start_command(command)?.wait()?.expect_code(ExitCode::Permanent.code())?;
    ensure!(finished.stderr.contains("cargo build --release -p lcl-coordinator"), "{}", finished.stderr);
    Ok(())
}
