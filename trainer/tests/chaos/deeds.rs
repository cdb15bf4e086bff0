//! What is done to a running job from outside of its processes.

use std::{fs, net::SocketAddr, process};

use anyhow::{Context, Result};
use lcl_proto::v1alpha1::{
    CommandRequest, World,
    command_request::{Command, DrainWorker},
    command_response::Accepted,
    coordinator_client::CoordinatorClient,
};
use lcl_tests::process::{Running, descendants, start_command, trainer};
use rustix::process::{Pid, Signal, kill_process};

/// A process below the launcher.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    /// Its id.
    pub(crate) id: u32,
    /// Its worker's name; none for a coordinator.
    pub(crate) worker: String,
}

/// Processes of a kind below the launcher, in the order of their names: `member`, `worker`, or `lcl-coordinator`.
pub(crate) fn processes(launcher: u32, kind: &str) -> Result<Vec<Process>> {
    let mut found = Vec::new();
    for (id, words) in descendants(launcher)? {
        let words: Vec<&str> = words.split(' ').collect();
        let is_meant = words.contains(&kind) || words.first().is_some_and(|program| program.ends_with(kind));
        if is_meant {
            found.push(Process { id, worker: value(&words, "--worker").unwrap_or_default().to_owned() });
        }
    }
    found.sort_by(|left, right| left.worker.cmp(&right.worker));
    Ok(found)
}

/// Where the job's coordinator listens, as its workers were told; nothing while there is none of them.
pub(crate) fn coordinator_address(launcher: u32) -> Result<Option<SocketAddr>> {
    let all = descendants(launcher)?;
    let known = all.iter().find_map(|(_, words)| value(&words.split(' ').collect::<Vec<_>>(), "--coordinator").map(str::to_owned));
    known.map(|address| address.parse().context("the coordinator's address")).transpose()
}

fn value<'a>(words: &[&'a str], option: &str) -> Option<&'a str> {
    words.iter().position(|word| *word == option).and_then(|place| words.get(place + 1)).copied()
}

/// Whether a process runs or is stopped: not whether it has ended and nobody has waited for it yet.
pub(crate) fn is_alive(process: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{process}/stat")) else { return false };
    // The name stands before, in parentheses, and may hold anything.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// Sends a signal. Gives whether there was somebody to get it.
pub(crate) fn signal(process: u32, signal: Signal) -> bool {
    let pid = i32::try_from(process).ok().and_then(Pid::from_raw);
    is_alive(process) && pid.is_some_and(|pid| kill_process(pid, signal).is_ok())
}

/// Sets the bounds of the running job. Gives whether a coordinator was there and took them.
pub(crate) fn set_world(address: SocketAddr, min: u32, desired: u32) -> Result<bool> {
    Ok(command(address, Command::Resize(World { min, desired, max: desired }))?.is_some())
}

/// Has a worker leave. Gives whether a coordinator was there and has a member of it leave.
pub(crate) fn drain(address: SocketAddr, worker: &str) -> Result<bool> {
    let accepted = command(address, Command::DrainWorker(DrainWorker { worker: worker.to_owned() }))?;
    Ok(matches!(accepted, Some(Accepted::DrainWorker(drained)) if drained.members > 0))
}

/// What a coordinator that is there says to a command.
fn command(address: SocketAddr, command: Command) -> Result<Option<Accepted>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(async {
        let mut client = CoordinatorClient::connect(format!("http://{address}")).await.ok()?;
        let answer = client.command(CommandRequest { epoch: None, command: Some(command) }).await.ok()?;
        answer.into_inner().accepted
    }))
}

/// A further worker with one member.
pub(crate) fn join(arguments: Vec<String>, address: SocketAddr, name: &str, environment: &[(&str, String)]) -> Result<Running> {
    let mut command = process::Command::new(trainer()?);
    command.args(arguments).args(["--insecure", "--output", "json", "--log-format", "json", "--node", "localhost"]);
    command.args(["--coordinator", &address.to_string(), "--worker", name, "--termination-log", "/dev/null"]);
    command.envs(environment.iter().map(|(key, value)| (*key, value)));
    start_command(command)
}
