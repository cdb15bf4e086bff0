//! A simulated member: a real connection and stream of its own, and a small task instead of a process that trains.
//!
//! It attaches holding step 5, says every second what it holds, lets go of its group as soon as it is told to, and meets the others in the
//! store. Once they have met it holds a step more, as if they had trained one: generations that train nothing are formed with a delay.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use lcl_proto::v1alpha1::{
    self as wire, coordinator_client::CoordinatorClient, store_request::Operation, store_response::Answer, to_coordinator::Message,
    to_member::Message as FromCoordinator,
};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::{MissedTickBehavior, interval_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Endpoint};

/// Between two heartbeats, as members have it.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Connections that are being opened at once: the listener's queue of the kernel is longer.
pub(crate) const OPENING: usize = 256;
/// Bytes of the name under which an NCCL group meets.
const NCCL_NAME: usize = 128;
/// What Gloo writes down for a member of a full mesh over TCP: its host's name and address, and a number for each of its connections.
const GLOO_ADDRESS: usize = 162;
const GLOO_NUMBER: usize = 8;

/// How a group meets in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meeting {
    /// As NCCL's: the first sets a name, all others get it, then all are counted and wait for the last.
    Name,
    /// As Gloo's full mesh: each sets one entry, and waits for and gets that of every other.
    Mesh,
}

/// How far a generation has come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Members that have their plan, and those that have met all others.
    pub(crate) plans: usize,
    pub(crate) met: usize,
    /// When the last of each was counted.
    pub(crate) last_plan: Option<Instant>,
    pub(crate) last_met: Option<Instant>,
    /// When the first member was told that it is over.
    pub(crate) broken: Option<Instant>,
}

/// What all members share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) address: String,
    pub(crate) meeting: Meeting,
    tallies: Mutex<BTreeMap<u64, Tally>>,
    pub(crate) changed: watch::Sender<()>,
    /// The member with this number stands still: its connection stays open, and nothing is heard of it.
    pub(crate) stands_still: AtomicUsize,
    opening: Semaphore,
}

impl Shared {
    pub(crate) fn new(address: String, meeting: Meeting) -> Arc<Self> {
        Arc::new(Self {
            address,
            meeting,
            tallies: Mutex::default(),
            changed: watch::Sender::new(()),
            stands_still: AtomicUsize::new(usize::MAX),
            opening: Semaphore::new(OPENING),
        })
    }

    pub(crate) fn tally(&self, n: u64) -> Tally {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner).get(&n).copied().unwrap_or_default()
    }

    fn count(&self, n: u64, world: u32, change: impl FnOnce(&mut Tally, Instant)) {
        let mut tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        let tally = tallies.entry(n).or_default();
        change(tally, Instant::now());
        let is_news = [tally.plans, tally.met].contains(&(world as usize)) || tally.broken.is_some();
        drop(tallies);
        if is_news {
            self.changed.send_replace(());
        }
    }
}

/// The group that a member builds: what it still has to do to meet the others.
#[derive(Debug)]
struct Group {
    generation: wire::GroupId,
    rank: u32,
    world: u32,
    /// Ranks that it has met, in a mesh.
    next: u32,
    /// The step from which it goes on.
    base: u64,
}

/// Lives until it is dropped or its stream ends.
pub(crate) async fn run(shared: Arc<Shared>, number: usize) -> Result<()> {
    let (outbox, messages) = mpsc::channel(64);
    let mut stream = {
        let _permit = shared.opening.acquire().await?;
        let channel = Endpoint::from_shared(format!("http://{}", shared.address))?.tcp_nodelay(true).connect().await?;
        outbox.send(attach(number, None)).await?;
        CoordinatorClient::new(channel).attach(ReceiverStream::new(messages)).await?.into_inner()
    };
    let member = Member { shared, outbox, group: None, held: first_state() };
    member.talk(&mut stream, number).await
}

fn attach(number: usize, ticket: Option<wire::Ticket>) -> wire::ToCoordinator {
    // Eight members a node, as with eight GPUs.
    let name = wire::MemberName { worker: format!("job-w-{}", number / 8), index: (number % 8) as u32 };
    let attach = wire::Attach {
        protocol_version: lcl_protocol::PROTOCOL_VERSION,
        name: Some(name),
        run: number as u64,
        start: 1,
        ticket,
        node: format!("node-{}", number / 8),
        address: "10.0.0.1".to_owned(),
        config_digest: "digest".to_owned(),
        machine: None,
        held: Some(first_state()),
        draining: false,
        group: None,
        saved: None,
    };
    wire::ToCoordinator { group: None, message: Some(Message::Attach(attach)) }
}

fn first_state() -> wire::StateLabel {
    wire::StateLabel { step: 5, group: Some(wire::GroupId::default()) }
}

struct Member {
    shared: Arc<Shared>,
    outbox: mpsc::Sender<wire::ToCoordinator>,
    group: Option<Group>,
    held: wire::StateLabel,
}

impl Member {
    async fn talk(mut self, stream: &mut Streaming<wire::ToMember>, number: usize) -> Result<()> {
        // Spread over the second, as members that started one after the other are.
        let first = tokio::time::Instant::now() + HEARTBEAT.mul_f64(number as f64 % 1000.0 / 1000.0);
        let mut heartbeat = interval_at(first, HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = stream.message() => {
                    self.stand_still(number).await;
                    let message = message?.context("the coordinator ended the stream")?;
                    if let Some(FromCoordinator::Ticket(ticket)) = message.message {
                        self.outbox.send(attach(number, Some(ticket))).await?;
                        continue;
                    }
                    self.hear(message).await?;
                }
                _ = heartbeat.tick() => {
                    self.stand_still(number).await;
                    let generation = self.group.as_ref().map(|group| group.generation);
                    self.send(generation, Message::Heartbeat(wire::Heartbeat { held: Some(self.held), ..wire::Heartbeat::default() })).await?;
                }
            }
        }
    }

    async fn stand_still(&self, number: usize) {
        if self.shared.stands_still.load(Ordering::Relaxed) == number {
            std::future::pending::<()>().await;
        }
    }

    async fn hear(&mut self, message: wire::ToMember) -> Result<()> {
        let generation = message.group.context("a message without a group")?;
        match message.message.context("an empty message")? {
            FromCoordinator::Form(plan) => {
                self.shared.count(generation.number, plan.world, |tally, now| {
                    (tally.plans, tally.last_plan) = (tally.plans + 1, Some(now));
                });
                let base = plan.base.context("a plan without a state to begin with")?.step;
                self.group = Some(Group { generation, rank: plan.rank, world: plan.world, next: 0, base });
                self.begin().await
            }
            FromCoordinator::Abort(_) => {
                self.shared.count(generation.number, 0, |tally, now| {
                    tally.broken.get_or_insert(now);
                });
                let cause = Some(wire::report::Cause::Aborted(wire::report::Aborted {}));
                self.send(Some(generation), Message::Report(wire::Report { held: Some(self.held), cause })).await
            }
            FromCoordinator::Store(response) => match response.answer {
                // The generation ended: its abort says so.
                Some(Answer::Cancelled(_)) => Ok(()),
                Some(Answer::Refused(reason)) => bail!("the store refused: {reason}"),
                _ => self.go_on(response.id).await,
            },
            FromCoordinator::Attached(_) | FromCoordinator::Alive(_) => Ok(()),
            other => bail!("not expected: {other:?}"),
        }
    }

    async fn send(&self, generation: Option<wire::GroupId>, message: Message) -> Result<()> {
        Ok(self.outbox.send(wire::ToCoordinator { group: generation, message: Some(message) }).await?)
    }

    async fn ask(&self, id: u64, operation: Operation) -> Result<()> {
        let generation = self.group.as_ref().map(|group| group.generation);
        self.send(generation, Message::Store(wire::StoreRequest { id, operation: Some(operation) })).await
    }

    /// The first operation of the meeting.
    async fn begin(&mut self) -> Result<()> {
        let Some(group) = &self.group else { return Ok(()) };
        let (rank, world) = (group.rank, group.world);
        let set = |key: String, bytes: usize| Operation::Set(wire::store_request::Set { key, value: vec![0; bytes] });
        match self.shared.meeting {
            Meeting::Mesh => self.ask(0, set(rank.to_string(), GLOO_ADDRESS + GLOO_NUMBER * world as usize)).await,
            Meeting::Name if rank == 0 => self.ask(0, set("name".to_owned(), NCCL_NAME)).await,
            Meeting::Name => self.ask(0, Operation::Get(wire::store_request::Get { key: "name".to_owned() })).await,
        }
    }

    /// The operation after the one with this number.
    async fn go_on(&mut self, id: u64) -> Result<()> {
        let Some(group) = &mut self.group else { return Ok(()) };
        let (n, rank, world) = (group.generation.number, group.rank, group.world);
        let met = |tally: &mut Tally, now| (tally.met, tally.last_met) = (tally.met + 1, Some(now));
        let trained = wire::StateLabel { step: group.base + 1, group: Some(group.generation) };
        match (self.shared.meeting, id) {
            (Meeting::Name, 0) => self.ask(1, Operation::Add(wire::store_request::Add { key: "count".to_owned(), amount: 1 })).await,
            (Meeting::Name, 1) => {
                if rank == 0 {
                    // Whoever is last would do it; that it is there is all that the others wait for.
                    self.ask(3, Operation::Set(wire::store_request::Set { key: "go".to_owned(), value: Vec::new() })).await?;
                }
                self.ask(2, Operation::Wait(wire::store_request::Wait { keys: vec!["go".to_owned()] })).await
            }
            (Meeting::Name, 2) => {
                self.held = trained;
                self.shared.count(n, world, met);
                Ok(())
            }
            (Meeting::Name, _) => Ok(()),
            // A get follows each wait, and the next other rank's wait each get.
            (Meeting::Mesh, id) => {
                if id % 2 == 0 {
                    group.next += u32::from(id > 0);
                    group.next += u32::from(group.next == rank);
                    if group.next >= world {
                        self.held = trained;
                        self.shared.count(n, world, met);
                        return Ok(());
                    }
                }
                let key = group.next.to_string();
                let operation = match id % 2 {
                    0 => Operation::Wait(wire::store_request::Wait { keys: vec![key] }),
                    _ => Operation::Get(wire::store_request::Get { key }),
                };
                self.ask(id + 1, operation).await
            }
        }
    }
}
