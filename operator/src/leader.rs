//! One operator acts; the others wait for its lease to run out. The times are those of Kubernetes' own controllers.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::time;

/// Name of the lease.
pub(crate) const LEASE: &str = "lcl-operator";
/// A lease that was not renewed for this long may be taken.
const LEASE_TIME: Duration = Duration::from_secs(15);
/// A leader that could not renew for this long stops: well before another may take the lease.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks at the lease.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// Takes part in the election.
#[derive(Clone)]
pub(crate) struct Candidate {
    api: Api<Lease>,
    identity: String,
    /// The lease as it was when it last changed, and when that was seen by our own clock: clocks of machines differ.
    seen: Option<(Option<String>, Instant)>,
}

impl Candidate {
    pub(crate) fn new(client: Client, namespace: &str, identity: String) -> Self {
        Self { api: Api::namespaced(client, namespace), identity, seen: None }
    }

    /// Returns once this process leads.
    pub(crate) async fn lead(&mut self) {
        loop {
            match self.try_once().await {
                Ok(true) => return tracing::info!(identity = self.identity, "leads"),
                Ok(false) => {}
                Err(error) => tracing::warn!("the lease could not be read or written: {error:#}"),
            }
            time::sleep(RETRY_INTERVAL).await;
        }
    }

    /// Keeps the lease; returns the reason once it is lost.
    pub(crate) async fn keep(&mut self) -> anyhow::Error {
        let mut renewed = Instant::now();
        loop {
            time::sleep(RETRY_INTERVAL).await;
            let rest = RENEW_DEADLINE.saturating_sub(renewed.elapsed());
            match time::timeout(rest, self.try_once()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => return anyhow::anyhow!("another process holds the lease {LEASE}"),
                Ok(Err(error)) if renewed.elapsed() < RENEW_DEADLINE => tracing::warn!("the lease could not be renewed: {error:#}"),
                Ok(Err(error)) => return error.context(format!("the lease {LEASE} could not be renewed for {RENEW_DEADLINE:?}")),
                Err(_) => return anyhow::anyhow!("the lease {LEASE} could not be renewed for {RENEW_DEADLINE:?}"),
            }
        }
    }

    /// Gives the lease back, so that nobody has to wait for its end.
    pub(crate) async fn resign(&self) -> Result<()> {
        let Some(mut lease) = self.api.get_opt(LEASE).await.context("reading the lease")? else { return Ok(()) };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() == Some(&self.identity) {
            spec.holder_identity = None;
            self.api.replace(LEASE, &PostParams::default(), &lease).await.context("giving the lease back")?;
        }
        Ok(())
    }

    /// Takes or renews the lease if it is ours, free or run out.
    async fn try_once(&mut self) -> Result<bool> {
        let now = MicroTime(Timestamp::now());
        let Some(mut lease) = self.api.get_opt(LEASE).await.context("reading the lease")? else {
            let spec = LeaseSpec { acquire_time: Some(now.clone()), ..LeaseSpec::default() };
            let metadata = ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() };
            let mut lease = Lease { metadata, spec: Some(spec) };
            self.sign(&mut lease, now);
            return was_written(self.api.create(&PostParams::default(), &lease).await);
        };
        let version = lease.metadata.resource_version.clone();
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != version) {
            self.seen = Some((version, Instant::now()));
        }
        let unchanged_for = self.seen.as_ref().map_or(Duration::ZERO, |(_, at)| at.elapsed());
        let spec = lease.spec.get_or_insert_default();
        let holder = spec.holder_identity.clone().filter(|holder| !holder.is_empty());
        let lease_time =
            spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).map_or(LEASE_TIME, Duration::from_secs);
        let is_ours = holder.as_ref() == Some(&self.identity);
        if holder.is_some() && !is_ours && unchanged_for < lease_time {
            return Ok(false);
        }
        if !is_ours {
            spec.acquire_time = Some(now.clone());
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
        }
        self.sign(&mut lease, now);
        // Refused if somebody was faster: the version is in it.
        was_written(self.api.replace(LEASE, &PostParams::default(), &lease).await)
    }

    fn sign(&self, lease: &mut Lease, now: MicroTime) {
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(self.identity.clone());
        spec.renew_time = Some(now);
        spec.lease_duration_seconds = i32::try_from(LEASE_TIME.as_secs()).ok();
    }
}

/// Whether the lease was written; `false` if somebody else was faster.
fn was_written(result: kube::Result<Lease>) -> Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(answer)) if answer.code == 409 => Ok(false),
        Err(error) => bail!("writing the lease: {error}"),
    }
}
