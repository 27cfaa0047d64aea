//! A shard as read from a checkpoint and from the log behind it.

use std::collections::HashMap;

use super::snapshots::SnapshotLocation;
use whizbang_core::message::ShardId;
use whizbang_core::store::Epoch;
use whizbang_log::index::{Index, Stream};

/// A shard as recovered from the log. Its index in the list is its number in the log.
pub(super) struct RecoveredShard {
    pub(super) id: ShardId,
    /// The number of shards of its domain.
    pub(super) shards: u16,
    pub(super) epoch: Epoch,
    pub(super) index: Index,
    pub(super) snapshots: HashMap<Stream, SnapshotLocation>,
}
