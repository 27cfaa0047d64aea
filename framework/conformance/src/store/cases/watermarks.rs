//! Watermarks of a shard's sources.
//!
//! A watermark is the sequence up to which a shard has handled every message of a source. It is the memory of deduplication,
//! and does not grow with the number of messages.

use super::super::turn_builder::{name, shard};
use super::super::{Fixture, Owner, TurnBuilder};
use whizbang_core::store::{Source, SourceKind, Watermark};

/// Returns the source of the direct messages of another shard.
fn direct() -> Source {
    Source { shard: shard("shop", 1), kind: SourceKind::Direct }
}

/// A watermark is recorded with a turn or without one.
///
/// Up to its watermark, messages of a source are known as handled and can be removed by the sender.
pub async fn watermark_rises_with_and_without_turns(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    assert_eq!(owner.reader.watermarks(), []);
    owner.commit(&TurnBuilder::new("Account", "ada", 1).from(&direct(), 4, 2)).await;
    assert_eq!(owner.reader.watermarks(), [Watermark { source: direct(), through: 2 }]);
    owner.advance(&Watermark { source: direct(), through: 9 }).await;
    assert_eq!(owner.reader.watermarks(), [Watermark { source: direct(), through: 9 }]);
    assert_eq!(owner.reader.watermark(&direct()), 9);
    let other = Source { shard: shard("shop", 2), kind: SourceKind::Direct };
    assert_eq!(owner.reader.watermark(&other), 0);
}

/// Turns of different keys may be committed in another order than their messages arrived.
///
/// A watermark that decreases would let handled messages be handled again.
pub async fn watermark_never_decreases(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    owner.advance(&Watermark { source: direct(), through: 9 }).await;
    owner.advance(&Watermark { source: direct(), through: 3 }).await;
    owner.commit(&TurnBuilder::new("Account", "ada", 1).from(&direct(), 8, 8)).await;
    assert_eq!(owner.reader.watermarks(), [Watermark { source: direct(), through: 9 }]);
}

/// The direct messages of a shard and each subscriber to its events have separate watermarks.
///
/// Otherwise a subscriber that is ahead would let another one skip events.
pub async fn sources_and_subscribers_have_separate_watermarks(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    let kind = |subscriber: &str| SourceKind::Events { subscriber: name(subscriber) };
    let marks = [
        Watermark { source: Source { shard: shard("shop", 1), kind: SourceKind::Direct }, through: 1 },
        Watermark { source: Source { shard: shard("shop", 1), kind: kind("Saga") }, through: 2 },
        Watermark { source: Source { shard: shard("shop", 1), kind: kind("Audit") }, through: 3 },
        Watermark { source: Source { shard: shard("shop", 2), kind: SourceKind::Direct }, through: 4 },
        Watermark { source: Source { shard: shard("mail", 1), kind: SourceKind::Direct }, through: 5 },
    ];
    for mark in &marks {
        owner.advance(mark).await;
    }
    let mut found = owner.reader.watermarks();
    found.sort_by_key(|mark| mark.through);
    assert_eq!(found, marks);
}
