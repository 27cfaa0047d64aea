//! Lifecycle of a node: builder, start, handles and stop.
//!
//! Called by users. Wires everything else in this module.

pub(in crate::node) mod attach;
pub(in crate::node) mod builder;
pub(in crate::node) mod connect;
pub(in crate::node) mod handle;
mod layers;
pub(in crate::node) mod node;
mod own_actors;
pub(in crate::node) mod ownership;
pub(in crate::node) mod shard_host;
mod singleton;
mod start;
pub(in crate::node) mod thread_runtime;
pub(in crate::node) mod thread_start;
mod worker;
