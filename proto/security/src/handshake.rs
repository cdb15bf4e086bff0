//! Connections with both ends known to each other, and why some are not.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use tower::Service;
use webpki::EndEntityCert;

use crate::{Caller, Credentials, SERVER_NAME, Security, explain};

/// Longest handshake: two round trips and some signatures; peers that open connections and say nothing are not kept.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A connection that was not taken.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Refused {
    /// A word for metrics.
    pub category: &'static str,
    /// What is wrong with the peer, in a sentence.
    pub reason: String,
}

/// The server's side of a handshake.
///
/// # Errors
/// When the peer has no certificate of the authority, or does not finish the handshake within 10 s.
pub async fn accept<IO: AsyncRead + AsyncWrite + Unpin>(io: IO, security: &Security) -> Result<Connection<IO>, Refused> {
    let Security::MutualTls(credentials) = security else { return Ok(Connection::Plain(io)) };
    let acceptor = TlsAcceptor::from(credentials.current().server);
    match timeout(HANDSHAKE, acceptor.accept(io)).await {
        Ok(Ok(stream)) => Ok(Connection::Tls { stream: Box::new(stream.into()), peer: None }),
        Ok(Err(error)) => {
            let (category, reason) = explain::refusal(&error);
            Err(Refused { category, reason })
        }
        Err(_) => Err(Refused { category: "timeout", reason: format!("no handshake within {HANDSHAKE:?}") }),
    }
}

/// The client's side of a handshake; `peer` is what the server is called in errors.
///
/// # Errors
/// When the server has no certificate of the authority for [`SERVER_NAME`], or does not finish the handshake within 10 s. That the server
/// refuses the client shows only when something is read from the connection.
async fn connect<IO: AsyncRead + AsyncWrite + Unpin>(
    io: IO,
    peer: String,
    security: &Security,
    refusal: Refusal,
) -> io::Result<Connection<IO>> {
    let Security::MutualTls(credentials) = security else { return Ok(Connection::Plain(io)) };
    let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
    let connector = TlsConnector::from(credentials.current().client);
    let peer = Peer { name: peer, credentials: Arc::clone(credentials), refusal };
    match timeout(HANDSHAKE, connector.connect(name, io)).await {
        Ok(Ok(stream)) => Ok(Connection::Tls { stream: Box::new(stream.into()), peer: Some(peer) }),
        Ok(Err(error)) => Err(peer.explain(error)),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("{} did not finish the handshake within {HANDSHAKE:?}", peer.name))),
    }
}

/// Why the last connection of a connector was refused.
type Refusal = Arc<Mutex<Option<String>>>;

/// Who the server is and what it was shown.
#[derive(Debug)]
pub struct Peer {
    name: String,
    credentials: Arc<Credentials>,
    refusal: Refusal,
}

impl Peer {
    fn explain(&self, error: io::Error) -> io::Error {
        match explain::advice(&error, &self.name, self.credentials.names()) {
            Some(advice) => {
                *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(advice.clone());
                io::Error::new(error.kind(), advice)
            }
            None => error,
        }
    }
}

/// A connection, protected or not.
#[derive(Debug)]
pub enum Connection<IO> {
    /// As it came.
    Plain(IO),
    /// Inside TLS.
    Tls {
        /// The stream.
        stream: Box<TlsStream<IO>>,
        /// On the client's side, for errors.
        peer: Option<Peer>,
    },
}

impl<IO> Connection<IO> {
    /// What the other end may do.
    pub fn caller(&self) -> Caller {
        let Self::Tls { stream, .. } = self else { return Caller::Anybody };
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let names = certificates.first().and_then(|certificate| {
            let certificate = EndEntityCert::try_from(certificate).ok()?;
            Some(certificate.valid_dns_names().map(str::to_owned).collect())
        });
        Caller::Named(names.unwrap_or_default())
    }

    /// The connection underneath.
    pub fn get_ref(&self) -> &IO {
        match self {
            Self::Plain(io) => io,
            Self::Tls { stream, .. } => stream.get_ref().0,
        }
    }
}

fn explained<T>(polled: Poll<io::Result<T>>, peer: Option<&Peer>) -> Poll<io::Result<T>> {
    match (polled, peer) {
        (Poll::Ready(Err(error)), Some(peer)) => Poll::Ready(Err(peer.explain(error))),
        (polled, _) => polled,
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Connection<IO> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_read(context, buffer),
            Self::Tls { stream, peer } => explained(Pin::new(stream).poll_read(context, buffer), peer.as_ref()),
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Connection<IO> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write(context, bytes),
            Self::Tls { stream, peer } => explained(Pin::new(stream).poll_write(context, bytes), peer.as_ref()),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_flush(context),
            Self::Tls { stream, peer } => explained(Pin::new(stream).poll_flush(context), peer.as_ref()),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_shutdown(context),
            Self::Tls { stream, .. } => Pin::new(stream).poll_shutdown(context),
        }
    }

    fn poll_write_vectored(self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write_vectored(context, slices),
            Self::Tls { stream, peer } => explained(Pin::new(stream).poll_write_vectored(context, slices), peer.as_ref()),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::Tls { stream, .. } => stream.is_write_vectored(),
        }
    }
}

/// Opens what lies below the handshake. Real programs speak [`Tcp`]; a simulated network brings its own.
pub trait Transport: Clone + Send + Sync + 'static {
    /// A connection as it comes.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Connects to `peer`, a `host:port`.
    fn connect(&self, peer: &str) -> impl Future<Output = io::Result<Self::Io>> + Send;
}

/// TCP of this machine.
#[derive(Clone, Copy, Debug)]
pub struct Tcp;

impl Transport for Tcp {
    type Io = TcpStream;

    async fn connect(&self, peer: &str) -> io::Result<TcpStream> {
        let io = TcpStream::connect(peer).await?;
        // Small messages one after the other.
        io.set_nodelay(true)?;
        Ok(io)
    }
}

/// Opens connections for a gRPC client: a transport's to the URI's host and port, and the handshake.
#[derive(Clone, Debug)]
pub struct Connector<T = Tcp> {
    security: Security,
    refusal: Refusal,
    transport: T,
}

impl Connector {
    /// Connections over TCP that are protected like this.
    #[must_use]
    pub fn new(security: Security) -> Self {
        Self::over(Tcp, security)
    }
}

impl<T: Transport> Connector<T> {
    /// Connections over this transport that are protected like this.
    #[must_use]
    pub fn over(transport: T, security: Security) -> Self {
        Self { security, refusal: Refusal::default(), transport }
    }

    /// Why the last connection was refused, and what to do about it. Whoever made a call on it may have heard only that it was closed.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<T: Transport> Service<Uri> for Connector<T> {
    type Response = TokioIo<Connection<T::Io>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (security, refusal, transport) = (self.security.clone(), Arc::clone(&self.refusal), self.transport.clone());
        Box::pin(async move {
            let peer = uri.authority().map(ToString::to_string).unwrap_or_default();
            let connected = transport.connect(&peer).await;
            let io = connected.map_err(|error| io::Error::new(error.kind(), format!("connecting to {peer}: {error}")))?;
            Ok(TokioIo::new(connect(io, peer, &security, refusal).await?))
        })
    }
}
