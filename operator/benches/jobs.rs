//! 300 jobs of 8 workers against a real API server without nodes: from the first job's creation until all 2,400 worker pods exist.
//!
//! Three sides take turns, each in a namespace that is empty before the next begins: the operator; the built-in controller with Indexed
//! Jobs of the same pods; and a bare creator that writes the operator's objects without deciding anything, which is what the API server
//! itself takes. Prints Markdown. Arguments pick
//! sides by a part of their names, and the variable `LCL_OPERATOR_AGAINST` adds one: another build of the operator. The API server, the other
//! controllers and the operator share the machine's processors.

#[path = "../tests/support/mod.rs"]
mod support;

mod common;
#[path = "../core/tests/support/jobs.rs"]
mod jobs;
#[path = "jobs/requests.rs"]
mod requests;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    path::PathBuf,
    pin::pin,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures_util::TryStreamExt;
use k8s_openapi::{
    ByteString, NamespaceResourceScope,
    api::{
        batch::v1::Job,
        core::v1::{ConfigMap, Namespace, Pod, Service},
    },
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, PropagationPolicy},
    core::PartialObjectMeta,
    runtime::{WatchStreamExt, watcher},
};
use lcl_cluster::ClusterOptions;
use lcl_crds::{LCLTrainingJob, PinnedStatus};
use lcl_operator_core::{
    PodPolicy, ValidatedJob,
    build::{BuildContext, NetworkAccess, build_secret},
    observe::HistoryPlace,
    resources::{AppliedResources, PinnedConfig, PreparedResources},
    validate,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use common::{PATIENCE, POLL, connect, cpu_time, create_all, make_namespace, memory_kib};
use jobs::{assign, minimal_job};
use requests::{Requests, Snapshot};
use support::Installed;

const JOBS: usize = 300;
const WORKERS: usize = 8;
/// Without the variable `ROUNDS`.
const ROUNDS: usize = 3;
/// The built-in controller has the same limits.
const OPERATORS_ARGUMENTS: [&str; 3] = ["--kube-api-qps=2000", "--kube-api-burst=2000", "--network-policies"];
/// As long as a job's certificates and keys are together.
const CERTIFICATES_BYTES: usize = 2048;
/// All pods bear this label, whoever makes them.
const LABEL: (&str, &str) = ("bench", "jobs");
/// What is put off until the pods are there is paid for within this time.
const SETTLING: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Operator,
    Against,
    IndexedJobs,
    Bare,
}

impl Side {
    const ALL: [Self; 4] = [Self::Operator, Self::Against, Self::IndexedJobs, Self::Bare];

    fn name(self) -> &'static str {
        match self {
            Self::Operator => "LCLTrainingJob, lcl-operator",
            Self::Against => "LCLTrainingJob, the other lcl-operator",
            Self::IndexedJobs => "Indexed Job, kube-controller-manager",
            Self::Bare => "bare creator of the operator's objects",
        }
    }

    const fn is_operator(self) -> bool {
        matches!(self, Self::Operator | Self::Against)
    }
}

/// One side in one round.
struct Run {
    /// Seconds until every job (or the last object) was accepted by the API server.
    accepted: f64,
    /// Seconds until every worker pod was there.
    pods: f64,
    /// Processor seconds of etcd, the API server and the other controllers meanwhile.
    servers_cpu: f64,
    /// The same until [`SETTLING`] later.
    settled_cpu: f64,
    /// Of each of the servers until then.
    each_cpu: Vec<f64>,
    /// Of the operator until then.
    operator_cpu: f64,
}

/// What an operator took for one round.
struct Taken {
    side: Side,
    /// Processor seconds.
    cpu: f64,
    peak_kib: u64,
}

fn main() -> Result<()> {
    // `cargo bench` adds one of its own.
    let wanted: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let against = env::var_os("LCL_OPERATOR_AGAINST").map(PathBuf::from);
    let is_wanted = |side: &Side| {
        (*side != Side::Against || against.is_some()) && (wanted.is_empty() || wanted.iter().any(|name| side.name().contains(name)))
    };
    let sides: Vec<Side> = Side::ALL.into_iter().filter(is_wanted).collect();
    let installed = Installed::start(&ClusterOptions::default(), &[])?;
    let runtime = tokio::runtime::Runtime::new()?;
    let client = runtime.block_on(connect(&installed))?;
    let mut lab = Lab { installed: &installed, runtime, client, against, costs: Costs::default(), taken: Vec::new(), asked: Vec::new() };
    let mut runs: Vec<(Side, Run)> = Vec::new();
    let rounds = env::var("ROUNDS").ok().filter(|rounds| !rounds.is_empty()).map_or(Ok(ROUNDS), |rounds| rounds.parse())?;
    for round in 0..rounds {
        for turn in 0..sides.len() {
            let side = sides[(turn + round) % sides.len()];
            let run = lab.run(side, &format!("round-{round}-{turn}"))?;
            eprintln!("{}: {:.1} s", side.name(), run.pods);
            runs.push((side, run));
        }
    }
    report(rounds, &sides, &runs, &lab.taken);
    let names: Vec<&str> = installed.cluster.ready().processes.iter().map(|(name, _)| name.as_str()).collect();
    report_servers(&names, &sides, &runs);
    lab.costs.report(rounds);
    for (side, asked) in &lab.asked {
        println!("\n{}.", side.name());
        asked.report(u32::try_from(JOBS)?);
    }
    Ok(())
}

/// The cluster, and what was measured besides the runs.
struct Lab<'a> {
    installed: &'a Installed,
    runtime: tokio::runtime::Runtime,
    client: Client,
    against: Option<PathBuf>,
    costs: Costs,
    taken: Vec<Taken>,
    /// In the first round of each operator.
    asked: Vec<(Side, Requests)>,
}

impl Lab<'_> {
    /// One side in one round.
    fn run(&mut self, side: Side, namespace: &str) -> Result<Run> {
        let (installed, client) = (self.installed, self.client.clone());
        self.runtime.block_on(make_namespace(&client, namespace))?;
        let operator = match (side, &self.against) {
            (Side::Operator, _) => Some(installed.start_operator(&OPERATORS_ARGUMENTS)?),
            (Side::Against, Some(program)) => Some(installed.start_program(program, &OPERATORS_ARGUMENTS)?),
            _ => None,
        };
        let servers: Vec<u32> = installed.cluster.ready().processes.iter().map(|(_, process)| *process).collect();
        let each_before = servers.iter().map(|process| cpu_time(*process)).collect::<Result<Vec<_>>>()?;
        let time_of_operator = || operator.as_ref().map_or(Ok(0.0), |operator| cpu_time(operator.process()));
        let asked_before = self.runtime.block_on(Snapshot::take(&client, installed))?;
        let (servers_before, before) = (cpu_times(&servers)?, time_of_operator()?);
        let meter = Meter { servers: &servers, costs: &mut self.costs };
        let (accepted, pods) = self.runtime.block_on(play(&client, namespace, side, meter))?;
        let servers_cpu = cpu_times(&servers)? - servers_before;
        thread::sleep(SETTLING);
        let (settled_cpu, operator_cpu) = (cpu_times(&servers)? - servers_before, time_of_operator()? - before);
        let since = |(process, before): (&u32, &f64)| Ok(cpu_time(*process)? - before);
        let each_cpu = servers.iter().zip(&each_before).map(since).collect::<Result<_>>()?;
        if side.is_operator() && self.asked.iter().all(|(of, _)| *of != side) {
            let asked_after = self.runtime.block_on(Snapshot::take(&client, installed))?;
            self.asked.push((side, Requests::between(&asked_before, &asked_after)?));
        }
        self.runtime.block_on(clear(&client, namespace))?;
        if let Some(operator) = operator {
            self.taken.push(Taken {
                side,
                cpu: cpu_time(operator.process())? - before,
                peak_kib: memory_kib(operator.process(), "VmHWM")?,
            });
            operator.terminate()?;
        }
        Ok(Run { accepted, pods, servers_cpu, settled_cpu, each_cpu, operator_cpu })
    }
}

fn manifest(name: &str) -> Value {
    let mut job = minimal_job();
    job["metadata"]["name"] = json!(name);
    let template = format!("{{'metadata': {{'labels': {{'{}': '{}'}}}}}}", LABEL.0, LABEL.1);
    assign(&mut job, &format!("spec.workers = {{'replicas': {WORKERS}, 'template': {template}}}; spec.optimization.globalBatchSize = 64"));
    job
}

/// Creates what the side starts from, and waits for the worker pods: seconds until all was accepted, and until all pods were there.
async fn play(client: &Client, namespace: &str, side: Side, meter: Meter<'_>) -> Result<(f64, f64)> {
    let names: Vec<String> = (0..JOBS).map(|index| format!("job-{index:03}")).collect();
    let all = wait_for_pods(client, namespace);
    let context = BuildContext {
        namespace: namespace.to_owned(),
        uid: "00000000-0000-0000-0000-000000000000".to_owned(),
        pins: PinnedStatus {
            generation: 1,
            config: "CONFIG".to_owned(),
            coordinator_image: "coordinator".to_owned(),
            trainer_image: "trainer".to_owned(),
            // The API server gives each job one of its own.
            address: None,
            authority: None,
            certificates_expire: None,
        },
        image_pull_policy: None,
        incident: 0,
        history: HistoryPlace::default(),
        excluded_nodes: Vec::new(),
        policy: PodPolicy::default(),
        network: Some(NetworkAccess {
            operator_namespace: support::SYSTEM.to_owned(),
            operator_labels: BTreeMap::new(),
            metrics_from: Vec::new(),
        }),
    };
    let started = Instant::now();
    let create = async {
        match side {
            Side::Operator | Side::Against => {
                let jobs: Vec<LCLTrainingJob> =
                    names.iter().map(|name| Ok(serde_json::from_value(manifest(name))?)).collect::<Result<_>>()?;
                create_all(client, namespace, jobs).await?;
            }
            Side::IndexedJobs => {
                let jobs: Vec<Job> = names.iter().map(|name| indexed_job(name, &context)).collect::<Result<_>>()?;
                create_all(client, namespace, jobs).await?;
            }
            Side::Bare => create_bare(client, &names, &context, meter).await?,
        }
        Ok(started.elapsed().as_secs_f64())
    };
    let (accepted, ()) = tokio::time::timeout(PATIENCE, async { tokio::try_join!(create, all) })
        .await
        .with_context(|| format!("{} took longer than {PATIENCE:?}", side.name()))??;
    Ok((accepted, started.elapsed().as_secs_f64()))
}

/// The operator's worker pods as an Indexed Job.
fn indexed_job(name: &str, context: &BuildContext) -> Result<Job> {
    let job = validate(&manifest(name))?;
    let mut pod = applied(&job, context).worker_pod(&job, context, 0)?;
    pod.metadata.owner_references = None;
    let mut spec = pod.spec.context("a worker pod has a specification")?;
    // Each of them is the controller's to give, or is not there on this side.
    spec.hostname = None;
    spec.service_account_name = None;
    Ok(serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": {
            "completionMode": "Indexed", "completions": WORKERS, "parallelism": WORKERS,
            "template": { "metadata": { "labels": { LABEL.0: LABEL.1 }, "annotations": pod.metadata.annotations }, "spec": spec },
        },
    }))?)
}

/// The objects that the operator makes, without owners: these would have to exist.
fn prepared(job: &ValidatedJob, context: &BuildContext) -> PreparedResources {
    let pins = PinnedStatus { config: format!("{}-config-1", job.name()), ..context.pins.clone() };
    PreparedResources::prepare(job, &BuildContext { pins, ..context.clone() })
}

/// Pods are the same whatever the address is.
fn applied(job: &ValidatedJob, context: &BuildContext) -> AppliedResources {
    AppliedResources::new("10.96.0.10".to_owned(), PinnedConfig::read(prepared(job, context).config))
}

/// Processor time of the cluster's servers for objects of each kind, in all rounds together.
#[derive(Default)]
struct Costs(Vec<(String, usize, f64)>);

impl Costs {
    fn add(&mut self, kind: &str, objects: usize, seconds: f64) {
        match self.0.iter_mut().find(|(of, ..)| of == kind) {
            Some((_, count, sum)) => (*count, *sum) = (*count + objects, *sum + seconds),
            None => self.0.push((kind.to_owned(), objects, seconds)),
        }
    }

    fn report(&self, rounds: usize) {
        if self.0.is_empty() {
            return;
        }
        println!("\nWhat each object costs the servers while the bare creator makes it, what other controllers do meanwhile included.\n");
        println!("| kind | of a job of {WORKERS} workers | processor milliseconds each |");
        println!("|---|---|---|");
        for (kind, objects, seconds) in &self.0 {
            let (of_a_job, each) = (objects / (JOBS * rounds), seconds * 1000.0 / f64::from(u32::try_from(*objects).unwrap_or(u32::MAX)));
            println!("| {kind} | {of_a_job} | {each:.1} |");
        }
    }
}

/// Measures what the creation of objects takes.
struct Meter<'a> {
    servers: &'a [u32],
    costs: &'a mut Costs,
}

impl Meter<'_> {
    async fn create<K>(&mut self, client: &Client, namespace: &str, objects: Vec<K>) -> Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + std::fmt::Debug + Serialize + DeserializeOwned,
    {
        let (before, count) = (cpu_times(self.servers)?, objects.len());
        create_all(client, namespace, objects).await?;
        self.costs.add(&K::kind(&()), count, cpu_times(self.servers)? - before);
        Ok(())
    }
}

async fn create_bare(client: &Client, names: &[String], context: &BuildContext, mut meter: Meter<'_>) -> Result<()> {
    fn unowned<K: Resource>(mut object: K) -> K {
        object.meta_mut().owner_references = None;
        object
    }
    let valid: Vec<_> = names.iter().map(|name| Ok(validate(&manifest(name))?)).collect::<Result<_>>()?;
    let namespace = &context.namespace;
    let files = [("certificates".to_owned(), ByteString(vec![b'x'; CERTIFICATES_BYTES]))];
    let secret = |job| build_secret(job, context, files.clone().into());
    meter.create(client, namespace, valid.iter().map(|job| unowned(prepared(job, context).account)).collect()).await?;
    meter.create(client, namespace, valid.iter().map(|job| unowned(prepared(job, context).config)).collect()).await?;
    meter.create(client, namespace, valid.iter().map(|job| unowned(secret(job))).collect()).await?;
    meter.create(client, namespace, valid.iter().map(|job| unowned(prepared(job, context).budget)).collect()).await?;
    let policies = valid.iter().flat_map(|job| prepared(job, context).policies);
    meter.create(client, namespace, policies.map(unowned).collect()).await?;
    meter.create(client, namespace, valid.iter().map(|job| unowned(prepared(job, context).service)).collect()).await?;
    let mut pods = Vec::new();
    for job in &valid {
        pods.push(unowned(applied(job, context).coordinator_pod(job, context, 1)));
        for index in 0..WORKERS {
            pods.push(unowned(applied(job, context).worker_pod(job, context, u32::try_from(index)?)?));
        }
    }
    meter.create(client, namespace, pods).await
}

/// Ends when all worker pods were seen. The coordinators' pods do not bear the label.
async fn wait_for_pods(client: &Client, namespace: &str) -> Result<()> {
    let api = Api::<PartialObjectMeta<Pod>>::namespaced(client.clone(), namespace);
    let config = watcher::Config::default().labels(&format!("{}={}", LABEL.0, LABEL.1));
    let mut pods = pin!(watcher(api, config).applied_objects());
    let mut seen = BTreeSet::new();
    while let Some(pod) = pods.try_next().await? {
        seen.insert(pod.name_any());
        if seen.len() == JOBS * WORKERS {
            return Ok(());
        }
    }
    bail!("the watch ended after {} pods", seen.len())
}

/// Deletes everything in the namespace and waits until it is gone: what is left would slow the next side down.
async fn clear(client: &Client, namespace: &str) -> Result<()> {
    let background = DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
    let every = ListParams::default();
    Api::<LCLTrainingJob>::namespaced(client.clone(), namespace).delete_collection(&background, &every).await?;
    Api::<Job>::namespaced(client.clone(), namespace).delete_collection(&background, &every).await?;
    Api::<ConfigMap>::namespaced(client.clone(), namespace).delete_collection(&background, &every).await?;
    Api::<Namespace>::all(client.clone()).delete(namespace, &background).await?;
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    pods.delete_collection(&DeleteParams::default().grace_period(0), &every).await?;
    let services = Api::<Service>::namespaced(client.clone(), namespace);
    let namespaces = Api::<Namespace>::all(client.clone());
    let end = Instant::now() + PATIENCE;
    loop {
        let (pods, services) = (pods.list_metadata(&every).await?.items.len(), services.list_metadata(&every).await?.items.len());
        if pods == 0 && services == 0 && namespaces.get_opt(namespace).await?.is_none() {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("{pods} pods and {services} Services are left in {namespace}");
        }
        tokio::time::sleep(POLL).await;
    }
}

fn cpu_times(processes: &[u32]) -> Result<f64> {
    processes.iter().map(|process| cpu_time(*process)).sum()
}

fn report(rounds: usize, sides: &[Side], runs: &[(Side, Run)], taken: &[Taken]) {
    let processors = thread::available_parallelism().map_or(0, usize::from);
    println!(
        "{JOBS} jobs of {WORKERS} workers, {rounds} rounds, in turns; {processors} processors for everything, the API server and etcd included. Median (lowest to highest).\n"
    );
    println!(
        "| side | all jobs accepted, s | all {} worker pods there, s | worker pods/s | processor seconds of the cluster's servers | and until {SETTLING:?} later | of the operator until then |",
        JOBS * WORKERS
    );
    println!("|---|---|---|---|---|---|---|");
    for &side in sides {
        let of = |value: fn(&Run) -> f64| sorted(runs.iter().filter(|(of, _)| *of == side).map(|(_, run)| value(run)));
        let (accepted, pods) = (of(|run| run.accepted), of(|run| run.pods));
        let (servers, settled, operator) = (of(|run| run.servers_cpu), of(|run| run.settled_cpu), of(|run| run.operator_cpu));
        let rate = f64::from(u32::try_from(JOBS * WORKERS).unwrap_or(u32::MAX)) / pods[pods.len() / 2];
        let operator = if side.is_operator() { spread(&operator) } else { String::new() };
        println!(
            "| {} | {} | {} | {rate:.0} | {} | {} | {operator} |",
            side.name(),
            spread(&accepted),
            spread(&pods),
            spread(&servers),
            spread(&settled)
        );
    }
    for &side in sides.iter().filter(|side| side.is_operator()) {
        let of_it = || taken.iter().filter(|taken| taken.side == side);
        let (cpu, peak) = (sorted(of_it().map(|taken| taken.cpu)), of_it().map(|taken| taken.peak_kib).max().unwrap_or(0));
        println!(
            "\n{} took {} s of processor time for a round, deletion included, and {} MiB of memory at its peak.",
            side.name(),
            spread(&cpu),
            peak / 1024
        );
    }
}

/// Which of the servers were busy: medians.
fn report_servers(names: &[&str], sides: &[Side], runs: &[(Side, Run)]) {
    println!("\nProcessor seconds of each server until {SETTLING:?} after all pods were there, medians.\n");
    println!("| side | {} |", names.join(" | "));
    println!("|---|{}", "---|".repeat(names.len()));
    for &side in sides {
        let of = |place: usize| {
            let all = sorted(runs.iter().filter(|(of, _)| *of == side).map(|(_, run)| run.each_cpu[place]));
            format!("{:.1}", all[all.len() / 2])
        };
        let each: Vec<String> = (0..names.len()).map(of).collect();
        println!("| {} | {} |", side.name(), each.join(" | "));
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values
}

fn spread(sorted: &[f64]) -> String {
    format!("{:.1} ({:.1} to {:.1})", sorted[sorted.len() / 2], sorted[0], sorted[sorted.len() - 1])
}
