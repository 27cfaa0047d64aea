//! The position up to which this thread knows each of its shards to be committed, also after it has lost the shard.
//!
//! Noted when a shard is closed, and before it is opened again. A log never becomes shorter: a store that opens a shard before a
//! known position is an older copy of the one that the node has worked with.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::actor::OwnedShard;
use whizbang_core::message::ShardId;

/// The known positions. Their number is that of the shards that this thread has had.
#[derive(Default)]
pub(in crate::node) struct KnownPositions(RefCell<BTreeMap<ShardId, u64>>);

impl KnownPositions {
    /// Notes how far a shard is committed.
    pub(in crate::node) fn note(&self, shard: &OwnedShard) {
        let position = shard.reader().position();
        let mut known = self.0.borrow_mut();
        let last = known.entry(shard.id.clone()).or_default();
        *last = position.max(*last);
    }

    /// Returns the known position of a shard, 0 if there is none.
    pub(in crate::node) fn of(&self, shard: &ShardId) -> u64 {
        self.0.borrow().get(shard).copied().unwrap_or(0)
    }
}
