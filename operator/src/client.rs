//! The connections to the API server: for the work, for Events, for the lease of the leader and for those of namespaces, so that nothing
//! waits behind anything else.
//!
//! From the outside in, a request of the work passes: the rate limit, attempts after an answer that asks for another, counting, its deadline
//! ([`guard`]), the token, the fence, and the socket, which is fenced too ([`socket`]). Leases have no rate limit, and
//! that of the leader has no fence: it opens it.

mod guard;
mod socket;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use http::{Request, Response};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt, DynBody, retry::RetryPolicy},
};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, layer::layer_fn, limit::RateLimitLayer, retry::RetryLayer};

pub(crate) use guard::ON_THE_WAY;

use crate::{
    fence::{ELECTION, Fences},
    metrics::Metrics,
    settings::Settings,
};
pub(crate) use guard::NoAnswer;
use guard::{Deadlines, FencedRequests, Guarded};
use socket::FencedSocket;

/// For an answer to a reconcile or a list, and to a write where nobody else may write. Five hundred pods, a page of a list, take a busy API
/// server a second or two.
const ANSWER: Duration = Duration::from_secs(30);
/// For an answer about a lease: three attempts fit into the renew deadline.
const LEASE_ANSWER: Duration = Duration::from_secs(3);
/// Pauses before a request is sent again that the API server asked to be sent again; the reconcile that it belongs to is repeated anyway.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LONGEST_RETRY: Duration = Duration::from_secs(1);
const RETRIES: u32 = 5;

/// What all connections have in common.
pub(crate) struct Connections {
    config: Config,
    host: String,
    metrics: Arc<Metrics>,
}

impl Connections {
    /// Finds the API server as kubectl does.
    pub(crate) async fn infer(metrics: Arc<Metrics>) -> Result<Self> {
        let config = Config::infer().await.context("finding the API server: neither a service account nor a usable KUBECONFIG")?;
        ensure!(
            config.proxy_url.is_none(),
            "the API server is to be reached through a proxy, which this program cannot do: unset HTTPS_PROXY and proxy-url of the KUBECONFIG"
        );
        let host = config.cluster_url.authority().map(ToString::to_string).unwrap_or_default();
        Ok(Self { config, host, metrics })
    }

    /// The namespace of the pod's service account or of the KUBECONFIG's context.
    pub(crate) fn default_namespace(&self) -> &str {
        &self.config.default_namespace
    }

    /// For leases, tried at once.
    pub(crate) async fn for_leases(&self) -> Result<Client> {
        let deadlines = Deadlines { read: LEASE_ANSWER, write: LEASE_ANSWER };
        let client = Client::new(self.stack(deadlines, Fences::default())?, self.config.default_namespace.clone());
        let url = &self.config.cluster_url;
        let version = client.apiserver_version().await.with_context(|| format!("asking the API server at {url} for its version"))?;
        tracing::info!(server = %url, version = version.git_version, "connected");
        Ok(client)
    }

    /// For the leases of namespaces, which only the leader may write.
    pub(crate) fn for_namespace_leases(&self, fences: &Fences) -> Result<Client> {
        let deadlines = Deadlines { read: LEASE_ANSWER, write: LEASE_ANSWER };
        Ok(Client::new(self.stack(deadlines, fences.of_process_alone())?, self.config.default_namespace.clone()))
    }

    /// For the work: no faster than the settings say.
    pub(crate) fn for_work(&self, settings: &Settings, fences: &Fences) -> Result<Client> {
        // A whole burst per window; the windows follow each other at the average rate.
        let window = Duration::from_secs_f64(f64::from(settings.kube_api_burst) / f64::from(settings.kube_api_qps));
        let limit = RateLimitLayer::new(u64::from(settings.kube_api_burst), window);
        let service = ServiceBuilder::new().layer(limit).service(self.patient_stack(fences)?);
        Ok(Client::new(service, self.config.default_namespace.clone()))
    }

    /// For Events. They are written one after the other, which is limit enough.
    pub(crate) fn for_events(&self, fences: &Fences) -> Result<Client> {
        Ok(Client::new(self.patient_stack(fences)?, self.config.default_namespace.clone()))
    }

    fn patient_stack(
        &self,
        fences: &Fences,
    ) -> Result<impl Service<Request<Body>, Response = Response<Box<DynBody>>, Error = BoxError, Future: Send> + Send + use<>> {
        let policy = RetryPolicy::new(FIRST_RETRY, LONGEST_RETRY, RETRIES, true).context("preparing the connection to the API server")?;
        let stack = self.stack(Deadlines { read: ANSWER, write: ANSWER }, fences.clone())?;
        Ok(ServiceBuilder::new().layer(RetryLayer::new(policy)).service(stack))
    }

    /// With connections of its own.
    fn stack(
        &self,
        deadlines: Deadlines,
        fences: Fences,
    ) -> Result<impl Service<Request<Body>, Response = Response<Box<DynBody>>, Error = BoxError, Future: Send> + Clone + Send + use<>> {
        let config = &self.config;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        if fences.process().is_some() {
            // What the other end has not confirmed by then is not sent any more, even if the network comes back.
            tcp.set_tcp_user_timeout(Some(ON_THE_WAY));
        }
        let fence = fences.process().cloned();
        let tcp = tcp.map_response(move |socket| TokioIo::new(FencedSocket::new(socket.into_inner(), fence.clone())));
        let connector = config.rustls_https_connector_with_connector(tcp).context("preparing TLS for the API server")?;
        let http = HttpClient::builder(TokioExecutor::new()).build::<_, Body>(connector);
        let (host, metrics) = (self.host.clone(), Arc::clone(&self.metrics));
        let guarding = fences.clone();
        let service = ServiceBuilder::new()
            .layer(layer_fn(move |inner| Counted { inner, host: host.clone(), metrics: Arc::clone(&metrics) }))
            .layer(layer_fn(move |inner| Guarded::new(inner, deadlines, guarding.clone())))
            .layer(config.base_uri_layer())
            .option_layer(config.auth_layer().context("reading the credentials for the API server")?)
            .layer(config.extra_headers_layer().context("reading the headers for the API server")?)
            .layer(layer_fn(move |inner| FencedRequests::new(inner, fences.clone())))
            .map_err(BoxError::from)
            .service(http);
        Ok(service)
    }
}

/// The longest that a write may take which is not the API server's: well before another may take the lease under which it is sent.
pub(crate) const COMMAND_DEADLINE: Duration = ELECTION.lease.saturating_sub(ELECTION.renew_deadline).saturating_sub(ON_THE_WAY);

/// Counts the answers of the API server.
#[derive(Clone)]
struct Counted<S> {
    inner: S,
    host: String,
    metrics: Arc<Metrics>,
}

impl<S, A, B> Service<Request<A>> for Counted<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut TaskContext<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let (host, metrics, method) = (self.host.clone(), Arc::clone(&self.metrics), request.method().clone());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            metrics.count_request(&host, method.as_str(), answer.as_ref().ok().map(|answer| answer.status().as_u16()));
            answer
        })
    }
}
