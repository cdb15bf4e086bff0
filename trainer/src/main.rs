//! The training process and its tools. See `lcl-trainer --help`.

use std::io::{self, Write};

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

fn main() -> ! {
    lcl_torch::allocator::retain_memory();
    let code = match Cli::try_parse() {
        Ok(cli) => execute(cli).code().into(),
        Err(told) => {
            // Nobody may be listening.
            let _ = told.print();
            told.exit_code()
        }
    };
    // What the process has to say has been said; nobody may be listening.
    let _ = io::stdout().flush();
    // Not by the end of `main`: that runs libtorch's destructors, a quarter of what a short command takes, beside threads that use libtorch.
    signal_hook::low_level::exit(code)
}

/// What the process returns for a command. What it wrote is complete when this returns.
fn execute(cli: Cli) -> ExitCode {
    let multi = MultiProgress::new();
    let trains = matches!(cli.command, Command::Train(_) | Command::Member(_));
    let _trace = match logs::start(cli.log_format, multi.clone(), trains) {
        Ok(trace) => trace,
        Err(error) => {
            eprintln!("{}", chain(&error));
            return ExitCode::Permanent;
        }
    };
    match commands::run(cli.command, cli.log_format, multi) {
        Ok(code) => code,
        Err(error) => {
            let code = error.exit_code();
            tracing::error!(exit_code = code.code(), "{}", chain(&error));
            code
        }
    }
}
