//! What tests of services, stores and bridges need. Feature `testing`.

pub mod scenario;
pub mod sim;

pub mod bridge;
pub mod broker;
pub mod decoders;
pub mod store;

pub use scenario::Scenario;
pub use sim::{Coverage, CrashPoint, Fault, FaultEvent, FaultProfile, Flow, LinkDirection, Random, Sim, World};
