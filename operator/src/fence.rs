//! Who may write, and for how long: asked before every write, at the lowest level.
//!
//! A fence is open while its lease was confirmed less than the renew deadline ago, counted from before the request that confirmed it was
//! sent. It closes by itself: a process that stood still finds it closed when it goes on, before anybody has told it anything.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use thiserror::Error;

use crate::clock::BootTime;

/// How long a lease lasts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// A lease that did not change for this long may be taken by another.
    pub(crate) lease: Duration,
    /// Who could not renew for this long stops: well before another may take the lease.
    pub(crate) renew_deadline: Duration,
    /// Between two renewals.
    pub(crate) renew_interval: Duration,
    /// Between two looks at a lease that another holds, and after a renewal that failed.
    pub(crate) retry_interval: Duration,
}

/// Of the lease of a process: the times of Kubernetes' own controllers.
pub(crate) const ELECTION: Times = Times {
    lease: Duration::from_secs(15),
    renew_deadline: Duration::from_secs(10),
    renew_interval: Duration::from_secs(2),
    retry_interval: Duration::from_secs(2),
};

/// Of the leases of namespaces. There may be hundreds, and they change hands only when an operator is installed or removed: what fails
/// over within seconds is the lease of the process. 300 of them are 15 writes a second.
pub(crate) const NAMESPACE: Times = Times {
    lease: Duration::from_mins(1),
    renew_deadline: Duration::from_secs(40),
    renew_interval: Duration::from_secs(20),
    retry_interval: Duration::from_secs(5),
};

/// Name of a namespace's lease.
pub(crate) const NAMESPACE_LEASE: &str = "lcl-operator-jobs";

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// Something is deleted. Two who delete the same do no other harm than one: what is deleted is named by its uid.
    Deletion,
    /// Anything else.
    Other,
}

/// The lease is not held, or nobody knows.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("not sent, for another operator may act now: the lease {lease} was not renewed within {deadline:?}")]
pub(crate) struct Refused {
    lease: String,
    deadline: Duration,
}

/// Of one lease. All clones are one.
#[derive(Clone, Debug)]
pub(crate) struct Fence {
    lease: Arc<str>,
    times: Times,
    /// When the request was sent by which the lease was last confirmed, in nanoseconds; zero for never.
    confirmed: Arc<AtomicU64>,
    /// The same of the API server's word that nobody can take the lease any more, since its namespace is being deleted.
    ending: Arc<AtomicU64>,
}

impl Fence {
    /// A closed one. `lease` is how messages name it.
    pub(crate) fn new(lease: &str, times: Times) -> Self {
        Self { lease: lease.into(), times, confirmed: Arc::default(), ending: Arc::default() }
    }

    /// The lease was confirmed by a request that was sent no earlier than `at`.
    pub(crate) fn confirm(&self, at: BootTime) {
        self.confirmed.fetch_max(at.as_nanos(), Ordering::SeqCst);
    }

    /// Nobody can take the lease any more, as the answer says to a request that was sent no earlier than `at`.
    pub(crate) fn end(&self, at: BootTime) {
        self.confirmed.store(0, Ordering::SeqCst);
        self.ending.fetch_max(at.as_nanos(), Ordering::SeqCst);
    }

    /// Somebody else has the lease.
    pub(crate) fn close(&self) {
        self.confirmed.store(0, Ordering::SeqCst);
        self.ending.store(0, Ordering::SeqCst);
    }

    /// Time since the lease was last confirmed.
    pub(crate) fn age(&self, now: BootTime) -> Option<Duration> {
        match self.confirmed.load(Ordering::SeqCst) {
            0 => None,
            nanos => Some(now.since(BootTime::from_nanos(nanos))),
        }
    }

    /// Time until another may take the lease, if there may be writes now.
    pub(crate) fn left(&self, now: BootTime) -> Result<Duration, Refused> {
        match self.age(now) {
            Some(age) if age < self.times.renew_deadline => Ok(self.times.lease.saturating_sub(age)),
            _ => Err(Refused { lease: self.lease.to_string(), deadline: self.times.renew_deadline }),
        }
    }

    /// The same for a write of this kind. Where nobody can take the lease any more, all may delete and nobody may do anything else.
    pub(crate) fn left_for(&self, write: Write, now: BootTime) -> Result<Duration, Refused> {
        let left = self.left(now);
        let said = match self.ending.load(Ordering::SeqCst) {
            0 => None,
            nanos => Some(now.since(BootTime::from_nanos(nanos))),
        };
        match said {
            Some(age) if left.is_err() && write == Write::Deletion && age < self.times.renew_deadline => {
                Ok(self.times.lease.saturating_sub(age))
            }
            _ => left,
        }
    }
}

/// All fences of a process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fences {
    /// `None` without an election: then every write may go.
    process: Option<Fence>,
    /// `None` where namespaces are of no account.
    namespaces: Option<Arc<RwLock<HashMap<String, Fence>>>>,
}

impl Fences {
    pub(crate) fn new(process: Fence) -> Self {
        Self { process: Some(process), namespaces: Some(Arc::default()) }
    }

    /// For the leases of namespaces themselves: whoever leads may take them.
    pub(crate) fn of_process_alone(&self) -> Self {
        Self { process: self.process.clone(), namespaces: None }
    }

    pub(crate) fn process(&self) -> Option<&Fence> {
        self.process.as_ref()
    }

    /// Time until another may act in `namespace`, or at all where nothing is said of one; `None` if no other ever may.
    pub(crate) fn left(&self, namespace: Option<&str>, write: Write, now: BootTime) -> Result<Option<Duration>, Refused> {
        let Some(process) = &self.process else { return Ok(None) };
        let left = process.left(now)?;
        let (Some(namespace), Some(namespaces)) = (namespace, &self.namespaces) else { return Ok(Some(left)) };
        let fence = namespaces.read().unwrap_or_else(PoisonError::into_inner).get(namespace).cloned();
        // Whatever is not known is closed.
        let fence = fence.unwrap_or_else(|| Fence::new(&format!("{namespace}/{NAMESPACE_LEASE}"), NAMESPACE));
        Ok(Some(left.min(fence.left_for(write, now)?)))
    }

    /// Asks once more, for what is not sent to the API server.
    pub(crate) fn check(&self, namespace: &str) -> Result<(), Refused> {
        self.left(Some(namespace), Write::Other, BootTime::now()).map(drop)
    }

    pub(crate) fn add(&self, namespace: &str, fence: Fence) {
        if let Some(namespaces) = &self.namespaces {
            namespaces.write().unwrap_or_else(PoisonError::into_inner).insert(namespace.to_owned(), fence);
        }
    }

    /// Closes the fence of a namespace, also for requests that are under way.
    pub(crate) fn remove(&self, namespace: &str) {
        let Some(namespaces) = &self.namespaces else { return };
        if let Some(fence) = namespaces.write().unwrap_or_else(PoisonError::into_inner).remove(namespace) {
            fence.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_closes_by_itself_before_another_may_take_the_lease() {
        let (fence, start) = (Fence::new("system/lease", ELECTION), BootTime::now());
        assert!(fence.left(start).is_err(), "nothing was confirmed");
        fence.confirm(start);
        assert_eq!(fence.left(start + Duration::from_secs(3)), Ok(Duration::from_secs(12)));
        // Late answers of earlier requests change nothing.
        fence.confirm(start + Duration::from_secs(4));
        fence.confirm(start + Duration::from_secs(2));
        assert_eq!(fence.left(start + Duration::from_secs(4)), Ok(Duration::from_secs(15)));
        assert!(fence.left(start + Duration::from_millis(13_999)).is_ok());
        let refused = fence.left(start + Duration::from_secs(4) + ELECTION.renew_deadline).expect_err("closed");
        assert_eq!(refused.to_string(), "not sent, for another operator may act now: the lease system/lease was not renewed within 10s");
        fence.confirm(start + Duration::from_secs(5));
        fence.close();
        assert!(fence.left(start + Duration::from_secs(5)).is_err(), "another has it");
    }

    #[test]
    fn a_write_needs_the_lease_of_the_process_and_that_of_its_namespace() {
        let now = BootTime::now();
        let left = |fences: &Fences, namespace| fences.left(namespace, Write::Other, now);
        assert_eq!(left(&Fences::default(), Some("team")), Ok(None), "without an election everything may go");
        let process = Fence::new("system/lease", ELECTION);
        let fences = Fences::new(process.clone());
        let team = Fence::new("team/lease", NAMESPACE);
        fences.add("team", team.clone());
        team.confirm(now);
        assert!(left(&fences, Some("team")).is_err(), "the process does not lead");
        process.confirm(now);
        assert_eq!(left(&fences, Some("team")), Ok(Some(ELECTION.lease)));
        assert_eq!(left(&fences, None), Ok(Some(ELECTION.lease)));
        let refused = left(&fences, Some("other")).expect_err("it is another's");
        assert!(refused.to_string().contains("other/lcl-operator-jobs"), "{refused}");
        assert_eq!(left(&fences.of_process_alone(), Some("other")), Ok(Some(ELECTION.lease)), "its lease may be asked for");
        fences.remove("team");
        assert!(left(&fences, Some("team")).is_err(), "given up");
        assert!(team.left(now).is_err(), "for those who hold it, too");
    }

    #[test]
    fn whoever_may_no_longer_renew_is_fenced_long_before_another_may_take_over() {
        for times in [ELECTION, NAMESPACE] {
            assert!(times.renew_interval * 2 <= times.renew_deadline, "{times:?}: one renewal may fail");
            assert!(times.renew_deadline + crate::client::ON_THE_WAY * 2 < times.lease, "{times:?}: a request has time to end");
        }
    }

    #[test]
    fn where_nobody_can_take_the_lease_any_more_there_are_deletions_alone_and_only_as_long_as_that_is_said() {
        let (fence, now) = (Fence::new("team/lease", NAMESPACE), BootTime::now());
        let may = |write, seconds| fence.left_for(write, now + Duration::from_secs(seconds)).is_ok();
        fence.confirm(now);
        assert!(may(Write::Other, 0) && may(Write::Deletion, 0));
        fence.end(now + Duration::from_secs(20));
        assert!(!may(Write::Other, 20) && may(Write::Deletion, 20));
        assert!(may(Write::Deletion, 59) && !may(Write::Deletion, 60));
        let process = Fence::new("system/lease", ELECTION);
        let fences = Fences::new(process.clone());
        fences.add("team", fence.clone());
        let at = now + Duration::from_secs(30);
        assert!(fences.left(Some("team"), Write::Deletion, at).is_err(), "this process does not lead");
        process.confirm(at);
        assert!(fences.left(Some("team"), Write::Deletion, at).is_ok());
        assert!(fences.left(Some("team"), Write::Other, at).is_err());
        // There is a namespace of this name again, and another has its lease.
        fence.close();
        assert!(!may(Write::Deletion, 30));
        fence.end(at);
        fences.remove("team");
        assert!(!may(Write::Deletion, 30), "given up");
    }
}
