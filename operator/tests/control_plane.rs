//! The operator against a real API server without nodes: what it makes of a job, what it leaves alone, and what survives its own death.

mod support;

#[path = "control_plane/coordinator.rs"]
mod coordinator;
#[path = "control_plane/election.rs"]
mod election;
#[path = "control_plane/gone.rs"]
mod gone;
#[path = "control_plane/ipv6.rs"]
mod ipv6;
#[path = "../core/tests/support/jobs.rs"]
mod jobs;
#[path = "support/member.rs"]
mod member;
#[path = "control_plane/obstacles.rs"]
mod obstacles;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "control_plane/restored.rs"]
mod restored;
#[path = "control_plane/roles.rs"]
mod roles;

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, ensure};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use lcl_cluster::ClusterOptions;
use serde_json::{Value, json};

use jobs::{assign, minimal_job};
use support::{Installed, JOBS, condition, name_of, objects, project, wait_for};

fn install() -> Result<Installed> {
    Installed::start(&ClusterOptions::default(), &[])
}

fn job(name: &str, assignments: &str) -> Value {
    let mut job = minimal_job();
    job["metadata"]["name"] = json!(name);
    assign(&mut job, assignments);
    job
}

fn uids(pods: &[Value]) -> BTreeMap<String, String> {
    pods.iter().map(|pod| (name_of(pod), pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned())).collect()
}

fn wait_for_pods(installed: &Installed, job: &str, count: usize) -> Result<Vec<Value>> {
    wait_for(&format!("{count} pods of {job}"), || {
        let pods = installed.pods(job)?;
        ensure!(pods.len() == count, "{} pods", pods.len());
        Ok(pods)
    })
}

/// Says of a pod what a node would say.
fn set_pod_status(installed: &Installed, pod: &str, status: &Value) -> Result<()> {
    let patch = json!({ "status": status }).to_string();
    installed.kubectl(&["patch", "pod", pod, "--subresource=status", "--type=merge", "-p", &patch])?;
    Ok(())
}

fn terminated(container: &str, code: i32, message: &str) -> Value {
    json!({
        "phase": "Failed",
        "containerStatuses": [{
            "name": container, "image": "trainer", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "terminated": { "exitCode": code, "reason": "Error", "message": message } },
        }],
    })
}

#[test]
fn a_job_becomes_its_objects_and_takes_them_along_when_it_goes() -> Result<()> {
    let installed = install()?;
    let operator = installed.start_operator(&["--allow=HostPath", "--network-policies"])?;
    let manifest = fs::read_to_string(project().join("examples/emoji.yaml"))?;
    let mut example: Value = serde_saphyr::from_str(&manifest)?;
    example["spec"]["serviceAccount"] = json!({ "annotations": { "cloud.example.com/role": "trainer" } });
    installed.apply(&example)?;
    let pods = wait_for_pods(&installed, "emoji", 3)?;
    let job = installed.get(&["lcltrainingjob", "emoji"])?;
    let owner = json!([{
        "apiVersion": "lcl.dev/v1alpha1", "kind": "LCLTrainingJob", "name": "emoji", "uid": job["metadata"]["uid"],
        "controller": true, "blockOwnerDeletion": true,
    }]);
    let service = installed.get(&["service", "emoji-coordinator"])?;
    let config = installed.get(&["configmap", "emoji-config-1"])?;
    let account = installed.get(&["serviceaccount", "emoji"])?;
    let budget = installed.get(&["poddisruptionbudget", "emoji-workers"])?;
    let policies = ["emoji-coordinator", "emoji-workers"].map(|name| installed.get(&["networkpolicy", name]));
    let policies: Vec<_> = policies.into_iter().collect::<Result<_>>()?;
    for object in pods.iter().chain([&service, &config, &account, &budget]).chain(&policies) {
        assert_eq!(object["metadata"]["ownerReferences"], owner, "{}", name_of(object));
    }
    assert_eq!(account["automountServiceAccountToken"], false);
    assert_eq!(account["metadata"]["annotations"]["cloud.example.com/role"], "trainer");
    assert_eq!(budget["spec"]["minAvailable"], 1, "{budget}");
    assert!(config["data"]["trainer-config.json"].is_string() && config["immutable"] == true, "{config}");
    assert_eq!(pods.iter().map(name_of).collect::<Vec<_>>(), ["emoji-coordinator", "emoji-w-0", "emoji-w-1"]);
    let environment = |pod: &Value, name: &str| {
        let variables = pod["spec"]["containers"][0]["env"].as_array().cloned().unwrap_or_default();
        variables.into_iter().find(|variable| variable["name"] == name).map_or(Value::Null, |variable| variable["value"].clone())
    };
    let ip = service["spec"]["clusterIP"].as_str().context("no cluster IP")?;
    assert_eq!(environment(&pods[1], "LCL_COORDINATOR"), format!("{ip}:7433"));
    assert_eq!(environment(&pods[2], "LCL_WORKER"), "emoji-w-1");
    assert_eq!(environment(&pods[0], "LCL_EPOCH"), "1");
    let status = wait_for("a status", || {
        let status = installed.status("emoji")?;
        ensure!(status["workers"]["created"] == 2, "{status}");
        Ok(status)
    })?;
    assert_eq!(status["coordinatorEpoch"], 1);
    assert_eq!(status["observedGeneration"], job["metadata"]["generation"]);
    assert_eq!(condition(&status, "Running")["reason"], "WaitingForWorkers");
    assert_eq!(
        operator.metric("controller_runtime_reconcile_errors_total{controller=\"lcltrainingjob\"}").ok(),
        None,
        "no reconcile failed"
    );

    // A role that is taken back is taken away, and a job at its smallest holds no drain up.
    let patch = r#"{"spec":{"serviceAccount":null,"workers":{"replicas":1}}}"#;
    installed.kubectl(&["patch", "lcltrainingjob", "emoji", "--type=merge", "-p", patch])?;
    wait_for("an account and a budget that follow the job", || {
        let account = installed.get(&["serviceaccount", "emoji"])?;
        ensure!(account["metadata"]["annotations"]["cloud.example.com/role"].is_null(), "{account}");
        let budget = installed.get(&["poddisruptionbudget", "emoji-workers"])?;
        ensure!(budget["spec"]["minAvailable"] == 0, "{budget}");
        Ok(())
    })?;

    // Started again, and told to allow less: what runs goes on, no pod is made anew, and policies that are not wanted go.
    operator.terminate()?;
    let operator = installed.start_operator(&[])?;
    installed.kubectl(&["delete", "pod", "emoji-w-0", "--force", "--grace-period=0"])?;
    wait_for("a status that says what is not allowed", || {
        let status = installed.status("emoji")?;
        let stalled = condition(&status, "Stalled");
        let message = stalled["message"].as_str().unwrap_or_default();
        ensure!(message.contains("volumes[0].hostPath") && message.contains("security.allowHostPath"), "{stalled}");
        Ok(())
    })?;
    for name in ["emoji-coordinator", "emoji-workers"] {
        wait_for("policies that are gone", || {
            ensure!(installed.get(&["networkpolicy", name]).is_err(), "{name} is still there");
            Ok(())
        })?;
    }
    let failed = || operator.metric("controller_runtime_reconcile_errors_total{controller=\"lcltrainingjob\"}").unwrap_or(0.0);
    for turn in 0..3 {
        let before = failed();
        installed.kubectl(&["annotate", "--overwrite", "lcltrainingjob", "emoji", &format!("turn={turn}")])?;
        wait_for("a reconcile that fails", || {
            ensure!(failed() > before, "not yet");
            Ok(())
        })?;
    }
    let pods = installed.pods("emoji")?;
    assert_eq!(pods.iter().map(name_of).collect::<Vec<_>>(), ["emoji-coordinator"]);

    installed.kubectl(&["delete", "lcltrainingjob", "emoji"])?;
    wait_for("an empty namespace", || {
        let core = ["pods", "services", "configmaps", "serviceaccounts"].map(objects);
        let networking = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies".to_owned();
        let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets".to_owned();
        for kind in core.into_iter().chain([networking, budgets]) {
            let left = installed.look(&format!("{kind}?labelSelector=lcl.dev/job-name=emoji"))?;
            ensure!(left["items"].as_array().is_some_and(Vec::is_empty), "{left}");
        }
        Ok(())
    })?;
    operator.terminate()
}

/// The label by which the operator watches objects.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

fn child_path(kind: &str, name: &str) -> String {
    let group = match kind {
        "poddisruptionbudgets" => "policy",
        "networkpolicies" => "networking.k8s.io",
        _ => return objects(&format!("{kind}/{name}")),
    };
    format!("/apis/{group}/v1/namespaces/default/{kind}/{name}")
}

#[test]
fn a_settled_job_causes_no_writes_and_what_others_change_is_put_right() -> Result<()> {
    let installed = install()?;
    let operator = installed.start_operator(&["--network-policies"])?;
    installed.apply(&job("still", "spec.workers = {'replicas': 3}"))?;
    wait_for_pods(&installed, "still", 4)?;
    // The scheduler has said of every pod that there is no node.
    wait_for("a status", || {
        let status = installed.status("still")?;
        let ready = condition(&status, "PodsReady")["message"].as_str().unwrap_or_default().to_owned();
        ensure!(status["workers"]["created"] == 3 && ready.contains("and 3 more pods"), "{status}");
        Ok(())
    })?;
    wait_for("the scheduler's word on all pods", || {
        let status = installed.status("still")?;
        let reconciling = condition(&status, "Reconciling")["message"].as_str().unwrap_or_default().to_owned();
        ensure!(reconciling.ends_with("(and 3 more pods)"), "{reconciling}");
        Ok(())
    })?;
    // Ended first, so that nothing of the beginning is still on its way.
    operator.terminate()?;
    let before = installed.operators_writes()?;
    ensure!(before.iter().any(|write| write.starts_with("create pods")), "the operator's writes are not among these: {before:?}");
    // Looks that find nothing to do: an operator that starts looks at every job, and an annotation is a change that nothing follows from.
    let operator = installed.start_operator(&["--network-policies"])?;
    operator.wait_for_reconciles_beyond(0.0)?;
    for team in ["vision", "language", "none"] {
        let looks = operator.reconciles();
        installed.kubectl(&["annotate", "--overwrite", "lcltrainingjob", "still", &format!("team={team}")])?;
        operator.wait_for_reconciles_beyond(looks)?;
    }
    assert_eq!(installed.operators_writes()?[before.len()..], [""; 0]);

    // Made anew, with the address that the workers know and the configuration that they have.
    let pods = uids(&installed.pods("still")?);
    for (kind, name, part) in [
        ("services", "still-coordinator", "/spec/clusterIP"),
        ("configmaps", "still-config-1", "/data"),
        ("serviceaccounts", "still", "/metadata/name"),
        ("poddisruptionbudgets", "still-workers", "/spec"),
        ("networkpolicies", "still-coordinator", "/spec"),
        ("networkpolicies", "still-workers", "/spec"),
    ] {
        let path = child_path(kind, name);
        let before = installed.look(&path)?;
        installed.kubectl(&["delete", kind, name])?;
        let after = wait_for(name, || installed.look(&path))?;
        assert_ne!(after["metadata"]["uid"], before["metadata"]["uid"]);
        assert_eq!(after.pointer(part), before.pointer(part), "{name}");
    }
    // What somebody edits is as it was; a ConfigMap that cannot be changed can be hidden.
    for (kind, name, patch, part) in [
        ("services", "still-coordinator", json!({ "spec": { "selector": { "lcl.dev/role": "nobody" } } }), "/spec/selector/lcl.dev~1role"),
        ("serviceaccounts", "still", json!({ "automountServiceAccountToken": true }), "/automountServiceAccountToken"),
        ("poddisruptionbudgets", "still-workers", json!({ "spec": { "minAvailable": 0 } }), "/spec/minAvailable"),
        ("networkpolicies", "still-coordinator", json!({ "spec": { "ingress": [{}] } }), "/spec/ingress"),
        ("networkpolicies", "still-workers", json!({ "spec": { "podSelector": { "matchLabels": { "a": "b" } } } }), "/spec/podSelector"),
        ("configmaps", "still-config-1", json!({ "metadata": { "labels": { MANAGED_BY: null } } }), "/metadata/labels"),
    ] {
        let path = child_path(kind, name);
        let before = installed.look(&path)?;
        let edited = installed.send("PATCH", &path, &patch)?;
        assert_ne!(edited.pointer(part), before.pointer(part), "{name}");
        wait_for(&format!("{kind} {name} as it was"), || {
            let now = installed.look(&path)?;
            ensure!(now.pointer(part) == before.pointer(part), "{now}");
            Ok(())
        })?;
    }
    assert_eq!(uids(&installed.pods("still")?), pods, "no pod was touched");

    // Certificates are never read, so nobody tells that they are gone; but no pod is created without.
    let secrets = || -> Result<Vec<String>> {
        let found = installed.look(&objects("secrets?labelSelector=lcl.dev/job-name=still"))?;
        Ok(found["items"].as_array().into_iter().flatten().map(name_of).collect())
    };
    let before = secrets()?;
    ensure!(before.len() == 1, "{before:?}");
    // The second time they were written a moment ago.
    for _ in 0..2 {
        let pods = uids(&installed.pods("still")?);
        installed.kubectl(&["delete", "secret", &before[0]])?;
        installed.kubectl(&["delete", "pod", "still-w-1", "--force", "--grace-period=0"])?;
        wait_for("the replacement", || {
            let now = uids(&installed.pods("still")?);
            ensure!(now.len() == pods.len() && now["still-w-1"] != pods["still-w-1"], "{now:?}");
            Ok(())
        })?;
        assert_eq!(secrets()?, before);
    }
    operator.terminate()
}

#[test]
fn an_operator_killed_while_it_creates_leaves_nothing_doubled() -> Result<()> {
    const WORKERS: usize = 40;
    let installed = install()?;
    // Slow enough to be interrupted in the middle.
    let operator = installed.start_operator(&["--kube-api-qps=10", "--kube-api-burst=10"])?;
    installed.apply(&job("large", &format!("spec.workers = {{'replicas': {WORKERS}}}; spec.optimization.globalBatchSize = 64")))?;
    wait_for("some pods", || {
        ensure!(installed.pods("large")?.len() >= 5, "not yet");
        Ok(())
    })?;
    operator.kill()?;
    let before = uids(&installed.pods("large")?);
    ensure!(before.len() <= WORKERS, "all {} pods were there before the operator was killed: nothing is shown", before.len());
    let operator = installed.start_operator(&[])?;
    let after = uids(&wait_for_pods(&installed, "large", WORKERS + 1)?);
    for (name, uid) in &before {
        assert_eq!(after.get(name), Some(uid), "{name} was made anew");
    }
    let status = wait_for("a settled status", || {
        let status = installed.status("large")?;
        ensure!(status["workers"]["created"] == WORKERS, "{status}");
        Ok(status)
    })?;
    assert_eq!(status["restarts"]["total"], 0, "{status}");
    let coordinator = installed.get(&["pod", "large-coordinator"])?;
    let epoch = coordinator["metadata"]["annotations"]["lcl.dev/coordinator-epoch"].as_str().unwrap_or_default().parse::<i64>()?;
    ensure!(status["coordinatorEpoch"].as_i64() >= Some(epoch), "the pod's epoch {epoch} is not in {status}");
    operator.terminate()
}

#[test]
fn pods_that_end_are_replaced_with_the_reason_on_record() -> Result<()> {
    let installed = install()?;
    let operator = installed.start_operator(&[])?;
    installed.apply(&job("replaced", "spec.workers = {'replicas': 2}"))?;
    let before = uids(&wait_for_pods(&installed, "replaced", 3)?);
    wait_for("a status", || {
        ensure!(installed.status("replaced")?["workers"]["created"] == 2, "not yet");
        Ok(())
    })?;
    installed.kubectl(&["delete", "pod", "replaced-w-1", "--force", "--grace-period=0"])?;
    let replaced = |name: &str, times: i64| {
        wait_for("a replacement", || {
            let after = uids(&installed.pods("replaced")?);
            ensure!(after.len() == 3 && after.get(name) != before.get(name), "{after:?}");
            let status = installed.status("replaced")?;
            ensure!(status["restarts"]["total"] == times && status["replacing"].is_null(), "{status}");
            Ok((after, status))
        })
    };
    let (after, status) = replaced("replaced-w-1", 1)?;
    assert_eq!(after["replaced-w-0"], before["replaced-w-0"]);
    assert_eq!(after["replaced-coordinator"], before["replaced-coordinator"]);
    assert_eq!(status["restarts"], json!({ "total": 1, "application": 0, "infrastructure": 0, "preemption": 0, "deletion": 1 }));
    assert_eq!(status["lastFailure"]["pod"], "replaced-w-1");

    set_pod_status(&installed, "replaced-w-0", &terminated("worker", 75, "the data could not be read"))?;
    let (_, status) = replaced("replaced-w-0", 2)?;
    assert_eq!(status["lastFailure"]["exitCode"], 75);
    assert!(status["lastFailure"]["message"].as_str().is_some_and(|text| text.contains("the data could not be read")), "{status}");

    installed.kubectl(&["delete", "pod", "replaced-coordinator", "--force", "--grace-period=0"])?;
    replaced("replaced-coordinator", 3)?;
    let coordinator = installed.get(&["pod", "replaced-coordinator"])?;
    assert_eq!(coordinator["metadata"]["annotations"]["lcl.dev/coordinator-epoch"], "2", "a new coordinator has a higher epoch");
    wait_for("Events", || {
        let reasons = installed.event_reasons("replaced")?;
        ensure!(
            ["WorkerReplaced", "CoordinatorReplaced"].iter().all(|wanted| reasons.iter().any(|reason| reason == wanted)),
            "{reasons:?}"
        );
        Ok(())
    })?;

    // A permanent failure ends the job, for good. An Event takes fewer bytes than these words.
    let words = format!("/data/a.tar: not a tar file: {}", "資料".repeat(400));
    set_pod_status(&installed, "replaced-w-0", &terminated("worker", 65, &words))?;
    let status = wait_for("the end", || {
        let status = installed.status("replaced")?;
        ensure!(condition(&status, "Failed")["status"] == "True", "{status}");
        Ok(status)
    })?;
    assert_eq!(condition(&status, "Failed")["reason"], "PermanentFailure");
    assert!(condition(&status, "Failed")["message"].as_str().is_some_and(|text| text.contains("/data/a.tar: not a tar file")), "{status}");
    wait_for("the Event", || {
        let events = installed.look("/apis/events.k8s.io/v1/namespaces/default/events")?;
        let notes: Vec<&str> = events["items"].as_array().into_iter().flatten().filter_map(|event| event["note"].as_str()).collect();
        ensure!(notes.iter().any(|note| note.contains("not a tar file: 資料") && note.ends_with('…')), "{notes:?}");
        Ok(())
    })?;
    let left = wait_for_pods(&installed, "replaced", 1)?;
    assert_eq!(name_of(&left[0]), "replaced-w-0", "the failed pod stays for its log");
    operator.terminate()?;
    let operator = installed.start_operator(&[])?;
    operator.wait_for_reconciles_beyond(0.0)?;
    assert_eq!(installed.pods("replaced")?.len(), 1, "what has failed is not started again");

    // What somebody else runs is left alone, and what is over goes when it says so.
    installed.apply(&job("others", "spec.managedBy = 'example.com/another'"))?;
    installed.kubectl(&["patch", "lcltrainingjob", "replaced", "--type=merge", "-p", r#"{"spec":{"ttlSecondsAfterFinished":0}}"#])?;
    wait_for("the job to go", || {
        let left = installed.look(JOBS)?;
        let names: Vec<_> = left["items"].as_array().into_iter().flatten().map(name_of).collect();
        ensure!(names == ["others"], "{names:?}");
        Ok(())
    })?;
    wait_for_pods(&installed, "replaced", 0)?;
    assert_eq!(installed.status("others")?, Value::Null);
    assert_eq!(installed.operators_writes()?.iter().filter(|write| write.contains("others")).count(), 0);
    operator.terminate()
}

#[test]
fn scaling_touches_no_pod_that_stays() -> Result<()> {
    let installed = install()?;
    let operator = installed.start_operator(&[])?;
    installed.apply(&job("scaled", "spec.workers = {'replicas': 2}; spec.elastic = {'minWorkers': 1, 'maxWorkers': 4}"))?;
    let two = uids(&wait_for_pods(&installed, "scaled", 3)?);
    installed.kubectl(&["scale", "lcltrainingjob", "scaled", "--replicas=4"])?;
    let four = uids(&wait_for_pods(&installed, "scaled", 5)?);
    installed.kubectl(&["scale", "lcltrainingjob", "scaled", "--replicas=2"])?;
    let again = uids(&wait_for_pods(&installed, "scaled", 3)?);
    assert_eq!(again, two);
    assert!(two.iter().all(|(name, uid)| four.get(name) == Some(uid)), "{two:?} {four:?}");
    let status = installed.status("scaled")?;
    assert_eq!(status["restarts"]["total"], 0, "scaling is no failure: {status}");
    let refused = installed.kubectl(&["scale", "lcltrainingjob", "scaled", "--replicas=5"]).expect_err("more than maxWorkers");
    assert!(format!("{refused:#}").contains("maxWorkers"), "{refused:#}");
    tells_what_a_slow_start_has_waited_for(&installed)?;
    operator.terminate()
}

/// One of two workers gets a node and starts; the other one finds none.
fn tells_what_a_slow_start_has_waited_for(installed: &Installed) -> Result<()> {
    installed.apply(&json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-a" } }))?;
    obstacles::bind(installed, "scaled-w-0", "node-a")?;
    let pod = installed.look(&objects("pods/scaled-w-0"))?;
    let scheduled: Timestamp = condition(&pod["status"], "PodScheduled")["lastTransitionTime"].as_str().context("not placed")?.parse()?;
    let created: Timestamp = pod["metadata"]["creationTimestamp"].as_str().context("not created")?.parse()?;
    let now = Timestamp::now().to_string();
    let event = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": { "name": "scaled-w-0.pulled" }, "reason": "Pulled", "type": "Normal",
        "message": "Successfully pulled image \"trainer\" in 30.1s (42.3s including waiting). Image size: 5368709120 bytes.",
        "involvedObject": {
            "apiVersion": "v1", "kind": "Pod", "name": "scaled-w-0", "namespace": "default", "uid": pod["metadata"]["uid"],
            "fieldPath": "spec.containers{worker}",
        },
        "firstTimestamp": now, "lastTimestamp": now, "count": 1,
    });
    installed.send("POST", &objects("events"), &event)?;
    let started = (scheduled + SignedDuration::from_secs(65)).to_string();
    let container = json!({
        "name": "worker", "image": "trainer", "imageID": "", "ready": true, "restartCount": 0, "state": { "running": { "startedAt": started } },
    });
    set_pod_status(installed, "scaled-w-0", &json!({ "phase": "Running", "containerStatuses": [container] }))?;
    let expected = json!({
        "pod": "scaled-w-0", "uid": pod["metadata"]["uid"], "scheduledSeconds": scheduled.duration_since(created).as_secs(),
        "startSeconds": 65, "imagePullSeconds": 42,
    });
    wait_for("the times of the start", || {
        let startup = &installed.status("scaled")?["startup"];
        ensure!(*startup == expected, "{startup} in place of {expected}");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn a_group_keeps_what_it_was_started_with_until_a_change_of_the_job_starts_it_again() -> Result<()> {
    let installed = install()?;
    let operator = installed.start_operator(&[])?;
    installed.apply(&job("kept", "spec.workers = {'replicas': 2}"))?;
    wait_for_pods(&installed, "kept", 3)?;
    wait_for("a status", || {
        ensure!(installed.status("kept")?["workers"]["created"] == 2, "not yet");
        Ok(())
    })?;
    operator.terminate()?;
    // Another release.
    let operator = installed.start_operator(&["--coordinator-image=coordinator:2", "--trainer-image=trainer:2"])?;
    let before = uids(&installed.pods("kept")?);
    installed.kubectl(&["delete", "pod", "kept-w-1", "--force", "--grace-period=0"])?;
    let pods = wait_for("the replacement", || {
        let pods = installed.pods("kept")?;
        ensure!(pods.len() == 3 && uids(&pods)["kept-w-1"] != before["kept-w-1"], "not yet");
        Ok(pods)
    })?;
    let image_and_config = |pod: &Value| {
        let volumes = pod["spec"]["volumes"].as_array().cloned().unwrap_or_default();
        let config = volumes.iter().find(|volume| volume["name"] == "lcl-config").map(|volume| volume["configMap"]["name"].clone());
        (pod["spec"]["containers"][0]["image"].clone(), config.unwrap_or_default())
    };
    assert_eq!(pods.iter().map(|pod| image_and_config(pod).0).collect::<Vec<_>>(), ["coordinator", "trainer", "trainer"]);
    assert_eq!(uids(&pods)["kept-coordinator"], before["kept-coordinator"]);

    installed.kubectl(&["patch", "lcltrainingjob", "kept", "--type=merge", "-p", r#"{"spec":{"optimization":{"steps":50}}}"#])?;
    let pods = wait_for("the next group", || {
        let pods = installed.pods("kept")?;
        let all_new = pods.iter().all(|pod| image_and_config(pod).0.as_str().is_some_and(|image| image.ends_with(":2")));
        ensure!(pods.len() == 3 && all_new, "not yet");
        Ok(pods)
    })?;
    for worker in &pods[1..] {
        assert_eq!(image_and_config(worker), (json!("trainer:2"), json!("kept-config-2")));
    }
    let status = wait_for("a status", || {
        let status = installed.status("kept")?;
        ensure!(status["state"] == "Pending" && status["workers"]["created"] == 2, "{status}");
        Ok(status)
    })?;
    assert_eq!((&status["restarts"]["total"], &status["pinned"]["config"]), (&json!(1), &json!("kept-config-2")), "the deleted pod alone");
    assert!(installed.event_reasons("kept")?.iter().any(|reason| reason == "SpecChanged"));
    wait_for("one configuration", || {
        let left = installed.look(&objects("configmaps?labelSelector=lcl.dev/job-name=kept"))?;
        let names: Vec<_> = left["items"].as_array().into_iter().flatten().map(name_of).collect();
        ensure!(names == ["kept-config-2"], "{names:?}");
        Ok(())
    })?;
    operator.terminate()
}

#[test]
fn a_suspended_job_has_no_objects_until_it_may_start_and_none_of_its_pods_is_a_failure_when_it_must_stop() -> Result<()> {
    let installed = install()?;
    let operator = installed.start_operator(&[])?;
    installed.apply(&job("queued", "spec.suspend = true; spec.workers = {'replicas': 2}"))?;
    let wait_for_state = |state: &str| {
        wait_for(state, || {
            let status = installed.status("queued")?;
            ensure!(status["state"] == state, "{status}");
            Ok(status)
        })
    };
    let status = wait_for_state("Suspended")?;
    assert_eq!((&condition(&status, "Suspended")["status"], &status["startTime"]), (&json!("True"), &Value::Null));
    let writes = installed.operators_writes()?;
    assert!(!writes.iter().any(|write| write.contains("queued-") || write.starts_with("create pods")), "{writes:?}");
    let suspend = |suspend: bool| {
        let patch = json!({ "spec": { "suspend": suspend } }).to_string();
        installed.kubectl(&["patch", "lcltrainingjob", "queued", "--type=merge", "-p", &patch])
    };
    for epoch in 1..=2 {
        suspend(false)?;
        wait_for_pods(&installed, "queued", 3)?;
        let status = wait_for_state("Pending")?;
        assert_eq!(
            (&status["coordinatorEpoch"], &condition(&status, "Suspended")["reason"]),
            (&json!(epoch), &json!("Resumed")),
            "{status}"
        );
        suspend(true)?;
        wait_for_pods(&installed, "queued", 0)?;
        let status = wait_for_state("Suspended")?;
        assert_eq!((&status["restarts"]["total"], &status["failures"]), (&json!(0), &Value::Null), "{status}");
    }
    let reasons = installed.event_reasons("queued")?;
    assert!(["Suspended", "Resumed"].iter().all(|wanted| reasons.iter().any(|reason| reason == wanted)), "{reasons:?}");
    operator.terminate()
}

#[test]
fn two_jobs_that_are_not_over_never_write_one_folder() -> Result<()> {
    let installed = install()?;
    let operator = installed.start_operator(&[])?;
    installed.kubectl(&["create", "namespace", "other"])?;
    installed.apply(&job("first", "spec.checkpoint.uri = 's3://runs/a'"))?;
    wait_for_pods(&installed, "first", 2)?;
    let mut second = job("second", "spec.checkpoint.uri = 's3://RUNS/a/'");
    second["metadata"]["namespace"] = json!("other");
    installed.apply(&second)?;
    let second = || installed.look("/apis/lcl.dev/v1alpha1/namespaces/other/lcltrainingjobs/second");
    let pods = || -> Result<usize> {
        let pods = installed.look("/api/v1/namespaces/other/pods")?;
        Ok(pods["items"].as_array().map_or(0, Vec::len))
    };
    wait_for("the refusal", || {
        let status = &second()?["status"];
        let stalled = condition(status, "Stalled");
        ensure!(stalled["reason"] == "CheckpointFolderTaken", "{status}");
        ensure!(stalled["message"].as_str().is_some_and(|text| text.contains("job first of namespace default")), "{status}");
        Ok(())
    })?;
    assert_eq!(pods()?, 0);
    installed.kubectl(&["delete", "lcltrainingjob", "first"])?;
    wait_for("the second job's pods", || {
        ensure!(pods()? == 2, "{} pods", pods()?);
        let status = &second()?["status"];
        ensure!(condition(status, "Stalled").is_null(), "{status}");
        Ok(())
    })?;
    operator.terminate()
}

#[test]
fn what_stands_in_the_way_is_told_and_solved_without_help() -> Result<()> {
    let installed = install()?;
    let operator = installed.start_operator(&[])?;
    let quota = |pods: u32| json!({ "apiVersion": "v1", "kind": "ResourceQuota", "metadata": { "name": "pods" }, "spec": { "hard": { "pods": pods.to_string() } } });
    installed.apply(&quota(1))?;
    installed
        .apply(&json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "taken-config-1" }, "data": { "mine": "yes" } }))?;
    installed.apply(&job("poor", "spec.workers = {'replicas': 2}"))?;
    installed.apply(&job("taken", ""))?;
    let stalled = |job: &str, words: &str| {
        wait_for("the reason", || {
            let status = installed.status(job)?;
            let stalled = condition(&status, "Stalled");
            ensure!(stalled["status"] == "True" && stalled["message"].as_str().is_some_and(|text| text.contains(words)), "{status}");
            Ok(())
        })
    };
    stalled("poor", "exceeded quota")?;
    stalled("taken", "ConfigMap taken-config-1 exists and does not belong to the job")?;
    assert_eq!(installed.get(&["configmap", "taken-config-1"])?["data"], json!({ "mine": "yes" }));
    // Whatever wakes the job meanwhile: a refused creation is tried again at the pace of its pauses, and the reason stands there all the time.
    let writes = || -> Result<usize> { Ok(installed.operators_writes()?.iter().filter(|write| write.contains("poor")).count()) };
    let before = writes()?;
    for turn in 0..20 {
        let looks = operator.reconciles();
        installed.kubectl(&["annotate", "--overwrite", "lcltrainingjob", "poor", &format!("turn={turn}")])?;
        operator.wait_for_reconciles_beyond(looks)?;
        assert_eq!(condition(&installed.status("poor")?, "Stalled")["status"], "True");
    }
    let more = writes()? - before;
    assert!(more <= 8, "{more} writes in 20 looks");
    let message = condition(&installed.status("poor")?, "Stalled")["message"].as_str().unwrap_or_default().to_owned();
    assert!(message.starts_with("creating pod poor-") && !message.contains("Status {"), "{message}");
    let told = installed.event_reasons("poor")?.iter().filter(|reason| *reason == "CreateFailed").count();
    assert_eq!(told, 1, "one Event");
    installed.apply(&quota(20))?;
    installed.kubectl(&["delete", "configmap", "taken-config-1"])?;
    wait_for_pods(&installed, "poor", 3)?;
    wait_for_pods(&installed, "taken", 2)?;
    for job in ["poor", "taken"] {
        wait_for("nothing in the way", || {
            let status = installed.status(job)?;
            ensure!(condition(&status, "Stalled").is_null(), "{status}");
            assert_eq!(status["coordinatorEpoch"], 1, "no epoch was used up: {status}");
            Ok(())
        })?;
    }
    operator.terminate()
}
