//! Checkpoints of a group: every member writes its part, one commits, and members come and go meanwhile.

#[path = "support/member.rs"]
mod support;
#[path = "checkpoints/volumes.rs"]
mod volumes;

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use lcl_checkpoint::{CheckpointStore, StoreOptions, restore_latest};
use lcl_tests::{
    coordinator::Coordinator,
    process::{self, Running, await_condition},
    run::{Run, Workbench},
    s3,
};
use lcl_trainer_config::{DataSource, ExactConfig};

fn member(run: &Run, coordinator: &Coordinator, worker: &str, fault: Option<(&str, &Path)>) -> Result<Running> {
    process::start_command(support::command(run, coordinator, worker, fault)?)
}

fn store(run: &Run) -> Result<CheckpointStore> {
    Ok(CheckpointStore::open(&run.config.checkpoint.uri, StoreOptions { fsync: false, create: true })?)
}

/// The newest checkpoint's step. Fails when anything that looks complete is not.
fn newest(run: &Run) -> Result<Option<u64>> {
    let Some(restored) = restore_latest(&store(run)?, None)? else { return Ok(None) };
    ensure!(restored.rejected.iter().all(|rejected| !rejected.complete), "{:?}", restored.rejected);
    Ok(Some(restored.id.step))
}

/// Shards of the newest checkpoint.
fn shards(run: &Run) -> Result<usize> {
    let files = fs::read_dir(run.newest_checkpoint()?.path)?;
    Ok(files.filter_map(Result::ok).filter(|file| file.path().extension().is_some_and(|end| end == "safetensors")).count())
}

/// A checkpoint is due after every step, far more often than one can be written: the members have to agree each time on whether to take it,
/// or they would wait for parts that nobody writes.
#[test]
fn members_that_are_asked_for_more_checkpoints_than_they_can_write_leave_out_the_same_ones() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let (alone, mut run) = (workbench.alone(40)?, workbench.begin("often")?);
    run.config.checkpoint.every_steps = 1;
    let coordinator = Coordinator::start(3, 3)?;
    let members: Vec<Running> = ["a", "b", "c"].iter().map(|name| member(&run, &coordinator, name, None)).collect::<Result<_>>()?;
    for running in members {
        running.wait()?.expect_code(0)?;
    }
    run.expect_same_work(&alone)?;
    let count = |kind: &str| -> Result<usize> { Ok(run.events()?.iter().filter(|event| event["event"] == kind).count()) };
    ensure!(count("checkpoint_failed")? == 0, "{:?}", run.events()?);
    ensure!(count("checkpoint_committed")? >= 2 && newest(&run)? == Some(40) && shards(&run)? == 3);
    Ok(())
}

/// Ranks are in the order of nodes, so `a` commits.
fn check_kill(workbench: &Workbench, alone: &Run, victim: &str, point: &str) -> Result<()> {
    let run = workbench.begin(&format!("{victim}-{point}"))?;
    let (coordinator, hits, fault) = (Coordinator::start(2, 3)?, tempfile::tempdir()?, format!("{point}@time=2:kill"));
    let mut members = Vec::new();
    for name in ["a", "b", "c"] {
        members.push((name, member(&run, &coordinator, name, (name == victim).then_some((fault.as_str(), hits.path())))?));
    }
    let index = members.iter().position(|(name, _)| *name == victim).context("no victim")?;
    let (_, mut doomed) = members.remove(index);
    await_condition("the death of the victim", || {
        newest(&run)?;
        Ok(doomed.has_ended()?.then_some(()))
    })?;
    let before = newest(&run)?.context("the checkpoint before is gone")?;
    ensure!(before >= 5, "the newest checkpoint is that of step {before}");
    let signal = doomed.wait()?.code();
    ensure!(signal.is_err(), "the victim ended by itself: {signal:?}");
    members.push((victim, member(&run, &coordinator, victim, None)?));
    for (name, running) in members {
        let finished = running.wait()?.expect_code(0).with_context(|| name.to_owned())?;
        ensure!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
    }
    run.expect_same_work(alone)?;
    ensure!(newest(&run)? == Some(40));
    // Nothing of what was cut off is left, and what is there is whole.
    for entry in store(&run)?.list()? {
        ensure!(entry.complete, "{} was left behind", entry.id);
        store(&run)?.verify(entry.id)?;
    }
    let failed = run.events()?.iter().filter(|event| event["event"] == "checkpoint_failed").count();
    ensure!(victim == "a" || failed >= 1, "the checkpoint that was cut off is not reported: {:?}", run.events()?);
    Ok(())
}

#[test]
fn a_member_killed_while_a_checkpoint_is_written_leaves_no_half_of_it_and_the_run_completes() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let alone = workbench.alone(40)?;
    for (victim, point) in [("a", "manifest"), ("a", "shard"), ("c", "shard")] {
        check_kill(&workbench, &alone, victim, point).with_context(|| format!("{victim} at {point}"))?;
    }
    Ok(())
}

#[test]
fn a_run_restored_by_any_number_of_members_ends_with_the_bits_of_an_undisturbed_one() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let begin = |name: &str| -> Result<Run> {
        let mut run = workbench.begin(name)?;
        run.config.optimization.steps = 100;
        run.config.optimization.global_batch_size = 16;
        run.config.optimization.exact = Some(ExactConfig { virtual_shards: 8, threads: 1, verify_every_steps: None });
        Ok(run)
    };
    let (alone, run) = (begin("alone")?, begin("moved")?);
    let expected = alone.complete(&[])?;
    let mut saved = 0;
    for (epoch, world) in [(1, 3_u32), (2, 1), (3, 2)] {
        let coordinator = Coordinator::start_at("127.0.0.1:0", epoch, world, world)?;
        let names = ["a", "b", "c"].into_iter().take(world as usize);
        let members: Vec<Running> = names.map(|name| member(&run, &coordinator, name, None)).collect::<Result<_>>()?;
        await_condition("two further checkpoints", || {
            Ok(run.newest_checkpoint().ok().is_some_and(|checkpoint| checkpoint.step >= saved + 10).then_some(()))
        })?;
        // All at once, so that nobody holds the state any more.
        members.into_iter().try_for_each(|member| member.kill().map(drop))?;
        coordinator.kill()?;
        saved = newest(&run)?.context("no checkpoint")?;
        ensure!(shards(&run)? == world as usize, "{} shards of {world} members", shards(&run)?);
    }
    ensure!(saved < 100, "nothing is left for the last one");
    ensure!(run.complete(&[])? == expected, "{} instead of {expected}", run.hash()?);
    ensure!(shards(&run)? == 1);
    for (step, (got, wanted)) in run.ledger()?.iter().zip(alone.ledger()?).enumerate() {
        ensure!(*got == wanted, "step {step} is {got}, and undisturbed {wanted}");
    }
    Ok(())
}

/// Nobody shares a folder. Whoever leads next reads the ledger from the store; the lines since the last upload it has itself, or had them
/// with the state from a member that was there. The data come out of a bucket as well, through a cache that both members share.
#[test]
fn the_ledger_of_a_run_on_an_object_store_is_whole_though_one_that_comes_later_leads() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let (alone, mut run, server) = (workbench.alone(40)?, workbench.begin("elsewhere")?, s3::Server::start()?);
    run.config.checkpoint.uri = s3::Server::uri("elsewhere");
    // None before the last step: no checkpoint takes the ledger along.
    run.config.checkpoint.every_steps = 1000;
    run.folder = server.objects("elsewhere");
    server.put("data/data.tar", fs::read(workbench.shard())?)?;
    run.config.data.source = DataSource::webdataset(vec![format!("{}/data.tar", s3::Server::uri("data"))]);
    run.config.data.cache.path = Some(workbench.path("cache").display().to_string());
    let coordinator = Coordinator::start(2, 2)?;
    let start = |worker: &str, fault: Option<(&str, &Path)>| -> Result<Running> {
        let mut command = support::command(&run, &coordinator, worker, fault)?;
        command.envs(server.environment());
        process::start_command(command)
    };
    let hits = tempfile::tempdir()?;
    // Ranks are in the order of nodes: `a` leads, whichever process that is.
    let (mut leader, follower) = (start("a", Some(("data@step=20:kill", hits.path())))?, start("b", None)?);
    await_condition("the leader's death", || Ok(leader.has_ended()?.then_some(())))?;
    let next = start("a", None)?;
    for member in [follower, next] {
        member.wait()?.expect_code(0)?;
    }
    run.expect_same_work(&alone)?;
    let events = fs::read_dir(&run.folder)?.filter_map(Result::ok).filter(|file| file.file_name().to_string_lossy().starts_with("events."));
    ensure!(events.count() >= 1 && run.newest_checkpoint()?.step == 40);
    Ok(())
}
