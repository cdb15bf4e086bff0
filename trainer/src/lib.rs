//! The training process as a library: what `lcl-trainer` is made of.
//!
//! Comes in: a [`lcl_trainer_config::TrainerConfig`]. Goes out: checkpoints, `metrics.jsonl`, TensorBoard files and what the user sees.
//! It wires `lcl-data`, `lcl-torch` and `lcl-checkpoint` together; it names neither tch nor a storage client itself.

pub mod display;
pub mod identity;
pub mod journal;
pub mod micro_batch;
pub mod records;
pub mod stop;
pub mod tensorboard;

#[cfg(test)]
mod test_support;
