//! A run that is interrupted in any way goes on as if it had not been.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lcl_tests::{
    hanging_store::{HangingStore, Hangs},
    process::{self, Finished, Running, await_condition},
    run::{Run, Workbench},
};
use lcl_trainer::processes::fail_point;
use lcl_trainer_config::{ExitCode, Schedule};
use rustix::process::Signal;
use serde_json::Value;

const PREEMPTED: u8 = ExitCode::Preempted.code();
const PERMANENT: u8 = ExitCode::Permanent.code();
const RETRYABLE: u8 = ExitCode::Retryable.code();

/// Kills of one test.
const KILLS: u64 = 20;
/// Reproduces the moments of the kills.
const SEED: u64 = 0x1c1;

/// The `index`-th number in [0, 1) of the test's seed.
fn uniform(index: u64) -> f64 {
    let hash = blake3::hash(&[SEED.to_le_bytes(), index.to_le_bytes()].concat());
    let bytes = hash.as_bytes().first_chunk::<8>().copied().unwrap_or_default();
    (u64::from_le_bytes(bytes) >> 11) as f64 / (1_u64 << 53) as f64
}

/// Ledger and parameters of a run that nothing disturbed.
fn undisturbed(workbench: &Workbench, name: &str) -> Result<(String, Vec<String>)> {
    let run = workbench.begin(name)?;
    Ok((run.complete(&[])?, run.ledger()?))
}

/// No checkpoint is left out because the one before is still being written: training waits for those that are kept for good.
fn with_every_checkpoint(mut run: Run) -> Run {
    run.config.checkpoint.keep_every_steps = Some(run.config.checkpoint.every_steps);
    run
}

fn has_steps(run: &Run, steps: usize) -> Result<Option<()>> {
    Ok((run.steps()?.len() >= steps).then_some(()))
}

#[test]
fn the_same_seed_gives_the_same_parameters_and_another_seed_others() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let (hash, ledger) = undisturbed(&workbench, "first")?;
    let mut second = workbench.begin("second")?;
    // What may differ between runs without changing the result: how often is saved, how data are read.
    second.config.checkpoint.every_steps = 17;
    second.config.data.threads = 2;
    ensure!(second.complete(&[])? == hash);
    ensure!(second.ledger()? == ledger && ledger.len() == 40);
    let mut other = workbench.begin("other")?;
    other.config.optimization.seed = 12;
    ensure!(other.complete(&[])? != hash);
    Ok(())
}

/// How a run is killed.
enum Kill {
    /// By itself when it has written the shards of its so manieth checkpoint, and before the manifest; no machine is too quick for that.
    BetweenShardsAndManifest(usize),
    /// From outside while it writes its so manieth checkpoint.
    InWrite(usize),
    /// From outside this long after its first step.
    AfterStep(Duration),
    /// From outside this long after its start.
    AfterStart(Duration),
}

impl Kill {
    /// The kinds in turns; the rest from the test's seed and the number of the process, so that no run ends before its kill for ever.
    fn draw(kills: u64, process: u64) -> Self {
        let (checkpoint, moment) = (1 + (3.0 * uniform(process)) as usize, Duration::from_secs_f64(0.8 * uniform(process)));
        match kills % 4 {
            0 => Self::BetweenShardsAndManifest(checkpoint),
            1 => Self::AfterStep(moment),
            2 => Self::InWrite(checkpoint),
            _ => Self::AfterStart(moment),
        }
    }

    /// Starts the run and kills it, unless it ends before that.
    fn carry_out(&self, run: &Run, hits: &Path) -> Result<Finished> {
        let before: BTreeSet<PathBuf> = run.checkpoints()?.into_iter().map(|checkpoint| checkpoint.path).collect();
        let steps_before = run.steps()?.len();
        let mut command = Command::new(process::trainer()?);
        command.args(run.arguments(&["--output", "json"])?);
        // The undisturbed run copies at once.
        command.env(fail_point::COPY_BESIDE, "1");
        if let Self::BetweenShardsAndManifest(wanted) = self {
            let place = if wanted.is_multiple_of(2) { "shard" } else { "manifest" };
            command.env(fail_point::FAULTS, format!("{place}@time={wanted}:kill")).env(fail_point::FOLDER, hits);
        }
        let mut running = process::start_command(command)?;
        let after = |moment: Duration, running: &mut Running| {
            let begin = Instant::now();
            await_condition("the moment of the kill", || Ok((begin.elapsed() >= moment || running.has_ended()?).then_some(())))
        };
        match *self {
            Self::BetweenShardsAndManifest(_) => return running.wait(),
            Self::InWrite(wanted) => {
                let mut begun = BTreeSet::new();
                await_condition("a checkpoint being written", || {
                    let new: Vec<_> = run.checkpoints()?.into_iter().filter(|checkpoint| !before.contains(&checkpoint.path)).collect();
                    begun.extend(new.iter().map(|checkpoint| checkpoint.path.clone()));
                    let writing = begun.len() >= wanted && new.iter().any(|checkpoint| !checkpoint.complete);
                    Ok((writing || running.has_ended()?).then_some(()))
                })?;
            }
            Self::AfterStep(moment) => {
                await_condition("a step", || Ok((run.steps()?.len() > steps_before || running.has_ended()?).then_some(())))?;
                after(moment, &mut running)?;
            }
            Self::AfterStart(moment) => after(moment, &mut running)?,
        }
        running.kill()
    }
}

#[test]
fn a_run_killed_at_any_moment_ends_with_the_parameters_of_one_that_was_not() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let (hash, ledger) = undisturbed(&workbench, "undisturbed")?;
    let (mut kills, mut mid_write, mut processes, mut runs) = (0, 0, 0, 0);
    let mut run = workbench.begin("killed-0")?;
    while kills < KILLS {
        let hits = workbench.path(&format!("hits-{processes}"));
        fs::create_dir(&hits)?;
        let before: BTreeSet<PathBuf> = run.checkpoints()?.into_iter().map(|checkpoint| checkpoint.path).collect();
        let finished = Kill::draw(kills, processes).carry_out(&run, &hits)?;
        processes += 1;
        if finished.status.code() == Some(0) {
            // It was through before the kill: a result to compare, and a new run to kill.
            check_end(&run, &hash, &ledger, runs)?;
            runs += 1;
            ensure!(runs <= 2 * KILLS, "{runs} runs came to their end before {kills} kills");
            run = workbench.begin(&format!("killed-{runs}"))?;
            continue;
        }
        ensure!(finished.status.code().is_none(), "seed {SEED:#x}, kill {kills}: {}", finished.stderr);
        kills += 1;
        mid_write += u64::from(run.checkpoints()?.iter().any(|checkpoint| !checkpoint.complete && !before.contains(&checkpoint.path)));
    }
    run.complete(&[])?;
    check_end(&run, &hash, &ledger, runs)?;
    println!("{mid_write} of {KILLS} kills hit a checkpoint that was being written");
    // The others hit one or not, as quick as the disk is.
    ensure!(mid_write >= KILLS / 4, "only {mid_write} of {KILLS} kills hit a checkpoint that was being written");
    Ok(())
}

/// Copied while the next step computes, which must not show: whether the process dies before the copy, or a run goes on from it.
#[test]
fn a_checkpoint_that_is_copied_beside_the_next_step_holds_the_state_before_it() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let (hash, ledger) = undisturbed(&workbench, "undisturbed")?;
    for (number, faults) in ["copy@time=2:kill", "copy@time=2:hold;before-update@after=0:hold;manifest@time=3:kill"].into_iter().enumerate()
    {
        let (mut run, hits) =
            (with_every_checkpoint(workbench.begin(&format!("beside-{number}"))?), workbench.path(&format!("hits-{number}")));
        run.config.checkpoint.every_steps = 10;
        run.config.checkpoint.keep_every_steps = Some(10);
        fs::create_dir(&hits)?;
        let mut command = Command::new(process::trainer()?);
        command.args(run.arguments(&[])?).env(fail_point::COPY_BESIDE, "1");
        command.env(fail_point::FAULTS, faults).env(fail_point::FOLDER, &hits);
        let mut running = process::start_command(command)?;
        if faults.contains("hold") {
            // The next step has computed its gradients; its update is what the copy must not see.
            await_condition("a step beside the copy", || Ok((hits.join("1").exists() || running.has_ended()?).then_some(())))?;
            fs::write(hits.join("1.go"), "")?;
            fs::write(hits.join("0.go"), "")?;
        }
        let killed = running.wait()?;
        ensure!(killed.status.code().is_none(), "{faults}: {:?} {}", killed.status, killed.stderr);
        let newest = run.newest_checkpoint()?.step;
        ensure!(newest == [10, 20][number], "{faults}: the newest checkpoint has {newest} steps");
        run.complete(&[])?;
        check_end(&run, &hash, &ledger, number as u64)?;
    }
    Ok(())
}

fn check_end(run: &Run, hash: &str, ledger: &[String], number: u64) -> Result<()> {
    ensure!(run.hash()? == hash, "seed {SEED:#x}, run {number}: other parameters");
    ensure!(run.ledger()? == ledger, "seed {SEED:#x}, run {number}: another ledger");
    Ok(())
}

#[test]
fn a_request_to_stop_ends_with_a_checkpoint_and_the_preempted_code() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let (hash, ledger) = undisturbed(&workbench, "undisturbed")?;
    for (name, signal) in [("term", Signal::TERM), ("int", Signal::INT)] {
        let mut run = workbench.begin(name)?;
        // No checkpoint would be due: what is there comes from the stop.
        run.config.checkpoint.every_steps = 1_000;
        let running = run.start(&[])?;
        await_condition("three steps", || has_steps(&run, 3))?;
        running.signal(signal)?;
        running.wait()?.expect_code(PREEMPTED)?;
        let steps = run.steps()?.len() as u64;
        ensure!((3..40).contains(&steps), "{steps} steps");
        ensure!(run.newest_checkpoint()?.step == steps);
        ensure!(run.events()?.last().context("no record")?["reason"] == "preempted");
        ensure!(run.complete(&["--resume"])? == hash);
        ensure!(run.ledger()? == ledger);
    }
    Ok(())
}

/// A store that hangs would hold the process for more than a minute.
#[test]
fn a_request_to_stop_is_heard_while_a_store_hangs() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    for hangs_at in [Hangs::AtOnce, Hangs::AtParts] {
        let store = HangingStore::start(&workbench.shard(), hangs_at)?;
        let mut run = workbench.begin(&format!("{hangs_at:?}"))?;
        run.config.data = store.data(&run.config.data, &workbench.path("store"));
        let running = run.start(&[])?;
        await_condition("a request that hangs", || Ok(store.hangs().then_some(())))?;
        let asked = Instant::now();
        running.signal(Signal::TERM)?;
        running.wait()?.expect_code(PREEMPTED)?;
        // It has a checkpoint to write, on a machine with other work.
        ensure!(asked.elapsed() < Duration::from_secs(15), "{hangs_at:?}: {:?}", asked.elapsed());
        ensure!(run.steps()?.is_empty(), "{hangs_at:?}");
    }
    Ok(())
}

#[test]
fn a_second_request_ends_the_process_at_once() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let (run, hits) = (workbench.begin("run")?, workbench.path("hits"));
    fs::create_dir(&hits)?;
    let mut command = Command::new(process::trainer()?);
    // An orderly end never comes: the step that it waits for is held.
    command.args(run.arguments(&[])?).env(fail_point::FAULTS, "before-update:hold").env(fail_point::FOLDER, &hits);
    let running = process::start_command(command)?;
    await_condition("a step that is held", || Ok(hits.join("0").exists().then_some(())))?;
    // Two of one kind could be taken for one.
    running.signal(Signal::TERM)?;
    running.signal(Signal::INT)?;
    let code = running.wait()?.code()?;
    ensure!(code == 128 + 15 || code == 128 + 2, "{code}");
    ensure!(run.checkpoints()?.is_empty());
    Ok(())
}

#[test]
fn a_damaged_checkpoint_is_passed_over_with_a_warning() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let (hash, ledger) = undisturbed(&workbench, "undisturbed")?;
    let run = with_every_checkpoint(workbench.begin("run")?);
    run.run(&["--steps", "20"])?.expect_code(0)?;
    let newest = run.newest_checkpoint()?;
    ensure!(newest.step == 20);
    newest.damage()?;
    let finished = run.run(&[])?.expect_code(0)?;
    ensure!(finished.stderr.contains("step-00000020") && finished.stderr.contains("passed over"), "{}", finished.stderr);
    let resumed = run.events()?.iter().rev().find(|event| event["event"] == "started").context("no start")?["completed_steps"].clone();
    ensure!(resumed == 15, "went on from step {resumed}");
    ensure!(run.hash()? == hash && run.ledger()? == ledger);
    Ok(())
}

#[test]
fn without_any_usable_checkpoint_the_run_is_not_started_over() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let check = |name: &str, spoil: &dyn Fn(&Run) -> Result<()>, expected: &str| -> Result<()> {
        let run = workbench.begin(name)?;
        run.run(&["--steps", "5"])?.expect_code(0)?;
        spoil(&run)?;
        let metrics = fs::read(run.folder.join("metrics.jsonl"))?;
        let finished = run.run(&[])?.expect_code(PERMANENT)?;
        ensure!(finished.stderr.contains(expected), "{name}: {}", finished.stderr);
        ensure!(fs::read(run.folder.join("metrics.jsonl"))? == metrics, "{name}: the metrics were touched");
        // Said explicitly it is.
        run.run(&["--fresh"])?.expect_code(PERMANENT)?;
        run.run(&["--fresh", "--delete-existing", "--steps", "5"])?.expect_code(0)?;
        Ok(())
    };
    check("damaged", &|run| run.newest_checkpoint()?.damage(), "every checkpoint")?;
    check("no-manifest", &|run| Ok(fs::remove_file(run.newest_checkpoint()?.path.join("manifest.json"))?), "of step 5 was completed")?;
    check("removed", &|run| Ok(fs::remove_dir_all(run.newest_checkpoint()?.path)?), "of step 5 was completed")
}

#[test]
fn what_must_not_change_is_refused_by_name_and_what_may_change_is_accepted() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let other = Workbench::new(&[])?;
    lcl_tests::data::write_shard(&other.shard(), 46, &[])?;
    let run = workbench.begin("run")?;
    run.run(&["--steps", "10"])?.expect_code(0)?;
    let check = |change: &dyn Fn(&mut Run), field: &str| -> Result<()> {
        let mut changed = run.clone();
        change(&mut changed);
        let finished = changed.run(&[])?.expect_code(PERMANENT)?;
        ensure!(finished.stderr.contains(field), "{field} is not named: {}", finished.stderr);
        Ok(())
    };
    check(&|run| run.config.optimization.seed = 12, "spec.optimization.seed is 12")?;
    check(&|run| run.config.optimization.global_batch_size = 9, "optimization.globalBatchSize is 9")?;
    check(&|run| run.config.model.shape.vision.layers = 3, "model.shape.vision.layers is 3")?;
    let shard = other.shard().display().to_string();
    check(
        &|run| run.config.data.source = lcl_trainer_config::DataSource::webdataset(vec![shard.clone()]),
        "spec.data.webdataset.shards names other data than the checkpoint was trained with: there are 46 samples, and were 45",
    )?;
    let mut changed = run.clone();
    changed.config.optimization.learning_rate = 1e-4;
    changed.config.optimization.schedule = Schedule::Cosine { warmup_steps: Some(2) };
    changed.config.optimization.micro_batch_size = Some(3);
    changed.config.checkpoint.keep_last = 1;
    changed.config.data.threads = 2;
    changed.run(&["--steps", "15"])?.expect_code(0)?;
    ensure!(changed.ledger()?.len() == 15);
    // Through already: nothing is left to do, and that is no failure.
    changed.run(&["--steps", "15"])?.expect_code(0)?;
    ensure!(changed.ledger()?.len() == 15);
    Ok(())
}

#[test]
fn a_warm_up_that_nobody_gave_stays_when_steps_are_raised_and_one_that_is_given_goes_before_it() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let mut run = workbench.begin("run")?;
    run.config.optimization.schedule = Schedule::Cosine { warmup_steps: None };
    let warmups = |run: &Run| -> Result<Vec<Value>> {
        let events = run.events()?;
        Ok(events.iter().filter(|event| event["event"] == "started").map(|event| event["warmup_steps"].clone()).collect())
    };
    run.run(&["--steps", "20"])?.expect_code(0)?;
    run.run(&["--steps", "40"])?.expect_code(0)?;
    ensure!(warmups(&run)? == [2, 2], "{:?}", warmups(&run)?);
    for line in run.steps()? {
        let step = line["step"].as_f64().context("no step")?;
        let steps = if step < 20.0 { 20.0 } else { 40.0 };
        let factor =
            if step < 2.0 { f64::midpoint(step, 1.0) } else { 0.5 * (1.0 + (std::f64::consts::PI * (step - 2.0) / (steps - 2.0)).cos()) };
        let (expected, rate) = (run.config.optimization.learning_rate * factor, line["learning_rate"].as_f64().context("no rate")?);
        ensure!((rate - expected).abs() < 1e-12, "step {step}: {rate} instead of {expected}");
    }
    run.config.optimization.schedule = Schedule::Cosine { warmup_steps: Some(42) };
    let refused = run.run(&["--steps", "41"])?.expect_code(PERMANENT)?;
    ensure!(refused.stderr.contains("optimization.schedule.cosine.warmupSteps is 42"), "{}", refused.stderr);
    run.run(&["--steps", "45"])?.expect_code(0)?;
    ensure!(warmups(&run)? == [2, 2, 42], "{:?}", warmups(&run)?);
    Ok(())
}

#[test]
fn micro_batches_change_the_cost_and_not_the_result() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let losses = |name: &str, cap| -> Result<Vec<f64>> {
        let mut run = workbench.begin(name)?;
        run.config.optimization.micro_batch_size = cap;
        run.run(&["--steps", "6"])?.expect_code(0)?;
        Ok(run.steps()?.iter().filter_map(|step| step["loss"].as_f64()).collect())
    };
    let (whole, cut) = (losses("whole", None)?, losses("cut", Some(3))?);
    ensure!(whole.len() == 6 && cut.len() == 6);
    for (whole, cut) in whole.iter().zip(&cut) {
        ensure!((whole - cut).abs() < 1e-4, "{whole} and {cut}");
    }
    Ok(())
}

#[test]
fn a_full_disk_does_not_stop_training_and_what_was_saved_stays_usable() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let (hash, ledger) = undisturbed(&workbench, "undisturbed")?;
    let run = with_every_checkpoint(workbench.begin("run")?);
    run.run(&["--steps", "10"])?.expect_code(0)?;
    // Lines of metrics fit, a checkpoint of some 19 MB does not.
    let limited = |steps: &str| process::start_with_file_limit(run.arguments(&["--steps", steps])?, 1 << 20);
    let finished = limited("25")?.wait()?.expect_code(RETRYABLE)?;
    ensure!(finished.stderr.contains("checkpoint not written") && finished.stderr.contains("last checkpoint"), "{}", finished.stderr);
    ensure!(run.steps()?.len() == 25, "training did not go on");
    let failures = run.events()?.iter().filter(|event| event["event"] == "checkpoint_failed").count();
    ensure!(failures == 3, "{failures} failures recorded, of the checkpoints at 15, 20 and 25");
    ensure!(run.newest_checkpoint()?.step == 10);

    ensure!(run.complete(&[])? == hash && run.ledger()? == ledger);

    // Room is made while it trains: the next checkpoint is written.
    let running = limited("100000")?;
    let since_then = |event: &str| -> Result<Option<()>> {
        Ok(run.events()?.iter().any(|line| line["event"] == event && line["completed_steps"].as_u64() > Some(40)).then_some(()))
    };
    await_condition("a failed checkpoint", || since_then("checkpoint_failed"))?;
    running.allow_file_size()?;
    await_condition("a checkpoint", || since_then("checkpoint_committed"))?;
    running.signal(Signal::TERM)?;
    running.wait()?.expect_code(PREEMPTED)?;
    ensure!(run.newest_checkpoint()?.step == run.steps()?.len() as u64);
    run.ledger()?;
    Ok(())
}

#[test]
fn a_second_process_is_kept_out_of_a_run() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let mut run = workbench.begin("run")?;
    run.config.optimization.steps = 100_000;
    let running = run.start(&[])?;
    await_condition("a step", || has_steps(&run, 1))?;
    let finished = run.run(&[])?.expect_code(RETRYABLE)?;
    ensure!(finished.stderr.contains("another process trains in"), "{}", finished.stderr);
    running.kill()?;
    Ok(())
}

#[test]
fn resume_is_refused_where_nothing_is_and_fresh_where_something_is() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let run = workbench.begin("run")?;
    let finished = run.run(&["--resume"])?.expect_code(PERMANENT)?;
    ensure!(finished.stderr.contains("holds no complete checkpoint"), "{}", finished.stderr);
    run.run(&["--fresh", "--steps", "5"])?.expect_code(0)?;
    let finished = run.run(&["--fresh", "--steps", "5"])?.expect_code(PERMANENT)?;
    ensure!(finished.stderr.contains("--delete-existing"), "{}", finished.stderr);
    Ok(())
}
