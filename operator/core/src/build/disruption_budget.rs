//! How many of a job's workers a drain of nodes may take at once.

use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use crate::{
    build::{
        BuildContext,
        labels::{WORKER_ROLE, pod_labels},
        metadata, workers_name,
    },
    job::ValidatedJob,
};

/// A job that trains on with fewer keeps `elastic.minWorkers`. One that cannot, of a fixed size or at its smallest, gives up one worker after
/// the other, each once the one before it is back: a budget that spares all of them would hold a drain up for ever. A worker that is not
/// ready is never spared. As a number of workers that stay, since for one that may go Kubernetes asks the job for its scale, and allows
/// nothing while it gets no answer.
pub(crate) fn build_disruption_budget(job: &ValidatedJob, context: &BuildContext) -> PodDisruptionBudget {
    let world = job.world();
    let min_available = world.min.min(world.desired.saturating_sub(1));
    PodDisruptionBudget {
        metadata: metadata(job, context, workers_name(job), WORKER_ROLE),
        spec: Some(PodDisruptionBudgetSpec {
            min_available: Some(IntOrString::Int(min_available)),
            max_unavailable: None,
            selector: Some(LabelSelector { match_labels: Some(pod_labels(job, context, Some(WORKER_ROLE))), match_expressions: None }),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
        }),
        status: None,
    }
}
