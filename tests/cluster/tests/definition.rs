//! A real API server judges manifests as the offline validation does: the same cases, the same fields.

#[path = "../../../operator/core/tests/rules/cases.rs"]
mod cases;
#[path = "../../../operator/core/tests/support/jobs.rs"]
mod jobs;
#[path = "../../../operator/core/tests/rules/pod_cases.rs"]
mod pod_cases;

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lcl_cluster::{Cluster, ClusterOptions};
use serde_json::{Value, json};

use cases::{BROKEN, BROKEN_CHANGES, KEPT, KEPT_CHANGES};
use jobs::{assign, minimal_job};

const DEFINITION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../crds/generated/lcltrainingjobs.yaml");
const PODS: &str = "/api/v1/namespaces/default/pods";
const SERVICE_ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";
const JOBS: &str = "/apis/lcl.dev/v1alpha1/namespaces/default/lcltrainingjobs";

/// A definition is served about a second after it was stored.
const PATIENCE: Duration = Duration::from_mins(1);

struct ApiServer {
    cluster: Cluster,
    address: String,
}

impl ApiServer {
    fn with_definition() -> Result<Self> {
        let cluster = Cluster::start(Path::new(env!("CARGO_BIN_EXE_lcl-cluster")), &ClusterOptions::default())?;
        cluster.kubectl(&["apply", "--server-side", "-f", DEFINITION])?;
        let address = cluster.kubectl(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"])?;
        let server = Self { cluster, address };
        let end = Instant::now() + PATIENCE;
        while server.cluster.kubectl(&["get", "--raw", JOBS]).is_err() {
            ensure!(Instant::now() < end, "the definition was not served within {PATIENCE:?}");
            thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    /// Sends an object and returns the answer. Unknown fields are errors, as with `kubectl apply`.
    fn send(&self, method: &str, path: &str, query: &str, object: &Value) -> Result<Value> {
        let folder = &self.cluster.ready().folder;
        let mut child = Command::new("curl")
            .current_dir(folder)
            .args(["--silent", "--show-error", "--cacert", "ca.crt", "--cert", "admin.crt", "--key", "admin.key"])
            .args(["--request", method, "--header", "Content-Type: application/json", "--data-binary", "@-"])
            .arg(format!("{}{path}?fieldValidation=Strict{query}", self.address))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("its input")?.write_all(object.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "curl: {}", output.status);
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn try_create(&self, object: &Value) -> Result<Value> {
        self.send("POST", JOBS, "&dryRun=All", object)
    }
}

fn changed(assignments: &str) -> Value {
    let mut job = minimal_job();
    assign(&mut job, assignments);
    job
}

fn is_refused(answer: &Value) -> bool {
    answer["kind"] == "Status" && answer["status"] == "Failure"
}

/// Whether the answer names `field`, as a cause or, where a whole field is unknown, in its message.
fn names(answer: &Value, field: &str) -> bool {
    let causes = answer["details"]["causes"].as_array().into_iter().flatten();
    causes.into_iter().any(|cause| cause["field"] == field) || answer["message"].as_str().unwrap_or_default().contains(field)
}

/// What the API server sees in its own way: it judges the envelope before any schema, names the labels as a whole, takes an explicit null
/// for a field left out, and names the whole entry that stands twice. Patterns of shards and filters are parsed, which CEL cannot: such a job
/// is stored, and the operator refuses it.
const ITS_OWN_WAY: [(&str, Option<&str>); 27] = [
    ("apiVersion = 'lcl.dev/v2'", Some("v2")),
    ("apiVersion = delete", Some("API version")),
    ("metadata.name = 7", Some("ObjectMeta.name")),
    ("metadata.labels = {'a': 1}", Some("ObjectMeta.labels")),
    ("metadata.annotations = {'a': true}", Some("ObjectMeta.annotations")),
    ("metadata.labels = {'a': 'b c'}", Some("metadata.labels")),
    ("metadata.labels = {'a b': 'c'}", Some("metadata.labels")),
    ("spec.checkpoint.everySteps = null", None),
    ("spec.workers.template.spec.containers = [{'name': 'worker'}, {'name': 'worker'}]", Some("spec.workers.template.spec.containers[1]")),
    ("spec.data.webdataset.shards = ['/a.tar', '/d/{000..011.tar']", None),
    ("spec.data.webdataset.shards = ['/d/000..011}.tar']", None),
    ("spec.data.webdataset.shards = ['/d/{000.011}.tar']", None),
    ("spec.data.webdataset.shards = ['/d/[ab.tar']", None),
    ("spec.data.webdataset.shards = ['/d/{a,b}.txt']", None),
    ("spec.data.webdataset.shards = ['/d/{0..99999999}.tar']", None),
    ("spec.data.webdataset.shards = ['s3://bucket/a/../b.tar']", None),
    ("spec.data.webdataset.shards = ['https://host:99999/b.tar']", None),
    ("spec.data.webdataset.filter = 'similarity >='", None),
    ("spec.data.webdataset.filter = 'lower(NSFW) == \\\"a\\\"'", None),
    ("spec.data.webdataset.filter = 'width + 1'", None),
    ("spec.data.webdataset.filter = 'has(similarity)'", None),
    (
        "spec.data = {'mixture': {'sources': [{'name': 'a', 'webdataset': {'shards': ['/a.tar'], 'filter': 'true'}}, \
         {'name': 'b', 'webdataset': {'shards': ['/b.tar']}}]}}",
        None,
    ),
    ("spec.data = {'mmc4': {'shards': ['/m_{0..3.jsonl'], 'images': {'folder': '/i'}}}", None),
    ("spec.data = {'mmc4': {'shards': ['/m.jsonl'], 'images': {'shards': ['/i{.tar']}}}", None),
    ("spec.data = {'obelics': {'shards': ['/o.parquet'], 'images': ['/i-[0.tar']}}", None),
    (
        "spec.data = {'mixture': {'sources': [{'name': 'a', 'webdataset': {'shards': ['/a.tar']}}, \
         {'name': 'b', 'obelics': {'shards': ['/b'], 'images': ['/{0.tar']}}]}}",
        None,
    ),
    (
        "spec.data = {'mixture': {'sources': [{'name': 'a', 'webdataset': {'shards': ['/a.tar']}}, \
         {'name': 'a', 'webdataset': {'shards': ['/b.tar']}}]}}",
        Some("spec.data.mixture.sources[1]"),
    ),
];

#[test]
fn the_api_server_refuses_what_the_offline_validation_refuses_and_names_the_field() -> Result<()> {
    let server = ApiServer::with_definition()?;
    let mut wrong = Vec::new();
    for (case, field, _) in BROKEN {
        let answer = server.try_create(&changed(case))?;
        let own = ITS_OWN_WAY.iter().find(|(own, _)| own == case);
        let is_right = match own.map_or(Some(*field), |(_, says)| *says) {
            Some(says) => is_refused(&answer) && names(&answer, says),
            None => !is_refused(&answer),
        };
        if !is_right {
            wrong.push(format!("{case}\n  expected {field}, got {}", answer["message"]));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), BROKEN.len(), wrong.join("\n"));
    Ok(())
}

#[test]
fn the_api_server_accepts_what_the_offline_validation_accepts() -> Result<()> {
    let server = ApiServer::with_definition()?;
    let mut wrong = Vec::new();
    // Unknown fields are errors in the status too, which the offline validation leaves to the operator.
    for case in KEPT.iter().filter(|case| !case.starts_with("status")) {
        let answer = server.try_create(&changed(case))?;
        if is_refused(&answer) {
            wrong.push(format!("{case}\n  {}", answer["message"]));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), KEPT.len(), wrong.join("\n"));
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/emoji.yaml");
    server.cluster.kubectl(&["apply", "--server-side", "--dry-run=server", "-f", example])?;
    Ok(())
}

/// The pod that the operator makes of a job, as far as the job says what is in it.
fn pod_of(job: &Value) -> Value {
    let workers = &job["spec"]["workers"];
    let template = &workers["template"];
    let mut spec = template["spec"].clone();
    if spec.is_null() {
        spec = json!({ "containers": [{ "name": "worker" }] });
    }
    for container in spec["containers"].as_array_mut().into_iter().flatten() {
        if container["name"] == "worker" {
            container["image"] = json!("trainer");
            if workers["resources"].is_object() {
                container["resources"] = workers["resources"].clone();
            }
        }
    }
    spec["restartPolicy"] = json!("Never");
    if spec["serviceAccountName"].is_null() {
        spec["serviceAccountName"] = json!("default");
    }
    let own = json!({ "name": "lcl-tmp", "emptyDir": {} });
    match spec["volumes"].as_array_mut() {
        Some(volumes) => volumes.push(own),
        None => spec["volumes"] = json!([own]),
    }
    let metadata = json!({
        "name": "job-w-0",
        "labels": template["metadata"]["labels"].as_object().cloned().unwrap_or_default(),
        "annotations": template["metadata"]["annotations"].as_object().cloned().unwrap_or_default(),
    });
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec })
}

/// A job whose pods would be refused is accepted itself: only the offline validation, which the operator uses too, can tell.
#[test]
fn the_api_server_refuses_the_pods_that_the_offline_validation_refuses_in_the_job() -> Result<()> {
    let server = ApiServer::with_definition()?;
    // No pod is admitted without one; that it may be there by now is no matter.
    server.send(
        "POST",
        SERVICE_ACCOUNTS,
        "",
        &json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } }),
    )?;
    let broken = pod_cases::BROKEN.iter().map(|(case, _, _, judge)| (*case, *judge == pod_cases::Judge::Api));
    let kept = pod_cases::KEPT.iter().map(|case| (*case, false));
    let mut wrong = Vec::new();
    for (case, is_the_servers) in broken.chain(kept) {
        let job = changed(case);
        let stored = server.try_create(&job)?;
        ensure!(!is_refused(&stored), "the job is refused already: {case}\n{}", stored["message"]);
        let answer = server.send("POST", PODS, "&dryRun=All", &pod_of(&job))?;
        if is_refused(&answer) != is_the_servers {
            wrong.push(format!("{case}\n  the API server says {}", answer["message"]));
        }
    }
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

#[test]
fn the_api_server_judges_changes_as_the_offline_validation_does() -> Result<()> {
    let server = ApiServer::with_definition()?;
    let refused = BROKEN_CHANGES.iter().map(|(before, after, field)| (*before, *after, Some(*field)));
    let accepted = KEPT_CHANGES.iter().map(|(before, after)| (*before, *after, None));
    let mut wrong = Vec::new();
    for (number, (before, after, field)) in refused.chain(accepted).enumerate() {
        let name = format!("job-{number}");
        let mut stored = changed(before);
        stored["metadata"]["name"] = json!(name);
        let stored = server.send("POST", JOBS, "", &stored)?;
        ensure!(!is_refused(&stored), "{before}: {}", stored["message"]);
        let mut next = changed(after);
        next["metadata"] = json!({"name": name, "resourceVersion": stored["metadata"]["resourceVersion"]});
        let answer = server.send("PUT", &format!("{JOBS}/{name}"), "&dryRun=All", &next)?;
        let is_right = match field {
            Some(field) => is_refused(&answer) && names(&answer, field),
            None => !is_refused(&answer),
        };
        if !is_right {
            wrong.push(format!("{before} -> {after}\n  expected {field:?}, got {}", answer["message"]));
        }
    }
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

#[test]
fn the_table_of_kubectl_get_has_the_promised_columns_and_scale_changes_the_replicas() -> Result<()> {
    let server = ApiServer::with_definition()?;
    let answer = server.send("POST", JOBS, "", &changed("spec.elastic = {'minWorkers': 1, 'maxWorkers': 4}"))?;
    ensure!(!is_refused(&answer), "{}", answer["message"]);
    let table = server.cluster.kubectl(&["get", "lcljob"])?;
    let header: Vec<&str> = table.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(header, ["NAME", "STATE", "WORKERS", "STEP", "RESTARTS", "CHECKPOINT", "AGE"]);
    server.cluster.kubectl(&["scale", "lcljob/job", "--replicas=3"])?;
    assert_eq!(server.cluster.kubectl(&["get", "lcljob/job", "-o", "jsonpath={.spec.workers.replicas}"])?, "3");
    let refused = server.cluster.kubectl(&["scale", "lcljob/job", "--replicas=5"]).expect_err("above maxWorkers");
    assert!(refused.to_string().contains("maxWorkers"), "{refused}");
    Ok(())
}
