//! Between an operator and the API server: sees every request, and does with it what a hook says.
//!
//! Writes of the work (all but those of leases and Events) pass one after the other, so that the n-th that is carried out is a certain one.

#![allow(dead_code, reason = "every test uses a part")]

use std::{
    fs,
    future::Future,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use axum::{
    body::{Body, Bytes, to_bytes},
    http::{HeaderMap, Request, StatusCode, header, request},
    response::Response,
};
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use kube::Client;
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::{Mutex, watch},
};

use super::support::connect;

/// A request that has come, and once more when the API server has answered it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Passed {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) is_watch: bool,
    /// `None` until the API server has answered.
    pub(crate) status: Option<u16>,
}

impl Passed {
    fn read(request: &request::Parts) -> Self {
        let (method, path) = (request.method.to_string(), request.uri.path().to_owned());
        let is_watch = request.uri.query().unwrap_or_default().split('&').any(|part| part.starts_with("watch="));
        Self { method, path, is_watch, status: None }
    }

    pub(crate) fn is(&self, method: &str, resource: &str) -> bool {
        self.method == method && self.is_about(resource)
    }

    pub(crate) fn is_answered(&self, method: &str, resource: &str) -> bool {
        self.is(method, resource) && self.status.is_some()
    }

    fn is_about(&self, resource: &str) -> bool {
        self.path.split('/').any(|part| part == resource)
    }

    /// Whether it writes anything but leases and Events.
    pub(crate) fn is_work(&self) -> bool {
        self.method != "GET" && !self.is_about("leases") && !self.is_about("events")
    }
}

/// What becomes of a request, or of its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It goes on.
    Pass,
    /// The operator gets this in the place of what the API server would say, or has said.
    Answer { code: u16, reason: &'static str, retry_after: Option<u16> },
    /// The connection is cut.
    Cut,
    /// Of a watch so many events are passed; then it is told that what follows is known no more.
    Expire { after: usize },
}

impl From<()> for Fate {
    fn from((): ()) -> Self {
        Self::Pass
    }
}

/// All that has passed so far. Everybody may wait for more.
pub(crate) type Log = watch::Sender<Vec<Passed>>;

/// What is done with a request before it is sent on, or with its answer before that is.
type Hook = Arc<dyn Fn(Passed, Log) -> BoxFuture<'static, Fate> + Send + Sync>;

/// Ends with this value.
pub(crate) struct Proxy {
    /// Runs it.
    _runtime: Runtime,
    /// For an operator that is to use it.
    pub(crate) kubeconfig: PathBuf,
    pub(crate) log: Log,
}

impl Proxy {
    /// Starts one in front of the API server of a kubeconfig, whose rights it has. `hook` sees every request, without and then with its
    /// status, and says what becomes of it; what it waits for, the operator waits for.
    pub(crate) fn start<F>(kubeconfig: &Path, hook: impl Fn(Passed, Log) -> F + Send + Sync + 'static) -> Result<Self>
    where
        F: Future<Output: Into<Fate>> + Send + 'static,
    {
        let runtime = Runtime::new()?;
        let log = Log::default();
        let hook: Hook = Arc::new(move |passed, log| hook(passed, log).map(Into::into).boxed());
        let (listener, client) = runtime.block_on(async {
            let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
            anyhow::Ok((listener, connect(kubeconfig).await?))
        })?;
        let address = listener.local_addr()?;
        let passage = Passage { client, hook, log: log.clone(), turn: Arc::default() };
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, passage.clone()));
            }
        });
        // Several may stand before one API server.
        let path = kubeconfig.with_extension(format!("proxy-{}.kubeconfig", address.port()));
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
            "clusters": [{ "name": "proxy", "cluster": { "server": format!("http://{address}") } }],
            "users": [{ "name": "nobody", "user": {} }],
            "contexts": [{ "name": "proxy", "context": { "cluster": "proxy", "user": "nobody" } }],
        });
        fs::write(&path, config.to_string())?;
        Ok(Self { _runtime: runtime, kubeconfig: path, log })
    }

    /// How many requests of this kind the API server has answered.
    pub(crate) fn count(&self, method: &str, resource: &str) -> usize {
        self.log.borrow().iter().filter(|passed| passed.is_answered(method, resource)).count()
    }
}

/// Ends a connection.
fn cut() -> io::Error {
    io::Error::other("cut on purpose")
}

async fn serve(stream: TcpStream, passage: Passage) {
    let service = service_fn(move |request: Request<Incoming>| {
        let passage = passage.clone();
        async move { passage.pass(request.map(Body::new)).await }
    });
    // One that is cut ends with an error, and so does one whose other end was killed.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// What all connections have in common.
#[derive(Clone)]
struct Passage {
    client: Client,
    hook: Hook,
    log: Log,
    turn: Arc<Mutex<()>>,
}

impl Passage {
    async fn pass(self, request: Request<Body>) -> Result<Response, io::Error> {
        let (parts, body) = request.into_parts();
        let mut passed = Passed::read(&parts);
        let _turn = if passed.is_work() { Some(self.turn.lock().await) } else { None };
        self.log.send_modify(|log| log.push(passed.clone()));
        match (self.hook)(passed.clone(), self.log.clone()).await {
            Fate::Pass | Fate::Expire { .. } => {}
            Fate::Answer { code, reason, retry_after } => return Ok(refusal(code, reason, retry_after)),
            Fate::Cut => return Err(cut()),
        }
        let answer = match forward(&self.client, parts, body).await {
            Ok(answer) => answer,
            Err(error) => return Ok(response(StatusCode::BAD_GATEWAY, Body::from(format!("{error:#}")))),
        };
        passed.status = Some(answer.status().as_u16());
        self.log.send_modify(|log| log.push(passed.clone()));
        match (self.hook)(passed.clone(), self.log.clone()).await {
            Fate::Pass => Ok(answer),
            Fate::Answer { code, reason, retry_after } => Ok(refusal(code, reason, retry_after)),
            Fate::Cut => Err(cut()),
            Fate::Expire { after } => Ok(if passed.is_watch { expiring(answer, after) } else { answer }),
        }
    }
}

fn response(code: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response
}

fn status_object(code: u16, reason: &str) -> serde_json::Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": "refused on purpose",
    })
}

fn refusal(code: u16, reason: &str, retry_after: Option<u16>) -> Response {
    let mut refusal =
        response(StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_GATEWAY), Body::from(status_object(code, reason).to_string()));
    refusal.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    if let Some(seconds) = retry_after {
        refusal.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    refusal
}

/// The first events of a watch, and then the error by which the API server says that it has forgotten what follows.
fn expiring(answer: Response, events: usize) -> Response {
    let (parts, body) = answer.into_parts();
    let begun = Some((body.into_data_stream(), events));
    let told = stream::unfold(begun, |state| async move {
        let (mut body, left) = state?;
        let chunk = body.next().await?.ok()?;
        let ends = chunk.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
        let ends: Vec<_> = ends.take(left).collect();
        if ends.len() < left {
            return Some((chunk, Some((body, left - ends.len()))));
        }
        let mut last = chunk.slice(..ends.last().copied().unwrap_or(0)).to_vec();
        last.extend(format!("{}\n", json!({ "type": "ERROR", "object": status_object(410, "Expired") })).bytes());
        Some((Bytes::from(last), None))
    });
    Response::from_parts(parts, Body::from_stream(told.map(Ok::<_, io::Error>)))
}

async fn forward(client: &Client, parts: request::Parts, body: Body) -> Result<Response> {
    let mut sent = Request::builder().method(parts.method).uri(parts.uri.path_and_query().context("no path")?.as_str());
    *sent.headers_mut().context("no headers")? = [header::ACCEPT, header::CONTENT_TYPE]
        .into_iter()
        .filter_map(|name| Some((name.clone(), parts.headers.get(name)?.clone())))
        .collect::<HeaderMap>();
    let body = to_bytes(body, usize::MAX).await?;
    let answer = client.send(sent.body(kube::client::Body::from(body))?).await?;
    let (parts, body) = answer.into_parts();
    let mut answer = response(parts.status, Body::new(body));
    if let Some(kind) = parts.headers.get(header::CONTENT_TYPE) {
        answer.headers_mut().insert(header::CONTENT_TYPE, kind.clone());
    }
    Ok(answer)
}
