//! Completion and failure.

use super::scene::{COORDINATOR, Scene, reasons};
use crate::{
    decide::{Action, condition, reason},
    observe::GroupPhase,
};

fn value(scene: &Scene, type_: &str) -> Option<String> {
    scene.condition(type_).map(|(value, _)| value.to_owned())
}

/// Nothing that happens to the pods changes what is written.
fn check_final(scene: &mut Scene) {
    let status = scene.status.clone();
    for name in scene.pods.keys().cloned().collect::<Vec<_>>() {
        scene.exit(&name, 1);
        let decision = scene.round();
        assert!(decision.is_final);
        assert_eq!((decision.status, decision.events), (status.clone(), vec![]));
    }
    scene.scale(3);
    scene.after(3600);
    assert_eq!(scene.settle(), []);
    assert_eq!(scene.status, status);
}

#[test]
fn the_job_is_complete_when_the_group_or_a_worker_says_so() {
    for by_pod in [false, true] {
        let mut scene = Scene::training("");
        if by_pod {
            scene.exit("job-w-1", 0);
        } else {
            scene.connect(GroupPhase::Complete, 100);
        }
        let events = scene.settle();
        assert_eq!(reasons(&events), [reason::COMPLETE]);
        assert_eq!((value(&scene, condition::COMPLETE).as_deref(), scene.status.step), (Some("True"), Some(100)));
        assert_eq!((value(&scene, condition::RUNNING).as_deref(), value(&scene, condition::STALLED)), (Some("False"), None));
        assert_eq!(scene.restarts(), 0);
        check_final(&mut scene);
    }
}

#[test]
fn success_outweighs_a_failure_seen_at_the_same_time() {
    let mut scene = Scene::training("");
    scene.exit("job-w-0", 0);
    scene.exit("job-w-1", 65);
    assert_eq!(reasons(&scene.settle()), [reason::COMPLETE]);
}

#[test]
fn finished_pods_stay_and_others_get_time_to_finish() {
    let mut scene = Scene::training("");
    scene.exit("job-w-0", 0);
    let decision = scene.round();
    // The other member may not have heard of the end yet.
    assert_eq!(decision.actions, []);
    assert_eq!(decision.again_after.unwrap().as_secs(), 30);
    scene.after(29);
    assert_eq!(scene.decide().actions, []);
    scene.after(1);
    let deletion = |name: &str| Action::DeletePod { name: name.to_owned(), uid: scene.uid_of(name), force: false };
    assert_eq!(scene.decide().actions, [deletion(COORDINATOR), deletion("job-w-1")]);
    scene.settle();
    assert!(scene.pods["job-w-0"].deletion.is_none());
}

#[test]
fn what_is_left_of_a_complete_job_goes_though_the_clock_is_set_back() {
    let mut scene = Scene::training("");
    scene.exit("job-w-0", 0);
    scene.round();
    scene.after(-3600);
    let deletion = |name: &str| Action::DeletePod { name: name.to_owned(), uid: scene.uid_of(name), force: false };
    assert_eq!(scene.decide().actions, [deletion(COORDINATOR), deletion("job-w-1")]);
}

#[test]
fn a_permanent_failure_ends_the_job_with_the_pods_words() {
    for name in ["job-w-1", COORDINATOR] {
        let mut scene = Scene::training("");
        scene.exit(name, 65);
        assert_eq!(reasons(&scene.settle()), [reason::PERMANENT_FAILURE]);
        assert_eq!(scene.condition(condition::FAILED), Some(("True", reason::PERMANENT_FAILURE)));
        assert_eq!(value(&scene, condition::STALLED).as_deref(), Some("True"));
        let last = scene.status.last_failure.as_ref().unwrap();
        assert_eq!((last.pod.as_str(), last.message.clone(), last.exit_code), (name, format!("words of {name}"), Some(65)));
        let message = &scene.status.conditions.iter().find(|condition| condition.type_ == condition::FAILED).unwrap().message;
        assert!(message.contains(&format!("words of {name}")));
        check_final(&mut scene);
    }
}

#[test]
fn too_many_failures_without_a_step_end_the_job() {
    let mut scene = Scene::training("");
    for failures in 1..=4 {
        assert_eq!(scene.status.completion_time, None);
        scene.exit("job-w-0", 1);
        scene.settle();
        assert_eq!(scene.failures(), failures);
        scene.after(60);
        scene.settle();
    }
    assert_eq!(scene.condition(condition::FAILED), Some(("True", reason::BACKOFF_LIMIT_EXCEEDED)));
    check_final(&mut scene);
}
