//! `lcl`, the user's tool: checks a job's manifest, runs it on this machine, asks a run how it is, and hands everything about data, weights
//! and figures to `lcl-trainer`.
//!
//! Decisions about a job are those of `lcl-operator-core`, the same that the operator uses in a cluster; this program only reads files,
//! prints, and replaces itself by the trainer. It knows nothing of tensors.

mod arguments;
mod ask;
mod data;
mod manifest;
mod report;
mod run;
mod run_folder;
mod trainer;
mod validate;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use arguments::{Arguments, Command};

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Validate(arguments) => validate::execute(&arguments),
        Command::Run(arguments) => run::execute(&arguments),
        Command::Status(arguments) => ask::status(&arguments),
        Command::Resize(arguments) => ask::resize(&arguments),
        Command::Drain(arguments) => ask::drain(&arguments),
        Command::Checkpoint(arguments) => ask::checkpoint(&arguments),
        Command::Stop(arguments) => ask::stop(&arguments),
        Command::Data(arguments) => data::execute(arguments),
        Command::Export(arguments) => trainer::hand_over("export", arguments),
        Command::Import(arguments) => trainer::hand_over("import", arguments),
        Command::Evaluate(arguments) => trainer::hand_over("evaluate", arguments),
        Command::Report(arguments) => trainer::hand_over("report", arguments),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "lcl", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        lcl_trainer_config::ExitCode::Permanent.into()
    })
}
