//! Which pods there have to be.

use std::collections::BTreeSet;

use k8s_openapi::jiff::SignedDuration;

use super::{Action, JobEvent, draft::Draft, reason};
use crate::{
    build::{coordinator_name, worker_pod_index, worker_pod_name},
    cause::{PodEnd, coordinator_hangs, judge_end, silence, slowness},
    observe::{HistoryPlace, Link, MemberBounds, ObservedPod, PodRole, SlowSeen, Wait},
    timeouts::Timeouts,
};

/// Added to the time a pod was given to end, before it is taken for stuck: its node reports late or not at all.
pub const DELETION_SLACK: SignedDuration = SignedDuration::from_secs(5);
/// Time for the members of a worker that is no longer wanted to leave in order; some steps of a large job.
const DRAIN_LIMIT: SignedDuration = SignedDuration::from_secs(60);
/// The same when the coordinator cannot be asked. The pod's own grace period follows.
const DRAIN_LIMIT_UNASKED: SignedDuration = SignedDuration::from_secs(30);
/// Time for members that the coordinator has given up to come back, as they do after a broken connection. With the usual heartbeat time-out of
/// 10 s a silent node is replaced within 15 s.
const SILENCE: SignedDuration = SignedDuration::from_secs(3);
/// A coordinator that has not answered for ten seconds, and that its node calls not ready, has as long again to recover: its node asks it every
/// two seconds, and three answers have to be missing. Its members train on meanwhile.
const HANGS: SignedDuration = SignedDuration::from_secs(10);
/// A pod whose containers do not run after so long on its node may be kept from it by a volume, which its status does not tell.
const START: SignedDuration = SignedDuration::from_secs(10);
/// Between two looks at the Events about it.
const START_LOOK: SignedDuration = SignedDuration::from_secs(15);
/// Between two looks at a worker that drains.
const DRAIN_LOOK: SignedDuration = SignedDuration::from_secs(1);

/// A pod that has to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    /// It is there, and nothing is known against it.
    Well,
    /// It was never there, or its end is on record and its name is free.
    Free,
    /// Its name is taken by one that ends.
    Taken,
    /// Its name is taken by one that belongs to another job.
    Foreign,
    /// It is missing, and there is no room to record that now.
    Unrecorded,
}

impl Presence {
    /// Whether the job has had this pod.
    fn was_there(self, draft: &Draft, name: &str) -> bool {
        match self {
            Self::Free => draft.status.replacing.iter().any(|replacing| replacing.pod == name),
            Self::Foreign => false,
            // What ends or is missing here has been there.
            Self::Well | Self::Taken | Self::Unrecorded => true,
        }
    }
}

/// The coordinator, which is told from all before it by its epoch, and then the workers. The epoch of a pod that may have existed is never given
/// again.
pub(super) fn decide_pods(draft: &mut Draft) {
    let presence = decide_coordinator(draft);
    let was_there = presence.was_there(draft, &coordinator_name(draft.observed.job));
    decide_workers(draft, was_there);
}

fn decide_coordinator(draft: &mut Draft) -> Presence {
    let name = coordinator_name(draft.observed.job);
    let existed = draft.status.coordinator_epoch.is_some() && draft.status.workers.as_ref().is_some_and(|workers| workers.created > 0);
    let presence = look_at(draft, &name, existed);
    if presence == Presence::Well {
        replace_outdated(draft, &name);
    }
    // No epoch is spent on a pod that is not going to be created.
    if presence != Presence::Free || !draft.may_create() {
        return presence;
    }
    let epoch = match draft.status.coordinator_epoch {
        Some(epoch) if draft.observed.unused_epoch == Some(epoch) => epoch,
        Some(epoch) => epoch.saturating_add(1),
        None => 1,
    };
    draft.status.coordinator_epoch = Some(epoch);
    draft.actions.push(Action::CreateCoordinator { epoch });
    presence
}

/// A coordinator keeps the time-outs and the bound on slow members that it was started with, so with others another one takes its place. That is no loss, and the group
/// trains on meanwhile.
fn replace_outdated(draft: &mut Draft, name: &str) {
    let observed = draft.observed;
    let Some(pod) = observed.pods.get(name).filter(|pod| pod.timeouts != Timeouts::of(observed.job)) else { return };
    if !draft.put_on_record(name, &pod.uid) {
        return;
    }
    if !observed.status.replacing.iter().any(|replacing| replacing.pod == name && replacing.uid == pod.uid) {
        let note = format!("{name}: the job has other time-outs, or another bound on slow members; training goes on");
        draft.events.push(JobEvent { warning: false, reason: reason::COORDINATOR_REPLACED, note });
    }
    draft.actions.push(Action::DeletePod { name: name.to_owned(), uid: pod.uid.clone(), force: false });
}

/// The workers from 0 to the wanted number. They count as created when they and the coordinator were there: from then on a pod that is missing is a
/// loss.
fn decide_workers(draft: &mut Draft, coordinator_was_there: bool) {
    let job = draft.observed.job;
    let desired = job.world().desired;
    let created = draft.status.workers.as_ref().map_or(0, |workers| workers.created);
    let mut all_there = coordinator_was_there;
    for index in 0..desired {
        let name = worker_pod_name(job, index.unsigned_abs());
        let presence = look_at(draft, &name, index < created);
        all_there &= presence.was_there(draft, &name);
        if presence == Presence::Free && draft.may_create() {
            draft.actions.push(Action::CreateWorker { index: index.unsigned_abs() });
        }
    }
    if let Some(workers) = &mut draft.status.workers {
        workers.created = if all_there { desired } else { created.min(desired) };
    }
    let is_wanted =
        |name: &str| name == coordinator_name(job) || worker_pod_index(job, name).is_some_and(|index| index < desired.unsigned_abs());
    draft.status.replacing.retain(|replacing| is_wanted(&replacing.pod));
}

/// Looks at one pod, puts its end on record, and has what is left of it deleted. `existed`: its absence is a loss.
fn look_at(draft: &mut Draft, name: &str, existed: bool) -> Presence {
    let observed = draft.observed;
    let Some(pod) = observed.pods.get(name) else {
        if !existed {
            return Presence::Free;
        }
        let last = observed.last_of(name);
        if draft.record_end(name, last, &judge_end(last)) {
            return Presence::Free;
        }
        draft.unrecorded.push(name.to_owned());
        return Presence::Unrecorded;
    };
    if pod.owner != observed.uid {
        // Left behind by a job of the same name; Kubernetes removes it, and its removal wakes us.
        return Presence::Foreign;
    }
    if pod.end.is_none() && pod.deletion.is_none() {
        // The node of a hung program answers, and ends it; one that does not answer is no longer asked once the pod's time is over.
        let given_up = if is_silent(draft, name, pod) {
            Some((silence(), true))
        } else if let Some(end) = slow_end(draft, name, pod) {
            // It is well, and has its time to leave in order.
            Some((end, false))
        } else if hangs(draft, pod) {
            Some((coordinator_hangs(), false))
        } else {
            None
        };
        if let Some((end, force)) = given_up {
            if draft.record_end(name, Some(pod), &end) {
                draft.actions.push(Action::DeletePod { name: name.to_owned(), uid: pod.uid.clone(), force });
            }
            return Presence::Taken;
        }
        draft.is_well(name);
        return Presence::Well;
    }
    if draft.record_end(name, Some(pod), &judge_end(Some(pod))) {
        remove(draft, name, pod);
    }
    Presence::Taken
}

/// Whether the coordinator has heard nothing of a worker for so long that it gave its members up, and they have not come back since. When more
/// workers are silent than are heard, it is the coordinator that is cut off, and nobody is given up.
fn is_silent(draft: &mut Draft, name: &str, pod: &ObservedPod) -> bool {
    let Link::Connected(group) = draft.observed.link else { return false };
    let Some(entry) = group.silent.get(name) else { return false };
    // The coordinator knows workers by name: this was about the pod before.
    if (HistoryPlace { epoch: group.epoch, entry: *entry }) <= pod.history {
        return false;
    }
    let heard: BTreeSet<&str> = group.members.iter().map(|member| member.worker.as_str()).collect();
    group.silent.len() <= heard.len() && draft.has_waited(Wait::Silence(pod.uid.clone()), SILENCE)
}

/// The end of a worker of which the coordinator has evicted a member for being slow: it keeps that process out, and lets another in.
fn slow_end(draft: &Draft, name: &str, pod: &ObservedPod) -> Option<PodEnd> {
    let Link::Connected(group) = draft.observed.link else { return None };
    let SlowSeen { entry, message } = group.slow.get(name)?;
    // The coordinator knows workers by name: else this was about the pod before.
    let is_of_this_pod = HistoryPlace { epoch: group.epoch, entry: *entry } > pod.history;
    is_of_this_pod.then(|| slowness(message))
}

/// Whether the coordinator's program runs and does nothing: neither its node nor the operator gets an answer. One that only the operator cannot
/// reach may serve its members well.
fn hangs(draft: &mut Draft, pod: &ObservedPod) -> bool {
    let is_unanswered = pod.role == PodRole::Coordinator && pod.running && !pod.ready && *draft.observed.link == Link::Unreachable;
    is_unanswered && draft.has_waited(Wait::Answer(pod.uid.clone()), HANGS)
}

/// Deletes a pod that has ended, and one whose node does not answer without asking the node: the coordinator has fenced its members.
pub(super) fn remove(draft: &mut Draft, name: &str, pod: &ObservedPod) {
    let delete = |force| Action::DeletePod { name: name.to_owned(), uid: pod.uid.clone(), force };
    let Some(given) = pod.deletion else {
        draft.actions.push(delete(false));
        return;
    };
    // A taint may also evict from a node that is well: then the pod has its time.
    let was_evicted = pod.disruption.as_ref().is_some_and(|(reason, _)| reason == "DeletionByTaintManager");
    let is_heard = matches!(draft.observed.link, Link::Connected(group) if group.members.iter().any(|member| member.worker == name));
    if (was_evicted && !pod.ready && !is_heard) || draft.has_waited(Wait::Deletion(pod.uid.clone()), given.saturating_add(DELETION_SLACK)) {
        draft.actions.push(delete(true));
    }
}

/// Workers beyond the wanted number: their members leave in order, then the pod goes.
pub(super) fn decide_surplus(draft: &mut Draft) {
    let observed = draft.observed;
    let desired = observed.job.world().desired.unsigned_abs();
    for (name, pod) in observed.pods {
        if pod.owner != observed.uid || !matches!(pod.role, PodRole::Worker(index) if index >= desired) {
            continue;
        }
        if let Some(given) = pod.deletion {
            if draft.has_waited(Wait::Deletion(pod.uid.clone()), given.saturating_add(DELETION_SLACK)) {
                draft.actions.push(Action::DeletePod { name: name.clone(), uid: pod.uid.clone(), force: true });
            }
            continue;
        }
        let (attached, limit) = match observed.link {
            Link::Connected(group) => (group.members.iter().any(|member| member.worker == *name), DRAIN_LIMIT),
            Link::Unknown | Link::Unreachable => (true, DRAIN_LIMIT_UNASKED),
        };
        let has_left = pod.end.is_some() || !pod.running || !attached;
        if draft.has_waited(Wait::Surplus(pod.uid.clone()), limit) || has_left {
            draft.actions.push(Action::DeletePod { name: name.clone(), uid: pod.uid.clone(), force: false });
            continue;
        }
        if matches!(observed.link, Link::Connected(_)) {
            draft.actions.push(Action::DrainWorker { worker: name.clone() });
        }
        draft.wake_at(observed.now.checked_add(DRAIN_LOOK).unwrap_or(observed.now));
    }
}

/// The coordinator knows the wanted size. Told before anybody is drained, so that who stays is enough.
pub(super) fn decide_world(draft: &mut Draft) {
    let wanted = MemberBounds::of(draft.observed.job);
    if draft.group().is_some_and(|group| group.members_wanted != wanted) {
        draft.actions.insert(0, Action::SetWorld(wanted));
    }
}

/// Looks into a pod that is on its node and does not start, while nothing is said of the reason: an image that is being pulled, or a
/// volume that cannot be mounted.
pub(super) fn explain_start(draft: &mut Draft) {
    let observed = draft.observed;
    let is_silent = |pod: &ObservedPod| !pod.running && pod.end.is_none() && pod.deletion.is_none() && pod.obstacle.is_none();
    let starting = observed.pods.values().filter(|pod| pod.owner == observed.uid && pod.node.is_some() && is_silent(pod));
    let late: Vec<_> = starting.filter(|pod| draft.has_waited(Wait::Start(pod.uid.clone()), START)).collect();
    // The one of which something is known, until it starts; else one after the other.
    let explained = late.iter().find(|pod| observed.explanation.is_some_and(|(uid, _)| *uid == pod.uid));
    let turn = usize::try_from(observed.now.as_second() / START_LOOK.as_secs()).unwrap_or_default();
    let in_turn = turn.checked_rem(late.len()).and_then(|place| late.get(place));
    if let Some(pod) = explained.or(in_turn) {
        draft.actions.push(Action::ExplainPod { uid: pod.uid.clone() });
        draft.wake_at(observed.now.checked_add(START_LOOK).unwrap_or(observed.now));
    }
}
