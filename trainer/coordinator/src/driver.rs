//! Runs the coordinator's machine: one task that owns it, fed by streams, requests and its timers.
//!
//! Comes in: [`Input`]s over a bounded channel; a sender waits while it is full. Goes out: messages into each stream's own bounded
//! outbox, and the newest status. It never waits for a member: a stream whose outbox is full counts as broken.

use std::{collections::HashMap, time::Duration};

use lcl_proto::v1alpha1 as wire;
use lcl_protocol::{ConnectionId, Coordinator, CoordinatorCommand, CoordinatorEvent, CoordinatorSettings, HistoryEvent, Status};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use crate::convert::write_to_member;

/// Messages that may wait for one member: many times what a rendezvous has in flight, and small enough that a dead member's share does not
/// matter.
pub(crate) const OUTBOX: usize = 1024;
/// Inputs that may wait for the machine before streams are read more slowly.
pub(crate) const INPUTS: usize = 4096;
/// Time between two statuses at the least. A status lists every member, so it is not made for every heartbeat.
const STATUS_INTERVAL: Duration = Duration::from_millis(50);

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
    /// Anything else, as the machine takes it.
    Event(CoordinatorEvent),
}

/// See the module's description.
pub(crate) struct Driver {
    machine: Coordinator,
    start: Instant,
    outboxes: HashMap<ConnectionId, Outbox>,
    status: watch::Sender<Status>,
    published: Instant,
    /// Number of the last history entry that was logged.
    logged: u64,
}

impl Driver {
    /// A driver, and where its status can be watched.
    pub(crate) fn new(settings: CoordinatorSettings) -> (Self, watch::Receiver<Status>) {
        let start = Instant::now();
        let machine = Coordinator::new(settings, Duration::ZERO);
        let (status, watched) = watch::channel(machine.status());
        (Self { machine, start, outboxes: HashMap::new(), status, published: start, logged: 0 }, watched)
    }

    /// Runs until `stopped` is true or nobody can feed it any more. Dropping the outboxes ends all streams.
    pub(crate) async fn run(mut self, mut inputs: mpsc::Receiver<Input>, mut stopped: watch::Receiver<bool>) {
        let mut stale = false;
        loop {
            let tick = self.machine.deadline().map(|deadline| self.start + deadline);
            tokio::select! {
                input = inputs.recv() => match input {
                    Some(Input::Opened { connection, outbox }) => {
                        self.outboxes.insert(connection, outbox);
                        self.feed(CoordinatorEvent::Opened { connection });
                    }
                    Some(Input::Event(event)) => self.feed(event),
                    None => return,
                },
                () = sleep_until_some(tick) => self.feed(CoordinatorEvent::Tick),
                () = sleep_until(self.published + STATUS_INTERVAL), if stale => {
                    self.publish();
                    stale = false;
                    continue;
                }
                _ = stopped.wait_for(|stopped| *stopped) => return,
            }
            stale = true;
            if self.published.elapsed() >= STATUS_INTERVAL {
                self.publish();
                stale = false;
            }
        }
    }

    fn feed(&mut self, event: CoordinatorEvent) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            if let CoordinatorEvent::Closed { connection, .. } = &event {
                self.outboxes.remove(connection);
            }
            let commands = self.machine.handle(self.start.elapsed(), event);
            for command in commands {
                match command {
                    CoordinatorCommand::Send { connection, message } => {
                        let Some(outbox) = self.outboxes.get(&connection) else { continue };
                        if let Err(error) = outbox.try_send(Ok(write_to_member(message))) {
                            events.push(CoordinatorEvent::Closed { connection, reason: undeliverable(&error).to_owned() });
                        }
                    }
                    CoordinatorCommand::Close { connection } => {
                        self.outboxes.remove(&connection);
                    }
                }
            }
        }
    }

    fn publish(&mut self) {
        self.published = Instant::now();
        let status = self.machine.status();
        for entry in status.history.iter().filter(|entry| entry.sequence > self.logged) {
            log(&entry.event);
        }
        self.logged = status.history.last().map_or(self.logged, |entry| entry.sequence);
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
        HistoryEvent::Lost { member, reason } => tracing::warn!(%member, reason, "lost"),
        HistoryEvent::Left { member, reason } => tracing::info!(%member, %reason, "left"),
        HistoryEvent::Formed { generation, world, base } => tracing::info!(%generation, world, base, "formed"),
        HistoryEvent::Broken { generation, reason } => tracing::warn!(%generation, reason, "broken"),
        HistoryEvent::Recovered { generation, took } => tracing::info!(%generation, milliseconds = took.as_millis(), "recovered"),
        HistoryEvent::WentBack { from, to } => tracing::warn!(from, to, "went back: no live member held more"),
    }
}
