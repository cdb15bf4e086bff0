//! `spec.timeouts`: how long a job waits for its members.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// A day: longer waits are no time-outs any more.
pub(super) const MAX_TIMEOUT: i32 = 86_400;

/// How long the job waits for its members. A change takes effect on a running job: its coordinator is replaced, no worker is, and training
/// goes on meanwhile.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TimeoutsSpec {
    /// Seconds without a word after which a member is lost and the others go on; a connection that breaks is noticed at once. Several signs
    /// of life have to fit in: members give one a second. 10 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 3, max = MAX_TIMEOUT))]
    pub heartbeat_seconds: Option<i32>,
    /// Seconds that a member's training thread may stand still while others wait for it, before the member is taken for hung and evicted;
    /// has to be longer than any step. 120 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = MAX_TIMEOUT))]
    pub stall_seconds: Option<i32>,
    /// Seconds to wait for `workers.replicas` workers once `elastic.minWorkers` are there, before training starts with those; survivors of a
    /// loss go on at once. Without `elastic` all workers are waited for. 30 when left out, 60 with `lcl run --local`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_TIMEOUT))]
    pub formation_wait_seconds: Option<i32>,
}
