//! What the API server told about pods, and what it answered to our own writes before it told.
//!
//! A pod that was just created must not look lost only because the watch lags behind: the answer to the creation counts until the watch has
//! come as far. Versions of one kind's objects grow, and a watch tells them in order.
//!
//! A pod that goes leaves its last state, until somebody has counted what ended it: it may have failed and be gone before anybody looks. At
//! most one is kept for each name, and none of a pod that went while nobody watched, unless its end was seen before.

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
    /// The last states of pods that are gone, by job and name.
    gone: HashMap<JobKey, LastStates>,
    /// Highest version that the watch has told.
    newest: u64,
    /// What a new listing has brought so far.
    listing: Jobs,
    is_complete: bool,
}

type Jobs = HashMap<JobKey, BTreeMap<String, Entry>>;
/// Pods by name, as they were at the last.
pub(crate) type LastStates = BTreeMap<String, Arc<ObservedPod>>;

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
                if state.delete(&key, name, entry) { vec![key] } else { Vec::new() }
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

    /// What was shown of pods that are gone was counted, or nobody has to, but for the names that are to be shown again.
    pub(crate) fn forget_gone(&self, key: &JobKey, shown: &LastStates, again: &[String]) {
        let mut state = self.lock();
        let Some(gone) = state.gone.get_mut(key) else { return };
        let is_shown = |name: &String, pod: &ObservedPod| shown.get(name).is_some_and(|shown| shown.uid == pod.uid);
        gone.retain(|name, pod| again.contains(name) || !is_shown(name, pod));
        if gone.is_empty() {
            state.gone.remove(key);
        }
    }

    /// Forgets what was left by the pods of jobs that are gone.
    pub(crate) fn retain_gone(&self, exists: impl Fn(&JobKey) -> bool) {
        self.lock().gone.retain(|key, _| exists(key));
    }

    /// The pods of a job by name, and those that are gone as they were at the last: of one moment.
    pub(crate) fn pods(&self, key: &JobKey) -> (BTreeMap<String, Arc<ObservedPod>>, LastStates) {
        let state = self.lock();
        let pods = state.jobs.get(key).into_iter().flatten();
        let pods = pods.map(|(name, entry)| (name.clone(), Arc::clone(&entry.pod))).collect();
        (pods, state.gone.get(key).cloned().unwrap_or_default())
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
    fn insert(&mut self, key: &JobKey, name: String, mut entry: Entry) -> bool {
        let pods = self.jobs.entry(key.clone()).or_default();
        let old = pods.get(&name);
        if let Some(old) = old {
            if old.version > entry.version {
                return false;
            }
            Arc::make_mut(&mut entry.pod).follow(&old.pod);
        }
        let is_news = old.is_none_or(|old| old.pod != entry.pod);
        // There is another one by now.
        if let Some(gone) = self.gone.get_mut(key) {
            gone.remove(&name);
        }
        pods.insert(name, entry);
        is_news
    }

    /// A pod has gone; this is what the watch said of it at the last.
    fn delete(&mut self, key: &JobKey, name: String, last: Entry) -> bool {
        let known = self.jobs.get(key).and_then(|pods| pods.get(&name)).map(|known| Arc::clone(&known.pod));
        if !self.remove(key, &name, &last.pod.uid) {
            return false;
        }
        let mut pod = Arc::unwrap_or_clone(last.pod);
        if let Some(known) = known {
            pod.follow(&known);
        }
        self.leave(key, name, pod);
        true
    }

    /// Keeps the last state of a pod that is gone.
    fn leave(&mut self, key: &JobKey, name: String, mut pod: ObservedPod) {
        pod.note_removal();
        self.gone.entry(key.clone()).or_default().insert(name, Arc::new(pod));
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
        self.compare_listed(&old);
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

    /// What was known of pods before they were listed anew. One that is gone went unseen, but its end may have been seen.
    fn compare_listed(&mut self, before: &Jobs) {
        for (key, name, before) in before.iter().flat_map(|(key, pods)| pods.iter().map(move |(name, before)| (key, name, before))) {
            match self.jobs.get_mut(key).and_then(|pods| pods.get_mut(name)) {
                Some(now) => Arc::make_mut(&mut now.pod).follow(&before.pod),
                None if before.pod.end.is_some() || before.pod.disruption.is_some() => {
                    self.leave(key, name.clone(), ObservedPod::clone(&before.pod));
                }
                None => {}
            }
        }
        let jobs = &self.jobs;
        self.gone.retain(|key, gone| {
            gone.retain(|name, _| jobs.get(key).is_none_or(|pods| !pods.contains_key(name)));
            !gone.is_empty()
        });
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
mod tests;
