//! Runs on volumes as they are found: what happens at the start, at a checkpoint and at the end. `docs/operations.md` says the same in words.

use std::process::Command;

use anyhow::{Result, ensure};
use lcl_tests::{
    coordinator::Coordinator,
    process::{self, Running, await_condition},
    run::{Run, Workbench},
    volume::{CHANGES, Call, GROWS, Volume},
};
use lcl_trainer_config::ExitCode;
use rustix::{io::Errno, process::Signal};

/// Steps of a run that goes on until it is stopped.
const ENDLESS: &str = "1000000";

/// Starts a command of the trainer on the volume.
fn start(run: &Run, volume: &Volume, command: &str, more: &[&str]) -> Result<Running> {
    let mut trainer = Command::new(process::trainer()?);
    trainer.args(run.arguments_of(command, &[&["--output", "json"], more].concat())?);
    volume.mount(&mut trainer);
    process::start_command(trainer)
}

/// As soon as the process has shown this many further steps.
fn await_steps(running: &Running, further: usize) -> Result<()> {
    let shown = || -> Result<usize> { Ok(running.stdout()?.matches(r#""event":"step""#).count()) };
    let wanted = shown()? + further;
    await_condition("further steps", || Ok((shown()? >= wanted).then_some(())))
}

#[test]
fn a_job_needs_neither_hard_links_nor_locks_nor_sockets_nor_flushing() -> Result<()> {
    process::coordinator()?;
    let workbench = Workbench::new(&[])?;
    let (alone, run) = (workbench.alone(40)?, workbench.begin("bucket")?);
    let volume = Volume::new(&run.folder)?;
    for (call, error) in [
        (Call::Link, Errno::NOSYS),
        (Call::RenameNew, Errno::INVAL),
        (Call::Lock, Errno::NOLCK),
        (Call::Bind, Errno::PERM),
        (Call::Sync, Errno::INVAL),
    ] {
        volume.fail(&[call], error, None)?;
    }
    let finished = start(&run, &volume, "local", &["--workers", "2"])?.wait()?.expect_code(0)?;
    for words in ["this volume has no locks", "cannot be asked for its status", "does not say when data is on stable storage"] {
        ensure!(finished.stderr.contains(words), "{words} is not in: {}", finished.stderr);
    }
    run.expect_same_work(&alone)?;
    ensure!(run.newest_checkpoint()?.step == 40);
    for call in [Call::Link, Call::RenameNew, Call::Lock, Call::Bind, Call::Sync] {
        ensure!(volume.met(call)? > 0, "{call:?} was not met");
    }
    Ok(())
}

#[test]
fn a_volume_that_can_hold_no_run_is_refused_once_at_the_start_with_its_name_and_the_reason() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let run = workbench.begin("refused")?;
    let (volume, coordinator) = (Volume::new(&run.folder)?, Coordinator::start(1, 1)?);
    let (address, log) = (coordinator.address().to_string(), workbench.path("termination-log").display().to_string());
    std::fs::write(&log, "")?;
    let worker = ["--insecure", "--coordinator", &address, "--worker", "w-0", "--node", "n", "--termination-log", &log];
    let check = |command: &str, more: &[&str], code: ExitCode, words: &[&str]| -> Result<()> {
        let finished = start(&run, &volume, command, more)?.wait()?.expect_code(code.code())?;
        for words in words.iter().chain(&["the volume /", &run.folder.display().to_string()]) {
            ensure!(finished.stderr.contains(words), "{command}: {words} is not in: {}", finished.stderr);
        }
        ensure!(!finished.stderr.contains("started again"), "{command}: {}", finished.stderr);
        ensure!(run.steps()?.is_empty());
        Ok(())
    };
    volume.fail(&CHANGES, Errno::ROFS, None)?;
    for (command, more) in [("train", &[][..]), ("local", &["--workers", "2"]), ("worker", &worker)] {
        check(command, more, ExitCode::Permanent, &["Read-only file system", "mount it writable"])?;
    }
    let cause = std::fs::read_to_string(&log)?;
    ensure!(cause.contains("Read-only file system") && cause.lines().count() == 1, "{cause}");
    volume.heal()?;
    // A bucket that is mounted without renaming: no file of a run can be replaced there.
    volume.fail(&[Call::Link, Call::Rename, Call::RenameNew], Errno::NOSYS, None)?;
    check("train", &[], ExitCode::Permanent, &["does not let this program rename a file", "s3://"])?;
    volume.heal()?;
    volume.fail(&[Call::Room], Errno::NOSPC, None)?;
    check("train", &[], ExitCode::Retryable, &["has 0 MB free where a checkpoint in", "make room"])
}

/// Training goes on; what cannot be written is told, and nothing that was saved is lost.
#[test]
fn a_volume_that_is_full_or_turns_read_only_costs_what_came_after_the_last_checkpoint_and_nothing_more() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    for (name, calls, error, again, words) in [
        ("full", &GROWS[..], Errno::NOSPC, ExitCode::Retryable, "No space left on device"),
        ("read-only", &CHANGES[..], Errno::ROFS, ExitCode::Permanent, "Read-only file system"),
    ] {
        let run = workbench.begin(name)?;
        let volume = Volume::new(&run.folder)?;
        let running = start(&run, &volume, "train", &["--steps", ENDLESS])?;
        await_condition("a checkpoint", || Ok(run.newest_checkpoint().ok()))?;
        volume.fail(calls, error, None)?;
        await_condition("a checkpoint that fails", || Ok(running.stderr()?.contains("checkpoint not written").then_some(())))?;
        await_steps(&running, 10)?;
        running.signal(Signal::TERM)?;
        let finished = running.wait()?.expect_code(ExitCode::Retryable.code())?;
        let last = finished.stderr.lines().last().unwrap_or_default();
        ensure!(last.contains("the last checkpoint, of step") && last.contains(words), "{}", finished.stderr);
        // Said once, not at every step.
        ensure!(finished.stderr.matches("metrics wait in memory").count() == 1, "{}", finished.stderr);
        let saved = run.newest_checkpoint()?.step;

        let finished = start(&run, &volume, "train", &[])?.wait()?.expect_code(again.code())?;
        ensure!(finished.stderr.contains(words), "{}", finished.stderr);
        ensure!(run.newest_checkpoint()?.step == saved);

        volume.heal()?;
        let steps = (saved + 10).to_string();
        let finished = start(&run, &volume, "train", &["--resume", "--steps", &steps])?.wait()?.expect_code(0)?;
        ensure!(finished.stderr.contains("state restored"), "{}", finished.stderr);
        ensure!(run.ledger()?.len() as u64 == saved + 10 && run.newest_checkpoint()?.step == saved + 10);
    }
    Ok(())
}

#[test]
fn a_volume_that_is_away_for_a_while_costs_neither_a_step_nor_a_checkpoint_nor_a_line() -> Result<()> {
    process::coordinator()?;
    let workbench = Workbench::new(&[])?;
    for (command, more, error) in [("train", &[][..], Errno::STALE), ("local", &["--workers", "2"], Errno::IO)] {
        let run = workbench.begin(command)?;
        let volume = Volume::new(&run.folder)?;
        let running = start(&run, &volume, command, &[&["--steps", ENDLESS], more].concat())?;
        await_condition("a checkpoint", || Ok(run.newest_checkpoint().ok()))?;
        let saved = run.newest_checkpoint()?.step;
        // Whatever is called.
        volume.fail(&[Call::Any], error, Some(60))?;
        await_condition("the volume's return", || Ok((volume.met(Call::Any)? == 60).then_some(())))?;
        await_condition("another checkpoint", || Ok((run.newest_checkpoint()?.step > saved + 10).then_some(())))?;
        running.signal(Signal::TERM)?;
        let finished = running.wait()?.expect_code(ExitCode::Preempted.code())?;
        for words in ["checkpoint not written", "it is started again", "group failed"] {
            ensure!(!finished.stderr.contains(words), "{command}: {}", finished.stderr);
        }
        ensure!(finished.stderr.contains("metrics are written again"), "{command}: {}", finished.stderr);
        ensure!(run.ledger()?.len() as u64 == run.newest_checkpoint()?.step, "{command}: {:?}", run.newest_checkpoint()?);
    }
    Ok(())
}

/// Once who came to lead while the volume was away ended after a minute, and then the next one.
#[test]
fn a_leader_that_is_lost_while_the_volume_is_away_has_a_successor_that_trains_on() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let mut run = workbench.begin("led")?;
    run.config.checkpoint.every_steps = 1_000_000;
    let (volume, coordinator) = (Volume::new(&run.folder)?, Coordinator::start(1, 2)?);
    let member = |worker: &str| -> Result<Running> {
        let address = coordinator.address().to_string();
        start(&run, &volume, "member", &["--insecure", "--coordinator", &address, "--worker", worker, "--node", worker, "--steps", ENDLESS])
    };
    let (leads, follows) = (member("a")?, member("b")?);
    await_steps(&leads, 10)?;
    volume.fail(&[Call::Any], Errno::IO, None)?;
    leads.kill()?;
    await_steps(&follows, 30)?;
    ensure!(follows.stderr()?.contains("metrics wait in memory"), "{}", follows.stderr()?);
    let steps = run.steps()?.len();
    volume.heal()?;
    await_condition("the steps that waited", || run.has_steps(steps + 30))?;
    follows.signal(Signal::TERM)?;
    follows.wait()?.expect_code(ExitCode::Preempted.code())?;
    ensure!(run.ledger()?.len() as u64 == run.newest_checkpoint()?.step, "{:?}", run.newest_checkpoint()?);
    Ok(())
}

/// Once a checkpoint that was not given out was taken for a damaged one, and the run ended for good.
#[test]
fn a_volume_that_does_not_answer_at_the_start_is_another_tries_matter_and_nothing_is_taken_for_lost() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let mut run = workbench.begin("away")?;
    run.config.checkpoint.keep_last = 1;
    let whole = Volume::new(&run.folder)?;
    start(&run, &whole, "train", &["--steps", "10"])?.wait()?.expect_code(0)?;
    let check = |volume: &Volume, call: Call, words: &str| -> Result<()> {
        volume.fail(&[call], Errno::IO, None)?;
        let mut trainer = Command::new(process::trainer()?);
        trainer.args(run.arguments(&[])?).env("LCL_VOLUME_PATIENCE", "0.2");
        volume.mount(&mut trainer);
        let finished = process::start_command(trainer)?.wait()?.expect_code(ExitCode::Retryable.code())?;
        ensure!(finished.stderr.contains(words) && finished.stderr.contains("Input/output error"), "{}", finished.stderr);
        volume.heal()
    };
    check(&whole, Call::Any, "does not answer")?;
    check(&Volume::new(&run.newest_checkpoint()?.path)?, Call::OpenToRead, "what it holds may be sound")?;
    let finished = start(&run, &whole, "train", &["--resume"])?.wait()?.expect_code(0)?;
    ensure!(finished.stderr.contains("step-00000010"), "{}", finished.stderr);
    ensure!(run.ledger()?.len() == 40);
    Ok(())
}
