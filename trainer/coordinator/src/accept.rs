//! Connections before they speak gRPC: the handshake of each, side by side, and what is told of those that are not taken.
//!
//! tonic would do the handshakes itself, but says nothing of those that fail.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::stream;
use lcl_security::{Caller, Connection, Refused, Security, accept};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::JoinSet,
};
use tokio_stream::{Stream, StreamExt};
use tonic::transport::server::Connected;

use crate::Metrics;

/// Handshakes under way at once; further connections wait in the kernel. All members of a large job come at the same time.
const HANDSHAKES: usize = 512;

/// The connections of `incoming` whose handshake went well. `address` tells where one comes from.
pub(crate) fn secured<IO>(
    incoming: impl Stream<Item = io::Result<IO>> + Send + Unpin + 'static,
    security: Security,
    metrics: Arc<Metrics>,
    address: fn(&IO) -> Option<SocketAddr>,
) -> impl Stream<Item = io::Result<Accepted<IO>>>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let door = Door { incoming, security, metrics, address, handshakes: JoinSet::new(), is_open: true };
    stream::unfold(door, |mut door| async move { door.next().await.map(|connection| (connection, door)) })
}

/// Who knocked, and whether they may come in.
type Handshake<IO> = (Option<SocketAddr>, Result<Connection<IO>, Refused>);

struct Door<I, IO> {
    incoming: I,
    security: Security,
    metrics: Arc<Metrics>,
    address: fn(&IO) -> Option<SocketAddr>,
    handshakes: JoinSet<Handshake<IO>>,
    is_open: bool,
}

impl<I, IO> Door<I, IO>
where
    I: Stream<Item = io::Result<IO>> + Unpin,
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    async fn next(&mut self) -> Option<io::Result<Accepted<IO>>> {
        while self.is_open || !self.handshakes.is_empty() {
            tokio::select! {
                biased;
                connection = self.incoming.next(), if self.is_open && self.handshakes.len() < HANDSHAKES => match connection {
                    None => self.is_open = false,
                    Some(Err(error)) => return Some(Err(error)),
                    Some(Ok(io)) if matches!(self.security, Security::Insecure) => return Some(Ok(Accepted(Connection::Plain(io)))),
                    Some(Ok(io)) => {
                        let (address, security) = ((self.address)(&io), self.security.clone());
                        self.handshakes.spawn(async move { (address, accept(io, &security).await) });
                    }
                },
                Some(shaken) = self.handshakes.join_next() => match shaken {
                    Ok((_, Ok(connection))) => return Some(Ok(Accepted(connection))),
                    Ok((address, Err(refused))) => {
                        let address = address.map(|address| address.to_string()).unwrap_or_default();
                        tracing::warn!(address, category = refused.category, reason = refused.reason, "refused a connection");
                        self.metrics.refused(refused.category);
                    }
                    Err(error) => tracing::error!("a handshake panicked: {error}"),
                },
            }
        }
        None
    }
}

/// A connection that was taken.
#[derive(Debug)]
pub(crate) struct Accepted<IO>(Connection<IO>);

impl<IO> Connected for Accepted<IO> {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.0.caller()
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Accepted<IO> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(context, buffer)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Accepted<IO> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(context)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}
