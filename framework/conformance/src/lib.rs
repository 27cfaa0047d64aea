//! The suites that stores, bridges and brokers of the `whizbang` framework must pass.
//!
//! An implementation that passes its suite keeps the promises of the framework; docs/guarantees.md lists them. The suites use
//! public traits only, so an implementation can be in any crate, without the runtime.
//!
//! A store's test calls [`store::run`], a bridge's test [`bridge::run`]. Applications use them through
//! `whizbang::testing`.
//!
//! The crate depends on the traits and on the wire format, and on no store or bridge. An author of a store or a bridge adds it
//! as a development dependency and writes a fixture of about twenty lines. The suite is then a test for each guarantee.

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

pub mod bridge;
pub mod broker;
pub mod store;
