//! What happens to a job, and what has to have come of it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    kubelet::LEFT,
    lab::{JOB, Place, epoch_of, uids},
    support::{name_of, wait_for},
};

/// Something that happens to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Creation,
    ScaleDown,
    /// A worker ends with an error.
    Recovery,
    /// The coordinator does.
    CoordinatorLoss,
    /// A worker is evicted, as by `kubectl drain`.
    Drain,
}

impl Phase {
    pub(crate) const ALL: [Self; 5] = [Self::Creation, Self::ScaleDown, Self::Recovery, Self::CoordinatorLoss, Self::Drain];

    /// As it stands in the names of namespaces.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Creation => "creation",
            Self::ScaleDown => "scale-down",
            Self::Recovery => "recovery",
            Self::CoordinatorLoss => "coordinator-loss",
            Self::Drain => "drain",
        }
    }

    /// Makes it happen. Nothing but `Creation` needs that there is no job yet.
    pub(crate) fn begin(self, place: &Place, workers: u32) -> Result<()> {
        let kubelets = &place.lab.kubelets;
        match self {
            Self::Creation => place.create_job(workers, ""),
            Self::ScaleDown => {
                let patch = json!({ "spec": { "replicas": workers / 2 } });
                place.lab.installed.send("PATCH", &format!("{}/scale", place.job_path()), &patch).map(drop)
            }
            Self::Recovery => kubelets.exit(&place.namespace, &worker(1), 1, "the data could not be read"),
            Self::CoordinatorLoss => kubelets.exit(&place.namespace, &coordinator(), 1, "out of luck"),
            // The job's budget allows it once its controller has seen that all workers are ready.
            Self::Drain => wait_for("leave to evict", || kubelets.evict(&place.namespace, &worker(1))),
        }
    }

    /// What comes of it.
    pub(crate) fn expected(self, workers: u32, before: &BTreeMap<String, String>) -> Expected {
        let (workers, replaced) = match self {
            Self::Creation => (workers, None),
            Self::ScaleDown => (workers / 2, None),
            Self::Recovery | Self::Drain => (workers, Some(worker(1))),
            Self::CoordinatorLoss => (workers, Some(coordinator())),
        };
        let cause = if self == Self::Drain { "infrastructure" } else { "application" };
        let failed = replaced.iter().map(|pod| Failed { pod: pod.clone(), cause }).collect();
        Expected { workers, failed, replaced, before: before.clone() }
    }
}

fn worker(index: u32) -> String {
    format!("{JOB}-w-{index}")
}

fn coordinator() -> String {
    format!("{JOB}-coordinator")
}

/// A pod that has failed, and whose fault that was.
#[derive(Clone, Debug)]
pub(crate) struct Failed {
    pod: String,
    cause: &'static str,
}

/// A job at rest.
pub(crate) struct Expected {
    workers: u32,
    /// The pod that is another one now.
    replaced: Option<String>,
    /// Pods that have failed since the job was created, each once.
    failed: Vec<Failed>,
    /// Pods that were there before, by name.
    before: BTreeMap<String, String>,
}

impl Expected {
    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = (0..self.workers).map(worker).chain([coordinator()]).collect();
        names.sort();
        names
    }

    /// In phases before this one these have failed; goes on with all.
    pub(crate) fn after(&mut self, failed: &mut Vec<Failed>) {
        failed.append(&mut self.failed);
        self.failed.clone_from(failed);
    }

    /// Whether the job has come to rest. What must never be is looked at afterwards.
    fn check_rest(&self, place: &Place) -> Result<()> {
        let (job, pods) = (place.job()?, place.pods()?);
        let status = &job["status"];
        let is_well = |pod: &Value| pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["phase"] == "Running";
        let names: Vec<_> = pods.iter().filter(|pod| is_well(pod)).map(name_of).collect();
        ensure!(names == self.names() && pods.len() == names.len(), "the pods are {names:?} of {}", pods.len());
        if let Some(replaced) = &self.replaced {
            ensure!(uids(&pods).get(replaced) != self.before.get(replaced), "{replaced} is still there");
        }
        let workers = &status["workers"];
        ensure!(workers["created"] == self.workers && workers["desired"] == self.workers, "{status}");
        ensure!(status["observedGeneration"] == job["metadata"]["generation"] && status["replacing"].is_null(), "{status}");
        Ok(())
    }

    /// Waits until the job is at rest, or `gives_up` says so: then `false`.
    pub(crate) fn wait_for_rest(&self, place: &Place, gives_up: impl Fn() -> bool) -> Result<bool> {
        wait_for(&format!("rest in {}", place.namespace), || if gives_up() { Ok(false) } else { self.check_rest(place).map(|()| true) })
    }

    /// What must hold at the end; the status without what differs from run to run.
    pub(crate) fn check_end(&self, place: &Place) -> Result<Value> {
        self.check_rest(place)?;
        let (mut job, pods) = (place.job()?, place.pods()?);
        let status = job["status"].take();
        let now = uids(&pods);
        for (name, uid) in self.before.iter().filter(|(name, _)| now.contains_key(*name) && self.replaced.as_ref() != Some(*name)) {
            ensure!(now.get(name) == Some(uid), "{name} was made anew without need");
        }
        self.check_history(place, &now)?;
        let given = epoch_of(&pods).context("the coordinator has no epoch")?;
        let epoch = status["coordinatorEpoch"].as_i64().context("no epoch")?;
        ensure!(epoch >= given, "the coordinator's epoch {given} is not in {status}");
        let failures = i64::try_from(self.failed.len())?;
        let restarts = &without_deletions(&status["restarts"]);
        ensure!(restarts["total"] == failures, "{failures} failures, and {restarts}");
        ensure!(status["failures"]["incidents"].as_i64().unwrap_or(0) == failures, "{failures} failures, and {}", status["failures"]);
        for cause in ["application", "infrastructure", "preemption"] {
            let wanted = self.failed.iter().filter(|failed| failed.cause == cause).count();
            let incidents = status["failures"][cause]["times"].as_array().map_or(0, Vec::len);
            ensure!(restarts[cause] == wanted && incidents == wanted, "{wanted} of {cause}, {restarts} and {}", status["failures"]);
        }
        ensure!(status["lastFailure"]["pod"] == json!(self.failed.last().map(|failed| &failed.pod)), "{}", status["lastFailure"]);
        Ok(comparable(status))
    }

    /// Every pod that ever was: each name once, that of what failed twice; and each coordinator of a higher epoch than those before it.
    fn check_history(&self, place: &Place, now: &BTreeMap<String, String>) -> Result<()> {
        let seen = place.lab.kubelets.seen(&place.namespace);
        for name in now.keys().chain(self.before.keys()) {
            let pods: Vec<_> = seen.iter().filter(|seen| seen.name == *name).collect();
            let wanted = 1 + self.failed.iter().filter(|failed| failed.pod == *name).count();
            ensure!(pods.len() == wanted, "{} pods were called {name}, in place of {wanted}", pods.len());
        }
        let strangers: Vec<_> = seen.iter().filter(|seen| !now.contains_key(&seen.name) && !self.before.contains_key(&seen.name)).collect();
        ensure!(strangers.is_empty(), "there were also {strangers:?}");
        let coordinators: Vec<_> = seen.iter().filter_map(|seen| seen.epoch).collect();
        ensure!(coordinators.is_sorted_by(|one, next| one < next), "an epoch was given twice: {coordinators:?}");
        Ok(())
    }
}

/// What ended each pod is known for certain to an operator that watched all along, however late it looked.
pub(crate) fn check_causes(place: &Place) -> Result<()> {
    let status = place.job()?["status"].take();
    let reason = &status["lastFailure"]["reason"];
    let is_known = status["restarts"]["deletion"] == 0 && *reason != "PodDeleted";
    ensure!(is_known, "nobody deleted a pod: {} and {}", status["restarts"], status["lastFailure"]);
    Ok(())
}

/// A pod that is evicted and gone while no operator watches (it is dead) has left nothing that says why: it counts as deleted, at the expense of
/// the same budget.
fn without_deletions(restarts: &Value) -> Value {
    let mut restarts = restarts.clone();
    if let Some(restarts) = restarts.as_object_mut() {
        let deleted = restarts.remove("deletion").and_then(|deleted| deleted.as_i64()).unwrap_or(0);
        let others = restarts.get("infrastructure").and_then(Value::as_i64).unwrap_or(0);
        restarts.insert("infrastructure".to_owned(), json!(others + deleted));
    }
    restarts
}

/// A status without times (`startup` is nothing else), uids and addresses; without the epoch, which a killed operator may skip; and without what
/// the coordinator says of members, which changes with when it is heard.
fn comparable(mut status: Value) -> Value {
    strip(&mut status);
    if let Some(status) = status.as_object_mut() {
        status.remove("coordinatorEpoch");
        status.remove("startup");
    }
    for (parent, names) in [("/workers", &["ready", "summary", "selector"][..]), ("/pinned", &["address", "certificatesExpire"])] {
        if let Some(object) = status.pointer_mut(parent).and_then(Value::as_object_mut) {
            for name in names {
                object.remove(*name);
            }
        }
    }
    // Of one that is asked to leave it is there if it was looked at after that, and not before.
    if status["lastFailure"]["exitCode"] == LEFT
        && let Some(failure) = status["lastFailure"].as_object_mut()
    {
        failure.remove("exitCode");
    }
    status["restarts"] = without_deletions(&status["restarts"]);
    let reason = &status["lastFailure"]["reason"];
    if (reason == "Evicted" || reason == "PodDeleted")
        && let Some(failure) = status["lastFailure"].as_object_mut()
    {
        failure.retain(|name, _| name == "pod");
    }
    if let Some(conditions) = status["conditions"].as_array_mut() {
        conditions.retain(|condition| condition["type"] != "PodsReady");
        conditions.sort_by_key(|condition| condition["type"].to_string());
    }
    status
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !["time", "lastTransitionTime", "startTime"].contains(&name.as_str()));
            if let Some(times) = fields.get_mut("times") {
                *times = json!(times.as_array().map_or(0, Vec::len));
            }
            fields.values_mut().for_each(strip);
        }
        Value::Array(values) => values.iter_mut().for_each(strip),
        _ => {}
    }
}
