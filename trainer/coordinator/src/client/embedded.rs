//! A client for a caller that brings the runtime and the network itself, and must not block: a simulation.
//!
//! Comes in: the transport that connections are opened with. Goes out: the client as everyone has it, the future that carries its stream,
//! and answers of the store that are looked for instead of waited for. It is the same client: [`MemberClient::start`] runs this future in
//! a thread.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, mpsc as std_mpsc},
    time::Duration,
};

use lcl_protocol::{Generation, Member, MemberError, MemberEvent, MemberSettings, StoreRequest, StoreResponse};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

use super::{ClientOptions, Commands, GroupStore, MemberClient, Shared, StartError, State, link};
use crate::Transport;

impl MemberClient {
    /// As [`MemberClient::start`], but what talks to the coordinator is the caller's to run: the future ends when the last client is
    /// dropped. Time is that of the caller's runtime.
    ///
    /// # Errors
    /// [`StartError::Address`].
    pub fn embed(
        options: ClientOptions,
        settings: MemberSettings,
        transport: impl Transport,
    ) -> Result<(Self, Commands, impl Future<Output = ()> + Send), StartError> {
        let endpoint = link::endpoint(&options)?;
        let (training, commands) = std_mpsc::channel();
        let state = State {
            machine: Member::new(settings, Duration::ZERO),
            outbox: None,
            wants_stream: false,
            training,
            pending: BTreeMap::new(),
            next_id: 1,
        };
        let shared = Arc::new(Shared { start: Instant::now(), state: Mutex::new(state), wake: Notify::new(), options });
        let (alive, dropped) = mpsc::channel(1);
        let run = link::run(Arc::clone(&shared), endpoint, transport, dropped);
        Ok((Self { shared, _alive: alive }, Commands(commands), run))
    }
}

impl GroupStore {
    /// Asks, and does not wait: the answer is looked for by [`PendingAnswer::try_take`].
    ///
    /// # Errors
    /// A mistake in the program.
    pub fn request(&self, request: StoreRequest) -> Result<PendingAnswer, MemberError> {
        let (client, generation) = (self.client.clone(), self.generation);
        let (sender, answers) = std_mpsc::sync_channel(1);
        let id = {
            let mut state = client.shared.lock();
            let id = state.next_id;
            state.next_id += 1;
            state.pending.insert((generation, id), sender);
            id
        };
        // From here on the entry goes with the answer, whatever happens.
        let pending = PendingAnswer { client, generation, id, answers };
        pending.client.report(MemberEvent::Store { generation, id, request })?;
        Ok(pending)
    }
}

/// An operation of the store that was asked for. Dropped, its answer is not awaited any more.
#[derive(Debug)]
pub struct PendingAnswer {
    client: MemberClient,
    generation: Generation,
    id: u64,
    answers: std_mpsc::Receiver<StoreResponse>,
}

impl PendingAnswer {
    /// The answer, if it is there and was not taken before.
    #[must_use]
    pub fn try_take(&self) -> Option<StoreResponse> {
        self.answers.try_recv().ok()
    }

    /// The answer, waiting for it at most this long.
    pub(super) fn take(&self, patience: Duration) -> Option<StoreResponse> {
        self.answers.recv_timeout(patience).ok()
    }
}

impl Drop for PendingAnswer {
    fn drop(&mut self) {
        self.client.shared.lock().pending.remove(&(self.generation, self.id));
    }
}
