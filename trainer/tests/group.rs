//! Several members train one job: real processes, the coordinator's real server, real collectives.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use lcl_coordinator::{Security, serve};
use lcl_protocol::{CoordinatorSettings, World};
use lcl_tests::{
    process::{self, Running, await_condition},
    run::{Run, Workbench},
};
use lcl_trainer_config::ExitCode;
use rustix::process::Signal;
use tokio::{net::TcpListener, runtime::Runtime};

/// A coordinator that serves until it is dropped.
struct Coordinator {
    _runtime: Runtime,
    address: SocketAddr,
}

impl Coordinator {
    fn start(min: u32, desired: u32, max: u32) -> Result<Self> {
        let runtime = Runtime::new()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let settings = CoordinatorSettings {
            epoch: 1,
            world: World::new(min, desired, max)?,
            // Long enough for all to come first on a busy machine: what is tested is what happens afterwards.
            formation_wait: Duration::from_mins(1),
            heartbeat_timeout: Duration::from_secs(10),
            report_timeout: Duration::from_mins(1),
        };
        runtime.spawn(serve(listener, settings, Security::Insecure, std::future::pending()));
        Ok(Self { _runtime: runtime, address })
    }

    /// Starts a member of `run`.
    fn member(&self, run: &Run, worker: &str) -> Result<Running> {
        let mut arguments = run.arguments(&["--insecure", "--output", "json", "--worker", worker, "--node", worker])?;
        "member".clone_into(arguments.first_mut().context("no command")?);
        arguments.extend(["--coordinator".to_owned(), self.address.to_string()]);
        process::start(arguments)
    }
}

fn has_steps(run: &Run, steps: usize) -> Result<Option<()>> {
    Ok((run.steps()?.len() >= steps).then_some(()))
}

/// The ledger has every slot of every step once, with the samples of `alone` and nearly its losses: sums are taken in another order.
fn check_ledger(run: &Run, alone: &Run) -> Result<()> {
    ensure!(run.ledger()?.len() == alone.ledger()?.len(), "{} steps", run.ledger()?.len());
    for (line, expected) in run.steps()?.iter().zip(alone.steps()?) {
        for field in ["slots", "samples_digest", "rows", "images", "tokens", "skipped_samples", "learning_rate"] {
            ensure!(line[field] == expected[field], "step {}: {field} is {}, alone {}", line["step"], line[field], expected[field]);
        }
        let (loss, expected) = (line["loss"].as_f64().context("no loss")?, expected["loss"].as_f64().context("no loss")?);
        ensure!((loss / expected - 1.0).abs() < 1e-3, "step {}: loss {loss}, alone {expected}", line["step"]);
    }
    Ok(())
}

fn alone(workbench: &Workbench) -> Result<Run> {
    let run = workbench.begin("alone")?;
    run.complete(&[])?;
    Ok(run)
}

/// The generations of a run's ledger, in order and without repetition.
fn generations(run: &Run) -> Result<Vec<u64>> {
    let mut found: Vec<u64> = run.steps()?.iter().filter_map(|line| line["generation"]["n"].as_u64()).collect();
    found.dedup();
    Ok(found)
}

#[test]
fn three_members_do_the_work_of_one() -> Result<()> {
    let workbench = Workbench::new(&[(7, lcl_tests::data::Fault::NoCaption)])?;
    let (alone, run) = (alone(&workbench)?, workbench.begin("group")?);
    let coordinator = Coordinator::start(3, 3, 3)?;
    let members = ["a", "b", "c"].map(|worker| coordinator.member(&run, worker));
    for member in members {
        member?.wait()?.expect_code(0)?;
    }
    check_ledger(&run, &alone)?;
    ensure!(run.newest_checkpoint()?.step == 40);
    ensure!(generations(&run)? == [1]);
    Ok(())
}

#[test]
fn survivors_go_on_when_a_member_is_killed_and_its_replacement_is_taken_in() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let alone = alone(&workbench)?;
    // Ranks are in the order of nodes: once a follower, once the leader that writes for all.
    for (name, victim, others) in [("follower", "c", ["a", "b"]), ("leader", "a", ["b", "c"])] {
        let mut run = workbench.begin(name)?;
        run.config.optimization.steps = 40;
        let coordinator = Coordinator::start(2, 3, 3)?;
        let doomed = coordinator.member(&run, victim)?;
        let survivors = [coordinator.member(&run, others[0])?, coordinator.member(&run, others[1])?];
        await_condition("five steps of three members", || has_steps(&run, 5))?;
        doomed.kill()?;
        let replacement = coordinator.member(&run, victim)?;
        let mut logs = Vec::new();
        for member in survivors.into_iter().chain([replacement]) {
            logs.push(member.wait()?.expect_code(0)?.stderr);
        }
        check_ledger(&run, &alone).context(name)?;
        ensure!(generations(&run)?.len() >= 2, "{name}: {:?}", generations(&run)?);
        ensure!(logs[0].contains("member lost"), "{name}: {}", logs[0]);
    }
    Ok(())
}

#[test]
fn a_member_asked_to_end_leaves_between_two_steps_and_the_others_finish() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let (alone, run) = (alone(&workbench)?, workbench.begin("drained")?);
    let coordinator = Coordinator::start(1, 2, 2)?;
    let (stays, leaves) = (coordinator.member(&run, "a")?, coordinator.member(&run, "b")?);
    await_condition("five steps of two members", || has_steps(&run, 5))?;
    leaves.signal(Signal::TERM)?;
    leaves.wait()?.expect_code(ExitCode::Preempted.code())?;
    stays.wait()?.expect_code(0)?;
    check_ledger(&run, &alone)
}

/// Processes whose parent is `parent`.
fn children(parent: u32) -> Result<Vec<i32>> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let mut found = Vec::new();
    // A child belongs to the thread that started it, which is the main one.
    for id in std::fs::read_to_string(&path).context(path)?.split_whitespace() {
        found.push(id.parse()?);
    }
    Ok(found)
}

fn kill(process: i32) -> Result<()> {
    let pid = rustix::process::Pid::from_raw(process).context("no process")?;
    Ok(rustix::process::kill_process(pid, Signal::KILL)?)
}

fn local_arguments(run: &Run, more: &[&str]) -> Result<Vec<String>> {
    let mut arguments = run.arguments(&[&["--output", "json"], more].concat())?;
    "local".clone_into(arguments.first_mut().context("no command")?);
    Ok(arguments)
}

#[test]
fn a_local_group_starts_a_killed_member_again_and_completes() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let (alone, run) = (alone(&workbench)?, workbench.begin("local")?);
    let local = process::start(local_arguments(&run, &["--members", "2"])?)?;
    await_condition("five steps of two members", || has_steps(&run, 5))?;
    let members = children(local.id())?;
    ensure!(members.len() == 2, "{members:?}");
    kill(members[1])?;
    let finished = local.wait()?.expect_code(0)?;
    ensure!(finished.stderr.contains("a member died"), "{}", finished.stderr);
    check_ledger(&run, &alone)
}

#[test]
fn a_local_group_asked_to_stop_saves_and_goes_on_later_and_dies_as_a_whole() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let (alone, run) = (alone(&workbench)?, workbench.begin("local")?);
    let local = process::start(local_arguments(&run, &["--members", "2"])?)?;
    await_condition("seven steps of two members", || has_steps(&run, 7))?;
    local.signal(Signal::TERM)?;
    local.wait()?.expect_code(ExitCode::Preempted.code())?;
    let stopped_at = run.steps()?.len() as u64;
    ensure!(run.newest_checkpoint()?.step == stopped_at, "checkpoint {:?} of {stopped_at} steps", run.newest_checkpoint()?);

    let local = process::start(local_arguments(&run, &["--members", "2", "--resume"])?)?;
    await_condition("further steps", || has_steps(&run, stopped_at as usize + 3))?;
    let members = children(local.id())?;
    local.kill()?;
    await_condition("the members' end", || {
        Ok(members.iter().all(|member| !std::path::Path::new(&format!("/proc/{member}")).exists()).then_some(()))
    })?;

    process::run(local_arguments(&run, &["--members", "3"])?)?.expect_code(0)?;
    check_ledger(&run, &alone)
}
