//! The simulated network below gRPC: connections as server and client want them, and which coordinator a member finds.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::{Stream, stream};
use lcl_coordinator::Transport;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;
use turmoil::net::{TcpListener, TcpStream};

use crate::scene::{Scene, coordinator_name};

/// Where every coordinator listens.
pub(crate) const PORT: u16 = 7433;

/// A connection that a coordinator has accepted.
pub(crate) struct Accepted(TcpStream);

impl Accepted {
    /// Where it comes from.
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        self.0.peer_addr().ok()
    }
}

impl Connected for Accepted {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Accepted {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(context)
    }
}

/// Everyone who connects to a listener.
pub(crate) fn connections(listener: TcpListener) -> impl Stream<Item = io::Result<Accepted>> + Send + Unpin + 'static {
    let accept = |listener: TcpListener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| Accepted(stream));
        Some((accepted, listener))
    };
    Box::pin(stream::unfold(listener, accept))
}

/// Who looks for a coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seeker {
    /// The operator, which knows the one that it started last.
    Operator,
    /// A member, whose name service may still name the one before.
    Member(usize),
}

/// The way to the coordinator.
#[derive(Clone)]
pub(crate) struct Route {
    pub(crate) scene: Arc<Scene>,
    pub(crate) seeker: Seeker,
}

impl Transport for Route {
    type Io = TcpStream;

    async fn connect(&self, _: &str) -> io::Result<TcpStream> {
        let coordinator = self.scene.coordinator_of(self.seeker);
        let connected = TcpStream::connect((coordinator_name(coordinator), PORT)).await?;
        self.scene.reaches(self.seeker, coordinator);
        Ok(connected)
    }
}
