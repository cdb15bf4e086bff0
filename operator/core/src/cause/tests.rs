use k8s_openapi::jiff::SignedDuration;

use super::*;
use crate::{
    Timeouts,
    observe::{HistoryPlace, ObservedEnd, PodRole},
};

fn pod(exit_code: Option<i32>, end: &str, disruption: &str, is_deleted: bool) -> ObservedPod {
    let ended = exit_code.is_some() || !end.is_empty();
    ObservedPod {
        uid: "uid".to_owned(),
        owner: "job".to_owned(),
        role: PodRole::Worker(0),
        epoch: None,
        incident: 0,
        history: HistoryPlace::default(),
        conditions: Vec::new(),
        obstacle: None,
        timeouts: Timeouts::default(),
        ip: None,
        node: None,
        running: false,
        sidecar_runs: false,
        start: None,
        ready: false,
        deletion: is_deleted.then_some(SignedDuration::ZERO),
        disruption: (!disruption.is_empty()).then(|| (disruption.to_owned(), "why".to_owned())),
        end: ended.then(|| ObservedEnd { exit_code, reason: end.to_owned(), ..ObservedEnd::default() }),
    }
}

fn check(exit_code: Option<i32>, end: &str, disruption: &str, is_deleted: bool, expected: (Cause, &str)) {
    let judged = judge_end(Some(&pod(exit_code, end, disruption, is_deleted)));
    assert_eq!((judged.cause, judged.reason.as_str()), expected, "{exit_code:?} {end} {disruption} {is_deleted}");
    assert_eq!(judged.exit_code, exit_code);
}

#[test]
fn whose_fault_an_end_is() {
    use Cause::{Application, Complete, Deletion, Infrastructure, Permanent, Preemption};
    check(Some(0), "Completed", "", false, (Complete, "Complete"));
    check(Some(0), "Completed", "EvictionByEvictionAPI", true, (Complete, "Complete"));
    check(Some(65), "Error", "", false, (Permanent, "PermanentFailure"));
    check(Some(2), "Error", "PreemptionByScheduler", true, (Permanent, "PermanentFailure"));
    check(Some(75), "Error", "", false, (Application, "RetryableFailure"));
    check(Some(80), "Error", "", false, (Preemption, "Left"));
    check(Some(1), "Error", "", false, (Application, "Crashed"));
    check(Some(137), "OOMKilled", "", false, (Application, "OutOfMemory"));
    check(Some(139), "Error", "", false, (Application, "Killed"));
    check(Some(137), "Error", "PreemptionByScheduler", true, (Preemption, "PreemptionByScheduler"));
    check(Some(75), "Error", "DeletionByTaintManager", true, (Infrastructure, "NodeLost"));
    check(None, "", "DeletionByPodGC", false, (Infrastructure, "NodeLost"));
    check(Some(137), "Error", "TerminationByKubelet", false, (Infrastructure, "Evicted"));
    check(Some(1), "Error", "SomethingNew", false, (Infrastructure, "SomethingNew"));
    check(Some(137), "Error", "", true, (Deletion, "PodDeleted"));
    check(None, "", "", true, (Deletion, "PodDeleted"));
    check(None, "Evicted", "", false, (Infrastructure, "Evicted"));
    check(None, "", "", false, (Infrastructure, "Unknown"));
    assert_eq!(judge_end(None).cause, Deletion);
}

#[test]
fn a_deletion_is_the_cause_unless_the_pod_was_seen_to_have_ended_before() {
    let (runs, ended) = (pod(None, "", "", false), pod(Some(75), "Error", "", false));
    let after = |earlier: &ObservedPod, mut now: ObservedPod| {
        now.follow(earlier);
        now.note_removal();
        judge_end(Some(&now)).cause
    };
    let deleted = pod(Some(75), "Error", "", true);
    assert_eq!(after(&runs, deleted.clone()), Cause::Deletion);
    assert_eq!(after(&pod(None, "", "", true), deleted.clone()), Cause::Deletion);
    assert_eq!(after(&ended, deleted.clone()), Cause::Application);
    let mut first = deleted.clone();
    first.follow(&ended);
    assert_eq!(after(&first, deleted.clone()), Cause::Application, "it stays so");
    assert_eq!(
        after(&ObservedPod { uid: "another".to_owned(), ..ended.clone() }, deleted),
        Cause::Deletion,
        "of another pod it says nothing"
    );
    assert_eq!(after(&runs, ended), Cause::Application, "it went without having been asked to");
    assert_eq!(after(&runs.clone(), runs), Cause::Deletion);
}

#[test]
fn a_long_message_is_cut_between_characters() {
    let cut = shorten(&"ß".repeat(600));
    assert_eq!((cut.chars().count(), cut.chars().last()), (513, Some('…')));
    assert_eq!(shorten("short"), "short");
}
