//! A proxy between a client and a real server of objects, which does to chosen requests what networks and stores do on bad days.
//!
//! Comes in: requests for any HTTP server (versitygw of [`crate::s3`], or [`crate::shard_server`]), and rules from the test. Goes out: the
//! server's answers, whole or harmed as the rules say, and a record of every request. What happens depends on the requests and their order
//! alone; nothing depends on a clock, except where a fault is a delay.
//!
//! Requests go on as they came, with the proxy's address in `Host` and the path's percent signs as they were: an S3 signature covers both, and
//! the server compares it with what it gets. Every request has a connection of its own to the server. It must not be used across machines.

mod body;
mod fault;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use glob::Pattern;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RANGE, TRANSFER_ENCODING},
    uri::{Authority, PathAndQuery, Scheme, Uri},
};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};

use self::body::Shaped;
use self::fault::Script;
pub use self::fault::{Action, Fault, Gate, Head, Rule};
use crate::http_server::{Body, Connection, Handler, HttpServer, lock, whole};

/// One thread waits for sockets while another runs.
const THREADS: usize = 2;

/// What S3 says when it gets too many requests.
const SLOW_DOWN: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message>\
<RequestId>0000000000000000</RequestId><HostId>fault-proxy</HostId></Error>";

/// A request and what became of it.
#[derive(Clone, Debug)]
pub struct Record {
    /// The request.
    pub head: Head,
    /// The status that the client got. None: not answered yet, or never.
    pub status: Option<u16>,
    /// Bytes of the body that the client got.
    pub bytes: u64,
}

/// Sums over requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// How many there were.
    pub requests: u64,
    /// Bytes of the bodies that the client got.
    pub bytes: u64,
}

/// A running proxy. Ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    server: HttpServer,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Starts one in front of the server at this address, at a free port of the loopback address. Every request goes through unharmed at first.
    pub fn start(backend: &str) -> Result<Self> {
        let backend = backend.parse().with_context(|| format!("the address {backend:?}"))?;
        // A kept connection could have been closed by the server just when a request is sent: not one of the test's faults.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(HttpConnector::new());
        let shared = Arc::new(Shared { backend, client, script: Mutex::default(), log: Arc::default() });
        let server = HttpServer::start(shared.clone(), SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), THREADS)?;
        Ok(Self { server, shared })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// `http://` and where it listens.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Adds a rule. Where several match a request, all of their faults happen to it.
    pub fn add(&self, rule: Rule) {
        lock(&self.shared.script).add(rule);
    }

    /// Has this decide about every request, besides the rules. A later one takes its place.
    pub fn decide(&self, decide: impl Fn(&Head) -> Option<Fault> + Send + Sync + 'static) {
        lock(&self.shared.script).decide(Box::new(decide));
    }

    /// Lets all later requests through unharmed. Answers that are under way, and actions that wait, stay as they are.
    pub fn clear(&self) {
        *lock(&self.shared.script) = Script::default();
    }

    /// Has `action` done once `bytes` of the bodies of GET requests whose path matches the pattern have been sent, in one answer or several;
    /// no byte after that is sent before it is through. It may block. For exactly what a server sends next, the answer must not be under way:
    /// of one that is, what the server had read before may still come.
    pub fn after_bytes(&self, path: &str, bytes: u64, action: impl FnOnce() + Send + 'static) -> Result<()> {
        let path = Pattern::new(path).with_context(|| format!("the pattern {path:?}"))?;
        lock(&self.shared.log.waiting).push(Waiting { path, left: bytes, action: Box::new(action) });
        Ok(())
    }

    /// Resets every connection and refuses new ones until [`Self::come_back`]. None is left when this returns.
    pub fn disappear(&self) -> Result<()> {
        self.server.disappear()
    }

    /// Listens again, at the same address.
    pub fn come_back(&self) -> Result<()> {
        self.server.come_back()
    }

    /// Every request so far, in the order they came.
    #[must_use]
    pub fn requests(&self) -> Vec<Record> {
        lock(&self.shared.log.entries).records.clone()
    }

    /// How many requests of this method came for paths that match the pattern, and how many bytes their clients got.
    pub fn count(&self, method: &Method, path: &str) -> Result<Count> {
        let path = Pattern::new(path).with_context(|| format!("the pattern {path:?}"))?;
        let entries = lock(&self.shared.log.entries);
        let matching = entries.records.iter().filter(|record| record.head.method == *method && path.matches(&record.head.path));
        Ok(matching.fold(Count::default(), |sum, record| Count { requests: sum.requests + 1, bytes: sum.bytes + record.bytes }))
    }
}

/// An action that waits for bytes.
struct Waiting {
    path: Pattern,
    left: u64,
    action: Box<dyn FnOnce() + Send>,
}

/// Every request, and who waits for them.
#[derive(Default)]
struct Log {
    entries: Mutex<Entries>,
    waiting: Mutex<Vec<Waiting>>,
}

#[derive(Default)]
struct Entries {
    records: Vec<Record>,
    seen: HashMap<(Method, String), u64>,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").finish_non_exhaustive()
    }
}

impl Log {
    fn begin(&self, request: &Request<Incoming>) -> (Head, usize) {
        let mut entries = lock(&self.entries);
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let seen = entries.seen.entry((method.clone(), path.clone())).or_default();
        let earlier = *seen;
        *seen += 1;
        let range = request.headers().get(RANGE).map(|range| String::from_utf8_lossy(range.as_bytes()).into_owned());
        let head = Head { method, path, query: request.uri().query().unwrap_or_default().to_owned(), range, earlier };
        entries.records.push(Record { head: head.clone(), status: None, bytes: 0 });
        (head, entries.records.len() - 1)
    }

    fn change(&self, entry: usize, change: impl FnOnce(&mut Record)) {
        if let Some(record) = lock(&self.entries).records.get_mut(entry) {
            change(record);
        }
    }

    /// Counts up to `bytes` as sent and says how many may be; or, with none, gives an action whose time it is.
    fn reserve(&self, entry: usize, bytes: usize) -> (usize, Option<Box<dyn FnOnce() + Send>>) {
        let mut waiting = lock(&self.waiting);
        let mut entries = lock(&self.entries);
        let Some(record) = entries.records.get_mut(entry) else { return (bytes, None) };
        let concerns = |waiting: &Waiting| record.head.method == Method::GET && waiting.path.matches(&record.head.path);
        if let Some(due) = waiting.iter().position(|waiting| waiting.left == 0 && concerns(waiting)) {
            return (0, Some(waiting.remove(due).action));
        }
        let room = waiting.iter().filter(|waiting| concerns(waiting)).map(|waiting| waiting.left).min();
        let room = room.map_or(bytes, |room| bytes.min(room as usize));
        waiting.iter_mut().filter(|waiting| concerns(waiting)).for_each(|waiting| waiting.left -= room as u64);
        record.bytes += room as u64;
        (room, None)
    }
}

/// What all requests share.
#[derive(Debug)]
struct Shared {
    backend: Authority,
    client: Client<HttpConnector, Incoming>,
    script: Mutex<Script>,
    log: Arc<Log>,
}

impl Handler for Shared {
    async fn answer(self: Arc<Self>, request: Request<Incoming>, connection: Arc<Connection>) -> Result<Response<Body>> {
        let (head, entry) = self.log.begin(&request);
        let faults = lock(&self.script).faults(&head);
        for fault in &faults {
            let (status, text) = match fault {
                Fault::Call(action) => {
                    let action = action.clone();
                    tokio::task::spawn_blocking(move || action()).await?;
                    continue;
                }
                Fault::DelayHead(time) => {
                    tokio::time::sleep(*time).await;
                    continue;
                }
                Fault::HoldHead(gate) => {
                    gate.pass().await;
                    continue;
                }
                Fault::Reset => {
                    connection.end_with_reset();
                    return Err(anyhow!("reset"));
                }
                Fault::Status(status) => (StatusCode::from_u16(*status)?, ""),
                Fault::SlowDown => (StatusCode::SERVICE_UNAVAILABLE, SLOW_DOWN),
                _ => continue,
            };
            return self.refuse(request, entry, status, text).await;
        }
        let answer = match self.forward(request).await {
            Ok(answer) => answer,
            // The server is gone, or was never there.
            Err(error) => {
                self.log.change(entry, |record| record.status = Some(StatusCode::BAD_GATEWAY.as_u16()));
                return Ok(Response::builder().status(StatusCode::BAD_GATEWAY).body(whole(format!("{error:#}")))?);
            }
        };
        self.log.change(entry, |record| record.status = Some(answer.status().as_u16()));
        let log = self.log.clone();
        Ok(shape(answer, head.method == Method::HEAD, |incoming| Shaped {
            incoming,
            connection,
            faults,
            log,
            entry,
            sent: 0,
            rest: Bytes::new(),
        }))
    }
}

impl Shared {
    /// Answers in the server's place.
    async fn refuse(&self, request: Request<Incoming>, entry: usize, status: StatusCode, text: &'static str) -> Result<Response<Body>> {
        // Read first: a client that is still sending would see a broken connection rather than the answer.
        let is_head = request.method() == Method::HEAD;
        request.into_body().collect().await?;
        self.log.change(entry, |record| {
            record.status = Some(status.as_u16());
            record.bytes += if is_head { 0 } else { text.len() as u64 };
        });
        let answer = Response::builder().status(status);
        let answer = if text.is_empty() { answer } else { answer.header(CONTENT_TYPE, "application/xml") };
        Ok(answer.body(whole(text))?)
    }

    async fn forward(&self, request: Request<Incoming>) -> Result<Response<Incoming>> {
        let (mut head, body) = request.into_parts();
        let path = head.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        head.uri = Uri::builder().scheme(Scheme::HTTP).authority(self.backend.clone()).path_and_query(path).build()?;
        head.headers.remove(CONNECTION);
        self.client.request(Request::from_parts(head, body)).await.with_context(|| format!("the server at {}", self.backend))
    }
}

/// The server's answer as the client gets it.
fn shape(answer: Response<Incoming>, is_head: bool, shaped: impl FnOnce(Incoming) -> Shaped) -> Response<Body> {
    let (mut head, body) = answer.into_parts();
    head.headers.remove(CONNECTION);
    head.headers.remove(TRANSFER_ENCODING);
    if is_head {
        // Its length is in the head.
        return Response::from_parts(head, whole(Bytes::new()));
    }
    let shaped = shaped(body);
    for fault in &shaped.faults {
        // Without a length the body comes in chunks, of which the last says that it is the last.
        let Some(length) = head.headers.get_mut(CONTENT_LENGTH) else { break };
        if let Fault::Shorten { to } = fault
            && length.to_str().ok().and_then(|length| length.parse().ok()).is_some_and(|length: u64| length > *to)
        {
            *length = HeaderValue::from(*to);
        }
    }
    Response::from_parts(head, shaped.into_body())
}
