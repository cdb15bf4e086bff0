//! Decisions about a job, whatever its numbers and names are.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::core::v1::Pod,
    jiff::{SignedDuration, Timestamp},
};
use lcl_crds::{LCLTrainingJobStatus, PinnedStatus};
use lcl_operator_core::{
    ValidatedJob, decide,
    observe::{Link, ObservedJob, ObservedPod, Wait},
};
use serde_json::{Value, json};

/// Looks at the job from its first second on, with its pods as they may be, again and again and after ever longer times.
pub(crate) fn decide_all_along(job: &ValidatedJob, uid: &str, offer: &PinnedStatus, pods: &[Value]) {
    let mut status = LCLTrainingJobStatus::default();
    let mut now = Timestamp::from_second(1_800_000_000).unwrap();
    let mut waited = BTreeMap::new();
    for state in [
        None,
        Some(json!({"phase": "Pending"})),
        Some(json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})),
        Some(json!({"phase": "Failed", "reason": "Evicted"})),
        Some(json!({"phase": "Failed", "containerStatuses": [ended("worker", 1), ended("coordinator", 1)]})),
        None,
        Some(json!({"phase": "Succeeded", "containerStatuses": [ended("worker", 0), ended("coordinator", 0)]})),
        None,
    ] {
        let pods = state.map(|state| pods.iter().map(|pod| observe(pod, &state)).collect()).unwrap_or_default();
        for pass in [1, 3600, 100_000_000] {
            let decision = decide(&ObservedJob {
                job,
                uid,
                generation: 1,
                status: &status,
                selector: "lcl.dev/job-name=job",
                pods: &pods,
                gone: &BTreeMap::new(),
                link: &Link::Unreachable,
                offer,
                change: None,
                unused_epoch: None,
                created: 0,
                waited: &waited,
                explanation: None,
                image_pull: None,
                problem: None,
                creations_wait: None,
                now,
            });
            waited = decision.waits.into_iter().map(|wait: Wait| (wait, SignedDuration::from_secs(pass))).collect();
            status = decision.status;
            now += SignedDuration::from_secs(pass);
        }
    }
}

fn ended(container: &str, code: i32) -> Value {
    let state = json!({"terminated": {"exitCode": code}});
    json!({"name": container, "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state})
}

fn observe(pod: &Value, state: &Value) -> (String, Arc<ObservedPod>) {
    let mut pod = pod.clone();
    let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    pod["metadata"]["uid"] = format!("uid-of-{name}").into();
    pod["spec"]["nodeName"] = "node".into();
    pod["status"] = state.clone();
    let pod: Pod = serde_json::from_value(pod).unwrap();
    (name, Arc::new(ObservedPod::read(&pod).expect("it is a pod of the job's")))
}
