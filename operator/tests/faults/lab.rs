//! A cluster with played nodes, and in it namespaces with one job and one operator each.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, ensure};
use lcl_cluster::ClusterOptions;
use serde_json::{Value, json};

use super::{
    jobs::{assign, minimal_job},
    kubelet::Kubelets,
    support::{Installed, Operator, SYSTEM, name_of, wait_for},
};

/// Nodes enough for pods to be spread.
const NODES: usize = 3;
/// Each change of a job that nothing follows from is another one.
static TURNS: AtomicU32 = AtomicU32::new(0);
/// Name of the job in every namespace.
pub(crate) const JOB: &str = "job";

/// The cluster.
pub(crate) struct Lab {
    // Ends before the cluster does.
    pub(crate) kubelets: Kubelets,
    pub(crate) installed: Installed,
    /// With the rights of the operator.
    pub(crate) kubeconfig: PathBuf,
}

impl Lab {
    pub(crate) fn start() -> Result<Self> {
        let installed = Installed::start(&ClusterOptions::default(), &[])?;
        let kubelets = Kubelets::start(&installed, NODES)?;
        allow_leases(&installed)?;
        let kubeconfig = installed.kubeconfig_of("lcl-operator")?;
        Ok(Self { kubelets, installed, kubeconfig })
    }

    /// Makes a namespace.
    pub(crate) fn place(&self, namespace: &str) -> Result<Place<'_>> {
        self.installed.send("POST", "/api/v1/namespaces", &json!({ "metadata": { "name": namespace } }))?;
        Ok(Place { lab: self, namespace: namespace.to_owned() })
    }
}

/// Each namespace has an operator of its own, as releases of the chart would: their leases have other names than that of one release.
fn allow_leases(installed: &Installed) -> Result<()> {
    let rbac = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{SYSTEM}");
    let rules = json!([{ "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"] }]);
    installed.send("POST", &format!("{rbac}/roles"), &json!({ "metadata": { "name": "all-leases" }, "rules": rules }))?;
    let binding = json!({
        "metadata": { "name": "all-leases" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "all-leases" },
        "subjects": [{ "kind": "ServiceAccount", "name": "lcl-operator", "namespace": SYSTEM }],
    });
    installed.send("POST", &format!("{rbac}/rolebindings"), &binding).map(drop)
}

/// A namespace.
pub(crate) struct Place<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) namespace: String,
}

impl Place<'_> {
    fn installed(&self) -> &Installed {
        &self.lab.installed
    }

    /// Path of what Kubernetes itself has here.
    pub(crate) fn objects(&self, what: &str) -> String {
        format!("/api/v1/namespaces/{}/{what}", self.namespace)
    }

    fn jobs(&self) -> String {
        format!("/apis/lcl.dev/v1alpha1/namespaces/{}/lcltrainingjobs", self.namespace)
    }

    /// Path of the job.
    pub(crate) fn job_path(&self) -> String {
        format!("{}/{JOB}", self.jobs())
    }

    /// Creates the job.
    pub(crate) fn create_job(&self, workers: u32, assignments: &str) -> Result<()> {
        let mut job = minimal_job();
        let size = format!("spec.workers = {{'replicas': {workers}}}; spec.elastic = {{'minWorkers': 1, 'maxWorkers': {workers}}}");
        assign(&mut job, &format!("{size}; spec.optimization.globalBatchSize = 64; {assignments}"));
        job["metadata"]["name"] = json!(JOB);
        self.installed().send("POST", &self.jobs(), &job).map(drop)
    }

    pub(crate) fn job(&self) -> Result<Value> {
        self.installed().look(&self.job_path())
    }

    pub(crate) fn delete_job(&self) -> Result<()> {
        self.installed().send("DELETE", &self.job_path(), &json!({ "propagationPolicy": "Background" })).map(drop)
    }

    /// All pods, also those that are being deleted.
    pub(crate) fn pods(&self) -> Result<Vec<Value>> {
        let mut pods = self.installed().look(&self.objects("pods"))?["items"].as_array().cloned().context("no list of pods")?;
        pods.sort_by_key(name_of);
        Ok(pods)
    }

    /// An operator of this namespace alone.
    pub(crate) fn start_operator(&self, kubeconfig: &Path) -> Result<Operator> {
        self.start_operator_with(kubeconfig, &[])
    }

    /// The same with further variables in its environment.
    pub(crate) fn start_operator_with(&self, kubeconfig: &Path, environment: &[(&str, &str)]) -> Result<Operator> {
        let here = [format!("--watch-namespaces={}", self.namespace), format!("--pod-name={}", self.namespace)];
        let arguments = ["--leader-elect", "--pod-namespace=lcl-system", "--network-policies", &here[0], &here[1]];
        self.installed().start_operator_in(environment, kubeconfig, &arguments)
    }

    /// What an operator that is killed cannot do: the next one need not wait until the lease has run out.
    pub(crate) fn hand_lease_back(&self) -> Result<()> {
        let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases");
        let all = self.installed().look(&leases)?;
        let prefix = format!("{}_", self.namespace);
        let is_ours = |lease: &&Value| lease["spec"]["holderIdentity"].as_str().is_some_and(|holder| holder.starts_with(&prefix));
        let ours = all["items"].as_array().into_iter().flatten().find(is_ours).context("nobody here held a lease")?;
        self.installed().send("DELETE", &format!("{leases}/{}", name_of(ours)), &json!({})).map(drop)
    }

    /// Something about the job changes that nothing follows from, and the operator has looked at it; `gives_up` ends the wait.
    pub(crate) fn look_once_more(&self, operator: &Operator, gives_up: impl Fn() -> bool) -> Result<()> {
        let looks = operator.reconciles();
        let patch = json!({ "metadata": { "annotations": { "example.com/turn": TURNS.fetch_add(1, Ordering::Relaxed).to_string() } } });
        self.installed().send("PATCH", &self.job_path(), &patch)?;
        wait_for("one more look", || {
            ensure!(operator.reconciles() > looks || gives_up(), "not yet");
            Ok(())
        })
    }
}

/// Names and uids of pods.
pub(crate) fn uids(pods: &[Value]) -> BTreeMap<String, String> {
    pods.iter().map(|pod| (name_of(pod), pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned())).collect()
}

/// Epoch of the coordinator's pod.
pub(crate) fn epoch_of(pods: &[Value]) -> Option<i64> {
    pods.iter().find_map(|pod| pod["metadata"]["annotations"]["lcl.dev/coordinator-epoch"].as_str()?.parse().ok())
}
