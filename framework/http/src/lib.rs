//! HTTP routes for the commands and queries of a service, with problem details, idempotency keys and an OpenAPI description.
//!
//! Called by programs that serve HTTP with axum. Calls the [`Client`](whizbang_runtime::client::Client) only, so the owners of the
//! domains may live in other processes. [`Gateway`] makes an [`axum::Router`], to be served alone or merged with routes of the
//! program. [`asyncapi()`] describes the messages of a node, from its manifest.

// docs.rs marks the items that need a feature.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod asyncapi;
mod error;
mod gateway;
mod health;
mod openapi;
mod problem;
mod request;
mod route;
mod schema;
mod server_sent_events;

pub use asyncapi::asyncapi;
pub use error::GatewayError;
pub use gateway::Gateway;
pub use health::health_routes;
pub use problem::Problem;
pub use schema::json_schema;
pub use server_sent_events::ServerSentEvents;

#[cfg(test)]
mod tests;
