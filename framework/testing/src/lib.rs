//! Test support for services, stores and bridges. Feature `testing`.
//!
//! [`Scenario`] tests one actor, [`Sim`] a cluster with injected faults. [`store`], [`bridge`] and [`broker`] are conformance suites for
//! implementations of the store and bridge traits. Nothing here runs in a production build.

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

mod loopback_faults;
pub mod scenario;
pub mod sim;

pub use whizbang_conformance::{
    bridge, bridge_lease_suite, bridge_suite, broker, broker_suite, decoders, lease_suite, store, store_suite,
};

pub use loopback_faults::LoopbackFaults;
pub use scenario::Scenario;
pub use sim::{Coverage, CrashPoint, Fault, FaultEvent, FaultProfile, Flow, LinkDirection, Random, Sim, World};
