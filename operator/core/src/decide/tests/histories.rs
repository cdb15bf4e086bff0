//! What holds in every history of a job.

use std::collections::BTreeSet;

use lcl_crds::{JobState, RestartsStatus};
use proptest::{collection::vec, prelude::*, sample::Index, test_runner::FileFailurePersistence};

use super::scene::{COORDINATOR, Scene, UID};
use crate::{
    Timeouts,
    build::worker_pod_name,
    decide::{Action, Decision, condition, is_final},
    observe::{GroupPhase, Link},
};

#[derive(Clone, Debug)]
enum Happening {
    Exit(Index, i32),
    Vanish(Index),
    Lose(Index),
    Delete(Index),
    Disrupt(Index, &'static str),
    Connect(GroupPhase, u64),
    Disconnect(Link),
    Scale(i32),
    Stall(i32),
    Suspend(bool),
    Wait(i64),
    /// The operator starts anew and has forgotten everything.
    Restart,
    /// The same after it wrote a status and before it acted.
    Crash,
}

fn happening() -> impl Strategy<Value = Happening> {
    let code = prop_oneof![8 => Just(1), 4 => Just(80), 4 => Just(137), 1 => Just(0), 1 => Just(65)];
    let phase = prop_oneof![
        8 => Just(GroupPhase::Running),
        2 => Just(GroupPhase::Waiting),
        2 => Just(GroupPhase::Recovering),
        1 => Just(GroupPhase::Complete),
    ];
    let disruption = prop_oneof![Just("DeletionByTaintManager"), Just("PreemptionByScheduler")];
    prop_oneof![
        4 => (any::<Index>(), code).prop_map(|(pod, code)| Happening::Exit(pod, code)),
        3 => any::<Index>().prop_map(Happening::Vanish),
        4 => any::<Index>().prop_map(Happening::Lose),
        3 => any::<Index>().prop_map(Happening::Delete),
        2 => (any::<Index>(), disruption).prop_map(|(pod, reason)| Happening::Disrupt(pod, reason)),
        5 => (phase, 0_u64..100).prop_map(|(phase, step)| Happening::Connect(phase, step)),
        2 => prop_oneof![Just(Link::Unknown), Just(Link::Unreachable)].prop_map(Happening::Disconnect),
        3 => (1..=4).prop_map(Happening::Scale),
        1 => (60..=62).prop_map(Happening::Stall),
        2 => any::<bool>().prop_map(Happening::Suspend),
        5 => (1_i64..90).prop_map(Happening::Wait),
        2 => Just(Happening::Restart),
        3 => Just(Happening::Crash),
    ]
}

struct History {
    scene: Scene,
    /// Those that coordinators were created with.
    epochs: BTreeSet<i64>,
}

impl History {
    fn happen(&mut self, happening: Happening) {
        let scene = &mut self.scene;
        let names: Vec<String> = scene.pods.keys().cloned().collect();
        let name = |pod: Index| names[pod.index(names.len())].as_str();
        match happening {
            Happening::Exit(pod, code) if !names.is_empty() => scene.exit(name(pod), code),
            Happening::Vanish(pod) if !names.is_empty() => scene.vanish(name(pod)),
            Happening::Lose(pod) if !names.is_empty() => scene.lose(name(pod)),
            Happening::Delete(pod) if !names.is_empty() => scene.delete(name(pod)),
            Happening::Disrupt(pod, reason) if !names.is_empty() => scene.disrupt(name(pod), reason),
            Happening::Connect(phase, step) if scene.pods.get(COORDINATOR).is_some_and(|pod| pod.end.is_none()) => {
                scene.connect(phase, step);
            }
            Happening::Disconnect(link) => scene.link = link,
            Happening::Scale(workers) => scene.scale(workers),
            Happening::Stall(seconds) => scene.edit(&format!("spec.timeouts.stallSeconds = {seconds}")),
            Happening::Suspend(suspend) => scene.edit(&format!("spec.suspend = {suspend}")),
            Happening::Wait(seconds) => scene.after(seconds),
            Happening::Restart => self.forget(),
            Happening::Crash => {
                let decision = scene.decide();
                check_decision(scene, &decision);
                scene.write(&decision);
                self.forget();
            }
            _ => {}
        }
    }

    fn forget(&mut self) {
        self.scene.unused_epoch = None;
        self.scene.waiting_since.clear();
        self.scene.gone.clear();
        self.scene.problem = None;
        self.scene.link = Link::Unknown;
    }

    fn round(&mut self) -> Decision {
        let before = self.scene.clone();
        let decision = self.scene.round();
        check_decision(&before, &decision);
        for action in &decision.actions {
            if let Action::CreateCoordinator { epoch } = action {
                assert!(self.epochs.last().is_none_or(|last| last < epoch), "epoch {epoch} after {:?}", self.epochs);
                assert_eq!(decision.status.coordinator_epoch, Some(*epoch));
                self.epochs.insert(*epoch);
            }
        }
        decision
    }
}

fn check_decision(scene: &Scene, decision: &Decision) {
    assert!(decision.status.coordinator_epoch >= scene.status.coordinator_epoch, "the epoch went back");
    if is_final(&scene.status) {
        assert_eq!((&decision.status, decision.events.len()), (&scene.status, 0), "a final status changed");
    }
    assert_eq!(decision.is_final, is_final(&decision.status));
    let holds =
        |type_: &str| decision.status.conditions.iter().filter(|condition| condition.type_ == type_ && condition.status == "True").count();
    assert!([condition::RUNNING, condition::RECOVERING, condition::COMPLETE, condition::FAILED].map(holds).iter().sum::<usize>() <= 1);
    let RestartsStatus { total, application, infrastructure, preemption, deletion } = decision.status.restarts;
    assert_eq!(total, application + infrastructure + preemption + deletion);
    let stops = scene.job.spec().suspend || scene.status.state == Some(JobState::Suspending);
    let is_away = decision.status.state == Some(JobState::Suspended);
    assert!(!is_away || scene.pods.values().all(|pod| pod.owner != UID), "it says that it is suspended, and has pods");
    assert!(!stops || decision.is_final || total == scene.status.restarts.total, "a pod that was asked to end is counted as a failure");
    let wanted =
        |name: &str| name == COORDINATOR || (0..scene.job.world().desired).any(|index| name == worker_pod_name(&scene.job, index as u32));
    let mut created = BTreeSet::new();
    for action in &decision.actions {
        let name = match action {
            Action::DeletePod { name, uid, .. } => {
                let pod = &scene.pods[name];
                assert_eq!((uid, pod.owner.as_str()), (&pod.uid, UID));
                let is_well = pod.end.is_none() && pod.deletion.is_none();
                let is_outdated = name == COORDINATOR && pod.timeouts != Timeouts::of(&scene.job);
                assert!(
                    decision.is_final || stops || !is_well || is_outdated || !wanted(name),
                    "{name} is well and wanted, and is deleted"
                );
                continue;
            }
            Action::DrainWorker { worker } => {
                assert!(!wanted(worker), "{worker} is wanted, and is drained");
                continue;
            }
            Action::SetWorld(_) => continue,
            Action::StopGroup => {
                assert!(decision.is_final || stops, "nobody wants it to stop");
                continue;
            }
            Action::ExplainPod { .. } | Action::FindImagePull { .. } | Action::DeleteJob => {
                panic!("no history has a time after which the job goes")
            }
            Action::CreateCoordinator { .. } => COORDINATOR.to_owned(),
            Action::CreateWorker { index } => worker_pod_name(&scene.job, *index),
        };
        let may_be_created = !decision.is_final && !scene.job.spec().suspend;
        assert!(may_be_created && wanted(&name) && !scene.pods.contains_key(&name), "{name} is created");
        assert!(created.insert(name), "created twice in {:?}", decision.actions);
    }
}

fn changes_pods(action: &Action) -> bool {
    matches!(action, Action::DeletePod { .. } | Action::CreateCoordinator { .. } | Action::CreateWorker { .. })
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..ProptestConfig::default()
    })]

    #[test]
    fn histories_keep_the_promises(happenings in vec(happening(), 1..60), rests in any::<u64>()) {
        let mut history = History { scene: Scene::new(""), epochs: BTreeSet::new() };
        history.round();
        for (index, happening) in happenings.into_iter().enumerate() {
            history.happen(happening);
            history.round();
            if rests >> (index % 64) & 1 == 1 {
                // A suspension that is taken back takes the most: the group, the workers, the coordinator, and all of them again.
                (0..5).for_each(|_| drop(history.round()));
                let left = history.round().actions;
                prop_assert!(!left.iter().any(changes_pods), "after six rounds with nothing new: {left:?}");
            }
        }
    }

    #[test]
    fn pods_whose_creation_fails_are_no_loss(fails in vec(any::<[bool; 3]>(), 1..8), is_restarted in any::<u64>()) {
        let mut scene = Scene::new("");
        for (round, [coordinator, first, second]) in fails.into_iter().enumerate() {
            let decision = scene.decide();
            scene.write(&decision);
            for action in &decision.actions {
                let fails = match action {
                    Action::CreateCoordinator { .. } => coordinator,
                    Action::CreateWorker { index: 0 } => first,
                    Action::CreateWorker { .. } => second,
                    _ => false,
                };
                if fails {
                    // Whether it was carried out is not known.
                    scene.unused_epoch = None;
                } else {
                    scene.act(action);
                }
            }
            if is_restarted >> round & 1 == 1 {
                scene.unused_epoch = None;
            }
        }
        scene.settle();
        prop_assert_eq!((scene.restarts(), scene.pods.len(), scene.status.replacing.len()), (0, 3, 0));
    }

    #[test]
    fn when_nothing_happens_any_more_a_job_has_all_its_pods_or_is_over(happenings in vec(happening(), 1..40)) {
        let budgets = "spec.failurePolicy = {'application': {'limit': 50}, 'infrastructure': {'limit': 100}}";
        let mut history = History { scene: Scene::new(budgets), epochs: BTreeSet::new() };
        for happening in happenings {
            history.happen(happening);
            history.round();
        }
        for _ in 0..20 {
            history.scene.after(30);
            history.round();
        }
        let scene = &history.scene;
        let pods = if scene.job.spec().suspend { 0 } else { scene.job.world().desired as usize + 1 };
        let well = scene.pods.values().filter(|pod| pod.end.is_none() && pod.deletion.is_none()).count();
        prop_assert!(is_final(&scene.status) || (scene.pods.len(), well) == (pods, pods), "{:?}", scene.pods);
    }
}
