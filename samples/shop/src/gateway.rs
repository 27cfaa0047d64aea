//! The shop over HTTP: a program of its own that reaches the services over NATS.
//!
//! Orders come as the same documents as in files, so they are checked by [`intake`](shop::intake) and sent by a route of the shop.
//! The queries need no code of their own.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::json;
use shop::analytics::AskRevenue;
use shop::intake::{self, DocumentError};
use shop::orders::AskProgress;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use whizbang::Client;
use whizbang::http::{Gateway, GatewayError, Problem};

/// Serves requests until SIGTERM or Ctrl-C.
pub(crate) async fn serve(listener: TcpListener, client: Client) -> std::io::Result<()> {
    let routes = routes(&client).map_err(std::io::Error::other)?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    axum::serve(listener, routes).with_graceful_shutdown(shutdown).await
}

fn routes(client: &Client) -> Result<Router, GatewayError> {
    let gateway = Gateway::new(client.clone())
        .query::<AskProgress>("/progress")
        .query::<AskRevenue>("/revenue")
        .openapi("/openapi.json", "The shop", env!("CARGO_PKG_VERSION"));
    let orders = Router::new().route("/orders", post(place)).with_state(Arc::new(client.clone()));
    Ok(gateway.router()?.merge(orders))
}

/// Places the order of a document. The document has an id, so a repeated request places one order.
async fn place(State(client): State<Arc<Client>>, document: Bytes) -> Result<Response, Problem> {
    let place = intake::check(&document).map_err(|error| refused(&error))?;
    let order = place.order.clone();
    let placing = client.send(place).await?;
    Ok((StatusCode::OK, axum::Json(json!({ "order": order, "placing": placing }))).into_response())
}

fn refused(error: &DocumentError) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "shop.invalid-document", error.to_string())
}
