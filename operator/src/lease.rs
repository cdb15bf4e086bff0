//! A lease of Kubernetes: what it is called, who may take it, and one attempt to take or renew it.
//!
//! Of the times in a lease nothing is read: clocks of machines differ. What counts is for how long the lease has not changed, by the clock
//! of the one who looks.

use std::{collections::BTreeSet, fmt::Write as _, time::Duration};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams, core::Status};
use rustix::{
    rand::{GetRandomFlags, getrandom},
    system::uname,
};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::{
    category::{Categorized, Category},
    clock::BootTime,
    fence::{Fence, Times},
};

/// Name of the lease of those who look after all namespaces, and the beginning of all others.
pub(crate) const LEASE: &str = "lcl-operator";
/// Hexadecimal digits of the digest in a lease's name: two sets of namespaces in one cluster do not meet by chance.
const DIGEST_DIGITS: usize = 10;
/// Random bytes of an identity: as many as tell all processes apart that there will ever be.
const RANDOM_BYTES: usize = 8;

/// The lease of those who look after these namespaces; all of them if there are none. The chart computes the same name
/// (`lcl-operator.lease`), since a role names it.
pub(crate) fn lease_name(namespaces: &BTreeSet<String>) -> String {
    if namespaces.is_empty() {
        return LEASE.to_owned();
    }
    // In the order of a sorted set. A namespace has no comma in its name.
    let joined = namespaces.iter().map(String::as_str).collect::<Vec<_>>().join(",");
    let mut digest = hexadecimal(&Sha256::digest(joined));
    digest.truncate(DIGEST_DIGITS);
    format!("{LEASE}-{digest}")
}

/// A name that no other process has: the pod's, or else the machine's, and something random. Processes of different containers may have the
/// same number, and a container that is started again the same name.
pub(crate) fn identity(pod_name: Option<&str>) -> Result<String, LeaseError> {
    let mut random = [0; RANDOM_BYTES];
    // So few bytes come whole.
    getrandom(&mut random, GetRandomFlags::empty()).map_err(LeaseError::Random)?;
    let host = uname();
    let name = pod_name.filter(|name| !name.is_empty()).map_or_else(|| host.nodename().to_string_lossy(), Into::into);
    Ok(format!("{name}_{}", hexadecimal(&random)))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // A string takes everything.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Why an attempt failed. It is repeated.
#[derive(Debug, Error)]
pub(crate) enum LeaseError {
    /// Getting it.
    #[error("reading the lease {lease}: {source}")]
    Read { lease: String, source: kube::Error },
    /// Creating or replacing it.
    #[error("writing the lease {lease}: {source}")]
    Write { lease: String, source: kube::Error },
    /// It is not there, and nobody can make it.
    #[error("the lease {lease} cannot be made: its namespace is being deleted")]
    Ending { lease: String },
    /// Somebody wrote in between, twice.
    #[error("the lease {lease} changes faster than it can be written")]
    Conflict { lease: String },
    /// The system.
    #[error("no random bytes for an identity: {0}")]
    Random(rustix::io::Errno),
}

impl Categorized for LeaseError {
    fn category(&self) -> Category {
        match self {
            Self::Read { source, .. } | Self::Write { source, .. } => match source.category() {
                Category::ApiServer => Category::Lease,
                other => other,
            },
            Self::Ending { .. } | Self::Conflict { .. } | Self::Random(_) => Category::Lease,
        }
    }
}

/// What an attempt has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is ours, from before the attempt until its time is over.
    Held,
    /// It is another's.
    HeldBy(String),
}

/// What is to be done with a lease.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Create,
    Take,
    Renew,
    Leave { holder: String },
}

/// Of a lease that has not changed for `unchanged_for`.
fn decide_step(lease: Option<&Lease>, identity: &str, unchanged_for: Duration, times: Times) -> Step {
    let Some(lease) = lease else { return Step::Create };
    let spec = lease.spec.as_ref();
    let Some(holder) = spec.and_then(|spec| spec.holder_identity.clone()).filter(|holder| !holder.is_empty()) else { return Step::Take };
    if holder == identity {
        return Step::Renew;
    }
    // The holder's own word, which may be of another release.
    let seconds = spec.and_then(|spec| spec.lease_duration_seconds).and_then(|seconds| u64::try_from(seconds).ok());
    if unchanged_for < seconds.map_or(times.lease, Duration::from_secs) { Step::Leave { holder } } else { Step::Take }
}

/// Whether something is refused since its namespace is being deleted. The message is for people; the cause is for programs.
fn is_of_ending_namespace(answer: &Status) -> bool {
    let causes = answer.details.iter().flat_map(|details| &details.causes);
    answer.code == 403 && causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

/// Takes part in the election for one lease.
#[derive(Clone)]
pub(crate) struct Candidate {
    api: Api<Lease>,
    namespace: String,
    name: String,
    identity: String,
    times: Times,
    /// The version of the lease, and when we first saw it.
    seen: Option<(Option<String>, BootTime)>,
}

impl Candidate {
    pub(crate) fn new(client: Client, namespace: &str, name: &str, identity: &str, times: Times) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            times,
            seen: None,
        }
    }

    /// How messages name the lease.
    pub(crate) fn lease(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    pub(crate) fn times(&self) -> Times {
        self.times
    }

    /// A fence for this lease.
    pub(crate) fn fence(&self) -> Fence {
        Fence::new(&self.lease(), self.times)
    }

    /// Takes or renews the lease if it is ours, free or run out. When somebody else has written in between, it is looked at once more: a
    /// conflict is no loss.
    pub(crate) async fn try_once(&mut self) -> Result<Outcome, LeaseError> {
        for _ in 0..2 {
            if let Some(outcome) = self.attempt().await? {
                return Ok(outcome);
            }
        }
        Err(LeaseError::Conflict { lease: self.lease() })
    }

    /// `None` if somebody was faster.
    async fn attempt(&mut self) -> Result<Option<Outcome>, LeaseError> {
        let read = self.api.get_opt(&self.name).await;
        let lease = read.map_err(|source| LeaseError::Read { lease: self.lease(), source })?;
        let unchanged_for = lease.as_ref().map_or(Duration::ZERO, |lease| self.see(lease, BootTime::now()));
        let step = decide_step(lease.as_ref(), &self.identity, unchanged_for, self.times);
        if let Step::Leave { holder } = step {
            return Ok(Some(Outcome::HeldBy(holder)));
        }
        let metadata = || ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
        let mut lease = lease.unwrap_or_else(|| Lease { metadata: metadata(), spec: None });
        self.sign(lease.spec.get_or_insert_default(), &step);
        let parameters = PostParams::default();
        let written = match step {
            Step::Create => self.api.create(&parameters, &lease).await,
            // Refused if somebody was faster: the version is in it.
            _ => self.api.replace(&self.name, &parameters, &lease).await,
        };
        match written {
            Ok(_) => Ok(Some(Outcome::Held)),
            Err(kube::Error::Api(answer)) if answer.code == 409 => Ok(None),
            Err(kube::Error::Api(answer)) if is_of_ending_namespace(&answer) => Err(LeaseError::Ending { lease: self.lease() }),
            Err(source) => Err(LeaseError::Write { lease: self.lease(), source }),
        }
    }

    /// For how long the lease has been as it is.
    fn see(&mut self, lease: &Lease, now: BootTime) -> Duration {
        let version = &lease.metadata.resource_version;
        match &self.seen {
            Some((seen, at)) if seen == version => now.since(*at),
            _ => {
                self.seen = Some((version.clone(), now));
                Duration::ZERO
            }
        }
    }

    fn sign(&self, spec: &mut LeaseSpec, step: &Step) {
        let now = MicroTime(Timestamp::now());
        if *step != Step::Renew {
            spec.acquire_time = Some(now.clone());
            let transitions = spec.lease_transitions.map_or(0, |count| count.saturating_add(1));
            spec.lease_transitions = Some(transitions);
        }
        spec.holder_identity = Some(self.identity.clone());
        spec.renew_time = Some(now);
        spec.lease_duration_seconds = i32::try_from(self.times.lease.as_secs()).ok();
    }

    /// Gives the lease back, so that nobody has to wait for its end.
    pub(crate) async fn resign(&self) -> Result<(), LeaseError> {
        let read = self.api.get_opt(&self.name).await;
        let Some(mut lease) = read.map_err(|source| LeaseError::Read { lease: self.lease(), source })? else { return Ok(()) };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() == Some(&self.identity) {
            spec.holder_identity = None;
            let written = self.api.replace(&self.name, &PostParams::default(), &lease).await;
            written.map_err(|source| LeaseError::Write { lease: self.lease(), source })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fence::ELECTION;

    fn lease(version: u32, holder: &str, renew_time: &str) -> Lease {
        serde_json::from_value(json!({
            "metadata": { "name": LEASE, "resourceVersion": version.to_string() },
            "spec": { "holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": renew_time, "acquireTime": renew_time },
        }))
        .expect("a lease")
    }

    fn candidate() -> Candidate {
        let nobody = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("nobody is asked"))
        });
        Candidate::new(Client::new(nobody, "default"), "default", LEASE, "me", ELECTION)
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_name_of_a_lease_follows_from_the_namespaces_whatever_their_order() {
        assert_eq!(lease_name(&set(&[])), "lcl-operator");
        let name = lease_name(&set(&["team-a", "team-b"]));
        // printf team-a,team-b | sha256sum
        assert_eq!(name, "lcl-operator-183efbe2b2");
        assert_eq!(lease_name(&set(&["team-b", "team-a", "team-b"])), name);
        assert_ne!(lease_name(&set(&["team-a"])), name);
        assert_ne!(lease_name(&set(&["team-a-team-b"])), name);
    }

    #[tokio::test]
    async fn no_two_processes_have_the_same_identity() -> Result<(), LeaseError> {
        let (first, second) = (identity(None)?, identity(None)?);
        assert_ne!(first, second, "of one host and one process number");
        assert!(first.len() > RANDOM_BYTES * 2 + 1, "the host's name is in it: {first}");
        assert_ne!(identity(Some("pod"))?, identity(Some("pod"))?, "of one pod");
        assert!(identity(Some("pod"))?.starts_with("pod_"));
        Ok(())
    }

    #[tokio::test]
    async fn clocks_of_other_machines_change_nothing() {
        // The holder's clock is three minutes ahead, right, three minutes behind; and stands still.
        for renew_time in ["2026-01-01T00:03:00.000000Z", "2026-01-01T00:00:00.000000Z", "2025-12-31T23:57:00.000000Z"] {
            let (mut candidate, start) = (candidate(), BootTime::now());
            let mut look = |version: u32, seconds: u64| {
                let lease = lease(version, "other", renew_time);
                let unchanged_for = candidate.see(&lease, start + Duration::from_secs(seconds));
                decide_step(Some(&lease), "me", unchanged_for, ELECTION)
            };
            let leave = Step::Leave { holder: "other".to_owned() };
            assert_eq!(look(1, 0), leave, "seen for the first time, however old it says that it is");
            assert_eq!(look(1, 14), leave);
            assert_eq!(look(2, 16), leave, "renewed meanwhile");
            assert_eq!(look(2, 30), leave);
            assert_eq!(look(2, 31), Step::Take, "unchanged for 15 seconds of ours");
        }
    }

    #[tokio::test]
    async fn a_lease_that_nobody_can_make_any_more_is_told_from_one_that_this_process_may_not_make() {
        let answering = |cause: &'static str| {
            tower::service_fn(move |request: http::Request<kube::client::Body>| async move {
                let is_read = request.method() == http::Method::GET;
                let code = if is_read { 404 } else { 403 };
                let reason = if is_read { "NotFound" } else { "Forbidden" };
                let status = json!({
                    "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": "no",
                    "details": { "causes": [{ "reason": cause, "message": "no", "field": "metadata.namespace" }] },
                });
                let answer = http::Response::builder().status(code).body(kube::client::Body::from(status.to_string().into_bytes()));
                Ok::<_, std::io::Error>(answer.expect("an answer"))
            })
        };
        for (cause, is_ending) in [("NamespaceTerminating", true), ("", false)] {
            let client = Client::new(answering(cause), "default");
            let error = Candidate::new(client, "team", "lease", "me", ELECTION).try_once().await.expect_err("it is refused");
            assert_eq!(matches!(error, LeaseError::Ending { .. }), is_ending, "{error}");
        }
    }

    #[test]
    fn a_lease_that_is_ours_is_renewed_and_one_that_is_free_is_taken() {
        let times = ELECTION;
        assert_eq!(decide_step(None, "me", Duration::ZERO, times), Step::Create);
        let ours = lease(1, "me", "2026-01-01T00:00:00.000000Z");
        assert_eq!(decide_step(Some(&ours), "me", Duration::ZERO, times), Step::Renew);
        let given_back = lease(1, "", "2026-01-01T00:00:00.000000Z");
        assert_eq!(decide_step(Some(&given_back), "me", Duration::ZERO, times), Step::Take);
        // A holder with other times is believed.
        let mut long = lease(1, "other", "2026-01-01T00:00:00.000000Z");
        long.spec.get_or_insert_default().lease_duration_seconds = Some(60);
        assert_eq!(decide_step(Some(&long), "me", Duration::from_secs(59), times), Step::Leave { holder: "other".to_owned() });
        assert_eq!(decide_step(Some(&long), "me", Duration::from_mins(1), times), Step::Take);
    }
}
