//! What Prometheus reads of a coordinator.
//!
//! Comes in: every message, what the machine records, each status. Goes out: the text of `/metrics`. No label names a job, a worker or a
//! member: the number of series does not grow with them, and the scraper says whose coordinator it is. The sources of a mixture are named;
//! there are at most [`lcl_protocol::MOST_SOURCES`].

use std::{
    fmt,
    sync::{Mutex, PoisonError, atomic::AtomicU64},
};

use lcl_protocol::{HistoryEvent, Phase, Refusal, SourceProgress, Status, ToCoordinator, ToMember};
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
use tokio::time::Instant;

use crate::pulse::{Pulse, Unhealthy};

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
    /// No number until they are known.
    loss: Figure,
    pace: Figure,
    sources: Sources,
    messages: Family<MessageLabel, Counter>,
    refused: Family<ReasonLabel, Counter>,
    pulse: Pulse,
}

/// The sources of a mixture. What is told of them are the newest figures; a source that is not told of has no series.
#[derive(Debug, Default)]
struct Sources {
    shown: Mutex<Vec<SourceProgress>>,
    samples: Family<SourceLabel, Number>,
    generation_loss: Family<SourceLabel, Figure>,
    contrastive_loss: Family<SourceLabel, Figure>,
    data_wait: Family<SourceLabel, Figure>,
}

/// A mean.
type Figure = Gauge<f64, AtomicU64>;

fn unknown() -> Figure {
    let figure = Figure::default();
    figure.set(f64::NAN);
    figure
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct SourceLabel {
    source: String,
}

impl Sources {
    fn register(&self, registry: &mut Registry) {
        registry.register("source_samples", "Samples of a source that have had their turn in the whole run", self.samples.clone());
        registry.register(
            "source_generation_loss",
            "Generation loss of a source's rows, not weighted, mean over their predicted tokens in the last steps",
            self.generation_loss.clone(),
        );
        registry.register(
            "source_contrastive_loss",
            "Contrastive loss of a source's rows, not weighted, mean over their contrasted images in the last steps",
            self.contrastive_loss.clone(),
        );
        registry.register_with_unit(
            "source_data_wait",
            "A source's part of the wait for a batch, mean of the last steps",
            Unit::Seconds,
            self.data_wait.clone(),
        );
    }

    fn show(&self, sources: &[SourceProgress]) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if *shown == sources {
            return;
        }
        let names = |sources: &[SourceProgress]| sources.iter().map(|source| source.name.clone()).collect::<Vec<_>>();
        if names(&shown) != names(sources) {
            self.samples.clear();
            self.data_wait.clear();
        }
        self.generation_loss.clear();
        self.contrastive_loss.clear();
        for source in sources {
            let label = SourceLabel { source: source.name.clone() };
            self.samples.get_or_create(&label).set(source.samples);
            self.data_wait.get_or_create(&label).set(source.data_wait.as_secs_f64());
            for (family, loss) in [(&self.generation_loss, source.generation_loss), (&self.contrastive_loss, source.contrastive_loss)] {
                if let Some(loss) = loss {
                    family.get_or_create(&label).set(loss);
                }
            }
        }
        *shown = sources.to_vec();
    }
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
        self.0.pulse.end();
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
            loss: unknown(),
            pace: unknown(),
            sources: Sources::default(),
            messages: Family::default(),
            refused: Family::default(),
            pulse: Pulse::default(),
        };
        let mut registry = Registry::default();
        let own = registry.sub_registry_with_prefix("lcl_coordinator");
        own.register("epoch", "Number of this coordinator among those of its job", metrics.epoch.clone());
        own.register("group", "Number of the newest group formed under this epoch, 0 before the first", metrics.generation.clone());
        own.register("step", "Steps that every member of the group has committed", metrics.step.clone());
        own.register(
            "last_checkpoint_step",
            "Completed steps in the newest checkpoint reported, 0 before the first",
            metrics.last_checkpoint_step.clone(),
        );
        own.register("members", "Attached members by state", metrics.members.clone());
        own.register_with_unit("store", "Keys and values in the store of the running group", Unit::Bytes, metrics.store.clone());
        own.register("losses", "Members that went without having been asked to, by the sign of it", metrics.losses.clone());
        own.register_with_unit(
            "recovery",
            "From the end of a group to the first step that all members of the next have committed",
            Unit::Seconds,
            metrics.recovery.clone(),
        );
        own.register("loss", "The loss that is minimised, mean of the last steps", metrics.loss.clone());
        own.register("samples_per_second", "Samples of all members a second, mean of the last steps", metrics.pace.clone());
        metrics.sources.register(own);
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
    ///
    /// # Errors
    /// Why it does not.
    pub fn check_health(&self) -> Result<(), Unhealthy> {
        self.pulse.check(Instant::now())
    }

    /// The machine's task has turned.
    pub(crate) fn beat(&self) {
        self.pulse.beat(Instant::now());
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
        self.last_checkpoint_step.set(status.saved_step().unwrap_or(0));
        self.store.set(store_bytes as i64);
        if let Some(training) = status.training {
            self.pace.set(training.samples_per_second);
            if let Some(loss) = training.loss {
                self.loss.set(loss);
            }
        }
        self.sources.show(&status.sources);
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
