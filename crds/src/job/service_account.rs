//! `spec.serviceAccount`: as whom the job's pods are known outside of the cluster.

use std::collections::BTreeMap;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// The account that the operator makes for the job's pods. No role is bound to it, and no token for the API server is mounted.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountSpec {
    /// Its annotations: by them a cloud's workload identity knows the account, such as `eks.amazonaws.com/role-arn`,
    /// `iam.gke.io/gcp-service-account` or `azure.workload.identity/client-id`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = MAX_ANNOTATIONS))]
    pub annotations: BTreeMap<String, String>,
}

/// A workload identity needs one to three.
const MAX_ANNOTATIONS: u32 = 64;
