//! The process as a whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use futures_util::future::{join_all, try_join_all};
use kube::{
    Client,
    runtime::{events::Reporter, reflector::Store},
};
use lcl_crds::JobState;
use lcl_operator_core::build::NetworkAccess;
use tokio::{net::TcpListener, sync::watch};

use crate::{
    FIELD_MANAGER,
    authority::Authority,
    category::Categorized,
    claims::Claims,
    client::Connections,
    controller::Scope,
    events,
    events::EventQueue,
    fence::{ELECTION, Fences},
    http::{serve_health, serve_metrics},
    kept::StoredJob,
    leader::Leader,
    lease::{Candidate, identity, lease_name},
    metrics::Metrics,
    readiness::{Present, Readiness},
    reconcile::Images,
    settings::Settings,
};

/// Longest name of who reports an Event, in characters: the API server takes no more.
const LONGEST_REPORTER: usize = 128;

/// What the servers show.
#[derive(Default)]
struct Shown {
    jobs: Mutex<Vec<Store<StoredJob>>>,
    readiness: Present,
}

impl Shown {
    fn count_jobs(&self) -> BTreeMap<String, i64> {
        let mut counts = BTreeMap::new();
        for store in self.jobs.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            for job in store.state() {
                let state = job.summary().map_or("Unreadable", |summary| summary.state.map_or("Pending", JobState::name));
                *counts.entry(state.to_owned()).or_insert(0) += 1;
            }
        }
        counts
    }
}

/// Runs until `stop` resolves, or until nothing can go on.
pub async fn run(settings: Settings, stop: impl Future<Output = ()>) -> Result<()> {
    let metrics = Arc::new(Metrics::new());
    let shown = Arc::new(Shown::default());
    let health = listen(settings.health_addr, "health").await?;
    let metrics_listener = listen(settings.metrics_addr, "metrics").await?;
    let (for_health, for_metrics) = (Arc::clone(&shown), Arc::clone(&shown));
    let servers = async {
        tokio::try_join!(
            serve_health(health, Arc::new(move || for_health.readiness.get())),
            serve_metrics(metrics_listener, Arc::clone(&metrics), Arc::new(move || for_metrics.count_jobs())),
        )
        .context("serving health and metrics")
        .map(drop)
    };
    let work = work(&settings, &metrics, &shown, stop);
    tokio::select! {
        served = servers => served,
        worked = work => worked,
    }
}

async fn listen(address: std::net::SocketAddr, what: &str) -> Result<TcpListener> {
    let listener = lcl_security::listen(address).await.with_context(|| format!("listening on {address} for {what}"))?;
    tracing::info!(address = %listener.local_addr().context("reading the address that it listens on")?, "serves {what}");
    Ok(listener)
}

async fn work(settings: &Settings, metrics: &Arc<Metrics>, shown: &Shown, stop: impl Future<Output = ()>) -> Result<()> {
    let mut stop = std::pin::pin!(stop);
    let connecting = async {
        let connections = Connections::infer(Arc::clone(metrics)).await?;
        let leases = connections.for_leases().await?;
        anyhow::Ok((connections, leases))
    };
    let (connections, leases) = tokio::select! {
        connected = connecting => connected?,
        () = &mut stop => return Ok(()),
    };
    let namespaces: BTreeSet<String> = settings.watch_namespaces.iter().filter(|name| !name.is_empty()).cloned().collect();
    let lease = lease_name(&namespaces);
    let identity = identity(settings.pod_name.as_deref())?;
    metrics.set_leads(&lease, false);
    let mut election = if settings.leader_elect {
        let place = settings.pod_namespace.as_deref().unwrap_or(connections.default_namespace());
        Some(Election::new(&connections, Candidate::new(leases, place, &lease, &identity, ELECTION), metrics)?)
    } else {
        None
    };
    if let Some(election) = &mut election {
        tokio::select! {
            () = election.leader.lead(&shown.readiness) => {}
            () = &mut stop => return Ok(()),
        }
    }
    metrics.set_leads(&lease, true);
    let fences = election.as_ref().map_or_else(Fences::default, |election| election.fences.clone());
    let instance = identity.chars().take(LONGEST_REPORTER).collect();
    let reporter = Reporter { controller: FIELD_MANAGER.to_owned(), instance: Some(instance) };
    let (events, writer) = events::start(connections.for_events(&fences)?, reporter);
    let place = settings.pod_namespace.as_deref().unwrap_or(connections.default_namespace());
    let authority = Authority::open(connections.for_namespace_leases(&fences)?, place, &settings.ca_secret).await?;
    let jobs = Jobs {
        authority: Arc::new(authority),
        network: settings.network_access(place),
        client: connections.for_work(settings, &fences)?,
        namespaces,
        events,
        claims: election.as_ref().map(|election| election.claims.clone()),
        fences,
        settings,
        metrics,
        shown,
    };
    let lost = async {
        match &mut election {
            Some(election) => election.leader.keep().await,
            None => std::future::pending().await,
        }
    };
    // The lease is kept until the last reconcile has ended.
    tokio::select! {
        done = jobs.run(stop) => done?,
        lost = lost => return Err(lost.into()),
    }
    writer.finish().await;
    if let Some(election) = election {
        election.resign().await;
    }
    Ok(())
}

/// What an operator that takes part in an election has for it.
struct Election {
    leader: Leader,
    /// The same lease, to give it back.
    candidate: Candidate,
    fences: Fences,
    claims: Claims,
}

impl Election {
    fn new(connections: &Connections, candidate: Candidate, metrics: &Arc<Metrics>) -> Result<Self> {
        let fence = candidate.fence();
        let fences = Fences::new(fence.clone());
        let claims = Claims::new(connections.for_namespace_leases(&fences)?, candidate.lease(), fences.clone(), Arc::clone(metrics));
        Ok(Self { leader: Leader::new(candidate.clone(), fence, Arc::clone(metrics)), candidate, fences, claims })
    }

    /// Gives the lease back, after the last write.
    async fn resign(self) {
        if let Some(fence) = self.fences.process() {
            fence.close();
        }
        if let Err(error) = self.candidate.resign().await {
            let category = error.category().label();
            tracing::warn!(category, "the next leader has to wait until the lease has run out: {error}");
        }
    }
}

/// The jobs of all namespaces that are looked after.
struct Jobs<'a> {
    authority: Arc<Authority>,
    network: Option<NetworkAccess>,
    client: Client,
    namespaces: BTreeSet<String>,
    events: EventQueue,
    fences: Fences,
    claims: Option<Claims>,
    settings: &'a Settings,
    metrics: &'a Arc<Metrics>,
    shown: &'a Shown,
}

impl Jobs<'_> {
    /// Runs them until it is asked to stop, and no reconcile is under way.
    async fn run(self, mut stop: Pin<&mut impl Future<Output = ()>>) -> Result<()> {
        self.shown.readiness.set(Readiness::Lists);
        let (ending, is_ending) = watch::channel(false);
        let scopes = async {
            if let Some(claims) = &self.claims {
                join_all(self.namespaces.iter().map(|namespace| claims.hold(namespace))).await;
            }
            let all = self.namespaces.is_empty().then_some(None);
            let named = self.namespaces.iter().cloned().map(Some);
            try_join_all(all.into_iter().chain(named).map(|namespace| self.scope(namespace).start(is_ending.clone()))).await
        };
        let scopes = tokio::select! {
            scopes = scopes => scopes?,
            () = &mut stop => return Ok(()),
        };
        *self.shown.jobs.lock().unwrap_or_else(PoisonError::into_inner) = scopes.iter().map(|scope| scope.jobs.clone()).collect();
        self.shown.readiness.set(Readiness::Works);
        let mut done = std::pin::pin!(try_join_all(scopes.into_iter().map(|scope| scope.done)));
        tokio::select! {
            done = &mut done => return done.map(drop),
            () = &mut stop => {}
        }
        tracing::info!("stopping: finishing what is under way");
        self.shown.readiness.set(Readiness::Ends);
        // The receivers are the scopes, which are still there.
        ending.send_replace(true);
        done.await.map(drop)
    }

    fn scope(&self, namespace: Option<String>) -> Scope {
        let images = Images {
            coordinator: self.settings.coordinator_image.clone(),
            trainer: self.settings.trainer_image.clone(),
            pull_policy: self.settings.image_pull_policy.clone(),
        };
        Scope {
            client: self.client.clone(),
            namespace,
            images,
            authority: Arc::clone(&self.authority),
            policy: self.settings.pod_policy(),
            network: self.network.clone(),
            concurrency: self.settings.concurrency,
            events: self.events.clone(),
            fences: self.fences.clone(),
            claims: self.claims.clone(),
            metrics: Arc::clone(self.metrics),
        }
    }
}
