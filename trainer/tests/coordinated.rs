//! Real members and the word of their coordinator: whom it evicts, whom it lets in, and what it is asked for by commands.

#[path = "support/asked.rs"]
mod asked;
#[path = "support/member.rs"]
mod support;

use std::{fs, path::Path};

use anyhow::{Result, bail, ensure};
use asked::Asked;
use lcl_proto::v1alpha1::{command_request as request, command_response::Accepted};
use lcl_protocol::{EndReason, HistoryEvent, LossCause, Phase};
use lcl_tests::{
    coordinator::Coordinator,
    hanging_store::{HangingStore, Hangs},
    process::{self, Running, await_condition},
    run::{Run, Workbench},
};
use lcl_trainer_config::{ExactConfig, ExitCode};
use rustix::process::Signal;

/// Longer than a step on a busy machine.
const IMPATIENT: [&str; 5] = ["--insecure", "--listen", "127.0.0.1:0", "--stall-timeout", "3"];

fn member(run: &Run, coordinator: &Coordinator, worker: &str, fault: Option<(&str, &Path)>) -> Result<Running> {
    process::start_command(support::command(run, coordinator, worker, fault)?)
}

/// The workers of lost members, and by which sign each was lost.
fn losses(asked: &mut Asked) -> Result<Vec<(String, LossCause)>> {
    let lost = asked.history()?.into_iter().filter_map(|event| match event {
        HistoryEvent::Lost { member, cause, .. } => Some((member.worker, cause)),
        _ => None,
    });
    Ok(lost.collect())
}

/// The workers of members that attached.
fn joined(asked: &mut Asked) -> Result<Vec<String>> {
    let joined = asked.history()?.into_iter().filter_map(|event| match event {
        HistoryEvent::Joined { member } => Some(member.worker),
        _ => None,
    });
    Ok(joined.collect())
}

#[test]
fn a_member_that_stands_still_is_evicted_as_stalled_and_the_others_complete_the_job() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let (alone, run, hits) = (workbench.alone(40)?, workbench.begin("stalled")?, tempfile::tempdir()?);
    let coordinator = Coordinator::start_with(2, 3, &IMPATIENT)?;
    let mut asked = Asked::connect(coordinator.address())?;
    // The process lives and sends heartbeats; only its training thread does not go on.
    let mut held = member(&run, &coordinator, "c", Some(("data@step=5:hold", hits.path())))?;
    for other in [member(&run, &coordinator, "a", None)?, member(&run, &coordinator, "b", None)?] {
        let finished = other.wait()?.expect_code(0)?;
        ensure!(finished.stderr.contains("its training thread has stood still for 3s"), "{}", finished.stderr);
    }
    ensure!(hits.path().join("0").exists() && !held.has_ended()?);
    ensure!(losses(&mut asked)? == [("c".to_owned(), LossCause::Stalled)], "{:?}", asked.history()?);
    run.expect_same_work(&alone)?;
    // It comes back to a job that is complete.
    fs::write(hits.path().join("0.go"), "")?;
    held.wait()?.expect_code(0)?;
    Ok(())
}

#[test]
fn a_member_whose_operation_outlives_the_abort_of_its_group_starts_itself_anew_and_gets_the_state_from_another() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let (alone, run, hits) = (workbench.alone(40)?, workbench.begin("anew")?, tempfile::tempdir()?);
    let coordinator = Coordinator::start_with(2, 2, &IMPATIENT)?;
    // Inside the sum of gradients, where no abort reaches it. Nobody ever lets it go on.
    let held = member(&run, &coordinator, "b", Some(("bucket@step=5:hold", hits.path())))?;
    let stays = member(&run, &coordinator, "a", None)?.wait()?.expect_code(0)?;
    // One process from beginning to end.
    let anew = held.wait()?.expect_code(0)?;
    ensure!(anew.stderr.contains("this process starts anew") && anew.stderr.contains("state received"), "{}", anew.stderr);
    ensure!(stays.stderr.contains("state sent"), "{}", stays.stderr);
    let joined = joined(&mut Asked::connect(coordinator.address())?)?;
    ensure!(joined.iter().filter(|worker| *worker == "b").count() == 2, "{joined:?}");
    run.expect_same_work(&alone)
}

/// In exact mode the bits of the end are those of a run in which nothing happened.
#[test]
fn a_member_whose_memory_has_flipped_a_bit_is_found_named_and_gets_the_state_of_the_others() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let exact = ExactConfig { virtual_shards: 8, threads: 1, verify_every_steps: None };
    let mut undisturbed = workbench.begin("undisturbed")?;
    let mut run = workbench.begin("flipped")?;
    for run in [&mut undisturbed, &mut run] {
        run.config.optimization.exact = Some(exact);
        // Before every checkpoint can become visible states are compared.
        run.config.checkpoint.every_steps = 5;
    }
    undisturbed.complete(&[])?;
    let (coordinator, hits) = (Coordinator::start(3, 3)?, tempfile::tempdir()?);
    let mut asked = Asked::connect(coordinator.address())?;
    let faulty = member(&run, &coordinator, "b", Some(("data@step=10:flip", hits.path())))?;
    let others = [member(&run, &coordinator, "a", None)?, member(&run, &coordinator, "c", None)?];
    for other in others {
        let finished = other.wait()?.expect_code(0)?;
        ensure!(!finished.stderr.contains("is not that of the others"), "{}", finished.stderr);
    }
    let healed = faulty.wait()?.expect_code(0)?;
    ensure!(
        healed.stderr.contains("is not that of the others: it gets theirs") && healed.stderr.contains("state received"),
        "{}",
        healed.stderr
    );
    let broken: Vec<String> = asked
        .history()?
        .into_iter()
        .filter_map(|event| match event {
            HistoryEvent::Broken { reason, .. } => Some(reason),
            _ => None,
        })
        .collect();
    let [reason] = broken.as_slice() else { bail!("{broken:?}") };
    ensure!(reason.contains("after 10 steps") && reason.contains("(the state of b/0 on node b differs)"), "{reason}");
    ensure!(run.hash()? == undisturbed.hash()?);
    run.expect_same_work(&undisturbed)
}

#[test]
fn a_survivor_whose_data_hang_says_at_once_what_it_holds() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let store = HangingStore::start(&workbench.shard(), Hangs::AtParts)?;
    let mut run = workbench.begin("hangs")?;
    run.config.data = store.data(&run.config.data, &workbench.path("store"));
    let coordinator = Coordinator::start(1, 2)?;
    let mut asked = Asked::connect(coordinator.address())?;
    let (stays, lost) = (member(&run, &coordinator, "a", None)?, member(&run, &coordinator, "b", None)?);
    await_condition("a request that hangs", || Ok(store.hangs().then_some(())))?;
    await_condition("a group of two", || {
        Ok((asked.status()?.members.iter().filter(|member| member.rank.is_some()).count() == 2).then_some(()))
    })?;
    lost.kill()?;
    let mut worlds = || -> Result<Vec<u32>> {
        let formed = asked.history()?.into_iter().filter_map(|event| match event {
            HistoryEvent::Formed { world, .. } => Some(world),
            _ => None,
        });
        Ok(formed.collect())
    };
    await_condition("a group without the lost one", || Ok((worlds()? == [2, 1]).then_some(())))?;
    ensure!(losses(&mut asked)? == [("b".to_owned(), LossCause::StreamClosed)], "{:?}", asked.history()?);
    stays.signal(Signal::TERM)?;
    stays.wait()?.expect_code(ExitCode::Preempted.code())?;
    Ok(())
}

#[test]
fn a_member_that_cannot_prepare_ends_for_good_before_the_coordinator_hears_of_it() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let (run, mut unprepared) = (workbench.begin("prepared")?, workbench.begin("unprepared")?);
    unprepared.config.data.source = lcl_trainer_config::DataSource::webdataset(vec!["/nowhere/data.tar".to_owned()]);
    let coordinator = Coordinator::start(1, 1)?;
    let mut asked = Asked::connect(coordinator.address())?;
    // The first that comes is let in whatever it brings along.
    let finished = member(&unprepared, &coordinator, "b", None)?.wait()?.expect_code(ExitCode::Permanent.code())?;
    ensure!(finished.stderr.contains("/nowhere/data.tar"), "{}", finished.stderr);
    ensure!(asked.history()?.is_empty(), "{:?}", asked.history()?);
    let trains = member(&run, &coordinator, "a", None)?;
    await_condition("a step", || run.has_steps(1))?;
    member(&unprepared, &coordinator, "b", None)?.wait()?.expect_code(ExitCode::Permanent.code())?;
    trains.wait()?.expect_code(0)?;
    ensure!(joined(&mut asked)? == ["a"], "{:?}", asked.history()?);
    Ok(())
}

#[test]
fn a_checkpoint_that_is_asked_for_is_written_once_while_training_goes_on_and_a_stop_ends_with_one_of_the_last_step() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let mut run = workbench.begin("asked")?;
    // Neither the end nor a checkpoint comes by itself.
    (run.config.optimization.steps, run.config.checkpoint.every_steps) = (100_000, 100_000);
    let coordinator = Coordinator::start(2, 2)?;
    let mut asked = Asked::connect(coordinator.address())?;
    let members = [member(&run, &coordinator, "a", None)?, member(&run, &coordinator, "b", None)?];
    await_condition("five steps", || Ok((asked.status()?.step >= 5).then_some(())))?;
    ensure!(run.checkpoints()?.is_empty());

    let checkpoint = |from| request::Command::Checkpoint(request::Checkpoint { from });
    let Accepted::Checkpoint(accepted) = asked.command(checkpoint(None))? else { anyhow::bail!("something else was accepted") };
    ensure!(accepted.from >= 5 && !accepted.is_committed, "{accepted:?}");
    let committed = await_condition("the checkpoint", || Ok(asked.status()?.saved_step()))?;
    ensure!(committed >= accepted.from, "{committed}");
    let Accepted::Checkpoint(again) = asked.command(checkpoint(Some(accepted.from)))? else { anyhow::bail!("something else was accepted") };
    ensure!(again.is_committed, "{again:?}");
    let steps = run.steps()?.len();
    await_condition("further steps", || run.has_steps(steps + 10))?;
    ensure!(run.checkpoints()?.iter().map(|found| (found.step, found.complete)).eq([(committed, true)]), "{:?}", run.checkpoints()?);

    asked.command(request::Command::Stop(request::Stop {}))?;
    for member in members {
        member.wait()?.expect_code(ExitCode::Preempted.code())?;
    }
    let (last, status) = (run.ledger()?.len() as u64, asked.status()?);
    ensure!((status.phase, status.step, status.saved_step()) == (Phase::Ended(EndReason::Stopped), last, Some(last)), "{status:?}");
    let found = run.checkpoints()?;
    ensure!(found.iter().map(|found| (found.step, found.complete)).eq([(last, true), (committed, true)]), "{found:?}");
    ensure!(run.steps()?.iter().all(|line| line["group"]["number"] == 1));
    Ok(())
}
