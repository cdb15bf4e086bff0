//! `status`: counts and ranges, never an entry per member.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the operator last observed.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LCLTrainingJobStatus {
    /// Conditions: `Running`, `Recovering`, `Suspended`, `PodsReady`, `CheckpointFresh`, `Complete`, `Failed`, and for tools that know no jobs
    /// `Reconciling` and `Stalled`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
    /// Generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The conditions in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<JobState>,
    /// The workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<WorkersStatus>,
    /// Steps. Written at a bounded rate, so what is completed may lag behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<StepsStatus>,
    /// The group that trains, or trained last; absent while the job is suspended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupStatus>,
    /// What all pods of the running group have, and keep though the job or the operator changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<PinnedStatus>,
    /// Number of the newest coordinator. Written before its pod is created; every coordinator has a higher one than those before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coordinator_epoch: Option<i64>,
    /// The loss that is minimised, the mean of the last steps. Written with `steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Samples of all members a second, the mean of the last steps. Written with `steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples_per_second: Option<f64>,
    /// Pods that were replaced since the job was created.
    #[serde(default)]
    pub restarts: RestartsStatus,
    /// The last pod that had to be replaced, or that ended the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<LastFailureStatus>,
    /// Incidents, as far as `spec.failurePolicy` and the pauses before replacements need them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures: Option<FailuresStatus>,
    /// Pods whose end is on record and that are being replaced. Bounded: when many fail at once they are taken in turns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replacing: Vec<ReplacingStatus>,
    /// When the job was started, or went on after its last suspension; absent while it is suspended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the job became `Complete` or `Failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// The start of the worker's pod that took longest from its creation until its container `worker` ran, of the pods that are there:
    /// `scheduledSeconds` and `startSeconds` together. Whole seconds, as Kubernetes keeps these times, the last of them by the node's own clock.
    /// Written once all pods that can start have started, at a bounded rate; absent while the job is suspended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup: Option<StartupStatus>,
    /// The newest complete checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_checkpoint: Option<LastCheckpointStatus>,
    /// Nodes that no worker of the job is placed on any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 65))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["node".to_owned()]))]
    pub excluded_nodes: Vec<ExcludedNodeStatus>,
    /// The sources of a mixture, in its order. Written with `steps`, so at a bounded rate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub sources: Vec<SourceStatus>,
}

/// A job's conditions in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum JobState {
    /// It has not begun to train.
    Pending,
    /// It trains.
    Running,
    /// It stands still until its group is formed again.
    Recovering,
    /// Its coordinator runs and cannot be reached.
    Unknown,
    /// Its pods are going, since its group is to start again with what has changed.
    Restarting,
    /// Its pods are going, since it is to be suspended.
    Suspending,
    /// It is suspended: no pod of it is there.
    Suspended,
    /// Its last step is done.
    Complete,
    /// It was given up.
    Failed,
}

impl JobState {
    /// As it stands in the status.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Recovering => "Recovering",
            Self::Unknown => "Unknown",
            Self::Restarting => "Restarting",
            Self::Suspending => "Suspending",
            Self::Suspended => "Suspended",
            Self::Complete => "Complete",
            Self::Failed => "Failed",
        }
    }
}

/// Steps of the job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepsStatus {
    /// Steps that every member has committed.
    pub completed: i64,
    /// Steps after which the job is complete.
    pub total: i64,
}

/// A group of members that trains together. Numbers are compared by epoch first and never decrease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GroupStatus {
    /// Epoch of the coordinator that formed it.
    pub epoch: i64,
    /// Its number under this coordinator, from 1.
    pub number: i64,
    /// Its members.
    pub members: i32,
}

/// What the pods of a group have in common. A pod that is replaced gets it, too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PinnedStatus {
    /// Generation of the spec that the configuration was made from.
    pub generation: i64,
    /// Name of the `ConfigMap` with the trainer's configuration.
    pub config: String,
    /// Image of the coordinator.
    pub coordinator_image: String,
    /// Image of the workers.
    pub trainer_image: String,
    /// Cluster IP of the coordinator's Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Which authority the certificates of the job's pods are of: another operator's is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
    /// Until when the certificates of the job's pods hold. They are renewed long before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificates_expire: Option<Time>,
}

/// Pods that were replaced since the job was created, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RestartsStatus {
    /// All of them.
    pub total: i32,
    /// The program ended with an error, or was killed for its memory.
    pub application: i32,
    /// The node was lost, or did not take or keep the pod.
    pub infrastructure: i32,
    /// The pod made room for another, or was asked to leave.
    pub preemption: i32,
    /// Somebody deleted the pod.
    pub deletion: i32,
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

/// The slowest start among the workers' pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StartupStatus {
    /// The pod's name.
    pub pod: String,
    /// Its uid.
    pub uid: String,
    /// From the pod's creation until it had its node.
    pub scheduled_seconds: i64,
    /// From then until its container `worker` ran: volumes, network, images, init containers.
    pub start_seconds: i64,
    /// Of `startSeconds`, what it waited for the image of its container `worker`, as the kubelet's Event `Pulled` says: 0 if the node had the
    /// image. Absent when the start took less than five seconds, or no such Event was found within ten seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_seconds: Option<i64>,
}

/// A complete checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastCheckpointStatus {
    /// Completed steps it holds.
    pub step: i64,
    /// When it was complete, by the clock of the member that wrote it.
    pub time: Time,
    /// Where it lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// Seconds from the one before it, or from the job's start, until it was complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_seconds: Option<i64>,
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

/// Incidents: what several pods suffer within a minute for the same cause is one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FailuresStatus {
    /// Number of the newest incident. A pod bears the number that was the newest when it was created.
    pub incidents: i64,
    /// Incidents without a completed step in between. Each doubles the pause before replacements.
    pub in_a_row: i32,
    /// Completed steps at the newest of them.
    pub step: i64,
    /// Of `spec.failurePolicy.application`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub application: Option<BudgetStatus>,
    /// Of `spec.failurePolicy.infrastructure`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub infrastructure: Option<BudgetStatus>,
    /// Of `spec.failurePolicy.preemption`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preemption: Option<BudgetStatus>,
    /// Those that a rule says to ignore; the newest alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignored: Option<BudgetStatus>,
}

/// Incidents of one budget.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BudgetStatus {
    /// Number of the newest one.
    pub newest: i64,
    /// When they began, oldest first: those that were within the budget's window when the newest began.
    pub times: Vec<Time>,
}

/// A node on which a worker failed its self-test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExcludedNodeStatus {
    /// Its name.
    pub node: String,
    /// What the worker said.
    pub message: String,
    /// When it was seen.
    pub time: Time,
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
    /// Its node, if that gave no sign of life: the replacement is placed elsewhere where there is room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub avoided_node: Option<String>,
}
