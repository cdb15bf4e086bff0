//! `LCLTrainingJob`: the object itself, and the rules that join several of its parts.

pub(crate) mod checkpoint;
pub(crate) mod coordinator;
pub(crate) mod data;
pub(crate) mod failure_policy;
pub(crate) mod lifetime;
pub(crate) mod model;
pub(crate) mod optimization;
pub(crate) mod service_account;
pub(crate) mod status;
#[allow(clippy::struct_field_names, reason = "in a manifest the name of a time says its unit")]
pub(crate) mod timeouts;
pub(crate) mod workers;

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use checkpoint::CheckpointSpec;
use coordinator::CoordinatorSpec;
use data::DataSpec;
use failure_policy::FailurePolicySpec;
use lifetime::CleanPodPolicySpec;
use model::ModelSpec;
use optimization::OptimizationSpec;
use service_account::ServiceAccountSpec;
use status::LCLTrainingJobStatus;
use timeouts::TimeoutsSpec;
use workers::{ElasticSpec, WorkersSpec};

use crate::patterns::MANAGER_NAME;

/// What to train, on what, how, and on how many workers.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "lcl.dev",
    version = "v1alpha1",
    kind = "LCLTrainingJob",
    plural = "lcltrainingjobs",
    shortname = "lcljob",
    category = "all",
    namespaced,
    derive = "PartialEq",
    doc = "LCLTrainingJob pre-trains a vision model by Latent Compression Learning on one or many workers.",
    status = "LCLTrainingJobStatus",
    scale(
        spec_replicas_path = ".spec.workers.replicas",
        status_replicas_path = ".status.workers.ready",
        label_selector_path = ".status.workers.selector"
    ),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Workers", type_ = "string", json_path = ".status.workers.summary", description = "Ready of desired workers"),
    printcolumn(name = "Step", type_ = "integer", json_path = ".status.steps.completed"),
    printcolumn(name = "Restarts", type_ = "integer", json_path = ".status.restarts.total"),
    printcolumn(
        name = "Checkpoint",
        type_ = "date",
        json_path = ".status.lastCheckpoint.time",
        description = "Age of the last complete checkpoint"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(WORLD_FITS_BATCH)
        .message("must be at least the number of members at the job's largest size (workers times membersPerWorker)")
        .field_path(".optimization.globalBatchSize"),
    validation = Rule::new("!has(self.elastic) || self.elastic.minWorkers <= self.workers.replicas")
        .message("must not exceed workers.replicas")
        .field_path(".elastic.minWorkers"),
    validation = Rule::new("!has(self.elastic) || self.elastic.maxWorkers >= self.workers.replicas")
        .message("must not be below workers.replicas")
        .field_path(".elastic.maxWorkers"),
    validation = Rule::new(PER_RANK_IS_NOT_ELASTIC)
        .message("PerRank makes the result depend on the number of members: elastic.minWorkers and elastic.maxWorkers must be equal")
        .field_path(".optimization.normalization"),
    validation = Rule::new(PER_RANK_DIVIDES)
        .message("must be a multiple of workers times membersPerWorker when normalization is PerRank")
        .field_path(".optimization.globalBatchSize"),
    validation = Rule::new(
        "has(self.managedBy) == has(oldSelf.managedBy) && (!has(self.managedBy) || self.managedBy == oldSelf.managedBy)"
    )
    .message("must not change after the job was created")
    .field_path(".managedBy"),
    validation = Rule::new(ACCOUNT_IS_USED)
        .message("must be left out when the template names another account by serviceAccountName: no worker would be of this one")
        .field_path(".serviceAccount"),
    validation = Rule::new(CLIP_HAS_CAPTIONS)
        .message("must be lcl when the data are documents: their images have no caption of their own")
        .field_path(".model.objective"),
    validation = Rule::new(WORLD_FITS_SHARDS)
        .message("must be at least the number of members at the job's largest size (workers times membersPerWorker)")
        .field_path(".optimization.exact.virtualShards"),
)]
pub struct LCLTrainingJobSpec {
    /// What is trained. Fixed once the job exists, except `activationCheckpointing`.
    pub model: ModelSpec,
    /// What it is trained on. Fixed once the job exists, except where and how fast it is read.
    pub data: DataSpec,
    /// How it is trained. Batch, seed and the optimizer's constants are fixed once the job exists; the number of steps and the learning
    /// rate's schedule may change.
    pub optimization: OptimizationSpec,
    /// Where and when the state is saved.
    pub checkpoint: CheckpointSpec,
    /// The processes that train.
    #[serde(default)]
    pub workers: WorkersSpec,
    /// The pod that decides membership.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coordinator: Option<CoordinatorSpec>,
    /// As whom the job's pods are known outside of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<ServiceAccountSpec>,
    /// Lets the job run with fewer or more workers than `workers.replicas`. Without it the job waits for exactly `workers.replicas`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elastic: Option<ElasticSpec>,
    /// How long the job waits for its members, also one of a fixed size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<TimeoutsSpec>,
    /// Whether the job's pods are to be away. Workers that train write a checkpoint and end, then the coordinator goes; set to false again, the
    /// job goes on from there. Its deadlines begin anew then.
    #[serde(default)]
    pub suspend: bool,
    /// Who runs the job. Any value but `lcl.dev/lcl-operator` (which leaving it out means) has this operator leave the job alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = MANAGER_NAME))]
    pub managed_by: Option<String>,
    /// Seconds after the job's start, or the end of its last suspension, in which it has to be complete; then it fails, its workers writing a
    /// last checkpoint. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub active_deadline_seconds: Option<i64>,
    /// Seconds after the job's start, or the end of its last suspension, in which it has to begin to train; then it fails. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub pre_running_deadline_seconds: Option<i64>,
    /// Seconds after which a job that is complete or has failed is deleted, with its pods and all its objects but what it wrote to
    /// `checkpoint.uri`. 0 deletes it at once. Default: it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub ttl_seconds_after_finished: Option<i32>,
    /// Which pods are deleted when the job is complete or has failed.
    #[serde(default)]
    pub clean_pod_policy: CleanPodPolicySpec,
    /// Which failures the job survives, and how many of them.
    #[serde(default)]
    pub failure_policy: FailurePolicySpec,
}

const ACCOUNT_IS_USED: &str = "!has(self.serviceAccount) || !has(self.workers.template) || !has(self.workers.template.spec) \
    || !has(self.workers.template.spec.serviceAccountName) || self.workers.template.spec.serviceAccountName == ''";

const CLIP_HAS_CAPTIONS: &str = "!has(self.model.objective.clip) \
    || (has(self.data.webdataset) && self.data.webdataset.layout == 'Pairs') || (has(self.data.mixture) \
    && self.data.mixture.sources.all(source, has(source.webdataset) && source.webdataset.layout == 'Pairs'))";

/// Members of a worker, in a rule of the spec. A number of accelerators that is none has its own rule.
macro_rules! members_per_worker {
    () => {
        "(has(self.workers.membersPerWorker) ? self.workers.membersPerWorker : \
         has(self.workers.resources) && has(self.workers.resources.limits) \
         && self.workers.acceleratorResource in self.workers.resources.limits \
         && string(self.workers.resources.limits[self.workers.acceleratorResource]).matches('^([1-9]|[1-5][0-9]|6[0-4])$') \
         ? int(string(self.workers.resources.limits[self.workers.acceleratorResource])) : 1)"
    };
}

/// Members at the job's largest size, in a rule of the spec.
macro_rules! most_members {
    () => {
        concat!("(has(self.elastic) ? self.elastic.maxWorkers : self.workers.replicas) * ", members_per_worker!())
    };
}

/// Work is assigned in slots of the global batch, so every member needs at least one.
const WORLD_FITS_BATCH: &str = concat!("self.optimization.globalBatchSize >= ", most_members!());

const PER_RANK_IS_NOT_ELASTIC: &str = "self.optimization.normalization != 'PerRank' || !has(self.elastic) \
    || self.elastic.minWorkers == self.elastic.maxWorkers";

/// The reference implementation averages over ranks of equal batch size.
const PER_RANK_DIVIDES: &str = concat!(
    "self.optimization.normalization != 'PerRank' || self.optimization.globalBatchSize % (self.workers.replicas * ",
    members_per_worker!(),
    ") == 0"
);

const WORLD_FITS_SHARDS: &str = concat!("!has(self.optimization.exact) || self.optimization.exact.virtualShards >= ", most_members!());
