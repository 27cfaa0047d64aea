//! Operations on a running node: dead letters and skipped events.
//!
//! Called by operators through the node and its handle.

pub(in crate::node) mod dead_letters;
pub(in crate::node) mod skips;
