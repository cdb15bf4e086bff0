//! Putting a status on record: when it is written, and what is remembered of that.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use lcl_crds::LCLTrainingJobStatus;
use lcl_operator_core::decide::{Decision, Urgency, urgency};

use super::{ReconcileError, Reconciler, version};
use crate::status::write_status;

/// Steps and checkpoints alone are written no more often than this.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
/// How the pods of a job come along that has just begun is written so long after the first news: by then the scheduler has looked at all of
/// them, and most have started.
const START_PAUSE: Duration = Duration::from_secs(5);
/// That pods are there is written with what is to be said of them next; so long after nothing was it is written by itself.
const RECORD_PAUSE: Duration = Duration::from_secs(30);

/// A status that was written and of which the API server has not kept all: the installed definition does not know every field.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Unkept {
    sent: LCLTrainingJobStatus,
    kept: LCLTrainingJobStatus,
}

impl Unkept {
    /// `None`: all of it was kept.
    fn find(sent: &LCLTrainingJobStatus, kept: Option<&LCLTrainingJobStatus>) -> Option<Self> {
        let kept = kept.cloned().unwrap_or_default();
        (kept != *sent).then(|| Self { sent: sent.clone(), kept })
    }

    /// Whether writing `new` where `old` is stored would do once more what came to nothing.
    fn is_same(&self, old: &LCLTrainingJobStatus, new: &LCLTrainingJobStatus) -> bool {
        self.kept == *old && self.sent == *new
    }
}

/// What became of a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recorded {
    /// It is on record.
    Now,
    /// It is to be written after so long. No action follows from it.
    Later(Duration),
    /// It was written before, and the API server has kept of it what it keeps.
    Before,
}

impl Reconciler<'_> {
    /// Writes the status if it differs. Progress alone may have to wait. No action follows from such a difference.
    pub(super) async fn update_status(&mut self, old: &LCLTrainingJobStatus, decision: &Decision) -> Result<Recorded, ReconcileError> {
        if decision.status == *old {
            (self.memory.unwritten, self.memory.unkept) = (None, None);
            return Ok(Recorded::Now);
        }
        if self.was_sent(old, &decision.status) {
            self.memory.unwritten = None;
            return Ok(Recorded::Before);
        }
        let rest = self.rest(urgency(old, &decision.status));
        if !rest.is_zero() {
            self.memory.created = decision.status.workers.as_ref().map_or(0, |workers| workers.created);
            return Ok(Recorded::Later(rest));
        }
        self.memory.written = Some(Instant::now());
        self.write(&decision.status).await?;
        (self.memory.created, self.memory.unwritten) = (0, None);
        if decision.status.coordinator_epoch != old.coordinator_epoch {
            self.memory.unused_epoch = decision.status.coordinator_epoch;
        }
        self.context.metrics.count_restarts(&old.restarts, &decision.status.restarts);
        Ok(Recorded::Now)
    }

    /// Whether just this was written already, and came to what is stored.
    pub(super) fn was_sent(&self, old: &LCLTrainingJobStatus, new: &LCLTrainingJobStatus) -> bool {
        let was_sent = self.memory.unkept.as_ref().is_some_and(|unkept| unkept.is_same(old, new));
        if was_sent {
            let (job, namespace) = (&self.key.name, &self.key.namespace);
            tracing::debug!(
                job,
                namespace,
                "the API server keeps only a part of the status: the definition of another version is installed"
            );
        }
        was_sent
    }

    /// How long a status still waits that is so urgent.
    fn rest(&mut self, urgency: Urgency) -> Duration {
        let since = *self.memory.unwritten.get_or_insert_with(Instant::now);
        match urgency {
            Urgency::Now => Duration::ZERO,
            Urgency::Progress => self.memory.written.map_or(Duration::ZERO, |at| PROGRESS_INTERVAL.saturating_sub(at.elapsed())),
            Urgency::Start => START_PAUSE.saturating_sub(since.elapsed()),
            Urgency::Record => RECORD_PAUSE.saturating_sub(since.elapsed()),
        }
    }

    /// Writes it now.
    pub(super) async fn write(&mut self, status: &LCLTrainingJobStatus) -> Result<(), ReconcileError> {
        let written = write_status(&self.context.client, &self.job, status).await?;
        self.context.metrics.status_writes.inc();
        self.memory.unkept = Unkept::find(status, written.status.as_ref()).map(Box::new);
        self.job = Arc::new(written);
        self.memory.job = Some((version(&self.job), Arc::clone(&self.job)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lcl_crds::{StartupStatus, StepsStatus};

    use super::*;

    #[test]
    fn what_the_api_server_does_not_keep_is_written_once() {
        let startup =
            StartupStatus { pod: "a".to_owned(), uid: "u".to_owned(), scheduled_seconds: 1, start_seconds: 2, image_pull_seconds: None };
        let kept = LCLTrainingJobStatus { coordinator_epoch: Some(1), ..LCLTrainingJobStatus::default() };
        let sent = LCLTrainingJobStatus { startup: Some(startup), ..kept.clone() };
        assert_eq!(Unkept::find(&sent, Some(&sent)), None);
        let unkept = Unkept::find(&sent, Some(&kept)).expect("a part was dropped");
        assert!(unkept.is_same(&kept, &sent));
        let news = LCLTrainingJobStatus { steps: Some(StepsStatus { completed: 1, total: 2 }), ..sent.clone() };
        assert!(!unkept.is_same(&kept, &news), "there is something else to say");
        assert!(!unkept.is_same(&LCLTrainingJobStatus::default(), &sent), "somebody has taken more of it away");
        assert!(Unkept::find(&sent, None).is_some(), "nothing at all was kept");
    }
}
