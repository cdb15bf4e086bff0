//! Events, told one after the other beside the work: what an Event costs, no reconcile waits for.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, Recorder, Reporter},
};
use tokio::{sync::mpsc, task::JoinHandle, time};

/// Events that wait to be written; as many as client-go's broadcaster holds. Those beyond are dropped, which the log says: they are a
/// convenience, and the status has what they tell.
const LONGEST_QUEUE: usize = 1000;
/// Time for what is still to be told when the process ends.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Bytes of a note that the API server takes.
const LONGEST_NOTE: usize = 1024;
/// What stands in place of the rest of a note.
const CUT: &str = "…";

/// A note that the API server takes: a long one loses its end, and not the Event.
fn shorten(note: String) -> String {
    if note.len() <= LONGEST_NOTE {
        return note;
    }
    let end = note.floor_char_boundary(LONGEST_NOTE - CUT.len());
    format!("{}{CUT}", note.get(..end).unwrap_or_default())
}

/// Takes Events to be written.
#[derive(Clone, Debug)]
pub(crate) struct EventQueue(mpsc::Sender<(Event, ObjectReference)>);

/// Writes the Events of a queue until all senders are gone.
#[derive(Debug)]
pub(crate) struct EventWriter(JoinHandle<()>);

/// A queue whose Events are written through `client`.
pub(crate) fn start(client: Client, reporter: Reporter) -> (EventQueue, EventWriter) {
    let (sender, receiver) = mpsc::channel(LONGEST_QUEUE);
    let writer = tokio::spawn(write(Recorder::new(client, reporter), receiver));
    (EventQueue(sender), EventWriter(writer))
}

async fn write(recorder: Recorder, mut events: mpsc::Receiver<(Event, ObjectReference)>) {
    while let Some((event, regarding)) = events.recv().await {
        if let Err(error) = recorder.publish(&event, &regarding).await {
            let (job, namespace) = (regarding.name.as_deref(), regarding.namespace.as_deref());
            tracing::warn!(job, namespace, reason = event.reason, %error, "an Event could not be written");
        }
    }
}

impl EventQueue {
    /// Has an Event written, in its turn.
    pub(crate) fn tell(&self, mut event: Event, regarding: ObjectReference) {
        event.note = event.note.map(shorten);
        if let Err(error) = self.0.try_send((event, regarding)) {
            let (event, regarding) = error.into_inner();
            let (job, namespace) = (regarding.name.as_deref(), regarding.namespace.as_deref());
            tracing::warn!(job, namespace, reason = event.reason, "an Event was dropped: {LONGEST_QUEUE} are waiting to be written");
        }
    }
}

impl EventWriter {
    /// Waits for the last Events, not for long. The queue must be gone.
    pub(crate) async fn finish(self) {
        let abort = self.0.abort_handle();
        if time::timeout(LAST_WORDS, self.0).await.is_err() {
            abort.abort();
            tracing::warn!("Events that were still to be written are lost");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_note_is_cut_between_characters_to_what_the_api_server_takes() {
        for (note, bytes) in
            [("a".repeat(1024), 1024), ("a".repeat(1025), 1024), ("漢".repeat(600), 1023), (format!("a{}", "漢".repeat(600)), 1024)]
        {
            let short = shorten(note.clone());
            assert_eq!((short.len(), short == note), (bytes, note.len() <= 1024), "{short}");
        }
    }
}
