use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use lcl_crds::LCLTrainingJobStatus;
use serde_json::json;

use super::{
    super::*,
    scene::{UID, created_pod},
};
use crate::{
    ValidatedJob,
    observe::{GroupPhase, GroupStatus, Link, MemberSeen, ObservedEnd, ObservedPod, PodRole, Wait},
    validate,
};

/// A job, its pods and its status; what is decided is done to them, as a cluster would.
struct Scene {
    job: ValidatedJob,
    status: LCLTrainingJobStatus,
    pods: BTreeMap<String, Arc<ObservedPod>>,
    link: Link,
    unused_epoch: Option<i64>,
    waiting_since: BTreeMap<Wait, Timestamp>,
    now: Timestamp,
    made: u32,
}

fn job(workers: i32, limit: i32) -> ValidatedJob {
    let manifest = json!({
        "apiVersion": "lcl.dev/v1alpha1", "kind": "LCLTrainingJob", "metadata": { "name": "job" },
        "spec": {
            "model": { "preset": "tiny" }, "data": { "webdataset": { "shards": ["/data/a.tar"] } },
            "optimization": { "steps": 100, "globalBatchSize": 8, "schedule": { "constant": { "warmupSteps": 0 } } },
            "checkpoint": { "uri": "file:///runs/a" }, "backoffLimit": limit,
            "workers": { "replicas": workers }, "elastic": { "minWorkers": 1, "maxWorkers": 4 },
        },
    });
    validate(&manifest).unwrap_or_else(|errors| panic!("{errors}"))
}

impl Scene {
    fn new(workers: i32) -> Self {
        Self {
            job: job(workers, 3),
            status: LCLTrainingJobStatus::default(),
            pods: BTreeMap::new(),
            link: Link::Unknown,
            unused_epoch: None,
            waiting_since: BTreeMap::new(),
            now: "2026-01-01T00:00:00Z".parse().expect("a time"),
            made: 0,
        }
    }

    /// One with all pods well and a group that trains.
    fn training(workers: i32) -> Self {
        let mut scene = Self::new(workers);
        scene.settle();
        scene.pods.values_mut().for_each(|pod| *pod = Arc::new(ObservedPod { running: true, ready: true, ..(**pod).clone() }));
        scene.link = Link::Connected(scene.group(GroupPhase::Running, 7));
        scene.settle();
        scene
    }

    fn group(&self, phase: GroupPhase, step: u64) -> GroupStatus {
        let workers = self.pods.iter().filter(|(_, pod)| matches!(pod.role, PodRole::Worker(_)) && pod.end.is_none());
        GroupStatus {
            phase,
            epoch: 1,
            n: 1,
            members_wanted: MemberBounds::of(&self.job),
            members: workers.map(|(name, _)| MemberSeen { worker: name.clone(), ranked: true }).collect(),
            step,
            last_checkpoint: None,
            sources: Vec::new(),
        }
    }

    fn decide(&self) -> Decision {
        let waited = self.waiting_since.iter().map(|(wait, since)| (wait.clone(), self.now.duration_since(*since))).collect();
        decide(&ObservedJob {
            job: &self.job,
            uid: UID,
            generation: 1,
            status: &self.status,
            selector: "lcl.dev/job-name=job",
            pods: &self.pods,
            link: &self.link,
            unused_epoch: self.unused_epoch,
            waited: &waited,
            problem: None,
            creations_wait: None,
            now: self.now,
        })
    }

    /// Decides, and does it.
    fn play(&mut self) -> Decision {
        let decision = self.decide();
        let since = |wait: &Wait| (wait.clone(), self.waiting_since.get(wait).copied().unwrap_or(self.now));
        self.waiting_since = decision.waits.iter().map(since).collect();
        self.status = decision.status.clone();
        for action in &decision.actions {
            match action {
                Action::CreateCoordinator { epoch } => self.create("job-coordinator", PodRole::Coordinator, Some(*epoch)),
                Action::CreateWorker { index } => self.create(&format!("job-w-{index}"), PodRole::Worker(*index), None),
                Action::DeletePod { name, uid, .. } => {
                    assert_eq!(self.pods.remove(name).map(|pod| pod.uid.clone()).as_ref(), Some(uid), "another pod's uid");
                }
                Action::DeleteJob => panic!("no job here has a time after which it goes"),
                Action::SetWorld(bounds) => {
                    if let Link::Connected(group) = &mut self.link {
                        group.members_wanted = *bounds;
                    }
                }
                Action::DrainWorker { worker } => {
                    if let Link::Connected(group) = &mut self.link {
                        group.members.retain(|member| member.worker != *worker);
                    }
                }
            }
        }
        decision
    }

    fn create(&mut self, name: &str, role: PodRole, epoch: Option<i64>) {
        self.made += 1;
        let pod = created_pod(format!("{name}#{}", self.made), role, epoch);
        assert!(self.pods.insert(name.to_owned(), Arc::new(pod)).is_none(), "{name} is made twice");
    }

    /// Plays until nothing is to be done; all decisions on the way.
    fn settle(&mut self) -> Vec<Decision> {
        let mut decisions = Vec::new();
        for _ in 0..10 {
            let decision = self.play();
            let is_done = decision.actions.is_empty() && decision.events.is_empty();
            decisions.push(decision);
            if is_done {
                return decisions;
            }
        }
        panic!("does not settle: {decisions:#?}");
    }

    fn change(&mut self, name: &str, change: impl FnOnce(&mut ObservedPod)) {
        let mut pod = (*self.pods[name]).clone();
        change(&mut pod);
        self.pods.insert(name.to_owned(), Arc::new(pod));
    }

    fn end(&mut self, name: &str, code: i32) {
        self.change(name, |pod| {
            pod.end = Some(ObservedEnd { exit_code: Some(code), reason: "Error".to_owned(), message: "its last words".to_owned() });
        });
    }

    fn pass(&mut self, seconds: i64) {
        self.now = self.now.checked_add(SignedDuration::from_secs(seconds)).expect("a time");
    }

    fn condition(&self, type_: &str) -> (&str, &str) {
        let found = self.status.conditions.iter().find(|condition| condition.type_ == type_);
        found.map_or(("", ""), |condition| (&condition.status, &condition.reason))
    }
}

fn reasons(decisions: &[Decision]) -> Vec<&'static str> {
    decisions.iter().flat_map(|decision| &decision.events).map(|event| event.reason).collect()
}

#[test]
fn a_new_job_gets_all_its_pods_at_once_and_then_rest() {
    let mut scene = Scene::new(2);
    let first = scene.play();
    assert_eq!(first.status.coordinator_epoch, Some(1), "on record before the pod exists");
    assert_eq!(
        first.actions,
        [Action::CreateCoordinator { epoch: 1 }, Action::CreateWorker { index: 0 }, Action::CreateWorker { index: 1 },]
    );
    scene.settle();
    let before = scene.status.clone();
    let rest = scene.play();
    assert_eq!((rest.status, rest.actions.len(), rest.events.len()), (before, 0, 0));
    assert_eq!(scene.condition(condition::RUNNING), ("False", reason::WAITING_FOR_WORKERS));
}

#[test]
fn an_epoch_is_given_again_only_if_nobody_can_have_got_it() {
    let mut scene = Scene::new(1);
    scene.status = scene.decide().status;
    // The operator died before or after the pod was created: nobody can tell.
    assert!(scene.decide().actions.contains(&Action::CreateCoordinator { epoch: 2 }));
    scene.unused_epoch = Some(1);
    assert!(scene.decide().actions.contains(&Action::CreateCoordinator { epoch: 1 }));
}

#[test]
fn a_failed_worker_is_counted_once_and_replaced() {
    let mut scene = Scene::training(2);
    scene.end("job-w-1", 75);
    let decisions = scene.settle();
    assert_eq!(reasons(&decisions).iter().filter(|reason| **reason == reason::WORKER_REPLACED).count(), 1);
    assert!(scene.pods["job-w-1"].end.is_none());
    assert_eq!(scene.status.restarts, Some(1));
    assert_eq!(scene.status.restarts_by_cause, BTreeMap::from([("application".to_owned(), 1)]));
    let last = scene.status.last_failure.as_ref().expect("a failure");
    assert_eq!((last.pod.as_str(), last.exit_code), ("job-w-1", Some(75)));
    assert!(last.message.contains("its last words"), "{}", last.message);
}

#[test]
fn a_loss_that_is_on_record_is_not_counted_again_by_the_next_operator() {
    let mut scene = Scene::training(2);
    scene.pods.remove("job-w-0");
    // The status is written, and the operator dies before it acts.
    scene.status = scene.decide().status;
    scene.settle();
    assert_eq!(scene.status.restarts, Some(1));
    assert_eq!(scene.status.restarts_by_cause, BTreeMap::from([("deletion".to_owned(), 1)]));
    assert!(scene.pods.contains_key("job-w-0") && scene.status.replacing.is_empty());
}

#[test]
fn a_lost_coordinator_is_followed_by_one_with_a_higher_epoch() {
    let mut scene = Scene::training(1);
    scene.pods.remove("job-coordinator");
    scene.link = Link::Unknown;
    let decisions = scene.settle();
    assert_eq!(scene.pods["job-coordinator"].epoch, Some(2));
    assert!(reasons(&decisions).contains(&reason::COORDINATOR_REPLACED));
    assert_eq!(scene.condition(condition::RECOVERING), ("True", reason::COORDINATOR_LOST));
}

#[test]
fn failures_without_progress_wait_longer_each_time_and_end_the_job() {
    let mut scene = Scene::training(1);
    let mut waits = Vec::new();
    while !is_final(&scene.status) {
        scene.end("job-w-0", 75);
        let mut waited = 0;
        while !is_final(&scene.status) && scene.pods.get("job-w-0").is_none_or(|pod| pod.end.is_some()) {
            scene.play();
            if !scene.pods.contains_key("job-w-0") {
                scene.pass(1);
                waited += 1;
            }
            assert!(waited < 100, "never replaced");
        }
        waits.push(waited);
    }
    assert_eq!(scene.condition(condition::FAILED), ("True", reason::BACKOFF_LIMIT_EXCEEDED));
    assert_eq!(waits.len(), 4, "{waits:?}: three may fail, the fourth ends the job");
    assert!(waits[0] <= waits[1] && waits[1] < waits[2], "{waits:?}");
}

#[test]
fn a_step_in_between_forgives_failures() {
    let mut scene = Scene::training(1);
    for step in 8..40 {
        scene.end("job-w-0", 75);
        scene.link = Link::Connected(GroupStatus { step, ..scene.group(GroupPhase::Running, step) });
        scene.settle();
        scene.pass(60);
    }
    assert!(!is_final(&scene.status), "{:?}", scene.status);
    assert_eq!(scene.status.restarts, Some(32));
}

#[test]
fn who_is_not_to_blame_spends_no_budget() {
    let mut scene = Scene::training(1);
    for _ in 0..20 {
        scene.change("job-w-0", |pod| {
            pod.disruption = Some(("EvictionByEvictionAPI".to_owned(), "drained".to_owned()));
            pod.end = Some(ObservedEnd { exit_code: Some(137), ..ObservedEnd::default() });
        });
        scene.settle();
        scene.pods.remove("job-w-0");
        scene.settle();
        scene.end("job-w-0", 80);
        scene.settle();
    }
    assert!(!is_final(&scene.status));
    assert_eq!(scene.status.failure_budget, None);
    let counts = ["infrastructure", "deletion", "preemption"].map(|cause| (cause.to_owned(), 20));
    assert_eq!(scene.status.restarts_by_cause, BTreeMap::from(counts));
}

#[test]
fn an_end_is_final_whatever_comes_after() {
    let mut scene = Scene::training(2);
    scene.end("job-w-0", 0);
    scene.settle();
    assert_eq!(scene.condition(condition::COMPLETE), ("True", reason::COMPLETE));
    assert_eq!(scene.status.step, Some(100));
    assert!(scene.pods.contains_key("job-coordinator"), "a worker may not have heard of the end yet");
    scene.end("job-w-1", 65);
    let before = scene.status.clone();
    scene.settle();
    assert_eq!(scene.status, before);
    assert_eq!(scene.pods.keys().collect::<Vec<_>>(), ["job-w-0", "job-w-1"], "finished pods stay for their logs");

    let mut scene = Scene::training(2);
    scene.end("job-w-0", 65);
    scene.settle();
    assert_eq!(scene.condition(condition::FAILED), ("True", reason::PERMANENT_FAILURE));
    assert_eq!(scene.pods.keys().collect::<Vec<_>>(), ["job-w-0"]);
    scene.end("job-w-0", 0);
    scene.settle();
    assert_eq!(scene.condition(condition::COMPLETE).0, "", "a failed job does not become complete");
}

#[test]
fn scaling_down_drains_before_it_deletes_and_touches_nobody_else() {
    let mut scene = Scene::training(3);
    let before: BTreeMap<_, _> = scene.pods.iter().map(|(name, pod)| (name.clone(), pod.uid.clone())).collect();
    scene.job = job(2, 3);
    let first = scene.play();
    assert_eq!(
        first.actions,
        [Action::SetWorld(MemberBounds { min: 1, desired: 2, max: 4 }), Action::DrainWorker { worker: "job-w-2".to_owned() },]
    );
    let second = scene.play();
    let delete = Action::DeletePod { name: "job-w-2".to_owned(), uid: before["job-w-2"].clone(), force: false };
    assert_eq!(second.actions, [delete], "its members have left");
    scene.settle();
    assert!(scene.pods.iter().all(|(name, pod)| before[name] == pod.uid) && scene.pods.len() == 3);
    assert_eq!(scene.status.restarts, None);
}

#[test]
fn a_worker_that_does_not_leave_is_deleted_in_the_end() {
    let mut scene = Scene::training(2);
    scene.job = job(1, 3);
    scene.link = Link::Unreachable;
    assert!(scene.play().actions.is_empty());
    scene.pass(31);
    assert!(matches!(scene.play().actions.as_slice(), [Action::DeletePod { name, .. }] if name == "job-w-1"));
}

#[test]
fn a_pod_on_a_lost_node_is_taken_away_by_force() {
    let mut scene = Scene::training(2);
    scene.change("job-w-1", |pod| {
        pod.deletion = Some(SignedDuration::from_secs(30));
        pod.disruption = Some(("DeletionByTaintManager".to_owned(), "the node does not answer".to_owned()));
    });
    let first = scene.decide();
    assert!(matches!(first.actions.as_slice(), [Action::DeletePod { force: true, .. }]), "{:?}", first.actions);
    scene.settle();
    assert_eq!(scene.status.restarts_by_cause, BTreeMap::from([("infrastructure".to_owned(), 1)]));
}

#[test]
fn a_namesakes_pods_are_neither_counted_nor_deleted() {
    let mut scene = Scene::new(1);
    scene.settle();
    scene.change("job-w-0", |pod| "another job".clone_into(&mut pod.owner));
    scene.end("job-w-0", 65);
    let decision = scene.decide();
    assert!(decision.actions.is_empty() && !decision.is_final, "{decision:#?}");
    assert_eq!(decision.status.restarts, None);
}

#[test]
fn conditions_follow_the_group_and_keep_the_time_of_their_last_change() {
    let mut scene = Scene::training(2);
    assert_eq!(scene.condition(condition::RUNNING), ("True", reason::TRAINING));
    assert_eq!(scene.status.workers.as_ref().and_then(|workers| workers.summary.as_deref()), Some("2/2"));
    let since = scene.status.conditions.clone();
    scene.pass(100);
    scene.link = Link::Connected(scene.group(GroupPhase::Running, 50));
    let decision = scene.decide();
    assert!(is_progress_only(&scene.status, &decision.status), "may be written late");
    scene.settle();
    assert_eq!(scene.status.conditions, since);

    scene.link = Link::Connected(GroupStatus { n: 2, ..scene.group(GroupPhase::Running, 50) });
    assert_eq!(reasons(&scene.settle()), [reason::GENERATION_FORMED], "over before anybody looked");
    scene.link = Link::Connected(GroupStatus { n: 2, ..scene.group(GroupPhase::Recovering, 50) });
    assert_eq!(reasons(&scene.settle()), [reason::RECOVERING]);
    assert_eq!(scene.condition(condition::RECOVERING), ("True", reason::GROUP_BROKEN));
    scene.link = Link::Unknown;
    scene.settle();
    assert_eq!(scene.condition(condition::RECOVERING), ("True", reason::GROUP_BROKEN), "what was known still counts");
    scene.link = Link::Unreachable;
    scene.settle();
    assert_eq!(scene.condition(condition::RUNNING), ("Unknown", reason::COORDINATOR_UNREACHABLE));
    scene.link = Link::Connected(GroupStatus { n: 2, ..scene.group(GroupPhase::Running, 51) });
    scene.settle();
    assert_eq!(scene.condition(condition::RUNNING), ("True", reason::TRAINING));
}
