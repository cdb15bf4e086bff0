//! Which operator runs the jobs of a namespace: whoever holds the namespace's own lease, which lies where every operator that may act there
//! can see it.
//!
//! The holder is not a process but all that look after the same namespaces and elect a leader among themselves, so that the next leader
//! goes on at once. Only the leader renews and acts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kube::Client;
use tokio::{sync::watch, task::JoinHandle, time};

use crate::{
    category::Categorized,
    clock::BootTime,
    fence::{Fence, Fences, NAMESPACE, NAMESPACE_LEASE, Write},
    lease::{Candidate, LeaseError, Outcome},
    metrics::Metrics,
};

/// The leases of all namespaces in which this process acts or wants to.
#[derive(Clone)]
pub(crate) struct Claims {
    client: Client,
    /// `NAMESPACE/NAME` of the lease by which the leader is elected: in the cluster there is one of it.
    holder: String,
    fences: Fences,
    metrics: Arc<Metrics>,
    by_namespace: Arc<Mutex<HashMap<String, Claim>>>,
}

struct Claim {
    /// Whether the lease was looked at once.
    tried: watch::Receiver<bool>,
    fence: Fence,
    task: JoinHandle<()>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Claims {
    pub(crate) fn new(client: Client, holder: String, fences: Fences, metrics: Arc<Metrics>) -> Self {
        Self { client, holder, fences, metrics, by_namespace: Arc::default() }
    }

    /// Whether the jobs of a namespace are ours to run. The first time it asks for the lease, and waits for what comes of that; it is kept
    /// or tried again from then on.
    pub(crate) async fn hold(&self, namespace: &str) -> bool {
        self.may(namespace, Write::Other).await
    }

    /// Whether things may be deleted there: also where nobody can take the lease any more, since the namespace is being deleted.
    pub(crate) async fn may_delete(&self, namespace: &str) -> bool {
        self.may(namespace, Write::Deletion).await
    }

    async fn may(&self, namespace: &str, write: Write) -> bool {
        let (mut tried, fence) = self.claim(namespace);
        // The sender goes with the claim: then it is given up.
        let _ = tried.wait_for(|tried| *tried).await;
        fence.left_for(write, BootTime::now()).is_ok()
    }

    fn claim(&self, namespace: &str) -> (watch::Receiver<bool>, Fence) {
        let mut claims = self.by_namespace.lock().unwrap_or_else(PoisonError::into_inner);
        let claim = claims.entry(namespace.to_owned()).or_insert_with(|| {
            let candidate = Candidate::new(self.client.clone(), namespace, NAMESPACE_LEASE, &self.holder, NAMESPACE);
            let fence = candidate.fence();
            self.fences.add(namespace, fence.clone());
            let (tells, tried) = watch::channel(false);
            let task = tokio::spawn(keep(candidate, fence.clone(), namespace.to_owned(), Arc::clone(&self.metrics), tells));
            Claim { tried, fence, task }
        });
        (claim.tried.clone(), claim.fence.clone())
    }

    /// Keeps the leases of these namespaces alone. Those of others run out.
    pub(crate) fn retain(&self, is_wanted: impl Fn(&str) -> bool) {
        self.by_namespace.lock().unwrap_or_else(PoisonError::into_inner).retain(|namespace, _| {
            let keeps = is_wanted(namespace);
            if !keeps {
                self.fences.remove(namespace);
            }
            keeps
        });
    }
}

/// Takes the lease when it can be had, and renews it.
async fn keep(mut candidate: Candidate, fence: Fence, namespace: String, metrics: Arc<Metrics>, tried: watch::Sender<bool>) {
    let times = candidate.times();
    let mut told = None;
    loop {
        let sent = BootTime::now();
        let (state, pause) = match candidate.try_once().await {
            Ok(Outcome::Held) => {
                fence.confirm(sent);
                (State::Ours, times.renew_interval)
            }
            Ok(Outcome::HeldBy(holder)) => {
                fence.close();
                (State::Anothers(holder), times.retry_interval)
            }
            Err(LeaseError::Ending { .. }) => {
                fence.end(sent);
                (State::Ending, times.retry_interval)
            }
            Err(error) => {
                metrics.count_error(error.category());
                (State::Unknown { category: error.category().label(), error: error.to_string() }, times.retry_interval)
            }
        };
        if told.as_ref() != Some(&state) {
            state.tell(&namespace);
            told = Some(state);
        }
        tried.send_replace(true);
        time::sleep(spread(pause)).await;
    }
}

/// Whose a namespace is.
#[derive(PartialEq, Eq)]
enum State {
    Ours,
    Anothers(String),
    Ending,
    Unknown { category: &'static str, error: String },
}

impl State {
    fn tell(&self, namespace: &str) {
        match self {
            Self::Ours => tracing::info!(namespace, "runs the jobs of this namespace"),
            Self::Anothers(holder) => {
                tracing::warn!(namespace, holder, "another operator runs the jobs of this namespace: they are left alone");
            }
            Self::Ending => {
                tracing::info!(namespace, "this namespace is being deleted: all that is done there is to remove pods of dead nodes");
            }
            Self::Unknown { category, error } => {
                tracing::warn!(namespace, category, "it is unknown who runs the jobs of this namespace: {error}");
            }
        }
    }
}

/// Hundreds of leases are not to be renewed in the same moment for ever.
fn spread(pause: Duration) -> Duration {
    pause.mul_f64(fastrand::f64().mul_add(0.2, 0.8))
}
