//! Test support for services, stores and bridges. Feature `testing`.
//!
//! | test | covers |
//! |---|---|
//! | [`Scenario`] | one actor, in an order of messages that the test chooses |
//! | [`Sim`] | a cluster of services, with the faults that the test chooses |
//! | [`Flow`] | the same with commands and faults from a seed; a failing case is shrunk and can be replayed |
//!
//! [`store`], [`bridge`] and [`broker`] are conformance suites for implementations of the store and bridge traits. Nothing here runs in a production build.

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

pub mod decoders;
mod loopback_faults;
pub mod scenario;
pub mod sim;

pub use whizbang_conformance::{
    bridge, bridge_lease_suite, bridge_suite, bridge_watch_suite, broker, broker_suite, lease_suite, store, store_suite,
};

pub use loopback_faults::LoopbackFaults;
pub use scenario::Scenario;
pub use sim::{Coverage, CrashPoint, Fault, FaultEvent, FaultProfile, Flow, LinkDirection, Random, Sim, World};
