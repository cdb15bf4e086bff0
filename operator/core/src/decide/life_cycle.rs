//! Where a job stands, before anything is decided: from this follows which pods are to be there.

use lcl_crds::JobState;

use super::is_final;
use crate::observe::ObservedJob;

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LifeCycle {
    /// No pod is to be there, and none is.
    Suspended,
    /// All its pods are to be there.
    Running,
    /// Its pods are to end in order, for a suspension. Once begun this is finished, whatever the job says meanwhile: a pod that was asked to
    /// end cannot be kept, and must not be taken for one that failed.
    Stopping,
    /// It is complete or has failed, for good.
    Finished,
}

impl LifeCycle {
    pub(super) fn of(observed: &ObservedJob) -> Self {
        if is_final(observed.status) {
            return Self::Finished;
        }
        let has_pods = observed.pods.values().any(|pod| pod.owner == observed.uid);
        let is_stopping = observed.status.state == Some(JobState::Suspending);
        match (observed.job.spec().suspend, has_pods) {
            (true, true) => Self::Stopping,
            (false, true) if is_stopping => Self::Stopping,
            (true, false) => Self::Suspended,
            (false, _) => Self::Running,
        }
    }
}
