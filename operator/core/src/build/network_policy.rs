//! Who may reach a job's pods over the network.
//!
//! What comes in is limited, what goes out is not: workers read data and write checkpoints wherever the job says. What the kubelet asks of a
//! pod comes from its own node, which no policy keeps away. Policies add up: who wants a sidecar reached writes one more.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::networking::v1::{NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use crate::{
    build::{
        BuildContext, COORDINATOR_PORT, coordinator_name,
        coordinator_pod::METRICS_PORT,
        labels::{COORDINATOR_ROLE, WORKER_ROLE, pod_labels},
        metadata, workers_name,
    },
    job::ValidatedJob,
};

/// Label that every namespace has, with its name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// From where a job's pods are reached, beside the job's own pods.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkAccess {
    /// Namespace of the operator.
    pub operator_namespace: String,
    /// Labels of its pods; all of the namespace's when empty.
    pub operator_labels: BTreeMap<String, String>,
    /// Who may read metrics; everybody when empty.
    pub metrics_from: Vec<NetworkPolicyPeer>,
}

/// Names of a job's policies, whether it has any.
#[must_use]
pub fn network_policy_names(job: &ValidatedJob) -> [String; 2] {
    [coordinator_name(job), workers_name(job)]
}

/// The coordinator is reached by the job's own pods and the operator, and its metrics by whom the chart says; workers by the job's workers,
/// on every port, since a group finds free ones anew each time.
pub(crate) fn build_network_policies(job: &ValidatedJob, context: &BuildContext) -> Vec<NetworkPolicy> {
    let Some(access) = &context.network else { return Vec::new() };
    // On the node's network a worker has the node's address, which no selector names, and no policy holds for it.
    let is_on_host = job.pod().and_then(|pod| pod.host_network) == Some(true);
    let operator = NetworkPolicyPeer {
        namespace_selector: Some(selector([(NAMESPACE_NAME.to_owned(), access.operator_namespace.clone())].into())),
        pod_selector: (!access.operator_labels.is_empty()).then(|| selector(access.operator_labels.clone())),
        ip_block: None,
    };
    let grpc_from = if is_on_host { None } else { Some(vec![own_pods(job, context, None), operator]) };
    let metrics_from = (!access.metrics_from.is_empty()).then(|| access.metrics_from.clone());
    let to_coordinator = vec![rule(grpc_from, Some(COORDINATOR_PORT)), rule(metrics_from, Some(METRICS_PORT))];
    let to_workers = vec![rule(Some(vec![own_pods(job, context, Some(WORKER_ROLE))]), None)];
    let [coordinators, workers] = network_policy_names(job);
    [(coordinators, COORDINATOR_ROLE, to_coordinator), (workers, WORKER_ROLE, to_workers)]
        .map(|(name, role, ingress)| NetworkPolicy {
            metadata: metadata(job, context, name, role),
            spec: Some(NetworkPolicySpec {
                pod_selector: Some(selector(pod_labels(job, context, Some(role)))),
                policy_types: Some(vec!["Ingress".to_owned()]),
                ingress: Some(ingress),
                egress: None,
            }),
        })
        .into()
}

/// `None` for `from` is everybody, for `port` every port.
fn rule(from: Option<Vec<NetworkPolicyPeer>>, port: Option<i32>) -> NetworkPolicyIngressRule {
    let tcp = |number| NetworkPolicyPort { port: Some(IntOrString::Int(number)), protocol: Some("TCP".to_owned()), end_port: None };
    NetworkPolicyIngressRule { from, ports: port.map(|number| vec![tcp(number)]) }
}

/// Of the policy's own namespace.
fn own_pods(job: &ValidatedJob, context: &BuildContext, role: Option<&str>) -> NetworkPolicyPeer {
    NetworkPolicyPeer { pod_selector: Some(selector(pod_labels(job, context, role))), ..NetworkPolicyPeer::default() }
}

fn selector(labels: BTreeMap<String, String>) -> LabelSelector {
    LabelSelector { match_labels: Some(labels), match_expressions: None }
}
