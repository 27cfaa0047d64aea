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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::index::append::AppendContext;
    use crate::index::{Index, StreamHasher};
    use crate::memory::MemoryStore;
    use crate::record::Names;
    use whizbang_conformance::store::{Owner, TurnBuilder, run};
    use whizbang_core::message::Name;
    use whizbang_core::store::{Source, SourceKind, Store, Watermark};

    fn shard(number: u16) -> ShardId {
        ShardId::new(Name::from_static("bank").unwrap(), number)
    }

    /// Returns the digests of shards whose turns are these.
    fn digests(shards: &[(u16, &[TurnBuilder])]) -> Digests {
        let mut digests = Digests::default();
        for (number, drafts) in shards {
            let mut index = Index::new(StreamHasher::new(1));
            for (draft, location) in drafts.iter().zip((100..).step_by(100)) {
                let at = AppendContext { tag: 0, epoch: 1, location, committed: true };
                let mut bytes = Vec::new();
                draft.write(|turn| index.append_turn(turn, at, &mut bytes)).unwrap();
                let names = &mut Names::default();
                let read = CopiedTurn::read(location, &bytes.into(), None, names, |_| Some(shard(*number)));
                digests.add(&shard(*number), &read.unwrap().unwrap().1);
            }
        }
        digests
    }

    #[test]
    fn shard_with_other_turns_is_found() {
        let turn = |key, payload: &str| TurnBuilder::new("Account", key, 1).event("A", payload);
        let (ada, bob) = (turn("ada", "1"), turn("bob", "1"));
        let both = [ada.clone(), bob.clone()];
        let original = digests(&[(1, &both), (2, &both)]);
        assert_eq!(original.first_difference(&digests(&[(2, &both), (1, &both)])), None);
        for (other, differs) in [
            (digests(&[(1, &both), (2, &both[..1])]), 2),
            (digests(&[(1, &both[1..]), (2, &both)]), 1),
            (digests(&[(1, &both), (2, &[bob.clone(), ada.clone()])]), 2),
            (digests(&[(1, &[ada.clone(), turn("bob", "2")]), (2, &both)]), 1),
            (digests(&[(1, &both)]), 2),
            (digests(&[(2, &both)]), 1),
            (digests(&[(1, &both), (2, &both), (3, &both)]), 3),
        ] {
            assert_eq!(original.first_difference(&other), Some(shard(differs)));
            assert_eq!(other.first_difference(&original), Some(shard(differs)));
        }
    }

    #[test]
    fn part_that_differs_is_named() {
        run(async {
            let source = Source { shard: shard(3), kind: SourceKind::Direct };
            let turn = || TurnBuilder::new("Account", "ada", 1);
            let open = async || {
                let mut owner = Owner::take(&(Arc::new(MemoryStore::new()) as Arc<dyn Store>), &shard(1)).await;
                let first = turn().event("A", "1").send(&shard(2), 1).set("pay", 50).dead(8).from(&source, 3, 3);
                owner.commit(&first).await;
                owner
            };
            let original = open().await;
            let mut copy = open().await;
            assert_eq!(compare(&*original.reader, &*copy.reader), Ok(()));
            copy.sent(&shard(2), 1).await;
            assert_eq!(compare(&*original.reader, &*copy.reader), Err("outboxes"));
            for (draft, part) in [
                (turn().event("A", "2"), "positions"),
                (turn().send(&shard(2), 2), "outboxes"),
                (turn().from(&source, 4, 4), "watermarks"),
                (turn().set("ship", 50), "timers"),
                (turn().set("pay", 51), "timers"),
                (turn().dead(9), "dead letters"),
            ] {
                let mut copy = open().await;
                copy.commit(&draft.at(2, 1)).await;
                assert_eq!(compare(&*original.reader, &*copy.reader), Err(part));
                assert_eq!(compare(&*copy.reader, &*original.reader), Err(part));
            }
            let mut copy = open().await;
            copy.advance(&Watermark { source, through: 9 }).await;
            assert_eq!(compare(&*original.reader, &*copy.reader), Err("watermarks"));
        });
    }
}
