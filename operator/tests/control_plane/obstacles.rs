//! What keeps a worker from starting on its node: a volume that the kubelet tells of in Events alone, and a node that fails the self-test.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{
    install, job, set_pod_status,
    support::{Installed, condition, objects, wait_for},
    terminated, uids, wait_for_pods,
};

/// Places a pod on a node, as the scheduler does.
pub(super) fn bind(installed: &Installed, pod: &str, node: &str) -> Result<()> {
    let binding = json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": pod }, "target": { "kind": "Node", "name": node } });
    installed.send("POST", &objects(&format!("pods/{pod}/binding")), &binding).map(drop)
}

/// A warning about a pod, as the kubelet writes it.
pub(super) fn warn(installed: &Installed, pod: &str, uid: &str, reason: &str, message: &str, minute: u32) -> Result<()> {
    let time = format!("2026-01-01T00:{minute:02}:00Z");
    let event = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": { "name": format!("{pod}.{minute}"), "namespace": "default" },
        "involvedObject": { "apiVersion": "v1", "kind": "Pod", "name": pod, "namespace": "default", "uid": uid },
        "type": "Warning", "reason": reason, "message": message, "firstTimestamp": time, "lastTimestamp": time, "count": 1,
        "source": { "component": "kubelet" },
    });
    installed.send("POST", &objects("events"), &event).map(drop)
}

/// The cluster has the feature `GenericWorkload` switched on; where it is off, as it is by default, the API server drops the field of pods.
#[test]
fn the_scheduling_group_of_a_template_arrives_at_its_workers() -> Result<()> {
    let installed = install()?;
    let operator = installed.start_operator(&[])?;
    let template = "{'spec': {'schedulingGroup': {'podGroupName': 'group-a'}, 'containers': [{'name': 'worker'}]}}";
    installed.apply(&job("grouped", &format!("spec.workers = {{'template': {template}}}")))?;
    wait_for_pods(&installed, "grouped", 2)?;
    let group = |pod: &str| -> Result<Value> { Ok(installed.look(&objects(&format!("pods/{pod}")))?["spec"]["schedulingGroup"].take()) };
    assert_eq!(group("grouped-w-0")?, json!({ "podGroupName": "group-a" }));
    assert_eq!(group("grouped-coordinator")?, Value::Null);
    // A replacement has it too, from what the operator keeps of the job.
    let before = uids(&installed.pods("grouped")?);
    installed.kubectl(&["delete", "pod", "grouped-w-0", "--force", "--grace-period=0"])?;
    wait_for("a replacement", || {
        let now = uids(&installed.pods("grouped")?);
        ensure!(now.get("grouped-w-0").is_some_and(|uid| *uid != before["grouped-w-0"]), "{now:?}");
        Ok(())
    })?;
    assert_eq!(group("grouped-w-0")?, json!({ "podGroupName": "group-a" }));
    operator.terminate()
}

#[test]
fn a_missing_volume_is_named_and_an_unfit_node_gets_no_further_worker() -> Result<()> {
    let installed = install()?;
    let operator = installed.start_operator(&[])?;
    // Pods of a node that is not there are removed within a minute.
    for node in ["node-a", "node-b", "node-c"] {
        installed.apply(&json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": node } }))?;
    }
    installed.apply(&job("mounts", ""))?;
    installed.apply(&job("unfit", "spec.failurePolicy = {'maxExcludedNodes': 1}"))?;
    let pods = uids(&wait_for_pods(&installed, "mounts", 2)?);
    let missing = "MountVolume.SetUp failed for volume \"token\" : secret \"token\" not found";
    for pod in ["mounts-coordinator", "mounts-w-0"] {
        bind(&installed, pod, "node-a")?;
    }
    set_pod_status(&installed, "mounts-coordinator", &json!({ "phase": "Running" }))?;
    warn(&installed, "mounts-w-0", &pods["mounts-w-0"], "FailedMount", missing, 2)?;
    warn(&installed, "mounts-w-0", &pods["mounts-w-0"], "FailedAttachVolume", "an older one", 1)?;
    // By its clock a scheduler's is the newest; but the pod has its node.

    // Meanwhile another job meets a node that computes wrongly.
    let excluded = |status: &Value| status["excludedNodes"].as_array().map_or(0, Vec::len);
    let fail_on = |node: &str, count: usize| -> Result<()> {
        let before = uids(&wait_for_pods(&installed, "unfit", 2)?);
        bind(&installed, "unfit-w-0", node)?;
        set_pod_status(&installed, "unfit-w-0", &terminated("worker", 82, "cpu computes wrongly"))?;
        wait_for("an excluded node", || {
            let status = installed.status("unfit")?;
            ensure!(excluded(&status) == count, "{status}");
            ensure!(
                count > 1 || uids(&installed.pods("unfit")?).get("unfit-w-0").is_some_and(|uid| *uid != before["unfit-w-0"]),
                "{status}"
            );
            Ok(())
        })
    };
    fail_on("node-b", 1)?;
    let status = installed.status("unfit")?;
    assert_eq!(status["excludedNodes"][0]["node"], "node-b");
    assert!(status["excludedNodes"][0]["message"].as_str().is_some_and(|text| text.contains("computes wrongly")), "{status}");
    let pod = installed.get(&["pod", "unfit-w-0"])?;
    let terms = &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
    assert_eq!(*terms, json!([{ "matchFields": [{ "key": "metadata.name", "operator": "NotIn", "values": ["node-b"] }] }]));
    fail_on("node-c", 2)?;
    let status = installed.status("unfit")?;
    let failed = condition(&status, "Failed");
    assert_eq!(failed["reason"], "TooManyUnfitNodes", "{failed}");

    wait_for("the volume's name", || {
        let status = installed.status("mounts")?;
        let reconciling = condition(&status, "Reconciling");
        ensure!(reconciling["message"] == format!("pod mounts-w-0 cannot start: FailedMount: {missing}"), "{reconciling}");
        Ok(())
    })?;
    assert_eq!(installed.status("mounts")?["restarts"]["total"], 0);
    operator.terminate()
}
