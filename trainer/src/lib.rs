//! The training process as a library: what `lcl-trainer` is made of.
//!
//! Comes in: a [`lcl_trainer_config::TrainerConfig`]. Goes out: checkpoints, `metrics.jsonl`, `TensorBoard` files and what the user sees.
//! It wires `lcl-data`, `lcl-torch` and `lcl-checkpoint` together; it names neither tch nor a storage client itself.

#![allow(clippy::result_large_err, reason = "an error here ends a command; none is made on a path that is taken often")]

pub mod cli;
pub mod commands;
pub mod config_file;
pub mod control;
pub mod control_commands;
pub mod data_commands;
pub mod data_page;
pub mod data_source;
pub mod data_tools;
pub mod display;
pub mod evaluate;
pub mod fail_point;
pub mod forward;
pub mod generation;
pub mod identity;
pub mod journal;
pub mod local;
mod log_place;
pub mod membership;
pub mod micro_batch;
mod processors;
pub mod records;
pub mod report;
pub mod retrieval;
pub mod run_folder;
pub mod state_log;
pub mod stop;
pub mod supervisor;
pub mod tensorboard;
pub mod trained;
pub mod training;
pub mod weights;
pub mod worker;

#[cfg(test)]
mod test_support;

/// An error with what caused it, in one line. Some libraries repeat the cause in their own text; then it is not repeated again.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = error.source();
    }
    text
}
