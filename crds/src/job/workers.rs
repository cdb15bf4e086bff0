//! `spec.workers` and `spec.elastic`: the processes that train.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::PodTemplateSpec, apimachinery::pkg::api::resource::Quantity};
use kube::KubeSchema;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{names::MAX_WORKERS, patterns::QUANTITY, pod_template::pod_template_schema};

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
        "has(self.requests) == has(oldSelf.requests) && (!has(self.requests) || self.requests == oldSelf.requests)"
    )
    .message("must not change after the job was created")
    .field_path(".requests"),
    validation = Rule::new(A_GPU_FOR_EACH_MEMBER)
        .message("nvidia.com/gpu must be the number in membersPerWorker: every member computes on a GPU of its own")
        .field_path(".requests"),
)]
pub struct WorkersSpec {
    /// Wanted number of workers; one worker is one pod. `kubectl scale` changes it.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = MAX_WORKERS))]
    pub replicas: i32,
    /// Training processes in each worker. On GPUs one member per GPU.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 64))]
    #[x_kube(validation = ("self == oldSelf", "must not change after the job was created"))]
    pub members_per_worker: i32,
    /// What each worker asks of its node, such as `cpu: "8"`, `memory: 32Gi`, `nvidia.com/gpu: 1`. A short form for the resources of the
    /// container `worker` in the template; only one of both may be given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "requests_schema")]
    pub requests: Option<BTreeMap<String, Quantity>>,
    /// Pod of a worker. The trainer runs in the container named `worker`: give it volume mounts, environment or resources under this
    /// name; everything left out is filled in. Further containers, volumes, tolerations and so on are kept as they are.
    /// With `lcl run --local` no pod exists: paths of the manifest below a mount of the container `worker` are looked up in the volume's
    /// local folder, which is a hostPath volume's own path or that given by `--volume NAME=DIR`; other paths are used as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "pod_template_schema")]
    pub template: Option<PodTemplateSpec>,
}

/// A quantity may be written as a number or as a string. The same rule over the template's containers costs more than an API server allows.
const A_GPU_FOR_EACH_MEMBER: &str = "!has(self.requests) || !('nvidia.com/gpu' in self.requests) \
    || string(self.requests['nvidia.com/gpu']) == string(self.membersPerWorker)";

/// Names as Kubernetes has them, with amounts.
fn requests_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 64,
        "additionalProperties": { "x-kubernetes-int-or-string": true, "pattern": QUANTITY },
    })
}

impl Default for WorkersSpec {
    fn default() -> Self {
        Self { replicas: one(), members_per_worker: one(), requests: None, template: None }
    }
}

fn one() -> i32 {
    1
}

/// Between how many workers the job may run, and how long it waits for one.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ElasticSpec {
    /// Fewest workers the job runs with; below it the job waits.
    #[schemars(range(min = 1, max = MAX_WORKERS))]
    pub min_workers: i32,
    /// Most workers the job may be scaled to.
    #[schemars(range(min = 1, max = MAX_WORKERS))]
    pub max_workers: i32,
    /// Seconds without a word after which a member is lost and the others go on; a connection that breaks is noticed at once. Several signs
    /// of life have to fit in: members give one a second. 10 when left out. A change takes effect on a running job: its coordinator is
    /// replaced, no worker is, and training goes on meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 3, max = MAX_TIMEOUT))]
    pub heartbeat_timeout_seconds: Option<i32>,
    /// Seconds that a member's training thread may stand still while others wait for it, before the member is taken for hung and evicted;
    /// has to be longer than any step. 120 when left out. Changes as `heartbeatTimeoutSeconds` does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = MAX_TIMEOUT))]
    pub stall_timeout_seconds: Option<i32>,
    /// Seconds to wait for `workers.replicas` workers once `minWorkers` are there, before training starts with those; survivors of a loss go
    /// on at once. 30 when left out, 60 with `lcl run --local`. Changes as `heartbeatTimeoutSeconds` does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_TIMEOUT))]
    pub formation_wait_seconds: Option<i32>,
}

/// A day: longer waits are no time-outs any more.
const MAX_TIMEOUT: i32 = 86_400;
