//! The coordinator of one job. See `lcl-coordinator --help`.

use std::{io, io::IsTerminal, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use lcl_coordinator::{Security, serve};
use lcl_protocol::{CoordinatorSettings, World};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tracing_subscriber::{EnvFilter, fmt};

/// Decides which members train together. It keeps nothing on disk: a new one learns all from the members.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Address to listen on; port 0 takes a free one, which the log names
    #[arg(long, default_value = "0.0.0.0:7070")]
    listen: SocketAddr,
    /// Higher than that of every coordinator of this job before
    #[arg(long, default_value_t = 1)]
    epoch: u64,
    /// With fewer members nothing is trained
    #[arg(long, default_value_t = 1)]
    min_members: u32,
    /// With this many members training starts without waiting for more
    #[arg(long)]
    desired_members: u32,
    /// Members beyond this number wait as spares [default: the desired ones]
    #[arg(long)]
    max_members: Option<u32>,
    /// Seconds to wait for the desired members once the fewest are there
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    formation_wait: Duration,
    /// Seconds without a word after which a member is lost (a broken stream is noticed at once)
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    heartbeat_timeout: Duration,
    /// Seconds that a survivor has to let go of a broken group; longer than a step takes
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    report_timeout: Duration,
    /// Serve without encryption and without asking who connects (there is no other way yet)
    #[arg(long)]
    insecure: bool,
    /// How log lines are written
    #[arg(long, value_enum, default_value_t = LogFormat::Human)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// For people
    Human,
    /// One JSON object a line
    Json,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().map_err(|error| error.to_string())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn start_logging(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    match format {
        LogFormat::Human => logs.with_target(false).init(),
        LogFormat::Json => logs.json().init(),
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    start_logging(options.log_format);
    ensure!(options.insecure, "the wire has no encryption yet: say --insecure to serve on {} nevertheless", options.listen);
    let max = options.max_members.unwrap_or(options.desired_members);
    let settings = CoordinatorSettings {
        epoch: options.epoch,
        world: World::new(options.min_members, options.desired_members, max)?,
        formation_wait: options.formation_wait,
        heartbeat_timeout: options.heartbeat_timeout,
        report_timeout: options.report_timeout,
    };
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: ending all streams"),
            _ = interrupt.recv() => tracing::info!("SIGINT: ending all streams"),
        }
    };
    let listener = TcpListener::bind(options.listen).await.with_context(|| format!("listening on {}", options.listen))?;
    Ok(serve(listener, settings, Security::Insecure, stop).await?)
}
