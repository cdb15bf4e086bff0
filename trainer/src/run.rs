//! A run: what it is, its folder, and the records that are written there.

pub mod identity;
pub mod journal;
pub(crate) mod log_place;
pub mod records;
pub mod run_folder;
pub mod state_log;
pub mod tensorboard;
