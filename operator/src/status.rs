//! Writing a job's status.

use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use lcl_crds::{GROUP, KIND, LCLTrainingJob, LCLTrainingJobStatus, VERSION};
use serde_json::json;

use crate::{FIELD_MANAGER, reconcile::ReconcileError};

/// Writes the status of the job that was looked at. [`ReconcileError::Stale`] if there is a newer one, which has to be looked at first.
pub(crate) async fn write_status(
    client: &Client,
    job: &LCLTrainingJob,
    status: &LCLTrainingJobStatus,
) -> Result<LCLTrainingJob, ReconcileError> {
    let name = job.name_any();
    let api = Api::<LCLTrainingJob>::namespaced(client.clone(), &job.namespace().unwrap_or_default());
    let patch = json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": KIND,
        "metadata": { "name": name, "uid": job.metadata.uid, "resourceVersion": job.metadata.resource_version },
        "status": status,
    });
    let written = api.patch_status(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(patch)).await;
    written.map_err(|source| match source {
        kube::Error::Api(answer) if answer.code == 409 => ReconcileError::Stale,
        source => ReconcileError::Api { what: "writing the status".to_owned(), source },
    })
}
