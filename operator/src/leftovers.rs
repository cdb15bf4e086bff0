//! Pods that nobody looks after any more, and that their nodes do not let go of.
//!
//! A pod that is being deleted is there until its node says that it has ended, and a node that is dead never does. Of a job that runs the
//! reconciles see to that. Here are the pods of jobs that are complete, have failed, are being deleted or are gone. Comes in: what the
//! watches tell. Goes out: which pods have had their time, and are deleted without asking their nodes. Nothing is touched that does not
//! belong to a job, that nobody has deleted, or that another operator looks after.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    runtime::reflector::{ObjectRef, Store},
};
use lcl_operator_core::{decide::DELETION_SLACK, observe::ObservedPod};

use crate::{
    cache::{JobKey, PodCache},
    category::Categorized,
    kept::StoredJob,
    metrics::Metrics,
    pod_actions::delete_pod,
    reconcile::ReconcileError,
};

/// A pod that is being deleted and that no reconcile looks at.
#[derive(Clone, Debug)]
pub(crate) struct Leftover {
    /// Its job, by the name that it bears.
    pub(crate) job: JobKey,
    name: String,
    pod: Arc<ObservedPod>,
}

/// Those that are there now.
pub(crate) fn find(pods: &PodCache, jobs: &Store<StoredJob>) -> Vec<Leftover> {
    let job_of = |key: &JobKey| jobs.get(&ObjectRef::new(&key.name).within(&key.namespace));
    let deleted = pods.deleted().into_iter();
    let left = deleted.filter(|(key, _, pod)| is_left(job_of(key).as_deref(), pod));
    left.map(|(job, name, pod)| Leftover { job, name, pod }).collect()
}

/// Deletes one without its node, if the API server itself says that no reconcile looks at it: the watch of jobs may be behind, or not have
/// begun.
pub(crate) async fn remove(client: &Client, pods: &PodCache, metrics: &Metrics, left: &Leftover) {
    let Leftover { job: JobKey { namespace, name: job }, name, pod } = left;
    let removed = async {
        let jobs = Api::<StoredJob>::namespaced(client.clone(), namespace);
        let found = jobs.get_opt(job).await.map_err(|source| ReconcileError::Api { what: format!("getting job {job}"), source })?;
        if !is_left(found.as_ref(), pod) {
            return Ok(());
        }
        delete_pod(&Api::<Pod>::namespaced(client.clone(), namespace), pods, name, &pod.uid, true).await?;
        tracing::info!(namespace, job, pod = name, "deleted without its node, which did not let go of it: the job is over or gone");
        Ok::<_, ReconcileError>(())
    };
    if let Err(error) = removed.await {
        metrics.count_error(error.category());
        let category = error.category().label();
        tracing::warn!(namespace, job, pod = name, category, "a pod of a job that is over or gone stays for now: {error}");
    }
}

/// Whether no reconcile looks at a pod; `job` is the one that has the name of the pod's job now.
fn is_left(job: Option<&StoredJob>, pod: &ObservedPod) -> bool {
    let Some(stored) = job.filter(|stored| stored.uid().as_deref() == Some(pod.owner.as_str())) else { return true };
    // Of one that cannot be read nobody knows what is to become of it.
    stored.summary().is_some_and(|job| job.is_ours && job.is_over)
}

/// Since when each is known, by this process's own clock.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    since: HashMap<String, Instant>,
}

impl Leftovers {
    /// Those that have had their time and some seconds. Each is told again after as long, in case it stays.
    pub(crate) fn due(&mut self, now: Instant, found: Vec<Leftover>) -> Vec<Leftover> {
        let uids: HashSet<_> = found.iter().map(|left| left.pod.uid.as_str()).collect();
        self.since.retain(|uid, _| uids.contains(uid.as_str()));
        let slack = Duration::try_from(DELETION_SLACK).unwrap_or_default();
        let mut is_due = |left: &Leftover| {
            let since = self.since.entry(left.pod.uid.clone()).or_insert(now);
            let given = left.pod.deletion.and_then(|given| Duration::try_from(given).ok()).unwrap_or_default();
            let is_over = now.duration_since(*since) >= given.saturating_add(slack);
            if is_over {
                *since = now;
            }
            is_over
        };
        found.into_iter().filter(|left| is_due(left)).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(uid: &str, grace: i64) -> Arc<ObservedPod> {
        let pod: Pod = serde_json::from_value(json!({ "metadata": {
            "name": "job-w-0", "namespace": "team", "uid": uid, "labels": { "lcl.dev/role": "worker", "lcl.dev/worker-index": "0" },
            "deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": grace,
            "ownerReferences": [{ "apiVersion": "lcl.dev/v1alpha1", "kind": "LCLTrainingJob", "name": "job", "uid": "j", "controller": true }],
        }}))
        .expect("a pod");
        Arc::new(ObservedPod::read(&pod).expect("one of ours"))
    }

    fn left(uid: &str, grace: i64) -> Leftover {
        let job = JobKey { namespace: "team".to_owned(), name: "job".to_owned() };
        Leftover { job, name: uid.to_owned(), pod: pod(uid, grace) }
    }

    #[test]
    fn a_leftover_is_due_after_its_grace_and_some_seconds_since_it_was_first_seen() {
        let (mut leftovers, begun) = (Leftovers::default(), Instant::now());
        let mut due = |seconds, found: &[Leftover]| -> Vec<String> {
            let due = leftovers.due(begun + Duration::from_secs(seconds), found.to_vec());
            due.into_iter().map(|left| left.name).collect()
        };
        let both = [left("short", 1), left("long", 30)];
        assert_eq!(due(0, &both), [""; 0]);
        assert_eq!(due(5, &both), [""; 0], "one second of grace and five more are not over");
        assert_eq!(due(6, &both), ["short"]);
        assert_eq!(due(7, &both), [""; 0], "it was told a moment ago");
        assert_eq!(due(12, &both), ["short"], "it is still there");
        assert_eq!(due(34, &both[1..]), [""; 0]);
        assert_eq!(due(35, &both), ["long"], "of the other nothing was known any more");
    }

    fn job(uid: &str, change: &Value) -> StoredJob {
        let mut job = json!({
            "apiVersion": "lcl.dev/v1alpha1", "kind": "LCLTrainingJob", "metadata": { "name": "job", "uid": uid },
            "spec": {
                "model": { "preset": "tiny" }, "data": { "webdataset": { "shards": ["/data/a.tar"] } },
                "optimization": { "steps": 1, "globalBatchSize": 8, "schedule": { "constant": { "warmupSteps": 0 } } },
                "checkpoint": { "uri": "file:///runs/a" },
            },
        });
        for (path, value) in change.as_object().into_iter().flatten() {
            let (parent, name) = path.rsplit_once('/').expect("a path");
            let parent = job.pointer_mut(parent).and_then(Value::as_object_mut).expect("a parent");
            parent.insert(name.to_owned(), value.clone());
        }
        serde_json::from_value(job).expect("a job")
    }

    #[test]
    fn pods_are_left_of_jobs_that_are_over_or_gone_and_no_others() {
        let pod = pod("p", 1);
        let condition = |type_: &str| {
            let condition =
                json!({ "type": type_, "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" });
            json!({ "/status": { "conditions": [condition] } })
        };
        let check = |is_expected: bool, uid: &str, change: &Value| {
            assert_eq!(is_left(Some(&job(uid, change)), &pod), is_expected, "{uid} {change}");
        };
        assert!(is_left(None, &pod), "its job is gone");
        check(true, "another", &json!({}));
        check(true, "j", &condition("Complete"));
        check(true, "j", &condition("Failed"));
        check(true, "j", &json!({ "/metadata/deletionTimestamp": "2026-01-01T00:00:00Z" }));
        check(false, "j", &json!({}));
        check(false, "j", &condition("Running"));
        check(false, "j", &json!({ "/spec": { "of": "another version" } }));
        let mut others = condition("Failed");
        others["/spec/managedBy"] = json!("example.com/another");
        check(false, "j", &others);
    }
}
