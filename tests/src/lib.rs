//! Support for tests that drive the programs of this workspace as processes.
//!
//! Comes in: the workspace's sources. Goes out: the built `lcl-trainer`, small data sets, configurations, and what a run left behind.
//! It links no libtorch: the program under test does.

pub mod data;
pub mod process;
pub mod run;

use std::path::{Path, PathBuf};

/// The workspace's root folder.
#[must_use]
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}
