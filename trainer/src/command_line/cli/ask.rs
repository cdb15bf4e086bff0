//! Arguments of the commands that ask a run on this machine: `status`, `resize`, `drain`, `checkpoint`, `stop`.

use std::num::NonZeroU32;

use clap::{Args, ValueEnum};

use super::at_least_one;

/// `status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The run.
    #[command(flatten)]
    pub run: AskedRun,
}

/// `resize`
#[derive(Debug, Args)]
pub struct ResizeArgs {
    /// The run.
    #[command(flatten)]
    pub run: AskedRun,
    /// Workers from now on. More: those that are missing are started. Fewer: those with the highest numbers leave after their step. The
    /// others are not touched.
    #[arg(long, value_name = "N", value_parser = at_least_one::<NonZeroU32>)]
    pub workers: NonZeroU32,
}

/// `drain`
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// The run.
    #[command(flatten)]
    pub run: AskedRun,
    /// The worker that is to leave after its step, as `status` calls it. It is not replaced: the run has one worker less until `resize` asks
    /// for more.
    #[arg(value_name = "WORKER")]
    pub worker: String,
}

/// `checkpoint`
#[derive(Debug, Args)]
pub struct CheckpointArgs {
    /// The run.
    #[command(flatten)]
    pub run: AskedRun,
}

/// `stop`
#[derive(Debug, Args)]
pub struct StopArgs {
    /// The run.
    #[command(flatten)]
    pub run: AskedRun,
}

/// Which run, and how its answer is printed.
#[derive(Debug, Args)]
pub struct AskedRun {
    /// The run's folder, or its file:// URI.
    #[arg(value_name = "RUN")]
    pub run: String,
    /// How the answer is printed.
    #[arg(short, long, value_enum, default_value_t = AnswerFormat::Text)]
    pub output: AnswerFormat,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AnswerFormat {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}
