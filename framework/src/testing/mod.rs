//! Test support for services, stores and bridges. Feature `testing`.
//!
//! [`Scenario`] tests one actor, [`Sim`] a cluster with injected faults. [`store`], [`bridge`] and [`broker`] are conformance suites for
//! implementations of the store and bridge traits. Nothing here runs in a production build.

pub mod scenario;
pub mod sim;

pub mod bridge;
pub mod broker;
pub mod decoders;
pub mod store;

pub use scenario::Scenario;
pub use sim::{Coverage, CrashPoint, Fault, FaultEvent, FaultProfile, Flow, LinkDirection, Random, Sim, World};
