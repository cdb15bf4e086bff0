//! How long a job and its pods stay.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which pods are deleted when the job is complete or has failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CleanPodPolicySpec {
    /// All, and their logs with them.
    All,
    /// Those that still run; finished ones stay for their logs.
    #[default]
    Running,
    /// None: what runs on has to be ended by hand.
    None,
}
