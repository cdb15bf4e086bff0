//! Pods that end or vanish.

use std::time::Duration;

use super::scene::{COORDINATOR, GRACE, Scene, reasons};
use crate::{
    Timeouts,
    decide::{Action, reason},
};

fn delete(scene: &Scene, name: &str, force: bool) -> Action {
    Action::DeletePod { name: name.to_owned(), uid: scene.uid_of(name), force }
}

#[test]
fn a_failed_worker_is_recorded_once_deleted_and_made_anew() {
    let mut scene = Scene::training("");
    scene.exit("job-w-1", 1);
    let first = scene.decide();
    assert_eq!(first.actions, [delete(&scene, "job-w-1", false)]);
    assert_eq!(reasons(&first.events), [reason::WORKER_REPLACED]);
    scene.write(&first);
    let again = scene.decide();
    assert_eq!((again.status, again.actions, again.events.len()), (first.status, first.actions, 0), "the deletion was lost");
    scene.round();
    assert_eq!(scene.round().actions, [Action::CreateWorker { index: 1 }]);
    assert_eq!(scene.settle(), []);
    assert_eq!((scene.restarts(), scene.failures()), (1, 1));
    assert_eq!(scene.status.restarts_by_cause, [("application".to_owned(), 1)].into());
    let last = scene.status.last_failure.as_ref().unwrap();
    assert_eq!((last.pod.as_str(), last.reason.as_str(), last.exit_code), ("job-w-1", "Crashed", Some(1)));
    assert!(last.message.contains("words of job-w-1"));
    assert_eq!(scene.status.replacing, []);
}

#[test]
fn a_replacement_that_fails_at_once_counts_again() {
    let mut scene = Scene::training("");
    for failures in 1..=2 {
        scene.exit("job-w-0", 75);
        scene.round();
        scene.after(60);
        scene.round();
        assert_eq!(scene.restarts(), failures);
    }
}

#[test]
fn a_pod_that_vanished_counts_as_deleted() {
    for (name, told) in [("job-w-0", reason::WORKER_REPLACED), (COORDINATOR, reason::COORDINATOR_REPLACED)] {
        let mut scene = Scene::training("");
        scene.vanish(name);
        assert_eq!(reasons(&scene.round().events)[0], told);
        assert_eq!(scene.status.restarts_by_cause, [("deletion".to_owned(), 1)].into());
        assert!(scene.pods.contains_key(name));
        scene.settle();
        assert_eq!((scene.restarts(), scene.failures()), (1, 0));
    }
}

#[test]
fn a_replaced_coordinator_has_the_next_epoch() {
    let mut scene = Scene::training("");
    scene.exit(COORDINATOR, 1);
    scene.settle();
    assert_eq!((scene.status.coordinator_epoch, scene.pods[COORDINATOR].epoch), (Some(2), Some(2)));
}

#[test]
fn other_time_outs_take_another_coordinator_and_no_worker_and_are_no_failure() {
    let mut scene = Scene::training("");
    let stay = scene.pods.clone();
    scene.edit("spec.timeouts.heartbeatSeconds = 30");
    let decision = scene.round();
    let uid = stay[COORDINATOR].uid.clone();
    assert_eq!(decision.actions, [Action::DeletePod { name: COORDINATOR.to_owned(), uid, force: false }]);
    assert_eq!(reasons(&decision.events), [reason::COORDINATOR_REPLACED]);
    scene.settle();
    scene.vanish(COORDINATOR);
    scene.settle();
    assert_eq!(scene.pods[COORDINATOR].timeouts, Timeouts { heartbeat: Some(30), ..Timeouts::default() });
    assert_eq!((scene.status.coordinator_epoch, scene.restarts(), &scene.status.last_failure), (Some(2), 0, &None));
    scene.train(2);
    scene.settle();
    assert_eq!(scene.status.replacing, []);
    scene.pods.insert(COORDINATOR.to_owned(), stay[COORDINATOR].clone());
    scene.edit("spec.timeouts.heartbeatSeconds = delete");
    assert_eq!(scene.pods, stay, "a worker was touched");
    assert_eq!(scene.decide().actions, [], "left out is as before");
}

#[test]
fn a_pod_that_does_not_go_is_forced_once_its_time_is_over() {
    let mut scene = Scene::training("");
    scene.delete("job-w-0");
    let decision = scene.round();
    assert_eq!((decision.actions, decision.again_after), (vec![], Some(Duration::from_secs(GRACE.unsigned_abs() + 5))));
    scene.after(GRACE + 4);
    assert_eq!(scene.decide().actions, []);
    scene.after(1);
    assert_eq!(scene.decide().actions, [delete(&scene, "job-w-0", true)]);
    scene.settle();
    assert_eq!(scene.restarts(), 1);
}

#[test]
fn a_replacement_does_not_wait_for_a_time_that_another_clock_put_on_record() {
    let mut scene = Scene::training("spec.backoffLimit = 100");
    for _ in 0..6 {
        scene.exit("job-w-0", 1);
        scene.round();
        scene.after(60);
        scene.settle();
    }
    scene.exit("job-w-0", 1);
    scene.round();
    assert_eq!(scene.decide().again_after, Some(Duration::from_secs(32)));
    // Another operator takes over, or the clock is set right.
    scene.after(-3600);
    assert_eq!(scene.decide().actions, [Action::CreateWorker { index: 0 }]);
    scene.after(7200);
    assert_eq!(scene.decide().actions, [Action::CreateWorker { index: 0 }]);
}

#[test]
fn a_pod_on_a_lost_node_is_forced_at_once() {
    let mut scene = Scene::training("");
    scene.disrupt("job-w-0", "DeletionByTaintManager");
    scene.delete("job-w-0");
    assert_eq!(scene.decide().actions, [delete(&scene, "job-w-0", true)]);
    scene.settle();
    assert_eq!(scene.status.restarts_by_cause, [("infrastructure".to_owned(), 1)].into());
}

#[test]
fn without_progress_the_delay_doubles_up_to_a_minute() {
    let mut scene = Scene::training("spec.backoffLimit = 100");
    let mut waits = Vec::new();
    for _ in 0..10 {
        scene.exit("job-w-0", 1);
        scene.round();
        let decision = scene.round();
        waits.push(decision.again_after.map_or(0, |wait| wait.as_secs()));
        assert_eq!(decision.actions.is_empty(), decision.again_after.is_some());
        scene.after(60);
        scene.settle();
    }
    assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
}

#[test]
fn a_replacement_waits_out_its_delay_whatever_is_seen_meanwhile() {
    let mut scene = Scene::training("spec.backoffLimit = 100");
    for _ in 0..4 {
        scene.settle();
        scene.exit("job-w-0", 1);
        scene.settle();
        scene.after(3);
    }
    assert_eq!(scene.decide().actions, []);
    scene.after(1);
    assert_eq!(scene.decide().actions, [Action::CreateWorker { index: 0 }]);
}

#[test]
fn a_step_ends_the_delay_and_the_count() {
    let mut scene = Scene::training("");
    for _ in 0..3 {
        scene.exit("job-w-0", 1);
        scene.settle();
        scene.after(60);
        scene.settle();
    }
    scene.train(2);
    scene.settle();
    scene.vanish("job-w-1");
    assert_eq!(scene.round().actions, [Action::CreateWorker { index: 1 }], "a deletion after progress waits for nothing");
    scene.settle();
    scene.exit("job-w-0", 1);
    scene.settle();
    assert_eq!(scene.failures(), 1);
    assert!(scene.pods.contains_key("job-w-0"));
}

#[test]
fn what_is_not_the_programs_fault_costs_no_budget() {
    for (cause, lose) in [
        ("infrastructure", (|scene| scene.disrupt("job-w-0", "EvictionByEvictionAPI")) as fn(&mut Scene)),
        ("preemption", |scene| scene.disrupt("job-w-0", "PreemptionByScheduler")),
        ("preemption", |scene| scene.exit("job-w-0", 80)),
        ("deletion", |scene| scene.delete("job-w-0")),
    ] {
        let mut scene = Scene::training("spec.backoffLimit = 0");
        for _ in 0..5 {
            lose(&mut scene);
            if scene.pods["job-w-0"].disruption.is_some() {
                scene.exit("job-w-0", 137);
            }
            scene.settle();
            scene.after(GRACE + 5);
            scene.settle();
        }
        assert_eq!(scene.status.restarts_by_cause, [(cause.to_owned(), 5)].into());
        assert_eq!((scene.failures(), scene.status.completion_time.is_none()), (0, true), "{cause}");
    }
}

#[test]
fn when_many_fail_at_once_they_are_taken_in_turns() {
    let mut scene = Scene::training("spec.workers.replicas = 100; spec.elastic.maxWorkers = 100");
    let workers: Vec<String> = (0..100).map(|index| format!("job-w-{index}")).collect();
    let end_all = |scene: &mut Scene| workers.iter().for_each(|name| scene.exit(name, 80));
    end_all(&mut scene);
    let decision = scene.round();
    assert_eq!((decision.status.replacing.len(), decision.actions.len()), (64, 64));
    scene.settle();
    assert_eq!((scene.restarts(), scene.pods.len()), (100, 101));
    // The replacements of those on record fail before anybody has seen them well.
    end_all(&mut scene);
    scene.round();
    scene.round();
    workers.iter().filter(|name| scene.pods[*name].end.is_none()).cloned().collect::<Vec<_>>().iter().for_each(|name| scene.exit(name, 80));
    scene.settle();
    assert_eq!((scene.restarts(), scene.pods.len()), (264, 101));
    assert!(scene.pods.values().all(|pod| pod.end.is_none()));
}
