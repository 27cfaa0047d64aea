//! Services made of actors: event-sourced aggregates and sagas that lose nothing, wired over NATS.
//!
//! The rooms, in the order of a command's way.

// Nothing that comes in from outside may bring a node down, so nothing here panics; clippy.toml lets tests do it.
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

pub mod clock;
mod retry;
mod spawn;
pub mod telemetry;

pub mod message;

pub mod client;

pub mod router;

pub mod actor;
pub mod aggregate;
pub mod saga;
pub mod store;

mod relay;

pub mod bridge;

pub mod inbox;

pub mod projection;
pub mod worker;

pub mod node;
#[cfg(feature = "testing")]
pub mod testing;

#[doc(hidden)]
pub mod derive;
#[doc(hidden)]
#[allow(missing_docs)]
pub mod doc_fixtures;
pub mod prelude;

// The derives' output names the framework from outside; the framework's own tests use it as well.
extern crate self as whizbang;

pub use actor::{About, Effects};
pub use aggregate::{Aggregate, Apply, Handle, OnReply, React};
#[cfg(feature = "nats")]
pub use bridge::nats::NatsBridge;
pub use client::{Client, SendError};
pub use derive::derives::{Aggregate, Command, Document, Domain, Event, Projection, Query, Saga, Worker, main, test};
pub use message::{Command, Document, Domain, Event, Message, Query, Rejection};
pub use node::{ConfigError, Error, Health, Metrics, Node, NodeBuilder, NodeConfig, StartError};
pub use projection::{Answer, Project, Projection};
pub use retry::Retry;
pub use saga::{Saga, Wake};
#[cfg(feature = "embedded")]
pub use store::embedded::EmbeddedStore;
pub use store::memory::MemoryStore;
pub use worker::{Job, On, Perform, WorkError, Worker};

/// The programs of the README.
#[cfg(all(doctest, feature = "embedded", feature = "nats"))]
#[doc = include_str!("../../README.md")]
struct Readme;

/// The program of the page on running a node.
#[cfg(all(doctest, feature = "embedded"))]
#[doc = include_str!("../../docs/running.md")]
struct Running;
