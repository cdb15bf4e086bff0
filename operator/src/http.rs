//! `/healthz`, `/readyz` and `/metrics`.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Router,
    extract::RawQuery,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;

use crate::{
    metrics::Metrics,
    readiness::{ELECTION_CHECK, Readiness},
};

/// How far the process has come.
pub(crate) type GetReadiness = Arc<dyn Fn() -> Readiness + Send + Sync>;
/// Jobs by state.
pub(crate) type CountJobs = Arc<dyn Fn() -> BTreeMap<String, i64> + Send + Sync>;

/// Serves health until the process ends.
pub(crate) async fn serve_health(listener: TcpListener, readiness: GetReadiness) -> std::io::Result<()> {
    let ready = move |RawQuery(query): RawQuery| async move {
        let excluded = format!("exclude={ELECTION_CHECK}");
        let has_election_check = query.as_deref().unwrap_or_default().split('&').all(|part| part != excluded);
        match readiness().why_not(has_election_check) {
            None => (StatusCode::OK, "ok".to_owned()),
            Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason),
        }
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
