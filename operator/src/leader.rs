//! One operator of those that look after the same namespaces acts; the others wait for its lease to run out.

use std::{fmt, sync::Arc, time::Duration};

use thiserror::Error;
use tokio::time;

use crate::{
    category::{Categorized, Category},
    clock::BootTime,
    fence::Fence,
    lease::{Candidate, LeaseError, Outcome},
    metrics::Metrics,
    readiness::{Present, Readiness},
};

/// Why this process leads no longer.
#[derive(Debug, Error)]
pub(crate) enum Lost {
    /// Another holds the lease.
    #[error("leads no longer: {holder} holds the lease {lease} now")]
    Taken { lease: String, holder: String },
    /// It could not be renewed in time.
    #[error("leads no longer: the lease {lease} was last renewed {age:.1?} ago, and the renew deadline is {deadline:?}; {reason}")]
    Stale { lease: String, age: Duration, deadline: Duration, reason: Reason },
}

impl Categorized for Lost {
    fn category(&self) -> Category {
        match self {
            Self::Taken { .. } | Self::Stale { .. } => Category::LeaseLost,
        }
    }
}

/// Why a lease was not renewed.
#[derive(Debug)]
pub(crate) enum Reason {
    StoodStill,
    NoAnswer,
    Failed(LeaseError),
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StoodStill => formatter.write_str("this process or its machine stood still meanwhile"),
            Self::NoAnswer => formatter.write_str("the API server did not answer"),
            Self::Failed(error) => error.fmt(formatter),
        }
    }
}

/// The part that this process takes in the election.
pub(crate) struct Leader {
    candidate: Candidate,
    fence: Fence,
    metrics: Arc<Metrics>,
}

impl Leader {
    pub(crate) fn new(candidate: Candidate, fence: Fence, metrics: Arc<Metrics>) -> Self {
        Self { candidate, fence, metrics }
    }

    /// Returns once this process leads. What every attempt before has shown is told: who leads, or why nobody knows.
    pub(crate) async fn lead(&mut self, readiness: &Present) {
        loop {
            let sent = BootTime::now();
            match self.candidate.try_once().await {
                Ok(Outcome::Held) => {
                    self.fence.confirm(sent);
                    return tracing::info!(lease = self.candidate.lease(), "leads");
                }
                Ok(Outcome::HeldBy(holder)) => readiness.set(Readiness::StandsBy { lease: self.candidate.lease(), holder }),
                Err(error) => {
                    self.metrics.count_error(error.category());
                    tracing::warn!(category = error.category().label(), "cannot take part in the election: {error}");
                    readiness.set(Readiness::CannotLead { error: error.to_string() });
                }
            }
            time::sleep(self.candidate.times().retry_interval).await;
        }
    }

    /// Keeps the lease; returns the reason once it is lost: another holds it, or it could not be renewed for the renew deadline.
    pub(crate) async fn keep(&mut self) -> Lost {
        let times = self.candidate.times();
        let mut reason = Reason::StoodStill;
        let mut next = time::Instant::now() + times.renew_interval;
        loop {
            time::sleep_until(next).await;
            let (sent, started) = (BootTime::now(), time::Instant::now());
            // Looked at before anything is sent: after a standstill there is nothing to renew.
            let Some(age) = self.fence.age(sent).filter(|age| *age < times.renew_deadline) else {
                return self.stale(sent, reason);
            };
            let rest = times.renew_deadline.saturating_sub(age);
            match time::timeout(rest, self.candidate.try_once()).await {
                Ok(Ok(Outcome::Held)) => {
                    self.fence.confirm(sent);
                    reason = Reason::StoodStill;
                }
                Ok(Ok(Outcome::HeldBy(holder))) => {
                    self.fence.close();
                    return Lost::Taken { lease: self.candidate.lease(), holder };
                }
                Ok(Err(error)) => {
                    self.metrics.count_error(error.category());
                    tracing::warn!(category = error.category().label(), "the lease could not be renewed: {error}");
                    reason = Reason::Failed(error);
                }
                Err(_) => reason = Reason::NoAnswer,
            }
            // From when the attempt began: one that took long is followed by another at once. No later than the deadline.
            let end = BootTime::now();
            let rest = times.renew_deadline.saturating_sub(self.fence.age(end).unwrap_or(times.renew_deadline));
            next = (started + times.renew_interval).min(time::Instant::now() + rest);
        }
    }

    fn stale(&self, now: BootTime, reason: Reason) -> Lost {
        let deadline = self.candidate.times().renew_deadline;
        Lost::Stale { lease: self.candidate.lease(), age: self.fence.age(now).unwrap_or(deadline), deadline, reason }
    }
}
