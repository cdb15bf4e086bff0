//! A member as a process, with a fault of its own.

use std::{path::Path, process::Command};

use anyhow::Result;
use lcl_tests::{coordinator::Coordinator, process, run::Run};
use lcl_trainer::processes::fail_point;

/// A member's command; `fault`: where it dies or stands still, and a folder for the record of it.
pub(crate) fn command(run: &Run, coordinator: &Coordinator, worker: &str, fault: Option<(&str, &Path)>) -> Result<Command> {
    let mut command = Command::new(process::trainer()?);
    let place = ["--insecure", "--output", "json", "--worker", worker, "--node", worker];
    command.args(run.arguments_of("member", &place)?).arg("--coordinator").arg(coordinator.address().to_string());
    if let Some((fault, hits)) = fault {
        command.env(fail_point::FAULTS, fault).env(fail_point::FOLDER, hits);
    }
    Ok(command)
}
