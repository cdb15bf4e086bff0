//! The coordinator of one job. See `lcl-coordinator --help`.

use std::{
    io::{self, IsTerminal, Write},
    net::SocketAddr,
    path::PathBuf,
    process,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, Error, Result};
use clap::{ArgAction, Parser, ValueEnum, builder::FalseyValueParser};
use lcl_coordinator::{Metrics, Security, serve_metrics, serve_with};
use lcl_protocol::{CoordinatorSettings, SlowEviction, World};
use lcl_security::listen;
use lcl_trainer_config::ExitCode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tracing_subscriber::{EnvFilter, fmt};

const EXIT_CODES: &str = "\
Once it listens it prints one line to standard output, {\"event\":\"listening\",\"address\":\"IP:PORT\",\"epoch\":N}, and nothing else
there; with --metrics-listen the line holds \"metrics\":\"IP:PORT\", too. Exit codes: 0 asked to end, 2 or 65 wrong settings, 75 it may go well next time (the address is taken).";

/// Decides which members train together. It keeps nothing on disk: a new one learns all from the members.
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Options {
    /// Address to listen on; port 0 takes a free one, which is announced
    #[arg(long, env = "LCL_LISTEN", default_value = "[::]:7433")]
    listen: SocketAddr,
    /// Higher than that of every coordinator of this job before
    #[arg(long, env = "LCL_EPOCH", default_value_t = 1)]
    epoch: u64,
    /// With fewer members nothing is trained
    #[arg(long, env = "LCL_MIN_MEMBERS", default_value_t = 1)]
    min_members: u32,
    /// With this many members training starts without waiting for more
    #[arg(long, env = "LCL_DESIRED_MEMBERS")]
    desired_members: u32,
    /// Members beyond this number wait as spares [default: the desired ones]
    #[arg(long, env = "LCL_MAX_MEMBERS")]
    max_members: Option<u32>,
    /// Seconds to wait for the desired members once the fewest are there
    #[arg(long, env = "LCL_FORMATION_WAIT", value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    formation_wait: Duration,
    /// Seconds without a word after which a member is lost (a broken stream is noticed at once)
    #[arg(long, env = "LCL_HEARTBEAT_TIMEOUT", value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    heartbeat_timeout: Duration,
    /// Seconds that a survivor has to let go of a broken group; longer than a step takes
    #[arg(long, env = "LCL_REPORT_TIMEOUT", value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    report_timeout: Duration,
    /// Seconds that a member's training thread may stand still while others wait for it, before it is evicted; longer than any step
    #[arg(long, env = "LCL_STALL_TIMEOUT", value_name = "SECONDS", default_value = "120", value_parser = seconds)]
    stall_timeout: Duration,
    /// Evict a member whose own work in a step takes more than this many times the median's, for as long as --evict-slow-after says; at
    /// least 1.2. Never so that fewer than the fewest members are left [default: slow members are only put on record]
    #[arg(long, env = "LCL_EVICT_SLOW_FACTOR", value_name = "FACTOR")]
    evict_slow_factor: Option<f64>,
    /// Seconds in one generation for which a member has to be that slow, without a break
    #[arg(long, env = "LCL_EVICT_SLOW_AFTER", value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    evict_slow_after: Duration,
    /// Address of /metrics and /healthz, in plain HTTP; port 0 takes a free one, which is announced [default: none]
    #[arg(long, env = "LCL_METRICS_LISTEN", value_name = "ADDRESS")]
    metrics_listen: Option<SocketAddr>,
    /// Certificate of the coordinator, for the name lcl-coordinator, in PEM
    #[arg(long, env = "LCL_TLS_CERTIFICATE", value_name = "FILE")]
    tls_certificate: Option<PathBuf>,
    /// Its key
    #[arg(long, env = "LCL_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Certificates of the authority: who shows no certificate of it is refused
    #[arg(long, env = "LCL_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Serve without encryption and without asking who connects
    #[arg(long, env = "LCL_INSECURE", action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    insecure: bool,
    /// End when standard input does: with the process that started this one
    #[arg(long)]
    ends_with_stdin: bool,
    /// How log lines are written
    #[arg(long, env = "LCL_LOG_FORMAT", value_enum, default_value_t = LogFormat::Human)]
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
    // A standard error that nobody reads any more must not make whoever writes a line panic.
    let logs = logs.log_internal_errors(false);
    match format {
        LogFormat::Human => logs.with_target(false).init(),
        LogFormat::Json => logs.json().init(),
    }
}

fn main() -> process::ExitCode {
    let options = Options::parse();
    start_logging(options.log_format);
    match settings(&options).map_err(|error| (ExitCode::Permanent, error)).and_then(|(settings, security)| {
        let served = run(&options, settings, security);
        served.map_err(|error| (ExitCode::Retryable, error))
    }) {
        Ok(()) => ExitCode::Success.into(),
        Err((code, error)) => {
            tracing::error!(exit_code = code.code(), "{error:#}");
            code.into()
        }
    }
}

fn settings(options: &Options) -> Result<(CoordinatorSettings, Security)> {
    let [certificate, key, authority] = [&options.tls_certificate, &options.tls_key, &options.tls_ca].map(Clone::clone);
    let security = Security::choose(options.insecure, certificate, key, authority)?;
    let max = options.max_members.unwrap_or(options.desired_members);
    let settings = CoordinatorSettings {
        epoch: options.epoch,
        world: World::new(options.min_members, options.desired_members, max)?,
        formation_wait: options.formation_wait,
        heartbeat_timeout: options.heartbeat_timeout,
        report_timeout: options.report_timeout,
        stall_timeout: options.stall_timeout,
        slow_eviction: options.evict_slow_factor.map(|factor| SlowEviction::new(factor, options.evict_slow_after)).transpose()?,
    };
    Ok((settings, security))
}

/// A member's stream takes a file: the limit is raised as far as the system allows. Fewer files are no reason not to start.
fn raise_open_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(?current, ?maximum, "the number of open files is not raised, which bounds the number of members: {error}");
    }
}

#[tokio::main]
async fn run(options: &Options, settings: CoordinatorSettings, security: Security) -> Result<()> {
    raise_open_files();
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let parent = if options.ends_with_stdin { Some(end_of_stdin().context("watching standard input")?) } else { None };
    let parent_is_gone = async move {
        match parent {
            // The sender is gone only together with its thread, which ends by sending.
            Some(gone) => drop(gone.await),
            None => std::future::pending().await,
        }
    };
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: ending all streams"),
            _ = interrupt.recv() => tracing::info!("SIGINT: ending all streams"),
            () = parent_is_gone => tracing::info!("the process that started this one is gone: ending all streams"),
        }
    };
    let listener = listen(options.listen).await.with_context(|| format!("listening on {}", options.listen))?;
    let metrics = Arc::new(Metrics::new());
    let metrics_address = match options.metrics_listen {
        None => None,
        Some(address) => {
            let listener = listen(address).await.with_context(|| format!("listening on {address} for metrics"))?;
            let address = listener.local_addr().context("reading the address that metrics are served on")?;
            tokio::spawn(serve_metrics(listener, Arc::clone(&metrics)));
            Some(address)
        }
    };
    announce(listener.local_addr().context("reading the address that it listens on")?, settings.epoch, metrics_address);
    serve_with(listener, settings, security, metrics, stop).await.map_err(Error::from)
}

/// For a parent process: streams opened from now on are answered. Written by hand, since all values are plain in JSON.
fn announce(address: SocketAddr, epoch: u64, metrics: Option<SocketAddr>) {
    let metrics = metrics.map(|metrics| format!(",\"metrics\":\"{metrics}\"")).unwrap_or_default();
    // Nobody has to read it.
    let mut stdout = io::stdout();
    let line = writeln!(stdout, "{{\"event\":\"listening\",\"address\":\"{address}\",\"epoch\":{epoch}{metrics}}}");
    let _ = line.and_then(|()| stdout.flush());
}

/// Resolves when standard input ends.
fn end_of_stdin() -> io::Result<oneshot::Receiver<()>> {
    let (sender, receiver) = oneshot::channel();
    let watch = || {
        // An error means that there is no more to come either.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        let _ = sender.send(());
    };
    // Not a task of the runtime: that would wait for it at its end.
    thread::Builder::new().name("parent".to_owned()).spawn(watch)?;
    Ok(receiver)
}
