//! The coordinator as a process.

use std::{net::SocketAddr, path::Path, process::Command};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process::{self, Finished, Running, await_condition};

/// A running coordinator. Killed when dropped.
#[derive(Debug)]
pub struct Coordinator {
    running: Running,
    address: SocketAddr,
}

impl Coordinator {
    /// Starts one at a free port for at least `min` and at most `desired` members.
    pub fn start(min: u32, desired: u32) -> Result<Self> {
        Self::start_at("127.0.0.1:0", 1, min, desired)
    }

    /// Starts one at an address; one after another has a higher epoch.
    pub fn start_at(listen: &str, epoch: u64, min: u32, desired: u32) -> Result<Self> {
        Self::start_with(min, desired, &["--insecure", "--listen", listen, "--epoch", &epoch.to_string()])
    }

    /// Starts one with further arguments: how the wire is protected, and where it listens, are among them.
    pub fn start_with(min: u32, desired: u32, more: &[&str]) -> Result<Self> {
        Self::start_program(&process::coordinator()?, min, desired, more)
    }

    /// The same of another program: that of an earlier version.
    pub fn start_program(program: &Path, min: u32, desired: u32, more: &[&str]) -> Result<Self> {
        let mut command = Command::new(program);
        // Long enough for all to come first on a busy machine: what is tested is what happens afterwards.
        command.args(["--formation-wait", "60", "--min-members", &min.to_string(), "--desired-members", &desired.to_string()]);
        command.args(more);
        let mut running = process::start_command(command)?;
        let address = await_condition("the coordinator's address", || {
            anyhow::ensure!(!running.has_ended()?, "the coordinator ended: {}", running.stderr()?);
            let text = running.stdout()?;
            let Some((line, _)) = text.split_once('\n') else { return Ok(None) };
            let said: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            Ok(Some(said["address"].as_str().context("no address")?.parse()?))
        })?;
        Ok(Self { running, address })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has logged so far.
    pub fn log(&self) -> Result<String> {
        self.running.stderr()
    }

    /// Kills it at once.
    pub fn kill(self) -> Result<Finished> {
        self.running.kill()
    }
}
