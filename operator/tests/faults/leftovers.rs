//! Pods that are being deleted on nodes that are dead.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    lab::{Lab, Place, uids},
    phases::Phase,
    support::{condition, name_of, wait_for},
};

/// So that a pod has had its time soon.
const SHORT_GRACE: &str = "spec.workers.template = {'spec': {'terminationGracePeriodSeconds': 1, 'containers': [{'name': 'worker'}]}}";

fn create(lab: &Lab, namespace: &str) -> Result<()> {
    lab.place(namespace)?.create_job(2, SHORT_GRACE)
}

/// Pods that are not the operator's, with its labels: one that nobody owns, and one of somebody else's object of the same kind.
fn create_strangers(place: &Place) -> Result<()> {
    let labels = json!({
        "app.kubernetes.io/managed-by": "lcl-operator", "lcl.dev/job-name": "job", "lcl.dev/role": "worker", "lcl.dev/worker-index": "7",
    });
    let owner = json!([{ "apiVersion": "example.com/v1", "kind": "LCLTrainingJob", "name": "job", "uid": "7", "controller": true }]);
    for (name, owners) in [("free", json!([])), ("owned", owner)] {
        let pod = json!({
            "metadata": { "name": name, "labels": labels, "ownerReferences": owners },
            "spec": {
                "nodeName": "node-0", "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false,
                "containers": [{ "name": "main", "image": "main" }],
            },
        });
        wait_for("the namespace's account", || place.lab.installed.send("POST", &place.objects("pods"), &pod))?;
        place.lab.installed.send("DELETE", &place.objects(&format!("pods/{name}")), &json!({}))?;
    }
    Ok(())
}

/// What Kubernetes does with the objects of a job that is gone. Of a definition that is new it hears half a minute later only.
fn collect_garbage(place: &Place) -> Result<()> {
    let budgets = format!("/apis/policy/v1/namespaces/{}/poddisruptionbudgets", place.namespace);
    for path in ["pods", "services", "configmaps", "serviceaccounts"].map(|kind| place.objects(kind)).into_iter().chain([budgets]) {
        place.lab.installed.send("DELETE", &format!("{path}?labelSelector=lcl.dev/job-name=job,lcl.dev/job-uid"), &json!({}))?;
    }
    Ok(())
}

#[test]
fn what_dead_nodes_keep_of_jobs_that_are_over_or_gone_is_removed_and_nothing_else() -> Result<()> {
    let lab = Lab::start()?;
    let start_operator = || lab.installed.start_operator(&["--leader-elect", "--pod-namespace=lcl-system"]);
    let operator = start_operator()?;
    let names = ["over", "gone", "again", "ending", "well"];
    names.iter().try_for_each(|namespace| create(&lab, namespace))?;
    let place = |namespace: &str| Place { lab: &lab, namespace: namespace.to_owned() };
    for namespace in names {
        Phase::Creation.expected(2, &std::collections::BTreeMap::new()).wait_for_rest(&place(namespace), || false)?;
    }
    for node in 0..3 {
        lab.kubelets.silence(&format!("node-{node}"));
    }
    create_strangers(&place("gone"))?;
    let before = uids(&place("again").pods()?);
    let well = uids(&place("well").pods()?);
    // With a namespace goes its lease, in releases of Kubernetes before 1.33 sooner than its pods; here it is taken away. Nobody can make it
    // again, and a leader that comes now has never had it.
    lab.installed.send("DELETE", "/api/v1/namespaces/ending", &json!({}))?;
    place("ending").delete_job()?;
    lab.installed.send("DELETE", "/apis/coordination.k8s.io/v1/namespaces/ending/leases/lcl-operator-jobs", &json!({}))?;
    operator.terminate()?;
    let operator = start_operator()?;
    // The last that its node says.
    lab.kubelets.exit("over", "job-w-1", 65, "not a tar file")?;
    for namespace in ["gone", "again"] {
        place(namespace).delete_job()?;
        collect_garbage(&place(namespace))?;
    }
    place("again").create_job(2, SHORT_GRACE)?;

    wait_for("what has failed alone", || {
        let left: Vec<_> = place("over").pods()?.iter().map(name_of).collect();
        ensure!(left == ["job-w-1"], "{left:?}");
        Ok(())
    })?;
    assert_eq!(condition(&place("over").job()?["status"], "Failed")["status"], "True");
    wait_for("the strangers alone", || {
        let left: Vec<_> = place("gone").pods()?.iter().map(name_of).collect();
        ensure!(left == ["free", "owned"], "{left:?}");
        Ok(())
    })?;
    wait_for("the end of the namespace that is being deleted", || {
        let gone = lab.installed.look("/api/v1/namespaces/ending").err().context("it is still there")?;
        ensure!(format!("{gone:#}").contains("not found"), "{gone:#}");
        Ok(())
    })?;
    wait_for("the pods of the next job of this name", || {
        let pods = place("again").pods()?;
        let now = uids(&pods);
        ensure!(now.keys().eq(before.keys()) && now.values().all(|uid| !before.values().any(|old| old == uid)), "{now:?}");
        let is_ending = |pod: &Value| !pod["metadata"]["deletionTimestamp"].is_null();
        ensure!(!pods.iter().any(is_ending), "{now:?}");
        Ok(())
    })?;
    assert_eq!(uids(&place("well").pods()?), well);
    let writes = lab.installed.operators_writes()?;
    let to_strangers: Vec<_> = writes.iter().filter(|write| write.ends_with(" free") || write.ends_with(" owned")).collect();
    assert_eq!(to_strangers, [""; 0], "pods of others were touched");
    operator.terminate()
}
