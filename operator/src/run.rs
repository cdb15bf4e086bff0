//! The process as a whole.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use kube::runtime::{
    events::{Recorder, Reporter},
    reflector::Store,
};
use lcl_crds::JobState;
use lcl_security::Security;
use tokio::{net::TcpListener, sync::watch};

use crate::{
    FIELD_MANAGER, client,
    controller::Scope,
    http::{serve_health, serve_metrics},
    leader::Candidate,
    metrics::Metrics,
    reconcile::{Images, StoredJob},
    settings::Settings,
};

/// What the servers show.
#[derive(Default)]
struct Shown {
    jobs: Mutex<Vec<Store<StoredJob>>>,
    is_ready: std::sync::atomic::AtomicBool,
}

impl Shown {
    fn count_jobs(&self) -> BTreeMap<String, i64> {
        let mut counts = BTreeMap::new();
        for store in self.jobs.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            for job in store.state() {
                let state = job.0.as_ref().map_or_else(|_| Some("Unreadable"), |job| job.status.as_ref()?.state.map(JobState::name));
                *counts.entry(state.unwrap_or("Pending").to_owned()).or_insert(0) += 1;
            }
        }
        counts
    }

    fn is_ready(&self) -> bool {
        self.is_ready.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// Runs until `stop` resolves, or until nothing can go on.
pub async fn run(settings: Settings, stop: impl Future<Output = ()>) -> Result<()> {
    let metrics = Arc::new(Metrics::new());
    let shown = Arc::new(Shown::default());
    let health = listen(settings.health_addr, "health").await?;
    let metrics_listener = listen(settings.metrics_addr, "metrics").await?;
    let (for_health, for_metrics) = (Arc::clone(&shown), Arc::clone(&shown));
    metrics.set_leads(false);
    let servers = async {
        tokio::try_join!(
            serve_health(health, Arc::new(move || for_health.is_ready())),
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
    let listener = TcpListener::bind(address).await.with_context(|| format!("listening on {address} for {what}"))?;
    tracing::info!(address = %listener.local_addr().context("reading the address that it listens on")?, "serves {what}");
    Ok(listener)
}

async fn work(settings: &Settings, metrics: &Arc<Metrics>, shown: &Shown, stop: impl Future<Output = ()>) -> Result<()> {
    let mut stop = std::pin::pin!(stop);
    ensure!(
        settings.insecure,
        "the pods of jobs have no certificates yet: start with --insecure, and keep others out with a NetworkPolicy"
    );
    let security = Security::Insecure;
    let client = tokio::select! {
        client = client::connect(settings, Arc::clone(metrics)) => client?,
        () = &mut stop => return Ok(()),
    };
    let identity = settings.pod_name.clone().unwrap_or_else(|| format!("{FIELD_MANAGER}-{}", std::process::id()));
    let mut candidate = settings.leader_elect.then(|| Candidate::new(client.clone(), &settings.pod_namespace, identity.clone()));
    if let Some(candidate) = &mut candidate {
        // Waiting to lead is all that is asked of this process now.
        shown.is_ready.store(true, std::sync::atomic::Ordering::Relaxed);
        tokio::select! {
            () = candidate.lead() => {}
            () = &mut stop => return Ok(()),
        }
    }
    metrics.set_leads(true);
    let (ending, is_ending) = watch::channel(false);
    let namespaces: Vec<_> = match settings.watch_namespaces.iter().filter(|namespace| !namespace.is_empty()).collect::<Vec<_>>() {
        all if all.is_empty() => vec![None],
        named => named.into_iter().cloned().map(Some).collect(),
    };
    let reporter = Reporter { controller: FIELD_MANAGER.to_owned(), instance: Some(identity) };
    let recorder = Recorder::new(client.clone(), reporter);
    let scopes = try_join_all(namespaces.into_iter().map(|namespace| {
        let images = Images {
            coordinator: settings.coordinator_image.clone(),
            trainer: settings.trainer_image.clone(),
            pull_policy: settings.image_pull_policy.clone(),
        };
        let (client, recorder, metrics) = (client.clone(), recorder.clone(), Arc::clone(metrics));
        let (security, policy, network) = (security.clone(), settings.pod_policy(), settings.network_access());
        Scope { client, namespace, images, security, policy, network, concurrency: settings.concurrency, recorder, metrics }
            .start(is_ending.clone())
    }));
    let resigns = candidate.clone();
    let lost = async {
        match &mut candidate {
            Some(candidate) => candidate.keep().await,
            None => std::future::pending().await,
        }
    };
    let mut lost = std::pin::pin!(lost);
    let scopes = tokio::select! {
        scopes = scopes => scopes?,
        error = &mut lost => return Err(error),
        () = &mut stop => return Ok(()),
    };
    *shown.jobs.lock().unwrap_or_else(PoisonError::into_inner) = scopes.iter().map(|scope| scope.jobs.clone()).collect();
    shown.is_ready.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut done = std::pin::pin!(try_join_all(scopes.into_iter().map(|scope| scope.done)));
    tokio::select! {
        done = &mut done => return done.map(drop),
        error = &mut lost => return Err(error),
        () = &mut stop => {}
    }
    tracing::info!("stopping: finishing what is under way");
    // The receivers are the scopes, which are still there.
    ending.send_replace(true);
    done.await?;
    if let Some(candidate) = resigns {
        candidate.resign().await?;
    }
    Ok(())
}
