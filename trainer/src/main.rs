//! The training process and its tools. See `lcl-trainer --help`.

use std::{
    io::{self, IsTerminal},
    process,
};

use clap::Parser;
use indicatif::MultiProgress;
use lcl_trainer::{
    chain,
    command_line::{
        cli::{Cli, LogFormat},
        commands,
        display::LogWriter,
    },
};
use tracing_subscriber::{EnvFilter, fmt};

fn main() -> process::ExitCode {
    lcl_torch::allocator::retain_memory();
    let cli = Cli::parse();
    let multi = MultiProgress::new();
    start_logging(cli.log_format, multi.clone());
    match commands::run(cli.command, cli.log_format, multi) {
        Ok(code) => code.into(),
        Err(error) => {
            let code = error.exit_code();
            tracing::error!(exit_code = code.code(), "{}", chain(&error));
            code.into()
        }
    }
}

fn start_logging(format: LogFormat, multi: MultiProgress) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = fmt().with_env_filter(filter).with_writer(LogWriter::new(multi)).with_ansi(io::stderr().is_terminal());
    // A standard error that nobody reads any more must not make whoever writes a line panic.
    let logs = logs.log_internal_errors(false);
    match format {
        LogFormat::Human => logs.with_target(false).init(),
        LogFormat::Json => logs.json().init(),
    }
}
