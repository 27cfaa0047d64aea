//! A framework for actor-based services: event-sourced aggregates and sagas that lose no message, connected by NATS.
//!
//! Write plain structs, derive their roles, implement small traits, and run them on a [`Node`]:
//!
//! ```
//! use whizbang::prelude::*;
//!
//! #[derive(Domain)]
//! struct Bank;
//!
//! #[derive(Command, Serialize, Deserialize)]
//! #[command(domain = Bank, reply = u64)]
//! struct Deposit {
//!     #[key]
//!     account: String,
//!     cents: u64,
//! }
//!
//! #[derive(Event, Serialize, Deserialize)]
//! #[event(domain = Bank)]
//! struct Deposited {
//!     balance: u64,
//! }
//!
//! #[derive(Aggregate, Default)]
//! #[aggregate(domain = Bank, handles(Deposit), applies(Deposited))]
//! struct Account {
//!     balance: u64,
//! }
//!
//! impl Handle<Deposit> for Account {
//!     fn handle(&self, deposit: Deposit, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
//!         let balance = self.balance + deposit.cents;
//!         effects.record(Deposited { balance });
//!         Ok(balance)
//!     }
//! }
//!
//! impl Apply<Deposited> for Account {
//!     fn apply(&mut self, deposited: &Deposited) {
//!         self.balance = deposited.balance;
//!     }
//! }
//!
//! #[whizbang::main]
//! async fn main() -> Result<(), whizbang::Error> {
//!     let node = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().start().await?;
//!     let client = node.client();
//!     assert_eq!(client.send(Deposit { account: "ada".into(), cents: 500 }).await?, 500);
//!     assert_eq!(client.send(Deposit { account: "ada".into(), cents: 20 }).await?, 520);
//!     node.stop().await
//! }
//! ```
//!
//! | to write | see |
//! |---|---|
//! | an aggregate: decides on commands and records events | [`Aggregate`], [`Handle`], [`Apply`] |
//! | a saga: leads a flow through several services and undoes it if a step fails | [`Saga`], [`React`], [`OnReply`], [`OnTimer`] |
//! | a projection: a view of events that answers queries | [`Projection`], [`Project`], [`Answer`] |
//! | a worker: performs I/O | [`Worker`], [`Perform`], [`OnEvent`], [`PerformBatch`] |
//! | a node, its configuration and shutdown | [`Node`], [`NodeConfig`] |
//! | a caller | [`Client`], [`SendError`] |
//! | a test of a flow | `testing` (feature of that name): scenarios and the simulated cluster |
//!
//! # Features
//!
//! - `embedded` (default): `EmbeddedStore`, logs on the local disk
//! - `postgres`: `PostgresStore`, the state of services in PostgreSQL
//! - `nats` (default): `NatsBridge`, nodes in different processes
//! - `http`: `http::Gateway`, HTTP routes for commands and queries
//! - `schedules`: cron schedules, `Client::schedule`
//! - `rate-limits`: the layer `layer::RateLimit`
//! - `validation`: the layer `layer::Validate`
//! - `testing`: scenarios and the simulated cluster for tests of services, and the suites that stores and bridges must pass
//!
//! Without any of them, the in-memory store and the in-process bridge are available.
//!
//! # Modules
//!
//! The modules are listed in the order in which a command passes them; ARCHITECTURE.md in the repository describes it.

// docs.rs marks the items that need a feature.
#![cfg_attr(docsrs, feature(doc_cfg))]
// Untrusted input must not end a node, so nothing here panics; clippy.toml exempts tests.
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

pub use whizbang_core::{clock, message};
#[doc(hidden)]
pub use whizbang_runtime::derive;
#[cfg(feature = "schedules")]
pub use whizbang_runtime::schedule;
pub use whizbang_runtime::{aggregate, client, layer, node, projection, saga, subscribe, worker};
#[cfg(feature = "testing")]
pub use whizbang_testing as testing;
#[cfg(feature = "testing")]
pub use whizbang_testing::{
    bridge_lease_suite, bridge_suite, bridge_watch_suite, broker_suite, lease_suite, store_suite,
};

/// Stores: the trait, the store in memory, the embedded store, the store in PostgreSQL, and the move between two of them.
pub mod store {
    pub use whizbang_core::store::*;
    pub use whizbang_log::memory;
    pub use whizbang_log::transfer::{MoveProgress, MoveStep, MovedStore, StorePlace, move_store};
    #[cfg(feature = "embedded")]
    pub use whizbang_store_embedded as embedded;
    #[cfg(feature = "postgres")]
    pub use whizbang_store_postgres as postgres;
}

/// Bridges: the trait, what travels, the bridge inside a process, NATS.
pub mod bridge {
    #[cfg(feature = "nats")]
    pub use whizbang_bridge_nats as nats;
    pub use whizbang_core::bridge::*;
    pub use whizbang_wire as wire;
    pub use whizbang_wire::{loopback, subject};
}

/// HTTP routes for commands and queries, and descriptions in OpenAPI and AsyncAPI.
#[cfg(feature = "http")]
pub use whizbang_http as http;

/// The description of a node's actors, messages and views, as [`Node::manifest`] returns it.
pub mod manifest {
    pub use whizbang_runtime::router::{ActorCard, DomainCard, Manifest, MessageCard, Shapes, StateCard};
}

pub mod prelude;

// Derived code refers to the framework from outside; the framework's own tests use it as well.
extern crate self as whizbang;

pub use aggregate::{Aggregate, Apply, Handle, OnReply, React};
#[cfg(feature = "nats")]
pub use bridge::nats::NatsBridge;
pub use client::{Client, SendError};
pub use derive::derives::{
    Aggregate, Command, Document, Domain, Event, Projection, Query, Rejection, Saga, Worker, main, test,
};
pub use message::{Command, Document, Domain, Event, Message, Query, Rejection};
pub use node::{ConfigError, Error, Health, Metrics, Node, NodeBuilder, NodeConfig, NodeEnd, NodeHandle, StartError};
pub use projection::{Answer, Project, Projection};
pub use saga::{OnTimer, Saga};
#[cfg(feature = "schedules")]
pub use schedule::{ActiveSchedule, Cron, CronError, Missed, Overlap};
#[cfg(feature = "embedded")]
pub use store::embedded::EmbeddedStore;
pub use store::memory::MemoryStore;
#[cfg(feature = "postgres")]
pub use store::postgres::PostgresStore;
pub use whizbang_core::retry::Retry;
pub use whizbang_core::telemetry::{ErrorChain, error_chain};
pub use whizbang_runtime::actor::{CompensationScope, Effects, EventContext, QueryContext, Role, Sent, Stateful};
pub use worker::{
    CircuitBreaker, Job, JobError, OnEvent, OnEventBatch, OnJobReply, Perform, PerformBatch, Priority, RetryDecision,
    WorkError, Worker, WorkerOptions,
};
