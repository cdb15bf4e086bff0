//! A decision while it is being made.

use std::time::Duration;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::{SignedDuration, Timestamp},
};
use lcl_crds::{ExcludedNodeStatus, LCLTrainingJobStatus, LastFailureStatus, ReplacingStatus, StepsStatus};

use super::{
    Action, Decision, JobEvent,
    budgets::{self, Charge},
    reason,
};
use crate::{
    build::coordinator_name,
    cause::{NODE_LOST, NODE_SILENT, NODE_SLOW, NODE_UNFIT, PodEnd, Verdict, judge_by_policy},
    observe::{GroupStatus, Link, ObservedJob, ObservedPod, Wait},
    pins::in_force,
};

/// Pods that are on record as being replaced at the same time. It bounds the status; further ones follow as these come back.
const MAX_REPLACING: usize = 64;
pub(super) struct Draft<'a> {
    pub(super) observed: &'a ObservedJob<'a>,
    pub(super) status: LCLTrainingJobStatus,
    pub(super) actions: Vec<Action>,
    pub(super) events: Vec<JobEvent>,
    waits: Vec<Wait>,
    pub(super) unrecorded: Vec<String>,
    again_at: Option<Timestamp>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(observed: &'a ObservedJob<'a>) -> Self {
        let status = observed.status.clone();
        Self { observed, status, actions: Vec::new(), events: Vec::new(), waits: Vec::new(), unrecorded: Vec::new(), again_at: None }
    }

    pub(super) fn finish(self, is_final: bool) -> Decision {
        let wait = self.again_at.map(|at| Duration::try_from(at.duration_since(self.observed.now)).unwrap_or_default());
        Decision {
            status: self.status,
            is_final,
            actions: self.actions,
            events: self.events,
            waits: self.waits,
            unrecorded: self.unrecorded,
            again_after: wait.map(|wait| wait.max(Duration::from_millis(50))),
        }
    }

    /// Fields that every job has from the beginning.
    pub(super) fn begin(&mut self) {
        let completed = self.status.steps.map_or(0, |steps| steps.completed);
        self.status.steps = Some(StepsStatus { completed, total: self.observed.job.spec().optimization.steps });
        self.status.observed_generation = Some(self.observed.generation);
        let desired = self.observed.job.world().desired;
        let workers = self.status.workers.get_or_insert_default();
        if workers.selector.is_some() && workers.desired != desired {
            let note = format!("from {} to {desired} workers", workers.desired);
            self.events.push(JobEvent { warning: false, reason: reason::SCALED, note });
        }
        workers.desired = desired;
        workers.created = workers.created.max(self.observed.created);
        workers.selector = Some(self.observed.selector.to_owned());
    }

    /// A group that starts has what is offered; one that runs keeps what it has.
    pub(super) fn pin(&mut self) {
        let observed = self.observed;
        if in_force(&self.status, observed.has_pods()).is_none() {
            self.status.pinned = Some(observed.offer.clone());
        }
        if let Some(pinned) = &mut self.status.pinned {
            if pinned.address.is_none() {
                pinned.address.clone_from(&observed.offer.address);
            }
            // The one thing that is renewed under a group that runs.
            if observed.offer.certificates_expire.is_some() {
                pinned.certificates_expire.clone_from(&observed.offer.certificates_expire);
                pinned.authority.clone_from(&observed.offer.authority);
            }
        }
    }

    pub(super) fn group(&self) -> Option<&'a GroupStatus> {
        match self.observed.link {
            Link::Connected(group) => Some(group),
            Link::Unknown | Link::Unreachable => None,
        }
    }

    /// Completed steps, as far as known.
    pub(super) fn step(&self) -> i64 {
        let heard = self.group().filter(|group| group.n > 0).map(|group| group.step.cast_signed());
        heard.or(self.status.steps.map(|steps| steps.completed)).unwrap_or(0)
    }

    pub(super) fn wake_at(&mut self, at: Timestamp) {
        self.again_at = Some(self.again_at.map_or(at, |other| other.min(at)));
    }

    /// Whether this has been waited for so long; if not, the draft wakes when it has.
    pub(super) fn has_waited(&mut self, wait: Wait, limit: SignedDuration) -> bool {
        let waited = self.observed.waited.get(&wait).copied().unwrap_or_default();
        self.waits.push(wait);
        let rest = limit.saturating_sub(waited);
        if rest > SignedDuration::ZERO {
            self.wake_at(self.observed.now.checked_add(rest).unwrap_or(self.observed.now));
        }
        rest <= SignedDuration::ZERO
    }

    /// That something was, to be known at the next look; nothing is waited for.
    pub(super) fn remember(&mut self, what: Wait) {
        self.waits.push(what);
    }

    pub(super) fn is_on_record(&self, name: &str, uid: &str) -> bool {
        self.status.replacing.iter().any(|replacing| replacing.pod == name && replacing.uid == uid)
    }

    /// The pod is there and well: what was recorded of its predecessor is done with.
    pub(super) fn is_well(&mut self, name: &str) {
        self.status.replacing.retain(|replacing| replacing.pod != name);
    }

    /// Puts the end of a pod on record, once. `false`: there is no room now.
    pub(super) fn record_end(&mut self, name: &str, pod: Option<&ObservedPod>, end: &PodEnd) -> bool {
        let uid = pod.map_or("", |pod| pod.uid.as_str());
        if self.is_on_record(name, uid) {
            return true;
        }
        // Force-deleted while it was ending: that was counted.
        if uid.is_empty() && self.status.replacing.iter().any(|replacing| replacing.pod == name) {
            return true;
        }
        if !self.put_on_record(name, uid) {
            return false;
        }
        let node = pod.and_then(|pod| pod.node.clone()).filter(|_| [NODE_LOST, NODE_SILENT, NODE_SLOW].contains(&end.reason.as_str()));
        if let Some(replacing) = self.status.replacing.last_mut() {
            replacing.avoided_node = node;
        }
        if end.reason == NODE_UNFIT {
            self.exclude(pod, end);
        }
        end.cause.count(&mut self.status.restarts);
        self.set_last_failure(name, end);
        let policy = &self.observed.job.spec().failure_policy;
        let budget = match judge_by_policy(policy, pod, end) {
            Verdict::Replace(budget) => budget,
            // It ends the job, which is looked at before.
            Verdict::FailJob(_) | Verdict::Permanent => end.cause.budget(),
        };
        let charge = Charge { budget, created_in: pod.map_or(0, |pod| pod.incident), step: self.step(), now: self.observed.now };
        budgets::charge(self.status.failures.get_or_insert_default(), policy, charge);
        let is_coordinator = name == coordinator_name(self.observed.job);
        let reason = if is_coordinator { reason::COORDINATOR_REPLACED } else { reason::WORKER_REPLACED };
        self.events.push(JobEvent { warning: true, reason, note: format!("{name}: {}: {}", end.reason, end.message) });
        true
    }

    /// No worker is placed on this pod's node any more.
    fn exclude(&mut self, pod: Option<&ObservedPod>, end: &PodEnd) {
        let Some(unfit) = pod.and_then(|pod| pod.node.clone()) else { return };
        let (excluded, most) = (&self.status.excluded_nodes, self.observed.job.spec().failure_policy.max_excluded_nodes);
        // With one more than allowed the job fails: further ones would only make the status too long.
        let is_full = excluded.len() > usize::try_from(most).unwrap_or_default();
        if is_full || excluded.iter().any(|excluded| excluded.node == unfit) {
            return;
        }
        let note = format!("no worker is placed on {unfit} any more: {}", end.message);
        self.events.push(JobEvent { warning: true, reason: reason::NODE_EXCLUDED, note });
        self.status.excluded_nodes.push(ExcludedNodeStatus { node: unfit, message: end.message.clone(), time: Time(self.observed.now) });
    }

    /// Puts a pod on record as one that is being replaced, in the place of its predecessor. `false`: there is no room now.
    pub(super) fn put_on_record(&mut self, name: &str, uid: &str) -> bool {
        if self.status.replacing.iter().filter(|replacing| replacing.pod != name).count() >= MAX_REPLACING {
            return false;
        }
        self.status.replacing.retain(|replacing| replacing.pod != name);
        self.status.replacing.push(ReplacingStatus { pod: name.to_owned(), uid: uid.to_owned(), avoided_node: None });
        true
    }

    pub(super) fn set_last_failure(&mut self, name: &str, end: &PodEnd) {
        self.status.last_failure = Some(LastFailureStatus {
            pod: name.to_owned(),
            reason: end.reason.clone(),
            message: end.message.clone(),
            exit_code: end.exit_code,
            time: Time(self.observed.now),
        });
    }

    /// The one gate that all creations go through: whether anything may be created now. If not, the draft wakes when it may. The API server may
    /// have refused the last creation, and after an incident there is a pause.
    pub(super) fn may_create(&mut self) -> bool {
        let now = self.observed.now;
        let refused = self.observed.creations_wait.and_then(|wait| now.checked_add(wait).ok());
        let opens = refused.into_iter().chain(self.end_of_pause()).filter(|at| *at > now).max();
        if let Some(at) = opens {
            self.wake_at(at);
        }
        opens.is_none()
    }

    /// Who put the last failure on record may have had another clock: a time that is still to come says nothing, and is not waited for.
    fn end_of_pause(&self) -> Option<Timestamp> {
        let pause = budgets::pause(self.status.failures.as_ref()?, self.step());
        let failed = self.status.last_failure.as_ref()?.time.0;
        (failed <= self.observed.now).then(|| failed.checked_add(pause).ok())?
    }

    pub(super) fn set(&mut self, type_: &str, value: &str, reason: &str, message: &str) {
        let (generation, now) = (self.observed.generation, self.observed.now);
        set_condition(&mut self.status, &Setting { type_, value, reason, message }, generation, now);
    }

    pub(super) fn unset(&mut self, type_: &str) {
        self.status.conditions.retain(|condition| condition.type_ != type_);
    }

    pub(super) fn had(&self, type_: &str, value: &str) -> bool {
        self.observed.status.conditions.iter().any(|condition| condition.type_ == type_ && condition.status == value)
    }
}

/// A condition to set.
pub(super) struct Setting<'a> {
    pub(super) type_: &'a str,
    pub(super) value: &'a str,
    pub(super) reason: &'a str,
    pub(super) message: &'a str,
}

/// Sets a condition; the time of its last transition stays while its value does.
pub(super) fn set_condition(status: &mut LCLTrainingJobStatus, setting: &Setting, generation: i64, now: Timestamp) {
    let old = status.conditions.iter_mut().find(|condition| condition.type_ == setting.type_);
    let since = old.as_ref().filter(|old| old.status == setting.value).map(|old| old.last_transition_time.clone());
    let new = Condition {
        type_: setting.type_.to_owned(),
        status: setting.value.to_owned(),
        reason: setting.reason.to_owned(),
        message: setting.message.to_owned(),
        observed_generation: Some(generation),
        last_transition_time: since.unwrap_or(Time(now)),
    };
    match old {
        Some(old) => *old = new,
        None => status.conditions.push(new),
    }
}
