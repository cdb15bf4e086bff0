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
    /// Its pods are to end in order. Once begun this is finished, whatever the job says meanwhile: a pod that was asked to end cannot be kept,
    /// and must not be taken for one that failed.
    Stopping(Why),
    /// It is complete or has failed, for good.
    Finished,
}

/// Why the pods of a job that is not over end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It is to be suspended.
    Suspension,
    /// Its group is to start again with what has changed.
    Change,
}

impl LifeCycle {
    pub(super) fn of(observed: &ObservedJob) -> Self {
        if is_final(observed.status) {
            return Self::Finished;
        }
        let begun = match observed.status.state {
            Some(JobState::Suspending) => Some(Why::Suspension),
            Some(JobState::Restarting) => Some(Why::Change),
            _ => observed.change.map(|_| Why::Change),
        };
        match (observed.job.spec().suspend, observed.has_pods(), begun) {
            (true, true, _) => Self::Stopping(Why::Suspension),
            (false, true, Some(why)) => Self::Stopping(why),
            (true, false, _) => Self::Suspended,
            (false, ..) => Self::Running,
        }
    }
}
