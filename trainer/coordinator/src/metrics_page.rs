//! `/metrics` and `/healthz` over plain HTTP, for the scraper and for probes.

use std::{io, sync::Arc};

use axum::{
    Router,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;

use crate::Metrics;

/// Serves until the process ends.
///
/// # Errors
/// When the listener cannot be used.
pub async fn serve_metrics(listener: TcpListener, metrics: Arc<Metrics>) -> io::Result<()> {
    let health = {
        let metrics = Arc::clone(&metrics);
        move || async move {
            match metrics.check_health() {
                Ok(()) => (StatusCode::OK, "ok".to_owned()),
                Err(unhealthy) => (StatusCode::SERVICE_UNAVAILABLE, unhealthy.to_string()),
            }
        }
    };
    let render = move || async move {
        match metrics.render() {
            Ok(text) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
    };
    axum::serve(listener, Router::new().route("/healthz", get(health)).route("/metrics", get(render))).await
}
