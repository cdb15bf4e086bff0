//! More workers, and fewer.

use super::scene::{Scene, reasons};
use crate::{
    decide::{Action, reason},
    observe::{Link, MemberBounds},
};

fn world(desired: u32) -> Action {
    Action::SetWorld(MemberBounds { min: 1, desired, max: 4 })
}

#[test]
fn growing_creates_the_new_pod_alone_and_shrinking_drains_it_before_it_is_deleted() {
    let mut scene = Scene::training("");
    let stay = scene.pods.clone();
    scene.scale(3);
    let decision = scene.round();
    assert_eq!(decision.actions, [world(3), Action::CreateWorker { index: 2 }]);
    assert_eq!(reasons(&decision.events), [reason::SCALED]);
    scene.settle();
    scene.train(2);
    scene.settle();
    scene.scale(2);
    let decision = scene.round();
    assert_eq!(decision.actions, [world(2), Action::DrainWorker { worker: "job-w-2".to_owned() }]);
    assert_eq!(decision.again_after.unwrap().as_secs(), 1);
    let uid = scene.uid_of("job-w-2");
    assert_eq!(scene.round().actions, [Action::DeletePod { name: "job-w-2".to_owned(), uid, force: false }], "its members have left");
    scene.exit("job-w-2", 80);
    scene.vanish("job-w-2");
    scene.settle();
    assert_eq!(scene.pods, stay);
    assert_eq!(scene.restarts(), 0);
}

#[test]
fn a_worker_that_does_not_leave_is_deleted_in_the_end() {
    for (link, limit) in [(None, 60), (Some(Link::Unreachable), 30)] {
        let mut scene = Scene::training("");
        scene.scale(1);
        scene.link = link.unwrap_or(scene.link);
        let decision = scene.decide();
        scene.write(&decision);
        let deletes = |scene: &Scene| scene.decide().actions.iter().any(|action| matches!(action, Action::DeletePod { .. }));
        scene.after(limit - 1);
        assert!(!deletes(&scene), "{limit}");
        scene.after(1);
        assert!(deletes(&scene), "{limit}");
    }
}
