//! Follows a coordinator from the place that started it, and sees to it that it knows the wanted size of the job and a wanted checkpoint.
//!
//! Comes in: a coordinator's address, and what is wanted, whenever it changes. Goes out: every status, over a function that is called from
//! a thread of its own. The size is told when it changes, and to every coordinator whose first status shows another one: one that was started
//! again, or that could not be told. A checkpoint is told to every coordinator that does not know of it, until one is there that is as new.
//! Nothing that goes wrong here ends anything: it is tried again until the overseer is dropped.

use std::{fmt, io, mem, thread, time::Duration};

use lcl_proto::v1alpha1::{
    self as wire,
    command_request::{Checkpoint, Command},
    coordinator_client::CoordinatorClient,
};
use lcl_protocol::{Status, World};
use lcl_security::Connector;
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tonic::transport::{Channel, Endpoint};

use crate::{
    MAX_MESSAGE_BYTES, Security, StartError,
    convert::{status_from_proto, write_world},
};

/// For a connection, and for an answer.
const ANSWER: Duration = Duration::from_secs(5);
/// After this long without a word the coordinator is asked whether it lives, and given as long to say so.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// First pause before another attempt; doubled up to the longest. A coordinator on the same machine is back within a second, and a person
/// looks at what is told.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What is seen of the coordinator.
#[derive(Clone, Debug, PartialEq)]
pub enum Sight {
    /// Its newest status; those before it may have been missed.
    Status(Box<Status>),
    /// It cannot be seen, for this reason. Said once until it is seen again.
    Lost(String),
}

/// Called with what is seen.
type Tell = Box<dyn FnMut(Sight) + Send>;

/// What the coordinator is to know.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    world: World,
    /// A checkpoint of this step or a later one.
    checkpoint: Option<u64>,
}

/// Follows a coordinator until it is dropped.
#[derive(Debug)]
pub struct Overseer {
    wanted: watch::Sender<Wanted>,
    /// Closes when the overseer is dropped.
    _alive: mpsc::Sender<()>,
}

impl Overseer {
    /// Starts to follow the coordinator at `host:port`, in a thread of its own; `tell` must not wait for long.
    ///
    /// # Errors
    /// See [`StartError`]. That nobody answers is none.
    pub fn start(
        coordinator: &str,
        security: &Security,
        wanted: World,
        tell: impl FnMut(Sight) + Send + 'static,
    ) -> Result<Self, StartError> {
        let endpoint = Endpoint::from_shared(format!("http://{coordinator}"))
            .map_err(|source| StartError::Address { coordinator: coordinator.to_owned(), source })?
            .connect_timeout(ANSWER)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let failed = |source: io::Error| StartError::Thread { coordinator: coordinator.to_owned(), source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (wanted, wishes) = watch::channel(Wanted { world: wanted, checkpoint: None });
        let (alive, mut dropped) = mpsc::channel::<()>(1);
        let mut follower =
            Follower { endpoint, security: security.clone(), wanted: wishes, tell: Box::new(tell), is_seen: true, fulfilled: None };
        let work = async move {
            tokio::select! {
                () = follower.run() => {}
                _ = dropped.recv() => {}
            }
        };
        thread::Builder::new().name("overseer".to_owned()).spawn(move || runtime.block_on(work)).map_err(failed)?;
        Ok(Self { wanted, _alive: alive })
    }

    /// The size that the job is to have from now on.
    pub fn set_world(&self, world: World) {
        self.wanted.send_modify(|wanted| wanted.world = world);
    }

    /// A checkpoint of this step or a later one is to be written, unless there is one. It takes the place of the one that was wanted before.
    pub fn want_checkpoint(&self, from: u64) {
        self.wanted.send_modify(|wanted| wanted.checkpoint = Some(from));
    }
}

struct Follower {
    endpoint: Endpoint,
    security: Security,
    wanted: watch::Receiver<Wanted>,
    tell: Tell,
    is_seen: bool,
    /// The wanted checkpoint that is there: a new coordinator has not heard of it.
    fulfilled: Option<u64>,
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Follower {
    async fn run(&mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let reason = self.follow().await.err().unwrap_or_else(|| "the coordinator ended the stream".to_owned());
            if mem::replace(&mut self.is_seen, false) {
                (self.tell)(Sight::Lost(reason));
                pause = FIRST_PAUSE;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Follows one stream to its end.
    async fn follow(&mut self) -> Result<(), String> {
        let connector = Connector::new(self.security.clone());
        let channel = self.endpoint.connect_with_connector(connector).await.map_err(|error| describe(&error))?;
        let mut client = CoordinatorClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let opened = timeout(ANSWER, client.watch(wire::WatchRequest {})).await;
        let opened = opened.map_err(|_| format!("no answer within {ANSWER:?}"))?;
        let mut statuses = opened.map_err(|status| in_words(&status))?.into_inner();
        // One that was just started may have been started with another size.
        let mut newest: Option<Status> = None;
        loop {
            let status = tokio::select! {
                status = statuses.message() => status.map_err(|status| in_words(&status))?,
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        // The overseer is being dropped, and this with it.
                        std::future::pending::<()>().await;
                    }
                    let wanted = *self.wanted.borrow_and_update();
                    resize(&mut client, wanted.world).await?;
                    if let Some(from) = newest.as_ref().and_then(|status| self.untold_checkpoint(status)) {
                        ask_checkpoint(&mut client, from).await?;
                    }
                    continue;
                }
            };
            let Some(status) = status else { return Ok(()) };
            let status = status_from_proto(status).map_err(|error| describe(&error))?;
            if newest.is_none() {
                let wanted = self.wanted.borrow_and_update().world;
                if status.world != wanted {
                    resize(&mut client, wanted).await?;
                }
            }
            self.note_checkpoint(&status);
            if let Some(from) = self.untold_checkpoint(&status) {
                ask_checkpoint(&mut client, from).await?;
            }
            self.is_seen = true;
            (self.tell)(Sight::Status(Box::new(status.clone())));
            newest = Some(status);
        }
    }

    fn note_checkpoint(&mut self, status: &Status) {
        let wanted = self.wanted.borrow().checkpoint;
        if status.saved_step() >= wanted {
            self.fulfilled = wanted;
        }
    }

    /// The wanted checkpoint, unless it is there or the coordinator of this status knows. One that has heard of fewer steps would note an
    /// earlier one instead; its later statuses tell of more.
    fn untold_checkpoint(&self, status: &Status) -> Option<u64> {
        let wanted = self.wanted.borrow().checkpoint;
        let is_known = self.fulfilled == wanted || status.wanted_checkpoint >= wanted;
        wanted.filter(|from| !is_known && status.step >= *from)
    }
}

/// Tells the coordinator the wanted size, whichever answers: all are to have it. What it has already changes nothing.
async fn resize(client: &mut CoordinatorClient<Channel>, world: World) -> Result<(), String> {
    command(client, Command::Resize(write_world(world))).await
}

/// Asks for a checkpoint, whichever coordinator answers. Asked for again, it is the same one.
async fn ask_checkpoint(client: &mut CoordinatorClient<Channel>, from: u64) -> Result<(), String> {
    command(client, Command::Checkpoint(Checkpoint { from: Some(from) })).await
}

async fn command(client: &mut CoordinatorClient<Channel>, command: Command) -> Result<(), String> {
    let mut request = tonic::Request::new(wire::CommandRequest { epoch: None, command: Some(command) });
    request.set_timeout(ANSWER);
    client.command(request).await.map(drop).map_err(|status| in_words(&status))
}

fn in_words(status: &tonic::Status) -> String {
    format!("{}: {}", status.code(), status.message())
}

/// An error with its sources, in one line.
fn describe(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", describe(source)),
        None => error.to_string(),
    }
}
