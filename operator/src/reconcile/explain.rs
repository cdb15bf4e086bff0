//! Why a pod does not start, where its status does not say so: the kubelet tells of volumes in Events alone.

use std::time::{Duration, Instant};

use k8s_openapi::{api::core::v1::Event, jiff::Timestamp};
use kube::{Api, api::ListParams};
use lcl_operator_core::observe::Obstacle;

use super::Reconciler;

/// Between two looks at the Events of a job's pods.
const INTERVAL: Duration = Duration::from_secs(10);
/// The scheduler's word for a pod that finds no node.
const FAILED_SCHEDULING: &str = "FailedScheduling";
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
        let api = Api::<Event>::namespaced(self.context.client.clone(), &self.key.namespace);
        let about = ListParams::default().fields(&format!("involvedObject.uid={uid}")).limit(MOST_EVENTS);
        let events = match api.list(&about).await {
            Ok(events) => events,
            Err(error) => {
                tracing::warn!(job = self.key.name, namespace = self.key.namespace, %error, "the Events of a pod cannot be listed");
                return false;
            }
        };
        // It has its node by now.
        let is_over = |event: &Event| event.reason.as_deref() == Some(FAILED_SCHEDULING);
        let newest = events.items.iter().filter(|event| !is_over(event)).max_by_key(|event| time_of(event));
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
}

/// When it was last seen: a series, an Event of the older kind, or a single one.
fn time_of(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0);
    let single = event.event_time.as_ref().map(|time| time.0);
    series.or_else(|| event.last_timestamp.as_ref().map(|time| time.0)).or(single)
}
