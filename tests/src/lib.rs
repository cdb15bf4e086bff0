//! Support for tests that drive the programs of this workspace as processes.
//!
//! Comes in: a built `lcl-trainer`. Goes out: small data sets, configurations, and what a run left behind.
//! It links no libtorch: the program under test does. Tests that start the program lie in its package (`trainer/tests`), where cargo builds it
//! first; those about the workspace as a whole lie here.

pub mod azure;
pub mod coordinator;
pub mod data;
pub mod fault_proxy;
pub mod gcs;
pub mod hanging_store;
mod http_server;
pub mod process;
pub mod run;
pub mod s3;
pub mod shard_server;
mod store_process;
pub mod volume;

use std::path::{Path, PathBuf};

/// The workspace's root folder.
#[must_use]
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}
