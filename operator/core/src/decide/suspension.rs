//! A job whose pods are to be away, for good or for a moment: how they end, and what the status says.

use k8s_openapi::jiff::SignedDuration;
use lcl_crds::JobState;

use super::{Action, JobEvent, condition, draft::Draft, life_cycle::Why, pods, progress, reason};
use crate::{
    build::worker_grace_seconds,
    observe::{GroupPhase, Link, PodRole, Wait},
};

/// The workers write a checkpoint and end; then their pods go, and the coordinator's at last.
pub(super) fn stop(draft: &mut Draft, why: Why) {
    progress::note_progress(draft);
    let observed = draft.observed;
    let workers_are_done = stop_group(draft);
    let has_workers = observed.pods.values().any(|pod| pod.owner == observed.uid && matches!(pod.role, PodRole::Worker(_)));
    for (name, pod) in observed.pods.iter().filter(|(_, pod)| pod.owner == observed.uid) {
        let goes = match pod.role {
            // Without it they could not agree on the checkpoint.
            PodRole::Coordinator => pod.end.is_some() || !has_workers,
            PodRole::Worker(_) => pod.end.is_some() || pod.node.is_none() || workers_are_done,
        };
        if goes || pod.deletion.is_some() {
            pods::remove(draft, name, pod);
        }
    }
    begin_anew(draft);
    match why {
        Why::Suspension => {
            let message = "the workers write a checkpoint and end";
            draft.set(condition::SUSPENDED, "False", reason::SUSPENDING, message);
            describe(draft, JobState::Suspending, reason::SUSPENDING, message);
        }
        Why::Change => {
            let change = observed.change.unwrap_or("the job");
            let message = format!("{change} has changed: the workers write a checkpoint and end, and others start with it");
            describe(draft, JobState::Restarting, reason::SPEC_CHANGED, &message);
        }
    }
    draft.set(condition::RECONCILING, "True", reason::STOPPING, "pods are still there");
}

/// Nothing is there, and nothing is to be.
pub(super) fn rest(draft: &mut Draft) {
    begin_anew(draft);
    // What is told of a group is told of one that is there.
    (draft.status.group, draft.status.startup, draft.status.start_time) = (None, None, None);
    // Somebody may have had them repaired.
    draft.status.excluded_nodes.clear();
    draft.set(condition::SUSPENDED, "True", reason::SUSPENDED, "spec.suspend is true");
    describe(draft, JobState::Suspended, reason::SUSPENDED, "spec.suspend is true");
    draft.unset(condition::RECONCILING);
    draft.unset(condition::STALLED);
}

/// The job goes on, if its pods were to be away.
pub(super) fn resume(draft: &mut Draft) {
    let state = draft.status.state;
    if !matches!(state, Some(JobState::Suspending | JobState::Suspended | JobState::Restarting)) {
        return;
    }
    (draft.status.group, draft.status.startup) = (None, None);
    draft.status.state = Some(JobState::Pending);
    if state == Some(JobState::Restarting) {
        return;
    }
    draft.status.start_time = None;
    draft.set(condition::SUSPENDED, "False", reason::RESUMED, "spec.suspend is false");
    draft.events.push(JobEvent { warning: false, reason: reason::RESUMED, note: "its pods are created".to_owned() });
}

/// Asks the group to write a checkpoint and to end, and gives it the time that a worker has for that. Whether the workers' pods may go: the
/// group has ended, cannot be asked, or has had its time.
pub(super) fn stop_group(draft: &mut Draft) -> bool {
    let observed = draft.observed;
    if draft.has_waited(Wait::Stop, SignedDuration::from_secs(worker_grace_seconds(observed.job))) {
        return true;
    }
    match observed.link {
        Link::Connected(group) if matches!(group.phase, GroupPhase::Ended | GroupPhase::Complete) || group.members.is_empty() => true,
        Link::Connected(_) => {
            draft.actions.push(Action::StopGroup);
            false
        }
        // It may be heard of in a moment.
        Link::Unknown => !coordinator_runs(draft),
        Link::Unreachable => true,
    }
}

/// Whether the coordinator may yet be heard of.
fn coordinator_runs(draft: &Draft) -> bool {
    let observed = draft.observed;
    let mut ours = observed.pods.values().filter(|pod| pod.owner == observed.uid);
    ours.any(|pod| pod.role == PodRole::Coordinator && pod.running && pod.end.is_none() && pod.deletion.is_none())
}

/// Nothing that is missing from now on is a loss, and a failure that was is no reason to wait when the job goes on.
fn begin_anew(draft: &mut Draft) {
    draft.status.replacing.clear();
    if let Some(workers) = &mut draft.status.workers {
        (workers.created, workers.ready) = (0, 0);
        workers.summary = Some(format!("0/{}", workers.desired));
    }
    if let Some(failures) = &mut draft.status.failures {
        failures.in_a_row = 0;
    }
}

fn describe(draft: &mut Draft, state: JobState, reason: &'static str, message: &str) {
    if draft.observed.status.state != Some(state) {
        draft.events.push(JobEvent { warning: false, reason, note: message.to_owned() });
    }
    draft.status.state = Some(state);
    draft.set(condition::RUNNING, "False", reason, message);
    draft.set(condition::RECOVERING, "False", reason, message);
    draft.set(condition::PODS_READY, "False", reason, message);
    draft.unset(condition::CHECKPOINT_FRESH);
}
