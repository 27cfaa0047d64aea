//! Relay of a thread: sends committed messages and events to other nodes, and the confirmations of the destinations.
//!
//! Runs as a background task. Uses the send windows of [`relay`](crate::relay).

pub(in crate::node) mod confirmations;
pub(in crate::node) mod local;
pub(in crate::node) mod publisher;
pub(in crate::node) mod republish;
