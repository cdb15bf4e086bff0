//! Notices that the cluster's data went back in time, as when etcd is restored from a backup.
//!
//! Watches that were begun before wait for revisions that are long to come, and what is remembered of jobs is newer than the jobs. So the
//! process ends, and the next one lists everything anew. A restore may also raise the revision by so much that nobody has seen it yet
//! (`etcdutl snapshot restore --bump-revision`): then watches begin anew by themselves, and what is remembered is as wrong.

use std::time::Duration;

use kube::{Api, api::ListParams};
use tokio::time;

use crate::{
    category::{Categorized, Category},
    clock::BootTime,
    kept::StoredJob,
};

/// Between two questions for the revision. It costs the API server one read of nothing.
const INTERVAL: Duration = Duration::from_secs(10);

/// More writes a second than any etcd takes (some ten thousand). A restore is advised to leap a billion: that is noticed for hours, and a leader
/// that cannot ask for so long has lost its lease.
const MOST_WRITES: u64 = 100_000;

/// The cluster's data are not those that were read of them before.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Restored {
    /// They are older.
    #[error(
        "the cluster's data went back from revision {from} to {to}, as when etcd is restored from a backup: this process ends, and the next lists everything anew"
    )]
    WentBack {
        /// The newest revision that was seen.
        from: u64,
        /// That of now.
        to: u64,
    },
    /// They are newer than they can be.
    #[error(
        "the cluster's data leapt from revision {from} to {to}, as when etcd is restored from a backup: this process ends, and the next lists everything anew"
    )]
    Leapt {
        /// The newest revision that was seen.
        from: u64,
        /// That of now.
        to: u64,
    },
}

impl Categorized for Restored {
    fn category(&self) -> Category {
        match self {
            Self::WentBack { .. } | Self::Leapt { .. } => Category::Restored,
        }
    }
}

/// Ends when the cluster's data have been restored.
pub(crate) async fn until_it_is_restored(jobs: Api<StoredJob>) -> Restored {
    let mut newest = None::<(u64, BootTime)>;
    loop {
        match jobs.list_metadata(&ListParams::default().limit(1)).await {
            // One that is no number says nothing.
            Ok(list) => {
                if let Some(revision) = list.metadata.resource_version.as_deref().and_then(|revision| revision.parse().ok()) {
                    if let Some(restored) = newest.and_then(|(from, at)| find_restore(from, revision, BootTime::now().since(at))) {
                        return restored;
                    }
                    newest = Some((revision, BootTime::now()));
                }
            }
            Err(error) => tracing::debug!(%error, "the revision of the cluster's data is not known"),
        }
        time::sleep(INTERVAL).await;
    }
}

/// Whether data of one revision cannot have become those of another in this time.
fn find_restore(from: u64, to: u64, time: Duration) -> Option<Restored> {
    // At least a second: an answer may be old when it comes.
    let most = MOST_WRITES.saturating_mul(time.as_secs().saturating_add(1));
    if to < from {
        Some(Restored::WentBack { from, to })
    } else if to.saturating_sub(from) > most {
        Some(Restored::Leapt { from, to })
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_older_revision_or_a_leap_is_a_restore() {
        let found = |from, to, seconds| find_restore(from, to, Duration::from_secs(seconds));
        assert_eq!(found(7, 7, 10), None);
        assert_eq!(found(7, 400_000, 10), None, "a cluster that is busy");
        assert_eq!(found(10, 9, 10), Some(Restored::WentBack { from: 10, to: 9 }));
        assert_eq!(found(500, 1_000_000_400, 20), Some(Restored::Leapt { from: 500, to: 1_000_000_400 }));
        assert_eq!(
            found(500, 1_000_000_400, 3600),
            Some(Restored::Leapt { from: 500, to: 1_000_000_400 }),
            "the API server was away for long"
        );
        assert_eq!(found(0, u64::MAX, 0), Some(Restored::Leapt { from: 0, to: u64::MAX }));
    }
}
