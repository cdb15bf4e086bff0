//! The connection to the API server: as fast as it may be, every answer counted.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use anyhow::{Context, Result};
use http::{Request, Response};
use kube::{Client, Config, client::ClientBuilder};
use tower::{Service, layer::layer_fn, limit::RateLimitLayer};

use crate::{metrics::Metrics, settings::Settings};

/// Connects as kubectl does, and keeps to the given rate.
pub(crate) async fn connect(settings: &Settings, metrics: Arc<Metrics>) -> Result<Client> {
    let config = Config::infer().await.context("finding the API server: neither a service account nor a usable KUBECONFIG")?;
    let url = config.cluster_url.clone();
    // A whole burst per window; the windows follow each other at the average rate.
    let window = Duration::from_secs_f64(f64::from(settings.kube_api_burst) / f64::from(settings.kube_api_qps));
    let limit = RateLimitLayer::new(u64::from(settings.kube_api_burst), window);
    let host = url.authority().map(ToString::to_string).unwrap_or_default();
    let count = layer_fn(|inner| Counted { inner, host: host.clone(), metrics: Arc::clone(&metrics) });
    let builder = ClientBuilder::try_from(config).context("preparing the connection to the API server")?;
    let client = builder.with_layer(&count).with_layer(&limit).build();
    let version = client.apiserver_version().await.with_context(|| format!("asking the API server at {url} for its version"))?;
    tracing::info!(server = %url, version = version.git_version, "connected");
    Ok(client)
}

/// Counts the answers of the API server.
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
