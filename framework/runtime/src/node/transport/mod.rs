//! Client transport: commands, posts and queries of this node's clients, to its threads or over the bridge.
//!
//! Called by clients of the node and by the bridge handler.

pub(in crate::node) mod log_reader;
pub(in crate::node) mod owned_shards;
pub(in crate::node) mod remote_client;
pub(in crate::node) mod request;
