//! Why a pod ended, and whose fault it is. Pure.

use lcl_trainer_config::ExitCode;

use crate::observe::ObservedPod;

/// Longest message that is kept: a line or two of the status.
const LONGEST_MESSAGE: usize = 512;

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

impl Cause {
    /// Its name in counters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Permanent => "permanent",
            Self::Application => "application",
            Self::Infrastructure => "infrastructure",
            Self::Preemption => "preemption",
            Self::Deletion => "deletion",
        }
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

/// Judges the end of a pod; `None` is one that vanished.
///
/// What the program itself decided (complete, permanent) counts even if it was disrupted meanwhile; a disruption counts before an exit
/// code, since a program that is killed by it returns any.
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
            "DeletionByTaintManager" | "DeletionByPodGC" => (Cause::Infrastructure, "NodeLost"),
            "EvictionByEvictionAPI" | "TerminationByKubelet" => (Cause::Infrastructure, "Evicted"),
            other => (Cause::Infrastructure, if other.is_empty() { "Disrupted" } else { other }),
        };
        return new(cause, reason, message);
    }
    if pod.deletion.is_some() {
        return new(Cause::Deletion, "PodDeleted", "the pod is being deleted");
    }
    let Some(end) = end else { return new(Cause::Infrastructure, "Unknown", "the pod has not ended") };
    let Some(code) = exit_code else {
        let reason = if end.reason.is_empty() { "PodFailed" } else { &end.reason };
        return new(Cause::Infrastructure, reason, last_words.unwrap_or("the pod failed without having run"));
    };
    let (cause, reason) = match decided {
        Some(ExitCode::Preempted) => (Cause::Preemption, "Left"),
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

fn shorten(message: &str) -> String {
    match message.char_indices().nth(LONGEST_MESSAGE) {
        Some((end, _)) => format!("{}…", message.get(..end).unwrap_or_default()),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests;
