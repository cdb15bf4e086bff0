//! Completion and failure.

use std::time::Duration;

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
        assert_eq!(
            (value(&scene, condition::COMPLETE).as_deref(), scene.status.steps.map(|steps| steps.completed)),
            (Some("True"), Some(100))
        );
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
fn too_many_incidents_end_the_job() {
    let mut scene = Scene::training("");
    for incidents in 1..=4 {
        assert_eq!(scene.status.completion_time, None);
        scene.exit("job-w-0", 1);
        scene.settle();
        assert_eq!(scene.application_incidents(), incidents);
        scene.after(60);
        scene.settle();
    }
    assert_eq!(scene.condition(condition::FAILED), Some(("True", reason::BACKOFF_LIMIT_EXCEEDED)));
    check_final(&mut scene);
}

#[test]
fn a_job_fails_at_its_deadlines_and_sleeps_until_then() {
    // (what the job says, whether it trains, seconds from the first look, seconds until it is looked at)
    for (field, trains, seconds) in
        [("activeDeadlineSeconds", true, 100), ("activeDeadlineSeconds", false, 100), ("preRunningDeadlineSeconds", false, 40)]
    {
        let said = format!("spec.{field} = {seconds}");
        let mut scene = if trains { Scene::training(&said) } else { Scene::new(&said) };
        scene.settle();
        if !trains {
            scene.connect(GroupPhase::Waiting, 0);
            scene.change_group(|group| group.n = 0);
        }
        scene.after(seconds - 1);
        let decision = scene.round();
        assert_eq!((decision.is_final, decision.again_after), (false, Some(Duration::from_secs(1))), "{said}");
        scene.after(1);
        let events = scene.settle();
        assert_eq!(reasons(&events), [reason::DEADLINE_EXCEEDED], "{said}");
        assert!(events[0].note.contains(&format!("the {seconds} seconds of spec.{field}")), "{}", events[0].note);
        assert_eq!(value(&scene, condition::FAILED).as_deref(), Some("True"));
        // They write a checkpoint, which takes the coordinator, and go.
        let stays =
            |scene: &Scene| scene.pods.iter().filter(|(_, pod)| pod.deletion.is_none()).map(|(name, _)| name.clone()).collect::<Vec<_>>();
        assert_eq!(stays(&scene), [COORDINATOR], "{said}");
        let mut slow = scene.clone();
        slow.after(120);
        slow.settle();
        assert_eq!(stays(&slow), [""; 0], "it waits no longer than they are given");
        for name in ["job-w-0", "job-w-1"] {
            scene.vanish(name);
        }
        scene.settle();
        assert_eq!(stays(&scene), [""; 0]);
        check_final(&mut scene);
    }
    // What trains has begun in time, however long ago, and a longer deadline is given in time.
    let mut scene = Scene::training("spec.preRunningDeadlineSeconds = 40; spec.activeDeadlineSeconds = 1000");
    scene.after(999);
    scene.edit("spec.activeDeadlineSeconds = 2000");
    scene.settle();
    scene.after(1000);
    assert!(!scene.round().is_final);
}

#[test]
fn which_pods_stay_of_a_job_that_is_over_is_its_own_affair() {
    for (policy, left) in [("All", vec![]), ("Running", vec!["job-w-0"]), ("None", vec![COORDINATOR, "job-w-0", "job-w-1"])] {
        let mut scene = Scene::training(&format!("spec.cleanPodPolicy = '{policy}'"));
        scene.exit("job-w-0", 65);
        scene.settle();
        if policy != "None" {
            // The coordinator goes once it has ended.
            scene.vanish("job-w-1");
            scene.settle();
        }
        let stays = |(name, pod): (&String, &std::sync::Arc<crate::observe::ObservedPod>)| pod.deletion.is_none().then(|| name.clone());
        assert_eq!(scene.pods.iter().filter_map(stays).collect::<Vec<_>>(), left, "{policy}");
    }
}

#[test]
fn a_job_that_is_over_goes_when_it_says_and_not_before() {
    for seconds in [0, 60] {
        let mut scene = Scene::training(&format!("spec.ttlSecondsAfterFinished = {seconds}"));
        scene.connect(GroupPhase::Complete, 100);
        let decision = scene.round();
        if seconds > 0 {
            assert!(decision.again_after.is_some_and(|wait| wait <= Duration::from_mins(1)) && !scene.is_deleted);
            scene.after(59);
            assert_eq!((scene.round().again_after, scene.is_deleted), (Some(Duration::from_secs(1)), false));
            scene.after(1);
            scene.round();
        }
        assert!(scene.is_deleted);
    }
    let mut scene = Scene::training("");
    scene.connect(GroupPhase::Complete, 100);
    scene.settle();
    scene.after(1_000_000);
    scene.settle();
    assert!(!scene.is_deleted, "it stays where it says nothing");
}

#[test]
fn a_sidecar_that_never_ends_does_not_keep_a_finished_workers_pod() {
    let mut scene = Scene::training("");
    for name in ["job-w-0", "job-w-1"] {
        scene.exit(name, 0);
    }
    // The kubelet leaves the phase at Running for a while, with a sidecar and without.
    for (name, sidecar_runs) in [("job-w-0", false), ("job-w-1", true)] {
        scene.change(name, |pod| (pod.running, pod.sidecar_runs) = (true, sidecar_runs));
    }
    scene.settle();
    assert_eq!(value(&scene, condition::COMPLETE).as_deref(), Some("True"));
    assert!(scene.pods.contains_key("job-w-0") && scene.pods.contains_key("job-w-1"), "a sidecar has its time");
    assert_eq!(scene.round().again_after, Some(Duration::from_secs(30)));
    scene.after(30);
    scene.settle();
    assert!(!scene.pods.contains_key("job-w-1") && scene.pods.contains_key("job-w-0"), "its logs are kept: {:?}", scene.pods);
}
