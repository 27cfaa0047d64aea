//! One owner per shard, and the state that the next owner finds.
//!
//! A shard has one writer. Opening it again raises its epoch and fences the earlier writer, on one node or on two.

use std::sync::Arc;

use super::super::turn_builder::{dead_letter_note, id, name, shard};
use super::super::{Fixture, Owner, RecordingListener, SHARDS, TurnBuilder};
use whizbang_core::clock::Timestamp;
use whizbang_core::store::{Note, Source, SourceKind, StoreError, Watermark};

/// An owner that has lost a shard commits nothing more in it.
///
/// An owner may be paused for minutes and continue without noticing that another one has taken over. Two owners that
/// both commit would split the history of an actor.
pub async fn older_owner_is_fenced(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let bank = shard("bank", 0);
    let mut old = Owner::take(&store, &bank).await;
    let mut other = Owner::take(&store, &shard("bank", 1)).await;
    old.commit(&TurnBuilder::new("Account", "ada", 1).event("Deposited", "1")).await;
    let mut young = Owner::take(&store, &bank).await;
    assert!(young.writer.epoch() > old.writer.epoch());
    let next = TurnBuilder::new("Account", "ada", 2).at(2, 1).event("Deposited", "2");
    let source = Source { shard: bank.clone(), kind: SourceKind::Direct };
    let fenced = [
        old.append(&next),
        old.writer.advance(&Watermark { source, through: 5 }),
        old.writer.sent(&shard("shop", 0), 5),
    ];
    for result in fenced {
        match result {
            Err(StoreError::Fenced { shard, mine, current }) => {
                assert_eq!((shard, mine, current), (bank.clone(), old.writer.epoch(), young.writer.epoch()));
            }
            other => panic!("{other:?}"),
        }
    }
    old.snapshot("Account", "ada", 1, b"stale");
    assert_eq!(young.load("Account", "ada").await.snapshot, None);
    assert_eq!((young.reader.position(), young.reader.watermarks()), (1, Vec::new()));
    young.commit(&next).await;
    other.commit(&TurnBuilder::new("Account", "bob", 1).event("Deposited", "1")).await;
}

/// The log that a new owner finds does not change by appends of the earlier one: an append that was pending is in that log,
/// or it is refused.
///
/// An append must not become visible after the next owner has read the stream, because the next owner continues the
/// numbers that it has read.
pub async fn pending_append_is_found_or_refused(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let bank = shard("bank", 0);
    let mut old = Owner::take(&store, &bank).await;
    old.fill("Account", &["ada"], 3).await;
    let pending = old.append_deposits(4..=6);
    let mut young = Owner::take(&store, &bank).await;
    old.check_takeover(&pending, &mut young).await;
}

/// Reading a shard takes it from no owner.
///
/// Queries of the log, inspection and subscribers that catch up must not take a shard from the node that runs it.
pub async fn shard_is_read_without_ownership(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let bank = shard("bank", 0);
    assert!(store.read(&bank).await.unwrap().is_none());
    let mut owner = Owner::take(&store, &bank).await;
    owner.commit(&TurnBuilder::new("Account", "ada", 1).event("Deposited", "1")).await;
    let reader = store.read(&bank).await.unwrap().expect("the shard is there");
    assert_eq!(reader.events(0, 10).await.unwrap(), owner.reader.events(0, 10).await.unwrap());
    owner.commit(&TurnBuilder::new("Account", "ada", 2).at(2, 1).event("Deposited", "2")).await;
    assert_eq!((owner.reader.position(), reader.position()), (2, 2));
    store.close().await.unwrap();
    drop((owner, reader, store));

    let again = fixture.store().await;
    let reader = again.read(&bank).await.unwrap().expect("the shard is there after a restart");
    assert_eq!(reader.position(), 2);
    assert!(again.read(&shard("bank", 1)).await.unwrap().is_none());
}

/// The first opening fixes the number of shards of a domain; there are none beyond.
///
/// A key is assigned to a shard by its hash and this number. With another number, a key would be looked for in a shard
/// that does not have its stream.
pub async fn number_of_shards_is_fixed(fixture: &impl Fixture) {
    let store = fixture.store().await;
    drop(Owner::take(&store, &shard("bank", 0)).await);
    let listener = || Arc::new(RecordingListener::default()) as Arc<_>;
    match store.open(&shard("bank", 1), SHARDS * 2, listener()).await {
        Err(StoreError::Shards { domain, found, wanted }) => {
            assert_eq!((domain.as_str(), found, wanted), ("bank", SHARDS, SHARDS * 2));
        }
        other => panic!("{:?}", other.map(|_| ())),
    }
    assert!(store.open(&shard("bank", SHARDS), SHARDS, listener()).await.is_err());
    assert!(store.open(&shard("shop", 0), 1, listener()).await.is_ok());
}

/// A reopened store returns everything that was committed.
///
/// Compared are the history of a stream, the events, the outbox, the watermarks, the timers, the dead letters and the
/// list of streams. The new opening has a later epoch.
pub async fn everything_is_found_after_a_restart(fixture: &impl Fixture) {
    let (bank, shop) = (shard("bank", 0), shard("shop", 3));
    let source = Source { shard: shop.clone(), kind: SourceKind::Events { subscriber: name("Saga") } };
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &bank).await;
    owner.fill("Account", &["ada", "bob"], 700).await;
    let draft = TurnBuilder::new("Saga", "s", 1)
        .from(&source, 8, 8)
        .event("Started", "1")
        .send(&shop, 1)
        .send(&shop, 2)
        .set("pay", 100)
        .note(dead_letter_note("Saga", "s", 3))
        .reply("yes");
    owner.commit(&draft).await;
    owner.sent(&shop, 1).await;
    let history = owner.reader.history(&name("Saga"), "s").await.unwrap();
    let events = owner.events(0, 10_000).await;
    let outbox = owner.reader.outbox(&shop, 0, 10).await.unwrap();
    let letters = owner.reader.dead_letters(None, 10).await.unwrap();
    let epoch = owner.writer.epoch();
    store.close().await.unwrap();
    drop((store, owner));

    let store = fixture.store().await;
    let owner = Owner::take(&store, &bank).await;
    assert!(owner.writer.epoch() > epoch);
    assert_eq!(owner.reader.position(), 701);
    assert_eq!(owner.reader.history(&name("Saga"), "s").await.unwrap(), history);
    assert_eq!(owner.events(0, 10_000).await, events);
    assert_eq!(owner.reader.outbox(&shop, 0, 10).await.unwrap(), outbox);
    assert_eq!(owner.reader.outbox_heads(), [(shop.clone(), 1, 2)]);
    assert_eq!(owner.reader.watermarks(), [Watermark { source, through: 8 }]);
    assert_eq!(owner.reader.next_timer(), Some(Timestamp::from_millis(100)));
    assert_eq!(owner.reader.dead_letters(None, 10).await.unwrap(), letters);
    assert_eq!(owner.reader.streams().await.unwrap().len(), 3);
    let listener = Arc::new(RecordingListener::default());
    assert!(matches!(store.open(&bank, 1, listener).await, Err(StoreError::Shards { .. })));
}

/// Numbers continue without a gap, restart after restart.
///
/// Subscribers and destinations remember the last number that they have handled. A number that is given twice would be
/// taken for a duplicate and skipped.
pub async fn restarted_store_continues_numbering(fixture: &impl Fixture) {
    let (bank, shop) = (shard("bank", 0), shard("shop", 0));
    let mut epoch = 0;
    for life in 0..5u64 {
        let store = fixture.store().await;
        let mut owner = Owner::take(&store, &bank).await;
        assert!(owner.writer.epoch() > epoch);
        epoch = owner.writer.epoch();
        for turn in 0..3u64 {
            let before = life * 3 + turn;
            let mut draft = TurnBuilder::new("Saga", "s", before).at(before + 1, before).event("Happened", "x");
            draft = draft.send(&shop, before).set("pay", before + 1);
            if before == 7 {
                draft = draft.note(dead_letter_note("Saga", "s", 7));
            }
            if before == 10 {
                draft = draft.note(Note::Resolved { message: id(7) });
            }
            let appended = owner.commit(&draft).await;
            assert_eq!(appended.position, before + 1);
        }
        owner.snapshot("Saga", "s", life * 3 + 3, b"state");
        owner.sent(&shop, life * 3).await;
        assert_eq!(owner.reader.outbox_heads(), [(shop.clone(), life * 3, life * 3 + 3)]);
        let due = owner.reader.timers_due(Timestamp::from_millis(1_000), 10);
        assert_eq!(due.iter().map(|timer| timer.turn).collect::<Vec<_>>(), [life * 3 + 3]);
        assert_eq!(owner.reader.dead_letters(None, 10).await.unwrap().len(), usize::from(life == 2));
        let state = owner.load("Saga", "s").await;
        // A snapshot may be lost; if it exists, it is the last one.
        let first = state.snapshot.map_or(0, |snapshot| snapshot.turn);
        assert_eq!(first + state.turns.len() as u64, life * 3 + 3);
        store.close().await.unwrap();
    }
}
