//! `spec.workers` and `spec.elastic`: the processes that train.

use k8s_openapi::api::core::v1::{PodTemplateSpec, ResourceRequirements};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::{job::timeouts::MAX_TIMEOUT, names::MAX_WORKERS, pod_template::pod_template_schema, resources::resources_schema};

/// The processes that train.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(
        "has(self.template) == has(oldSelf.template) && (!has(self.template) || self.template == oldSelf.template)"
    )
    .message("must not change after the job was created")
    .field_path(".template"),
    validation = Rule::new(
        "has(self.resources) == has(oldSelf.resources) && (!has(self.resources) || self.resources == oldSelf.resources)"
    )
    .message("must not change after the job was created")
    .field_path(".resources"),
    validation = Rule::new(
        "has(self.membersPerWorker) == has(oldSelf.membersPerWorker) \
         && (!has(self.membersPerWorker) || self.membersPerWorker == oldSelf.membersPerWorker)"
    )
    .message("must not change after the job was created")
    .field_path(".membersPerWorker"),
    validation = Rule::new(ACCELERATORS_ARE_COUNTED)
        .message("must be a whole number of accelerators from 1 to 64, such as 8: each gets a member")
        .field_path(".resources.limits"),
    validation = Rule::new(AN_ACCELERATOR_FOR_EACH_MEMBER)
        .message("must be the number of accelerators in resources.limits, or be left out: every member computes on one of its own")
        .field_path(".membersPerWorker"),
    validation = Rule::new(RESOURCES_STAND_ONCE)
        .message("must not give resources to the container `worker`: spec.workers.resources is their place")
        .field_path(".template"),
)]
pub struct WorkersSpec {
    /// Wanted number of workers; one worker is one pod. `kubectl scale` changes it.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = MAX_WORKERS))]
    pub replicas: i32,
    /// Training processes in each worker. Default: the number of accelerators in `resources.limits`, 1 without any; if both are given they
    /// must be equal. The processors in `resources` are shared out among them as threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_MEMBERS))]
    pub members_per_worker: Option<i32>,
    /// Requests and limits of the container `worker`, such as `limits: {nvidia.com/gpu: 8, memory: 900Gi}`; the template must not give
    /// them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "resources_schema")]
    pub resources: Option<ResourceRequirements>,
    /// Name of the resource that members compute on, as the node's device plugin gives it out.
    #[serde(default = "default_accelerator")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = ("self == oldSelf", "must not change after the job was created"))]
    pub accelerator_resource: String,
    /// Pod of a worker. The trainer runs in the container named `worker`: give it volume mounts or environment under this name;
    /// everything left out is filled in. Further containers, volumes, tolerations and so on are kept as they are.
    /// With `lcl run --local` no pod exists: paths of the manifest below a mount of the container `worker` are looked up in the volume's
    /// local folder, which is a hostPath volume's own path or that given by `--volume NAME=DIR`; other paths are used as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "pod_template_schema")]
    pub template: Option<PodTemplateSpec>,
}

/// Most members of a worker: no node has more accelerators.
const MAX_MEMBERS: i32 = 64;

/// Whether the workers have accelerators; before a rule about their number.
macro_rules! with_accelerators {
    ($rule:literal) => {
        concat!("!has(self.resources) || !has(self.resources.limits) || !(self.acceleratorResource in self.resources.limits) || ", $rule)
    };
}

/// A quantity may be written as a number or as a string.
const ACCELERATORS_ARE_COUNTED: &str =
    with_accelerators!("string(self.resources.limits[self.acceleratorResource]).matches('^([1-9]|[1-5][0-9]|6[0-4])$')");

const AN_ACCELERATOR_FOR_EACH_MEMBER: &str = with_accelerators!(
    "!has(self.membersPerWorker) || string(self.resources.limits[self.acceleratorResource]) == string(self.membersPerWorker)"
);

/// The same rule over all containers costs more than an API server allows.
const RESOURCES_STAND_ONCE: &str = "!has(self.template) || !has(self.template.spec) \
    || !self.template.spec.containers.exists(c, c.name == 'worker' && has(c.resources))";

impl Default for WorkersSpec {
    fn default() -> Self {
        Self { replicas: one(), members_per_worker: None, resources: None, accelerator_resource: default_accelerator(), template: None }
    }
}

fn one() -> i32 {
    1
}

/// That of NVIDIA's device plugin.
fn default_accelerator() -> String {
    "nvidia.com/gpu".to_owned()
}

/// Between how many workers the job may run, and whether it goes on without those that are slow.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ElasticSpec {
    /// Fewest workers the job runs with; below it the job waits.
    #[schemars(range(min = 1, max = MAX_WORKERS))]
    pub min_workers: i32,
    /// Most workers the job may be scaled to.
    #[schemars(range(min = 1, max = MAX_WORKERS))]
    pub max_workers: i32,
    /// Has a member evicted that is slower than the others for good, and its worker replaced, on another node where there is room: all wait
    /// for the slowest in every step. Measured by the median of all members' own work in a step, data included, waits for others not. Of
    /// several the slowest goes, one at a time, and none that the others cannot do without: with its whole worker away `minWorkers` have to be
    /// left. Fewer than three members have no median. `{}` takes the defaults. Left out, slow members are only put on record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evict_slow_members: Option<EvictSlowMembersSpec>,
}

/// How slow a member has to be, and for how long, to be evicted.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EvictSlowMembersSpec {
    /// How many times the median its work has to take.
    #[serde(default = "default_slow_factor")]
    #[schemars(range(min = 1.2, max = 100.0))]
    pub factor: f64,
    /// Seconds for which it has to be that slow, without a break and in one group. Looked at four times within `timeouts.stallSeconds`, and at
    /// three looks at the least.
    #[serde(default = "default_slow_seconds")]
    #[schemars(range(min = 30, max = MAX_TIMEOUT))]
    pub after_seconds: i32,
}

/// Machines of one kind do not differ by so much, nor shares of a batch of usual size.
fn default_slow_factor() -> f64 {
    2.0
}

/// Longer than what passes by itself: a cache that fills, another pod on the node that starts. So there are twelve in an hour at the most, which
/// the budget for the infrastructure bears.
fn default_slow_seconds() -> i32 {
    300
}
