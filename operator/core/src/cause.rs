//! Why a pod ended, and whose fault it is. Pure.

use lcl_crds::{ConditionValueSpec, ExitCodeOperatorSpec, FailureActionSpec, FailurePolicySpec, FailureRuleSpec, RestartsStatus};
use lcl_trainer_config::ExitCode;

use crate::observe::ObservedPod;

/// Longest message that is kept: a line or two of the status.
const LONGEST_MESSAGE: usize = 512;

/// Reason of an end: Kubernetes has given the node up.
pub(crate) const NODE_LOST: &str = "NodeLost";
/// Reason of an end: the coordinator has given the worker's members up, which said nothing any more.
pub(crate) const NODE_SILENT: &str = "NodeSilent";

/// The end of a worker that gives no sign of life: its members were evicted, and cannot do anything that counts any more.
#[must_use]
pub(crate) fn silence() -> PodEnd {
    PodEnd {
        cause: Cause::Infrastructure,
        reason: NODE_SILENT.to_owned(),
        message: "its members gave no sign of life any more, and were given up by the coordinator".to_owned(),
        exit_code: None,
    }
}

/// Reason of an end: one of the worker's members was slower than all others for as long as the job bears it.
pub(crate) const NODE_SLOW: &str = "NodeSlow";

/// The end of a worker that holds the others up. It may do better elsewhere: charged like a node that is lost, and avoided like one, but not
/// excluded, since a slow node does nothing wrong.
#[must_use]
pub(crate) fn slowness(message: &str) -> PodEnd {
    PodEnd { cause: Cause::Infrastructure, reason: NODE_SLOW.to_owned(), message: shorten(message), exit_code: None }
}

/// Reason of an end: the worker fails its self-test on its node.
pub(crate) const NODE_UNFIT: &str = "NodeUnfit";
/// Reason of an end: the coordinator's pod runs, and its program does not answer.
const COORDINATOR_HANGS: &str = "CoordinatorHangs";

/// The end of a coordinator that answers neither its node nor the operator. Another takes its place, whose epoch fences it.
#[must_use]
pub(crate) fn coordinator_hangs() -> PodEnd {
    PodEnd {
        cause: Cause::Infrastructure,
        reason: COORDINATOR_HANGS.to_owned(),
        message: "its pod runs, but neither its node nor the operator gets an answer from it".to_owned(),
        exit_code: None,
    }
}

/// Whose fault an end is. Budgets and counters are split by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// None: the work is done.
    Complete,
    /// Starting again would fail again.
    Permanent,
    /// The program failed; it may go well next time.
    Application,
    /// Node, kubelet or eviction.
    Infrastructure,
    /// The scheduler, or the program was asked to leave.
    Preemption,
    /// Somebody deleted the pod.
    Deletion,
}

/// Which budget of `spec.failurePolicy` the end of a pod is charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// `application`.
    Application,
    /// `infrastructure`.
    Infrastructure,
    /// `preemption`.
    Preemption,
    /// None.
    Ignored,
}

impl Budget {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Application, Self::Infrastructure, Self::Preemption, Self::Ignored];

    /// Its field.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Application => "application",
            Self::Infrastructure => "infrastructure",
            Self::Preemption => "preemption",
            Self::Ignored => "ignored",
        }
    }
}

impl Cause {
    /// Whose budget it is charged to. Somebody who deletes pods again and again is a fault of the cluster's.
    #[must_use]
    pub const fn budget(self) -> Budget {
        match self {
            Self::Application | Self::Permanent | Self::Complete => Budget::Application,
            Self::Infrastructure | Self::Deletion => Budget::Infrastructure,
            Self::Preemption => Budget::Preemption,
        }
    }

    /// Counts a pod that is replaced.
    pub(crate) fn count(self, restarts: &mut RestartsStatus) {
        restarts.total = restarts.total.saturating_add(1);
        let own = match self {
            Self::Application | Self::Permanent | Self::Complete => &mut restarts.application,
            Self::Infrastructure => &mut restarts.infrastructure,
            Self::Preemption => &mut restarts.preemption,
            Self::Deletion => &mut restarts.deletion,
        };
        *own = own.saturating_add(1);
    }
}

/// What follows from the end of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The job fails by the rule of this index.
    FailJob(usize),
    /// The pod is replaced at the expense of this budget.
    Replace(Budget),
    /// The job fails: the program said that it would fail again.
    Permanent,
}

/// What follows from the end of a pod: the first rule that fits says it, or else its cause. Success is no matter of rules.
#[must_use]
pub fn judge_by_policy(policy: &FailurePolicySpec, pod: Option<&ObservedPod>, end: &PodEnd) -> Verdict {
    let fits = |rule: &FailureRuleSpec| {
        let codes = rule.on_exit_codes.as_ref().zip(end.exit_code.filter(|code| *code != 0));
        let by_code = codes.is_some_and(|(codes, code)| codes.values.contains(&code) == (codes.operator == ExitCodeOperatorSpec::In));
        let conditions = pod.map(|pod| pod.conditions.as_slice()).unwrap_or_default();
        let mut wanted = rule.on_pod_conditions.iter().flatten();
        by_code || wanted.any(|wanted| conditions.iter().any(|(type_, status)| *type_ == wanted.type_ && *status == name(wanted.status)))
    };
    let rule = policy.rules.iter().enumerate().filter(|_| end.cause != Cause::Complete).find(|(_, rule)| fits(rule));
    match rule.map(|(index, rule)| (index, rule.action)) {
        Some((index, FailureActionSpec::FailJob)) => Verdict::FailJob(index),
        Some((_, FailureActionSpec::Ignore)) => Verdict::Replace(Budget::Ignored),
        None if end.cause == Cause::Permanent => Verdict::Permanent,
        Some((_, FailureActionSpec::Count)) | None => Verdict::Replace(end.cause.budget()),
    }
}

const fn name(status: ConditionValueSpec) -> &'static str {
    match status {
        ConditionValueSpec::True => "True",
        ConditionValueSpec::False => "False",
        ConditionValueSpec::Unknown => "Unknown",
    }
}

/// The end of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodEnd {
    /// Whose fault.
    pub cause: Cause,
    /// One word.
    pub reason: String,
    /// What was seen, for people.
    pub message: String,
    /// Exit code of the main container.
    pub exit_code: Option<i32>,
}

/// Judges the end of a pod; `None` is one that vanished, and of which nobody saw the last state.
///
/// What the program itself decided (complete, permanent) counts even if it was disrupted meanwhile; a disruption counts before an exit
/// code, since a program that is killed by it returns any, and so does a deletion of a pod that had not ended before.
#[must_use]
pub fn judge_end(pod: Option<&ObservedPod>) -> PodEnd {
    let Some(pod) = pod else {
        return PodEnd { cause: Cause::Deletion, reason: "PodDeleted".to_owned(), message: "the pod is gone".to_owned(), exit_code: None };
    };
    let end = pod.end.as_ref();
    let exit_code = end.and_then(|end| end.exit_code);
    let decided = exit_code.and_then(ExitCode::from_code);
    let last_words = end.map(|end| end.message.trim()).filter(|message| !message.is_empty());
    let new = |cause, reason: &str, message: &str| PodEnd { cause, reason: reason.to_owned(), message: shorten(message), exit_code };
    match decided {
        Some(ExitCode::Success) => return new(Cause::Complete, "Complete", "the program ended with success"),
        Some(ExitCode::Permanent | ExitCode::Usage) => {
            return new(Cause::Permanent, "PermanentFailure", last_words.unwrap_or("the program said that it would fail again"));
        }
        _ => {}
    }
    if let Some((reason, message)) = &pod.disruption {
        let (cause, reason) = match reason.as_str() {
            "PreemptionByScheduler" => (Cause::Preemption, reason.as_str()),
            "DeletionByTaintManager" | "DeletionByPodGC" => (Cause::Infrastructure, NODE_LOST),
            "EvictionByEvictionAPI" | "TerminationByKubelet" => (Cause::Infrastructure, "Evicted"),
            other => (Cause::Infrastructure, if other.is_empty() { "Disrupted" } else { other }),
        };
        return new(cause, reason, message);
    }
    if pod.deletion.is_some() && !end.is_some_and(|end| end.before_deletion) {
        return new(Cause::Deletion, "PodDeleted", "somebody deleted the pod");
    }
    let Some(end) = end else { return new(Cause::Infrastructure, "Unknown", "the pod has not ended") };
    let Some(code) = exit_code else {
        let reason = if end.reason.is_empty() { "PodFailed" } else { &end.reason };
        return new(Cause::Infrastructure, reason, last_words.unwrap_or("the pod failed without having run"));
    };
    let (cause, reason) = match decided {
        Some(ExitCode::Preempted) => (Cause::Preemption, "Left"),
        Some(ExitCode::Unfit) => (Cause::Infrastructure, NODE_UNFIT),
        Some(_) => (Cause::Application, "RetryableFailure"),
        None if end.reason == "OOMKilled" => (Cause::Application, "OutOfMemory"),
        None if code > 128 => (Cause::Application, "Killed"),
        None => (Cause::Application, "Crashed"),
    };
    match last_words {
        Some(words) => new(cause, reason, &format!("exit code {code}: {words}")),
        None => new(cause, reason, &format!("exit code {code}")),
    }
}

pub(crate) fn shorten(message: &str) -> String {
    match message.char_indices().nth(LONGEST_MESSAGE) {
        Some((end, _)) => format!("{}…", message.get(..end).unwrap_or_default()),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests;
