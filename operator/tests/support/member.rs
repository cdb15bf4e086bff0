//! A member of a job's group as far as its coordinator can tell: it shows the pod's certificate, attaches, says what it is told to say, and
//! trains nothing.

#![allow(dead_code, reason = "every test uses a part")]

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use lcl_proto::v1alpha1::{
    Attach, CheckpointCommitted, Finished, GroupId, Heartbeat, MemberName, Report, SavedCheckpoint, StateLabel, Ticket, ToCoordinator,
    ToMember, Wish,
    coordinator_client::CoordinatorClient,
    report::{Aborted, Agreed, Cause},
    to_coordinator::Message as Said,
    to_member::Message as Heard,
};
use lcl_security::{CertificateTexts, Connector, Credentials, Security};
use tokio::{runtime::Runtime, sync::mpsc, time};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Streaming, transport::Endpoint};

/// The version that members of this release say.
const PROTOCOL_VERSION: u32 = 7;
/// Of a wish: to leave the group for another one.
const LEAVE: u32 = 1;
/// A coordinator waits ten seconds for a sign of life.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// It leaves, without a word, with this value.
pub(crate) struct Member {
    _runtime: Runtime,
    says: mpsc::UnboundedSender<ToCoordinator>,
    state: Arc<Mutex<State>>,
}

#[derive(Clone, Copy, Default)]
struct State {
    group: Option<GroupId>,
    step: u64,
}

/// What it is called, and which of the processes of that name it is.
#[derive(Clone, Copy)]
pub(crate) struct Process<'a> {
    pub(crate) worker: &'a str,
    pub(crate) run: u64,
}

impl Member {
    /// Attaches to the coordinator at this address with what its pod mounts, which lies in this folder, and waits until it is taken.
    pub(crate) fn attach(address: &str, certificates: &Path, process: Process) -> Result<Self> {
        let runtime = Runtime::new()?;
        let state = Arc::<Mutex<State>>::default();
        let (says, heard) = runtime.block_on(attach(address, certificates, process))?;
        runtime.spawn(listen(heard, says.clone(), Arc::clone(&state)));
        runtime.spawn(beat(says.clone(), Arc::clone(&state)));
        Ok(Self { _runtime: runtime, says, state })
    }

    /// The group that it belongs to.
    pub(crate) fn group(&self) -> Option<GroupId> {
        read(&self.state).group
    }

    /// So many steps are done.
    pub(crate) fn train(&self, step: u64) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).step = step;
        self.say(heartbeat(read(&self.state)));
    }

    /// A checkpoint of the steps that are done is complete.
    pub(crate) fn save(&self, unix_milliseconds: u64) {
        let step = read(&self.state).step;
        let saved = SavedCheckpoint { step, unix_milliseconds, folder: format!("step-{step:08}-g000001-000001") };
        self.say(Said::CheckpointCommitted(CheckpointCommitted { saved: Some(saved) }));
    }

    /// The last step is done.
    pub(crate) fn finish(&self) {
        self.say(Said::Finished(Finished { step: read(&self.state).step }));
    }

    fn say(&self, message: Said) {
        // To nobody once the stream has ended.
        let _ = self.says.send(ToCoordinator { group: self.group(), message: Some(message) });
    }
}

fn read(state: &Mutex<State>) -> State {
    *state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn held(State { group, step }: State) -> Option<StateLabel> {
    group.map(|group| StateLabel { step, group: Some(group) })
}

fn heartbeat(state: State) -> Said {
    Said::Heartbeat(Heartbeat { held: held(state), ..Heartbeat::default() })
}

async fn attach(
    address: &str,
    certificates: &Path,
    process: Process<'_>,
) -> Result<(mpsc::UnboundedSender<ToCoordinator>, Streaming<ToMember>)> {
    let read = |name: &str| fs::read_to_string(certificates.join(name)).with_context(|| format!("{}/{name}", certificates.display()));
    let texts = CertificateTexts { certificate: read("worker.crt")?, key: read("worker.key")?, authority: read("ca.crt")? };
    let connector = Connector::new(Security::MutualTls(Credentials::given(&texts)?.into()));
    let channel = Endpoint::from_shared(format!("http://{address}"))?.connect_with_connector(connector).await?;
    let mut coordinator = CoordinatorClient::new(channel);
    let mut ticket = None::<Ticket>;
    // The first time it is given its ticket, and the second time a place.
    loop {
        let (says, said) = mpsc::unbounded_channel();
        let name = Some(MemberName { worker: process.worker.to_owned(), index: 0 });
        let attach = Attach { protocol_version: PROTOCOL_VERSION, name, start: 1, run: process.run, ticket, ..Attach::default() };
        says.send(ToCoordinator { group: None, message: Some(Said::Attach(attach)) })?;
        let mut heard = coordinator.attach(UnboundedReceiverStream::new(said)).await?.into_inner();
        match heard.message().await?.context("the stream has ended")?.message {
            Some(Heard::Ticket(given)) if ticket.is_none() => ticket = Some(given),
            Some(Heard::Attached(_)) => return Ok((says, heard)),
            other => bail!("{other:?}"),
        }
    }
}

/// Notes the group, and leaves it when it is told to or when the others want another one; everything else is for members that train.
async fn listen(mut heard: Streaming<ToMember>, says: mpsc::UnboundedSender<ToCoordinator>, state: Arc<Mutex<State>>) {
    while let Ok(Some(ToMember { group, message })) = heard.message().await {
        let cause = match message {
            Some(Heard::Form(_)) => {
                state.lock().unwrap_or_else(PoisonError::into_inner).group = group;
                continue;
            }
            Some(Heard::Abort(_)) => Cause::Aborted(Aborted {}),
            Some(Heard::Wish(Wish { flags })) if flags & LEAVE != 0 => Cause::Agreed(Agreed {}),
            _ => continue,
        };
        let report = Report { held: held(read(&state)), cause: Some(cause) };
        // To nobody once the stream has ended.
        let _ = says.send(ToCoordinator { group, message: Some(Said::Report(report)) });
    }
}

async fn beat(says: mpsc::UnboundedSender<ToCoordinator>, state: Arc<Mutex<State>>) {
    loop {
        time::sleep(HEARTBEAT).await;
        let state = read(&state);
        if says.send(ToCoordinator { group: state.group, message: Some(heartbeat(state)) }).is_err() {
            return;
        }
    }
}
