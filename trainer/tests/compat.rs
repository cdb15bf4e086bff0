//! Programs of an earlier commit beside today's: `make compat COMMIT=…` builds them and names their folder in `LCL_EARLIER`.
//!
//! Either they train together and do the work of a run alone, or the coordinator refuses the members by their version.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use lcl_tests::{
    coordinator::Coordinator,
    process::{self, Running},
    run::{Run, Workbench},
};
use lcl_trainer_config::ExitCode;

const STEPS: u64 = 10;

fn earlier(name: &str) -> Result<PathBuf> {
    let folder = env::var_os("LCL_EARLIER").context("LCL_EARLIER names no folder: this test is run by `make compat`")?;
    let path = PathBuf::from(folder).join(name);
    ensure!(path.is_file(), "{} is missing", path.display());
    Ok(path)
}

fn worker(program: PathBuf, run: &Run, coordinator: &Coordinator, name: &str) -> Result<Running> {
    let address = coordinator.address().to_string();
    let place = ["--insecure", "--output", "json", "--coordinator", &address, "--worker", name, "--node", name];
    let mut command = Command::new(program);
    command.args(run.arguments_of("worker", &place)?);
    process::start_command(command)
}

/// Whether they trained together; else the guest was refused by its version.
fn meet(workbench: &Workbench, name: &str, coordinator: &Coordinator, [host, guest]: [PathBuf; 2]) -> Result<bool> {
    let alone = workbench.alone(STEPS)?;
    let mut run = workbench.begin(name)?;
    run.config.optimization.steps = STEPS;
    let [host, guest] = [worker(host, &run, coordinator, "host")?, worker(guest, &run, coordinator, "guest")?];
    let guest = guest.wait()?;
    if guest.status.code() == Some(ExitCode::Permanent.code().into()) {
        ensure!(guest.stderr.contains("speaks protocol version"), "it was refused for another reason: {}", guest.stderr);
        return Ok(false);
    }
    ensure!(guest.status.success(), "{:?}: {}", guest.status, guest.stderr);
    host.wait()?.expect_code(0)?;
    run.expect_same_work(&alone)?;
    Ok(true)
}

#[test]
#[ignore = "needs programs of an earlier commit; `make compat COMMIT=…`"]
fn programs_of_an_earlier_commit_train_with_todays_or_are_refused_by_their_version() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let todays = Coordinator::start(2, 2)?;
    let trained = meet(&workbench, "todays-coordinator", &todays, [process::trainer()?, earlier("lcl-trainer")?])?;
    println!("an earlier member at today's coordinator: {}", if trained { "they train together" } else { "refused by its version" });
    let before = Coordinator::start_program(&earlier("lcl-coordinator")?, 2, 2, &["--insecure", "--listen", "127.0.0.1:0"])?;
    let trained = meet(&workbench, "earlier-coordinator", &before, [earlier("lcl-trainer")?, process::trainer()?])?;
    println!("today's member at an earlier coordinator: {}", if trained { "they train together" } else { "refused by its version" });
    Ok(())
}
