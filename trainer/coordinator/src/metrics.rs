//! What Prometheus reads of a coordinator.
//!
//! Comes in: every message, what the machine records, each status. Goes out: the text of `/metrics`. No label names a job, a worker or a
//! member: the number of series does not grow with them, and the scraper says whose coordinator it is.

use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use lcl_protocol::{HistoryEvent, Phase, Refusal, Status, ToCoordinator, ToMember};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// A step or a generation: beyond what a signed number of 64 bits holds.
type Number = Gauge<u64, AtomicU64>;

/// All metrics of one coordinator.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    epoch: Number,
    generation: Number,
    step: Number,
    last_checkpoint_step: Number,
    members: Family<StateLabel, Gauge>,
    store: Gauge,
    losses: Family<CauseLabel, Counter>,
    recovery: Histogram,
    messages: Family<MessageLabel, Counter>,
    refused: Family<ReasonLabel, Counter>,
    has_ended: AtomicBool,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CauseLabel {
    cause: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct MessageLabel {
    direction: &'static str,
    kind: &'static str,
}

/// The coordinator serves for as long as this lives.
#[derive(Debug)]
pub(crate) struct Serving<'a>(&'a Metrics);

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.0.has_ended.store(true, Ordering::Relaxed);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// None counted so far.
    #[must_use]
    pub fn new() -> Self {
        let metrics = Self {
            registry: Mutex::default(),
            epoch: Number::default(),
            generation: Number::default(),
            step: Number::default(),
            last_checkpoint_step: Number::default(),
            members: Family::default(),
            store: Gauge::default(),
            losses: Family::default(),
            // From 10 ms to about 160 s: from the best recovery on one machine to the time-outs behind the worst.
            recovery: Histogram::new(exponential_buckets(0.01, 2.0, 15)),
            messages: Family::default(),
            refused: Family::default(),
            has_ended: AtomicBool::new(false),
        };
        let mut registry = Registry::default();
        let own = registry.sub_registry_with_prefix("lcl_coordinator");
        own.register("epoch", "Number of this coordinator among those of its job", metrics.epoch.clone());
        own.register("generation", "Newest membership formed under this epoch, 0 before the first", metrics.generation.clone());
        own.register("step", "Steps that every member of the group has committed", metrics.step.clone());
        own.register(
            "last_checkpoint_step",
            "Completed steps in the newest checkpoint reported, 0 before the first",
            metrics.last_checkpoint_step.clone(),
        );
        own.register("members", "Attached members by state", metrics.members.clone());
        own.register_with_unit("store", "Keys and values in the store of the running generation", Unit::Bytes, metrics.store.clone());
        own.register("losses", "Members that went without having been asked to, by the sign of it", metrics.losses.clone());
        own.register_with_unit(
            "recovery",
            "From the end of a generation to the first step that all members of the next have committed",
            Unit::Seconds,
            metrics.recovery.clone(),
        );
        own.register("messages", "Messages on members' streams", metrics.messages.clone());
        own.register("refused_peers", "Connections and members that were refused", metrics.refused.clone());
        Self { registry: Mutex::new(registry), ..metrics }
    }

    /// The text of `/metrics`, in the `OpenMetrics` format.
    ///
    /// # Errors
    /// When the text cannot be written.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry.lock().unwrap_or_else(PoisonError::into_inner))?;
        Ok(text)
    }

    /// Whether the machine runs, or is about to.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.has_ended.load(Ordering::Relaxed)
    }

    /// The machine runs until the answer is dropped.
    pub(crate) const fn serving(&self) -> Serving<'_> {
        Serving(self)
    }

    pub(crate) fn received(&self, message: &ToCoordinator) {
        let kind = match message {
            ToCoordinator::Attach(_) => "attach",
            ToCoordinator::Heartbeat { .. } => "heartbeat",
            ToCoordinator::Report { .. } => "report",
            ToCoordinator::Drain { .. } => "drain",
            ToCoordinator::CheckpointCommitted { .. } => "checkpoint_committed",
            ToCoordinator::Finished { .. } => "finished",
            ToCoordinator::Store { .. } => "store",
        };
        self.messages.get_or_create(&MessageLabel { direction: "received", kind }).inc();
    }

    pub(crate) fn sent(&self, message: &ToMember) {
        let kind = match message {
            ToMember::Ticket { .. } => "ticket",
            ToMember::Attached { .. } => "attached",
            ToMember::Refused { reason, .. } => {
                self.refused(refusal_category(reason));
                "refused"
            }
            ToMember::Form(_) => "form",
            ToMember::Abort { .. } => "abort",
            ToMember::Wish { .. } => "wish",
            ToMember::WishCheckpoint { .. } => "wish_checkpoint",
            ToMember::Alive { .. } => "alive",
            ToMember::Store { .. } => "store",
            ToMember::Evicted { .. } => "evicted",
            ToMember::End { .. } => "end",
        };
        self.messages.get_or_create(&MessageLabel { direction: "sent", kind }).inc();
    }

    /// Somebody was turned away.
    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(crate) fn record(&self, event: &HistoryEvent) {
        match event {
            HistoryEvent::Lost { cause, .. } => {
                self.losses.get_or_create(&CauseLabel { cause: cause.category() }).inc();
            }
            HistoryEvent::Recovered { took, .. } => self.recovery.observe(took.as_secs_f64()),
            _ => {}
        }
    }

    /// Shows a status and the store's bytes.
    pub(crate) fn show(&self, status: &Status, store_bytes: usize) {
        self.epoch.set(status.generation.epoch);
        self.generation.set(status.generation.n);
        self.step.set(status.step);
        self.last_checkpoint_step.set(status.last_checkpoint.unwrap_or(0));
        self.store.set(store_bytes as i64);
        let ranked = status.members.iter().filter(|member| member.rank.is_some()).count();
        let is_running = status.phase == Phase::Running;
        let (training, leaving) = if is_running { (ranked, 0) } else { (0, ranked) };
        for (state, count) in [("training", training), ("leaving", leaving), ("waiting", status.members.len() - ranked)] {
            self.members.get_or_create(&StateLabel { state }).set(count as i64);
        }
    }
}

const fn refusal_category(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::ProtocolVersion { .. } => "protocol_version",
        Refusal::Configuration { .. } => "configuration",
        Refusal::Machine { .. } => "machine",
        Refusal::Superseded { .. } => "superseded",
        Refusal::StaleCoordinator { .. } => "stale_coordinator",
    }
}
