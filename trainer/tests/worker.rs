//! Workers as in pods: real processes of coordinator, workers and members.

#[path = "support/asked.rs"]
#[allow(dead_code, reason = "a part of it is for other tests")]
mod asked;

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use asked::Asked;
use lcl_protocol::HistoryEvent;
use lcl_tests::{
    coordinator::Coordinator,
    process::{self, Running, await_condition, descendants, exists, kill},
    run::{Run, Workbench},
};
use lcl_trainer::processes::fail_point;
use lcl_trainer_config::ExitCode;
use rustix::process::Signal;

fn worker(run: &Run, coordinator: &str, name: &str, more: &[&str]) -> Result<Running> {
    let place = ["--insecure", "--output", "json", "--coordinator", coordinator, "--worker", name, "--node", name];
    process::start(run.arguments_of("worker", &[&place, more].concat())?)
}

/// As [`worker`], with these faults among its members; `hits`: a folder for the record of them.
fn worker_with_faults(run: &Run, coordinator: &str, name: &str, faults: &str, hits: &Path) -> Result<Running> {
    let place = ["--insecure", "--output", "json", "--coordinator", coordinator, "--worker", name, "--node", name];
    let mut command = Command::new(process::trainer()?);
    command.args(run.arguments_of("worker", &place)?).env(fail_point::FAULTS, faults).env(fail_point::FOLDER, hits);
    process::start_command(command)
}

/// Ids of a worker's members.
fn members(worker: &Running) -> Result<Vec<u32>> {
    Ok(descendants(worker.id())?.into_iter().filter(|(_, words)| words.contains(" member ")).map(|(id, _)| id).collect())
}

#[test]
fn a_worker_keeps_its_members_alive_waits_for_orphans_and_tells_how_it_ended() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let (alone, run) = (workbench.alone(40)?, workbench.begin("worker")?);
    // Never one alone: it could complete the run before the other is back.
    // By IPv6, as in a cluster that has nothing else.
    let coordinator = Coordinator::start_at("[::1]:0", 1, 2, 2)?;
    let termination_log = workbench.path("termination-log");
    fs::write(&termination_log, "")?;
    // All by the environment, as in a pod; and with a child that it has not started, as process 1 of a container gets them.
    let mut command = Command::new("bash");
    command
        .args(["-c", "sleep 0.01 & exec \"$0\" worker --output json"])
        .arg(process::trainer()?)
        .envs([
            ("LCL_CONFIG", run.arguments(&[])?.pop().context("no configuration")?),
            ("LCL_COORDINATOR", coordinator.address().to_string()),
        ])
        .envs([("LCL_WORKER", "job-w-0"), ("LCL_MEMBERS_PER_WORKER", "2"), ("LCL_INSECURE", "true"), ("LCL_LOG_FORMAT", "json")])
        .envs([("LCL_NODE", "n1"), ("LCL_POD_IP", "::1"), ("LCL_DRAIN_TIMEOUT", "60")])
        .env("LCL_TERMINATION_LOG", &termination_log);
    let worker = process::start_command(command)?;
    await_condition("five steps of two members", || run.has_steps(5))?;
    let [_, second] = members(&worker)?[..] else { anyhow::bail!("{:?}", descendants(worker.id())?) };
    await_condition("the orphan's end", || Ok((descendants(worker.id())?.len() == 2).then_some(())))?;
    kill(second)?;
    let finished = worker.wait()?.expect_code(0)?;
    run.expect_same_work(&alone)?;
    ensure!(finished.stderr.contains("was killed by signal 9; it is started again"), "{}", finished.stderr);
    ensure!(finished.stderr.contains(r#"{"member":"job-w-0/1","timestamp""#), "{}", finished.stderr);
    ensure!(finished.stdout.lines().all(|line| line.starts_with(r#"{"member":"job-w-0/"#)), "{}", finished.stdout);
    // Rank and generation of each: of both before the kill, and of the second after it.
    let places = |member: u32| -> BTreeSet<&str> {
        let author = format!(r#"{{"member":"job-w-0/{member}","#);
        let lines = finished.stderr.lines().filter(|line| line.starts_with(&author));
        lines.filter_map(|line| line.rfind(r#""rank":"#).map(|place| &line[place..])).collect()
    };
    ensure!(places(0).contains(r#""rank":0,"group":"g000001-000001"}"#), "{:?}", places(0));
    let second = places(1);
    ensure!(second.len() >= 2 && second.iter().all(|place| place.starts_with(r#""rank":1,"group":"g000001-"#)), "{second:?}");
    ensure!(fs::read_to_string(&termination_log)? == "the job is complete\n");
    Ok(())
}

#[test]
fn sigterm_lets_a_worker_leave_in_order_and_the_others_go_on() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let (alone, run) = (workbench.alone(40)?, workbench.begin("drained")?);
    let coordinator = Coordinator::start(1, 3)?;
    let address = coordinator.address().to_string();
    let termination_log = workbench.path("termination-log");
    fs::write(&termination_log, "")?;
    let log = termination_log.display().to_string();
    let leaves = worker(&run, &address, "w-0", &["--members-per-worker", "2", "--termination-log", &log])?;
    let stays = worker(&run, &address, "w-1", &["--log-format", "json"])?;
    await_condition("five steps of three members", || run.has_steps(5))?;
    leaves.signal(Signal::TERM)?;
    leaves.wait()?.expect_code(ExitCode::Preempted.code())?;
    ensure!(fs::read_to_string(&log)? == "asked to end by a signal\n");
    let finished = stays.wait()?.expect_code(0)?;
    ensure!(finished.stderr.contains(r#"{"member":"w-1/0","timestamp""#), "members do not log as their worker: {}", finished.stderr);
    run.expect_same_work(&alone)
}

#[test]
fn of_two_workers_of_a_name_the_later_one_trains_and_the_other_ends_alone() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let (alone, run, hits) = (workbench.alone(40)?, workbench.begin("two-of-a-name")?, tempfile::tempdir()?);
    let coordinator = Coordinator::start(2, 2)?;
    let address = coordinator.address().to_string();
    let log = workbench.path("termination-log");
    fs::write(&log, "")?;
    // All wait for this one, so that the job is not over before the second worker is there.
    let held = worker_with_faults(&run, &address, "w-0", "data@step=5:hold", hits.path())?;
    let older = worker(&run, &address, "w-1", &["--termination-log", &log.display().to_string()])?;
    await_condition("a step that waits", || Ok(hits.path().join("0").exists().then_some(())))?;
    let newer = worker(&run, &address, "w-1", &[])?;
    older.wait()?.expect_code(ExitCode::Retryable.code())?;
    let cause = fs::read_to_string(&log)?;
    ensure!(cause.starts_with("w-1/0 ended: superseded (exit code 81): "), "{cause}");
    ensure!(cause.contains("a newer process of member w-1/0 (ticket 1-3, start 1) has attached"), "{cause}");
    fs::write(hits.path().join("0.go"), "")?;
    for worker in [held, newer] {
        worker.wait()?.expect_code(0)?;
    }
    run.expect_same_work(&alone)
}

#[test]
fn what_would_fail_again_ends_the_worker_with_its_cause() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let run = workbench.begin("no-data")?;
    fs::remove_file(workbench.shard())?;
    let log = workbench.path("termination-log");
    fs::write(&log, "")?;
    let (address, log) = (Coordinator::start(1, 1)?.address().to_string(), log.display().to_string());
    worker(&run, &address, "w-0", &["--termination-log", &log])?.wait()?.expect_code(ExitCode::Permanent.code())?;
    let cause = fs::read_to_string(&log)?;
    ensure!(cause.starts_with("w-0/0 ended: permanent failure (exit code 65): ") && cause.contains("data.tar"), "{cause}");
    ensure!(cause.lines().count() == 1, "{cause}");
    // Refused before a member is started.
    let arguments = ["worker", "--config", &run.arguments(&[])?[2], "--insecure", "--coordinator", &address, "--worker", "w"];
    fs::write(arguments[2], "{}")?;
    process::run([&arguments[..], &["--termination-log", &log]].concat())?.expect_code(ExitCode::Permanent.code())?;
    ensure!(fs::read_to_string(&log)?.contains("not as expected"), "{}", fs::read_to_string(&log)?);
    Ok(())
}

#[test]
fn a_worker_that_was_never_let_in_leaves_at_once_when_asked() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let run = workbench.begin("alone-in-the-world")?;
    // Nobody listens there.
    let worker = worker(&run, "127.0.0.1:9", "w-0", &[])?;
    await_condition("an attempt to attach", || Ok(worker.stderr()?.contains("cannot attach").then_some(())))?;
    worker.signal(Signal::TERM)?;
    worker.wait()?.expect_code(ExitCode::Preempted.code())?;
    Ok(())
}

#[test]
fn training_goes_on_without_a_coordinator_and_without_checkpoints_and_members_wait_for_the_first_one() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let (alone, mut run, hits) = (workbench.alone(160)?, workbench.begin("coordinators")?, tempfile::tempdir()?);
    run.config.optimization.steps = 160;
    // An address at which nobody listens so far.
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    // The group stands still while its coordinator is killed, and again until the next one leads it: which steps are whose is certain.
    let faults = "data@step=11:hold;data@step=36:hold";
    let start = |name| worker_with_faults(&run, &address, name, faults, hits.path());
    let workers = [start("w-0")?, start("w-1")?];
    for worker in &workers {
        await_condition("an attempt to attach", || Ok(worker.stderr()?.contains("cannot attach").then_some(())))?;
    }
    let is_held = |fault: &str| Ok(hits.path().join(fault).exists().then_some(()));
    let first = Coordinator::start_at(&address, 1, 2, 2)?;
    await_condition("eleven steps", || is_held("0"))?;
    let before = [members(&workers[0])?, members(&workers[1])?].concat();
    first.kill()?;
    fs::write(hits.path().join("0.go"), "")?;
    await_condition("25 steps without a coordinator", || is_held("1"))?;
    let written = |run: &Run| -> Result<BTreeSet<u64>> {
        Ok(run.checkpoints()?.iter().filter(|found| found.complete).map(|found| found.step).collect())
    };
    let saved = written(&run)?;
    ensure!(saved.iter().all(|step| *step <= 10), "committed without a coordinator: {saved:?}");
    let second = Coordinator::start_at(&address, 2, 2, 2)?;
    let mut asked = Asked::connect(second.address())?;
    let is_adopted = |event: &HistoryEvent| matches!(event, HistoryEvent::Adopted { .. });
    await_condition("the adoption of the group", || Ok(asked.history()?.iter().any(is_adopted).then_some(())))?;
    ensure!([members(&workers[0])?, members(&workers[1])?].concat() == before && before.len() == 2, "{before:?}");
    fs::write(hits.path().join("1.go"), "")?;
    for worker in workers {
        let finished = worker.wait()?.expect_code(0)?;
        ensure!(!finished.stderr.contains("it is started again"), "{}", finished.stderr);
    }
    drop(second);
    ensure!(before.iter().all(|member| !exists(*member)));
    let epochs: BTreeSet<String> = run.steps()?.iter().map(|line| line["group"].to_string()).collect();
    ensure!(epochs.len() == 1, "the group was interrupted: {epochs:?}");
    let events = run.events()?;
    let committed: Vec<u64> = events
        .iter()
        .filter(|event| event["event"] == "checkpoint_committed")
        .filter_map(|event| event["completed_steps"].as_u64())
        .collect();
    // On a busy disk it may be the last one alone.
    ensure!(committed.iter().any(|step| (36..=160).contains(step)), "none under the next coordinator: {events:?}");
    run.expect_same_work(&alone)
}

/// As when a job is deleted, and its coordinator's pod is the first to end: another one might follow, with which they could agree on a
/// checkpoint, so they wait for it as long as their pod allows, and no longer.
#[test]
fn workers_that_are_asked_to_end_after_their_coordinator_end_within_their_time() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let mut run = workbench.begin("coordinator-first")?;
    // Neither the end nor a checkpoint comes by itself.
    (run.config.optimization.steps, run.config.checkpoint.every_steps) = (100_000, 100_000);
    let coordinator = Coordinator::start(2, 2)?;
    let address = coordinator.address().to_string();
    let start = |name| worker(&run, &address, name, &["--drain-timeout", "2"]);
    let workers = [start("w-0")?, start("w-1")?];
    await_condition("five steps", || run.has_steps(5))?;
    let members = [members(&workers[0])?, members(&workers[1])?].concat();
    coordinator.kill()?;
    for worker in &workers {
        worker.signal(Signal::TERM)?;
    }
    for worker in workers {
        worker.wait()?.expect_code(ExitCode::Retryable.code())?;
    }
    ensure!(members.len() == 2 && !members.iter().any(|member| exists(*member)), "{members:?}");
    Ok(())
}
