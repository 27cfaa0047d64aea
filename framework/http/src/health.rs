//! Routes for the probes of a supervisor and of a load balancer.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use whizbang_runtime::node::NodeHandle;
use whizbang_runtime::router::SendError;

use crate::problem::Problem;

/// Returns `/health/live`, `/health/ready` and `/metrics` for a node.
///
/// `live` fails with 503 if the process must be restarted, and `ready` if requests must go elsewhere for a while. `ready` and
/// `metrics` respond with [`Health`](whizbang_runtime::node::Health) and [`Metrics`](whizbang_runtime::node::Metrics) as JSON.
/// Serve them where only operators can reach them: they name keys and causes.
pub fn health_routes(node: NodeHandle) -> Router {
    Router::new()
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(node)
}

/// Responds 503 if the process must be restarted.
async fn live(State(node): State<NodeHandle>) -> StatusCode {
    status(node.health().live)
}

/// Responds 503 while requests must go elsewhere, with the health as JSON in both cases.
async fn ready(State(node): State<NodeHandle>) -> Response {
    let health = node.health();
    (status(health.ready), Json(health)).into_response()
}

/// Responds with the metrics, or 503 after the node has stopped.
async fn metrics(State(node): State<NodeHandle>) -> Result<Response, Problem> {
    let metrics = node.metrics().ok_or(SendError::Stopped)?;
    Ok(Json(metrics).into_response())
}

/// Returns 200 or 503.
fn status(is_good: bool) -> StatusCode {
    if is_good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}
