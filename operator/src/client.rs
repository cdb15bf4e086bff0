//! The connection to the API server.

use std::time::Duration;

use anyhow::{Context, Result};
use kube::{Client, Config, client::ClientBuilder};
use tower::limit::RateLimitLayer;

use crate::settings::Settings;

/// Connects as kubectl does, and keeps to the given rate.
pub(crate) async fn connect(settings: &Settings) -> Result<Client> {
    let config = Config::infer().await.context("finding the API server: neither a service account nor a usable KUBECONFIG")?;
    let url = config.cluster_url.clone();
    // A whole burst per window; the windows follow each other at the average rate.
    let window = Duration::from_secs_f64(f64::from(settings.kube_api_burst) / f64::from(settings.kube_api_qps));
    let limit = RateLimitLayer::new(u64::from(settings.kube_api_burst), window);
    let client = ClientBuilder::try_from(config).context("preparing the connection to the API server")?.with_layer(&limit).build();
    let version = client.apiserver_version().await.with_context(|| format!("asking the API server at {url} for its version"))?;
    tracing::info!(server = %url, version = version.git_version, "connected");
    Ok(client)
}
