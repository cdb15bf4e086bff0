//! A connection on which nothing is written once the lease is lost.
//!
//! A request may have passed every question and wait for its connection when the process is stopped: it must not be written when the
//! process goes on. What is lost with it, looks at what is there, is of no use to a process that no longer leads.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{clock::BootTime, fence::Fence};

#[derive(Debug)]
pub(super) struct FencedSocket<S> {
    socket: S,
    /// Nothing is refused without one.
    fence: Option<Fence>,
}

impl<S> FencedSocket<S> {
    pub(super) fn new(socket: S, fence: Option<Fence>) -> Self {
        Self { socket, fence }
    }

    fn check(&self) -> io::Result<()> {
        let Some(fence) = &self.fence else { return Ok(()) };
        fence.left(BootTime::now()).map(drop).map_err(|refused| io::Error::new(io::ErrorKind::PermissionDenied, refused))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FencedSocket<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FencedSocket<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.socket).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

impl<S: Connection> Connection for FencedSocket<S> {
    fn connected(&self) -> Connected {
        self.socket.connected()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;
    use crate::fence::ELECTION;

    #[tokio::test]
    async fn not_a_byte_is_written_once_the_lease_is_lost() {
        let fence = Fence::new("system/lease", ELECTION);
        fence.confirm(BootTime::now());
        let (near, mut far) = duplex(64);
        let mut socket = FencedSocket::new(near, Some(fence.clone()));
        socket.write_all(b"before").await.expect("the fence is open");
        fence.close();
        for refused in [socket.write_all(b"after").await, socket.write_vectored(&[io::IoSlice::new(b"after")]).await.map(drop)] {
            let refused = refused.expect_err("the fence is closed");
            assert!(refused.to_string().contains("system/lease"), "{refused}");
        }
        drop(socket);
        let mut arrived = Vec::new();
        far.read_to_end(&mut arrived).await.expect("bytes");
        assert_eq!(arrived, b"before");
    }
}
