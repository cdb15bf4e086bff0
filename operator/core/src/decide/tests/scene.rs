//! A job with its pods and its coordinator, changed by what tests do to it and by what is decided.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use lcl_crds::{LCLTrainingJobStatus, PinnedStatus};
use serde_json::Value;

use super::jobs::{assign, minimal_job};
use crate::{
    Timeouts, ValidatedJob,
    build::{coordinator_name, worker_pod_name},
    decide::{Action, Decision, JobEvent, decide},
    observe::{
        CheckpointSeen, GroupPhase, GroupStatus, HistoryPlace, Link, MemberBounds, MemberSeen, ObservedEnd, ObservedJob, ObservedPod,
        Obstacle, PodRole, Problem, SourceSeen, Wait,
    },
    pins::{find_change, in_force, offer, pinned_spec},
};

pub(super) const UID: &str = "job-uid";
pub(super) const COORDINATOR: &str = "job-coordinator";
/// Seconds that a pod is given to end.
pub(super) const GRACE: i64 = 30;

/// A pod of the job that is on its node and does not run yet.
pub(super) fn created_pod(uid: String, role: PodRole, epoch: Option<i64>) -> ObservedPod {
    ObservedPod {
        uid,
        owner: UID.to_owned(),
        role,
        epoch,
        incident: 0,
        history: HistoryPlace::default(),
        timeouts: Timeouts::default(),
        ip: None,
        node: Some("node".to_owned()),
        running: false,
        sidecar_runs: false,
        start: None,
        ready: false,
        deletion: None,
        disruption: None,
        conditions: Vec::new(),
        obstacle: None,
        end: None,
    }
}

#[derive(Clone)]
pub(super) struct Scene {
    manifest: Value,
    pub(super) job: ValidatedJob,
    pub(super) generation: i64,
    pub(super) status: LCLTrainingJobStatus,
    pub(super) pods: BTreeMap<String, Arc<ObservedPod>>,
    /// Pods that are gone, as they were at the last.
    pub(super) gone: BTreeMap<String, Arc<ObservedPod>>,
    pub(super) link: Link,
    /// What the operator would pin.
    pub(super) offer: PinnedStatus,
    /// The parts of the spec that the group was started with.
    held: Value,
    pub(super) unused_epoch: Option<i64>,
    /// Workers that were there, which the status does not say yet.
    pub(super) created: i32,
    pub(super) waiting_since: BTreeMap<Wait, Timestamp>,
    pub(super) explanation: Option<(String, Obstacle)>,
    pub(super) image_pull: Option<(String, i64)>,
    pub(super) problem: Option<Problem>,
    pub(super) creations_wait: Option<SignedDuration>,
    /// The job's deletion was asked for.
    pub(super) is_deleted: bool,
    pub(super) now: Timestamp,
    uids: u32,
}

impl Scene {
    /// A job of two workers, elastic between one and four, that nobody has looked at.
    pub(super) fn new(assignments: &str) -> Self {
        let mut manifest = minimal_job();
        assign(
            &mut manifest,
            "spec.workers = {'replicas': 2}; spec.elastic = {'minWorkers': 1, 'maxWorkers': 4}; spec.failurePolicy.application = {'limit': 3}",
        );
        assign(&mut manifest, assignments);
        let mut scene = Self {
            job: read(&manifest),
            manifest,
            generation: 1,
            status: LCLTrainingJobStatus::default(),
            pods: BTreeMap::new(),
            gone: BTreeMap::new(),
            link: Link::Unknown,
            offer: PinnedStatus::default(),
            held: Value::Null,
            unused_epoch: None,
            created: 0,
            waiting_since: BTreeMap::new(),
            explanation: None,
            image_pull: None,
            problem: None,
            creations_wait: None,
            is_deleted: false,
            now: Timestamp::from_second(1_800_000_000).unwrap(),
            uids: 0,
        };
        scene.offer_now();
        scene
    }

    fn offer_now(&mut self) {
        let address = Some("10.96.0.17".to_owned());
        self.offer = PinnedStatus { address, ..offer(&self.job, self.generation, "coordinator:1", "trainer:1") };
    }

    /// The same when its first generation trains.
    pub(super) fn training(assignments: &str) -> Self {
        let mut scene = Self::new(assignments);
        scene.settle();
        scene.train(1);
        scene.settle();
        scene
    }

    pub(super) fn decide(&self) -> Decision {
        let has_pods = self.pods.values().any(|pod| pod.owner == UID);
        let change = in_force(&self.status, has_pods).and_then(|_| find_change(&self.held, &self.job));
        let waited = self.waiting_since.iter().map(|(wait, since)| (wait.clone(), self.now.duration_since(*since))).collect();
        decide(&ObservedJob {
            job: &self.job,
            uid: UID,
            generation: self.generation,
            status: &self.status,
            selector: "lcl.dev/job-name=job",
            pods: &self.pods,
            gone: &self.gone,
            link: &self.link,
            offer: &self.offer,
            change: change.as_deref(),
            unused_epoch: self.unused_epoch,
            created: self.created,
            waited: &waited,
            explanation: self.explanation.as_ref(),
            image_pull: self.image_pull.as_ref(),
            problem: self.problem.as_ref(),
            creations_wait: self.creations_wait,
            now: self.now,
        })
    }

    /// Decides, writes the status and acts.
    pub(super) fn round(&mut self) -> Decision {
        let decision = self.decide();
        self.write(&decision);
        for action in &decision.actions {
            self.act(action);
        }
        decision
    }

    /// Rounds until nothing is left to do now; what was told meanwhile.
    pub(super) fn settle(&mut self) -> Vec<JobEvent> {
        let mut events = Vec::new();
        for _ in 0..10 {
            let before = self.status.clone();
            let decision = self.round();
            events.extend(decision.events);
            if decision.actions.is_empty() && decision.status == before {
                return events;
            }
        }
        panic!("there is always something to do: {:?}", self.decide().actions);
    }

    pub(super) fn write(&mut self, decision: &Decision) {
        if decision.status.coordinator_epoch != self.status.coordinator_epoch {
            self.unused_epoch = decision.status.coordinator_epoch;
        }
        if decision.status.pinned != self.status.pinned {
            self.held = pinned_spec(&self.job);
        }
        self.status = decision.status.clone();
        let since = |wait: &Wait| (wait.clone(), self.waiting_since.get(wait).copied().unwrap_or(self.now));
        self.waiting_since = decision.waits.iter().map(since).collect();
        self.gone.retain(|name, _| decision.unrecorded.contains(name));
    }

    pub(super) fn act(&mut self, action: &Action) {
        match action {
            Action::StopGroup => self.change_group(|group| (group.phase, group.members) = (GroupPhase::Ended, Vec::new())),
            Action::SetWorld(bounds) => self.change_group(|group| group.members_wanted = *bounds),
            Action::DrainWorker { worker } => self.change_group(|group| group.members.retain(|member| member.worker != *worker)),
            Action::DeletePod { name, uid, force } => {
                let Some(pod) = self.pods.get(name).filter(|pod| pod.uid == *uid) else { return };
                if *force || pod.end.is_some() || pod.node.is_none() {
                    self.lose(name);
                } else {
                    self.delete(name);
                }
            }
            Action::ExplainPod { .. } | Action::FindImagePull { .. } => {}
            Action::DeleteJob => self.is_deleted = true,
            Action::CreateCoordinator { epoch } => {
                self.unused_epoch = None;
                self.create(&coordinator_name(&self.job), PodRole::Coordinator, Some(*epoch));
            }
            Action::CreateWorker { index } => self.create(&worker_pod_name(&self.job, *index), PodRole::Worker(*index), None),
        }
    }

    fn create(&mut self, name: &str, role: PodRole, epoch: Option<i64>) {
        self.uids += 1;
        let pod = ObservedPod {
            timeouts: if role == PodRole::Coordinator { Timeouts::of(&self.job) } else { Timeouts::default() },
            ip: Some("10.0.0.1".to_owned()),
            running: true,
            ready: true,
            history: HistoryPlace::known(&self.link, &self.status, &coordinator_name(&self.job)),
            incident: self.status.failures.as_ref().map_or(0, |failures| failures.incidents),
            ..created_pod(format!("uid-{}", self.uids), role, epoch)
        };
        self.gone.remove(name);
        assert!(self.pods.insert(name.to_owned(), Arc::new(pod)).is_none(), "{name} was there already");
    }

    pub(super) fn scale(&mut self, workers: i32) {
        self.edit(&format!("spec.workers.replicas = {workers}"));
    }

    pub(super) fn edit(&mut self, assignments: &str) {
        assign(&mut self.manifest, assignments);
        self.job = read(&self.manifest);
        self.generation += 1;
        self.offer_now();
    }

    pub(super) fn after(&mut self, seconds: i64) {
        self.now = self.now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
    }

    pub(super) fn change(&mut self, name: &str, change: impl FnOnce(&mut ObservedPod)) {
        change(Arc::make_mut(self.pods.get_mut(name).unwrap()));
    }

    /// The pod's main container ends.
    pub(super) fn exit(&mut self, name: &str, code: i32) {
        let end =
            ObservedEnd { exit_code: Some(code), reason: "Error".to_owned(), message: format!("words of {name}"), before_deletion: false };
        self.change(name, |pod| (pod.running, pod.ready, pod.end) = (false, false, Some(end)));
        self.lose_coordinator(name);
    }

    /// Its deletion begins.
    pub(super) fn delete(&mut self, name: &str) {
        self.change(name, |pod| {
            let before = pod.clone();
            pod.deletion = pod.deletion.or(Some(SignedDuration::from_secs(GRACE)));
            pod.follow(&before);
        });
    }

    pub(super) fn disrupt(&mut self, name: &str, reason: &str) {
        self.change(name, |pod| {
            pod.disruption = Some((reason.to_owned(), "its node".to_owned()));
            pod.conditions = vec![("DisruptionTarget".to_owned(), "True".to_owned())];
        });
    }

    /// It is gone, and nobody saw it go.
    pub(super) fn vanish(&mut self, name: &str) {
        self.pods.remove(name).unwrap();
        self.lose_coordinator(name);
    }

    /// It is gone, as the watch has told.
    pub(super) fn lose(&mut self, name: &str) {
        let mut pod = Arc::unwrap_or_clone(self.pods.remove(name).unwrap());
        pod.note_removal();
        self.gone.insert(name.to_owned(), Arc::new(pod));
        self.lose_coordinator(name);
    }

    fn lose_coordinator(&mut self, name: &str) {
        if name == COORDINATOR {
            self.link = Link::Unknown;
        }
    }

    /// All workers train, and have done so many steps.
    pub(super) fn train(&mut self, step: u64) {
        self.connect(GroupPhase::Running, step);
    }

    pub(super) fn connect(&mut self, phase: GroupPhase, step: u64) {
        let workers = self.pods.iter().filter(|(_, pod)| matches!(pod.role, PodRole::Worker(_)) && pod.owner == UID && pod.end.is_none());
        let newest_entry = if let Link::Connected(group) = &self.link { group.newest_entry } else { 0 };
        self.link = Link::Connected(GroupStatus {
            phase,
            epoch: self.status.coordinator_epoch.unwrap_or(1).unsigned_abs(),
            n: 1,
            members_wanted: MemberBounds::of(&self.job),
            members: workers.map(|(name, _)| MemberSeen { worker: name.clone(), ranked: true }).collect(),
            silent: BTreeMap::new(),
            slow: BTreeMap::new(),
            newest_entry,
            step,
            last_checkpoint: None,
            training: None,
            sources: Vec::new(),
        });
    }

    pub(super) fn change_group(&mut self, change: impl FnOnce(&mut GroupStatus)) {
        if let Link::Connected(group) = &mut self.link {
            change(group);
        }
    }

    /// A checkpoint has become complete now.
    pub(super) fn save(&mut self, step: u64) {
        let (time, folder) = (self.now, format!("step-{step:08}-g000001-000001"));
        self.change_group(|group| group.last_checkpoint = Some(CheckpointSeen { step, time, folder }));
    }

    /// Value and reason of a condition.
    pub(super) fn condition(&self, type_: &str) -> Option<(&str, &str)> {
        let condition = self.status.conditions.iter().find(|condition| condition.type_ == type_)?;
        Some((&condition.status, &condition.reason))
    }

    pub(super) fn restarts(&self) -> i32 {
        self.status.restarts.total
    }

    /// Incidents so far.
    pub(super) fn incidents(&self) -> i64 {
        self.status.failures.as_ref().map_or(0, |failures| failures.incidents)
    }

    /// Those that a budget holds.
    pub(super) fn application_incidents(&self) -> usize {
        let budget = self.status.failures.as_ref().and_then(|failures| failures.application.as_ref());
        budget.map_or(0, |budget| budget.times.len())
    }

    pub(super) fn uid_of(&self, name: &str) -> String {
        self.pods[name].uid.clone()
    }
}

fn read(manifest: &Value) -> ValidatedJob {
    ValidatedJob::new(serde_json::from_value(manifest.clone()).unwrap()).unwrap()
}

pub(super) fn reasons(events: &[JobEvent]) -> Vec<&'static str> {
    events.iter().map(|event| event.reason).collect()
}

/// A job on two sources.
pub(super) const MIXTURE: &str = "spec.data = {'mixture': {'sources': [{'name': 'laion', 'webdataset': {'shards': ['/a.tar']}}, \
    {'name': 'mmc4', 'mmc4': {'shards': ['/m.jsonl'], 'images': {'folder': '/i'}}}]}}";

pub(super) fn source(name: &str, samples: u64) -> SourceSeen {
    SourceSeen { name: name.to_owned(), samples, generation_loss: Some(2.5), contrastive_loss: None, data_wait_seconds: 0.25 }
}
