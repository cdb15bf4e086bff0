//! Several members train one job: real processes, the coordinator's real server, real collectives.

use std::{
    net::SocketAddr,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lcl_coordinator::{Security, serve};
use lcl_protocol::{CoordinatorSettings, World};
use lcl_tests::{
    hanging_store::{HangingStore, Hangs},
    process::{self, Running, await_condition},
    run::{Run, Workbench},
};
use lcl_trainer_config::{ExactConfig, ExitCode};
use rustix::process::Signal;
use tokio::{net::TcpListener, runtime::Runtime};

/// A coordinator that serves until it is dropped.
struct Coordinator {
    _runtime: Runtime,
    address: SocketAddr,
}

impl Coordinator {
    fn start(min: u32, desired: u32, max: u32) -> Result<Self> {
        Self::start_after(0, min, desired, max)
    }

    /// One that follows the coordinator of this epoch.
    fn start_after(epoch: u64, min: u32, desired: u32, max: u32) -> Result<Self> {
        let runtime = Runtime::new()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let settings = CoordinatorSettings {
            epoch: epoch + 1,
            world: World::new(min, desired, max)?,
            // Long enough for all to come first on a busy machine: what is tested is what happens afterwards.
            formation_wait: Duration::from_mins(1),
            heartbeat_timeout: Duration::from_secs(10),
            report_timeout: Duration::from_mins(1),
            stall_timeout: Duration::from_mins(2),
            slow_eviction: None,
        };
        runtime.spawn(serve(listener, settings, Security::Insecure, std::future::pending()));
        Ok(Self { _runtime: runtime, address })
    }

    /// Starts a member of `run`.
    fn member(&self, run: &Run, worker: &str) -> Result<Running> {
        process::start(self.arguments(run, worker)?)
    }

    fn arguments(&self, run: &Run, worker: &str) -> Result<Vec<String>> {
        let mut arguments = run.arguments(&["--insecure", "--output", "json", "--worker", worker, "--node", worker])?;
        "member".clone_into(arguments.first_mut().context("no command")?);
        arguments.extend(["--coordinator".to_owned(), self.address.to_string()]);
        Ok(arguments)
    }
}

/// The generations of a run's ledger, in order and without repetition.
fn generations(run: &Run) -> Result<Vec<u64>> {
    let mut found: Vec<u64> = run.steps()?.iter().filter_map(|line| line["group"]["number"].as_u64()).collect();
    found.dedup();
    Ok(found)
}

#[test]
fn three_members_do_the_work_of_one() -> Result<()> {
    let workbench = Workbench::new(&[(7, lcl_tests::data::Fault::NoCaption)])?;
    let (alone, run) = (workbench.alone(40)?, workbench.begin("group")?);
    let coordinator = Coordinator::start(3, 3, 3)?;
    let members = ["a", "b", "c"].map(|worker| coordinator.member(&run, worker));
    for member in members {
        member?.wait()?.expect_code(0)?;
    }
    run.expect_same_work(&alone)?;
    ensure!(run.newest_checkpoint()?.step == 40);
    ensure!(generations(&run)? == [1]);
    Ok(())
}

/// How many halves of the state a member's log says that it has sent, before the first step of its only group.
fn receivers(log: &str) -> Result<usize> {
    let line = log.lines().find(|line| line.contains("state is level")).with_context(|| format!("it never had the state: {log}"))?;
    let (_, rest) = line.split_once("to=[").context("no receivers")?;
    let (ranks, _) = rest.split_once(']').context("no end of the receivers")?;
    Ok(ranks.split(", ").filter(|rank| !rank.is_empty()).count())
}

#[test]
fn members_begin_without_sending_the_state_and_restore_it_over_members_that_pass_it_on() -> Result<()> {
    const MEMBERS: u32 = 5;
    let workbench = Workbench::new(&[])?;
    let (alone, run) = (workbench.alone(40)?, workbench.begin("tree")?);
    let workers: Vec<String> = (0..MEMBERS).map(|worker| format!("w-{worker}")).collect();
    for epoch in [0, 1] {
        let coordinator = Coordinator::start_after(epoch, MEMBERS, MEMBERS, MEMBERS)?;
        let members = workers.iter().map(|worker| coordinator.member(&run, worker)).collect::<Result<Vec<_>>>()?;
        if epoch == 0 {
            await_condition("five steps", || run.has_steps(5))?;
            members.iter().try_for_each(|member| member.signal(Signal::TERM))?;
        }
        let code = if epoch == 0 { ExitCode::Preempted } else { ExitCode::Success };
        let mut sent = Vec::new();
        for member in members {
            sent.push(receivers(&member.wait()?.expect_code(code.code())?.stderr)?);
        }
        // Halves: the one by 0, 4 and 2 to 1 and 3, the other by 0, 1 and 3 to 2 and 4.
        ensure!(sent == if epoch == 0 { [0; 5] } else { [2, 1, 2, 2, 1] }, "{sent:?}");
    }
    run.expect_same_work(&alone)
}

#[test]
fn survivors_go_on_when_a_member_is_killed_and_its_replacement_is_taken_in() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let alone = workbench.alone(40)?;
    // Ranks are in the order of nodes: once a follower, once the leader that writes for all.
    for (name, victim, others) in [("follower", "c", ["a", "b"]), ("leader", "a", ["b", "c"])] {
        let mut run = workbench.begin(name)?;
        run.config.optimization.steps = 40;
        let coordinator = Coordinator::start(2, 3, 3)?;
        let doomed = coordinator.member(&run, victim)?;
        let survivors = [coordinator.member(&run, others[0])?, coordinator.member(&run, others[1])?];
        await_condition("five steps of three members", || run.has_steps(5))?;
        doomed.kill()?;
        let replacement = coordinator.member(&run, victim)?;
        let mut logs = Vec::new();
        for member in survivors.into_iter().chain([replacement]) {
            logs.push(member.wait()?.expect_code(0)?.stderr);
        }
        run.expect_same_work(&alone).context(name)?;
        ensure!(generations(&run)?.len() >= 2, "{name}: {:?}", generations(&run)?);
        ensure!(logs[0].contains("member lost"), "{name}: {}", logs[0]);
    }
    Ok(())
}

#[test]
fn a_member_asked_to_end_leaves_between_two_steps_and_the_others_finish() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let (alone, mut run) = (workbench.alone(40)?, workbench.begin("drained")?);
    run.config.checkpoint.every_steps = 40;
    let coordinator = Coordinator::start(1, 2, 2)?;
    let (leaves, stays) = (coordinator.member(&run, "a")?, coordinator.member(&run, "b")?);
    await_condition("five steps of two members", || run.has_steps(5))?;
    leaves.signal(Signal::TERM)?;
    leaves.wait()?.expect_code(ExitCode::Preempted.code())?;
    stays.wait()?.expect_code(0)?;
    // The other had what it left with: it wrote nothing of its own, although it led.
    ensure!(run.checkpoints()?.iter().map(|checkpoint| checkpoint.step).eq([40]), "{:?}", run.checkpoints()?);
    run.expect_same_work(&alone)
}

/// Nobody leaves in the middle of a step, and its data would not come for more than a minute.
#[test]
fn a_member_asked_to_end_while_its_store_hangs_leaves_with_a_checkpoint() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let store = HangingStore::start(&workbench.shard(), Hangs::AtParts)?;
    let mut run = workbench.begin("hangs")?;
    run.config.data = store.data(&run.config.data, &workbench.path("store"));
    let coordinator = Coordinator::start(1, 1, 1)?;
    let member = coordinator.member(&run, "a")?;
    await_condition("a request that hangs", || Ok(store.hangs().then_some(())))?;
    let asked = Instant::now();
    member.signal(Signal::TERM)?;
    member.wait()?.expect_code(ExitCode::Preempted.code())?;
    ensure!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
    ensure!(run.steps()?.is_empty() && run.newest_checkpoint()?.step == 0);
    Ok(())
}

#[test]
fn in_exact_mode_a_member_with_other_instructions_is_refused_and_the_others_train_on() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let mut run = workbench.begin("mixed")?;
    run.config.optimization.exact = Some(ExactConfig { virtual_shards: 8, threads: 1, verify_every_steps: None });
    let coordinator = Coordinator::start(1, 1, 2)?;
    let first = coordinator.member(&run, "a")?;
    await_condition("a step of the first", || run.has_steps(1))?;
    let mut other = Command::new(process::trainer()?);
    // libtorch's own switch: its kernels without AVX.
    other.args(coordinator.arguments(&run, "b")?).env("ATEN_CPU_CAPABILITY", "default");
    let refused = process::start_command(other)?.wait()?.expect_code(ExitCode::Retryable.code())?;
    for part in ["member b/0 computes on", "(DEFAULT, MKL", "optimization.exact"] {
        ensure!(refused.stderr.contains(part), "{part}: {}", refused.stderr);
    }
    first.wait()?.expect_code(0)?;
    ensure!(generations(&run)? == [1]);
    Ok(())
}

#[test]
fn a_member_at_an_address_that_is_not_its_hosts_says_before_it_attaches_that_the_machine_is_unfit() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let run = workbench.begin("elsewhere")?;
    // An address of nobody (RFC 5737), and a coordinator that nothing has to ask.
    let place = ["--insecure", "--output", "json", "--worker", "a", "--node", "a", "--host", "192.0.2.1", "--coordinator", "127.0.0.1:1"];
    let finished = process::start(run.arguments_of("member", &place)?)?.wait()?.expect_code(ExitCode::Unfit.code())?;
    ensure!(finished.stderr.contains("collectives do not work at 192.0.2.1"), "{}", finished.stderr);
    Ok(())
}
