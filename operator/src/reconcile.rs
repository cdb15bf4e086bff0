//! One reconcile of one job: observe, validate, build, apply, decide, write the status, act, tell.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::core::v1::Pod,
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{
        controller::Action as Next,
        events::{Event, EventType},
        reflector::{ObjectRef, Store},
    },
};
use lcl_crds::{LCLTrainingJob, LCLTrainingJobStatus, MANAGER, PinnedStatus};
use lcl_operator_core::{
    PodPolicy, ValidatedJob,
    build::{BuildContext, NetworkAccess, coordinator_endpoint, coordinator_name, worker_selector},
    decide,
    decide::{Action, Decision, JobEvent, derive_refused, is_final, reason},
    observe::{HistoryPlace, Link, ObservedJob, ObservedPod, Problem, Wait},
    pins::{in_force, offer},
    read_unchecked, run_folder, validate_under,
};

use crate::{
    authority::Authority,
    cache::{JobKey, LastStates, PodCache},
    category::Categorized,
    children::{ChildStores, time_of_watch},
    events::EventQueue,
    fence::Fences,
    kept::StoredJob,
    link::CoordinatorLink,
    memory::{JobMemory, Memories},
    metrics::Metrics,
    pod_actions::confirm_pods,
    wake::Wake,
};

mod act;
mod error;
mod explain;
mod objects;
mod record;

use act::{Acted, CERTIFICATES_FRESH};
pub(crate) use error::ReconcileError;
use record::Recorded;
pub(crate) use record::Unkept;

/// Though nothing is seen, a job is looked at so often.
const LONGEST_WAIT: Duration = Duration::from_mins(10);
/// Pause after a failed reconcile; doubled with every further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// Between two looks at a job whose folder is another's.
const RIVAL_INTERVAL: Duration = Duration::from_secs(10);
/// Pause before a job is looked at again that has changed meanwhile: the watch needs a moment.
const STALE_PAUSE: Duration = Duration::from_millis(100);
/// It is doubled up to this: a watch that is far behind, or a webhook that answers 409, must not be asked ten times a second.
const LONGEST_STALE_PAUSE: Duration = Duration::from_secs(5);

/// What is shared by all reconciles.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) images: Images,
    /// Of all jobs' wires.
    pub(crate) authority: Arc<Authority>,
    pub(crate) jobs: Store<StoredJob>,
    /// What pods may do.
    pub(crate) policy: PodPolicy,
    /// From where they are reached.
    pub(crate) network: Option<NetworkAccess>,
    pub(crate) pods: Arc<PodCache>,
    pub(crate) children: ChildStores,
    pub(crate) memories: Memories,
    pub(crate) wake: Wake,
    pub(crate) events: EventQueue,
    pub(crate) fences: Fences,
    pub(crate) metrics: Arc<Metrics>,
}

/// Images of pods whose manifest names none.
#[derive(Clone, Debug)]
pub(crate) struct Images {
    pub(crate) coordinator: String,
    pub(crate) trainer: String,
    pub(crate) pull_policy: Option<String>,
}

/// Reconciles a job, and says when to do so again.
pub(crate) async fn reconcile(stored: Arc<StoredJob>, context: Arc<Context>) -> Result<Next, ReconcileError> {
    let started = Instant::now();
    let _active = context.metrics.begin_reconcile();
    let (name, namespace) = (stored.name_any(), stored.namespace().unwrap_or_default());
    let key = JobKey { namespace, name };
    let uid = stored.uid().unwrap_or_default();
    let mut memory = context.memories.of(&key, &uid).await;
    let result = match stored.read() {
        Ok(job) => {
            let job = newest(job, &mut memory);
            Reconciler { context: &context, key: &key, uid: &uid, job, memory: &mut memory }.run().await
        }
        Err(invalid) => {
            tracing::error!(job = key.name, namespace = key.namespace, "this version cannot read the job: {invalid}");
            Ok(None)
        }
    };
    context.metrics.observe_reconcile(started.elapsed(), result.as_ref().err().map(Categorized::category));
    match result {
        Ok(wait) => {
            (memory.failures, memory.stale) = (0, 0);
            if memory.is_blank() {
                context.memories.forget(&key);
                // What follows from a change alone is not waited for, either: each wait of the queue's takes memory.
                if wait.is_none() {
                    return Ok(Next::await_change());
                }
            }
            // Spread, so that jobs created together are not looked at together for ever.
            let longest = LONGEST_WAIT.mul_f64(fastrand::f64().mul_add(0.2, 0.9));
            Ok(Next::requeue(wait.map_or(longest, |wait| wait.min(longest))))
        }
        Err(ReconcileError::Stale) => {
            let pause = (STALE_PAUSE * 2_u32.saturating_pow(memory.stale.min(16))).min(LONGEST_STALE_PAUSE);
            memory.stale = memory.stale.saturating_add(1);
            Ok(Next::requeue(pause))
        }
        Err(error) => {
            memory.failures = memory.failures.saturating_add(1);
            tracing::warn!(
                job = key.name,
                namespace = key.namespace,
                category = error.category().label(),
                failures = memory.failures,
                "{error}"
            );
            let problem = error.as_problem();
            let is_news = problem.is_some() && problem != memory.problem;
            memory.problem = problem.or_else(|| memory.problem.take());
            Ok(Next::requeue(pause_after(memory.failures, is_news)))
        }
    }
}

/// How long to wait after so many failures in a row. What has not been told yet is told at once, but only after the first: the telling may be what
/// fails, with other words each time.
fn pause_after(failures: u32, is_news: bool) -> Duration {
    if is_news && failures <= 1 {
        return Duration::ZERO;
    }
    (FIRST_PAUSE * 2_u32.saturating_pow(failures.saturating_sub(1).min(16))).min(LONGEST_PAUSE)
}

/// The job as the watch tells of it, or as the API server answered to our last write, until the watch has come as far.
fn newest(job: Arc<LCLTrainingJob>, memory: &mut JobMemory) -> Arc<LCLTrainingJob> {
    let version = version(&job);
    memory.job.take_if(|(written, _)| *written <= version);
    memory.job.as_ref().map_or(job, |(_, job)| Arc::clone(job))
}

fn version(job: &LCLTrainingJob) -> u64 {
    job.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

/// Whether a pod is on its node and does not run yet.
fn is_starting(pod: &ObservedPod, job_uid: &str) -> bool {
    pod.owner == job_uid && pod.node.is_some() && !pod.running && pod.end.is_none() && pod.deletion.is_none()
}

struct Reconciler<'a> {
    context: &'a Context,
    key: &'a JobKey,
    uid: &'a str,
    job: Arc<LCLTrainingJob>,
    memory: &'a mut JobMemory,
}

impl Reconciler<'_> {
    async fn run(&mut self) -> Result<Option<Duration>, ReconcileError> {
        let is_somebody_elses = self.job.spec.managed_by.as_deref().is_some_and(|manager| manager != MANAGER);
        // Objects of a job that is deleted go with it.
        if is_somebody_elses || self.job.metadata.deletion_timestamp.is_some() {
            self.leave_alone();
            return Ok(None);
        }
        let status = self.job.status.clone().unwrap_or_default();
        let Some(valid) = self.validate(&status).await? else { return Ok(None) };
        let api = Api::<Pod>::namespaced(self.context.client.clone(), &self.key.namespace);
        let (late, confirmation) = self.context.pods.unconfirmed(self.key);
        confirm_pods(&api, &self.context.pods, self.key, late).await?;
        let is_over = is_final(&status);
        let shut = self.memory.gate.shut_for(Instant::now());
        let (pods, gone) = self.context.pods.pods(self.key);
        let has_pods = pods.values().any(|pod| pod.owner == self.uid);
        let images = &self.context.images;
        let mut offer = offer(&valid, self.job.metadata.generation.unwrap_or(0), &images.coordinator, &images.trainer);
        let held = in_force(&status, has_pods).cloned();
        // A job that has begun keeps its folder.
        if !is_over && !has_pods && !valid.spec().suspend && status.pinned.is_none() && self.has_rival(&status).await? {
            return Ok(Some(RIVAL_INTERVAL));
        }
        let mut build = self.build_context(held.as_ref().unwrap_or(&offer));
        let is_at_rest = is_over || (valid.spec().suspend && !has_pods);
        // While nothing may be created what is there is left as it is, too.
        let applied = if is_at_rest || shut.is_some() {
            Ok(self.memory.resources.clone())
        } else {
            self.apply_children(&valid, &build, held.is_some()).await
        };
        let is_acting = !is_at_rest && shut.is_none();
        let starting_wait = (is_acting && pods.values().any(|pod| is_starting(pod, self.uid))).then_some(CERTIFICATES_FRESH);
        // What cannot be renewed keeps nothing else from being done.
        let renewed = if is_acting { self.renew_certificates(&valid, &build, held.as_ref(), starting_wait).await } else { Ok(()) };
        self.fill_in(&mut offer);
        let change = if is_at_rest { None } else { held.and_then(|held| self.find_change(&valid, &held)) };
        let problem = applied.as_ref().err().and_then(ReconcileError::as_problem);
        if applied.is_err() {
            self.memory.gate.refuse(Instant::now(), fastrand::f64());
        }
        self.follow_coordinator(&valid, &pods);
        let link = self.memory.link.as_ref().map_or(Link::Unknown, CoordinatorLink::state);
        let looked = Instant::now();
        let waited = |since: &Instant| SignedDuration::try_from(looked.duration_since(*since)).unwrap_or(SignedDuration::MAX);
        let waited = self.memory.waiting_since.iter().map(|(wait, since)| (wait.clone(), waited(since))).collect();
        let decision = decide(&ObservedJob {
            job: &valid,
            uid: self.uid,
            generation: self.job.metadata.generation.unwrap_or(0),
            status: &status,
            selector: &worker_selector(&valid, &build),
            pods: &pods,
            gone: &gone,
            link: &link,
            offer: &offer,
            change: change.as_deref(),
            unused_epoch: self.memory.unused_epoch,
            created: self.memory.created,
            waited: &waited,
            explanation: self.memory.explanation.as_ref(),
            image_pull: self.memory.image_pull.as_ref(),
            problem: problem.as_ref().or(self.memory.problem.as_ref()),
            creations_wait: self.memory.gate.shut_for(looked).and_then(|wait| SignedDuration::try_from(wait).ok()),
            now: Timestamp::now(),
        });
        let since = |wait: &Wait| (wait.clone(), self.memory.waiting_since.get(wait).copied().unwrap_or(looked));
        self.memory.waiting_since = decision.waits.iter().map(since).collect();
        let recorded = self.update_status(&status, &decision).await?;
        let status_wait = self.follow_record(recorded, &decision, &gone);
        let resources = applied.as_ref().ok().and_then(Clone::clone);
        build.pins = decision.status.pinned.clone().unwrap_or(offer);
        build.excluded_nodes = decision.status.excluded_nodes.iter().map(|excluded| excluded.node.clone()).collect();
        build.incident = decision.status.failures.as_ref().map_or(0, |failures| failures.incidents);
        build.history = HistoryPlace::known(&link, &decision.status, &coordinator_name(&valid));
        let Acted { has_created, has_news, error } = self.act(&valid, &build, &api, &decision, resources.as_deref()).await;
        applied?;
        renewed?;
        if let Some(error) = error {
            return Err(error);
        }
        let creates = |action: &Action| matches!(action, Action::CreateCoordinator { .. } | Action::CreateWorker { .. });
        if shut.is_none() && !decision.actions.iter().any(creates) {
            self.memory.gate.pass();
        }
        // The watch has nothing to tell of what the answers have told already: nobody else would wake us to say that the pods are there.
        let created_wait = (has_created || has_news).then_some(Duration::ZERO);
        // The status still says that something is wrong.
        let is_told = self.memory.problem.as_ref().is_some_and(|problem| problem.reason == reason::VALIDATION_FAILED);
        let solved = if shut.is_some() || is_told { None } else { self.memory.problem.take().map(|_| Duration::ZERO) };
        let applied_wait = (resources.is_none() && !is_at_rest && shut.is_none()).then_some(Duration::from_secs(1));
        let watch_wait = time_of_watch(&self.memory.applied);
        self.memory.settle(is_at_rest, decision.actions.is_empty() && decision.status == status);
        Ok([decision.again_after, status_wait, confirmation, applied_wait, solved, created_wait, starting_wait, watch_wait]
            .into_iter()
            .flatten()
            .min())
    }

    /// Nothing is to be known of the job any more.
    fn leave_alone(&mut self) {
        (self.memory.link, self.memory.is_at_rest) = (None, true);
        let (_, gone) = self.context.pods.pods(self.key);
        self.context.pods.forget_gone(self.key, &gone, &[]);
    }

    /// What follows from a status that is on record: told before the actions, one of which may fail. What waits is decided once more, and told
    /// then; for how long it does.
    fn follow_record(&self, recorded: Recorded, decision: &Decision, gone: &LastStates) -> Option<Duration> {
        match recorded {
            Recorded::Later(wait) => return Some(wait),
            Recorded::Now => self.tell(&decision.events),
            Recorded::Before => {}
        }
        self.context.pods.forget_gone(self.key, gone, &decision.unrecorded);
        None
    }

    /// What an offer says of objects that were applied.
    fn fill_in(&self, offer: &mut PinnedStatus) {
        let expiry = Authority::expiry(Timestamp::now());
        let is_applied = self.memory.certificates.is_some_and(|(until, _)| until == expiry);
        offer.certificates_expire = is_applied.then_some(Time(expiry));
        offer.authority = is_applied.then(|| self.context.authority.fingerprint().to_owned());
        offer.address = self.memory.resources.as_ref().map(|resources| resources.address().to_owned());
    }

    /// What the job's objects depend on besides it, as far as that is known before anything is decided.
    fn build_context(&self, pins: &PinnedStatus) -> BuildContext {
        BuildContext {
            namespace: self.key.namespace.clone(),
            uid: self.uid.to_owned(),
            pins: pins.clone(),
            image_pull_policy: self.context.images.pull_policy.clone(),
            incident: 0,
            history: HistoryPlace::default(),
            excluded_nodes: Vec::new(),
            policy: self.context.policy.clone(),
            network: self.context.network.clone(),
        }
    }

    /// The job if it keeps every rule. The API server checks the same rules, so a job that breaks one was stored under another definition.
    async fn validate(&mut self, status: &LCLTrainingJobStatus) -> Result<Option<Arc<ValidatedJob>>, ReconcileError> {
        let generation = self.job.metadata.generation.unwrap_or(0);
        let known = self.memory.valid.as_ref().filter(|(of, _)| *of == generation);
        if let Some((_, Some(valid))) = known {
            return Ok(Some(Arc::clone(valid)));
        }
        let manifest = serde_json::to_value(&*self.job).map_err(|source| ReconcileError::Encode { kind: "LCLTrainingJob", source })?;
        if known.is_some()
            && let Ok(job) = read_unchecked(&manifest)
        {
            let job = Arc::new(job);
            self.memory.valid = Some((generation, Some(Arc::clone(&job))));
            return Ok(Some(job));
        }
        match validate_under(&manifest, &self.context.policy) {
            Ok(valid) => {
                let valid = Arc::new(valid);
                self.memory.problem.take_if(|problem| problem.reason == reason::VALIDATION_FAILED);
                self.memory.valid = Some((generation, Some(Arc::clone(&valid))));
                Ok(Some(valid))
            }
            Err(errors) => {
                let message = errors.to_string();
                // One that has begun under other rules goes on by what it says.
                let has_begun = status.pinned.is_some() && !is_final(status);
                if let Some(job) = has_begun.then(|| read_unchecked(&manifest).ok()).flatten() {
                    self.memory.problem = Some(Problem { reason: reason::VALIDATION_FAILED, message });
                    return Ok(Some(Arc::new(job)));
                }
                self.refuse(status, &Problem { reason: reason::VALIDATION_FAILED, message }).await?;
                Ok(None)
            }
        }
    }

    /// Says that the job cannot be run as it is.
    async fn refuse(&mut self, status: &LCLTrainingJobStatus, problem: &Problem) -> Result<(), ReconcileError> {
        let (new, event) = derive_refused(status, self.job.metadata.generation.unwrap_or(0), problem, Timestamp::now());
        if self.was_sent(status, &new) {
            return Ok(());
        }
        if new != *status {
            self.write(&new).await?;
        }
        self.tell(event.as_slice());
        Ok(())
    }

    /// Whether the job's folder is another's; then it says so.
    async fn has_rival(&mut self, status: &LCLTrainingJobStatus) -> Result<bool, ReconcileError> {
        let Some(problem) = self.find_rival() else {
            self.memory.problem.take_if(|problem| problem.reason == reason::FOLDER_TAKEN);
            return Ok(false);
        };
        self.memory.problem = Some(problem.clone());
        self.refuse(status, &problem).await?;
        Ok(true)
    }

    /// Another job that is not over and keeps its run in the same folder: one that has begun, or else was created earlier.
    fn find_rival(&self) -> Option<Problem> {
        let folder = run_folder(&self.job)?;
        let age = (self.job.metadata.creation_timestamp.as_ref().map(|time| time.0), Some(self.uid));
        let is_rival = |other: &StoredJob| {
            let (Some(summary), uid) = (other.summary(), other.meta().uid.as_deref()) else { return false };
            let is_earlier = summary.has_begun || (summary.created, uid) < age;
            uid != Some(self.uid) && !summary.is_over && is_earlier && summary.folder.as_deref() == Some(&*folder)
        };
        let jobs = self.context.jobs.state();
        let rival = jobs.iter().find(|other| is_rival(other))?;
        let (name, namespace) = (rival.name_any(), rival.namespace().unwrap_or_default());
        let message = format!(
            "spec.checkpoint.uri leads to {folder}, where job {name} of namespace {namespace} keeps its run, which is not over: \
             give this job another folder, or delete that one"
        );
        Some(Problem { reason: reason::FOLDER_TAKEN, message })
    }

    /// Follows the coordinator in the pod that runs now.
    fn follow_coordinator(&mut self, job: &ValidatedJob, pods: &BTreeMap<String, Arc<ObservedPod>>) {
        let pod = pods.get(&coordinator_name(job)).filter(|pod| pod.owner == self.uid && pod.running && pod.end.is_none());
        let Some((pod, ip)) = pod.and_then(|pod| Some((pod, pod.ip.as_ref()?))) else {
            self.memory.link = None;
            return;
        };
        let address = coordinator_endpoint(ip);
        let now = Timestamp::now();
        let expires = Some(Authority::expiry(now));
        if self.memory.link_expires == expires && self.memory.link.as_ref().is_some_and(|link| link.leads_to(&pod.uid, &address)) {
            return;
        }
        let security = match self.context.authority.operator(self.uid, now) {
            Ok(security) => security,
            Err(error) => {
                let (job, namespace, category) = (&self.key.name, &self.key.namespace, error.category());
                self.context.metrics.count_error(category);
                return tracing::error!(job, namespace, category = category.label(), %error, "no certificate to show");
            }
        };
        let wake = self.context.wake.clone();
        let job = ObjectRef::<StoredJob>::new(&self.key.name).within(&self.key.namespace);
        let changed = move || wake.job(job.clone());
        match CoordinatorLink::start(pod.uid.clone(), address.clone(), pod.epoch.map(i64::unsigned_abs), &security, changed) {
            Ok(link) => (self.memory.link, self.memory.link_expires) = (Some(link), expires),
            Err(error) => tracing::warn!(job = self.key.name, address, %error, "no address to connect to"),
        }
    }

    fn tell(&self, events: &[JobEvent]) {
        let reference = self.job.object_ref(&());
        for event in events {
            let publication = Event {
                type_: if event.warning { EventType::Warning } else { EventType::Normal },
                reason: event.reason.to_owned(),
                note: Some(event.note.clone()),
                action: "Reconcile".to_owned(),
                secondary: None,
            };
            self.context.events.tell(publication, reference.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As of a webhook that refuses every status, and says when in each answer.
    #[test]
    fn failures_in_a_row_are_paused_after_though_each_has_something_new_to_say() {
        let pauses: Vec<_> = (1..=8).map(|failures| pause_after(failures, true).as_secs()).collect();
        assert_eq!(pauses, [0, 2, 4, 8, 16, 32, 60, 60]);
        let pauses: Vec<_> = (1..=8).map(|failures| pause_after(failures, false).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    }
}
