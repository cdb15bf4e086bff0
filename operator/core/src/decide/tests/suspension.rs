//! Jobs whose pods are to be away.

use lcl_crds::JobState;

use super::scene::{COORDINATOR, GRACE, Scene, reasons};
use crate::{
    decide::{Action, condition, reason},
    observe::{GroupPhase, Link},
};

fn names(scene: &Scene) -> Vec<&str> {
    scene.pods.keys().map(String::as_str).collect()
}

/// The workers' pods end, as they do once their group has, or once they are deleted.
fn end_workers(scene: &mut Scene) {
    for name in ["job-w-0", "job-w-1"] {
        match scene.pods.get(name).map(|pod| pod.deletion.is_some()) {
            Some(true) => scene.vanish(name),
            Some(false) => scene.exit(name, 80),
            None => {}
        }
    }
}

#[test]
fn a_job_that_is_created_suspended_has_no_pods_and_starts_when_it_may() {
    let mut scene = Scene::new("spec.suspend = true; spec.preRunningDeadlineSeconds = 60");
    assert_eq!(reasons(&scene.settle()), [reason::SUSPENDED]);
    assert_eq!(
        (names(&scene), scene.status.state, scene.condition(condition::SUSPENDED)),
        (vec![], Some(JobState::Suspended), Some(("True", reason::SUSPENDED)))
    );
    assert_eq!((scene.status.start_time.clone(), scene.status.coordinator_epoch), (None, None));
    scene.after(3600);
    let decision = scene.decide();
    assert_eq!((&decision.status, decision.again_after, decision.actions.len()), (&scene.status, None, 0), "it rests");
    scene.edit("spec.suspend = false");
    assert_eq!(reasons(&scene.settle()), [reason::RESUMED]);
    assert_eq!(names(&scene), [COORDINATOR, "job-w-0", "job-w-1"]);
    assert_eq!(scene.condition(condition::SUSPENDED), Some(("False", reason::RESUMED)));
    assert_eq!(scene.status.start_time.as_ref().map(|time| time.0), Some(scene.now), "its deadlines begin now");
    assert_eq!(Scene::training("").condition(condition::SUSPENDED), None, "who was never suspended says nothing of it");
}

#[test]
fn a_job_that_trains_writes_a_checkpoint_before_its_pods_go_the_coordinator_last_and_nothing_is_a_failure() {
    let mut scene = Scene::training(
        "spec.activeDeadlineSeconds = 100; spec.failurePolicy = {'preemption': {'limit': 0}, 'infrastructure': {'limit': 0}}",
    );
    scene.edit("spec.suspend = true");
    let decision = scene.round();
    assert_eq!((decision.actions, reasons(&decision.events)), (vec![Action::StopGroup], vec![reason::SUSPENDING]));
    assert_eq!(scene.status.state, Some(JobState::Suspending));
    assert_eq!(scene.condition(condition::RUNNING), Some(("False", reason::SUSPENDING)));
    // The group has ended; its last words are in the status.
    end_workers(&mut scene);
    scene.change_group(|group| group.step = 9);
    scene.round();
    assert_eq!(names(&scene), [COORDINATOR]);
    scene.round();
    scene.vanish(COORDINATOR);
    assert_eq!(reasons(&scene.settle()), [reason::SUSPENDED]);
    assert_eq!((names(&scene).len(), scene.status.state), (0, Some(JobState::Suspended)));
    assert_eq!((scene.restarts(), scene.incidents(), scene.status.steps.unwrap().completed), (0, 0, 9));
    assert_eq!((scene.status.group, scene.status.start_time.clone()), (None, None));
    scene.after(1_000);
    assert!(!scene.round().is_final, "no time runs while it is suspended");
    scene.edit("spec.suspend = false");
    scene.settle();
    assert_eq!((names(&scene).len(), scene.status.coordinator_epoch), (3, Some(2)));
    scene.train(10);
    assert_eq!(reasons(&scene.settle()), [reason::TRAINING_STARTED]);
    assert_eq!((scene.status.state, scene.restarts()), (Some(JobState::Running), 0));
}

#[test]
fn who_cannot_be_asked_or_does_not_end_is_deleted() {
    // The coordinator does not answer.
    let mut scene = Scene::training("spec.suspend = true");
    scene.settle();
    assert_eq!(names(&scene).len(), 0, "none was created");
    let mut scene = Scene::training("");
    scene.link = Link::Unreachable;
    scene.edit("spec.suspend = true");
    scene.settle();
    assert!(scene.pods["job-w-0"].deletion.is_some() && scene.pods[COORDINATOR].deletion.is_none());
    scene.after(GRACE + 5);
    scene.settle();
    scene.after(GRACE + 5);
    scene.settle();
    assert_eq!((names(&scene).len(), scene.restarts()), (0, 0), "nodes that do not answer are not waited for");

    // The members do not end: they have as long as a worker is given.
    let mut scene = Scene::training("");
    scene.edit("spec.suspend = true");
    let decision = scene.decide();
    scene.write(&decision);
    scene.after(119);
    assert_eq!(scene.decide().actions, [Action::StopGroup]);
    scene.after(1);
    assert_eq!(scene.decide().actions.len(), 2, "{:?}", scene.decide().actions);
}

#[test]
fn what_was_begun_is_finished_before_the_job_goes_on() {
    let mut scene = Scene::training("");
    scene.edit("spec.suspend = true");
    scene.round();
    scene.edit("spec.suspend = false");
    scene.round();
    assert_eq!(scene.status.state, Some(JobState::Suspending));
    end_workers(&mut scene);
    for _ in 0..4 {
        scene.round();
        if scene.pods.get(COORDINATOR).is_some_and(|pod| pod.deletion.is_some()) {
            scene.vanish(COORDINATOR);
        }
    }
    scene.settle();
    assert_eq!((names(&scene).len(), scene.status.state), (3, Some(JobState::Pending)));
    assert!(scene.pods.values().all(|pod| pod.end.is_none() && pod.deletion.is_none()));
    assert_eq!((scene.restarts(), scene.status.coordinator_epoch), (0, Some(2)));
}

#[test]
fn a_job_that_ends_while_it_is_being_suspended_has_ended() {
    for (code, type_) in [(0, condition::COMPLETE), (65, condition::FAILED)] {
        let mut scene = Scene::training("");
        scene.edit("spec.suspend = true");
        scene.round();
        scene.exit("job-w-0", code);
        scene.settle();
        assert_eq!(scene.condition(type_).map(|(value, _)| value), Some("True"));
    }
    let mut scene = Scene::training("");
    scene.connect(GroupPhase::Complete, 100);
    scene.settle();
    scene.edit("spec.suspend = true");
    assert_eq!(scene.settle(), [], "what is over is over");
}
