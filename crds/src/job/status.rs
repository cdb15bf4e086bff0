//! `status`: counts and ranges, never an entry per member.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the operator last observed.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LCLTrainingJobStatus {
    /// Conditions: `Running`, `Recovering`, `Complete`, `Failed`, and for tools that know no jobs `Reconciling` and `Stalled`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
    /// Generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One word for people; programs read the conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<WorkersStatus>,
    /// Completed steps. Written at a bounded rate, so it may lag behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<i64>,
    /// Number of the membership that trains, or trained last, as `EPOCH.N`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<String>,
    /// Number of the newest coordinator. Written before its pod is created; every coordinator has a higher one than those before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coordinator_epoch: Option<i64>,
    /// Pods that were replaced since the job was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts: Option<i32>,
    /// The same by cause: `application`, `infrastructure`, `preemption`, `deletion`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub restarts_by_cause: BTreeMap<String, i32>,
    /// The last pod that had to be replaced, or that ended the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<LastFailureStatus>,
    /// Failures that count towards `spec.backoffLimit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_budget: Option<FailureBudgetStatus>,
    /// Pods whose end is on record and that are being replaced. Bounded: when many fail at once they are taken in turns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replacing: Vec<ReplacingStatus>,
    /// When the operator first saw the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the job became `Complete` or `Failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// The newest complete checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_checkpoint: Option<LastCheckpointStatus>,
    /// The sources of a mixture, in its order. Written with `step`, so at a bounded rate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub sources: Vec<SourceStatus>,
}

/// How a source of a mixture comes along. Losses are not weighted, and means over the source's own terms in the last steps: every predicted
/// token and every contrasted image counts once, at any number of members.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// Its name in `spec.data.mixture.sources`.
    pub name: String,
    /// Its samples that have had their turn in the whole run.
    pub samples: i64,
    /// Cross-entropy of its predicted tokens; absent when there were none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation_loss: Option<f64>,
    /// Contrastive loss of its images that have a context; absent when there were none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contrastive_loss: Option<f64>,
    /// Seconds of a step that training waited for its data, the mean of the last steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_wait_seconds: Option<f64>,
}

/// The workers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkersStatus {
    /// Workers that train.
    pub ready: i32,
    /// Workers that should train.
    pub desired: i32,
    /// Workers whose pods have been there since the last change of size: what is missing of them is a loss, not a beginning.
    pub created: i32,
    /// `ready/desired`, for the table of `kubectl get`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// Label selector of the workers' pods, for the scale subresource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
}

/// A complete checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastCheckpointStatus {
    /// Completed steps it holds.
    pub step: i64,
    /// When it was complete.
    pub time: Time,
}

/// A pod that ended before its time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastFailureStatus {
    /// The pod's name.
    pub pod: String,
    /// Why it ended, in one word.
    pub reason: String,
    /// What the pod said, or what was seen.
    pub message: String,
    /// Exit code of its main container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// When it was noticed.
    pub time: Time,
}

/// Failures in a row without a step in between.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailureBudgetStatus {
    /// Failures since the last progress.
    pub failures: i32,
    /// Completed steps at the last of them.
    pub step: i64,
}

/// A pod whose end is on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplacingStatus {
    /// Its name, which is that of its replacement too.
    pub pod: String,
    /// Its uid; empty when it had vanished before it was seen to end.
    #[serde(default)]
    pub uid: String,
}
