//! How the job is said to be doing.

use super::scene::{COORDINATOR, Scene, reasons};
use crate::{
    decide::{condition, reason},
    observe::{GroupPhase, Link, Problem},
};

fn check(scene: &Scene, state: &str, running: &str, recovering: &str, why: &str) {
    assert_eq!(scene.status.state.as_deref(), Some(state));
    assert_eq!(scene.condition(condition::RUNNING), Some((running, why)));
    assert_eq!(scene.condition(condition::RECOVERING), Some((recovering, why)));
}

#[test]
fn from_waiting_through_training_and_recovery_to_training() {
    let mut scene = Scene::new("");
    scene.settle();
    check(&scene, "Pending", "False", "False", reason::WAITING_FOR_WORKERS);
    scene.train(1);
    assert_eq!(reasons(&scene.settle()), [reason::TRAINING_STARTED]);
    check(&scene, "Running", "True", "False", reason::TRAINING);
    assert_eq!(scene.condition(condition::RECONCILING), None);
    assert_eq!(scene.status.workers.as_ref().unwrap().summary.as_deref(), Some("2/2"));
    scene.connect(GroupPhase::Recovering, 1);
    assert_eq!(reasons(&scene.settle()), [reason::RECOVERING]);
    check(&scene, "Recovering", "False", "True", reason::GROUP_BROKEN);
    assert!(scene.condition(condition::RECONCILING).is_some());
    scene.train(2);
    assert_eq!(reasons(&scene.settle()), [reason::RECOVERED]);
    check(&scene, "Running", "True", "False", reason::TRAINING);
}

#[test]
fn without_its_coordinator_a_job_recovers() {
    let mut scene = Scene::training("");
    scene.exit(COORDINATOR, 1);
    assert_eq!(reasons(&scene.settle()), [reason::COORDINATOR_REPLACED, reason::RECOVERING]);
    check(&scene, "Recovering", "False", "True", reason::COORDINATOR_LOST);
}

/// A coordinator that has replaced another hears only from the members, or from storage, how far the job is.
#[test]
fn the_step_falls_only_once_training_goes_on_from_a_lower_one() {
    let mut scene = Scene::training("");
    let mut look = |phase, step, expected| {
        scene.connect(phase, step);
        scene.settle();
        assert_eq!(scene.status.step, Some(expected), "{phase:?} at {step}");
    };
    look(GroupPhase::Running, 50, 50);
    look(GroupPhase::Recovering, 0, 50);
    look(GroupPhase::Recovering, 51, 51);
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
    check(&scene, "Unknown", "Unknown", "Unknown", reason::COORDINATOR_UNREACHABLE);
    scene.link = Link::Unknown;
    scene.settle();
    check(&scene, "Unknown", "Unknown", "Unknown", reason::COORDINATOR_UNREACHABLE);
    scene.train(2);
    scene.settle();
    check(&scene, "Running", "True", "False", reason::TRAINING);
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
