//! Why a pod does not start, and how long it waited for its image: the kubelet tells of volumes and of pulls in Events alone.

use std::time::{Duration, Instant};

use k8s_openapi::{api::core::v1::Event, jiff::Timestamp};
use kube::{Api, api::ListParams};
use lcl_operator_core::observe::{Obstacle, read_image_pull};

use super::Reconciler;

/// Between two looks at the Events of a job's pods.
const INTERVAL: Duration = Duration::from_secs(10);
/// The scheduler's word for a pod that finds no node.
const FAILED_SCHEDULING: &str = "FailedScheduling";
/// The kubelet's word for an image that is there,
const PULLED: &str = "Pulled";
/// and for the container that it tells it of.
const WORKER_FIELD: &str = "spec.containers{worker}";
/// Events of one pod that are looked at: there are a few for each reason.
const MOST_EVENTS: u32 = 100;

impl Reconciler<'_> {
    /// Remembers what the newest Event about a pod says if it is a warning: an older one may be over, since an image that is pulled comes after
    /// volumes that were mounted. Whether that is something new.
    pub(super) async fn explain(&mut self, uid: &str) -> bool {
        let is_of_it = self.memory.explanation.as_ref().is_some_and(|(of, _)| of == uid);
        if self.memory.explained.is_some_and(|at| at.elapsed() < INTERVAL) {
            return false;
        }
        self.memory.explained = Some(Instant::now());
        let Some(events) = self.list_events(uid).await else { return false };
        // It has its node by now.
        let is_over = |event: &Event| event.reason.as_deref() == Some(FAILED_SCHEDULING);
        let newest = events.iter().filter(|event| !is_over(event)).max_by_key(|event| time_of(event));
        let explanation = newest.filter(|event| event.type_.as_deref() == Some("Warning")).map(|event| {
            let reason = event.reason.clone().unwrap_or_default();
            (uid.to_owned(), Obstacle { container: None, reason, message: event.message.clone().unwrap_or_default() })
        });
        let is_news = explanation != self.memory.explanation && (explanation.is_some() || is_of_it);
        if is_news {
            self.memory.explanation = explanation;
        }
        is_news
    }

    /// Remembers how long a worker's pod waited for its image. Whether that was found.
    pub(super) async fn find_image_pull(&mut self, uid: &str) -> bool {
        let events = self.list_events(uid).await.unwrap_or_default();
        let seconds = events.iter().find_map(|event| {
            let is_of_worker = event.involved_object.field_path.as_deref() == Some(WORKER_FIELD);
            let message = event.message.as_deref().filter(|_| is_of_worker && event.reason.as_deref() == Some(PULLED))?;
            read_image_pull(message)
        });
        let is_found = seconds.is_some();
        self.memory.image_pull = seconds.map(|seconds| (uid.to_owned(), seconds)).or_else(|| self.memory.image_pull.take());
        is_found
    }

    /// The Events about a pod; nothing when they cannot be listed, which is told.
    async fn list_events(&self, uid: &str) -> Option<Vec<Event>> {
        let api = Api::<Event>::namespaced(self.context.client.clone(), &self.key.namespace);
        let about = ListParams::default().fields(&format!("involvedObject.uid={uid}")).limit(MOST_EVENTS);
        match api.list(&about).await {
            Ok(events) => Some(events.items),
            Err(error) => {
                tracing::warn!(job = self.key.name, namespace = self.key.namespace, %error, "the Events of a pod cannot be listed");
                None
            }
        }
    }
}

/// When it was last seen: a series, an Event of the older kind, or a single one.
fn time_of(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0);
    let single = event.event_time.as_ref().map(|time| time.0);
    series.or_else(|| event.last_timestamp.as_ref().map(|time| time.0)).or(single)
}
