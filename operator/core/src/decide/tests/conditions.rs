//! How the job is said to be doing.

use std::time::Duration;

use k8s_openapi::jiff::SignedDuration;
use lcl_crds::JobState;

use super::scene::{COORDINATOR, Scene, reasons};
use crate::{
    decide::{Action, Urgency, condition, reason, urgency},
    observe::{GroupPhase, Link, Obstacle, Problem},
};

fn check(scene: &Scene, state: JobState, running: &str, recovering: &str, why: &str) {
    assert_eq!(scene.status.state, Some(state));
    assert_eq!(scene.condition(condition::RUNNING), Some((running, why)));
    assert_eq!(scene.condition(condition::RECOVERING), Some((recovering, why)));
}

#[test]
fn from_waiting_through_training_and_recovery_to_training() {
    let mut scene = Scene::new("");
    scene.settle();
    check(&scene, JobState::Pending, "False", "False", reason::WAITING_FOR_WORKERS);
    scene.train(1);
    assert_eq!(reasons(&scene.settle()), [reason::TRAINING_STARTED]);
    check(&scene, JobState::Running, "True", "False", reason::TRAINING);
    assert_eq!(scene.condition(condition::RECONCILING), None);
    assert_eq!(scene.status.workers.as_ref().unwrap().summary.as_deref(), Some("2/2"));
    scene.connect(GroupPhase::Recovering, 1);
    assert_eq!(reasons(&scene.settle()), [reason::RECOVERING]);
    check(&scene, JobState::Recovering, "False", "True", reason::GROUP_BROKEN);
    assert!(scene.condition(condition::RECONCILING).is_some());
    scene.train(2);
    assert_eq!(reasons(&scene.settle()), [reason::RECOVERED]);
    check(&scene, JobState::Running, "True", "False", reason::TRAINING);
}

#[test]
fn without_its_coordinator_a_job_recovers() {
    let mut scene = Scene::training("");
    scene.exit(COORDINATOR, 1);
    assert_eq!(reasons(&scene.settle()), [reason::COORDINATOR_REPLACED, reason::RECOVERING]);
    check(&scene, JobState::Recovering, "False", "True", reason::COORDINATOR_LOST);
}

/// A coordinator that has replaced another hears only from the members, or from storage, how far the job is.
#[test]
fn the_step_falls_only_once_training_goes_on_from_a_lower_one() {
    let mut scene = Scene::training("");
    let mut look = |phase, step, expected| {
        scene.connect(phase, step);
        scene.settle();
        assert_eq!(scene.status.steps.unwrap().completed, expected, "{phase:?} at {step}");
    };
    look(GroupPhase::Running, 50, 50);
    look(GroupPhase::Recovering, 0, 50);
    look(GroupPhase::Recovering, 51, 51);
    // A group that reads its state from storage has not said yet how far that is.
    look(GroupPhase::Running, 0, 51);
    look(GroupPhase::Running, 40, 40);
}

#[test]
fn a_hiccup_of_the_link_changes_nothing_and_silence_makes_it_unknown() {
    let mut scene = Scene::training("");
    let before = scene.status.clone();
    scene.link = Link::Unknown;
    assert_eq!((scene.settle(), &scene.status), (vec![], &before));
    scene.link = Link::Unreachable;
    scene.settle();
    check(&scene, JobState::Unknown, "Unknown", "Unknown", reason::COORDINATOR_UNREACHABLE);
    scene.link = Link::Unknown;
    scene.settle();
    check(&scene, JobState::Unknown, "Unknown", "Unknown", reason::COORDINATOR_UNREACHABLE);
    scene.train(2);
    scene.settle();
    check(&scene, JobState::Running, "True", "False", reason::TRAINING);
}

#[test]
fn the_time_of_a_transition_stays_while_the_value_does() {
    let mut scene = Scene::training("");
    let since = |scene: &Scene| {
        let running = scene.status.conditions.iter().find(|condition| condition.type_ == condition::RUNNING);
        running.unwrap().last_transition_time.0
    };
    let start = since(&scene);
    scene.after(10);
    scene.scale(3);
    scene.settle();
    assert_eq!(since(&scene), start);
    scene.connect(GroupPhase::Waiting, 1);
    scene.settle();
    assert_eq!(since(&scene), scene.now);
}

#[test]
fn a_problem_is_told_once_and_forgotten_when_it_is_solved() {
    let mut scene = Scene::training("");
    scene.problem = Some(Problem { reason: reason::CREATE_FAILED, message: "quota".to_owned() });
    assert_eq!(reasons(&scene.settle()), [reason::CREATE_FAILED]);
    assert_eq!(scene.condition(condition::STALLED), Some(("True", reason::CREATE_FAILED)));
    scene.problem = None;
    scene.settle();
    assert_eq!(scene.condition(condition::STALLED), None);
}

#[test]
fn pods_are_ready_when_the_fewest_workers_that_the_job_needs_are() {
    let mut scene = Scene::new("");
    let ready = |scene: &Scene| scene.condition(condition::PODS_READY).map(|(value, _)| value == "True");
    scene.round();
    assert_eq!(ready(&scene), Some(false));
    for name in ["job-w-0", "job-w-1"] {
        scene.change(name, |pod| pod.ready = false);
    }
    scene.settle();
    assert_eq!(ready(&scene), Some(false));
    scene.change("job-w-1", |pod| pod.ready = true);
    scene.settle();
    assert_eq!(ready(&scene), Some(true), "one of two is enough");
    scene.edit("spec.elastic.minWorkers = 2");
    scene.settle();
    assert_eq!(ready(&scene), Some(false));
}

#[test]
fn a_checkpoint_is_fresh_until_the_next_is_overdue() {
    let mut scene = Scene::training("");
    let fresh = |scene: &Scene| scene.condition(condition::CHECKPOINT_FRESH).map(|(value, reason)| (value == "True", reason.to_owned()));
    assert_eq!(fresh(&scene), Some((false, reason::NO_CHECKPOINT.to_owned())));
    scene.after(100);
    scene.save(50);
    scene.settle();
    assert_eq!(scene.status.last_checkpoint.as_ref().unwrap().interval_seconds, Some(100), "since the start");
    scene.after(40);
    scene.save(100);
    scene.settle();
    let last = scene.status.last_checkpoint.as_ref().unwrap();
    assert_eq!((last.interval_seconds, last.time.0), (Some(40), scene.now));
    assert_eq!(last.uri.as_deref(), Some("file:///runs/a/step-00000100-g000001-000001"));
    assert_eq!(scene.decide().again_after, Some(Duration::from_secs(81)));
    scene.after(80);
    scene.settle();
    assert_eq!(fresh(&scene), Some((true, reason::CHECKPOINT_WRITTEN.to_owned())));
    scene.after(1);
    scene.settle();
    assert_eq!(fresh(&scene), Some((false, reason::CHECKPOINT_OLD.to_owned())));
    assert_eq!(scene.decide().again_after, None);
    scene.save(150);
    scene.settle();
    assert_eq!(fresh(&scene), Some((true, reason::CHECKPOINT_WRITTEN.to_owned())));
}

/// Three minutes are more than twice the time from one checkpoint to the next.
#[test]
fn a_writer_whose_clock_is_behind_makes_no_checkpoint_old() {
    let mut scene = Scene::training("");
    let is_fresh = |scene: &Scene| scene.condition(condition::CHECKPOINT_FRESH).is_some_and(|(value, _)| value == "True");
    for step in 1..4 {
        scene.after(60);
        scene.save(step);
        let behind = scene.now.checked_sub(SignedDuration::from_secs(180)).unwrap();
        scene.change_group(|group| group.last_checkpoint.as_mut().unwrap().time = behind);
        scene.settle();
        let last = scene.status.last_checkpoint.as_ref().unwrap();
        assert_eq!((last.interval_seconds, last.time.0), (Some(60), behind), "{step}");
        assert!(is_fresh(&scene), "{step}");
    }
    scene.after(120);
    scene.settle();
    assert!(is_fresh(&scene));
    scene.after(1);
    scene.settle();
    assert!(!is_fresh(&scene));
    assert_eq!(scene.decide().again_after, None);
}

#[test]
fn a_writer_whose_clock_is_ahead_keeps_no_checkpoint_fresh() {
    let mut scene = Scene::training("");
    let now = scene.now;
    scene.after(3600);
    scene.save(50);
    scene.now = now;
    scene.settle();
    assert_eq!(scene.status.last_checkpoint.as_ref().unwrap().time.0, now);
}

#[test]
fn a_pod_that_cannot_start_is_named_with_its_container_and_the_reason_and_is_no_failure() {
    let mut scene = Scene::training("spec.workers.replicas = 3");
    for name in ["job-w-1", "job-w-2"] {
        scene.change(name, |pod| {
            (pod.running, pod.ready) = (false, false);
            let container = Some("worker".to_owned());
            pod.obstacle = Some(Obstacle { container, reason: "ImagePullBackOff".to_owned(), message: "not found".to_owned() });
        });
        scene.change_group(|group| group.members.retain(|member| member.worker != name));
    }
    let events = scene.settle();
    assert_eq!(reasons(&events), [reason::POD_CANNOT_START]);
    assert_eq!(events[0].note, "pod job-w-1 cannot start: container worker: ImagePullBackOff: not found (and 1 more pods)");
    // Another one by the way, and words that change: the same pod is told, and that is no news; the status may be written late.
    let before = scene.status.clone();
    for (name, message) in [("job-w-0", "not found"), ("job-w-1", "not found either")] {
        scene.change(name, |pod| {
            let container = Some("worker".to_owned());
            pod.obstacle = Some(Obstacle { container, reason: "ImagePullBackOff".to_owned(), message: message.to_owned() });
        });
    }
    assert_eq!(scene.settle(), []);
    let reconciling = scene.status.conditions.iter().find(|condition| condition.type_ == condition::RECONCILING).unwrap();
    assert_eq!(reconciling.message, "pod job-w-1 cannot start: container worker: ImagePullBackOff: not found either (and 2 more pods)");
    assert!(before != scene.status && urgency(&before, &scene.status) == Urgency::Progress);
    // Once it is gone another is named, and that is news.
    let mut other = scene.clone();
    other.change("job-w-1", |pod| pod.obstacle = None);
    assert_eq!(reasons(&other.settle()), [reason::POD_CANNOT_START]);
    assert_eq!(urgency(&before, &other.status), Urgency::Now);
    scene.change("job-w-0", |pod| pod.obstacle = None);
    // The other trains on, and is enough.
    check(&scene, JobState::Running, "True", "False", reason::TRAINING);
    assert_eq!(scene.condition(condition::PODS_READY), Some(("True", reason::PODS_READY)));
    assert_eq!(scene.condition(condition::RECONCILING), Some(("True", reason::POD_CANNOT_START)));
    assert_eq!((scene.restarts(), scene.incidents()), (0, 0));
    scene.edit("spec.elastic.minWorkers = 2");
    scene.settle();
    assert_eq!(scene.condition(condition::PODS_READY), Some(("False", reason::POD_CANNOT_START)));
    for name in ["job-w-1", "job-w-2"] {
        scene.change(name, |pod| pod.obstacle = None);
    }
    scene.settle();
    assert_eq!(scene.condition(condition::PODS_READY), Some(("False", reason::WAITING_FOR_WORKERS)));
}

/// The kubelet says in Events alone which volume is missing: the operator looks there, and at nothing that starts in time.
#[test]
fn a_pod_that_does_not_start_is_looked_into_and_what_is_found_is_told() {
    let mut scene = Scene::new("");
    scene.settle();
    let uid = scene.uid_of("job-w-1");
    scene.change("job-w-1", |pod| (pod.running, pod.ready) = (false, false));
    let explain = Action::ExplainPod { uid: uid.clone() };
    assert_eq!(scene.round().again_after, Some(Duration::from_secs(10)));
    scene.after(9);
    assert!(!scene.round().actions.contains(&explain));
    scene.after(1);
    let decision = scene.round();
    assert_eq!((decision.actions, decision.again_after), (vec![explain.clone()], Some(Duration::from_secs(15))));
    let message = "MountVolume.SetUp failed for volume \"token\" : secret \"token\" not found";
    scene.explanation = Some((uid, Obstacle { container: None, reason: "FailedMount".to_owned(), message: message.to_owned() }));
    let decision = scene.round();
    assert_eq!(reasons(&decision.events), [reason::POD_CANNOT_START]);
    assert_eq!(decision.events[0].note, format!("pod job-w-1 cannot start: FailedMount: {message}"));
    assert_eq!(scene.condition(condition::RECONCILING), Some(("True", reason::POD_CANNOT_START)));
    assert_eq!((reasons(&scene.round().events), scene.restarts()), (vec![], 0));
    // It starts.
    scene.change("job-w-1", |pod| (pod.running, pod.ready) = (true, true));
    assert_eq!(scene.round().actions, []);
    assert_eq!(scene.condition(condition::RECONCILING), Some(("True", "InProgress")));
}
