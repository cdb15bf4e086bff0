//! The coordinator's process, and what `/proc` says of it.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};

/// What Linux counts a process's time in, on every processor that it shows to programs.
const TICKS_PER_SECOND: f64 = 100.0;

/// A coordinator in a process of its own. Killed when dropped.
pub(crate) struct Coordinator {
    child: Child,
    pub(crate) address: String,
    metrics: String,
}

impl Coordinator {
    /// Waits for all of `members` before the first generation; afterwards goes on with however many are left.
    pub(crate) fn start(members: usize, heartbeat_timeout: Duration) -> Result<Self> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_lcl-coordinator"))
            .args(["--insecure", "--ends-with-stdin", "--listen", "127.0.0.1:0", "--min-members", "1"])
            .args(["--desired-members", &members.to_string(), "--formation-wait", "600", "--metrics-listen", "127.0.0.1:0"])
            .args(["--heartbeat-timeout", &heartbeat_timeout.as_secs_f64().to_string()])
            // Of thousands of members it tells each that joins or goes, on a slow terminal.
            .env("RUST_LOG", "error")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting lcl-coordinator")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no standard output")?).read_line(&mut line)?;
        let said: serde_json::Value = serde_json::from_str(&line).with_context(|| format!("it said `{line}`"))?;
        let read = |name: &str| said[name].as_str().map(str::to_owned).with_context(|| format!("no {name} in {said}"));
        let (address, metrics) = (read("address")?, read("metrics")?);
        Ok(Self { child, address, metrics })
    }

    /// Processor seconds so far.
    pub(crate) fn cpu(&self) -> Result<f64> {
        let path = format!("/proc/{}/stat", self.child.id());
        let text = fs::read_to_string(&path)?;
        // After the name, which may hold spaces: utime and stime are the twelfth and the thirteenth.
        let fields: Vec<&str> = text.rsplit_once(')').context(path)?.1.split_whitespace().collect();
        let ticks = [11, 12].map(|field| fields.get(field).and_then(|ticks| ticks.parse::<u64>().ok()).unwrap_or(0));
        Ok((ticks[0] + ticks[1]) as f64 / TICKS_PER_SECOND)
    }

    /// Heartbeats received so far.
    pub(crate) fn heartbeats(&self) -> Result<f64> {
        let mut stream = TcpStream::connect(&self.metrics)?;
        write!(stream, "GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let name = "lcl_coordinator_messages_total{direction=\"received\",kind=\"heartbeat\"} ";
        Ok(text.lines().find_map(|line| line.strip_prefix(name)).map_or(Ok(0.0), str::parse)?)
    }

    /// Memory in MiB: now, and the most so far.
    pub(crate) fn memory(&self) -> Result<(f64, f64)> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let read = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).context("no such line")?;
            Ok::<_, anyhow::Error>(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
        };
        Ok((read("VmRSS:")?, read("VmHWM:")?))
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
