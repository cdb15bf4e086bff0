//! A job on one machine: the launcher, and below it the coordinator, workers and members as processes.

use std::{collections::BTreeSet, fs, os::unix::net::UnixListener};

use anyhow::{Context, Result, ensure};
use lcl_tests::{
    data::Fault,
    process::{self, Running, await_condition, descendants, exists, kill},
    run::{Run, Workbench},
};
use lcl_trainer_config::{DataSource, ExactConfig, ExitCode, MixedSource, MixtureConfig, MixtureUnit, Schedule};
use rustix::process::Signal;
use serde_json::Value;

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
        run.config.optimization.exact = Some(ExactConfig { virtual_shards: 8, threads: 1, verify_every_steps: None });
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
    let generations: BTreeSet<String> = run.steps()?.iter().map(|line| line["group"].to_string()).collect();
    ensure!(generations.len() >= 3, "too little was disturbed to show anything: {generations:?}");
    for (step, (got, wanted)) in run.ledger()?.iter().zip(alone.ledger()?).enumerate() {
        ensure!(*got == wanted, "step {step} is {got}, and undisturbed {wanted}; by {:?}", run.steps()?[step]);
    }
    ensure!(run.hash()? == expected, "{} instead of {expected}", run.hash()?);
    Ok(())
}

/// That the figures of the sources of a step of one process are together those of the step.
fn check_sources(step: &Value) -> Result<()> {
    let sources = step["sources"].as_array().context("no sources")?;
    let number = |value: &Value| value.as_f64().unwrap_or_default();
    let sum = |value: &dyn Fn(&Value) -> f64| sources.iter().map(value).sum::<f64>();
    for (loss, terms) in [("generation_loss", "predicted_tokens"), ("contrastive_loss", "contrastive_images")] {
        let mean = sum(&|source| number(&source[loss]) * number(&source[terms])) / sum(&|source| number(&source[terms]));
        // The step's is a sum in single precision.
        ensure!((mean / number(&step[loss]) - 1.0).abs() < 1e-5, "{loss} of all sources is {mean} in {step}");
    }
    let waited = sum(&|source| number(&source["data_wait_seconds"]));
    // Parts are whole microseconds.
    let lost = number(&step["data_wait_seconds"]) - waited;
    ensure!((-1e-9..1e-5).contains(&lost), "the sources' waits are {waited} s in {step}");
    Ok(())
}

/// The same with documents, of which some give no sequence and are replaced: each has its turn once, and what is used beside that is in the
/// ledger.
#[test]
fn a_disturbed_run_on_documents_trains_each_once_and_ends_with_the_bits_of_an_undisturbed_one() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let (mmc4, obelics) = (lcl_tests::data::mmc4(&workbench.path("mmc4"))?, lcl_tests::data::obelics(&workbench.path("obelics"))?);
    let mixture = lcl_tests::data::mixture(&workbench.shard(), &workbench.path("mixture"))?;
    for (kind, source) in [("mmc4", mmc4), ("obelics", obelics), ("mixture", mixture)] {
        let begin = |name: &str| -> Result<Run> {
            let mut run = workbench.begin(&format!("{name}-{kind}"))?;
            run.config.data.source = source.clone();
            run.config.model.shape.text.context_length = 64;
            run.config.optimization.steps = 24;
            // That two members compute a shard now and then changes no bit.
            run.config.optimization.exact = Some(ExactConfig { virtual_shards: 4, threads: 1, verify_every_steps: Some(3) });
            Ok(run)
        };
        let (alone, run) = (begin("alone")?, begin("local")?);
        let expected = alone.complete(&[])?;
        let local = start(&run, &["--workers", "2"])?;
        await_condition("some steps", || run.has_steps(4))?;
        kill(*named(&local, " member ")?.last().context("no member")?)?;
        local.wait()?.expect_code(0)?;
        ensure!(run.ledger()? == alone.ledger()?, "another ledger than that of the undisturbed run");
        ensure!(run.hash()? == expected, "{} instead of {expected}", run.hash()?);
        let redrawn = |run: &Run| -> Result<Vec<Value>> { Ok(run.steps()?.iter().map(|line| line["redrawn_samples"].clone()).collect()) };
        ensure!(redrawn(&run)? == redrawn(&alone)?);
        // All images in the store can be read.
        let expected = kind != "obelics";
        ensure!(redrawn(&run)?.iter().any(|samples| !samples.is_null()) == expected, "{:?}", redrawn(&run)?);
        ensure!(run.steps()?.iter().any(|line| line["images"].as_u64() > line["rows"].as_u64()), "no document has two images");
        // Of a mixture: each source's own sequence without a gap, and the same counts whoever counted them. So are the losses, bit for bit;
        // how long who waited for what is another matter.
        let sources = |run: &Run| -> Result<Vec<Value>> {
            let mut lines: Vec<Value> = run.steps()?.iter().map(|line| line["sources"].clone()).collect();
            for source in lines.iter_mut().filter_map(Value::as_array_mut).flatten().filter_map(Value::as_object_mut) {
                source.remove("data_wait_seconds").context("no wait")?;
            }
            Ok(lines)
        };
        ensure!(sources(&run)? == sources(&alone)?);
        for step in alone.steps()?.iter().filter(|_| kind == "mixture") {
            check_sources(step)?;
        }
        let mut ends = [0; 3];
        for (line, step) in sources(&run)?.iter().zip(run.steps()?) {
            let counted: u64 = line.as_array().into_iter().flatten().filter_map(|source| source["rows"].as_u64()).sum();
            ensure!(kind != "mixture" || Some(counted) == step["rows"].as_u64(), "{step}");
            for (end, source) in ends.iter_mut().zip(line.as_array().into_iter().flatten()) {
                ensure!(source["first"] == *end, "a gap or a repetition in {line}");
                *end = source["end"].as_u64().context("no end")?;
            }
        }
        ensure!((kind == "mixture") == ends.iter().all(|end| *end > 0), "{ends:?}");
    }
    Ok(())
}

/// Members that are given other steps than the run began with go along one curve: with two, their weights would part.
#[test]
fn members_of_a_run_that_goes_on_with_more_steps_keep_its_warm_up_bit_for_bit() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let begin = |name: &str| -> Result<Run> {
        let mut run = workbench.begin(name)?;
        run.config.optimization.exact = Some(ExactConfig { virtual_shards: 8, threads: 1, verify_every_steps: None });
        run.config.optimization.schedule = Schedule::Cosine { warmup_steps: None };
        run.complete(&["--steps", "20"])?;
        Ok(run)
    };
    let (alone, run) = (begin("alone")?, begin("local")?);
    let expected = alone.complete(&["--steps", "40"])?;
    start(&run, &["--workers", "2", "--min-workers", "2", "--steps", "40"])?.wait()?.expect_code(0)?;
    ensure!(run.hash()? == expected, "{} instead of {expected}", run.hash()?);
    let events = run.events()?;
    ensure!(events.iter().filter(|event| event["event"] == "started").all(|event| event["warmup_steps"] == 2), "{events:?}");
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
fn a_missing_coordinator_is_named_with_how_to_get_it_and_costs_no_earlier_run() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let run = workbench.begin("local")?;
    let folder = tempfile::tempdir()?;
    let trainer = folder.path().join("lcl-trainer");
    std::fs::copy(process::trainer()?, &trainer)?;
    let mut command = std::process::Command::new(&trainer);
    let earlier = run.folder.join("metrics.jsonl");
    std::fs::create_dir_all(&run.folder)?;
    std::fs::write(&earlier, "")?;
    command.args(run.arguments_of("local", &["--workers", "2", "--fresh", "--delete-existing"])?);
    let finished = process::start_command(command)?.wait()?.expect_code(ExitCode::Permanent.code())?;
    ensure!(finished.stderr.contains("cargo build --release -p lcl-coordinator"), "{}", finished.stderr);
    ensure!(earlier.exists(), "the earlier run was deleted for one that cannot be");
    Ok(())
}

#[test]
fn shards_that_are_not_there_are_named_before_anything_is_started_and_cost_no_earlier_run() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let mut run = workbench.begin("local")?;
    let pattern = workbench.path("{data,other-{0..1}}.tar").display().to_string();
    run.config.data.source = lcl_trainer_config::DataSource::webdataset(vec![pattern.clone()]);
    let earlier = run.folder.join("metrics.jsonl");
    std::fs::create_dir_all(&run.folder)?;
    std::fs::write(&earlier, "")?;
    let finished = start(&run, &["--workers", "2", "--fresh", "--delete-existing"])?.wait()?.expect_code(ExitCode::Permanent.code())?;
    let [first, second] = ["other-0.tar", "other-1.tar"].map(|name| workbench.path(name).display().to_string());
    let expected = format!("spec.data.webdataset.shards[0] (`{pattern}`): 2 of its 3 shards do not exist: {first}, {second}");
    ensure!(finished.stderr.contains(&expected) && !finished.stderr.contains("coordinator"), "{}", finished.stderr);
    ensure!(earlier.exists(), "the earlier run was deleted for one that cannot be");
    Ok(())
}

/// Steps of a run that goes on until it is stopped.
const ENDLESS: u64 = 1_000_000;

/// What a command that asks the run answers.
fn asked(run: &Run, command: &str, more: &[&str]) -> Result<Value> {
    let folder = run.folder.display().to_string();
    let finished = process::run([&[command, folder.as_str()], more, &["--output", "json"]].concat())?.expect_code(0)?;
    Ok(serde_json::from_str(&finished.stdout)?)
}

/// The run's status as soon as so many members are ready of so many.
fn await_members(run: &Run, ready: u64, desired: u64) -> Result<Value> {
    await_condition(&format!("{ready} of {desired} members"), || {
        let status = asked(run, "status", &[])?;
        let members = &status["group"]["members"];
        Ok((members["ready"] == ready && members["desired"] == desired && status["group"]["phase"] == "running").then_some(status))
    })
}

/// A process and when it began: the same number later on may be another process.
fn identity(process: u32) -> Result<(u32, String)> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name, which may hold anything, ends with the last bracket; the start is the 20th field after it.
    let began = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)).context("no start time")?;
    Ok((process, began.to_owned()))
}

/// The member of a worker.
fn member_of(local: &Running, worker: &str) -> Result<(u32, String)> {
    let members = named(local, &format!(" --worker {worker} "))?;
    let members: Vec<u32> = members.into_iter().filter(|id| named(local, " member ").is_ok_and(|all| all.contains(id))).collect();
    let [member] = members[..] else { anyhow::bail!("members of {worker}: {members:?}") };
    identity(member)
}

fn workers(status: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    status["workers"].as_array().into_iter().flatten().map(|worker| (text(&worker["name"]), text(&worker["state"]))).collect()
}

fn of_state(state: &str, numbers: &[u32]) -> Vec<(String, String)> {
    numbers.iter().map(|number| (format!("process-test-w-{number}"), state.to_owned())).collect()
}

#[test]
fn a_run_grows_and_shrinks_as_asked_and_the_process_that_stays_is_not_touched() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let mut run = workbench.begin("local")?;
    run.config.optimization.steps = ENDLESS;
    run.config.runtime.threads = None;
    let local = start(&run, &["--workers", "1"])?;
    more_steps(&run)?;
    let status = await_members(&run, 1, 1)?;
    ensure!(workers(&status) == of_state("running", &[0]), "{status}");
    ensure!(status["job"] == "process-test" && status["steps"] == ENDLESS && status["pid"] == local.id(), "{status}");
    let (stays, seen) = (member_of(&local, "process-test-w-0")?, descendants(local.id())?);
    ensure!(named(&local, "--threads")?.is_empty(), "one member has all processors: {seen:?}");

    let answer = asked(&run, "resize", &["--workers", "2"])?;
    ensure!(answer["workers"] == 2 && answer["starting"][0] == "process-test-w-1", "{answer}");
    let status = await_members(&run, 2, 2)?;
    ensure!(workers(&status) == of_state("running", &[0, 1]), "{status}");
    let share = (std::thread::available_parallelism()?.get() / 2).max(1);
    // The worker and its member; who was there keeps the threads that it has.
    ensure!(named(&local, &format!("--threads {share}"))?.len() == 2, "{:?}", descendants(local.id())?);
    more_steps(&run)?;
    // Said again it changes nothing.
    let answer = asked(&run, "resize", &["--workers", "2"])?;
    ensure!(answer["starting"] == serde_json::json!([]) && answer["leaving"] == serde_json::json!([]), "{answer}");

    let answer = asked(&run, "resize", &["--workers", "1"])?;
    ensure!(answer["leaving"][0] == "process-test-w-1", "{answer}");
    let status = await_condition("the end of the second worker", || {
        let status = await_members(&run, 1, 1)?;
        Ok((workers(&status) == of_state("running", &[0])).then_some(status))
    })?;
    more_steps(&run)?;
    let events: Vec<&str> = status["history"].as_array().into_iter().flatten().filter_map(|entry| entry["event"].as_str()).collect();
    ensure!(events.contains(&"member_left") && !events.contains(&"member_lost"), "{status}");
    ensure!(member_of(&local, "process-test-w-0")? == stays, "the process that stays is another one");

    local.signal(Signal::TERM)?;
    let finished = local.wait()?.expect_code(ExitCode::Preempted.code())?;
    run.ledger()?;
    ensure!(finished.stdout.contains(r#""event":"group_formed""#), "{}", finished.stdout);
    ensure!(!finished.stderr.contains("it is started again"), "{}", finished.stderr);
    ensure!(seen.iter().all(|(id, _)| !exists(*id)), "left behind: {seen:?}");
    ensure!(!run.folder.join("control.sock").exists());
    Ok(())
}

#[test]
fn a_run_is_told_to_save_and_to_stop_and_goes_on_later() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let mut run = workbench.begin("local")?;
    (run.config.optimization.steps, run.config.checkpoint.every_steps) = (ENDLESS, ENDLESS);
    let pairs = DataSource::webdataset(vec![workbench.shard().display().to_string()]);
    let sources = [("many", 3), ("few", 1)].map(|(name, weight)| MixedSource { name: name.to_owned(), weight, source: pairs.clone() });
    run.config.data.source = DataSource::Mixture { mixture: MixtureConfig { by: MixtureUnit::Samples, sources: sources.into() } };
    let local = start(&run, &["--workers", "2", "--stall-timeout", "77", "--evict-slow-factor", "50"])?;
    more_steps(&run)?;
    await_members(&run, 2, 2)?;
    let waits =
        named(&local, "--heartbeat-timeout 10 --stall-timeout 77 --formation-wait 60 --evict-slow-factor 50 --evict-slow-after 300")?;
    ensure!(waits.len() == 1, "{:?}", descendants(local.id())?);
    let status = await_condition("what the leader tells of the sources", || {
        let status = asked(&run, "status", &[])?;
        Ok(status["group"]["sources"].is_array().then_some(status))
    })?;
    let told = |source: usize, field: &str| status["group"]["sources"][source][field].clone();
    ensure!((told(0, "name"), told(1, "name")) == ("many".into(), "few".into()), "{status}");
    ensure!(told(0, "samples").as_u64() > told(1, "samples").as_u64() && told(1, "generation_loss").as_f64() > Some(0.0), "{status}");
    let answer = asked(&run, "checkpoint", &[])?;
    let from = answer["from"].as_u64().with_context(|| format!("no step in {answer}"))?;
    ensure!(answer["is_committed"] == false, "{answer}");
    await_condition("the checkpoint", || {
        let status = asked(&run, "status", &[])?;
        Ok((status["group"]["last_checkpoint"].as_u64() >= Some(from)).then_some(()))
    })?;
    ensure!(run.newest_checkpoint()?.step >= from, "{:?} instead of step {from}", run.newest_checkpoint()?);
    more_steps(&run)?;

    let answer = asked(&run, "stop", &[])?;
    ensure!(answer["leaving"] == serde_json::json!(["process-test-w-0", "process-test-w-1"]), "{answer}");
    local.wait()?.expect_code(ExitCode::Preempted.code())?;
    let stopped_at = run.steps()?.len();
    ensure!(run.newest_checkpoint()?.step == stopped_at as u64, "{:?} of {stopped_at} steps", run.newest_checkpoint()?);

    let local = start(&run, &["--workers", "2", "--resume"])?;
    await_condition("further steps", || run.has_steps(stopped_at + 3))?;
    local.signal(Signal::TERM)?;
    local.wait()?.expect_code(ExitCode::Preempted.code())?;
    run.ledger().map(drop)
}

#[test]
fn a_drained_worker_leaves_without_a_failure_and_is_not_replaced_and_a_new_coordinator_knows() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let mut run = workbench.begin("local")?;
    run.config.optimization.steps = ENDLESS;
    let local = start(&run, &["--workers", "2"])?;
    more_steps(&run)?;
    await_members(&run, 2, 2)?;
    let folder = run.folder.display().to_string();
    let refused = process::run(["drain", &folder, "w-1"])?.expect_code(ExitCode::Permanent.code())?;
    ensure!(refused.stderr.contains("process-test-w-0, process-test-w-1"), "{}", refused.stderr);

    asked(&run, "drain", &["process-test-w-0"])?;
    await_members(&run, 1, 1)?;
    await_condition("the end of the drained worker", || Ok(named(&local, "process-test-w-0")?.is_empty().then_some(())))?;
    let refused = process::run(["drain", &folder, "process-test-w-1"])?.expect_code(ExitCode::Permanent.code())?;
    ensure!(refused.stderr.contains("nothing would be trained"), "{}", refused.stderr);

    // Started for two workers, it comes back for the one that is wanted now.
    let before = named(&local, "lcl-coordinator")?;
    kill(*before.first().context("no coordinator")?)?;
    await_condition("a new coordinator for one member", || {
        let status = asked(&run, "status", &[])?;
        let events: Vec<&str> = status["history"].as_array().into_iter().flatten().filter_map(|entry| entry["event"].as_str()).collect();
        ensure!(!events.contains(&"member_lost"), "{status}");
        Ok((events.contains(&"group_adopted") && status["group"]["members"]["desired"] == 1).then_some(()))
    })?;
    let now = named(&local, "--desired-members 1")?;
    ensure!(now.len() == 1 && !before.contains(&now[0]), "{before:?}, then {now:?}");
    more_steps(&run)?;
    local.signal(Signal::TERM)?;
    local.wait()?.expect_code(ExitCode::Preempted.code())?;
    run.ledger().map(drop)
}

#[test]
fn a_folder_in_which_no_run_is_going_on_is_said_to_be_one_whatever_lies_there() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let run = workbench.begin("nothing")?;
    let folder = run.folder.display().to_string();
    let check = |words: &str| -> Result<()> {
        let (status, drain) = (&["status", folder.as_str()][..], &["drain", folder.as_str(), "w-0"][..]);
        for arguments in [status, drain, &["resize", &folder, "--workers", "2"], &["checkpoint", &folder], &["stop", &folder]] {
            let finished = process::run(arguments)?.expect_code(ExitCode::Permanent.code())?;
            ensure!(finished.stderr.contains(words), "{}", finished.stderr);
        }
        Ok(())
    };
    check("cannot look into")?;
    fs::create_dir(&run.folder)?;
    check("no run is going on in")?;
    // What a killed launcher leaves behind; and the next one takes its place.
    drop(UnixListener::bind(run.folder.join("control.sock"))?);
    check("no run is going on in")?;
    let local = start(&run, &["--workers", "1"])?;
    more_steps(&run)?;
    await_members(&run, 1, 1)?;
    local.kill()?;
    check("no run is going on in")
}
