//! What a watch has told of one kind of objects, kept as text ([`Text`]).
//!
//! Comes in: the watch's events. Goes out: objects by name, and the jobs for which something has changed.

use std::{
    collections::{BTreeMap, HashMap},
    marker::PhantomData,
    mem,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use kube::{ResourceExt, runtime::watcher::Event};
use lcl_operator_core::build::is_job;
use tokio::sync::watch;

use super::Child;
use crate::{cache::JobKey, kept::Text};

/// Objects of one kind. Clones are of the same.
#[derive(Debug)]
pub(crate) struct ChildStore<K> {
    state: Arc<RwLock<State>>,
    listed: watch::Sender<bool>,
    kind: PhantomData<fn() -> K>,
}

impl<K> Clone for ChildStore<K> {
    fn clone(&self) -> Self {
        Self { state: Arc::clone(&self.state), listed: self.listed.clone(), kind: PhantomData }
    }
}

impl<K> Default for ChildStore<K> {
    fn default() -> Self {
        Self { state: Arc::default(), listed: watch::Sender::new(false), kind: PhantomData }
    }
}

/// By namespace, and by name.
type Objects = HashMap<String, BTreeMap<Box<str>, Entry>>;

#[derive(Debug, Default)]
struct State {
    objects: Objects,
    /// What a new listing has brought so far.
    listing: Objects,
}

/// An object, without its version: whether anything has changed is seen by the text.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    /// The job that owns it.
    owner: Option<Owner>,
    text: Text,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Owner {
    name: Box<str>,
    uid: Box<str>,
}

impl<K: Child> ChildStore<K> {
    /// Takes in what the watch tells; the jobs for which something has changed.
    pub(crate) fn take(&self, event: Event<K>) -> Vec<JobKey> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Init => {
                state.listing = Objects::new();
                Vec::new()
            }
            Event::InitApply(object) => {
                let (namespace, name, entry) = keep(object);
                state.listing.entry(namespace).or_default().insert(name, entry);
                Vec::new()
            }
            Event::InitDone => {
                let changed = state.finish_listing();
                self.listed.send_replace(true);
                changed
            }
            Event::Apply(object) => {
                let (namespace, name, entry) = keep(object);
                state.insert(namespace, name, entry)
            }
            Event::Delete(object) => {
                let (namespace, name, entry) = keep(object);
                let Some(objects) = state.objects.get_mut(&namespace) else { return Vec::new() };
                let known = objects.remove(&name);
                if objects.is_empty() {
                    state.objects.remove(&namespace);
                }
                if known.is_some() { entry.job(&namespace).into_iter().collect() } else { Vec::new() }
            }
        }
    }

    /// An object by its name.
    pub(crate) fn get(&self, name: &str, namespace: &str) -> Option<K> {
        let state = self.lock();
        // What we have written ourselves we can read.
        state.objects.get(namespace)?.get(name)?.text.read().ok()
    }

    /// All that a job owns in a namespace.
    pub(crate) fn owned_by(&self, uid: &str, namespace: &str) -> Vec<K> {
        let state = self.lock();
        let there = state.objects.get(namespace).into_iter().flat_map(BTreeMap::values);
        let owned = there.filter(|entry| entry.owner.as_ref().is_some_and(|owner| *owner.uid == *uid));
        owned.filter_map(|entry| entry.text.read().ok()).collect()
    }

    /// Until all that is there was told.
    pub(crate) async fn wait_until_listed(&self) {
        // The sender is here.
        let _ = self.listed.subscribe().wait_for(|listed| *listed).await;
    }

    fn lock(&self) -> RwLockReadGuard<'_, State> {
        // Every change is one insertion or removal: a panic leaves no half of one.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn insert(&mut self, namespace: String, name: Box<str>, entry: Entry) -> Vec<JobKey> {
        let job = entry.job(&namespace);
        let objects = self.objects.entry(namespace).or_default();
        let is_news = objects.get(&name) != Some(&entry);
        objects.insert(name, entry);
        job.into_iter().filter(|_| is_news).collect()
    }

    fn finish_listing(&mut self) -> Vec<JobKey> {
        let listed = mem::take(&mut self.listing);
        let old = mem::replace(&mut self.objects, listed);
        let mut jobs: Vec<_> = differing(&old, &self.objects).chain(differing(&self.objects, &old)).collect();
        jobs.sort_unstable();
        jobs.dedup();
        jobs
    }
}

/// Owners of objects that are another in the other, or not there.
fn differing<'a>(objects: &'a Objects, others: &'a Objects) -> impl Iterator<Item = JobKey> + 'a {
    objects.iter().flat_map(move |(namespace, objects)| {
        let others = others.get(namespace);
        let differ = objects.iter().filter(move |(name, entry)| others.and_then(|others| others.get(*name)) != Some(*entry));
        differ.filter_map(move |(_, entry)| entry.job(namespace))
    })
}

impl Entry {
    fn job(&self, namespace: &str) -> Option<JobKey> {
        self.owner.as_ref().map(|owner| JobKey { namespace: namespace.to_owned(), name: owner.name.to_string() })
    }
}

/// What is kept of an object, with its namespace and name.
fn keep<K: Child>(mut object: K) -> (String, Box<str>, Entry) {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any().into_boxed_str());
    let metadata = object.meta_mut();
    (metadata.managed_fields, metadata.resource_version, metadata.generation) = (None, None, None);
    object.forget_status();
    let owner = object.owner_references().iter().find(|owner| is_job(owner));
    let owner = owner.map(|owner| Owner { name: owner.name.as_str().into(), uid: owner.uid.as_str().into() });
    (namespace, name, Entry { owner, text: Text::of(&object) })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{core::v1::ConfigMap, policy::v1::PodDisruptionBudget};
    use serde_json::{Value, json};

    use super::*;

    fn object<K: Child>(name: &str, job: &str, change: &Value) -> K {
        let mut object = json!({ "metadata": {
            "name": name, "namespace": "team", "uid": format!("uid-of-{name}"), "resourceVersion": "1",
            "ownerReferences": [{ "apiVersion": "lcl.dev/v1alpha1", "kind": "LCLTrainingJob", "name": job, "uid": format!("uid-of-{job}"), "controller": true }],
            "managedFields": [{ "manager": "another" }],
        } });
        for (field, value) in change.as_object().into_iter().flatten() {
            object[field] = value.clone();
        }
        serde_json::from_value(object).expect("an object")
    }

    fn config(name: &str, text: &str) -> ConfigMap {
        object(name, "job", &json!({ "data": { "a": text } }))
    }

    fn woken(jobs: &[JobKey]) -> Vec<&str> {
        jobs.iter().map(|job| job.name.as_str()).collect()
    }

    #[test]
    fn an_object_is_read_as_it_is_but_for_its_version_and_a_change_wakes_its_job() {
        let store = ChildStore::default();
        assert_eq!(woken(&store.take(Event::Apply(config("a", "1")))), ["job"]);
        let mut later = config("a", "1");
        later.metadata.resource_version = Some("2".to_owned());
        assert_eq!(woken(&store.take(Event::Apply(later))), [""; 0], "nothing has changed that anybody asks for");
        assert_eq!(woken(&store.take(Event::Apply(config("a", "2")))), ["job"]);
        let read = store.get("a", "team").expect("it is there");
        assert_eq!(read.data, config("a", "2").data);
        assert_eq!(
            (read.metadata.uid.as_deref(), read.metadata.resource_version, read.metadata.managed_fields),
            (Some("uid-of-a"), None, None)
        );
        assert_eq!(read.metadata.owner_references, config("a", "2").metadata.owner_references);
        assert_eq!((store.get("a", "other"), store.get("b", "team")), (None, None));
        assert_eq!(woken(&store.take(Event::Delete(config("a", "2")))), ["job"]);
        assert_eq!(store.get("a", "team"), None);
    }

    #[test]
    fn what_others_say_of_a_budget_wakes_nobody() {
        let store = ChildStore::<PodDisruptionBudget>::default();
        let status = |healthy: i32| json!({ "status": { "currentHealthy": healthy, "desiredHealthy": 1, "disruptionsAllowed": 0, "expectedPods": 2 } });
        assert_eq!(store.take(Event::Apply(object("a", "job", &status(0)))).len(), 1);
        assert_eq!(store.take(Event::Apply(object("a", "job", &status(1)))), []);
        assert_eq!(store.get("a", "team").and_then(|budget| budget.status), None);
    }

    #[test]
    fn a_new_listing_wakes_the_jobs_of_what_came_changed_or_went_meanwhile() {
        let store = ChildStore::default();
        for (name, job) in [("same", "a"), ("changes", "b"), ("goes", "c")] {
            store.take(Event::Apply(object::<ConfigMap>(name, job, &json!({}))));
        }
        store.take(Event::Init);
        for (name, job) in [("same", "a"), ("comes", "d")] {
            assert_eq!(store.take(Event::InitApply(object(name, job, &json!({})))), []);
        }
        store.take(Event::InitApply(object("changes", "b", &json!({ "data": { "a": "1" } }))));
        assert!(store.get("goes", "team").is_some(), "until the listing is complete the old one counts");
        assert_eq!(woken(&store.take(Event::InitDone)), ["b", "c", "d"]);
        assert_eq!(store.get("goes", "team"), None);
        let owned: Vec<_> = store.owned_by("uid-of-b", "team").iter().map(ResourceExt::name_any).collect();
        assert_eq!(owned, ["changes"]);
    }
}
