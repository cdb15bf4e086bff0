//! `/healthz`, `/readyz` and `/metrics`.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Router,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;

use crate::metrics::Metrics;

/// Whether the process can do its work. A process that waits to lead can.
pub(crate) type IsReady = Arc<dyn Fn() -> bool + Send + Sync>;
/// Jobs by state.
pub(crate) type CountJobs = Arc<dyn Fn() -> BTreeMap<String, i64> + Send + Sync>;

/// Serves health until the process ends.
pub(crate) async fn serve_health(listener: TcpListener, is_ready: IsReady) -> std::io::Result<()> {
    let ready = move || async move {
        if is_ready() { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "caches are not filled yet") }
    };
    axum::serve(listener, Router::new().route("/healthz", get(|| async { "ok" })).route("/readyz", get(ready))).await
}

/// Serves metrics until the process ends.
pub(crate) async fn serve_metrics(listener: TcpListener, metrics: Arc<Metrics>, count_jobs: CountJobs) -> std::io::Result<()> {
    let render = move || async move {
        match metrics.render(&count_jobs()) {
            Ok(text) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
    };
    axum::serve(listener, Router::new().route("/metrics", get(render))).await
}
