//! What tests of services, stores and bridges need. Feature `testing`.

pub mod scenario;
pub mod sim;

pub mod bridge;
pub mod broker;
pub mod decoders;
pub mod store;

pub use scenario::Scenario;
pub use sim::{Coverage, Fault, Flow, Random, Sim, Trouble, Way, Weather, Work, World};
