//! Notices that the cluster's data went back in time, as when etcd is restored from a backup.
//!
//! Watches that were begun before wait for revisions that are long to come, and what is remembered of jobs is newer than the jobs. So the
//! process ends, and the next one lists everything anew.

use std::time::Duration;

use kube::{Api, api::ListParams};
use tokio::time;

use crate::reconcile::StoredJob;

/// Between two questions for the revision. It costs the API server one read of nothing.
const INTERVAL: Duration = Duration::from_secs(10);

/// The cluster's data are older than what was read of them before.
#[derive(Debug, thiserror::Error)]
#[error(
    "the cluster's data went back from revision {from} to {to}, as when etcd is restored from a backup: this process ends, and the next lists everything anew"
)]
pub(crate) struct WentBack {
    from: u64,
    to: u64,
}

/// Ends when the cluster's data are older than before.
pub(crate) async fn until_it_goes_back(jobs: Api<StoredJob>) -> WentBack {
    let mut newest = 0;
    loop {
        match jobs.list_metadata(&ListParams::default().limit(1)).await {
            Ok(list) => match step(newest, list.metadata.resource_version.as_deref()) {
                Ok(revision) => newest = revision,
                Err(went_back) => return went_back,
            },
            Err(error) => tracing::debug!(%error, "the revision of the cluster's data is not known"),
        }
        time::sleep(INTERVAL).await;
    }
}

/// The newest revision, after this answer. One that is no number says nothing.
fn step(newest: u64, answer: Option<&str>) -> Result<u64, WentBack> {
    match answer.and_then(|revision| revision.parse().ok()) {
        Some(revision) if revision < newest => Err(WentBack { from: newest, to: revision }),
        Some(revision) => Ok(revision),
        None => Ok(newest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_older_revision_is_a_way_back() {
        let seen = |newest, answer| step(newest, answer).map_err(|back| (back.from, back.to));
        assert_eq!(seen(0, Some("7")), Ok(7));
        assert_eq!(seen(7, Some("7")), Ok(7));
        assert_eq!(seen(7, Some("10")), Ok(10));
        assert_eq!(seen(7, None), Ok(7));
        assert_eq!(seen(7, Some("")), Ok(7));
        assert_eq!(seen(10, Some("9")), Err((10, 9)));
    }
}
