//! Keeps the state of whizbang services in PostgreSQL.
//!
//! Called like any [store](whizbang_core::store::Store): `PostgresStore::connect(url)` takes the place of
//! `EmbeddedStore::open(folder)`, and nothing else of a service changes. A turn is one row and a row for each of its events;
//! the turns of many keys are committed by one statement. The events can be read with plain SQL from the view
//! `whizbang.events`. docs/postgres.md describes the tables, the permissions, and what happens in a failure.
//!
//! Begin reading with `queue.rs` and `writer/mod.rs`.

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

mod appender;
mod blocking;
mod builder;
mod checkpoints;
mod columns;
mod connect;
mod failure;
mod inner;
mod lease_table;
mod leases;
mod marks;
mod migrations;
mod open;
mod place;
mod pool;
mod queue;
mod reader;
mod shard;
mod snapshots;
mod sql;
mod statements;
mod store;
mod tickets;
mod tls;
mod views;
mod writer;

pub use builder::PostgresBuilder;
pub use connect::Durability;
pub use migrations::Migrations;
pub use store::PostgresStore;

/// The target of everything the store logs.
const TARGET: &str = "whizbang";
