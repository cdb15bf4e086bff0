//! 10,000 jobs at rest and 10,000 pods: what an operator has to list when it starts, what it holds in memory, and what it asks of the API server
//! while nothing happens.
//!
//! Jobs that wait for a scheduler that is not there have pods, a Service, a configuration and so on; the others are suspended or complete. The
//! first operator makes of them what it makes of jobs; the second, which is measured, finds all of it. Prints Markdown.

#[path = "../tests/support/mod.rs"]
mod support;

mod common;
#[path = "../core/tests/support/jobs.rs"]
mod jobs;

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
};
use lcl_cluster::ClusterOptions;
use lcl_crds::LCLTrainingJob;
use serde_json::json;

use common::{POLL, connect, cpu_time, create_all, make_namespace, memory_kib};
use jobs::{assign, minimal_job};
use support::{Installed, Operator, get};

const NAMESPACE: &str = "idle";
/// Jobs that have pods: a coordinator and the workers.
const WAITING: usize = 1000;
const WORKERS: usize = 9;
const SUSPENDED: usize = 4500;
const COMPLETE: usize = 4500;
const JOBS: usize = WAITING + SUSPENDED + COMPLETE;
const PODS: usize = WAITING * (1 + WORKERS);
/// The limits are not to be what is measured.
const OPERATORS_ARGUMENTS: [&str; 3] = ["--kube-api-qps=2000", "--kube-api-burst=2000", "--network-policies"];
/// Statuses that are written at a time.
const IN_FLIGHT: usize = 64;
/// The longest that a part may take.
const PATIENCE: Duration = Duration::from_mins(20);
/// How long what a job at rest causes is counted.
const MINUTE: Duration = Duration::from_mins(1);
/// Nothing was written for so long: then nothing is on its way any more. What the operator puts off it writes within 30 seconds.
const QUIET: Duration = Duration::from_secs(35);

fn manifest(kind: &str, index: usize, assignments: &str) -> Result<LCLTrainingJob> {
    let mut job = minimal_job();
    job["metadata"]["name"] = json!(format!("{kind}-{index:05}"));
    assign(&mut job, assignments);
    Ok(serde_json::from_value(job)?)
}

fn manifests() -> Result<Vec<LCLTrainingJob>> {
    let template = "{'spec': {'schedulerName': 'nobody', 'containers': [{'name': 'worker'}]}}";
    let coordinator = "spec.coordinator = {'schedulerName': 'nobody'}";
    let waiting =
        format!("spec.workers = {{'replicas': {WORKERS}, 'template': {template}}}; {coordinator}; spec.optimization.globalBatchSize = 63");
    let waiting = (0..WAITING).map(|index| manifest("waiting", index, &waiting));
    let suspended = (0..SUSPENDED).map(|index| manifest("suspended", index, "spec.suspend = true"));
    let complete = (0..COMPLETE).map(|index| manifest("complete", index, "spec.suspend = true"));
    waiting.chain(suspended).chain(complete).collect()
}

/// Has the API server take jobs for complete.
async fn complete(client: &Client) -> Result<()> {
    let api = Api::<LCLTrainingJob>::namespaced(client.clone(), NAMESPACE);
    let time = "2026-01-01T00:00:00Z";
    let condition = |type_: &str, status: &str| json!({ "type": type_, "status": status, "reason": "Complete", "message": "the last step is done", "lastTransitionTime": time });
    let status = json!({ "status": {
        "state": "Complete", "completionTime": time, "startTime": time, "steps": { "completed": 100, "total": 100 },
        "conditions": [condition("Running", "False"), condition("Recovering", "False"), condition("PodsReady", "False"), condition("Complete", "True")],
    } });
    let write = |index: usize| {
        let (api, status) = (&api, &status);
        async move {
            let name = format!("complete-{index:05}");
            api.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.context(name).map(drop)
        }
    };
    stream::iter(0..COMPLETE).map(write).buffer_unordered(IN_FLIGHT).try_collect().await
}

/// Requests of the operator so far, by method, as it counts them itself.
fn requests(operator: &Operator) -> Result<BTreeMap<String, f64>> {
    let mut counts = BTreeMap::new();
    for line in get(&operator.metrics, "/metrics")?.lines().filter_map(|line| line.strip_prefix("rest_client_requests_total{")) {
        let (labels, count) = line.rsplit_once(' ').context("a counter without a value")?;
        let method = labels.split("method=\"").nth(1).and_then(|rest| rest.split('"').next()).context("a request without a method")?;
        *counts.entry(method.to_owned()).or_insert(0.0) += count.parse::<f64>()?;
    }
    Ok(counts)
}

fn since(before: &BTreeMap<String, f64>, now: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let grown = now.iter().map(|(method, count)| (method.clone(), count - before.get(method).unwrap_or(&0.0)));
    grown.filter(|(_, count)| *count > 0.0).collect()
}

/// Waits until there were as many looks as jobs: those that wait for nodes may be looked at again meanwhile.
fn wait_for_looks(operator: &Operator) -> Result<()> {
    let (all, end) = (f64::from(u32::try_from(JOBS)?), Instant::now() + PATIENCE);
    while operator.reconciles() < all {
        ensure!(Instant::now() < end, "{} looks in {PATIENCE:?}", operator.reconciles());
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Waits until the operator has written nothing for a while.
fn wait_until_quiet(operator: &Operator) -> Result<()> {
    let writes = || -> Result<f64> { Ok(requests(operator)?.iter().filter(|(method, _)| *method != "GET").map(|(_, count)| count).sum()) };
    let (mut known, mut since, end) = (writes()?, Instant::now(), Instant::now() + PATIENCE);
    while since.elapsed() < QUIET {
        ensure!(Instant::now() < end, "the operator still writes after {PATIENCE:?}");
        thread::sleep(POLL);
        let now = writes()?;
        if now > known {
            (known, since) = (now, Instant::now());
        }
    }
    Ok(())
}

/// Makes the jobs, and has an operator do everything that there is to do for them.
fn prepare(installed: &Installed, runtime: &tokio::runtime::Runtime) -> Result<()> {
    let client = runtime.block_on(connect(installed))?;
    runtime.block_on(make_namespace(&client, NAMESPACE))?;
    runtime.block_on(create_all(&client, NAMESPACE, manifests()?))?;
    runtime.block_on(complete(&client))?;
    eprintln!("{JOBS} jobs are there");
    let operator = installed.start_operator(&OPERATORS_ARGUMENTS)?;
    wait_for_looks(&operator)?;
    wait_until_quiet(&operator)?;
    let pods = Api::<Pod>::namespaced(client, NAMESPACE);
    let count = runtime.block_on(pods.list_metadata(&ListParams::default()))?.items.len();
    ensure!(count == PODS, "{count} pods in place of {PODS}");
    operator.terminate()
}

fn mib(kib: u64) -> u64 {
    kib / 1024
}

fn main() -> Result<()> {
    let installed = Installed::start(&ClusterOptions::default(), &[])?;
    let runtime = tokio::runtime::Runtime::new()?;
    prepare(&installed, &runtime)?;

    let started = Instant::now();
    let operator = installed.start_operator(&OPERATORS_ARGUMENTS)?;
    let ready = started.elapsed();
    wait_for_looks(&operator)?;
    let looked = started.elapsed();
    let resident = memory_kib(operator.process(), "VmRSS")?;
    let (asked, cpu) = (requests(&operator)?, cpu_time(operator.process())?);
    thread::sleep(MINUTE);
    let (asked_later, cpu_later) = (requests(&operator)?, cpu_time(operator.process())?);
    let (resident_later, peak) = (memory_kib(operator.process(), "VmRSS")?, memory_kib(operator.process(), "VmHWM")?);
    let describe = |counts: BTreeMap<String, f64>| {
        let each: Vec<String> = counts.iter().map(|(method, count)| format!("{count} {method}")).collect();
        if each.is_empty() { "none".to_owned() } else { each.join(", ") }
    };
    println!(
        "{JOBS} jobs at rest ({WAITING} wait for nodes with a coordinator and {WORKERS} workers each, {SUSPENDED} are suspended, {COMPLETE} complete), {PODS} pods; an operator that starts.\n"
    );
    println!("| | |");
    println!("|---|---|");
    println!("| from its start until it is ready | {:.1} s |", ready.as_secs_f64());
    println!("| until as many looks as there are jobs | {:.1} s, {:.1} s of processor time |", looked.as_secs_f64(), cpu);
    println!("| requests until then | {} |", describe(asked.clone()));
    println!("| resident memory then, a minute later, at the peak | {}, {}, {} MiB |", mib(resident), mib(resident_later), mib(peak));
    println!("| requests in that minute | {} |", describe(since(&asked, &asked_later)));
    println!("| processor time in that minute | {:.2} s |", cpu_later - cpu);
    operator.terminate()
}
