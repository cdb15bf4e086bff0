//! Which jobs are to be reconciled. A job is in line once, however often it is woken before its turn: the line is never longer than there are
//! jobs.

use std::{
    collections::HashSet,
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{Stream, StreamExt, stream};
use kube::runtime::reflector::ObjectRef;
use tokio::sync::Notify;

use crate::kept::StoredJob;

/// Has jobs reconciled.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wake(Arc<Line>);

#[derive(Debug, Default)]
struct Line {
    jobs: Mutex<HashSet<ObjectRef<StoredJob>>>,
    changed: Notify,
}

impl Wake {
    /// A job is to be reconciled.
    pub(crate) fn job(&self, job: ObjectRef<StoredJob>) {
        self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner).insert(job);
        self.0.changed.notify_one();
    }

    /// Those in line, without an end. There is to be one such stream.
    pub(crate) fn stream(&self) -> impl Stream<Item = ObjectRef<StoredJob>> + Send + use<> {
        let next = |line: Arc<Line>| async move {
            loop {
                let jobs = mem::take(&mut *line.jobs.lock().unwrap_or_else(PoisonError::into_inner));
                if !jobs.is_empty() {
                    return Some((stream::iter(jobs), line));
                }
                // Whoever came in between has left a permit.
                line.changed.notified().await;
            }
        };
        stream::unfold(Arc::clone(&self.0), next).flatten()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_job_is_in_line_once_and_comes_again_when_it_is_woken_again() {
        let (wake, job) = (Wake::default(), |name: &str| ObjectRef::new(name).within("team"));
        let mut woken = Box::pin(wake.stream());
        assert_eq!(woken.next().now_or_never(), None);
        for _ in 0..1000 {
            wake.job(job("a"));
        }
        wake.job(job("b"));
        let mut names: Vec<_> = (0..2).map(|_| woken.next().now_or_never().flatten().expect("a job").name).collect();
        names.sort();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(woken.next().now_or_never(), None);
        wake.job(job("a"));
        assert_eq!(woken.next().now_or_never().flatten(), Some(job("a")));
    }
}
