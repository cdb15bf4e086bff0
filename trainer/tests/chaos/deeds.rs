//! What is done to a running job from outside of its processes.

use std::{net::SocketAddr, process::Command};

use anyhow::{Context, Result};
use lcl_proto::v1alpha1::{CommandRequest, World, command_request, coordinator_client::CoordinatorClient};
use lcl_tests::process::{self, Running, await_condition, descendants};
use rustix::process::{Pid, Signal, kill_process};
use tonic::transport::Channel;

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

/// Where the job's coordinator listens, as its workers were told.
pub(crate) fn coordinator_address(launcher: u32) -> Result<SocketAddr> {
    await_condition("a worker that knows the coordinator", || {
        let all = descendants(launcher)?;
        let known = all.iter().find_map(|(_, words)| value(&words.split(' ').collect::<Vec<_>>(), "--coordinator").map(str::to_owned));
        known.map(|address| address.parse().context("the coordinator's address")).transpose()
    })
}

fn value<'a>(words: &[&'a str], option: &str) -> Option<&'a str> {
    words.iter().position(|word| *word == option).and_then(|place| words.get(place + 1)).copied()
}

/// Sends a signal. Whoever is gone meanwhile has not survived anyhow.
pub(crate) fn signal(process: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(process).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Sets the bounds of the running job; tried until a coordinator is there.
pub(crate) fn set_world(address: SocketAddr, min: u32, desired: u32) -> Result<()> {
    command(address, &command_request::Command::Resize(World { min, desired, max: desired }))
}

/// Has a worker leave; tried until a coordinator is there.
pub(crate) fn drain(address: SocketAddr, worker: &str) -> Result<()> {
    command(address, &command_request::Command::DrainWorker(command_request::DrainWorker { worker: worker.to_owned() }))
}

fn command(address: SocketAddr, command: &command_request::Command) -> Result<()> {
    call(address, |mut client| {
        let request = CommandRequest { epoch: None, command: Some(command.clone()) };
        async move { client.command(request).await.is_ok() }
    })
}

fn call<F: Future<Output = bool>>(address: SocketAddr, request: impl Fn(CoordinatorClient<Channel>) -> F) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    await_condition("an answer of the coordinator", || {
        let attempt = async {
            let Ok(client) = CoordinatorClient::connect(format!("http://{address}")).await else { return false };
            request(client).await
        };
        Ok(runtime.block_on(attempt).then_some(()))
    })
}

/// A further worker with one member.
pub(crate) fn join(arguments: Vec<String>, address: SocketAddr, name: &str, environment: &[(&str, String)]) -> Result<Running> {
    let mut command = Command::new(process::trainer()?);
    command.args(arguments).args(["--insecure", "--output", "json", "--log-format", "json", "--node", "localhost"]);
    command.args(["--coordinator", &address.to_string(), "--worker", name, "--termination-log", "/dev/null"]);
    command.envs(environment.iter().map(|(key, value)| (*key, value)));
    process::start_command(command)
}
