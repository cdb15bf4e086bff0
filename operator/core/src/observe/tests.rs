use serde_json::{Value, json};

use super::*;

fn read(role: &str, status: &Value) -> Option<ObservedPod> {
    let pod = json!({
        "metadata": {
            "name": "job-w-3", "uid": "u", "annotations": { "lcl.dev/coordinator-epoch": "7" },
            "labels": { "lcl.dev/role": role, "lcl.dev/worker-index": "3" },
            "ownerReferences": [{ "apiVersion": "lcl.dev/v1alpha1", "kind": "LCLTrainingJob", "name": "job", "uid": "j", "controller": true }],
        },
        "spec": { "nodeName": "node-1", "containers": [] },
        "status": status,
    });
    ObservedPod::read(&serde_json::from_value(pod).unwrap())
}

fn end(status: &Value) -> Option<(Option<i32>, String, String)> {
    read("worker", status).unwrap().end.map(|end| (end.exit_code, end.reason, end.message))
}

fn terminated(name: &str, code: i32, reason: &str) -> Value {
    json!({ "name": name, "ready": false, "restartCount": 0, "image": "", "imageID": "",
        "state": { "terminated": { "exitCode": code, "reason": reason, "message": "words" } } })
}

fn running(name: &str) -> Value {
    json!({ "name": name, "ready": true, "restartCount": 0, "image": "", "imageID": "", "state": { "running": {} } })
}

fn ended(code: Option<i32>, reason: &str, message: &str) -> (Option<i32>, String, String) {
    (code, reason.to_owned(), message.to_owned())
}

#[test]
fn a_pod_of_another_controller_is_none_of_ours_whatever_its_labels_say() {
    let owned_by = |api_version: &str, kind: &str| {
        let pod = json!({ "metadata": {
            "name": "job-w-3", "uid": "u", "labels": { "lcl.dev/role": "worker", "lcl.dev/worker-index": "3" },
            "ownerReferences": [{ "apiVersion": api_version, "kind": kind, "name": "job", "uid": "j", "controller": true }],
        }});
        ObservedPod::read(&serde_json::from_value(pod).unwrap()).is_some()
    };
    assert!(owned_by("lcl.dev/v1alpha1", "LCLTrainingJob"));
    assert!(!owned_by("apps/v1", "ReplicaSet"));
    assert!(!owned_by("example.com/v1", "LCLTrainingJob"));
    assert!(!owned_by("lcl.dev/v1alpha1", "Another"));
}

#[test]
fn a_running_pod_has_not_ended() {
    let pod = read(
        "worker",
        &json!({ "phase": "Running", "podIP": "10.0.0.7", "containerStatuses": [running("worker")],
        "conditions": [{ "type": "Ready", "status": "True" }, { "type": "DisruptionTarget", "status": "False", "reason": "x" }] }),
    )
    .unwrap();
    assert_eq!((pod.uid.as_str(), pod.owner.as_str(), pod.role, pod.epoch), ("u", "j", PodRole::Worker(3), Some(7)));
    assert_eq!((pod.ip.as_deref(), pod.node.as_deref(), pod.running, pod.ready), (Some("10.0.0.7"), Some("node-1"), true, true));
    assert_eq!((pod.end, pod.disruption, pod.deletion), (None, None, None));
}

#[test]
fn the_main_container_decides() {
    let status = json!({ "phase": "Running", "containerStatuses": [running("sidecar"), terminated("worker", 75, "Error")] });
    assert_eq!(end(&status), Some(ended(Some(75), "Error", "words")));
    let status = json!({ "phase": "Running", "containerStatuses": [terminated("sidecar", 1, "Error"), running("worker")] });
    assert_eq!(end(&status), None);
    let status = json!({ "phase": "Failed", "containerStatuses": [terminated("coordinator", 1, "Error")] });
    assert_eq!(read("coordinator", &status).unwrap().end.unwrap().exit_code, Some(1));
}

#[test]
fn a_pod_may_end_without_its_container() {
    assert_eq!(
        end(&json!({ "phase": "Failed", "reason": "Evicted", "message": "low on memory" })),
        Some(ended(None, "Evicted", "low on memory"))
    );
    assert_eq!(end(&json!({ "phase": "Succeeded" })), Some(ended(Some(0), "", "")));
    assert_eq!(end(&json!({ "phase": "Pending" })), None);
    assert_eq!(end(&json!({})), None);
}

#[test]
fn a_code_that_nobody_saw_is_none() {
    let status = json!({ "phase": "Failed", "containerStatuses": [terminated("worker", 137, "ContainerStatusUnknown")] });
    assert_eq!(end(&status), Some(ended(None, "ContainerStatusUnknown", "words")));
}

#[test]
fn a_disruption_is_read_with_its_reason() {
    let condition = json!({ "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "message": "no node" });
    let pod = read("worker", &json!({ "phase": "Running", "conditions": [condition] })).unwrap();
    assert_eq!(pod.disruption, Some(("DeletionByTaintManager".to_owned(), "no node".to_owned())));
}

#[test]
fn a_coordinators_time_outs_are_read_from_its_own_container() {
    let env = |value: &str| json!([{ "name": "LCL_STALL_TIMEOUT", "value": value }, { "name": "LCL_FORMATION_WAIT", "value": "x" }]);
    let containers = json!([{ "name": "sidecar", "env": env("1") }, { "name": "coordinator", "env": env("90") }]);
    let pod = serde_json::from_value(json!({ "metadata": {}, "spec": { "containers": containers } })).unwrap();
    assert_eq!(Timeouts::read(&pod), Timeouts { stall: Some(90), ..Timeouts::default() });
}

#[test]
fn a_pod_that_is_being_deleted_is_known_by_the_time_it_was_given_and_not_by_the_api_servers_clock() {
    let deleted = |given: Value| {
        let pod = json!({
            "metadata": {
                "name": "job-w-3", "uid": "u", "labels": { "lcl.dev/role": "worker", "lcl.dev/worker-index": "3" },
                "ownerReferences": [{ "apiVersion": "lcl.dev/v1alpha1", "kind": "LCLTrainingJob", "name": "job", "uid": "j", "controller": true }],
                "deletionTimestamp": "2001-01-01T00:00:00Z", "deletionGracePeriodSeconds": given,
            },
            "spec": { "containers": [] },
        });
        ObservedPod::read(&serde_json::from_value(pod).unwrap()).unwrap().deletion
    };
    assert_eq!(deleted(json!(120)), Some(SignedDuration::from_secs(120)));
    assert_eq!(deleted(json!(0)), Some(SignedDuration::ZERO));
    assert_eq!(deleted(Value::Null), Some(GRACE));
}

#[test]
fn what_keeps_a_pod_from_starting_reads_the_same_while_the_reason_is_the_same() {
    let waiting = |name: &str, reason: &str, message: &str| {
        json!({ "name": name, "ready": false, "restartCount": 0, "image": "", "imageID": "",
            "state": { "waiting": { "reason": reason, "message": message } } })
    };
    let obstacle = |status: Value| read("worker", &status).unwrap().obstacle.map(|it| (it.container, it.reason, it.message));
    let expected =
        |container: Option<&str>, reason: &str, message: &str| Some((container.map(str::to_owned), reason.to_owned(), message.to_owned()));
    let pulls = [
        waiting("worker", "ErrImagePull", "registry.example/a: not found"),
        waiting("worker", "ImagePullBackOff", "Back-off pulling image \"registry.example/a\": ErrImagePull: registry.example/a: not found"),
    ];
    for pull in pulls {
        let found = obstacle(json!({ "phase": "Pending", "containerStatuses": [pull] }));
        assert_eq!(found, expected(Some("worker"), "ImagePullBackOff", "registry.example/a: not found"));
    }
    let missing = waiting("worker", "CreateContainerConfigError", "secret \"keys\" not found");
    let found = obstacle(json!({ "phase": "Pending", "containerStatuses": [running("proxy"), missing] }));
    assert_eq!(found, expected(Some("worker"), "CreateContainerConfigError", "secret \"keys\" not found"));
    let init = waiting("fetch", "CrashLoopBackOff", "back-off 20s restarting failed container");
    let status = json!({ "initContainerStatuses": [init], "containerStatuses": [waiting("worker", "PodInitializing", "")] });
    assert_eq!(obstacle(status), expected(Some("fetch"), "CrashLoopBackOff", "it ends again and again"));
    assert_eq!(obstacle(json!({ "phase": "Pending", "containerStatuses": [waiting("worker", "ContainerCreating", "")] })), None);
    assert_eq!(obstacle(json!({ "phase": "Running", "containerStatuses": [running("worker")] })), None);
}

/// The scheduler writes its condition on its own, and may do so after the pod was placed by another or at its second try.
#[test]
fn a_pod_that_has_its_node_is_not_said_to_find_none() {
    let unscheduled = json!({ "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available" });
    let pod = |node: Value| {
        let pod = json!({
            "metadata": {
                "name": "job-w-0", "uid": "u", "labels": { "lcl.dev/role": "worker", "lcl.dev/worker-index": "0" },
                "ownerReferences": [{ "apiVersion": "lcl.dev/v1alpha1", "kind": "LCLTrainingJob", "name": "job", "uid": "j", "controller": true }],
            },
            "spec": { "containers": [], "nodeName": node },
            "status": { "phase": "Pending", "conditions": [unscheduled] },
        });
        ObservedPod::read(&serde_json::from_value(pod).unwrap()).unwrap().obstacle
    };
    let expected = Obstacle { container: None, reason: "Unschedulable".to_owned(), message: "0/3 nodes are available".to_owned() };
    assert_eq!(pod(Value::Null), Some(expected));
    assert_eq!(pod(json!("node-1")), None);
}

#[test]
fn a_start_is_read_in_its_parts_and_a_clock_that_is_behind_takes_no_time() {
    let start = |role: &str, placed: &str, state: Value| {
        let pod = json!({
            "metadata": {
                "name": "job-w-3", "uid": "u", "creationTimestamp": "2026-01-01T00:00:10Z",
                "labels": { "lcl.dev/role": role, "lcl.dev/worker-index": "3" },
                "ownerReferences": [{ "apiVersion": "lcl.dev/v1alpha1", "kind": "LCLTrainingJob", "name": "job", "uid": "j", "controller": true }],
            },
            "status": {
                "conditions": [{ "type": "PodScheduled", "status": placed, "lastTransitionTime": "2026-01-01T00:00:13Z" }],
                "containerStatuses": [
                    { "name": "sidecar", "ready": true, "restartCount": 0, "image": "", "imageID": "",
                      "state": { "running": { "startedAt": "2026-01-01T00:00:14Z" } } },
                    { "name": role, "ready": true, "restartCount": 0, "image": "", "imageID": "", "state": state },
                ],
            },
        });
        ObservedPod::read(&serde_json::from_value(pod).unwrap()).unwrap().start.map(|start| (start.scheduled, start.started))
    };
    let at = |time: &str| json!({ "running": { "startedAt": time } });
    assert_eq!(start("worker", "True", at("2026-01-01T00:01:03Z")), Some((3, 50)));
    assert_eq!(start("coordinator", "True", at("2026-01-01T00:00:14Z")), Some((3, 1)));
    let ended = json!({ "terminated": { "exitCode": 1, "startedAt": "2026-01-01T00:01:03Z", "finishedAt": "2026-01-01T00:02:03Z" } });
    assert_eq!(start("worker", "True", ended), Some((3, 50)), "how it started is known after its end, too");
    assert_eq!(start("worker", "True", at("2025-12-31T23:57:00Z")), Some((3, 0)), "its node's clock is behind");
    assert_eq!(start("worker", "False", at("2026-01-01T00:01:03Z")), None);
    assert_eq!(start("worker", "True", json!({ "waiting": { "reason": "ContainerCreating" } })), None);
    assert_eq!(start("worker", "True", json!({ "running": {} })), None);
}

#[test]
fn the_time_of_a_pull_is_read_from_what_kubelets_say_of_it() {
    let pulled = |times: &str| read_image_pull(&format!("Successfully pulled image \"registry.example/trainer:1\" in {times}"));
    assert_eq!(pulled("12.345s (1m2.6s including waiting). Image size: 5368709120 bytes."), Some(63), "with the wait for other pulls");
    assert_eq!(pulled("532ms (532ms including waiting)"), Some(1));
    assert_eq!(pulled("1h0m3.2s (1h0m3.2s including waiting)"), Some(3603));
    assert_eq!(pulled("734.5µs (734.5µs including waiting)"), Some(0));
    assert_eq!(pulled("2.9s"), Some(3));
    assert_eq!(pulled("no time (at all including waiting)"), None);
    for present in ["already present on machine", "already present on machine and can be accessed by the pod"] {
        assert_eq!(read_image_pull(&format!("Container image \"trainer:1\" {present}")), Some(0));
    }
    for other in ["", "Pulling image \"trainer:1\"", "Successfully pulled image", "Successfully pulled image \"a\" in "] {
        assert_eq!(read_image_pull(other), None, "{other}");
    }
}

#[test]
fn places_in_a_history_are_read_as_they_are_written_and_a_later_coordinators_are_later() {
    let place = |epoch, entry| HistoryPlace { epoch, entry };
    for known in [place(0, 0), place(3, 57), place(1, u64::MAX)] {
        assert_eq!(known.to_string().parse(), Ok(known));
    }
    for text in ["", "3", "3.", ".7", "a.b", "-1.2", "1.2.3"] {
        assert_eq!(text.parse::<HistoryPlace>(), Err(InvalidPlace), "{text}");
    }
    assert!(place(1, u64::MAX) < place(2, 1) && place(1, 7) < place(1, 8));
}
