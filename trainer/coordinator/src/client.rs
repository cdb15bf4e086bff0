//! A member's side, for a training thread that knows nothing of async.
//!
//! Comes in: the training thread's [`MemberEvent`]s, taken in at once and without waiting for the network. Goes out: [`MemberCommand`]s
//! over a channel, the abort of a group by a call from another thread ([`ClientOptions::on_abort`]), and answers of the store.
//! A thread of its own runs the stream: it attaches, and after a loss attaches again with a back-off, for as long as the client lives.
//!
//! The training thread's loop: look at [`Commands::try_next`] before every step, contribute [`MemberClient::flags`] to the step's small
//! collective, report [`MemberEvent::Committed`] with what came out of it, and do what the commands then say. What the commit leads to is
//! in the channel when the report returns.

mod embedded;
mod link;
mod store;

use std::{
    collections::BTreeMap,
    fmt,
    hash::{BuildHasher, Hasher, RandomState},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc as std_mpsc},
    thread,
    time::Duration,
};

use lcl_protocol::{
    Activity, Flags, Generation, Member, MemberCommand, MemberError, MemberEvent, MemberSettings, StateLabel, StoreResponse, ToCoordinator,
};
use lcl_security::Tcp;
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

pub use embedded::PendingAnswer;
pub use store::{GroupStore, StoreError};

use crate::Security;

/// Called with the generation and the reason; see [`ClientOptions::on_abort`].
type OnAbort = Box<dyn Fn(Generation, &str) + Send + Sync>;

/// How a client reaches its coordinator.
pub struct ClientOptions {
    /// `host:port`. The name is looked up for every attempt.
    pub coordinator: String,
    /// How the wire is protected; that it is not must be said.
    pub security: Security,
    /// Longest wait for a connection and for the stream on it to open.
    pub connect_timeout: Duration,
    /// First pause after an attempt that failed; doubled for every further one, and spread at random between half and whole.
    pub first_pause: Duration,
    /// Longest pause.
    pub longest_pause: Duration,
    /// Called from the client's thread when the group of a generation has to be aborted, while the training thread may be blocked in one
    /// of its collectives: it has to wake it (Gloo: shut the group's sockets), and return soon. [`MemberCommand::AbortGroup`] is in the
    /// channel by then. It may be called for a generation whose group is not there yet or no longer.
    pub on_abort: OnAbort,
    /// What the training thread is doing; asked before every heartbeat, from the client's thread.
    pub activity: Box<dyn Fn() -> Activity + Send + Sync>,
    /// A number from 0 to 1 that spreads a pause. Random by default; a simulation that is to run the same way twice draws its own.
    pub spread: Box<dyn Fn() -> f64 + Send + Sync>,
}

impl ClientOptions {
    /// With time-outs for a cluster: 5 s to connect, pauses from 50 ms to 5 s, and nothing to abort.
    #[must_use]
    pub fn new(coordinator: impl Into<String>, security: Security) -> Self {
        Self {
            coordinator: coordinator.into(),
            security,
            connect_timeout: Duration::from_secs(5),
            first_pause: Duration::from_millis(50),
            longest_pause: Duration::from_secs(5),
            on_abort: Box::new(|_, _| {}),
            activity: Box::new(Activity::default),
            spread: Box::new(random),
        }
    }
}

/// From 0 to 1.
fn random() -> f64 {
    draw_number() as f64 / u64::MAX as f64
}

/// A number at random, by which a worker's run is told from every other ([`lcl_protocol::Incarnation::run`]). The keys of a `RandomState`
/// come from the system: entropy enough, without a crate for it.
#[must_use]
pub fn draw_number() -> u64 {
    RandomState::new().build_hasher().finish()
}

impl fmt::Debug for ClientOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientOptions").field("coordinator", &self.coordinator).finish_non_exhaustive()
    }
}

/// The client's thread cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The coordinator's address is no `host:port`.
    #[error("`{coordinator}` is no address of a coordinator: give host:port")]
    Address {
        /// What was given.
        coordinator: String,
        /// Why.
        source: tonic::transport::Error,
    },
    /// No thread or runtime.
    #[error("cannot start the thread that talks to the coordinator at {coordinator}")]
    Thread {
        /// The coordinator.
        coordinator: String,
        /// Why.
        source: io::Error,
    },
}

/// What the training thread has to do, in order.
#[derive(Debug)]
pub struct Commands(std_mpsc::Receiver<MemberCommand>);

impl Commands {
    /// The next command, waiting for it at most this long. `None`: there is none so far, or the client is gone.
    #[must_use]
    pub fn next(&self, patience: Duration) -> Option<MemberCommand> {
        self.0.recv_timeout(patience).ok()
    }

    /// The next command if there is one.
    #[must_use]
    pub fn try_next(&self) -> Option<MemberCommand> {
        self.0.try_recv().ok()
    }
}

/// A member's end of the protocol. Clones are the same member; when the last one is dropped, the stream ends and with it the membership.
#[derive(Clone, Debug)]
pub struct MemberClient {
    shared: Arc<Shared>,
    /// Closes when the last client is dropped.
    _alive: mpsc::Sender<()>,
}

impl MemberClient {
    /// Starts attaching, in a thread of its own.
    ///
    /// # Errors
    /// See [`StartError`]. That no coordinator answers is none: it is tried again and again, and logged.
    pub fn start(options: ClientOptions, settings: MemberSettings) -> Result<(Self, Commands), StartError> {
        let coordinator = options.coordinator.clone();
        let failed = |source| StartError::Thread { coordinator: coordinator.clone(), source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (client, commands, run) = Self::embed(options, settings, Tcp)?;
        thread::Builder::new().name("coordinator".to_owned()).spawn(move || runtime.block_on(run)).map_err(failed)?;
        Ok((client, commands))
    }

    /// Tells what the training thread (or a signal) did. Returns at once; what follows is in [`Commands`] by then.
    ///
    /// # Errors
    /// When the training thread does what it was not asked for: a mistake in the program.
    pub fn report(&self, event: MemberEvent) -> Result<(), MemberError> {
        self.shared.handle(event)
    }

    /// What to contribute to the next collective.
    #[must_use]
    pub fn flags(&self) -> Flags {
        self.shared.lock().machine.flags()
    }

    /// The state that this member is known to hold.
    #[must_use]
    pub fn held(&self) -> Option<StateLabel> {
        self.shared.lock().machine.held()
    }

    /// The store of one generation, for its rendezvous.
    #[must_use]
    pub fn store(&self, generation: Generation) -> GroupStore {
        GroupStore::new(self.clone(), generation)
    }
}

/// What the client's thread and the training thread share.
struct Shared {
    start: Instant,
    state: Mutex<State>,
    /// Something changed that the client's thread has to look at.
    wake: Notify,
    options: ClientOptions,
}

struct State {
    machine: Member,
    /// Where messages of the open stream go.
    outbox: Option<mpsc::Sender<ToCoordinator>>,
    /// The machine has asked for a stream.
    wants_stream: bool,
    training: std_mpsc::Sender<MemberCommand>,
    /// Store operations whose answer is awaited.
    pending: BTreeMap<(Generation, u64), std_mpsc::SyncSender<StoreResponse>>,
    next_id: u64,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done when a holder panics: the machine's state is replaced as a whole by each call.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, event: MemberEvent) -> Result<(), MemberError> {
        let mut aborts = Vec::new();
        {
            let mut state = self.lock();
            match &event {
                MemberEvent::Disconnected { reason } => state.cancel_all(reason),
                MemberEvent::Tick => state.machine.set_activity((self.options.activity)()),
                _ => {}
            }
            let mut events = vec![event];
            while let Some(event) = events.pop() {
                let commands = state.machine.handle(self.start.elapsed(), event)?;
                for command in commands {
                    if let Some(reason) = state.carry_out(command, &mut aborts) {
                        events.push(MemberEvent::Disconnected { reason });
                    }
                }
            }
        }
        self.wake.notify_one();
        // Not under the lock: the hook may take its time, and the training thread it wakes reports here.
        for (generation, reason) in aborts {
            (self.options.on_abort)(generation, &reason);
        }
        Ok(())
    }

    /// An event of the stream. Those cannot be out of order.
    fn observe(&self, event: MemberEvent) {
        if let Err(error) = self.handle(event) {
            tracing::error!("the member's machine refused an event of its stream: {error}");
        }
    }
}

impl State {
    /// Does what a command says. The answer is why the stream is broken, if that became apparent.
    fn carry_out(&mut self, command: MemberCommand, aborts: &mut Vec<(Generation, String)>) -> Option<String> {
        match command {
            MemberCommand::Connect => self.wants_stream = true,
            MemberCommand::Disconnect { reason } => {
                tracing::warn!("leaving the coordinator: {reason}");
                self.outbox = None;
                self.cancel_all(&reason);
            }
            MemberCommand::Send(message) => {
                let full = self.outbox.as_ref().is_some_and(|outbox| outbox.try_send(message).is_err());
                if full {
                    self.outbox = None;
                    self.cancel_all("the coordinator does not take messages any more");
                    return Some("the coordinator does not take messages any more".to_owned());
                }
            }
            MemberCommand::StoreResponse { generation, id, response } => {
                if let Some(waiting) = self.pending.remove(&(generation, id)) {
                    // Who waited may have given up.
                    let _ = waiting.try_send(response);
                }
            }
            MemberCommand::AbortGroup { generation, reason } => {
                self.cancel(generation, &reason);
                aborts.push((generation, reason.clone()));
                self.tell(MemberCommand::AbortGroup { generation, reason });
            }
            other => self.tell(other),
        }
        None
    }

    fn tell(&self, command: MemberCommand) {
        // Without a training thread there is nobody to do it.
        let _ = self.training.send(command);
    }

    /// The stream is gone, and with it every answer: whoever waits is told that it will not come.
    fn cancel_all(&mut self, reason: &str) {
        for waiting in std::mem::take(&mut self.pending).into_values() {
            let _ = waiting.try_send(StoreResponse::Cancelled { reason: reason.to_owned() });
        }
    }

    /// Ends the waits of a generation: no answer may come any more.
    fn cancel(&mut self, generation: Generation, reason: &str) {
        self.pending.retain(|(of, _), waiting| {
            if *of != generation {
                return true;
            }
            let _ = waiting.try_send(StoreResponse::Cancelled { reason: reason.to_owned() });
            false
        });
    }
}
