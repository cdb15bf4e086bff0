//! The training process as a library: what `lcl-trainer` is made of.
//!
//! Comes in: a [`lcl_trainer_config::TrainerConfig`]. Goes out: checkpoints, `metrics.jsonl`, `TensorBoard` files and what the user sees.
//! It wires `lcl-data`, `lcl-torch` and `lcl-checkpoint` together; it names neither tch nor a storage client itself.

#![allow(clippy::result_large_err, reason = "an error here ends a command; none is made on a path that is taken often")]

pub mod command_line;
pub mod data;
pub mod evaluation;
pub mod processes;
pub mod report;
pub mod run;
pub mod training;

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
