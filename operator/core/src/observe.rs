//! What the operator saw of a job and its pods: plain values, cut down to what decisions need.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};

use k8s_openapi::{
    api::core::v1::{ContainerStatus, Pod},
    jiff::{SignedDuration, Timestamp, Unit},
};
use lcl_crds::{LCLTrainingJobStatus, PinnedStatus, WORKER_CONTAINER};

use crate::{
    ValidatedJob,
    build::{
        COORDINATOR_CONTAINER, EPOCH_ANNOTATION, HISTORY_ANNOTATION, INCIDENT_ANNOTATION, ROLE_LABEL, WORKER_INDEX_LABEL, WORKER_ROLE,
        is_job,
    },
    timeouts::Timeouts,
};

/// Everything that [`crate::decide`] looks at.
#[derive(Clone, Debug)]
pub struct ObservedJob<'a> {
    /// The job.
    pub job: &'a ValidatedJob,
    /// Its `metadata.uid`.
    pub uid: &'a str,
    /// Its `metadata.generation`.
    pub generation: i64,
    /// Its status as stored.
    pub status: &'a LCLTrainingJobStatus,
    /// Selector of its workers.
    pub selector: &'a str,
    /// All pods that bear the job's name in their labels, by their own names.
    pub pods: &'a BTreeMap<String, Arc<ObservedPod>>,
    /// Pods of that name that are gone, as they were at the last, where that was seen and their end may not be on record.
    pub gone: &'a BTreeMap<String, Arc<ObservedPod>>,
    /// What the coordinator says.
    pub link: &'a Link,
    /// What a group that starts now would have.
    pub offer: &'a PinnedStatus,
    /// In what the job differs from what its group was started with, as a field of the spec or in words.
    pub change: Option<&'a str>,
    /// An epoch that is written to the status, and of which it is certain that no coordinator has got it.
    pub unused_epoch: Option<i64>,
    /// Workers that were there at an earlier look, all of them, where the status is still to say so.
    pub created: i32,
    /// How long what was waited for at the look before has been: measured here, so that no other machine's clock, and no step of our own,
    /// makes a wait too short or without end.
    pub waited: &'a BTreeMap<Wait, SignedDuration>,
    /// Uid of a pod that does not start, and why, where its own status does not say so.
    pub explanation: Option<&'a (String, Obstacle)>,
    /// Uid of a worker's pod, and how many seconds it waited for its image, by the Events about it.
    pub image_pull: Option<&'a (String, i64)>,
    /// Why the last attempt to apply something failed.
    pub problem: Option<&'a Problem>,
    /// Nothing may be created for so long: the API server has refused it.
    pub creations_wait: Option<SignedDuration>,
    /// The time, for what people read.
    pub now: Timestamp,
}

impl ObservedJob<'_> {
    /// Whether any pod of the job is there, in whatever state.
    #[must_use]
    pub fn has_pods(&self) -> bool {
        self.pods.values().any(|pod| pod.owner == self.uid)
    }

    /// Workers that were there once, all of those up to this number: what is missing of them is lost.
    #[must_use]
    pub fn created(&self) -> i32 {
        self.status.workers.as_ref().map_or(0, |workers| workers.created).max(self.created)
    }

    /// The last state of a pod of the job that is gone, where it was seen.
    #[must_use]
    pub fn last_of(&self, name: &str) -> Option<&ObservedPod> {
        self.gone.get(name).map(AsRef::as_ref).filter(|pod| pod.owner == self.uid && !self.pods.contains_key(name))
    }
}

/// Something whose time is limited; that of a pod begins with what was seen of it (its uid).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wait {
    /// It is beyond the job's size.
    Surplus(String),
    /// It is being deleted.
    Deletion(String),
    /// The coordinator hears nothing of its members.
    Silence(String),
    /// It is the coordinator's, and does not answer.
    Answer(String),
    /// It is on its node, and none of its containers runs.
    Start(String),
    /// It has started, and the Event about its image may be yet to come.
    Pull(String),
    /// It was asked for the last time how long it waited for its image, which the status does not say yet.
    AskedLast(String),
    /// This checkpoint, of so many steps, is the newest.
    Checkpoint(i64),
    /// The group was asked to write a checkpoint and end.
    Stop,
}

/// Kubernetes' own time for a pod to end, where a pod that is being deleted does not say how long it was given.
const GRACE: SignedDuration = SignedDuration::from_secs(30);

/// Something in the way that does not solve itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Reason of the condition and of the event.
    pub reason: &'static str,
    /// What was tried, and the answer.
    pub message: String,
}

/// What is known through the coordinator.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "a job has one, and nearly always of the largest kind")]
pub enum Link {
    /// Nothing, for a short time: what was known before still counts.
    #[default]
    Unknown,
    /// Nothing for longer than a hiccup takes.
    Unreachable,
    /// The newest status.
    Connected(GroupStatus),
}

/// The group as the coordinator sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupStatus {
    /// What it is doing.
    pub phase: GroupPhase,
    /// The coordinator's epoch.
    pub epoch: u64,
    /// Number of the membership under this epoch; 0 before the first.
    pub n: u64,
    /// Bounds in force.
    pub members_wanted: MemberBounds,
    /// Attached members: their worker, and whether they have a rank.
    pub members: Vec<MemberSeen>,
    /// Workers whose members were given up because nothing was heard of them, and that have not come back.
    /// With the number of the entry in its history that says so.
    pub silent: BTreeMap<String, u64>,
    /// Workers of which a member was evicted for being slow, with the newest such entry in its history.
    pub slow: BTreeMap<String, SlowSeen>,
    /// Number of the newest entry in its history.
    pub newest_entry: u64,
    /// Steps that every member has committed.
    pub step: u64,
    /// The newest checkpoint.
    pub last_checkpoint: Option<CheckpointSeen>,
    /// How training comes along.
    pub training: Option<TrainingSeen>,
    /// The sources of a mixture.
    pub sources: Vec<SourceSeen>,
}

/// A place in the history of a job's coordinators: each numbers its entries from 1. Written as `EPOCH.ENTRY`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct HistoryPlace {
    /// The coordinator's epoch.
    pub epoch: u64,
    /// The entry.
    pub entry: u64,
}

impl HistoryPlace {
    /// Up to where the history is about pods of before, for a worker that is created now; `coordinator`: its pod's name. While a worker is
    /// replaced and nobody knows what the coordinator has said of it, all that it says may be.
    #[must_use]
    pub fn known(link: &Link, status: &LCLTrainingJobStatus, coordinator: &str) -> Self {
        let follows_another = status.replacing.iter().any(|replaced| replaced.pod != coordinator);
        match link {
            Link::Connected(group) => Self { epoch: group.epoch, entry: group.newest_entry },
            Link::Unknown | Link::Unreachable => {
                Self { epoch: status.coordinator_epoch.unwrap_or(0).unsigned_abs(), entry: if follows_another { u64::MAX } else { 0 } }
            }
        }
    }
}

impl fmt::Display for HistoryPlace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.epoch, self.entry)
    }
}

/// It is no place in a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidPlace;

impl FromStr for HistoryPlace {
    type Err = InvalidPlace;

    fn from_str(text: &str) -> Result<Self, InvalidPlace> {
        let (epoch, entry) = text.split_once('.').ok_or(InvalidPlace)?;
        let number = |text: &str| text.parse().map_err(|_| InvalidPlace);
        Ok(Self { epoch: number(epoch)?, entry: number(entry)? })
    }
}

/// A checkpoint that is complete in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointSeen {
    /// Completed steps in it.
    pub step: u64,
    /// When it was complete, by the clock of the member that wrote it.
    pub time: Timestamp,
    /// Name of its folder in the run's.
    pub folder: String,
}

/// How training comes along: means of the last steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainingSeen {
    /// The loss that is minimised.
    pub loss: Option<f64>,
    /// Samples of all members.
    pub samples_per_second: Option<f64>,
}

/// How a source of a mixture comes along, as the coordinator has heard. Losses and waits are means of the last steps.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceSeen {
    /// Its name.
    pub name: String,
    /// Its samples that have had their turn.
    pub samples: u64,
    /// Over its predicted tokens.
    pub generation_loss: Option<f64>,
    /// Over its contrasted images.
    pub contrastive_loss: Option<f64>,
    /// Seconds of a step.
    pub data_wait_seconds: f64,
}

/// What a group is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupPhase {
    /// Not enough members.
    Waiting,
    /// Training.
    Running,
    /// Between two generations.
    Recovering,
    /// The last step is done.
    Complete,
    /// Ended for another reason.
    Ended,
}

/// Bounds on the number of members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberBounds {
    /// Fewest.
    pub min: u32,
    /// Wanted.
    pub desired: u32,
    /// Most.
    pub max: u32,
}

impl MemberBounds {
    /// Those of a job: its workers times the members of each.
    #[must_use]
    pub fn of(job: &ValidatedJob) -> Self {
        let (world, each) = (job.world(), job.members_per_worker());
        let members = |workers: i32| workers.unsigned_abs().saturating_mul(each);
        Self { min: members(world.min), desired: members(world.desired), max: members(world.max) }
    }
}

/// A member was evicted for being slow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlowSeen {
    /// Number of the entry that says so.
    pub entry: u64,
    /// Who it was, its node, and by how much it was slow.
    pub message: String,
}

/// An attached member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberSeen {
    /// Its worker: the name of the pod.
    pub worker: String,
    /// Whether it belongs to the group that trains.
    pub ranked: bool,
}

/// What a pod is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodRole {
    /// It decides membership.
    Coordinator,
    /// It trains; its index.
    Worker(u32),
}

/// A pod, cut down.
#[derive(Clone, Debug, PartialEq)]
pub struct ObservedPod {
    /// Its uid.
    pub uid: String,
    /// Uid of the job that owns it.
    pub owner: String,
    /// What it is for.
    pub role: PodRole,
    /// The coordinator's epoch.
    pub epoch: Option<i64>,
    /// Number of the incident that was the newest when it was created.
    pub incident: i64,
    /// What coordinators have said up to here of a worker of this name was about pods before this one.
    pub history: HistoryPlace,
    /// The coordinator's time-outs.
    pub timeouts: Timeouts,
    /// Its address, once it has one.
    pub ip: Option<String>,
    /// The node's name, once it has one.
    pub node: Option<String>,
    /// `status.phase` is Running.
    pub running: bool,
    /// Its main container has ended, and another one runs.
    pub sidecar_runs: bool,
    /// The condition Ready is true.
    pub ready: bool,
    /// How it started, once its main container has.
    pub start: Option<PodStart>,
    /// How long it was given to end, if it is being deleted. The time at which that is over is by the API server's clock.
    pub deletion: Option<SignedDuration>,
    /// Reason and message of a true `DisruptionTarget` condition.
    pub disruption: Option<(String, String)>,
    /// Type and status of all its conditions, once it ends.
    pub conditions: Vec<(String, String)>,
    /// Why it does not start.
    pub obstacle: Option<Obstacle>,
    /// How it ended.
    pub end: Option<ObservedEnd>,
}

/// What the start of a pod took, in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodStart {
    /// From its creation until it had its node.
    pub scheduled: i64,
    /// From then until its main container ran.
    pub started: i64,
}

/// Why a pod does not start. Worded so that it stays the same for as long as the reason does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// The container, unless it is about the pod as a whole.
    pub container: Option<String>,
    /// Reason as Kubernetes gives it, such as `ImagePullBackOff` or Unschedulable.
    pub reason: String,
    /// What Kubernetes says.
    pub message: String,
}

/// How a pod's main container, or the pod itself, ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedEnd {
    /// Exit code of the main container; none when it never ran, or nobody could see it end.
    pub exit_code: Option<i32>,
    /// Reason as Kubernetes gives it, such as `OOMKilled` or Evicted.
    pub reason: String,
    /// What the program left as its last words, or Kubernetes says.
    pub message: String,
    /// It was seen before the pod was deleted, so that the deletion is not what ended it. No single state of a pod tells that without comparing
    /// the clocks of its node and of the API server: whoever sees one state after the other says it.
    pub before_deletion: bool,
}

impl ObservedPod {
    /// Reads a pod; `None` when it is none of ours.
    #[must_use]
    pub fn read(pod: &Pod) -> Option<Self> {
        let metadata = &pod.metadata;
        let label = |key: &str| metadata.labels.as_ref().and_then(|labels| labels.get(key));
        let role = match label(ROLE_LABEL)?.as_str() {
            WORKER_ROLE => PodRole::Worker(label(WORKER_INDEX_LABEL)?.parse().ok()?),
            _ => PodRole::Coordinator,
        };
        let owner = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true) && is_job(owner))?;
        let status = pod.status.as_ref();
        let conditions = || status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
        let is_true = |type_: &str| conditions().find(|condition| condition.type_ == type_ && condition.status == "True");
        let text = |key: &str| metadata.annotations.as_ref()?.get(key);
        let number = |key: &str| text(key)?.parse().ok();
        let (end, is_deleted) = (read_end(pod, role), metadata.deletion_timestamp.is_some());
        // The phase is no sign of it: the kubelet leaves it at Running until it is sure that nothing of the pod runs any more.
        let runs = |container: &ContainerStatus| container.state.as_ref().is_some_and(|state| state.running.is_some());
        let mut containers = status.and_then(|status| status.container_statuses.as_ref()).into_iter().flatten();
        let sidecar_runs = end.is_some() && containers.any(runs);
        Some(Self {
            uid: metadata.uid.clone()?,
            owner: owner.uid.clone(),
            role,
            epoch: number(EPOCH_ANNOTATION),
            incident: number(INCIDENT_ANNOTATION).unwrap_or(0),
            history: text(HISTORY_ANNOTATION).and_then(|text| text.parse().ok()).unwrap_or_default(),
            timeouts: Timeouts::read(pod),
            ip: status.and_then(|status| status.pod_ip.clone()).filter(|ip| !ip.is_empty()),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            running: status.and_then(|status| status.phase.as_deref()) == Some("Running"),
            sidecar_runs,
            ready: is_true("Ready").is_some(),
            start: read_start(pod, role),
            deletion: is_deleted.then(|| metadata.deletion_grace_period_seconds.map_or(GRACE, SignedDuration::from_secs)),
            disruption: is_true("DisruptionTarget")
                .map(|condition| (condition.reason.clone().unwrap_or_default(), condition.message.clone().unwrap_or_default())),
            // Nothing asks for them before, and there may be ten thousand pods.
            conditions: conditions()
                .filter(|_| end.is_some() || is_deleted)
                .map(|condition| (condition.type_.clone(), condition.status.clone()))
                .collect(),
            obstacle: if end.is_none() && !is_deleted { read_obstacle(pod) } else { None },
            end,
        })
    }

    /// Takes over what only an earlier state of the same pod tells.
    pub fn follow(&mut self, earlier: &Self) {
        let Some(end) = self.end.as_mut().filter(|_| earlier.uid == self.uid) else { return };
        end.before_deletion |= earlier.end.as_ref().is_some_and(|end| end.before_deletion || earlier.deletion.is_none());
    }

    /// The pod once it is gone. One that is removed without a grace period need not have shown that it is being deleted.
    pub fn note_removal(&mut self) {
        if let Some(end) = &mut self.end {
            end.before_deletion |= self.deletion.is_none();
        }
        self.deletion.get_or_insert(SignedDuration::ZERO);
    }
}

/// What a container waits for while all goes well.
const ON_THE_WAY: [&str; 2] = ["ContainerCreating", "PodInitializing"];

fn read_obstacle(pod: &Pod) -> Option<Obstacle> {
    let status = pod.status.as_ref()?;
    // What the scheduler says may be older than the node that the pod has by now.
    let has_node = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    let mut conditions = status.conditions.iter().flatten().filter(|_| !has_node);
    let unscheduled = conditions.find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    if let Some(condition) = unscheduled {
        let reason = condition.reason.clone().unwrap_or_default();
        return Some(Obstacle { container: None, reason, message: condition.message.clone().unwrap_or_default() });
    }
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    containers.into_iter().find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref().filter(|reason| !ON_THE_WAY.contains(reason))?;
        let message = waiting.message.as_deref().unwrap_or_default();
        // The kubelet says by turns that a pull has failed and that it waits before the next, and how long it waits.
        let (reason, message) = match reason {
            "ErrImagePull" | "ImagePullBackOff" => {
                ("ImagePullBackOff", message.split_once("ErrImagePull: ").map_or(message, |(_, message)| message))
            }
            "CrashLoopBackOff" => (reason, "it ends again and again"),
            _ => (reason, message),
        };
        Some(Obstacle { container: Some(container.name.clone()), reason: reason.to_owned(), message: message.to_owned() })
    })
}

fn main_container(pod: &Pod, role: PodRole) -> Option<&ContainerStatus> {
    let main = match role {
        PodRole::Coordinator => COORDINATOR_CONTAINER,
        PodRole::Worker(_) => WORKER_CONTAINER,
    };
    pod.status.as_ref()?.container_statuses.iter().flatten().find(|container| container.name == main)
}

/// How many seconds a container waited for its image, by the message of the Event `Pulled`; nothing when it says neither that nor that the image was
/// there already. Kubelets of all supported releases word it so (`pkg/kubelet/images`): the time of the pull, then that and the wait for other
/// pulls.
#[must_use]
pub fn read_image_pull(message: &str) -> Option<i64> {
    if message.starts_with("Container image ") && message.contains("already present on machine") {
        return Some(0);
    }
    let times = message.strip_prefix("Successfully pulled image ")?.rsplit_once("\" in ")?.1;
    let waited = times.split_once(" (").and_then(|(_, rest)| rest.split_once(" including waiting)")).map(|(time, _)| time);
    let time: SignedDuration = waited.or_else(|| times.split_whitespace().next())?.trim_end_matches('.').parse().ok()?;
    Some(time.round(Unit::Second).ok()?.as_secs())
}

/// The times are the API server's, the scheduler's and the node's: where their clocks differ, a part may seem to have taken less than nothing.
fn read_start(pod: &Pod, role: PodRole) -> Option<PodStart> {
    let created = pod.metadata.creation_timestamp.as_ref()?.0;
    let mut conditions = pod.status.as_ref()?.conditions.iter().flatten();
    let placed = conditions.find(|condition| condition.type_ == "PodScheduled" && condition.status == "True")?;
    let scheduled = placed.last_transition_time.as_ref()?.0;
    let state = main_container(pod, role)?.state.as_ref()?;
    let running = state.running.as_ref().and_then(|running| running.started_at.as_ref());
    let started = running.or_else(|| state.terminated.as_ref()?.started_at.as_ref())?.0;
    let seconds = |from: Timestamp, to: Timestamp| to.duration_since(from).as_secs().max(0);
    Some(PodStart { scheduled: seconds(created, scheduled), started: seconds(scheduled, started) })
}

fn read_end(pod: &Pod, role: PodRole) -> Option<ObservedEnd> {
    let status = pod.status.as_ref()?;
    let terminated = main_container(pod, role).and_then(|container| container.state.as_ref()?.terminated.as_ref());
    // The main container decides: a sidecar that runs on keeps no dead trainer alive.
    if let Some(terminated) = terminated {
        // The kubelet makes up a code for a container that it lost track of, as after a restart of the node.
        let was_seen = terminated.reason.as_deref() != Some("ContainerStatusUnknown");
        return Some(ObservedEnd {
            exit_code: was_seen.then_some(terminated.exit_code),
            reason: terminated.reason.clone().unwrap_or_default(),
            message: terminated.message.clone().unwrap_or_default(),
            before_deletion: false,
        });
    }
    let exit_code = match status.phase.as_deref() {
        Some("Succeeded") => Some(0),
        Some("Failed") => None,
        _ => return None,
    };
    let (reason, message) = (status.reason.clone().unwrap_or_default(), status.message.clone().unwrap_or_default());
    Some(ObservedEnd { exit_code, reason, message, before_deletion: false })
}

#[cfg(test)]
mod tests;
