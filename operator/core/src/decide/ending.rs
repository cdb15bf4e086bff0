//! Completion and failure: how they are seen, written, and what is tidied up after them.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::SignedDuration};
use lcl_crds::{CleanPodPolicySpec, JobState, StepsStatus};

use super::{Action, JobEvent, budgets, condition, draft::Draft, reason, suspension::stop_group};
use crate::{
    build::worker_grace_seconds,
    cause::{Cause, PodEnd, Verdict, judge_by_policy, judge_end},
    observe::{GroupPhase, Link, ObservedJob, ObservedPod, PodRole},
};

/// After completion, workers have this long to end by themselves, with their logs complete.
const END_BY_THEMSELVES: SignedDuration = SignedDuration::from_secs(30);

/// The end of a job.
pub(super) struct End {
    complete: bool,
    reason: &'static str,
    message: String,
    /// The pod that ended it, unless it is on record already.
    pod: Option<(String, PodEnd)>,
}

/// Whether the coordinator, a pod or a rule says that the job is over. A worker returns success only when the whole job is complete.
pub(super) fn find_end(observed: &ObservedJob) -> Option<End> {
    let complete = || End { complete: true, reason: reason::COMPLETE, message: "the last step is done".to_owned(), pod: None };
    // A group that was started for fewer steps than the job asks for now has not done the last one. Without pods nothing is compared.
    let is_compared = observed.has_pods() || observed.status.pinned.as_ref().is_some_and(|pinned| pinned.generation == observed.generation);
    let may_be_complete = observed.change.is_none() && is_compared;
    if may_be_complete && matches!(observed.link, Link::Connected(group) if group.phase == GroupPhase::Complete) {
        return Some(complete());
    }
    let mut failure = None;
    let there = observed.pods.iter().filter(|(_, pod)| pod.owner == observed.uid).map(|(name, pod)| (name, pod.as_ref()));
    for (name, pod) in there.chain(find_lost(observed)) {
        if pod.end.is_none() && pod.deletion.is_none() {
            continue;
        }
        let end = judge_end(Some(pod));
        if may_be_complete && end.cause == Cause::Complete && matches!(pod.role, PodRole::Worker(_)) {
            return Some(complete());
        }
        let (reason, message) = match judge_by_policy(&observed.job.spec().failure_policy, Some(pod), &end) {
            Verdict::Permanent => (reason::PERMANENT_FAILURE, format!("{name}: {}", end.message)),
            Verdict::FailJob(index) if ended_by_itself(observed, name, pod) => {
                let message = format!("{name}: {} (spec.failurePolicy.rules[{index}])", end.message);
                (reason::POD_FAILURE_POLICY, message)
            }
            _ => continue,
        };
        failure = Some(End { complete: false, reason, message, pod: Some((name.clone(), end)) });
    }
    failure
}

/// Pods that are gone and are missed, as they were at the last: those that nobody here asked to end, and that were there once.
fn find_lost<'a>(observed: &'a ObservedJob) -> impl Iterator<Item = (&'a String, &'a ObservedPod)> {
    let is_missed = |pod: &ObservedPod| match pod.role {
        PodRole::Coordinator => observed.created() > 0,
        PodRole::Worker(index) => index < observed.created().unsigned_abs(),
    };
    let lost = observed.gone.keys().filter_map(|name| Some((name, observed.last_of(name)?)));
    lost.filter(move |(name, pod)| is_missed(pod) && ended_by_itself(observed, name, pod))
}

/// Whether nobody here asked the pod to end: it is not beyond the job's size, no suspension is under way, and it is not on record already.
fn ended_by_itself(observed: &ObservedJob, name: &str, pod: &ObservedPod) -> bool {
    let is_surplus = matches!(pod.role, PodRole::Worker(index) if index >= observed.job.world().desired.unsigned_abs());
    let is_known = observed.status.replacing.iter().any(|replacing| replacing.pod == name && replacing.uid == pod.uid);
    let is_stopping = observed.job.spec().suspend || matches!(observed.status.state, Some(JobState::Suspending | JobState::Restarting));
    !(is_surplus || is_known || is_stopping)
}

/// Whether the job, or the time before it trains, has taken too long; if not yet, the draft wakes when it has. Who wrote the beginning into the
/// status may have had another clock: one that is still to come begins now.
pub(super) fn find_deadline(draft: &mut Draft) -> Option<End> {
    let (spec, now) = (draft.observed.job.spec(), draft.observed.now);
    let began = draft.status.start_time.as_ref().map_or(now, |time| time.0).min(now);
    let before_training = spec.pre_running_deadline_seconds.filter(|_| draft.status.group.is_none());
    let limits = [
        (spec.active_deadline_seconds, "the job was not complete", "activeDeadlineSeconds"),
        (before_training, "the job did not begin to train", "preRunningDeadlineSeconds"),
    ];
    for (limit, what, field) in limits {
        let Some(seconds) = limit else { continue };
        // One beyond all time is none.
        let Ok(deadline) = began.checked_add(SignedDuration::from_secs(seconds)) else { continue };
        if now >= deadline {
            let message = format!("{what} within the {seconds} seconds of spec.{field}");
            return Some(End { complete: false, reason: reason::DEADLINE_EXCEEDED, message, pod: None });
        }
        draft.wake_at(deadline);
    }
    None
}

/// Whether a budget of failures is spent, or too many nodes are unfit.
pub(super) fn find_exhaustion(draft: &Draft) -> Option<End> {
    let policy = &draft.observed.job.spec().failure_policy;
    let excluded = &draft.status.excluded_nodes;
    if excluded.len() > usize::try_from(policy.max_excluded_nodes).unwrap_or_default() {
        let names: Vec<_> = excluded.iter().map(|excluded| excluded.node.as_str()).collect();
        let last = excluded.last().map_or_else(String::new, |last| format!(", the last: {}", last.message));
        let message = format!("workers fail their self-test on {} (spec.failurePolicy.maxExcludedNodes){last}", names.join(", "));
        return Some(End { complete: false, reason: reason::TOO_MANY_UNFIT_NODES, message, pod: None });
    }
    let spent = budgets::find_spent(draft.status.failures.as_ref()?, policy, draft.observed.now)?;
    let last = draft.status.last_failure.as_ref().map_or_else(String::new, |last| format!(", the last: {}: {}", last.pod, last.message));
    let budgets::Spent { budget, incidents, window_seconds } = spent;
    Some(End {
        complete: false,
        reason: reason::BACKOFF_LIMIT_EXCEEDED,
        message: format!("{incidents} incidents within {window_seconds} seconds (spec.failurePolicy.{}){last}", budget.name()),
        pod: None,
    })
}

/// Writes the end into the status, and tidies up.
pub(super) fn conclude(draft: &mut Draft, end: End) {
    let (type_, state) = if end.complete { (condition::COMPLETE, JobState::Complete) } else { (condition::FAILED, JobState::Failed) };
    if let Some((name, pod_end)) = &end.pod {
        draft.set_last_failure(name, pod_end);
    }
    let total = draft.observed.job.spec().optimization.steps;
    let completed = if end.complete { total } else { draft.step() };
    super::progress::note_progress(draft);
    draft.status.steps = Some(StepsStatus { completed, total });
    draft.status.state = Some(state);
    draft.status.completion_time = Some(Time(draft.observed.now));
    draft.status.replacing.clear();
    if let Some(workers) = &mut draft.status.workers {
        workers.ready = 0;
        workers.summary = Some(format!("0/{}", workers.desired));
    }
    draft.set(condition::RUNNING, "False", end.reason, &end.message);
    draft.set(condition::RECOVERING, "False", end.reason, &end.message);
    draft.set(condition::PODS_READY, "False", end.reason, &end.message);
    draft.unset(condition::CHECKPOINT_FRESH);
    draft.set(type_, "True", end.reason, &end.message);
    draft.unset(condition::RECONCILING);
    if end.complete {
        draft.unset(condition::STALLED);
    } else {
        draft.set(condition::STALLED, "True", end.reason, &end.message);
    }
    draft.events.push(JobEvent { warning: !end.complete, reason: end.reason, note: end.message });
    draft.actions.clear();
    clean_up(draft);
}

/// Of a job that is over the pods go that it says, and in its time the job itself.
pub(super) fn clean_up(draft: &mut Draft) {
    let (spec, now) = (draft.observed.job.spec(), draft.observed.now);
    if let Some(seconds) = spec.ttl_seconds_after_finished {
        let ended = draft.status.completion_time.as_ref().map_or(now, |time| time.0).min(now);
        let expiry = ended.checked_add(SignedDuration::from_secs(i64::from(seconds))).unwrap_or(ended);
        if now >= expiry {
            draft.actions.push(Action::DeleteJob);
            return;
        }
        draft.wake_at(expiry);
    }
    if spec.clean_pod_policy != CleanPodPolicySpec::None {
        clean_up_pods(draft, spec.clean_pod_policy == CleanPodPolicySpec::All);
    }
}

/// Pods that have not ended get the time that they need for it. Those that have go, too, if `all` do.
fn clean_up_pods(draft: &mut Draft, all: bool) {
    let observed = draft.observed;
    let completed = draft.status.state == Some(JobState::Complete);
    let ended = draft.status.completion_time.as_ref().map_or(observed.now, |time| time.0);
    // Who put the end on record may have had another clock: a time that is still to come is not waited for.
    let is_past = ended <= observed.now;
    let ended = ended.min(observed.now);
    let after = |patience: SignedDuration| if is_past { ended.checked_add(patience).unwrap_or(ended) } else { ended };
    // Of a job that failed the others write a last checkpoint, which they agree on through the coordinator.
    let patience = if completed { END_BY_THEMSELVES } else { SignedDuration::from_secs(worker_grace_seconds(observed.job)) };
    let deadline = after(patience);
    let ours = || observed.pods.iter().filter(|(_, pod)| pod.owner == observed.uid);
    let workers_end = ours().any(|(_, pod)| matches!(pod.role, PodRole::Worker(_)) && pod.end.is_none() && pod.node.is_some());
    let is_over = observed.now >= deadline || !completed && workers_end && stop_group(draft);
    for (name, pod) in ours().filter(|(_, pod)| pod.deletion.is_none()) {
        let goes = match pod.role {
            // The last members may not have heard of the end yet.
            PodRole::Coordinator => pod.end.is_some() || !workers_end || observed.now >= deadline,
            // A sidecar has the time that workers have.
            PodRole::Worker(_) if pod.end.is_some() => all || (pod.sidecar_runs && observed.now >= deadline),
            // One that has no node yet would train for nobody.
            PodRole::Worker(_) => pod.node.is_none() || is_over,
        };
        if goes {
            draft.actions.push(Action::DeletePod { name: name.clone(), uid: pod.uid.clone(), force: false });
        } else if pod.end.is_none() || pod.sidecar_runs {
            draft.wake_at(deadline);
        }
    }
}
