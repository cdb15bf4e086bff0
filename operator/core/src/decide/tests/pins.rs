//! What a group that runs keeps, and how a change reaches it.

use lcl_crds::JobState;

use super::scene::{COORDINATOR, Scene, reasons};
use crate::{
    decide::{Action, condition, reason},
    observe::GroupPhase,
};

/// The group has ended: the pods end by themselves or by their deletion.
fn end_pods(scene: &mut Scene) {
    for name in scene.pods.keys().cloned().collect::<Vec<_>>() {
        match scene.pods[&name].deletion.is_some() {
            true => scene.vanish(&name),
            false if name != COORDINATOR => scene.exit(&name, 80),
            false => {}
        }
    }
}

fn restart(scene: &mut Scene) {
    for _ in 0..6 {
        scene.round();
        if scene.status.state != Some(JobState::Restarting) {
            return;
        }
        end_pods(scene);
    }
    panic!("it does not start again: {:?}", scene.status);
}

#[test]
fn a_change_of_the_configuration_reaches_all_members_at_one_step_and_is_no_failure() {
    for (change, field) in [
        ("spec.optimization.steps = 200", "spec.optimization.steps"),
        ("spec.optimization.schedule = {'cosine': {}}", "spec.optimization.schedule.constant"),
        ("spec.checkpoint.keepLast = 9", "spec.checkpoint.keepLast"),
        ("spec.workers.template = {'spec': {'containers': [{'name': 'worker', 'image': 'my:2'}]}}", "containers[worker].image"),
    ] {
        let mut scene = Scene::training("spec.activeDeadlineSeconds = 1000");
        let (began, config) = (scene.status.start_time.clone(), scene.status.pinned.clone().unwrap().config);
        scene.after(10);
        scene.edit(change);
        let decision = scene.round();
        assert_eq!((decision.actions, reasons(&decision.events)), (vec![Action::StopGroup], vec![reason::SPEC_CHANGED]), "{change}");
        assert_eq!(scene.status.state, Some(JobState::Restarting));
        assert!(decision.events[0].note.contains(field), "{change}: {}", decision.events[0].note);
        assert_eq!(scene.condition(condition::SUSPENDED), None);
        end_pods(&mut scene);
        restart(&mut scene);
        scene.settle();
        let pinned = scene.status.pinned.clone().unwrap();
        assert_eq!((pinned.generation, config.as_str(), pinned.config.as_str()), (2, "job-config-1", "job-config-2"));
        assert_eq!(scene.pods.values().filter(|pod| pod.end.is_none() && pod.deletion.is_none()).count(), 3);
        assert_eq!((scene.restarts(), scene.incidents(), scene.status.coordinator_epoch), (0, 0, Some(2)));
        assert_eq!(scene.status.start_time, began, "its deadlines go on");
        scene.train(50);
        scene.settle();
        assert_eq!(scene.status.state, Some(JobState::Running));
    }
}

#[test]
fn what_members_do_not_share_changes_without_a_stop() {
    for change in [
        "spec.workers.replicas = 3",
        "spec.elastic.maxWorkers = 8",
        "spec.timeouts.stallSeconds = 60",
        "spec.ttlSecondsAfterFinished = 1",
        "spec.workers.template = {'spec': {'containers': [{'name': 'proxy', 'image': 'my:2'}]}}",
        "spec.optimization.normalization = 'Global'",
        "spec.model.layerScale = delete",
    ] {
        let mut scene = Scene::training("");
        scene.edit(change);
        let decision = scene.round();
        assert!(!decision.actions.contains(&Action::StopGroup), "{change}");
        assert_eq!(scene.status.pinned.as_ref().unwrap().generation, 1, "{change}");
    }
}

#[test]
fn a_new_release_of_the_operator_touches_no_group_that_runs_and_replaces_pods_with_what_the_others_have() {
    let mut scene = Scene::training("");
    let pinned = scene.status.pinned.clone();
    (scene.offer.trainer_image, scene.offer.coordinator_image) = ("trainer:2".to_owned(), "coordinator:2".to_owned());
    let decision = scene.round();
    assert_eq!((decision.actions.len(), &decision.status.pinned), (0, &pinned));
    scene.exit("job-w-0", 75);
    scene.exit(COORDINATOR, 75);
    scene.settle();
    assert_eq!(scene.status.pinned, pinned);
    scene.scale(3);
    scene.settle();
    assert_eq!((scene.pods.len(), &scene.status.pinned), (4, &pinned));
    // The next group has the new ones.
    (scene.offer.trainer_image, scene.offer.coordinator_image) = ("trainer:2".to_owned(), "coordinator:2".to_owned());
    scene.train(5);
    scene.settle();
    let offer = scene.offer.clone();
    scene.edit("spec.optimization.steps = 200");
    scene.offer = lcl_crds::PinnedStatus { generation: scene.generation, ..offer };
    restart(&mut scene);
    scene.settle();
    assert_eq!(scene.status.pinned.as_ref().unwrap().trainer_image, "trainer:2");
}

#[test]
fn a_group_that_was_started_for_fewer_steps_than_are_asked_for_now_is_not_complete() {
    for by_pod in [false, true] {
        let mut scene = Scene::training("");
        scene.edit("spec.optimization.steps = 200");
        if by_pod {
            scene.exit("job-w-0", 0);
            scene.exit("job-w-1", 0);
        } else {
            scene.connect(GroupPhase::Complete, 100);
        }
        restart(&mut scene);
        scene.settle();
        assert_eq!((scene.condition(condition::COMPLETE), scene.pods.len()), (None, 3));
        assert_eq!(scene.status.steps.unwrap().total, 200);
        scene.connect(GroupPhase::Complete, 200);
        scene.settle();
        assert_eq!(scene.status.state, Some(JobState::Complete));
    }
}
