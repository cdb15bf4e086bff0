//! The objects of a job that are not pods: watched, applied where they are missing or differ, and left alone where they do not.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use futures_util::StreamExt;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        core::v1::{ConfigMap, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{
        WatchStreamExt,
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use lcl_operator_core::{build::is_job, covers};
use serde::{Serialize, de::DeserializeOwned};
use tokio::task::JoinSet;

use crate::{FIELD_MANAGER, controller::managed, reconcile::ReconcileError, wake::Wake};

/// Time for the watch to tell of an object that was applied; after that it is taken for missing.
const WATCH_LAG: Duration = Duration::from_secs(5);

/// A kind of object that a job has beside its pods: what it takes to watch it, to apply it, and to wake the job it belongs to.
pub(crate) trait Child:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// As it stands in messages.
    const KIND: &'static str;

    /// What is there of this kind.
    fn store(stores: &ChildStores) -> &Store<Self>;
}

/// All kinds: a new one is a line here, and rights in the chart.
macro_rules! children {
    ($($field:ident: $kind:ident),+ $(,)?) => {
        $(impl Child for $kind {
            const KIND: &'static str = stringify!($kind);

            fn store(stores: &ChildStores) -> &Store<Self> {
                &stores.$field
            }
        })+

        /// What is there.
        #[derive(Debug)]
        pub(crate) struct ChildStores {
            $($field: Store<$kind>,)+
        }

        impl ChildStores {
            /// Watches all kinds, in one namespace or in all. A change wakes the job that owns the object.
            pub(crate) fn watch(client: &Client, namespace: Option<&str>, wake: &Wake, watches: &mut JoinSet<()>) -> Self {
                Self { $($field: watch(client, namespace, wake, watches),)+ }
            }

            /// Until all that is there was told.
            pub(crate) async fn wait_until_ready(&self) -> anyhow::Result<()> {
                $(wait_until_ready::<$kind>(self).await?;)+
                Ok(())
            }
        }
    };
}

children! {
    config_maps: ConfigMap,
    services: Service,
    accounts: ServiceAccount,
    budgets: PodDisruptionBudget,
    policies: NetworkPolicy,
}

impl ChildStores {
    /// An object by its name.
    pub(crate) fn get<K: Child>(&self, name: &str, namespace: &str) -> Option<Arc<K>> {
        K::store(self).get(&ObjectRef::new(name).within(namespace))
    }
}

async fn wait_until_ready<K: Child>(stores: &ChildStores) -> anyhow::Result<()> {
    K::store(stores).wait_until_ready().await.with_context(|| format!("listing objects of kind {}", K::KIND))
}

fn watch<K: Child>(client: &Client, namespace: Option<&str>, wake: &Wake, watches: &mut JoinSet<()>) -> Store<K> {
    let api = match namespace {
        Some(namespace) => Api::<K>::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let (store, writer) = reflector::store();
    let wake = wake.clone();
    let changes = watcher(api, managed()).default_backoff().reflect(writer).touched_objects();
    watches.spawn(async move {
        let mut changes = std::pin::pin!(changes);
        while let Some(change) = changes.next().await {
            match change {
                Ok(object) => {
                    let owner = object.owner_references().iter().find(|owner| is_job(owner));
                    if let (Some(owner), Some(namespace)) = (owner, object.namespace()) {
                        wake.job(ObjectRef::new(&owner.name).within(&namespace));
                    }
                }
                Err(error) => tracing::warn!(%error, kind = K::KIND, "a watch failed; it is begun anew"),
            }
        }
    });
    store
}

/// An object as it is there now.
#[derive(Debug)]
pub(crate) enum Found<K> {
    /// As wanted.
    There(Arc<K>),
    /// Applied a moment ago; the watch will tell.
    Applied,
    /// One of an earlier job of this name is in the way, until Kubernetes has removed it.
    Leaving,
}

impl<K: Clone> Found<K> {
    /// Whether it is there, by the watch or by the answer to our own write.
    pub(crate) fn is_there(&self) -> bool {
        !matches!(self, Self::Leaving)
    }

    /// The object, for which the answer to our own write counts until the watch has told.
    pub(crate) fn or_known(self, known: Option<&K>) -> Option<K> {
        match self {
            Self::There(object) => Some(Arc::unwrap_or_clone(object)),
            Self::Applied => known.cloned(),
            Self::Leaving => None,
        }
    }
}

/// How long the watch still has to tell of all that was applied. Who deletes an object in this time wakes nobody afterwards, so there is a look
/// when it is over.
pub(crate) fn time_of_watch(applied: &BTreeMap<(&'static str, String), Instant>) -> Option<Duration> {
    applied.values().map(|at| WATCH_LAG.saturating_sub(at.elapsed())).filter(|rest| !rest.is_zero()).max()
}

/// Applies objects of one job.
pub(crate) struct Applier<'a> {
    pub(crate) client: &'a Client,
    pub(crate) stores: &'a ChildStores,
    pub(crate) job_uid: &'a str,
    /// When each was applied last, by its kind and name.
    pub(crate) applied: &'a mut BTreeMap<(&'static str, String), Instant>,
}

impl Applier<'_> {
    /// Makes sure that an object is there as wanted.
    pub(crate) async fn ensure<K: Child>(&mut self, wanted: &K) -> Result<Found<K>, ReconcileError> {
        let (kind, store) = (K::KIND, K::store(self.stores));
        let (name, namespace) = (wanted.name_any(), wanted.namespace().unwrap_or_default());
        let api = Api::<K>::namespaced(self.client.clone(), &namespace);
        let failed = |verb: &str| {
            let what = format!("{verb} {kind} {name}");
            move |source| ReconcileError::Api { what, source }
        };
        let mut live = store.get(&ObjectRef::from_obj(wanted));
        if live.is_none() {
            if self.applied.get(&(kind, name.clone())).is_some_and(|at| at.elapsed() < WATCH_LAG) {
                return Ok(Found::Applied);
            }
            // What does not bear the operator's label is not watched, and must not be taken over.
            live = api.get_opt(&name).await.map_err(failed("getting"))?.map(Arc::new);
        }
        if let Some(live) = live {
            if !live.owner_references().iter().any(|owner| owner.uid == self.job_uid) {
                let is_of_a_job = live.owner_references().iter().any(is_job);
                return if is_of_a_job { Ok(Found::Leaving) } else { Err(ReconcileError::Foreign { kind, name }) };
            }
            let as_value = |object: &K| serde_json::to_value(object).map_err(|source| ReconcileError::Encode { kind, source });
            if covers(&as_value(&live)?, &as_value(wanted)?) {
                return Ok(Found::There(live));
            }
        }
        let applied = api.patch(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(wanted)).await;
        let applied = applied.map_err(failed("applying"))?;
        self.applied.insert((kind, name.clone()), Instant::now());
        tracing::info!(kind, name, namespace, "applied");
        Ok(Found::There(Arc::new(applied)))
    }
}
