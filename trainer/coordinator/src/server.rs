//! The gRPC service: streams and requests in, [`Input`]s for the driver out. Holds no state of the job.

use std::{
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lcl_proto::v1alpha1::{
    self as wire,
    coordinator_server::{Coordinator, CoordinatorServer},
};
use lcl_protocol::{ConnectionId, CoordinatorEvent, CoordinatorSettings, Status as JobStatus};
use lcl_security::{Caller, MEMBER_NAME, OPERATOR_NAME};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot, watch},
    task::{JoinError, JoinSet},
    time::{sleep, timeout},
};
use tokio_stream::{
    Stream, StreamExt,
    wrappers::{ReceiverStream, WatchStream},
};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Server, server::TcpIncoming},
};

use crate::{
    MAX_MESSAGE_BYTES, Metrics, Security,
    accept::secured,
    command::Command,
    convert::{read_to_coordinator, write_status},
    driver::{Driver, INPUTS, Input, OUTBOX},
    pulse::{BEAT, Unhealthy},
};

/// Longest wait for open calls after a stop. All streams are ended first, so this is only for peers that do not read.
const GRACE: Duration = Duration::from_secs(5);
/// Between two pings on an idle connection, and for the answer: a host that vanished without closing its sockets is noticed by the
/// heartbeats first; this frees the connection.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// What callers are told who come too late.
const STOPPING: &str = "the coordinator is stopping: try its successor";

/// The server cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The listener's address cannot be told.
    #[error("cannot read the address that the coordinator listens on")]
    Address(#[source] io::Error),
    /// The transport failed.
    #[error("serving on {address} failed")]
    Serve {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: tonic::transport::Error,
    },
    /// The task that runs the machine ended by a panic.
    #[error("the coordinator's machine on {address} panicked: start the coordinator again with a higher epoch")]
    Machine {
        /// Where.
        address: SocketAddr,
        /// The panic.
        source: JoinError,
    },
}

/// Serves a coordinator on `listener` until `stop` resolves; then ends all streams, so that members attach to whoever comes next.
///
/// `security` says who may connect; who is refused is logged. Other bounds and time-outs are in `settings`.
///
/// # Errors
/// See [`ServeError`]. Calls that are still open 5 s after the stop are cut off, which is no error.
pub async fn serve(
    listener: TcpListener,
    settings: CoordinatorSettings,
    security: Security,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    serve_with(listener, settings, security, Arc::new(Metrics::new()), stop).await
}

/// As [`serve`], with metrics that can be read meanwhile.
///
/// # Errors
/// As [`serve`].
pub async fn serve_with(
    listener: TcpListener,
    settings: CoordinatorSettings,
    security: Security,
    metrics: Arc<Metrics>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let address = listener.local_addr().map_err(ServeError::Address)?;
    let connections = TcpIncoming::from(listener).with_nodelay(Some(true));
    let incoming = Incoming { connections, address, peer: |tcp: &TcpStream| tcp.peer_addr().ok() };
    serve_on(incoming, settings, security, metrics, stop).await
}

/// Where a server's connections come from.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<S, IO> {
    /// The connections, before any handshake.
    pub connections: S,
    /// Where they come in, for logs and errors.
    pub address: SocketAddr,
    /// Where one comes from, for the log of those that are refused.
    pub peer: fn(&IO) -> Option<SocketAddr>,
}

/// As [`serve_with`], on connections that somebody else accepts: those of a simulated network, for example.
///
/// # Errors
/// As [`serve`].
pub async fn serve_on<IO>(
    incoming: Incoming<impl Stream<Item = io::Result<IO>> + Send + Unpin + 'static, IO>,
    settings: CoordinatorSettings,
    security: Security,
    metrics: Arc<Metrics>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Incoming { connections, address, peer } = incoming;
    let (driver, status) = Driver::new(settings, Arc::clone(&metrics));
    let (inputs, received) = mpsc::channel(INPUTS);
    let (stopping, stopped) = watch::channel(false);
    let driver = tokio::spawn(driver.run(received, stopped.clone()));

    let (health_reporter, health) = tonic_health::server::health_reporter();
    health_reporter.set_serving::<CoordinatorServer<Service>>().await;
    let service = Service { inputs, status, next: AtomicU64::new(1), stopped, epoch: settings.epoch, metrics: Arc::clone(&metrics) };
    let service = CoordinatorServer::new(service).max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES);
    let shutdown = async move {
        stop.await;
        health_reporter.set_not_serving::<CoordinatorServer<Service>>().await;
        stopping.send_replace(true);
    };
    let connections = secured(connections, security, Arc::clone(&metrics), peer);
    let mut tasks = JoinSet::new();
    tasks.spawn(
        Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .add_service(health)
            .add_service(service)
            .serve_with_incoming_shutdown(connections, shutdown),
    );
    tracing::info!(%address, epoch = settings.epoch, "coordinator is listening");
    let served = tokio::select! {
        biased;
        served = tasks.join_next() => served,
        // With the stop the driver ends at once; what is left are calls.
        ended = driver => match ended {
            Err(source) => return Err(ServeError::Machine { address, source }),
            Ok(()) => timeout(GRACE, tasks.join_next()).await.unwrap_or(None),
        },
    };
    match served {
        Some(Ok(Err(source))) => Err(ServeError::Serve { address, source }),
        Some(Ok(Ok(())) | Err(_)) | None => Ok(()),
    }
}

#[derive(Debug)]
struct Service {
    inputs: mpsc::Sender<Input>,
    status: watch::Receiver<JobStatus>,
    next: AtomicU64,
    stopped: watch::Receiver<bool>,
    epoch: u64,
    metrics: Arc<Metrics>,
}

impl Service {
    async fn feed(&self, input: Input) -> Result<(), Status> {
        self.inputs.send(input).await.map_err(|_| Status::unavailable(STOPPING))
    }
}

#[tonic::async_trait]
impl Coordinator for Service {
    type AttachStream = ReceiverStream<Result<wire::ToMember, Status>>;
    type WatchStream = Pin<Box<dyn Stream<Item = Result<wire::Status, Status>> + Send>>;

    async fn attach(&self, request: Request<Streaming<wire::ToCoordinator>>) -> Result<Response<Self::AttachStream>, Status> {
        allow(&request, MEMBER_NAME, "attaching")?;
        let connection = ConnectionId(self.next.fetch_add(1, Ordering::Relaxed));
        let (outbox, messages) = mpsc::channel(OUTBOX);
        self.feed(Input::Opened { connection, outbox }).await?;
        tokio::spawn(read(connection, request.into_inner(), self.inputs.clone(), self.stopped.clone()));
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn watch(&self, _: Request<wire::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        // This server's tasks go on when the machine's hangs: without an end whoever watches would take the last status for the present one.
        let statuses = WatchStream::new(self.status.clone()).map(|status| Ok(write_status(status)));
        if let Err(unhealthy) = self.metrics.check_health() {
            return Err(Status::unavailable(unhealthy.to_string()));
        }
        let hangs = hangs(Arc::clone(&self.metrics));
        Ok(Response::new(Box::pin(futures_util::StreamExt::take_until(statuses, hangs))))
    }

    async fn command(&self, request: Request<wire::CommandRequest>) -> Result<Response<wire::CommandResponse>, Status> {
        allow(&request, OPERATOR_NAME, "commanding")?;
        let request = request.into_inner();
        if let Some(epoch) = request.epoch.filter(|epoch| *epoch != self.epoch) {
            return Err(Status::failed_precondition(format!("this is the coordinator of epoch {}, not that of epoch {epoch}", self.epoch)));
        }
        let command = Command::read(request).map_err(|error| Status::invalid_argument(describe(&error)))?;
        let (answer, answered) = oneshot::channel();
        self.feed(Input::Command { command, answer }).await?;
        answered.await.map(Response::new).map_err(|_| Status::unavailable(STOPPING))
    }
}

/// Resolves when the machine's task hangs, or has ended.
async fn hangs(metrics: Arc<Metrics>) -> Unhealthy {
    loop {
        if let Err(unhealthy) = metrics.check_health() {
            return unhealthy;
        }
        sleep(BEAT).await;
    }
}

/// An error unless the caller's certificate is for this name.
fn allow<T>(request: &Request<T>, name: &str, what: &str) -> Result<(), Status> {
    let caller = request.extensions().get::<Caller>();
    if caller.is_some_and(|caller| caller.is(name)) {
        return Ok(());
    }
    let names = match caller {
        Some(Caller::Named(names)) if !names.is_empty() => names.join(", "),
        _ => "nobody".to_owned(),
    };
    Err(Status::permission_denied(format!("{what} takes a certificate for {name}: the one that is shown is for {names}")))
}

/// An error with its sources, in one line.
fn describe(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", describe(source)),
        None => error.to_string(),
    }
}

/// Reads a member's stream to its end, which is reported whatever it is.
async fn read(
    connection: ConnectionId,
    mut stream: Streaming<wire::ToCoordinator>,
    inputs: mpsc::Sender<Input>,
    mut stopped: watch::Receiver<bool>,
) {
    // One wait for all messages: each new one would enter a list that all streams share.
    let mut stop = pin!(stopped.wait_for(|stopped| *stopped));
    let reason = loop {
        let next = tokio::select! {
            biased;
            _ = &mut stop => return,
            next = stream.message() => next,
        };
        let message = match next {
            Ok(Some(message)) => message,
            Ok(None) => break "the member ended it".to_owned(),
            Err(status) => break format!("{}: {}", status.code(), status.message()),
        };
        match read_to_coordinator(message) {
            Ok(message) => {
                if inputs.send(Input::Event(CoordinatorEvent::Message { connection, message })).await.is_err() {
                    return;
                }
            }
            Err(error) => break describe(&error),
        }
    };
    // When the driver is gone there is nobody to tell.
    let _ = inputs.send(Input::Event(CoordinatorEvent::Closed { connection, reason })).await;
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt as _;

    use super::*;

    /// Nobody runs the machine: its channel is open, its status stands, and only its beat is missing.
    #[tokio::test(start_paused = true)]
    async fn who_watches_a_coordinator_whose_machine_hangs_is_told_no_status_any_more() {
        let metrics = Arc::new(Metrics::new());
        let settings = CoordinatorSettings {
            epoch: 1,
            world: lcl_protocol::World::new(1, 1, 1).unwrap(),
            formation_wait: Duration::from_secs(1),
            heartbeat_timeout: Duration::from_secs(10),
            report_timeout: Duration::from_mins(1),
            stall_timeout: Duration::from_mins(1),
            slow_eviction: None,
        };
        let (_driver, status) = Driver::new(settings, Arc::clone(&metrics));
        let (inputs, _fed) = mpsc::channel(1);
        let (_stopping, stopped) = watch::channel(false);
        let service = Service { inputs, status, next: AtomicU64::new(1), stopped, epoch: 1, metrics: Arc::clone(&metrics) };
        metrics.beat();
        let mut statuses = service.watch(Request::new(wire::WatchRequest {})).await.unwrap().into_inner();
        assert!(statuses.next().await.is_some_and(|status| status.is_ok()));
        assert!(timeout(Duration::from_secs(9), statuses.next()).await.is_err(), "nothing has changed");
        assert!(timeout(Duration::from_secs(3), statuses.next()).await.unwrap().is_none(), "the stream ends");
        let refused = service.watch(Request::new(wire::WatchRequest {})).await.err().unwrap();
        assert!(refused.message().contains("the coordinator hangs"), "{refused}");
        metrics.beat();
        assert!(service.watch(Request::new(wire::WatchRequest {})).await.is_ok(), "it goes on");
    }
}
