//! The objects a job owns, one kind per file.
//!
//! Comes in: a [`ValidatedJob`] that the API server has stored, and the [`Surroundings`](BuildContext) of the operator. Goes out: objects
//! ready for server-side apply, each with the job as its owner. The same input gives the same bytes: what is already there and equal
//! is not written again.
//!
//! Pods get the coordinator's address and their own identity; whatever can change while they run comes over gRPC, so that a resize
//! never changes a pod.

mod certificates;
mod config_map;
mod coordinator_pod;
mod disruption_budget;
mod labels;
mod network_policy;
mod pod_defaults;
mod service;
mod service_account;
mod worker_pod;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use lcl_crds::{GROUP, KIND, PinnedStatus, VERSION};

pub use certificates::{AUTHORITY_FILE, COORDINATOR_PAIR, PairFiles, WORKER_PAIR, build_secret};
pub(crate) use config_map::build_config_map;
pub use config_map::{CONFIG_FILE, SPEC_FILE};
pub(crate) use coordinator_pod::build_coordinator_pod;
pub use coordinator_pod::{COORDINATOR_CONTAINER, COORDINATOR_PORT, EPOCH_ANNOTATION};
pub(crate) use disruption_budget::build_disruption_budget;
pub use labels::{
    COORDINATOR_ROLE, JOB_NAME_LABEL, JOB_UID_LABEL, MANAGED_BY, ROLE_LABEL, WORKER_INDEX_LABEL, WORKER_ROLE, worker_selector,
};
pub(crate) use network_policy::build_network_policies;
pub use network_policy::{NetworkAccess, network_policy_names};
pub(crate) use service::build_service;
pub use service::{coordinator_endpoint, coordinator_name};
pub(crate) use service_account::build_service_account;
pub(crate) use worker_pod::worker_pod_index;
pub use worker_pod::worker_pod_name;
pub(crate) use worker_pod::{CONFIG_FOLDER, OWN_VOLUMES, avoid_node, build_worker_pod, exclude_nodes, worker_grace_seconds};

use crate::{job::ValidatedJob, observe::HistoryPlace, pod_policy::PodPolicy};

/// What the objects depend on besides the job.
#[derive(Clone, Debug, PartialEq)]
pub struct BuildContext {
    /// Namespace of the job and of everything it owns.
    pub namespace: String,
    /// The job's `metadata.uid`.
    pub uid: String,
    /// Images, configuration and address.
    pub pins: PinnedStatus,
    /// `imagePullPolicy` of both; `None` leaves it to Kubernetes.
    pub image_pull_policy: Option<String>,
    /// Number of the newest incident, which new pods bear.
    pub incident: i64,
    /// What coordinators have said up to here is about pods of before, which new workers bear.
    pub history: HistoryPlace,
    /// Nodes that no worker is placed on.
    pub excluded_nodes: Vec<String>,
    /// What pods may do.
    pub policy: PodPolicy,
    /// From where pods are reached; `None` leaves it to the network.
    pub network: Option<NetworkAccess>,
}

/// On a pod: number of the incident that was the newest when it was created.
pub const INCIDENT_ANNOTATION: &str = "lcl.dev/incident";

/// On a worker's pod: the newest entry of its coordinator's history when it was created. A coordinator knows workers by name, and what it said
/// of one before that was about another pod.
pub const HISTORY_ANNOTATION: &str = "lcl.dev/coordinator-history";

/// Name of what is about all workers of a job.
fn workers_name(job: &ValidatedJob) -> String {
    format!("{}-workers", job.name())
}

/// Whether an owner is a job: one of another API group may be called the same.
#[must_use]
pub fn is_job(owner: &OwnerReference) -> bool {
    let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
    group == GROUP && owner.kind == KIND
}

/// Name, namespace, labels and owner that every object of the job has.
fn metadata(job: &ValidatedJob, context: &BuildContext, name: String, role: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(context.namespace.clone()),
        labels: Some(labels::labels(job, context, role)),
        owner_references: Some(vec![OwnerReference {
            api_version: format!("{GROUP}/{VERSION}"),
            kind: KIND.to_owned(),
            name: job.name().to_owned(),
            uid: context.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]),
        ..ObjectMeta::default()
    }
}
