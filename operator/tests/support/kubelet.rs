//! Nodes without containers: what kubelets tell the API server, told at once. Pods are bound to them by the real scheduler.
//!
//! A worker's pod is ready as soon as it is bound, ends when a test says so, and lets go when it is deleted. A coordinator's pod runs the real
//! program, with the environment and the Secret that its pod has, so that the operator's link to it is the real one; its members are never
//! there, since nothing that is tested with this depends on training.

#![allow(dead_code, reason = "every test uses a part")]

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Node, Pod, Secret},
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, EvictParams, Patch, PatchParams, PostParams, Preconditions},
    runtime::{watcher, watcher::Event},
};
use serde_json::{Value, json};
use tokio::{runtime::Runtime, time};

use super::support::{Installed, connect, program};

/// As kubelets do: a node whose lease is not renewed for 50 s is given up.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Between two looks for a Secret that a pod needs; a kubelet takes longer.
const SECRET_LOOK: Duration = Duration::from_millis(50);
/// What a program that was asked to leave ends with (docs/operations.md).
pub(crate) const LEFT: i32 = 80;

/// A pod that was there at some time.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    /// A coordinator's.
    pub(crate) epoch: Option<u64>,
}

/// All kubelets of a cluster. They end with this value.
pub(crate) struct Kubelets {
    runtime: Runtime,
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    folder: PathBuf,
    coordinator: PathBuf,
    /// The first two parts of the pods' addresses: each cluster has its own.
    network: String,
    addresses: AtomicU32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    seen: Vec<Seen>,
    /// Pods that were started, and those that are ending.
    started: HashSet<String>,
    ending: HashSet<String>,
    silent: HashSet<String>,
    coordinators: HashMap<String, Child>,
}

impl Kubelets {
    /// Joins so many nodes to a cluster that has none.
    pub(crate) fn start(installed: &Installed, nodes: usize) -> Result<Self> {
        let ready = installed.cluster.ready();
        let runtime = Runtime::new()?;
        let client = runtime.block_on(connect(&ready.kubeconfig))?;
        // The control plane listens on 127.77.SLOT.1.
        let server = installed.kubectl(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"])?;
        let slot: u32 = server.split('.').nth(2).and_then(|part| part.parse().ok()).with_context(|| server.clone())?;
        ensure!(slot < 150, "no network for slot {slot}");
        let shared = Arc::new(Shared {
            client,
            folder: ready.folder.clone(),
            coordinator: program("lcl-coordinator")?,
            network: format!("127.{}", 100 + slot),
            addresses: AtomicU32::new(1),
            state: Mutex::default(),
        });
        let names: Vec<_> = (0..nodes).map(|index| format!("node-{index}")).collect();
        runtime.block_on(async {
            for name in &names {
                shared.register(name).await?;
            }
            anyhow::Ok(())
        })?;
        runtime.spawn(Arc::clone(&shared).keep_alive(names));
        runtime.spawn(Arc::clone(&shared).follow());
        Ok(Self { runtime, shared })
    }

    /// Every pod of a namespace that was ever there, in the order of their creation.
    pub(crate) fn seen(&self, namespace: &str) -> Vec<Seen> {
        self.shared.lock().seen.iter().filter(|seen| seen.namespace == namespace).cloned().collect()
    }

    /// A container ends by itself.
    pub(crate) fn exit(&self, namespace: &str, pod: &str, code: i32, message: &str) -> Result<()> {
        self.runtime.block_on(async {
            let pod = self.shared.pods(namespace).get(pod).await?;
            self.shared.end(&pod, code, message).await
        })
    }

    /// A node does nothing any more and says nothing.
    pub(crate) fn silence(&self, node: &str) {
        self.shared.lock().silent.insert(node.to_owned());
    }

    /// As `kubectl drain` does with a pod: it gets the condition `DisruptionTarget`, and is deleted.
    pub(crate) fn evict(&self, namespace: &str, pod: &str) -> Result<()> {
        self.runtime.block_on(self.shared.pods(namespace).evict(pod, &EvictParams::default()))?;
        Ok(())
    }
}

impl Drop for Kubelets {
    fn drop(&mut self) {
        for coordinator in self.shared.lock().coordinators.values_mut() {
            // It may have ended already.
            let _ = coordinator.kill();
            let _ = coordinator.wait();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn register(&self, name: &str) -> Result<()> {
        let resources = json!({ "cpu": "1000", "memory": "1000Gi", "pods": "10000", "ephemeral-storage": "1000Gi" });
        let now = Timestamp::now().to_string();
        let ready = json!({
            "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "", "lastHeartbeatTime": now, "lastTransitionTime": now,
        });
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
            "status": { "capacity": resources, "allocatable": resources, "conditions": [ready] },
        });
        Api::<Node>::all(self.client.clone()).create(&PostParams::default(), &serde_json::from_value(node)?).await?;
        Ok(())
    }

    async fn keep_alive(self: Arc<Self>, nodes: Vec<String>) {
        let leases = Api::<Lease>::namespaced(self.client.clone(), "kube-node-lease");
        loop {
            for name in &nodes {
                if self.lock().silent.contains(name) {
                    continue;
                }
                let now = Timestamp::now();
                let lease = json!({
                    "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": name },
                    "spec": { "holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": format!("{now:.6}") },
                });
                tell(leases.patch(name, &PatchParams::apply("kubelet").force(), &Patch::Apply(lease)).await);
            }
            time::sleep(HEARTBEAT).await;
        }
    }

    async fn follow(self: Arc<Self>) {
        let mut events = std::pin::pin!(watcher(Api::<Pod>::all(self.client.clone()), watcher::Config::default()));
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Apply(pod) | Event::InitApply(pod)) => {
                    self.note(&pod);
                    tokio::spawn(Arc::clone(&self).look_at(pod));
                }
                Ok(Event::Delete(pod)) => self.forget(&pod),
                Ok(Event::Init | Event::InitDone) => {}
                Err(error) => eprintln!("kubelets: {error}"),
            }
        }
    }

    fn note(&self, pod: &Pod) {
        let uid = pod.uid().unwrap_or_default();
        let mut state = self.lock();
        if !state.seen.iter().any(|seen| seen.uid == uid) {
            let epoch = pod.annotations().get("lcl.dev/coordinator-epoch").and_then(|epoch| epoch.parse().ok());
            state.seen.push(Seen { namespace: pod.namespace().unwrap_or_default(), name: pod.name_any(), uid, epoch });
        }
    }

    fn forget(&self, pod: &Pod) {
        self.stop_program(&pod.uid().unwrap_or_default());
    }

    fn stop_program(&self, uid: &str) {
        let coordinator = self.lock().coordinators.remove(uid);
        if let Some(mut coordinator) = coordinator {
            // It may have ended already.
            let _ = coordinator.kill();
            let _ = coordinator.wait();
        }
    }

    /// Brings a pod of these nodes on: once to its start, once to its end.
    async fn look_at(self: Arc<Self>, pod: Pod) {
        let uid = pod.uid().unwrap_or_default();
        let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) else { return };
        let is_deleted = pod.metadata.deletion_timestamp.is_some();
        {
            let mut state = self.lock();
            let State { silent, started, ending, .. } = &mut *state;
            let known = if is_deleted { ending } else { started };
            if silent.contains(node) || !known.insert(uid) {
                return;
            }
        }
        tell(if is_deleted { self.let_go(&pod).await } else { self.start(&pod).await });
    }

    async fn start(&self, pod: &Pod) -> Result<()> {
        let number = self.addresses.fetch_add(1, Ordering::Relaxed);
        let ip = format!("{}.{}.{}", self.network, number / 250, number % 250 + 1);
        if pod.labels().get("lcl.dev/role").is_some_and(|role| role == "coordinator") {
            self.start_coordinator(pod, &ip).await?;
        }
        let conditions: Vec<_> = ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
            .map(|type_| json!({ "type": type_, "status": "True", "lastTransitionTime": Timestamp::now().to_string() }))
            .into();
        let state = json!({ "running": { "startedAt": Timestamp::now().to_string() } });
        let status = json!({
            "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }], "startTime": Timestamp::now().to_string(),
            "conditions": conditions, "containerStatuses": container_statuses(pod, true, &state),
        });
        self.write_status(pod, status).await
    }

    /// The program of a coordinator's pod. A pod whose Secret is missing waits for it.
    async fn start_coordinator(&self, pod: &Pod, ip: &str) -> Result<()> {
        let (uid, namespace) = (pod.uid().unwrap_or_default(), pod.namespace().unwrap_or_default());
        let spec = pod.spec.as_ref().context("no spec")?;
        let container = spec.containers.first().context("no container")?;
        let plain = container.env.iter().flatten().filter_map(|variable| Some((variable.name.clone(), variable.value.clone()?)));
        let mut environment: BTreeMap<_, _> = plain.collect();
        let mounted = spec.volumes.iter().flatten().find_map(|volume| volume.secret.as_ref()?.secret_name.clone());
        let name = mounted.context("the coordinator mounts no Secret")?;
        let secrets = Api::<Secret>::namespaced(self.client.clone(), &namespace);
        let secret = loop {
            if let Some(secret) = secrets.get_opt(&name).await? {
                break secret;
            }
            time::sleep(SECRET_LOOK).await;
        };
        let folder = self.folder.join("pods").join(&uid);
        fs::create_dir_all(&folder)?;
        for (name, bytes) in secret.data.iter().flatten() {
            fs::write(folder.join(name), &bytes.0)?;
        }
        for (name, value) in &mut environment {
            if name.starts_with("LCL_TLS_") {
                let file = value.rsplit('/').next().unwrap_or_default();
                *value = folder.join(file).display().to_string();
            }
            *value = value.replace("0.0.0.0", ip);
        }
        let mut command = Command::new(&self.coordinator);
        command.envs(&environment).arg("--ends-with-stdin").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(fs::File::create(folder.join("log"))?).spawn()?;
        let output = child.stdout.take().context("no output")?;
        self.lock().coordinators.insert(uid, child);
        let announced = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(output).read_line(&mut line).map(|_| line)
        });
        let announced = announced.await??;
        ensure!(announced.contains("listening"), "the coordinator says {announced:?}; see {}", folder.display());
        Ok(())
    }

    /// What was asked to end has ended, and the pod goes.
    async fn let_go(&self, pod: &Pod) -> Result<()> {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
        if phase == "Running" {
            self.end(pod, LEFT, "asked to leave").await?;
        }
        self.stop_program(&pod.uid().unwrap_or_default());
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: pod.uid(), resource_version: None }),
            ..DeleteParams::default()
        };
        self.pods(&pod.namespace().unwrap_or_default()).delete(&pod.name_any(), &parameters).await?;
        Ok(())
    }

    async fn end(&self, pod: &Pod, code: i32, message: &str) -> Result<()> {
        self.stop_program(&pod.uid().unwrap_or_default());
        let now = Timestamp::now().to_string();
        let reason = if code == 0 { "Completed" } else { "Error" };
        let state = json!({ "terminated": {
            "exitCode": code, "reason": reason, "message": message, "startedAt": now, "finishedAt": now,
        } });
        let phase = if code == 0 { "Succeeded" } else { "Failed" };
        // In two steps, as a kubelet does: the phase follows once it is sure that nothing of the pod runs any more. By then somebody may have
        // deleted it.
        self.write_status(pod, json!({ "containerStatuses": container_statuses(pod, false, &state) })).await?;
        match self.write_status(pod, json!({ "phase": phase })).await {
            Err(error) if is_gone(&error) => Ok(()),
            written => written,
        }
    }

    async fn write_status(&self, pod: &Pod, status: Value) -> Result<()> {
        let patch = Patch::Merge(json!({ "metadata": { "uid": pod.uid() }, "status": status }));
        self.pods(&pod.namespace().unwrap_or_default()).patch_status(&pod.name_any(), &PatchParams::default(), &patch).await?;
        Ok(())
    }
}

fn container_statuses(pod: &Pod, is_ready: bool, state: &Value) -> Vec<Value> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let status = |container: &k8s_openapi::api::core::v1::Container| {
        json!({
            "name": container.name, "image": container.image, "imageID": "", "ready": is_ready, "started": is_ready, "restartCount": 0,
            "state": state,
        })
    };
    containers.map(status).collect()
}

/// A pod may go at any time, also while its node says something of it.
fn tell<T>(result: Result<T, impl Into<anyhow::Error>>) {
    let Err(error) = result.map_err(Into::into) else { return };
    if !is_gone(&error) {
        eprintln!("kubelets: {error:#}");
    }
}

fn is_gone(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(|error| matches!(error, kube::Error::Api(answer) if answer.code == 404 || answer.code == 409))
}
