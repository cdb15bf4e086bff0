//! What to do for a job, given what was seen of it.
//!
//! Comes in: an [`ObservedJob`]. Goes out: a [`Decision`]: the status to write, *then* the actions to take, then the events to tell.
//! The order matters: what must survive a crash of the operator (a coordinator's epoch, a failure that was counted) stands in the status
//! before anything depends on it is done. Deciding twice over the same observation gives the same; acting twice changes nothing.
//! A job that is complete or has failed stays so: this is looked at before anything else.

mod budgets;
mod draft;
mod ending;
mod life_cycle;
mod pods;
mod progress;
mod startup;
mod suspension;

use std::time::Duration;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use lcl_crds::LCLTrainingJobStatus;

pub use pods::DELETION_SLACK;
pub use progress::{Urgency, urgency};

use crate::observe::{MemberBounds, ObservedJob, Problem, Wait};
use draft::Draft;
use life_cycle::LifeCycle;

/// Reasons of conditions and events.
pub mod reason {
    /// The group trains.
    pub const TRAINING: &str = "Training";
    /// No group was formed yet.
    pub const WAITING_FOR_WORKERS: &str = "WaitingForWorkers";
    /// The group broke and forms anew.
    pub const GROUP_BROKEN: &str = "GroupBroken";
    /// The coordinator's pod is being replaced.
    pub const COORDINATOR_LOST: &str = "CoordinatorLost";
    /// The coordinator's pod runs, but does not answer.
    pub const COORDINATOR_UNREACHABLE: &str = "CoordinatorUnreachable";
    /// Event: the first group trains.
    pub const TRAINING_STARTED: &str = "TrainingStarted";
    /// Event: another group than before trains.
    pub const GROUP_FORMED: &str = "GroupFormed";
    /// Event: training stopped for a recovery.
    pub const RECOVERING: &str = "Recovering";
    /// Event: training goes on.
    pub const RECOVERED: &str = "Recovered";
    /// Event: a worker's pod ended and is replaced.
    pub const WORKER_REPLACED: &str = "WorkerReplaced";
    /// Event: the coordinator's pod ended and is replaced.
    pub const COORDINATOR_REPLACED: &str = "CoordinatorReplaced";
    /// Event: the number of workers was changed.
    pub const SCALED: &str = "Scaled";
    /// The last step is done.
    pub const COMPLETE: &str = "Complete";
    /// It took longer than it may.
    pub const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";
    /// A program said that it would fail again.
    pub const PERMANENT_FAILURE: &str = "PermanentFailure";
    /// As many workers are ready as the job needs at least.
    pub const PODS_READY: &str = "PodsReady";
    /// A pod's image cannot be pulled, a Secret is missing, no node has room, …
    pub const POD_CANNOT_START: &str = "PodCannotStart";
    /// No checkpoint was written yet.
    pub const NO_CHECKPOINT: &str = "NoCheckpoint";
    /// Checkpoints are written in time.
    pub const CHECKPOINT_WRITTEN: &str = "CheckpointWritten";
    /// The next checkpoint is overdue.
    pub const CHECKPOINT_OLD: &str = "CheckpointOld";
    /// A rule of the failure policy says so.
    pub const POD_FAILURE_POLICY: &str = "PodFailurePolicy";
    /// The job's pods are ending, since it is to be suspended.
    pub const SUSPENDING: &str = "Suspending";
    /// The job's pods are ending, since its group is to start again with what has changed.
    pub const SPEC_CHANGED: &str = "SpecChanged";
    /// Pods are still there that are to be away.
    pub const STOPPING: &str = "Stopping";
    /// The job has no pods, since it is suspended.
    pub const SUSPENDED: &str = "Suspended";
    /// The job goes on after a suspension.
    pub const RESUMED: &str = "Resumed";
    /// Workers fail their self-test on more nodes than the failure policy allows.
    pub const TOO_MANY_UNFIT_NODES: &str = "TooManyUnfitNodes";
    /// Event: no worker of the job is placed on a node any more.
    pub const NODE_EXCLUDED: &str = "NodeExcluded";
    /// A budget of the failure policy is spent.
    pub const BACKOFF_LIMIT_EXCEEDED: &str = "BackoffLimitExceeded";
    /// The stored job breaks a rule: the installed definition is another one than the operator's.
    pub const VALIDATION_FAILED: &str = "ValidationFailed";
    /// Another job, which is not over, writes its run into the same folder.
    pub const FOLDER_TAKEN: &str = "CheckpointFolderTaken";
    /// An object could not be applied.
    pub const CREATE_FAILED: &str = "CreateFailed";
}

/// Types of conditions.
pub mod condition {
    /// The group trains.
    pub const RUNNING: &str = "Running";
    /// Training stands still until a group is formed again.
    pub const RECOVERING: &str = "Recovering";
    /// The job is suspended, and has no pods.
    pub const SUSPENDED: &str = "Suspended";
    /// As many workers are ready as the job needs at least.
    pub const PODS_READY: &str = "PodsReady";
    /// The newest checkpoint is not older than twice the time from one to the next.
    pub const CHECKPOINT_FRESH: &str = "CheckpointFresh";
    /// Final: the last step is done.
    pub const COMPLETE: &str = "Complete";
    /// Final: given up.
    pub const FAILED: &str = "Failed";
    /// For kstatus: not yet as wanted.
    pub const RECONCILING: &str = "Reconciling";
    /// For kstatus: will not get there by itself.
    pub const STALLED: &str = "Stalled";
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The status, to be written before anything else if it differs from the stored one.
    pub status: LCLTrainingJobStatus,
    /// Whether the job is complete or has failed: then nothing is applied any more.
    pub is_final: bool,
    /// What to do, in this order; creations may be done side by side.
    pub actions: Vec<Action>,
    /// What to tell, after the status was written.
    pub events: Vec<JobEvent>,
    /// What is waited for now; the caller remembers since when.
    pub waits: Vec<Wait>,
    /// Names of pods that are gone and whose end there is no room to put on record now: what was seen of them is to be shown again.
    pub unrecorded: Vec<String>,
    /// When to decide again at the latest, though nothing is seen.
    pub again_after: Option<Duration>,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Tell the coordinator the bounds.
    SetWorld(MemberBounds),
    /// Ask the coordinator to have all members write a checkpoint and end.
    StopGroup,
    /// Ask the coordinator to let a worker's members leave.
    DrainWorker {
        /// The worker: its pod's name.
        worker: String,
    },
    /// Delete a pod, that one alone.
    DeletePod {
        /// Name.
        name: String,
        /// Uid: a namesake is left alone.
        uid: String,
        /// Without waiting for its node.
        force: bool,
    },
    /// Look for the reason why a pod does not start among the Events about it.
    ExplainPod {
        /// Its uid.
        uid: String,
    },
    /// Look among the Events about a worker's pod how long it waited for its image.
    FindImagePull {
        /// Its uid.
        uid: String,
    },
    /// Delete the job, and with it all that belongs to it.
    DeleteJob,
    /// Create the coordinator's pod.
    CreateCoordinator {
        /// Its epoch, which the status holds already.
        epoch: i64,
    },
    /// Create a worker's pod.
    CreateWorker {
        /// Its index.
        index: u32,
    },
}

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobEvent {
    /// Whether it is bad news.
    pub warning: bool,
    /// One of [`reason`].
    pub reason: &'static str,
    /// For people.
    pub note: String,
}

/// Decides. Pure; see the module's description.
#[must_use]
pub fn decide(observed: &ObservedJob) -> Decision {
    let mut draft = Draft::new(observed);
    let life_cycle = LifeCycle::of(observed);
    if life_cycle == LifeCycle::Finished {
        ending::clean_up(&mut draft);
        return draft.finish(true);
    }
    draft.begin();
    if let Some(end) = ending::find_end(observed) {
        ending::conclude(&mut draft, end);
        return draft.finish(true);
    }
    match life_cycle {
        LifeCycle::Suspended => suspension::rest(&mut draft),
        LifeCycle::Stopping(why) => suspension::stop(&mut draft, why),
        LifeCycle::Running | LifeCycle::Finished => {
            if let Some(end) = run(&mut draft) {
                ending::conclude(&mut draft, end);
                return draft.finish(true);
            }
        }
    }
    draft.finish(false)
}

/// All pods are to be there; or the job ends.
fn run(draft: &mut Draft) -> Option<ending::End> {
    suspension::resume(draft);
    draft.status.start_time.get_or_insert(Time(draft.observed.now));
    draft.pin();
    if let Some(end) = ending::find_deadline(draft) {
        return Some(end);
    }
    pods::decide_pods(draft);
    if let Some(end) = ending::find_exhaustion(draft) {
        return Some(end);
    }
    pods::decide_surplus(draft);
    pods::decide_world(draft);
    pods::explain_start(draft);
    progress::derive(draft);
    startup::derive(draft);
    None
}

/// Whether the status says that the job is complete or has failed.
#[must_use]
pub fn is_final(status: &LCLTrainingJobStatus) -> bool {
    let is_true = |type_: &str| status.conditions.iter().any(|condition| condition.type_ == type_ && condition.status == "True");
    is_true(condition::COMPLETE) || is_true(condition::FAILED)
}

/// Status of a job that cannot be run as it is, for one of the reasons of [`reason`], and what to tell if that is news.
#[must_use]
pub fn derive_refused(
    status: &LCLTrainingJobStatus,
    generation: i64,
    problem: &Problem,
    now: Timestamp,
) -> (LCLTrainingJobStatus, Option<JobEvent>) {
    let mut new = status.clone();
    new.observed_generation = Some(generation);
    let stalled = draft::Setting { type_: condition::STALLED, value: "True", reason: problem.reason, message: &problem.message };
    draft::set_condition(&mut new, &stalled, generation, now);
    let event = (new != *status).then(|| JobEvent { warning: true, reason: problem.reason, note: problem.message.clone() });
    (new, event)
}

#[cfg(test)]
mod tests;
