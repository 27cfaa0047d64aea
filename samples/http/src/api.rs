//! The routes: each HTTP request becomes a command or a query, and its reply becomes the response.

use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use whizbang::client::SendCommand;
use whizbang::prelude::*;
use whizbang::{NodeHandle, SendError};

use crate::accounts::{BalanceOf, Deposit, Withdraw};
use crate::problem::Problem;

/// The time limit for a reply.
const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
struct Amount {
    cents: u64,
}

/// The routes of the gateway over a node.
pub(crate) fn routes(node: NodeHandle) -> Router {
    Router::new()
        .route("/accounts/{account}", get(balance))
        .route("/accounts/{account}/deposits", post(deposit))
        .route("/accounts/{account}/withdrawals", post(withdraw))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(node)
}

type Body = Result<Json<Amount>, JsonRejection>;

async fn deposit(
    State(node): State<NodeHandle>,
    Path(account): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let Json(Amount { cents }) = body?;
    reply(node.client().send(Deposit { account, cents }), &headers).await
}

async fn withdraw(
    State(node): State<NodeHandle>,
    Path(account): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let Json(Amount { cents }) = body?;
    reply(node.client().send(Withdraw { account, cents }), &headers).await
}

/// Sends a command and responds with the new balance. A request that is repeated with the same `Idempotency-Key` is handled once,
/// and gets the first reply again.
async fn reply<C: Command<Reply = u64>>(command: SendCommand<C>, headers: &HeaderMap) -> Result<Json<Value>, Problem> {
    let command = command.deadline(DEADLINE);
    let command = match headers.get("idempotency-key").map(|key| key.to_str()) {
        None => command,
        Some(Ok(key)) => command.idempotency_key(key),
        Some(Err(_)) => {
            let detail = "the Idempotency-Key is not readable text";
            return Err(Problem::new(StatusCode::BAD_REQUEST, "gateway.invalid-idempotency-key", detail));
        }
    };
    Ok(Json(json!({ "balance": command.await? })))
}

async fn balance(State(node): State<NodeHandle>, Path(account): Path<String>) -> Result<Json<Value>, Problem> {
    match node.client().query(BalanceOf { account }).deadline(DEADLINE).await? {
        Some(balance) => Ok(Json(json!({ "balance": balance }))),
        None => Err(Problem::new(StatusCode::NOT_FOUND, "accounts.unknown", "the account has never been used")),
    }
}

/// Liveness, for the supervisor of the process: it restarts the gateway if this fails.
async fn live(State(node): State<NodeHandle>) -> StatusCode {
    if node.health().live { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// Readiness, for the load balancer: it sends requests elsewhere while this fails.
async fn ready(State(node): State<NodeHandle>) -> Response {
    let health = node.health();
    let status = if health.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health)).into_response()
}

async fn metrics(State(node): State<NodeHandle>) -> Result<Response, Problem> {
    let metrics = node.metrics().ok_or(SendError::Stopped)?;
    Ok(Json(metrics).into_response())
}
