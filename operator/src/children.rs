//! The objects of a job that are not pods: applied where they are missing or differ, and left alone where they do not.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{ConfigMap, Service, ServiceAccount},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams},
    runtime::reflector::{ObjectRef, Store},
};
use lcl_crds::KIND;
use lcl_operator_core::covers;
use serde::{Serialize, de::DeserializeOwned};

use crate::{FIELD_MANAGER, reconcile::ReconcileError};

/// Time for the watch to tell of an object that was applied; after that it is taken for missing.
const WATCH_LAG: Duration = Duration::from_secs(5);

/// What is there.
#[derive(Debug)]
pub(crate) struct ChildStores {
    pub(crate) config_maps: Store<ConfigMap>,
    pub(crate) services: Store<Service>,
    pub(crate) accounts: Store<ServiceAccount>,
}

/// An object as it is there now.
#[derive(Debug)]
pub(crate) enum Child<K> {
    /// As wanted.
    There(Arc<K>),
    /// Applied a moment ago; the watch will tell.
    Applied,
    /// One of an earlier job of this name is in the way, until Kubernetes has removed it.
    Leaving,
}

/// Applies objects of one job.
pub(crate) struct Applier<'a> {
    pub(crate) client: &'a Client,
    pub(crate) job_uid: &'a str,
    /// When each kind was applied last.
    pub(crate) applied: &'a mut BTreeMap<&'static str, Instant>,
}

impl Applier<'_> {
    /// Makes sure that an object is there as wanted.
    pub(crate) async fn ensure<K>(&mut self, store: &Store<K>, kind: &'static str, wanted: &K) -> Result<Child<K>, ReconcileError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned,
    {
        let (name, namespace) = (wanted.name_any(), wanted.namespace().unwrap_or_default());
        let api = Api::<K>::namespaced(self.client.clone(), &namespace);
        let failed = |verb: &str| {
            let what = format!("{verb} {kind} {name}");
            move |source| ReconcileError::Api { what, source }
        };
        let mut live = store.get(&ObjectRef::from_obj(wanted));
        if live.is_none() {
            if self.applied.get(kind).is_some_and(|at| at.elapsed() < WATCH_LAG) {
                return Ok(Child::Applied);
            }
            // What does not bear the operator's label is not watched, and must not be taken over.
            live = api.get_opt(&name).await.map_err(failed("getting"))?.map(Arc::new);
        }
        if let Some(live) = live {
            if !live.owner_references().iter().any(|owner| owner.uid == self.job_uid) {
                let is_of_a_job = live.owner_references().iter().any(|owner| owner.kind == KIND);
                return if is_of_a_job { Ok(Child::Leaving) } else { Err(ReconcileError::Foreign { kind, name }) };
            }
            let as_value = |object: &K| serde_json::to_value(object).map_err(|source| ReconcileError::Encode { kind, source });
            if covers(&as_value(&live)?, &as_value(wanted)?) {
                return Ok(Child::There(live));
            }
        }
        let applied = api.patch(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(wanted)).await;
        let applied = applied.map_err(failed("applying"))?;
        self.applied.insert(kind, Instant::now());
        tracing::info!(kind, name, namespace, "applied");
        Ok(Child::There(Arc::new(applied)))
    }
}
