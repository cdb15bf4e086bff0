//! `spec.checkpoint`: where and when the state is saved.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::patterns::CHECKPOINT_URI;

/// Where and when the state is saved.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointSpec {
    /// Folder of the job's checkpoints, metrics and event files: `file:///path/in/the/worker`, `s3://bucket/prefix`, `gs://bucket/prefix`
    /// or `az://container/prefix`. Every worker must reach it. A job that finds its own checkpoints there goes on from the newest.
    #[schemars(regex(pattern = CHECKPOINT_URI), length(max = 2048))]
    #[x_kube(validation = ("self == oldSelf", "must not change after the job was created"))]
    pub uri: String,
    /// Steps between checkpoints; the last step is always saved.
    #[serde(default = "default_every_steps")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub every_steps: i64,
    /// The newest checkpoints that are kept.
    #[serde(default = "default_keep_last")]
    #[schemars(range(min = 1, max = 10_000))]
    pub keep_last: i32,
    /// Every checkpoint whose step is a multiple of this is kept for good. Default: none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub keep_every_steps: Option<i64>,
}

/// A thousand steps of the B/16 recipe are some ten minutes of work on one node of eight GPUs.
fn default_every_steps() -> i64 {
    1000
}

/// Three: the newest, one before it in case a shard of the newest is damaged, and one to spare.
fn default_keep_last() -> i32 {
    3
}
