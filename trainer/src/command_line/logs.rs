//! What a process says on its standard error, and the trace of its steps where one is asked for.

use std::{
    env,
    fs::{self, File},
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    process,
};

use indicatif::MultiProgress;
use tracing::level_filters::LevelFilter;
use tracing_chrome::{ChromeLayerBuilder, FlushGuard};
use tracing_subscriber::{EnvFilter, Layer, filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use super::{cli::LogFormat, display::LogWriter};

/// The variable that names a folder for traces: each process that trains writes the file `trace-PID.json` into it, in Chrome's format, which
/// <https://ui.perfetto.dev> and `chrome://tracing` show. It holds the parts of each step: the wait for data, preparing and exchanging rows,
/// forward and backward passes, sums over members, updates, checkpoints. Meant for some steps: a step takes about 2 kB.
pub const TRACE: &str = "LCL_TRACE";

/// What the spans of a step have as their target.
const STEP: &str = lcl_torch::probe::STEP;

/// The trace has no file.
#[derive(Debug, thiserror::Error)]
#[error("creating {path}, the trace that {TRACE} asks for")]
pub struct TraceError {
    /// The file.
    path: PathBuf,
    source: io::Error,
}

/// Starts both. The trace is complete when the value is dropped. `trains`: the process has steps that can be traced.
pub fn start(format: LogFormat, multi: MultiProgress, trains: bool) -> Result<Option<FlushGuard>, TraceError> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // A standard error that nobody reads any more must not make whoever writes a line panic.
    let logs = fmt::layer().with_writer(LogWriter::new(multi)).with_ansi(io::stderr().is_terminal()).log_internal_errors(false);
    let logs = match format {
        LogFormat::Human => logs.with_target(false).boxed(),
        LogFormat::Json => logs.json().boxed(),
    };
    let file = env::var_os(TRACE).filter(|_| trains).map(|folder| create(Path::new(&folder))).transpose()?;
    let trace = file.map(|file| ChromeLayerBuilder::new().writer(file).include_args(true).include_locations(false).build());
    let (trace, guard) = trace.unzip();
    let trace = trace.map(|trace| trace.with_filter(Targets::new().with_target(STEP, LevelFilter::TRACE)));
    tracing_subscriber::registry().with(trace).with(logs.with_filter(filter)).init();
    Ok(guard)
}

fn create(folder: &Path) -> Result<File, TraceError> {
    let path = folder.join(format!("trace-{}.json", process::id()));
    fs::create_dir_all(folder).and_then(|()| File::create(&path)).map_err(|source| TraceError { path, source })
}
