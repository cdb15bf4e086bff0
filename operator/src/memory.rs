//! What the operator remembers of a job between two reconciles. All of it may be lost: then it is learnt again.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use k8s_openapi::jiff::Timestamp;
use lcl_crds::LCLTrainingJob;
use lcl_operator_core::{
    ValidatedJob,
    observe::{Obstacle, Problem, Wait},
    resources::AppliedResources,
};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::{cache::JobKey, gate::Gate, link::CoordinatorLink, reconcile::Unkept};

/// Of one job.
#[derive(Debug, Default)]
pub(crate) struct JobMemory {
    /// The job's uid: another one under the same name is remembered nothing of.
    pub(crate) uid: String,
    /// The job as the API server answered to our last write, and its version: the watch may lag behind.
    pub(crate) job: Option<(u64, Arc<LCLTrainingJob>)>,
    /// The job of this `metadata.generation` keeps every rule; and that job, while things happen to it.
    pub(crate) valid: Option<(i64, Option<Arc<ValidatedJob>>)>,
    /// An epoch that is written to the status and that no coordinator has got.
    pub(crate) unused_epoch: Option<i64>,
    /// Workers that were all there, where the status is still to say so.
    pub(crate) created: i32,
    /// Since when something is waited for.
    pub(crate) waiting_since: BTreeMap<Wait, Instant>,
    /// Uid of a pod that does not start, and why, by the Events about it.
    pub(crate) explanation: Option<(String, Obstacle)>,
    /// When Events were last looked for.
    pub(crate) explained: Option<Instant>,
    /// Uid of a worker's pod, and how many seconds it waited for its image.
    pub(crate) image_pull: Option<(String, i64)>,
    /// Why the last attempt to apply something failed.
    pub(crate) problem: Option<Problem>,
    /// Whether objects may be created now.
    pub(crate) gate: Gate,
    /// Failed reconciles in a row.
    pub(crate) failures: u32,
    /// Reconciles in a row that met something newer than what was looked at.
    pub(crate) stale: u32,
    /// When the status was last written.
    pub(crate) written: Option<Instant>,
    /// The status that was written last, if not all of it was kept.
    pub(crate) unkept: Option<Box<Unkept>>,
    /// Since when there is a status that is still to be written.
    pub(crate) unwritten: Option<Instant>,
    /// When each object was applied last, by its kind and name.
    pub(crate) applied: BTreeMap<(&'static str, String), Instant>,
    /// What pods are made of, as it was last there.
    pub(crate) resources: Option<Arc<AppliedResources>>,
    /// Until when the certificates hold that were applied last, and when that was.
    pub(crate) certificates: Option<(Timestamp, Instant)>,
    /// Until when those hold that the stream shows.
    pub(crate) link_expires: Option<Timestamp>,
    /// The stream from the coordinator.
    pub(crate) link: Option<CoordinatorLink>,
    /// At the last look the job was suspended and had no pods, or was over.
    pub(crate) is_at_rest: bool,
}

impl JobMemory {
    /// After a look: `is_quiet` if it found nothing to do or to say. What is large and can be made again is kept while things happen to a job, and
    /// of one at rest nothing is.
    pub(crate) fn settle(&mut self, is_at_rest: bool, is_quiet: bool) {
        self.is_at_rest = is_at_rest;
        if is_at_rest {
            (self.valid, self.resources) = (None, None);
        } else if is_quiet && let Some((_, job)) = &mut self.valid {
            *job = None;
        }
    }

    /// Whether nothing is remembered of a job at rest that is not learnt again when it is woken: there may be thousands.
    pub(crate) fn is_blank(&self) -> bool {
        self.is_at_rest
            && self.job.is_none()
            && self.waiting_since.is_empty()
            && self.problem.is_none()
            && self.unwritten.is_none()
            && self.unkept.is_none()
    }
}

/// Of all jobs.
#[derive(Debug, Default)]
pub(crate) struct Memories {
    jobs: Mutex<HashMap<JobKey, Arc<AsyncMutex<JobMemory>>>>,
}

impl Memories {
    /// That of a job, for as long as it is being looked at.
    pub(crate) async fn of(&self, key: &JobKey, uid: &str) -> OwnedMutexGuard<JobMemory> {
        let memory = Arc::clone(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).entry(key.clone()).or_default());
        let mut memory = memory.lock_owned().await;
        if memory.uid != uid {
            *memory = JobMemory { uid: uid.to_owned(), ..JobMemory::default() };
        }
        memory
    }

    /// Forgets what is remembered of a job.
    pub(crate) fn forget(&self, key: &JobKey) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// Forgets jobs that are gone, and with them the streams from their coordinators.
    pub(crate) fn retain(&self, exists: impl Fn(&JobKey) -> bool) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| exists(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_job_at_rest_nothing_is_remembered_but_what_cannot_be_learnt_again() {
        let memories = Memories::default();
        let key = JobKey { namespace: "team".to_owned(), name: "job".to_owned() };
        let mut memory = JobMemory { valid: Some((1, None)), ..JobMemory::default() };
        memory.settle(false, true);
        assert!(!memory.is_blank() && memory.valid.is_some(), "that it keeps the rules is remembered while it has pods");
        memory.settle(true, true);
        assert!(memory.is_blank() && memory.valid.is_none());
        memory.waiting_since.insert(Wait::Stop, Instant::now());
        assert!(!memory.is_blank(), "a wait would begin anew");
        memories.jobs.lock().expect("nobody panicked").insert(key.clone(), Arc::default());
        memories.forget(&key);
        assert!(memories.jobs.lock().expect("nobody panicked").is_empty());
    }
}
