//! The runtime of the `whizbang` framework: actors, routing, relay, projections, workers and nodes.
//!
//! Applications depend on `whizbang` alone, which re-exports what they use.
//!
//! # Features
//!
//! - `schedules`: cron schedules
//! - `rate-limits`: the layer `RateLimit`
//! - `validation`: the layer `Validate`
//! - `testing`: the seams of the simulated cluster

// docs.rs marks the items that need a feature.
#![cfg_attr(docsrs, feature(doc_cfg))]
// Input from outside must not stop a node, so nothing here panics; clippy.toml allows it in tests.
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

#[cfg(test)]
extern crate self as whizbang;

pub mod actor;
pub mod aggregate;
pub mod client;
pub mod derive;
#[doc(hidden)]
pub mod inbox;
pub mod layer;
pub mod node;
pub mod projection;
mod relay;
pub mod router;
pub mod saga;
#[cfg(feature = "schedules")]
pub mod schedule;
pub mod subscribe;
#[cfg(test)]
mod tests;
pub mod worker;

pub use actor::{Effects, EventContext, QueryContext};
pub use aggregate::{Aggregate, Apply, Handle, OnReply, React};
pub use client::{Client, SendError};
pub use node::{ConfigError, Error, Health, Metrics, Node, NodeBuilder, NodeConfig, NodeEnd, NodeHandle, StartError};
pub use projection::{Answer, Project, Projection};
pub use saga::{OnTimer, Saga};
pub use whizbang_core::message::{Command, Document, Domain, Event, Message, Query, Rejection};
pub use whizbang_core::retry::Retry;
pub use worker::{
    CircuitBreaker, Job, JobError, OnEvent, OnEventBatch, OnJobReply, Perform, PerformBatch, Priority, RetryDecision,
    WorkError, Worker, WorkerOptions,
};
