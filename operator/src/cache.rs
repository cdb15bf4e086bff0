//! What the API server told about pods, and what it answered to our own writes before it told.
//!
//! A pod that was just created must not look lost only because the watch lags behind: the answer to the creation counts until the watch has
//! come as far. Versions of one kind's objects grow, and a watch tells them in order.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt, runtime::watcher::Event};
use lcl_operator_core::{build::JOB_NAME_LABEL, observe::ObservedPod};

/// Namespace and name of a job.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct JobKey {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// A pod that the watch has not confirmed after this time is asked for by name.
const CONFIRMATION: Duration = Duration::from_secs(10);

/// All pods of all jobs, by job.
#[derive(Debug, Default)]
pub(crate) struct PodCache {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    jobs: Jobs,
    /// Highest version that the watch has told.
    newest: u64,
    /// What a new listing has brought so far.
    listing: Jobs,
    is_complete: bool,
}

type Jobs = HashMap<JobKey, BTreeMap<String, Entry>>;

#[derive(Clone, Debug)]
struct Entry {
    pod: Arc<ObservedPod>,
    version: u64,
    /// Since when only our own write speaks for it.
    unconfirmed: Option<Instant>,
}

impl PodCache {
    /// Takes in what the watch tells; the jobs for which something has changed.
    pub(crate) fn take(&self, event: Event<Pod>) -> Vec<JobKey> {
        let mut state = self.lock();
        match event {
            Event::Init => {
                state.listing = Jobs::new();
                Vec::new()
            }
            Event::InitApply(pod) => {
                if let Some((key, name, entry)) = read(&pod) {
                    state.newest = state.newest.max(entry.version);
                    state.listing.entry(key).or_default().insert(name, entry);
                }
                Vec::new()
            }
            Event::InitDone => state.finish_listing(),
            Event::Apply(pod) => {
                let Some((key, name, entry)) = read(&pod) else { return Vec::new() };
                state.newest = state.newest.max(entry.version);
                if state.insert(&key, name, entry) { vec![key] } else { Vec::new() }
            }
            Event::Delete(pod) => {
                let Some((key, name, entry)) = read(&pod) else { return Vec::new() };
                state.newest = state.newest.max(entry.version);
                if state.remove(&key, &name, &entry.pod.uid) { vec![key] } else { Vec::new() }
            }
        }
    }

    /// Takes in the answer to our own write, unless the watch is further already.
    pub(crate) fn wrote(&self, pod: &Pod) {
        let Some((key, name, mut entry)) = read(pod) else { return };
        let mut state = self.lock();
        if entry.version > state.newest {
            entry.unconfirmed = Some(Instant::now());
            state.insert(&key, name, entry);
        }
    }

    /// A pod that we asked for by name, and that was not there.
    pub(crate) fn is_gone(&self, key: &JobKey, name: &str, uid: &str) {
        self.lock().remove(key, name, uid);
    }

    /// The pods of a job by name.
    pub(crate) fn pods(&self, key: &JobKey) -> BTreeMap<String, Arc<ObservedPod>> {
        let state = self.lock();
        let pods = state.jobs.get(key).into_iter().flatten();
        pods.map(|(name, entry)| (name.clone(), Arc::clone(&entry.pod))).collect()
    }

    /// All that are being deleted: their jobs, names and what is known of them.
    pub(crate) fn deleted(&self) -> Vec<(JobKey, String, Arc<ObservedPod>)> {
        let state = self.lock();
        let pods = state.jobs.iter().flat_map(|(key, pods)| pods.iter().map(move |(name, entry)| (key, name, &entry.pod)));
        let deleted = pods.filter(|(_, _, pod)| pod.deletion.is_some());
        deleted.map(|(key, name, pod)| (key.clone(), name.clone(), Arc::clone(pod))).collect()
    }

    /// Pods of a job that only our own write speaks for: those for too long, by name and uid, and until when the others have time.
    pub(crate) fn unconfirmed(&self, key: &JobKey) -> (Vec<(String, String)>, Option<Duration>) {
        let state = self.lock();
        let (mut late, mut wait) = (Vec::new(), None::<Duration>);
        for (name, entry) in state.jobs.get(key).into_iter().flatten() {
            let Some(since) = entry.unconfirmed else { continue };
            let rest = CONFIRMATION.saturating_sub(since.elapsed());
            if rest.is_zero() {
                late.push((name.clone(), entry.pod.uid.clone()));
            } else {
                wait = Some(wait.map_or(rest, |wait| wait.min(rest)));
            }
        }
        (late, wait)
    }

    /// Whether a listing was read to its end.
    pub(crate) fn is_complete(&self) -> bool {
        self.lock().is_complete
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is one insertion or removal: a panic leaves no half of one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether something has changed that decisions look at.
    fn insert(&mut self, key: &JobKey, name: String, entry: Entry) -> bool {
        let pods = self.jobs.entry(key.clone()).or_default();
        match pods.get(&name) {
            Some(old) if old.version > entry.version => false,
            Some(old) if old.pod == entry.pod => {
                pods.insert(name, entry);
                false
            }
            _ => {
                pods.insert(name, entry);
                true
            }
        }
    }

    fn remove(&mut self, key: &JobKey, name: &str, uid: &str) -> bool {
        let Some(pods) = self.jobs.get_mut(key) else { return false };
        let is_this_one = pods.get(name).is_some_and(|entry| entry.pod.uid == uid);
        if is_this_one {
            pods.remove(name);
        }
        if pods.is_empty() {
            self.jobs.remove(key);
        }
        is_this_one
    }

    fn finish_listing(&mut self) -> Vec<JobKey> {
        self.is_complete = true;
        let listed = mem::take(&mut self.listing);
        let old = mem::replace(&mut self.jobs, listed);
        for (key, pods) in &old {
            for (name, entry) in pods.iter().filter(|(_, entry)| entry.unconfirmed.is_some() && entry.version > self.newest) {
                self.jobs.entry(key.clone()).or_default().entry(name.clone()).or_insert_with(|| entry.clone());
            }
        }
        let mut keys: Vec<_> = self.jobs.keys().chain(old.keys()).cloned().collect();
        keys.sort_unstable();
        keys.dedup();
        let same = |key: &JobKey| {
            let pods = |jobs: &Jobs| -> Vec<_> {
                jobs.get(key).into_iter().flatten().map(|(name, entry)| (name.clone(), Arc::clone(&entry.pod))).collect()
            };
            pods(&self.jobs) == pods(&old)
        };
        keys.retain(|key| !same(key));
        keys
    }
}

fn read(pod: &Pod) -> Option<(JobKey, String, Entry)> {
    let job = pod.labels().get(JOB_NAME_LABEL)?;
    let key = JobKey { namespace: pod.namespace()?, name: job.clone() };
    let version = pod.resource_version()?.parse().ok()?;
    let entry = Entry { pod: Arc::new(ObservedPod::read(pod)?), version, unconfirmed: None };
    Some((key, pod.name_any(), entry))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, version: u64) -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": name, "namespace": "team", "uid": format!("uid-of-{name}"), "resourceVersion": version.to_string(),
                "labels": { "lcl.dev/job-name": "job", "lcl.dev/role": "worker", "lcl.dev/worker-index": "0" },
                "ownerReferences": [{ "apiVersion": "lcl.dev/v1alpha1", "kind": "LCLTrainingJob", "name": "job", "uid": "u", "controller": true }],
            },
            "status": { "phase": if version.is_multiple_of(2) { "Running" } else { "Pending" } },
        }))
        .expect("a pod")
    }

    fn key() -> JobKey {
        JobKey { namespace: "team".to_owned(), name: "job".to_owned() }
    }

    fn names(cache: &PodCache) -> Vec<String> {
        cache.pods(&key()).into_keys().collect()
    }

    #[test]
    fn a_pod_of_our_own_is_there_before_the_watch_tells() {
        let cache = PodCache::default();
        cache.take(Event::Apply(pod("a", 5)));
        cache.wrote(&pod("b", 6));
        assert_eq!(names(&cache), ["a", "b"]);
        assert_eq!(cache.take(Event::Apply(pod("b", 8))), [], "the same as what the write said");
        assert_eq!(cache.take(Event::Apply(pod("b", 9))), [key()], "it has changed");
    }

    #[test]
    fn a_late_answer_does_not_bring_back_what_the_watch_saw_go() {
        let cache = PodCache::default();
        cache.take(Event::Apply(pod("a", 5)));
        cache.take(Event::Delete(pod("a", 7)));
        cache.wrote(&pod("a", 5));
        assert_eq!(names(&cache), [""; 0]);
    }

    #[test]
    fn a_new_listing_replaces_the_old_one_except_for_writes_that_it_cannot_know() {
        let cache = PodCache::default();
        assert!(!cache.is_complete());
        cache.take(Event::Apply(pod("a", 4)));
        cache.take(Event::Init);
        cache.take(Event::InitApply(pod("b", 6)));
        cache.wrote(&pod("c", 9));
        assert_eq!(names(&cache), ["a", "c"], "until the listing is complete the old one counts");
        assert_eq!(cache.take(Event::InitDone), [key()]);
        assert_eq!(names(&cache), ["b", "c"]);
        assert!(cache.is_complete());
    }

    #[test]
    fn another_pod_of_the_same_name_is_not_taken_for_the_one_that_went() {
        let cache = PodCache::default();
        cache.take(Event::Apply(pod("a", 4)));
        let mut other = pod("a", 3);
        other.metadata.uid = Some("another".to_owned());
        assert_eq!(cache.take(Event::Delete(other)), []);
        assert_eq!(names(&cache), ["a"]);
    }
}
