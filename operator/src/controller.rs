//! Watches that feed the reconciles: jobs, their pods, and their other objects, in one namespace or in all.

use std::{
    collections::HashSet,
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use futures_util::{StreamExt, stream};
use k8s_openapi::{NamespaceResourceScope, api::core::v1::Pod};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{
        Controller, WatchStreamExt,
        controller::{Action as Next, Config},
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use lcl_operator_core::{
    PodPolicy,
    build::{MANAGED_BY, NetworkAccess},
};
use tokio::{task::JoinSet, time};
use tokio_stream::wrappers::WatchStream;

use crate::{
    allocator,
    authority::Authority,
    cache::{JobKey, PodCache},
    children::ChildStores,
    claims::Claims,
    events::EventQueue,
    fence::{Fences, NAMESPACE},
    kept::StoredJob,
    leftovers::{self, Leftover, Leftovers},
    memory::Memories,
    metrics::Metrics,
    reconcile::{Context, Images, ReconcileError, reconcile},
    revision::until_it_is_restored,
    wake::Wake,
};

/// Pods of dead nodes that are removed side by side: there may be thousands.
const LEFTOVERS_AT_ONCE: usize = 16;
/// Between two searches for jobs that are gone.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// After so many of them memory that is free is given back: a minute, since all of the heap is walked for it.
const SWEEPS_TO_GIVE_BACK: u32 = 12;

/// Looks after the jobs of one namespace, or of all.
pub(crate) struct Scope {
    pub(crate) client: Client,
    pub(crate) namespace: Option<String>,
    pub(crate) images: Images,
    pub(crate) authority: Arc<Authority>,
    pub(crate) policy: PodPolicy,
    pub(crate) network: Option<NetworkAccess>,
    pub(crate) concurrency: u16,
    pub(crate) events: EventQueue,
    pub(crate) fences: Fences,
    /// Of whose jobs are ours to run; all are without one.
    pub(crate) claims: Option<Claims>,
    pub(crate) metrics: Arc<Metrics>,
}

/// A scope whose watches run.
pub(crate) struct RunningScope {
    /// The jobs, for counting.
    pub(crate) jobs: Store<StoredJob>,
    /// Ends after the stop, when no reconcile is under way, or with an error that is not to be survived.
    pub(crate) done: Pin<Box<dyn Future<Output = Result<()>> + Send>>,
}

impl Scope {
    /// Starts the watches, waits until all objects are known, and begins to look.
    pub(crate) async fn start(self, stop: tokio::sync::watch::Receiver<bool>) -> Result<RunningScope> {
        let wake = Wake::default();
        let mut watches = JoinSet::new();
        let pods = Arc::new(PodCache::default());
        watches.spawn(watch_pods(self.api(), Arc::clone(&pods), wake.clone()));
        let children = ChildStores::watch(&self.client, self.namespace.as_deref(), &wake, &mut watches);
        children.wait_until_listed().await;
        while !pods.is_complete() {
            time::sleep(Duration::from_millis(10)).await;
        }
        let woken = wake.stream();
        let restored = until_it_is_restored(self.api());
        let (jobs, writer) = reflector::store();
        let changes = watcher(self.api::<StoredJob>(), watcher::Config::default()).reflect(writer).applied_objects();
        let controller = Controller::for_stream(changes, jobs.clone());
        let claims = self.claims.clone();
        let context = Arc::new(Context {
            client: self.client,
            images: self.images,
            authority: self.authority,
            jobs: jobs.clone(),
            policy: self.policy,
            network: self.network,
            pods,
            children,
            memories: Memories::default(),
            wake,
            events: self.events,
            fences: self.fences,
            metrics: self.metrics,
        });
        // Named namespaces stay ours while they have no jobs.
        let gives_up = self.namespace.is_none();
        watches.spawn(sweep(Arc::clone(&context), self.claims, gives_up));
        let mut stopped = WatchStream::new(stop).filter(|stop| std::future::ready(*stop));
        let looks = controller
            .with_config(Config::default().concurrency(self.concurrency))
            .reconcile_on(woken)
            .graceful_shutdown_on(async move {
                stopped.next().await;
            })
            .run(
                move |job, context| reconcile_if_ours(job, context, claims.clone()),
                |_, _, _| Next::requeue(Duration::from_secs(1)),
                context,
            );
        let done = async move {
            let (mut looks, mut restored) = (std::pin::pin!(looks), std::pin::pin!(restored));
            loop {
                tokio::select! {
                    look = looks.next() => match look {
                        Some(Ok(_)) => {}
                        // Of jobs that were deleted while they waited for their turn, and of the watch, which goes on by itself.
                        Some(Err(error)) => tracing::debug!(%error, "a reconcile did not take place"),
                        None => return Ok(()),
                    },
                    restored = &mut restored => return Err(restored.into()),
                    Some(ended) = watches.join_next() => {
                        return Err(ended.err().map_or_else(|| anyhow!("a watch has ended"), |error| anyhow!("a watch has ended: {error}")));
                    }
                }
            }
        };
        Ok(RunningScope { jobs, done: Box::pin(done) })
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match &self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }
}

/// All that bears the operator's label.
pub(crate) fn managed() -> watcher::Config {
    watcher::Config::default().labels(&format!("{}={}", MANAGED_BY.0, MANAGED_BY.1))
}

async fn watch_pods(api: Api<Pod>, cache: Arc<PodCache>, wake: Wake) {
    let mut events = std::pin::pin!(watcher(api, managed()).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                for job in cache.take(event) {
                    wake.job(ObjectRef::new(&job.name).within(&job.namespace));
                }
            }
            Err(error) => tracing::warn!(%error, "watching Pods"),
        }
    }
}

/// Leaves jobs alone that another operator runs.
async fn reconcile_if_ours(job: Arc<StoredJob>, context: Arc<Context>, claims: Option<Claims>) -> Result<Next, ReconcileError> {
    if let Some(claims) = claims
        && !claims.hold(&job.namespace().unwrap_or_default()).await
    {
        return Ok(Next::requeue(NAMESPACE.retry_interval));
    }
    reconcile(job, context).await
}

/// Forgets jobs that are gone, removes what dead nodes keep of those that are gone or over, and gives up namespaces that have nothing.
async fn sweep(context: Arc<Context>, claims: Option<Claims>, gives_up: bool) {
    let jobs = &context.jobs;
    let mut leftovers = Leftovers::default();
    let mut interval = time::interval(SWEEP_INTERVAL);
    interval.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    for sweep in 1_u32.. {
        interval.tick().await;
        if sweep.is_multiple_of(SWEEPS_TO_GIVE_BACK) {
            allocator::give_back();
        }
        let exists = |JobKey { namespace, name }: &JobKey| jobs.get(&ObjectRef::new(name).within(namespace)).is_some();
        context.memories.retain(exists);
        context.pods.retain_gone(exists);
        let found = leftovers::find(&context.pods, jobs);
        if let Some(claims) = claims.as_ref().filter(|_| gives_up) {
            let with_jobs = jobs.state().into_iter().filter_map(|job| job.namespace());
            let in_use: HashSet<_> = with_jobs.chain(found.iter().map(|left| left.job.namespace.clone())).collect();
            claims.retain(|namespace| in_use.contains(namespace));
        }
        let due = leftovers.due(Instant::now(), found);
        let (claims, context) = (claims.as_ref(), &context);
        let remove = |left: Leftover| async move {
            let is_ours = match claims {
                Some(claims) => claims.may_delete(&left.job.namespace).await,
                None => true,
            };
            if is_ours {
                leftovers::remove(&context.client, &context.pods, &context.metrics, &left).await;
            }
        };
        stream::iter(due).for_each_concurrent(LEFTOVERS_AT_ONCE, remove).await;
    }
}
