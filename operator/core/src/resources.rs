//! The objects of a job that are not pods, before and after they were applied.
//!
//! Comes in: a valid job and what its group has pinned. Goes out: [`PreparedResources`], which say what has to be there; once all of it is there,
//! [`AppliedResources`], without which no pod is built: a pod without its configuration or its coordinator's address could not start. Of what
//! is there they have only what pods are made of, since they are kept as long as the job has pods.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    core::v1::{ConfigMap, Pod, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};

use crate::{
    build::{
        BuildContext, avoid_node, build_config_map, build_coordinator_pod, build_disruption_budget, build_network_policies, build_service,
        build_service_account, build_worker_pod, exclude_nodes,
    },
    job::ValidatedJob,
    validate::FieldErrors,
};

/// A job's objects that are not pods, as they have to be.
#[derive(Clone, Debug)]
pub struct PreparedResources {
    /// Without rights; its name is in every pod.
    pub account: ServiceAccount,
    /// The coordinator's address.
    pub service: Service,
    /// The trainer's configuration, under the pinned name.
    pub config: ConfigMap,
    /// How many workers a drain of nodes may take.
    pub budget: PodDisruptionBudget,
    /// Who may reach the pods; none where that is left to the network.
    pub policies: Vec<NetworkPolicy>,
}

/// What pods are made of, from objects that are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedResources {
    address: String,
    config: PinnedConfig,
}

/// The configuration of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedConfig {
    /// Name of its `ConfigMap`.
    pub name: String,
    /// What that holds, by file.
    pub files: BTreeMap<String, String>,
}

impl PinnedConfig {
    /// That of a `ConfigMap`.
    #[must_use]
    pub fn read(config: ConfigMap) -> Self {
        Self { name: config.metadata.name.unwrap_or_default(), files: config.data.unwrap_or_default() }
    }
}

/// The address of a coordinator's Service, if it has one.
#[must_use]
pub fn address_of(service: &Service) -> Option<&str> {
    service.spec.as_ref()?.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None")
}

impl PreparedResources {
    /// What a job needs.
    #[must_use]
    pub fn prepare(job: &ValidatedJob, context: &BuildContext) -> Self {
        Self {
            account: build_service_account(job, context),
            service: build_service(job, context),
            config: build_config_map(job, context),
            budget: build_disruption_budget(job, context),
            policies: build_network_policies(job, context),
        }
    }
}

impl AppliedResources {
    /// All of them were applied: the address that the coordinator's Service has got ([`address_of`]), and the configuration.
    #[must_use]
    pub fn new(address: String, config: PinnedConfig) -> Self {
        Self { address, config }
    }

    /// Cluster IP of the coordinator's Service.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &PinnedConfig {
        &self.config
    }

    /// `<job>-coordinator` for the given epoch, a number that grows with every coordinator of the job: by it members and checkpoints tell a
    /// new coordinator from an old one. It keeps nothing on disk.
    #[must_use]
    pub fn coordinator_pod(&self, job: &ValidatedJob, context: &BuildContext, epoch: u64) -> Pod {
        build_coordinator_pod(job, context, epoch)
    }

    /// `<job>-w-<index>`: the same for every size of the world, so that scaling touches no pod that stays. Refused is one that would do what
    /// is not allowed, whatever was asked of its job when that was read.
    pub fn worker_pod(&self, job: &ValidatedJob, context: &BuildContext, index: u32) -> Result<Pod, FieldErrors> {
        let mut pod = build_worker_pod(job, context, self, index);
        exclude_nodes(&mut pod, context.excluded_nodes.iter().map(String::as_str));
        let breaches = context.policy.check("pod", Some(&pod.metadata), pod.spec.as_ref());
        if breaches.is_empty() { Ok(pod) } else { Err(FieldErrors::from(breaches)) }
    }

    /// The same, placed elsewhere than on this node where there is room: it gave no sign of life, and Kubernetes has not noticed yet.
    ///
    /// # Errors
    /// As [`Self::worker_pod`].
    pub fn worker_pod_elsewhere(&self, job: &ValidatedJob, context: &BuildContext, index: u32, node: &str) -> Result<Pod, FieldErrors> {
        let mut pod = self.worker_pod(job, context, index)?;
        avoid_node(&mut pod, node);
        Ok(pod)
    }
}
