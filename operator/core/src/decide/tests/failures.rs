//! Pods that end or vanish.

use std::time::Duration;

use lcl_crds::RestartsStatus;

use super::scene::{COORDINATOR, GRACE, Scene, reasons};
use crate::{
    Slowness, Timeouts,
    decide::{Action, condition, reason},
    observe::{Link, SlowSeen},
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
    assert_eq!((scene.restarts(), scene.application_incidents()), (1, 1));
    assert_eq!(scene.status.restarts, RestartsStatus { total: 1, application: 1, ..RestartsStatus::default() });
    let last = scene.status.last_failure.as_ref().unwrap();
    assert_eq!((last.pod.as_str(), last.reason.as_str(), last.exit_code), ("job-w-1", "Crashed", Some(1)));
    assert!(last.message.contains("words of job-w-1"));
    assert_eq!(scene.status.replacing, []);
}

#[test]
fn a_loss_that_is_on_record_is_not_counted_again_by_the_next_operator() {
    let mut scene = Scene::training("");
    scene.vanish("job-w-0");
    // The status is written, and the operator dies before it acts.
    let decision = scene.decide();
    scene.write(&decision);
    scene.waiting_since.clear();
    scene.settle();
    assert_eq!((scene.restarts(), scene.incidents()), (1, 1));
    assert!(scene.pods.contains_key("job-w-0") && scene.status.replacing.is_empty());
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
        assert_eq!(scene.status.restarts, RestartsStatus { total: 1, deletion: 1, ..RestartsStatus::default() });
        assert!(scene.pods.contains_key(name));
        scene.settle();
        assert_eq!((scene.restarts(), scene.application_incidents()), (1, 0));
    }
}

#[test]
fn a_pod_that_ended_and_was_deleted_between_two_looks_counts_once_by_what_ended_it() {
    let counted = |scene: &Scene| (scene.restarts(), scene.status.last_failure.clone().unwrap());
    for name in ["job-w-0", COORDINATOR] {
        let mut scene = Scene::training("");
        scene.exit(name, 75);
        scene.lose(name);
        let events = scene.settle();
        let (restarts, last) = counted(&scene);
        assert_eq!((restarts, last.reason.as_str(), last.exit_code), (1, "RetryableFailure", Some(75)), "{events:?}");
        assert!(last.message.contains(&format!("words of {name}")), "{last:?}");
        assert_eq!((scene.status.restarts.application, scene.application_incidents()), (1, 1));
    }
    // It was deleted, and so it ended; or it was disrupted.
    let mut scene = Scene::training("");
    scene.delete("job-w-0");
    scene.exit("job-w-0", 80);
    scene.lose("job-w-0");
    scene.disrupt("job-w-1", "PreemptionByScheduler");
    scene.delete("job-w-1");
    scene.lose("job-w-1");
    scene.settle();
    assert_eq!(scene.status.restarts, RestartsStatus { total: 2, deletion: 1, preemption: 1, ..RestartsStatus::default() });
    // A node that is unfit is excluded all the same, and one that failed before it was deleted counts by that while it is still there.
    let mut scene = Scene::training("");
    scene.exit("job-w-0", 82);
    scene.lose("job-w-0");
    scene.exit("job-w-1", 1);
    scene.delete("job-w-1");
    scene.settle();
    assert_eq!(scene.status.restarts, RestartsStatus { total: 2, infrastructure: 1, application: 1, ..RestartsStatus::default() });
    assert_eq!(scene.status.excluded_nodes.len(), 1);
}

#[test]
fn a_pod_that_is_gone_ends_the_job_as_one_that_is_there_does() {
    for (code, end) in [(0, condition::COMPLETE), (65, condition::FAILED)] {
        let mut scene = Scene::training("");
        scene.exit("job-w-0", code);
        scene.lose("job-w-0");
        scene.settle();
        assert_eq!(scene.condition(end).map(|(value, _)| value), Some("True"), "exit code {code}");
    }
    // All of them are gone that were started for fewer steps than the job has now: none of them has done the last.
    // Nor if that they were there is not on record yet.
    let mut young = Scene::new("");
    young.round();
    young.created = 2;
    for mut scene in [Scene::training(""), young] {
        scene.edit("spec.optimization.steps = 1000");
        for name in [COORDINATOR, "job-w-0", "job-w-1"] {
            scene.exit(name, 0);
            scene.lose(name);
        }
        scene.round();
        assert_eq!(scene.condition(condition::COMPLETE), None);
    }
}

#[test]
fn what_was_to_end_is_no_loss_when_it_is_gone_before_the_job_goes_on() {
    let mut scene = Scene::training("");
    scene.edit("spec.suspend = true");
    scene.link = Link::Unreachable;
    scene.round();
    scene.edit("spec.suspend = false");
    let names: Vec<_> = scene.pods.keys().cloned().collect();
    for name in names {
        scene.exit(&name, 65);
        scene.lose(&name);
    }
    scene.settle();
    assert_eq!((scene.restarts(), scene.pods.len(), scene.condition(condition::FAILED)), (0, 3, None));
    // One that was deleted because it had failed was counted then.
    scene.train(2);
    scene.settle();
    scene.exit("job-w-0", 1);
    scene.round();
    scene.settle();
    assert_eq!(scene.restarts(), 1);
    // And the pod of another job is none of this one's.
    scene.change("job-w-1", |pod| pod.owner = "another".to_owned());
    scene.exit("job-w-1", 65);
    scene.lose("job-w-1");
    scene.settle();
    assert_eq!((scene.status.restarts.deletion, scene.status.restarts.application), (1, 1));
}

#[test]
fn more_losses_than_the_record_has_room_for_are_counted_by_their_causes_as_it_empties() {
    let mut scene = Scene::new("spec.workers = {'replicas': 100}; spec.elastic = delete; spec.optimization.globalBatchSize = 100");
    scene.settle();
    scene.train(1);
    scene.settle();
    for index in 0..100 {
        let name = format!("job-w-{index}");
        scene.exit(&name, 1);
        scene.lose(&name);
    }
    let decision = scene.round();
    assert_eq!((decision.unrecorded.len(), scene.restarts()), (36, 64));
    scene.settle();
    assert_eq!(scene.status.restarts, RestartsStatus { total: 100, application: 100, ..RestartsStatus::default() });
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
fn another_bound_on_slowness_takes_another_coordinator_and_no_worker() {
    let mut scene = Scene::training("spec.elastic = {'minWorkers': 1, 'maxWorkers': 8}");
    scene.edit("spec.elastic.evictSlowMembers = {'factor': 1.7}");
    let uid = scene.uid_of(COORDINATOR);
    assert_eq!(scene.round().actions, [Action::DeletePod { name: COORDINATOR.to_owned(), uid, force: false }]);
    scene.settle();
    scene.vanish(COORDINATOR);
    scene.settle();
    assert_eq!(scene.pods[COORDINATOR].timeouts.slow, Some(Slowness { factor: 1.7, after: 300 }));
    assert_eq!(scene.restarts(), 0);
}

#[test]
fn a_worker_with_a_member_that_was_evicted_for_being_slow_is_replaced_elsewhere_at_the_infrastructures_expense() {
    let mut scene = Scene::training("spec.workers.replicas = 3; spec.elastic = {'minWorkers': 1, 'maxWorkers': 8}");
    let evict = |scene: &mut Scene| {
        scene.change_group(|group| {
            group.newest_entry += 1;
            let message = "member job-w-1/0 was evicted: on node node 2.0 times the median".to_owned();
            group.slow.insert("job-w-1".to_owned(), SlowSeen { entry: group.newest_entry, message });
        });
    };
    evict(&mut scene);
    let decision = scene.round();
    let uid = scene.uid_of("job-w-1");
    let delete = Action::DeletePod { name: "job-w-1".to_owned(), uid: uid.clone(), force: false };
    assert_eq!(decision.actions, [delete], "it is well, and has its time");
    assert_eq!(reasons(&decision.events)[0], reason::WORKER_REPLACED);
    assert!(decision.events[0].note.contains("NodeSlow: member job-w-1/0 was evicted"), "{:?}", decision.events);
    assert_eq!(decision.status.replacing[0].avoided_node.as_deref(), Some("node"));
    assert_eq!((decision.status.restarts.infrastructure, decision.status.excluded_nodes.len()), (1, 0), "it does nothing wrong");
    let failures = decision.status.failures.as_ref().unwrap();
    assert!(failures.infrastructure.is_some() && failures.application.is_none(), "{failures:?}");
    scene.settle();
    scene.vanish("job-w-1");
    scene.settle();
    // What the coordinator said was about the pod before, whatever it says in between.
    let replacement = scene.uid_of("job-w-1");
    assert_ne!(replacement, uid);
    scene.after(60);
    assert_eq!(scene.settle(), []);
    assert_eq!((scene.uid_of("job-w-1"), scene.restarts()), (replacement, 1));
    evict(&mut scene);
    assert_eq!(reasons(&scene.settle())[0], reason::WORKER_REPLACED, "its own slowness is one more");
    assert_eq!(scene.restarts(), 2);
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
    let mut scene = Scene::training("spec.failurePolicy.application = {'limit': 100}");
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
    // The node may be well, and its taint for others.
    assert_eq!(scene.decide().actions, []);
    scene.change("job-w-0", |pod| pod.ready = false);
    assert_eq!(scene.decide().actions, [], "its members are heard");
    scene.change_group(|group| group.members.retain(|member| member.worker != "job-w-0"));
    assert_eq!(scene.decide().actions, [delete(&scene, "job-w-0", true)]);
    scene.settle();
    assert_eq!(scene.status.restarts, RestartsStatus { total: 1, infrastructure: 1, ..RestartsStatus::default() });
}

#[test]
fn without_progress_the_delay_doubles_up_to_a_minute() {
    let mut scene = Scene::training("spec.failurePolicy.application = {'limit': 100}");
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
    let mut scene = Scene::training("spec.failurePolicy.application = {'limit': 100}");
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
fn a_step_ends_the_pause() {
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
    assert_eq!(scene.round().actions, [Action::CreateWorker { index: 1 }], "after progress nothing is waited for");
    scene.settle();
    assert_eq!(scene.application_incidents(), 3, "they are within the window all the same");
}

/// Pods that a storage outage ends, one after the other, and their replacements.
#[test]
fn what_ends_many_at_once_is_one_incident_and_all_are_replaced_at_once() {
    let mut scene = Scene::training("spec.workers.replicas = 32; spec.elastic.maxWorkers = 32");
    for index in 0..30 {
        scene.exit(&format!("job-w-{index}"), 75);
        scene.after(1);
        scene.settle();
    }
    assert_eq!((scene.restarts(), scene.incidents(), scene.application_incidents()), (30, 1, 1));
    assert_eq!(scene.pods.values().filter(|pod| pod.end.is_none()).count(), 33);
    // The outage is not over: the new ones end, too.
    for index in 0..30 {
        scene.exit(&format!("job-w-{index}"), 75);
    }
    scene.settle();
    assert_eq!((scene.incidents(), scene.pods.len()), (2, 3), "now there is a pause");
    scene.after(1);
    scene.settle();
    assert_eq!(scene.pods.len(), 33);
}

#[test]
fn every_cause_has_a_budget_of_its_own_and_somebody_who_deletes_pods_spends_the_clusters() {
    type Lose = (&'static str, fn(&mut Scene));
    let lose: [Lose; 5] = [
        ("application", |scene| scene.exit("job-w-0", 75)),
        ("infrastructure", |scene| scene.disrupt("job-w-0", "EvictionByEvictionAPI")),
        ("infrastructure", |scene| scene.vanish("job-w-0")),
        ("preemption", |scene| scene.disrupt("job-w-0", "PreemptionByScheduler")),
        ("preemption", |scene| scene.exit("job-w-0", 80)),
    ];
    for (budget, lose) in lose {
        let limits = ["application", "infrastructure", "preemption"]
            .map(|name| format!("spec.failurePolicy.{name} = {{'limit': {}}}", if name == budget { 2 } else { 0 }));
        let mut scene = Scene::training(&limits.join("; "));
        for incidents in 1..=3 {
            assert!(scene.status.completion_time.is_none(), "{budget}: {incidents}");
            lose(&mut scene);
            if scene.pods.get("job-w-0").is_some_and(|pod| pod.disruption.is_some()) {
                scene.exit("job-w-0", 137);
            }
            scene.settle();
            scene.after(61);
            scene.settle();
            assert_eq!(scene.incidents(), incidents, "{budget}");
        }
        assert_eq!(scene.condition(condition::FAILED), Some(("True", reason::BACKOFF_LIMIT_EXCEEDED)), "{budget}");
        let message = &scene.status.conditions.iter().find(|found| found.type_ == condition::FAILED).unwrap().message;
        assert!(
            message.starts_with(&format!("3 incidents within 3600 seconds (spec.failurePolicy.{budget}), the last: job-w-0: ")),
            "{message}"
        );
    }
}

#[test]
fn incidents_that_are_out_of_the_window_are_forgiven() {
    let mut scene = Scene::training("spec.failurePolicy.application = {'limit': 1, 'windowSeconds': 600}");
    for _ in 0..20 {
        scene.exit("job-w-0", 75);
        scene.settle();
        scene.after(600);
        scene.settle();
    }
    assert_eq!((scene.status.completion_time.is_none(), scene.restarts()), (true, 20));
}

#[test]
fn the_first_rule_that_fits_says_what_follows() {
    let rules = |rules: &str| Scene::training(&format!("spec.failurePolicy = {{'application': {{'limit': 0}}, 'rules': [{rules}]}}"));
    let on_code = |action: &str, operator: &str, code: i32| {
        format!("{{'action': '{action}', 'onExitCodes': {{'operator': '{operator}', 'values': [{code}]}}}}")
    };
    // (rules, exit code, whether the job fails and why)
    for (given, code, failed) in [
        (on_code("FailJob", "In", 42), 42, Some(reason::POD_FAILURE_POLICY)),
        (on_code("FailJob", "In", 42), 43, Some(reason::BACKOFF_LIMIT_EXCEEDED)),
        (on_code("FailJob", "NotIn", 42), 43, Some(reason::POD_FAILURE_POLICY)),
        (on_code("Ignore", "In", 42), 42, None),
        (on_code("Ignore", "In", 65), 65, None),
        (on_code("Count", "In", 65), 65, Some(reason::BACKOFF_LIMIT_EXCEEDED)),
        (on_code("FailJob", "In", 65), 65, Some(reason::POD_FAILURE_POLICY)),
        (format!("{}, {}", on_code("Ignore", "In", 42), on_code("FailJob", "NotIn", 1)), 42, None),
        (format!("{}, {}", on_code("FailJob", "NotIn", 1), on_code("Ignore", "In", 42)), 42, Some(reason::POD_FAILURE_POLICY)),
    ] {
        let mut scene = rules(&given);
        scene.exit("job-w-0", code);
        scene.settle();
        scene.after(60);
        scene.settle();
        assert_eq!(scene.condition(condition::FAILED), failed.map(|reason| ("True", reason)), "{given}: {code}");
        if failed == Some(reason::POD_FAILURE_POLICY) {
            let message = &scene.status.conditions.iter().find(|found| found.type_ == condition::FAILED).unwrap().message;
            assert!(message.contains("spec.failurePolicy.rules[0]") && message.contains("words of job-w-0"), "{message}");
        }
    }
    // Success is no matter of rules.
    let mut scene = rules(&on_code("FailJob", "NotIn", 1));
    scene.exit("job-w-0", 0);
    scene.settle();
    assert_eq!(scene.condition(condition::FAILED), None);
}

#[test]
fn rules_on_conditions_hold_for_pods_that_are_evicted_and_not_for_those_that_the_operator_takes_away() {
    let rule = "spec.failurePolicy.rules = [{'action': 'FailJob', 'onPodConditions': [{'type': 'DisruptionTarget'}]}]";
    let mut scene = Scene::training(rule);
    scene.disrupt("job-w-0", "EvictionByEvictionAPI");
    scene.settle();
    assert_eq!(scene.condition(condition::FAILED), None, "it has not ended");
    scene.delete("job-w-0");
    scene.settle();
    assert_eq!(scene.condition(condition::FAILED), Some(("True", reason::POD_FAILURE_POLICY)));

    // One that has done its work is no matter of rules, whatever befell it, and though more steps are asked for by now.
    let mut scene = Scene::training(rule);
    scene.edit("spec.optimization.steps = 200");
    scene.disrupt("job-w-0", "EvictionByEvictionAPI");
    scene.exit("job-w-0", 0);
    scene.settle();
    assert_eq!(scene.condition(condition::FAILED), None);

    let mut scene =
        Scene::training("spec.failurePolicy.rules = [{'action': 'FailJob', 'onExitCodes': {'operator': 'In', 'values': [137]}}]");
    scene.scale(1);
    scene.round();
    scene.round();
    scene.exit("job-w-1", 137);
    scene.settle();
    assert_eq!(scene.condition(condition::FAILED), None, "it was beyond the job's size");
}

#[test]
fn what_is_ignored_spends_no_budget_and_is_paused_all_the_same() {
    let mut scene = Scene::training(
        "spec.failurePolicy = {'infrastructure': {'limit': 0}, 'rules': [{'action': 'Ignore', 'onPodConditions': [{'type': 'DisruptionTarget'}]}]}",
    );
    let mut waits = Vec::new();
    for _ in 0..5 {
        scene.disrupt("job-w-0", "EvictionByEvictionAPI");
        scene.exit("job-w-0", 137);
        scene.round();
        waits.push(scene.round().again_after.map_or(0, |wait| wait.as_secs()));
        scene.after(60);
        scene.settle();
    }
    assert_eq!((waits, scene.status.completion_time.is_none()), (vec![0, 1, 2, 4, 8], true));
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
    scene.after(1);
    scene.round();
    workers.iter().filter(|name| scene.pods[*name].end.is_none()).cloned().collect::<Vec<_>>().iter().for_each(|name| scene.exit(name, 80));
    for _ in 0..3 {
        scene.settle();
        scene.after(60);
    }
    assert_eq!((scene.restarts(), scene.pods.len()), (264, 101));
    assert!(scene.pods.values().all(|pod| pod.end.is_none()));
}

#[test]
fn a_worker_that_the_coordinator_gave_up_unheard_is_replaced_before_kubernetes_notices() {
    let silence = |scene: &mut Scene, names: &[&str]| {
        scene.change_group(|group| {
            group.members.retain(|member| !names.contains(&member.worker.as_str()));
            group.newest_entry += 1;
            group.silent = names.iter().map(|name| ((*name).to_owned(), group.newest_entry)).collect();
        });
    };
    let mut scene = Scene::training("spec.workers.replicas = 3");
    silence(&mut scene, &["job-w-1"]);
    let decision = scene.round();
    assert_eq!((decision.actions, decision.again_after), (vec![], Some(Duration::from_secs(3))), "it may come back");
    scene.after(3);
    let decision = scene.round();
    assert_eq!(reasons(&decision.events)[0], reason::WORKER_REPLACED);
    assert!(decision.actions.iter().any(|action| matches!(action, Action::DeletePod { name, force: true, .. } if name == "job-w-1")));
    assert_eq!(decision.status.replacing[0].avoided_node.as_deref(), Some("node"));
    assert_eq!(decision.status.restarts.infrastructure, 1);
    scene.settle();
    assert_eq!((scene.pods.len(), scene.restarts()), (4, 1));
    // The replacement takes its time: what the coordinator says by the worker's name is about the pod before.
    let uid = scene.uid_of("job-w-1");
    scene.after(60);
    assert_eq!(scene.settle(), []);
    assert_eq!((scene.uid_of("job-w-1"), scene.restarts()), (uid.clone(), 1));
    // Also when the coordinator was not heard meanwhile.
    let told = std::mem::replace(&mut scene.link, Link::Unknown);
    scene.settle();
    scene.link = told;
    scene.settle();
    scene.after(60);
    assert_eq!(scene.settle(), []);
    assert_eq!((scene.uid_of("job-w-1"), scene.restarts()), (uid, 1));
    // Its own silence is one more, whether it was seen attached or not.
    silence(&mut scene, &["job-w-1"]);
    scene.settle();
    scene.after(3);
    scene.settle();
    scene.after(60);
    scene.settle();
    assert_eq!((scene.pods.len(), scene.restarts()), (4, 2));
    // And one that is gone before it has attached is a loss like any other.
    scene.pods.remove("job-w-1");
    scene.settle();
    scene.after(60);
    scene.settle();
    assert_eq!((scene.pods.len(), scene.restarts(), scene.status.restarts.deletion), (4, 3, 1));
    // One that is created while nobody knows what was said of the one before: it is said afterwards, and is no reason.
    scene.train(2);
    scene.settle();
    silence(&mut scene, &["job-w-1"]);
    let told = std::mem::replace(&mut scene.link, Link::Unknown);
    scene.pods.remove("job-w-1");
    scene.settle();
    scene.after(60);
    scene.settle();
    scene.link = told;
    let uid = scene.uid_of("job-w-1");
    scene.settle();
    scene.after(60);
    scene.settle();
    assert_eq!(scene.uid_of("job-w-1"), uid);

    // One that comes back is left alone, and so are all when the coordinator is the one that is cut off.
    let mut scene = Scene::training("spec.workers.replicas = 3");
    silence(&mut scene, &["job-w-1"]);
    scene.round();
    scene.train(2);
    scene.after(60);
    assert_eq!(scene.settle(), []);
    silence(&mut scene, &["job-w-0", "job-w-1"]);
    scene.settle();
    scene.after(60);
    scene.settle();
    assert_eq!(scene.restarts(), 0);
}

/// A node calls a hung program not ready; one that only the operator cannot reach is left alone.
#[test]
fn a_coordinator_that_answers_neither_its_node_nor_the_operator_is_replaced_and_one_that_answers_its_node_is_not() {
    let mut scene = Scene::training("");
    scene.link = Link::Unreachable;
    scene.settle();
    scene.after(3600);
    assert_eq!(scene.settle(), [], "its node says that it is ready");
    assert_eq!(scene.condition("Running"), Some(("Unknown", "CoordinatorUnreachable")));
    scene.change(COORDINATOR, |pod| pod.ready = false);
    scene.settle();
    scene.after(9);
    assert_eq!(scene.settle(), []);
    // An answer in between.
    scene.train(7);
    scene.settle();
    scene.link = Link::Unreachable;
    scene.settle();
    scene.after(9);
    assert_eq!(scene.settle(), []);
    scene.after(1);
    let uid = scene.uid_of(COORDINATOR);
    let events = scene.settle();
    assert_eq!(reasons(&events)[0], "CoordinatorReplaced");
    assert!(events[0].note.contains("CoordinatorHangs"), "{events:?}");
    assert!(scene.pods[COORDINATOR].deletion.is_some(), "its node is asked to end it");
    assert_eq!((scene.restarts(), scene.incidents()), (1, 1));
    // A node that does not answer either.
    scene.after(GRACE + 5);
    scene.settle();
    assert_ne!(scene.uid_of(COORDINATOR), uid);
    assert_eq!(scene.status.coordinator_epoch, Some(2));
    assert_eq!((scene.restarts(), scene.incidents()), (1, 1), "counted once");
}

#[test]
fn a_worker_that_fails_its_self_test_is_replaced_on_another_node_and_several_such_nodes_fail_the_job() {
    let mut scene = Scene::training("spec.failurePolicy.maxExcludedNodes = 1");
    let fail_on = |scene: &mut Scene, name: &str, node: &str| {
        scene.change(name, |pod| pod.node = Some(node.to_owned()));
        scene.exit(name, 82);
        scene.settle()
    };
    let events = fail_on(&mut scene, "job-w-0", "sick");
    assert_eq!(reasons(&events)[..2], ["NodeExcluded", "WorkerReplaced"], "{events:?}");
    assert!(events[0].note.contains("sick") && events[0].note.contains("words of job-w-0"), "{events:?}");
    let names = |scene: &Scene| scene.status.excluded_nodes.iter().map(|excluded| excluded.node.clone()).collect::<Vec<_>>();
    assert_eq!(names(&scene), ["sick"]);
    assert_eq!((scene.status.restarts.infrastructure, scene.status.restarts.application), (1, 0));
    assert_eq!(scene.condition("Failed"), None);
    // Two workers may have had one node.
    scene.train(2);
    scene.settle();
    assert_eq!(reasons(&fail_on(&mut scene, "job-w-1", "sick"))[0], "WorkerReplaced");
    // A repaired node gets another chance after a suspension.
    scene.edit("spec.suspend = true");
    scene.settle();
    scene.after(GRACE + 200);
    for name in scene.pods.keys().cloned().collect::<Vec<_>>() {
        scene.vanish(&name);
    }
    scene.settle();
    assert_eq!(names(&scene), [""; 0]);
    scene.edit("spec.suspend = false");
    scene.settle();
    scene.train(3);
    scene.settle();
    fail_on(&mut scene, "job-w-0", "first");
    scene.train(4);
    scene.settle();
    fail_on(&mut scene, "job-w-0", "second");
    assert_eq!(scene.condition("Failed"), Some(("True", "TooManyUnfitNodes")));
    let message = &scene.status.conditions.iter().find(|condition| condition.type_ == "Failed").unwrap().message;
    assert!(message.contains("first, second (spec.failurePolicy.maxExcludedNodes)"), "{message}");
}

/// The status holds so many and no more: one that is too long could not be written, and the job could neither fail nor go on.
#[test]
fn of_many_unfit_nodes_at_once_no_more_are_put_on_record_than_it_takes_to_fail() {
    let mut scene = Scene::new(
        "spec.workers.replicas = 60; spec.elastic = {'minWorkers': 1, 'maxWorkers': 60}; spec.optimization.globalBatchSize = 64",
    );
    scene.settle();
    for index in 0..60 {
        let name = format!("job-w-{index}");
        scene.change(&name, |pod| pod.node = Some(format!("node-{index}")));
        scene.exit(&name, 82);
    }
    let decision = scene.round();
    assert!(decision.is_final);
    assert_eq!(decision.status.excluded_nodes.len(), 4);
    assert_eq!(scene.condition("Failed"), Some(("True", "TooManyUnfitNodes")));
}
