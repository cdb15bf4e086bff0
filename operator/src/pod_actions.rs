//! Creating and deleting pods. Both may be repeated: a name is taken once, and a deletion names the uid.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, PostParams, Preconditions},
};
use lcl_operator_core::observe::ObservedPod;

use crate::{FIELD_MANAGER, cache::PodCache, reconcile::ReconcileError};

/// Creates a pod, or finds that it is there.
pub(crate) async fn create_pod(api: &Api<Pod>, cache: &PodCache, job_uid: &str, pod: &Pod) -> Result<(), ReconcileError> {
    let name = pod.name_any();
    let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    match api.create(&parameters, pod).await {
        Ok(pod) => {
            cache.wrote(&pod);
            Ok(())
        }
        Err(kube::Error::Api(answer)) if answer.is_already_exists() => {
            let failed = |source| ReconcileError::Api { what: format!("getting pod {name}"), source };
            let Some(there) = api.get_opt(&name).await.map_err(failed)? else { return Err(ReconcileError::Stale) };
            match ObservedPod::read(&there) {
                // Ours; or one of an earlier job of this name, which Kubernetes removes.
                Some(pod) if pod.owner == job_uid => cache.wrote(&there),
                Some(_) => return Err(ReconcileError::Stale),
                None => return Err(ReconcileError::Foreign { kind: "Pod", name }),
            }
            Ok(())
        }
        Err(source) => Err(ReconcileError::Api { what: format!("creating pod {name}"), source }),
    }
}

/// Deletes a pod, that one alone.
pub(crate) async fn delete_pod(api: &Api<Pod>, cache: &PodCache, name: &str, uid: &str, force: bool) -> Result<(), ReconcileError> {
    let parameters = DeleteParams {
        grace_period_seconds: force.then_some(0),
        preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
        ..DeleteParams::default()
    };
    match api.delete(name, &parameters).await {
        Ok(answer) => {
            answer.map_left(|pod| cache.wrote(&pod));
            Ok(())
        }
        Err(source) => ReconcileError::of_deletion(&format!("pod {name}"), source),
    }
}

/// Asks for pods that the watch should have told of long ago.
pub(crate) async fn confirm_pods(
    api: &Api<Pod>,
    cache: &PodCache,
    key: &crate::cache::JobKey,
    late: Vec<(String, String)>,
) -> Result<(), ReconcileError> {
    for (name, uid) in late {
        let found = api.get_opt(&name).await.map_err(|source| ReconcileError::Api { what: format!("getting pod {name}"), source })?;
        match found.filter(|pod| pod.uid().is_some_and(|found| found == uid)) {
            // Once more the word of the API server, for as long again.
            Some(pod) => cache.wrote(&pod),
            None => cache.is_gone(key, &name, &uid),
        }
    }
    Ok(())
}
