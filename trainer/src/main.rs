//! The training process and its tools. See `lcl-trainer --help`.

use std::process;

use clap::Parser;
use indicatif::MultiProgress;
use lcl_trainer::{
    chain,
    command_line::{
        cli::{Cli, Command},
        commands, logs,
    },
};
use lcl_trainer_config::ExitCode;

fn main() -> process::ExitCode {
    lcl_torch::allocator::retain_memory();
    let cli = Cli::parse();
    let multi = MultiProgress::new();
    let trains = matches!(cli.command, Command::Train(_) | Command::Member(_));
    let _trace = match logs::start(cli.log_format, multi.clone(), trains) {
        Ok(trace) => trace,
        Err(error) => {
            eprintln!("{}", chain(&error));
            return ExitCode::Permanent.into();
        }
    };
    match commands::run(cli.command, cli.log_format, multi) {
        Ok(code) => code.into(),
        Err(error) => {
            let code = error.exit_code();
            tracing::error!(exit_code = code.code(), "{}", chain(&error));
            code.into()
        }
    }
}
