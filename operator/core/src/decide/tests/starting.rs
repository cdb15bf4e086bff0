//! A new job, and one at rest.

use std::time::Duration;

use k8s_openapi::jiff::SignedDuration;

use lcl_crds::StartupStatus;

use super::scene::{COORDINATOR, MIXTURE, Scene, reasons, source};
use crate::{
    decide::{Action, Urgency, reason, urgency},
    observe::{Obstacle, PodStart, TrainingSeen},
};

#[test]
fn a_new_job_gets_its_coordinator_and_all_workers_at_once_with_the_epoch_in_the_status() {
    let decision = Scene::new("").decide();
    assert_eq!(
        decision.actions,
        [Action::CreateCoordinator { epoch: 1 }, Action::CreateWorker { index: 0 }, Action::CreateWorker { index: 1 }]
    );
    assert_eq!(decision.status.coordinator_epoch, Some(1));
    assert_eq!(decision.status.restarts.total, 0);
    assert!(decision.events.is_empty() && !decision.is_final);
}

#[test]
fn an_epoch_is_given_again_only_when_it_is_certain_that_nobody_has_it() {
    for (unused, expected) in [(Some(1), 1), (None, 2), (Some(0), 2)] {
        let mut scene = Scene::new("");
        let decision = scene.decide();
        scene.write(&decision);
        scene.unused_epoch = unused;
        let again = scene.decide();
        assert_eq!(again.actions[0], Action::CreateCoordinator { epoch: expected }, "{unused:?}");
        assert_eq!(again.status.coordinator_epoch, Some(expected), "{unused:?}");
    }
}

#[test]
fn a_second_look_at_the_same_finds_nothing_to_do_or_to_tell() {
    let mut scene = Scene::new("");
    scene.settle();
    scene.train(1);
    assert_eq!(reasons(&scene.settle()), [reason::TRAINING_STARTED]);
    scene.after(3600);
    let decision = scene.decide();
    assert_eq!(decision.status, scene.status);
    assert_eq!((decision.actions.len(), decision.events.len(), decision.again_after), (0, 0, None));
}

#[test]
fn pods_that_were_not_created_are_no_loss() {
    let mut scene = Scene::new("");
    scene.round();
    scene.vanish("job-w-1");
    assert_eq!(scene.decide().actions, [Action::CreateWorker { index: 1 }]);
    scene.settle();
    assert_eq!(scene.restarts(), 0);
}

/// Its creation is refused again and again, while those of the workers go well.
#[test]
fn a_coordinator_that_was_never_created_is_no_loss() {
    let mut scene = Scene::new("");
    scene.round();
    scene.vanish(COORDINATOR);
    scene.unused_epoch = None;
    for epoch in 2..6 {
        assert_eq!(scene.decide().actions, [Action::CreateCoordinator { epoch }]);
        let decision = scene.decide();
        scene.write(&decision);
        scene.unused_epoch = None;
    }
    scene.settle();
    assert_eq!((scene.restarts(), scene.status.replacing.len()), (0, 0));
    scene.vanish(COORDINATOR);
    scene.settle();
    assert_eq!(scene.restarts(), 1, "now it was there");
}

#[test]
fn a_pod_of_another_job_is_neither_counted_nor_deleted() {
    for name in [COORDINATOR, "job-w-1"] {
        let mut scene = Scene::new("");
        scene.round();
        scene.change(name, |pod| pod.owner = "another".to_owned());
        if name == COORDINATOR {
            scene.status.coordinator_epoch = None;
        }
        scene.exit(name, 1);
        assert_eq!(scene.settle(), [], "{name}");
        let uid = scene.uid_of(name);
        scene.vanish(name);
        assert_eq!(scene.settle(), [], "{name}");
        assert_ne!(scene.uid_of(name), uid, "{name}");
        assert_eq!(scene.restarts(), 0, "{name}: another job's loss");
    }
}

/// Members tell a coordinator, and it tells this; the manifest says which sources there are.
#[test]
fn sources_stand_in_the_status_in_the_order_of_the_manifest_and_no_others() {
    let mut scene = Scene::training(MIXTURE);
    let told = |scene: &Scene| scene.status.sources.iter().map(|source| (source.name.clone(), source.samples)).collect::<Vec<_>>();
    assert_eq!(told(&scene), []);
    scene.change_group(|group| group.sources = vec![source("mmc4", 3), source("stranger", 1), source("laion", 7)]);
    scene.settle();
    assert_eq!(told(&scene), [("laion".to_owned(), 7), ("mmc4".to_owned(), 3)]);
    let laion = &scene.status.sources[0];
    assert_eq!((laion.generation_loss, laion.contrastive_loss, laion.data_wait_seconds), (Some(2.5), None, Some(0.25)));
    // A new coordinator knows of none yet.
    scene.change_group(|group| group.sources = vec![]);
    scene.settle();
    assert_eq!(told(&scene).len(), 2);
}

#[test]
fn only_steps_checkpoints_and_figures_of_sources_are_progress() {
    let mut scene = Scene::training(MIXTURE);
    scene.save(1);
    scene.settle();
    scene.train(2);
    scene.save(2);
    scene.change_group(|group| {
        group.training = Some(TrainingSeen { loss: Some(3.5), samples_per_second: Some(120.0) });
        group.sources = vec![source("laion", 7)];
    });
    let progress = scene.decide().status;
    assert_ne!(progress, scene.status);
    assert_eq!((progress.loss, progress.samples_per_second), (Some(3.5), Some(120.0)));
    assert_eq!(urgency(&scene.status, &progress), Urgency::Progress);
    scene.change_group(|group| group.n = 2);
    assert_eq!(urgency(&scene.status, &scene.decide().status), Urgency::Now);
}

#[test]
fn how_pods_come_along_may_be_told_late_and_one_that_goes_meanwhile_is_missed_all_the_same() {
    let mut scene = Scene::new("spec.elastic.minWorkers = 2");
    scene.round();
    for name in ["job-w-0", "job-w-1"] {
        scene.change(name, |pod| (pod.running, pod.ready) = (false, false));
    }
    let how_soon = |scene: &Scene| urgency(&scene.status, &scene.decide().status);
    assert_eq!(scene.decide().status.workers.unwrap().created, 2);
    assert_eq!((scene.status.workers.as_ref().unwrap().created, how_soon(&scene)), (0, Urgency::Record));
    let message = "0/3 nodes are available".to_owned();
    scene.change("job-w-1", |pod| pod.obstacle = Some(Obstacle { container: None, reason: "Unschedulable".to_owned(), message }));
    scene.change("job-w-0", |pod| (pod.running, pod.ready) = (true, true));
    assert_eq!(how_soon(&scene), Urgency::Start, "one of two is ready, and the other has no node");
    let mut ready = scene.clone();
    ready.change("job-w-1", |pod| (pod.running, pod.ready, pod.obstacle) = (true, true, None));
    assert_eq!(how_soon(&ready), Urgency::Now, "as many as it needs are ready");

    scene.created = 2;
    scene.vanish("job-w-1");
    let decision = scene.decide();
    assert_eq!((decision.status.restarts.total, reasons(&decision.events)), (1, vec![reason::WORKER_REPLACED]));
    assert_eq!(how_soon(&scene), Urgency::Now, "a loss is written before anything follows from it");
    scene.created = 0;
    assert_eq!(scene.decide().status.restarts.total, 0, "to an operator that did not see it the pod is still to be created");
}

/// The status that a new epoch changes would wake the job at once, and so on without end.
#[test]
fn what_the_api_server_refuses_is_waited_with_and_costs_neither_epochs_nor_writes() {
    let mut scene = Scene::new("");
    scene.creations_wait = Some(SignedDuration::from_secs(7));
    let first = scene.round();
    assert_eq!((first.actions, first.again_after), (vec![], Some(Duration::from_secs(7))));
    assert_eq!(scene.status.coordinator_epoch, None);
    let written = scene.status.clone();
    assert_eq!(scene.round().status, written);
    scene.creations_wait = None;
    scene.settle();
    assert_eq!((scene.status.coordinator_epoch, scene.pods.len()), (Some(1), 3));

    // A replacement, too.
    scene.train(1);
    scene.settle();
    scene.creations_wait = Some(SignedDuration::from_secs(7));
    for name in ["job-w-0", COORDINATOR] {
        scene.exit(name, 1);
    }
    scene.settle();
    let written = scene.status.clone();
    assert_eq!(scene.round().status, written);
    assert_eq!((scene.status.coordinator_epoch, scene.pods.len()), (Some(1), 1));
}

fn start(scene: &mut Scene, index: u32, scheduled: i64, started: i64) {
    scene.change(&format!("job-w-{index}"), |pod| pod.start = Some(PodStart { scheduled, started }));
}

fn questions(actions: &[Action]) -> usize {
    actions.iter().filter(|action| matches!(action, Action::FindImagePull { .. })).count()
}

#[test]
fn the_slowest_start_is_told_once_all_workers_have_started_and_then_stays() {
    let mut scene = Scene::new("");
    scene.settle();
    start(&mut scene, 0, 1, 3);
    assert_eq!(scene.decide().status.startup, None, "another one is on its way");
    start(&mut scene, 1, 2, 2);
    let decision = scene.decide();
    assert!(urgency(&scene.status, &decision.status) != Urgency::Now, "many pods that start one by one are not told of one by one");
    scene.settle();
    let told = |pod: &str, uid: String| {
        Some(StartupStatus { pod: pod.to_owned(), uid, scheduled_seconds: 1, start_seconds: 3, image_pull_seconds: None })
    };
    assert_eq!(scene.status.startup, told("job-w-0", scene.uid_of("job-w-0")), "the first of equals");
    scene.train(1);
    scene.settle();
    scene.after(3600);
    let later = scene.decide();
    assert_eq!(
        (later.status, questions(&later.actions), later.again_after),
        (scene.status.clone(), 0, None),
        "nothing more to say or to ask"
    );
    scene.edit("spec.suspend = true");
    scene.link = crate::observe::Link::Unreachable;
    for name in [COORDINATOR, "job-w-0", "job-w-1"] {
        scene.vanish(name);
    }
    scene.settle();
    assert_eq!(scene.status.startup, None);
}

#[test]
fn a_worker_that_cannot_start_is_not_waited_for() {
    let mut scene = Scene::new("");
    scene.settle();
    start(&mut scene, 0, 0, 2);
    scene.change("job-w-1", |pod| {
        (pod.node, pod.running) = (None, false);
        pod.obstacle = Some(Obstacle { container: None, reason: "Unschedulable".to_owned(), message: "no node".to_owned() });
    });
    assert_eq!(scene.decide().status.startup.map(|startup| startup.pod), Some("job-w-0".to_owned()));
}

/// Two questions at most for each slowest pod, and none by an operator that did not see it start.
#[test]
fn the_image_of_a_slow_start_is_asked_for_twice_at_most() {
    let mut scene = Scene::new("");
    scene.settle();
    start(&mut scene, 0, 0, 90);
    start(&mut scene, 1, 0, 4);
    let first = scene.round();
    assert_eq!(questions(&first.actions), 1, "{:?}", first.actions);
    assert!(first.again_after <= Some(Duration::from_secs(10)), "{:?}", first.again_after);
    scene.after(5);
    assert_eq!(questions(&scene.round().actions), 0);
    let unheard = scene.clone();
    scene.image_pull = Some((scene.uid_of("job-w-0"), 77));
    scene.settle();
    scene.image_pull = None;
    scene.settle();
    let startup = scene.status.startup.clone().unwrap();
    assert_eq!((startup.pod.as_str(), startup.start_seconds, startup.image_pull_seconds), ("job-w-0", 90, Some(77)));

    let mut scene = unheard;
    scene.after(5);
    assert_eq!(questions(&scene.round().actions), 1, "the Event may have been late");
    for _ in 0..3 {
        scene.after(60);
        assert_eq!(questions(&scene.round().actions), 0, "it will not come any more");
    }
    scene.waiting_since.clear();
    assert_eq!(questions(&scene.decide().actions), 0, "another operator");
    assert_eq!(scene.status.startup.clone().unwrap().image_pull_seconds, None);
    // A status that cannot be stored is no news that is worth another question.
    let mut unstored = Scene::new("");
    unstored.settle();
    start(&mut unstored, 0, 0, 90);
    start(&mut unstored, 1, 0, 4);
    let (stored, mut asked) = (unstored.status.clone(), 0);
    for _ in 0..60 {
        let decision = unstored.round();
        asked += questions(&decision.actions);
        assert!(asked == 2 || decision.again_after.is_some(), "the second question is not waited for");
        unstored.status.clone_from(&stored);
        unstored.after(7);
    }
    assert_eq!((asked, unstored.decide().again_after), (2, None));
    // What was heard of one pod says nothing of another.
    scene.image_pull = Some((scene.uid_of("job-w-1"), 1));
    assert_eq!(scene.decide().status.startup.unwrap().image_pull_seconds, None);
}
