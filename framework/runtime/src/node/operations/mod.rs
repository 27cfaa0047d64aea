//! Operations on a running node: dead letters, skipped events, and messages that wait.
//!
//! Called by operators through the node and its handle.

pub(in crate::node) mod dead_letters;
pub(in crate::node) mod skips;
pub(in crate::node) mod waiting;
