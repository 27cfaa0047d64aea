//! A shard as read from a checkpoint and from the log behind it.

use std::collections::HashMap;

use super::snapshots::SnapshotLocation;
use whizbang_core::message::ShardId;
use whizbang_core::store::Epoch;
use whizbang_log::index::{Index, Stream};

/// A shard as recovered from the log. Its index in the list is its number in the log.
pub(super) struct RecoveredShard {
    /// The name of the shard.
    pub(super) id: ShardId,
    /// The number of shards of its domain.
    pub(super) shards: u16,
    /// The epoch of its last owner. The next owner has a higher one.
    pub(super) epoch: Epoch,
    /// The index as of the end of the log.
    pub(super) index: Index,
    /// The places of the snapshots in their files.
    pub(super) snapshots: HashMap<Stream, SnapshotLocation>,
}
