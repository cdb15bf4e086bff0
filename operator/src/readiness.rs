//! What the process can do now, as `/readyz` tells it.

use std::sync::{Mutex, PoisonError};

/// The check that can be excluded: `/readyz?exclude=leader-election`, as the API server and controller-runtime have it.
pub(crate) const ELECTION_CHECK: &str = "leader-election";

/// How far the process has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// It has not heard of the API server yet, or not of the lease.
    #[default]
    Connecting,
    /// Another process leads, and this one would take over.
    StandsBy { lease: String, holder: String },
    /// It could not take over: the lease cannot be read or written.
    CannotLead { error: String },
    /// It leads, and lists what there is.
    Lists,
    /// It leads and knows what there is.
    Works,
    /// It was asked to end.
    Ends,
}

impl Readiness {
    /// Why it is not ready; `None` if it is. Without the check of the election a process that stands by is.
    pub(crate) fn why_not(&self, has_election_check: bool) -> Option<String> {
        match self {
            Self::Works => None,
            Self::StandsBy { .. } if !has_election_check => None,
            Self::StandsBy { lease, holder } => Some(format!("{ELECTION_CHECK}: stands by; {holder} holds the lease {lease}")),
            Self::CannotLead { error } => Some(format!("{ELECTION_CHECK}: {error}")),
            Self::Connecting => Some("the API server has not answered yet".to_owned()),
            Self::Lists => Some("caches are not filled yet".to_owned()),
            Self::Ends => Some("it is ending".to_owned()),
        }
    }
}

/// The present state, for all who ask.
#[derive(Debug, Default)]
pub(crate) struct Present(Mutex<Readiness>);

impl Present {
    pub(crate) fn set(&self, readiness: Readiness) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = readiness;
    }

    pub(crate) fn get(&self) -> Readiness {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_is_not_ready_and_says_why_unless_the_election_does_not_count() {
        let standby = Readiness::StandsBy { lease: "system/lcl-operator".to_owned(), holder: "other".to_owned() };
        assert_eq!(standby.why_not(true).as_deref(), Some("leader-election: stands by; other holds the lease system/lcl-operator"));
        assert_eq!(standby.why_not(false), None);
        // One that could not take over helps nobody.
        let broken = Readiness::CannotLead { error: "leases is forbidden".to_owned() };
        for readiness in [broken, Readiness::Connecting, Readiness::Lists, Readiness::Ends] {
            assert!(readiness.why_not(true).is_some() && readiness.why_not(false).is_some(), "{readiness:?}");
        }
        assert_eq!(Readiness::Works.why_not(true), None);
    }
}
