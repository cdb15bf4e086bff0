//! Between an operator and the API server: sees every request, and may keep one back.

use std::{
    fs,
    future::Future,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::{FutureExt, future::BoxFuture};
use kube::Client;
use serde_json::json;
use tokio::{net::TcpListener, runtime::Runtime, sync::watch};

use super::support::connect;

/// A request that has come, and once more when the API server has answered it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Passed {
    pub(crate) method: String,
    pub(crate) path: String,
    /// `None` until the API server has answered.
    pub(crate) status: Option<u16>,
}

impl Passed {
    pub(crate) fn is(&self, method: &str, resource: &str) -> bool {
        self.method == method && self.path.split('/').any(|part| part == resource)
    }

    pub(crate) fn is_answered(&self, method: &str, resource: &str) -> bool {
        self.is(method, resource) && self.status.is_some()
    }
}

/// All that has passed so far. Everybody may wait for more.
pub(crate) type Log = watch::Sender<Vec<Passed>>;

/// What is done with a request before it is sent on, or with its answer before that is.
type Hook = Arc<dyn Fn(Passed, Log) -> BoxFuture<'static, ()> + Send + Sync>;

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
    /// status, and what it waits for, the operator waits for.
    pub(crate) fn start<F>(kubeconfig: &Path, hook: impl Fn(Passed, Log) -> F + Send + Sync + 'static) -> Result<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let runtime = Runtime::new()?;
        let log = Log::default();
        let hook: Hook = Arc::new(move |passed, log| hook(passed, log).boxed());
        let (listener, client) = runtime.block_on(async {
            let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
            anyhow::Ok((listener, connect(kubeconfig).await?))
        })?;
        let address = listener.local_addr()?;
        let passing = log.clone();
        let serve = move |request: Request| pass(client.clone(), request, Arc::clone(&hook), passing.clone());
        runtime.spawn(async move { axum::serve(listener, Router::new().fallback(serve)).await });
        let path = kubeconfig.with_extension("proxy.kubeconfig");
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

async fn pass(client: Client, request: Request, hook: Hook, log: Log) -> Response {
    let mut passed = Passed { method: request.method().to_string(), path: request.uri().path().to_owned(), status: None };
    log.send_modify(|log| log.push(passed.clone()));
    hook(passed.clone(), log.clone()).await;
    match forward(&client, request).await {
        Ok(answer) => {
            passed.status = Some(answer.status().as_u16());
            log.send_modify(|log| log.push(passed.clone()));
            hook(passed, log).await;
            answer
        }
        Err(error) => (StatusCode::BAD_GATEWAY, format!("{error:#}")).into_response(),
    }
}

async fn forward(client: &Client, request: Request) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let mut sent = http::Request::builder().method(parts.method).uri(parts.uri.path_and_query().context("no path")?.as_str());
    *sent.headers_mut().context("no headers")? = [header::ACCEPT, header::CONTENT_TYPE]
        .into_iter()
        .filter_map(|name| Some((name.clone(), parts.headers.get(name)?.clone())))
        .collect::<HeaderMap>();
    let body = to_bytes(body, usize::MAX).await?;
    let answer = client.send(sent.body(kube::client::Body::from(body))?).await?;
    let (parts, body) = answer.into_parts();
    let mut answer = Response::new(Body::new(body));
    *answer.status_mut() = parts.status;
    if let Some(kind) = parts.headers.get(header::CONTENT_TYPE) {
        answer.headers_mut().insert(header::CONTENT_TYPE, kind.clone());
    }
    Ok(answer)
}
