//! Labels by which the operator, schedulers and people find a job's objects.

use std::collections::BTreeMap;

use crate::{build::BuildContext, job::ValidatedJob};

/// Label and value that all objects of all jobs have: what the operator watches is selected by it.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "lcl-operator");
/// The job's name.
pub const JOB_NAME_LABEL: &str = "lcl.dev/job-name";
/// The job's uid: a job made anew under an old name owns nothing of the old one.
pub const JOB_UID_LABEL: &str = "lcl.dev/job-uid";
/// What the object is for: [`WORKER_ROLE`] or [`COORDINATOR_ROLE`].
pub const ROLE_LABEL: &str = "lcl.dev/role";
/// A worker's index, 0 to replicas - 1.
pub const WORKER_INDEX_LABEL: &str = "lcl.dev/worker-index";
/// Role of pods that train.
pub const WORKER_ROLE: &str = "worker";
/// Role of the pod that decides membership, and of objects of the job as a whole.
pub const COORDINATOR_ROLE: &str = "coordinator";

pub(super) fn labels(job: &ValidatedJob, context: &BuildContext, role: &str) -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/name", "lcl-training"),
        ("app.kubernetes.io/instance", job.name()),
        ("app.kubernetes.io/component", role),
        ("app.kubernetes.io/part-of", "lcl"),
        (MANAGED_BY.0, MANAGED_BY.1),
        (JOB_NAME_LABEL, job.name()),
        (JOB_UID_LABEL, &context.uid),
        (ROLE_LABEL, role),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// Labels by which the job's pods are selected; of one role, or of both.
pub(super) fn pod_labels(job: &ValidatedJob, context: &BuildContext, role: Option<&str>) -> BTreeMap<String, String> {
    let own = [(JOB_NAME_LABEL, job.name()), (JOB_UID_LABEL, &context.uid)];
    own.into_iter().chain(role.map(|role| (ROLE_LABEL, role))).map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// Selector of a job's workers, as the scale subresource wants it.
#[must_use]
pub fn worker_selector(job: &ValidatedJob, context: &BuildContext) -> String {
    format!("{JOB_NAME_LABEL}={},{JOB_UID_LABEL}={},{ROLE_LABEL}={WORKER_ROLE}", job.name(), context.uid)
}
