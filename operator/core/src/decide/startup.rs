//! How long the workers' pods took to start, for the status.

use std::cmp::Reverse;

use k8s_openapi::jiff::SignedDuration;
use lcl_crds::StartupStatus;

use super::{Action, draft::Draft};
use crate::observe::{ObservedPod, PodRole, PodStart, Wait};

/// A start that took less is not worth a question: a job whose image is on its nodes costs the API server nothing more.
const WORTH_ASKING: i64 = 5;
/// Time for an Event to be there after what it tells of. They are sent in bundles, and dropped when there are too many.
const EVENT: SignedDuration = SignedDuration::from_secs(10);

/// Says which of the workers' pods took longest to start. The times of a pod never change, so that a job at rest has nothing new to tell.
pub(super) fn derive(draft: &mut Draft) {
    let observed = draft.observed;
    let is_worker = |pod: &ObservedPod| pod.owner == observed.uid && matches!(pod.role, PodRole::Worker(_));
    let workers = || observed.pods.iter().filter(|(_, pod)| is_worker(pod));
    // One that finds no node, or whose image is not to be had, may be waited for in vain.
    let is_starting = |pod: &ObservedPod| pod.start.is_none() && pod.end.is_none() && pod.deletion.is_none() && pod.obstacle.is_none();
    if workers().any(|(_, pod)| is_starting(pod)) {
        return;
    }
    // The first by name among equals.
    let started = workers().filter_map(|(name, pod)| Some((name, pod, pod.start?)));
    let Some((name, pod, start)) = started.min_by_key(|(_, _, start)| Reverse(total(*start))) else { return };
    let stored = observed.status.startup.as_ref().filter(|stored| stored.uid == pod.uid);
    let heard = observed.image_pull.filter(|(uid, _)| *uid == pod.uid).map(|(_, seconds)| *seconds);
    let image_pull_seconds = heard.or_else(|| stored?.image_pull_seconds);
    if image_pull_seconds.is_none() && start.started >= WORTH_ASKING {
        ask(draft, pod, stored.is_none());
    }
    draft.status.startup = Some(StartupStatus {
        pod: name.clone(),
        uid: pod.uid.clone(),
        scheduled_seconds: start.scheduled,
        start_seconds: start.started,
        image_pull_seconds,
    });
}

/// Asks when the pod is first seen to have started, and once more when the Event should be there. An operator that is started later does not
/// ask: it would of all jobs at once. `is_new`: the status does not say that the pod has started, which may stay so for as long as it cannot be
/// stored; that is no reason to ask once more.
fn ask(draft: &mut Draft, pod: &ObservedPod, is_new: bool) {
    let (wait, asked) = (Wait::Pull(pod.uid.clone()), Wait::AskedLast(pod.uid.clone()));
    let waited = draft.observed.waited.get(&wait).copied();
    let is_last = waited.is_some_and(|waited| waited >= EVENT);
    let is_over = draft.observed.waited.contains_key(&asked);
    if !is_over && (is_last || (waited.is_none() && is_new)) {
        draft.actions.push(Action::FindImagePull { uid: pod.uid.clone() });
    }
    if (is_last || is_over) && is_new {
        draft.remember(asked);
    } else if !is_last && (waited.is_some() || is_new) {
        draft.has_waited(wait, EVENT);
    }
}

fn total(start: PodStart) -> i64 {
    start.scheduled.saturating_add(start.started)
}
