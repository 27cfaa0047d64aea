//! The comparison of a copy with its source.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher as _};

use super::place::MoveTarget;
use super::turn::CopiedTurn;
use whizbang_core::message::ShardId;
use whizbang_core::store::{ShardReader, StoreError};

/// A digest over all turns of each shard, in their order. The memory does not grow with the turns.
#[derive(Default)]
pub(super) struct Digests {
    shards: BTreeMap<ShardId, DefaultHasher>,
    /// Kept between turns so that it need not be allocated again.
    bytes: Vec<u8>,
}

impl Digests {
    /// Adds the next turn of a shard.
    pub(super) fn add(&mut self, shard: &ShardId, turn: &CopiedTurn) {
        self.bytes.clear();
        turn.write_canonical(&mut self.bytes);
        if !self.shards.contains_key(shard) {
            self.shards.insert(shard.clone(), DefaultHasher::new());
        }
        if let Some(digest) = self.shards.get_mut(shard) {
            digest.write_usize(self.bytes.len());
            digest.write(&self.bytes);
        }
    }

    /// Returns a shard whose turns are not the same in both.
    pub(super) fn first_difference(&self, other: &Self) -> Option<ShardId> {
        let digest = |digests: &Self, id: &ShardId| digests.shards.get(id).map(DefaultHasher::finish);
        self.shards.keys().chain(other.shards.keys()).find(|id| digest(self, id) != digest(other, id)).cloned()
    }
}

/// Compares a shard of both stores by everything that their indexes know. The error names the part that differs.
pub(super) fn compare(original: &dyn ShardReader, copy: &dyn ShardReader) -> Result<(), &'static str> {
    let heads = |reader: &dyn ShardReader| -> BTreeMap<_, _> {
        reader.outbox_heads().into_iter().map(|(to, confirmed, last)| (to, (confirmed, last))).collect()
    };
    let watermarks = |reader: &dyn ShardReader| -> BTreeMap<_, _> {
        reader.watermarks().into_iter().map(|watermark| (watermark.source, watermark.through)).collect()
    };
    let timers = |reader: &dyn ShardReader| -> BTreeMap<_, _> { reader.timer_counts().into_iter().collect() };
    let parts = [
        (original.position() == copy.position(), "positions"),
        (heads(original) == heads(copy), "outboxes"),
        (watermarks(original) == watermarks(copy), "watermarks"),
        (timers(original) == timers(copy) && original.next_timer() == copy.next_timer(), "timers"),
        (original.dead_letter_count() == copy.dead_letter_count(), "dead letters"),
    ];
    match parts.into_iter().find(|(is_equal, _)| !is_equal) {
        Some((_, part)) => Err(part),
        None => Ok(()),
    }
}

/// Returns the error for a copy that is not like its source.
pub(super) fn differs(target: &dyn MoveTarget, shard: &ShardId, part: &str) -> StoreError {
    let reason = format!("the {part} of shard {shard} differ from those of the source; nothing was moved");
    StoreError::Corrupt { file: target.at().into(), offset: 0, reason }
}
