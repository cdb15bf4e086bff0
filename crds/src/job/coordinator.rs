//! `spec.coordinator`: what the coordinator's pod asks for, and where it may run.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, LocalObjectReference, ResourceRequirements, Toleration, TopologySpreadConstraint};
use kube::KubeSchema;
use schemars::{Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use crate::{pod_template::pod_field_schema, resources::resources_schema};

/// What the coordinator's pod asks for, and where it may run. Fields that are left out are those of the worker's pod template where this
/// says so. A change takes effect when the pod is next replaced.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CoordinatorSpec {
    /// Requests and limits of its container. Default: requests of 50m processors and 64Mi of memory, a limit of 512Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "resources_schema")]
    pub resources: Option<ResourceRequirements>,
    /// Labels that its node must have. Default: the workers'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "node_selector_schema")]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// Taints that it tolerates. Default: the workers'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "tolerations_schema")]
    pub tolerations: Option<Vec<Toleration>>,
    /// Which nodes, and which other pods near it, it prefers or needs. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "affinity_schema")]
    pub affinity: Option<Affinity>,
    /// How it is spread among others. Default: not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "topology_spread_schema")]
    pub topology_spread_constraints: Option<Vec<TopologySpreadConstraint>>,
    /// Its priority class. Default: the workers'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// Its runtime class. Default: the workers'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_class_name: Option<String>,
    /// The scheduler that places it. Default: the cluster's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler_name: Option<String>,
    /// Secrets with which its image is pulled. Default: the workers'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "image_pull_secrets_schema")]
    pub image_pull_secrets: Option<Vec<LocalObjectReference>>,
}

fn node_selector_schema(generator: &mut SchemaGenerator) -> Schema {
    pod_field_schema(generator, "nodeSelector")
}

fn tolerations_schema(generator: &mut SchemaGenerator) -> Schema {
    pod_field_schema(generator, "tolerations")
}

fn affinity_schema(generator: &mut SchemaGenerator) -> Schema {
    pod_field_schema(generator, "affinity")
}

fn topology_spread_schema(generator: &mut SchemaGenerator) -> Schema {
    pod_field_schema(generator, "topologySpreadConstraints")
}

fn image_pull_secrets_schema(generator: &mut SchemaGenerator) -> Schema {
    pod_field_schema(generator, "imagePullSecrets")
}
