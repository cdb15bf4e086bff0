//! Runs the coordinator's machine: one task that owns it, fed by streams, requests and its timers.
//!
//! Comes in: [`Input`]s over a bounded channel; a sender waits while it is full. Goes out: messages into each stream's own bounded
//! outbox, and the newest status. It never waits for a member: a stream whose outbox is full counts as broken.

use std::{collections::HashMap, sync::Arc, time::Duration};

use lcl_proto::v1alpha1 as wire;
use lcl_protocol::{
    ConnectionId, Coordinator, CoordinatorCommand, CoordinatorEvent, CoordinatorSettings, Generation, HistoryEvent, Phase, Status,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};

use crate::{command::Command, convert::write_to_member, metrics::Metrics, pulse::BEAT};

/// Messages that may wait for one member: many times what a rendezvous has in flight, and small enough that a dead member's share does not
/// matter.
pub(crate) const OUTBOX: usize = 1024;
/// Inputs that may wait for the machine before streams are read more slowly.
pub(crate) const INPUTS: usize = 4096;
/// Inputs that are taken in before timers are looked at again: a few milliseconds of work, where a look at the timers after each input would
/// take about as long as a heartbeat does in the machine.
const BATCH: usize = 256;
/// Time between two statuses at the least, when the phase or the generation has changed.
const STATUS_INTERVAL: Duration = Duration::from_millis(50);
/// Time per member when only its members or their progress have changed: a status lists every member, so the more there are, the more
/// seldom it is made. 4,096 members have about one a second.
const STATUS_INTERVAL_PER_MEMBER: Duration = Duration::from_micros(250);

/// Where a member's messages go.
pub(crate) type Outbox = mpsc::Sender<Result<wire::ToMember, tonic::Status>>;

/// What the driver is fed with.
#[derive(Debug)]
pub(crate) enum Input {
    /// A stream was opened.
    Opened {
        /// The stream.
        connection: ConnectionId,
        /// Where its messages go.
        outbox: Outbox,
    },
    /// Something that a person or the operator asks for.
    Command {
        /// What.
        command: Command,
        /// Where the answer goes.
        answer: oneshot::Sender<wire::CommandResponse>,
    },
    /// Anything else, as the machine takes it.
    Event(CoordinatorEvent),
}

/// See the module's description.
pub(crate) struct Driver {
    machine: Coordinator,
    start: Instant,
    outboxes: HashMap<ConnectionId, Outbox>,
    status: watch::Sender<Status>,
    metrics: Arc<Metrics>,
    published: Instant,
    /// What the published status said of the group.
    told: (Phase, Generation),
}

impl Driver {
    /// A driver, and where its status can be watched.
    pub(crate) fn new(settings: CoordinatorSettings, metrics: Arc<Metrics>) -> (Self, watch::Receiver<Status>) {
        let start = Instant::now();
        let machine = Coordinator::new(settings, Duration::ZERO);
        let told = (machine.phase(), machine.generation());
        let (status, watched) = watch::channel(machine.status());
        (Self { machine, start, outboxes: HashMap::new(), status, metrics, published: start, told }, watched)
    }

    /// Runs until `stopped` is true or nobody can feed it any more. Dropping the outboxes ends all streams.
    pub(crate) async fn run(mut self, mut inputs: mpsc::Receiver<Input>, mut stopped: watch::Receiver<bool>) {
        let metrics = Arc::clone(&self.metrics);
        let _serving = metrics.serving();
        self.publish();
        let mut stale = false;
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            metrics.beat();
            let beat = Instant::now() + BEAT;
            let tick = self.machine.deadline().map(|deadline| self.start + deadline);
            let due = self.published + self.status_interval();
            tokio::select! {
                // What comes seldom first: then nothing is kept waiting by members that talk all the time.
                biased;
                _ = stopped.wait_for(|stopped| *stopped) => return,
                () = sleep_until_some(tick) => self.feed(CoordinatorEvent::Tick),
                () = sleep_until(due), if stale => {
                    self.publish();
                    stale = false;
                    continue;
                }
                taken = inputs.recv_many(&mut batch, BATCH) => match taken {
                    0 => return,
                    _ => batch.drain(..).for_each(|input| self.take(input)),
                },
                () = sleep_until(beat) => continue,
            }
            stale = true;
            if self.published.elapsed() >= self.status_interval() {
                self.publish();
                stale = false;
            }
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Opened { connection, outbox } => {
                self.outboxes.insert(connection, outbox);
                self.feed(CoordinatorEvent::Opened { connection });
            }
            Input::Command { command, answer } => {
                let before = self.machine.status();
                self.feed(command.event());
                // Whoever asked may have gone.
                let _ = answer.send(command.answer(&before, &self.machine.status()));
            }
            Input::Event(event) => self.feed(event),
        }
    }

    fn feed(&mut self, event: CoordinatorEvent) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            match &event {
                CoordinatorEvent::Closed { connection, .. } => drop(self.outboxes.remove(connection)),
                CoordinatorEvent::Message { message, .. } => self.metrics.received(message),
                _ => {}
            }
            let commands = self.machine.handle(self.start.elapsed(), event);
            for command in commands {
                match command {
                    CoordinatorCommand::Send { connection, message } => {
                        let Some(outbox) = self.outboxes.get(&connection) else { continue };
                        self.metrics.sent(&message);
                        if let Err(error) = outbox.try_send(Ok(write_to_member(message))) {
                            events.push(CoordinatorEvent::Closed { connection, reason: undeliverable(&error).to_owned() });
                        }
                    }
                    CoordinatorCommand::Close { connection } => {
                        self.outboxes.remove(&connection);
                    }
                    CoordinatorCommand::Record(entry) => {
                        self.metrics.record(&entry.event);
                        log(&entry.event);
                    }
                }
            }
        }
    }

    /// How long a published status stands.
    fn status_interval(&self) -> Duration {
        let members = self.machine.members().try_into().unwrap_or(u32::MAX);
        let progress = STATUS_INTERVAL_PER_MEMBER.saturating_mul(members);
        let has_turned = self.told != (self.machine.phase(), self.machine.generation());
        if has_turned { STATUS_INTERVAL } else { STATUS_INTERVAL.max(progress) }
    }

    fn publish(&mut self) {
        self.published = Instant::now();
        self.told = (self.machine.phase(), self.machine.generation());
        let status = self.machine.status();
        self.metrics.show(&status, self.machine.store_bytes());
        self.status.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
    }
}

/// Waits for a time that may never come.
async fn sleep_until_some(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn undeliverable<T>(error: &mpsc::error::TrySendError<T>) -> &'static str {
    match error {
        mpsc::error::TrySendError::Full(_) => "it does not read its messages",
        mpsc::error::TrySendError::Closed(_) => "the member closed it",
    }
}

fn log(event: &HistoryEvent) {
    match event {
        HistoryEvent::Joined { member } => tracing::info!(%member, "joined"),
        HistoryEvent::Lost { member, cause, reason } => tracing::warn!(%member, cause = cause.category(), reason, "lost"),
        HistoryEvent::Left { member, reason } => tracing::info!(%member, %reason, "left"),
        HistoryEvent::Formed { generation, world, base } => tracing::info!(group = %generation, world, base, "formed"),
        HistoryEvent::Adopted { generation, world } => tracing::info!(group = %generation, world, "taken over"),
        HistoryEvent::Broken { generation, reason } => tracing::warn!(group = %generation, reason, "broken"),
        HistoryEvent::Recovered { generation, took } => tracing::info!(group = %generation, milliseconds = took.as_millis(), "recovered"),
        HistoryEvent::Slow { member, step_work, median } => {
            tracing::warn!(%member, ?step_work, ?median, "slower than the others for a while: all wait for it in every step");
        }
        HistoryEvent::WentBack { from, to } => tracing::warn!(from, to, "went back: no live member held more"),
    }
}
