//! The objects of a job that are not pods: watched, applied where they are missing or differ, and left alone where they do not.

mod store;

use std::{
    collections::BTreeMap,
    fmt::Debug,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        core::v1::{ConfigMap, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, reflector::ObjectRef, watcher},
};
use lcl_operator_core::{build::is_job, covers};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use tokio::task::JoinSet;

use crate::{FIELD_MANAGER, controller::managed, reconcile::ReconcileError, wake::Wake};
pub(crate) use store::ChildStore;

/// Time for the watch to tell of an object that was applied; after that it is taken for missing.
const WATCH_LAG: Duration = Duration::from_secs(5);

/// The word for it in an object's managed fields.
const APPLY: &str = "Apply";

/// A kind of object that a job has beside its pods: what it takes to watch it, to apply it, and to wake the job it belongs to.
pub(crate) trait Child:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// As it stands in messages.
    const KIND: &'static str;

    /// What is there of this kind.
    fn store(stores: &ChildStores) -> &ChildStore<Self>;

    /// Drops what others say of it, which nobody here asks for.
    fn forget_status(&mut self);
}

/// All kinds: a new one is a line here, and rights in the chart.
macro_rules! children {
    ($($field:ident: $kind:ident $(without $status:ident)?),+ $(,)?) => {
        $(impl Child for $kind {
            const KIND: &'static str = stringify!($kind);

            fn store(stores: &ChildStores) -> &ChildStore<Self> {
                &stores.$field
            }

            fn forget_status(&mut self) {
                $(self.$status = None;)?
            }
        })+

        /// What is there.
        #[derive(Debug)]
        pub(crate) struct ChildStores {
            $($field: ChildStore<$kind>,)+
        }

        impl ChildStores {
            /// Watches all kinds, in one namespace or in all. A change wakes the job that owns the object.
            pub(crate) fn watch(client: &Client, namespace: Option<&str>, wake: &Wake, watches: &mut JoinSet<()>) -> Self {
                Self { $($field: watch(client, namespace, wake, watches),)+ }
            }

            /// Until all that is there was told.
            pub(crate) async fn wait_until_listed(&self) {
                $(self.$field.wait_until_listed().await;)+
            }
        }
    };
}

children! {
    config_maps: ConfigMap,
    services: Service without status,
    accounts: ServiceAccount,
    budgets: PodDisruptionBudget without status,
    policies: NetworkPolicy,
}

impl ChildStores {
    /// An object by its name.
    pub(crate) fn get<K: Child>(&self, name: &str, namespace: &str) -> Option<K> {
        K::store(self).get(name, namespace)
    }
}

fn watch<K: Child>(client: &Client, namespace: Option<&str>, wake: &Wake, watches: &mut JoinSet<()>) -> ChildStore<K> {
    let api = match namespace {
        Some(namespace) => Api::<K>::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let (store, wake) = (ChildStore::default(), wake.clone());
    let (taking, changes) = (store.clone(), watcher(api, managed()).default_backoff());
    watches.spawn(async move {
        let mut changes = std::pin::pin!(changes);
        while let Some(change) = changes.next().await {
            match change {
                Ok(event) => {
                    for job in taking.take(event) {
                        wake.job(ObjectRef::new(&job.name).within(&job.namespace));
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
    There(K),
    /// Applied a moment ago; the watch will tell.
    Applied,
    /// One of an earlier job of this name is in the way, until Kubernetes has removed it.
    Leaving,
}

impl<K> Found<K> {
    /// Whether it is there, by the watch or by the answer to our own write.
    pub(crate) fn is_there(&self) -> bool {
        !matches!(self, Self::Leaving)
    }

    /// What is made of the object, for which the answer to our own write counts until the watch has told.
    pub(crate) fn or_known<T>(self, read: impl FnOnce(K) -> Option<T>, known: impl FnOnce() -> Option<T>) -> Option<T> {
        match self {
            Self::There(object) => read(object),
            Self::Applied => known(),
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
    /// Makes sure that an object is there as wanted. One that the watch does not know is created, which costs the API server less than to look
    /// for it and to apply it.
    pub(crate) async fn ensure<K: Child>(&mut self, wanted: &K) -> Result<Found<K>, ReconcileError> {
        let (kind, store) = (K::KIND, K::store(self.stores));
        let (name, namespace) = (wanted.name_any(), wanted.namespace().unwrap_or_default());
        let api = Api::<K>::namespaced(self.client.clone(), &namespace);
        let failed = |verb: &str| {
            let what = format!("{verb} {kind} {name}");
            move |source| ReconcileError::Api { what, source }
        };
        let watched = store.get(&name, &namespace);
        let is_watched = watched.is_some();
        let live = match watched {
            Some(live) => live,
            None if self.applied.get(&(kind, name.clone())).is_some_and(|at| at.elapsed() < WATCH_LAG) => return Ok(Found::Applied),
            None => {
                match api.create(&PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }, wanted).await {
                    Ok(created) => return Ok(self.note(created)),
                    // What does not bear the operator's label is not watched, and must not be taken over.
                    Err(kube::Error::Api(answer)) if answer.is_already_exists() => {
                        api.get_opt(&name).await.map_err(failed("getting"))?.ok_or(ReconcileError::Stale)?
                    }
                    Err(source) => return Err(failed("creating")(source)),
                }
            }
        };
        if !live.owner_references().iter().any(|owner| owner.uid == self.job_uid) {
            let is_of_a_job = live.owner_references().iter().any(is_job);
            return if is_of_a_job { Ok(Found::Leaving) } else { Err(ReconcileError::Foreign { kind, name }) };
        }
        let as_value = |object: &K| serde_json::to_value(object).map_err(|source| ReconcileError::Encode { kind, source });
        if covers(&as_value(&live)?, &as_value(wanted)?) {
            if !is_watched {
                // It is there by an earlier request of ours; the watch will tell.
                self.applied.insert((kind, name), Instant::now());
            }
            return Ok(Found::There(live));
        }
        own_by_applying(&api, &name).await?;
        let applied = api.patch(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(wanted)).await;
        Ok(self.note(applied.map_err(failed("applying"))?))
    }

    /// Remembers that an object was written.
    fn note<K: Child>(&mut self, written: K) -> Found<K> {
        let (kind, name, namespace) = (K::KIND, written.name_any(), written.namespace());
        tracing::info!(kind, name, namespace, "applied");
        self.applied.insert((kind, name), Instant::now());
        Found::There(written)
    }
}

/// Has the API server take what we have created for what we have applied: a field that is no longer applied goes only if it is ours alone, and
/// to it a creator and an applier of one name are two.
async fn own_by_applying<K: Child>(api: &Api<K>, name: &str) -> Result<(), ReconcileError> {
    let failed = |source| ReconcileError::Api { what: format!("getting {} {name}", K::KIND), source };
    let Some(live) = api.get_metadata_opt(name).await.map_err(failed)? else { return Err(ReconcileError::Stale) };
    let mut managers = live.metadata.managed_fields.unwrap_or_default();
    let is_ours = |entry: &ManagedFieldsEntry| entry.manager.as_deref() == Some(FIELD_MANAGER) && entry.subresource.is_none();
    let has_applied = managers.iter().any(|entry| is_ours(entry) && entry.operation.as_deref() == Some(APPLY));
    let Some(created) = managers.iter_mut().find(|entry| is_ours(entry) && entry.operation.as_deref() != Some(APPLY) && !has_applied)
    else {
        return Ok(());
    };
    created.operation = Some(APPLY.to_owned());
    let version = live.metadata.resource_version;
    let patch = json!({ "metadata": { "managedFields": managers, "resourceVersion": version } });
    match api.patch_metadata(name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(answer)) if [404, 409].contains(&answer.code) => Err(ReconcileError::Stale),
        Err(source) => Err(ReconcileError::Api { what: format!("taking over the fields of {} {name}", K::KIND), source }),
    }
}
