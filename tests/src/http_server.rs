//! What the HTTP servers of the tests have in common: a port of the loopback address, threads of their own, and connections that can be
//! cut at an exact byte.
//!
//! Comes in: a [`Handler`]. Goes out: its answers. Every operation may be called from any thread, inside an async runtime or not.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use anyhow::{Result, anyhow};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::{Builder, Runtime},
    sync::{Notify, watch},
};

/// Connections that wait to be accepted. More than any test opens at once.
const BACKLOG: u32 = 1024;

/// The body of an answer. An error in it closes the connection.
pub(crate) type Body = UnsyncBoxBody<Bytes, anyhow::Error>;

/// A body that is there as a whole.
pub(crate) fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Waits for a lock; a test that panicked while holding it has failed already.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers requests. An error closes the connection without an answer.
pub(crate) trait Handler: Send + Sync + 'static {
    fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        connection: Arc<Connection>,
    ) -> impl Future<Output = Result<Response<Body>>> + Send;
}

/// One client's connection, as its handler sees it.
#[derive(Debug, Default)]
pub(crate) struct Connection {
    flushed: Notify,
    reset: AtomicBool,
}

impl Connection {
    /// Until all that the answer's body has given so far is with the kernel. To be awaited by the body itself.
    pub(crate) async fn flushed(&self) {
        self.flushed.notified().await;
    }

    /// Has the connection end with a reset rather than in order.
    pub(crate) fn end_with_reset(&self) {
        self.reset.store(true, Ordering::Relaxed);
    }
}

/// A server. Ends when dropped.
#[derive(Debug)]
pub(crate) struct HttpServer {
    address: SocketAddr,
    presence: Arc<Presence>,
    runtime: Option<Runtime>,
    // Bound and never listening: keeps the port while the server is away, so that a connection is refused and nobody else takes it.
    _port: TcpSocket,
}

/// Whether the server is there, and whether it should be.
#[derive(Debug)]
struct Presence {
    wanted: watch::Sender<bool>,
    actual: Mutex<Actual>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Actual {
    listening: bool,
    connections: usize,
    error: Option<String>,
}

impl Presence {
    fn change(&self, change: impl FnOnce(&mut Actual)) {
        change(&mut lock(&self.actual));
        self.changed.notify_all();
    }

    fn wait(&self, reached: impl Fn(&Actual) -> bool) -> Result<()> {
        let waiting = |actual: &mut Actual| !reached(actual) && actual.error.is_none();
        let mut actual = self.changed.wait_while(lock(&self.actual), waiting).unwrap_or_else(PoisonError::into_inner);
        actual.error.take().map_or(Ok(()), |error| Err(anyhow!(error)))
    }
}

/// Counts a connection as long as it lives.
struct Counted(Arc<Presence>);

impl Counted {
    fn new(presence: Arc<Presence>) -> Self {
        presence.change(|actual| actual.connections += 1);
        Self(presence)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.change(|actual| actual.connections -= 1);
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        // Dropping a runtime waits, which is not allowed on a thread that runs async code.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl HttpServer {
    /// Starts one with this many threads; listens when this returns. Port 0 of `address` is any that is free.
    pub(crate) fn start<H: Handler>(handler: Arc<H>, address: SocketAddr, threads: usize) -> Result<Self> {
        let port = bind(address)?;
        let address = port.local_addr()?;
        let presence = Arc::new(Presence { wanted: watch::Sender::new(true), actual: Mutex::default(), changed: Condvar::new() });
        let runtime = Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
        runtime.spawn(listen(handler, address, presence.clone()));
        let server = Self { address, presence, runtime: Some(runtime), _port: port };
        server.come_back()?;
        Ok(server)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resets every connection and refuses new ones; when this returns, none is left.
    pub(crate) fn disappear(&self) -> Result<()> {
        self.presence.wanted.send_replace(false);
        self.presence.wait(|actual| !actual.listening && actual.connections == 0)
    }

    /// Listens again at the same port.
    pub(crate) fn come_back(&self) -> Result<()> {
        self.presence.wanted.send_replace(true);
        self.presence.wait(|actual| actual.listening)
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Linux lets sockets with this share a port of which one listens.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Listens whenever the server is wanted.
async fn listen<H: Handler>(handler: Arc<H>, address: SocketAddr, presence: Arc<Presence>) {
    let mut wanted = presence.wanted.subscribe();
    // The sender lives as long as this task: in `presence`.
    while wanted.wait_for(|wanted| *wanted).await.is_ok() {
        let listener = match bind(address).and_then(|socket| socket.listen(BACKLOG)) {
            Ok(listener) => listener,
            Err(error) => return presence.change(|actual| actual.error = Some(format!("listening at {address}: {error}"))),
        };
        presence.change(|actual| actual.listening = true);
        accept(&handler, &listener, &presence, &mut wanted).await;
        drop(listener);
        presence.change(|actual| actual.listening = false);
    }
}

async fn accept<H: Handler>(handler: &Arc<H>, listener: &TcpListener, presence: &Arc<Presence>, wanted: &mut watch::Receiver<bool>) {
    loop {
        tokio::select! {
            biased;
            _ = wanted.wait_for(|wanted| !*wanted) => return,
            accepted = listener.accept() => {
                // The client has gone again.
                let Ok((stream, _)) = accepted else { continue };
                // Answers are small or come in large pieces: nothing to wait for.
                let _ = stream.set_nodelay(true);
                tokio::spawn(serve(handler.clone(), stream, Counted::new(presence.clone())));
            }
        }
    }
}

async fn serve<H: Handler>(handler: Arc<H>, stream: TcpStream, counted: Counted) {
    let connection = Arc::new(Connection::default());
    let mut wanted = counted.0.wanted.subscribe();
    {
        let stream = TokioIo::new(Stream { stream, connection: connection.clone() });
        let service = service_fn(|request| handler.clone().answer(request, connection.clone()));
        let answers = http1::Builder::new().serve_connection(stream, service);
        tokio::select! {
            biased;
            _ = wanted.wait_for(|wanted| !*wanted) => connection.end_with_reset(),
            // How it ended is the client's business: the handler's error was meant, any other is the client's going away.
            _ = answers => {}
        }
    }
    drop(counted);
}

/// A connection's stream that says when it was flushed, and can end with a reset.
struct Stream {
    stream: TcpStream,
    connection: Arc<Connection>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.connection.reset.load(Ordering::Relaxed) {
            // Fails only where the connection is gone already.
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    // hyper asks for it once its own buffer is empty.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.connection.flushed.notify_waiters();
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
