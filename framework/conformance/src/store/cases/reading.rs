//! Streams, history and pages of events.
//!
//! Readers see committed turns only, at any time, and never block the writer of the shard.

use super::super::turn_builder::{name, shard};
use super::super::{Fixture, Owner, TurnBuilder};
use whizbang_core::store::StreamState;

/// A stream that was never written is empty, not an error.
///
/// It is the state of every new actor.
pub async fn unknown_stream_is_empty(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let owner = Owner::take(&store, &shard("bank", 0)).await;
    let state = owner.load("Account", "unknown").await;
    assert_eq!((state.snapshot, state.turns), (None, Vec::new()));
    assert_eq!(owner.reader.history(&name("Account"), "unknown").await.unwrap(), []);
    assert_eq!(owner.events(0, 10).await, []);
    assert_eq!(owner.reader.outbox(&shard("shop", 0), 0, 10).await.unwrap(), []);
    assert_eq!(owner.reader.outbox_heads(), []);
    assert_eq!(owner.reader.position(), 0);
}

/// The pages of a stream are the stream, from its newest snapshot or from its first turn.
///
/// Long streams are loaded page by page, to bound the memory of an activation. A turn at a border of pages must not be read
/// twice or left out.
pub async fn pages_of_a_stream_equal_the_stream(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 1)).await;
    owner.fill("Account", &["ada", "bob"], 2_600).await;
    owner.commit(&TurnBuilder::new("Account", "eve", 1)).await;
    let actor = name("Account");
    for snapshot in [false, true] {
        if snapshot {
            owner.snapshot("Account", "ada", 37, b"the state");
        }
        for key in ["ada", "eve", "unknown"] {
            let whole = match snapshot {
                true => owner.load("Account", key).await,
                false => StreamState { snapshot: None, turns: owner.reader.history(&actor, key).await.unwrap() },
            };
            let mut pages = owner.reader.pages(&actor, key, snapshot).await.unwrap();
            assert_eq!(pages.snapshot(), whole.snapshot.as_ref());
            let mut turns = Vec::new();
            loop {
                let page = pages.next().await.unwrap();
                if page.is_empty() {
                    break;
                }
                turns.extend(page);
            }
            assert_eq!(turns.len(), whole.turns.len(), "`{key}`, snapshot {snapshot}");
            assert_eq!(turns, whole.turns, "`{key}`, snapshot {snapshot}");
            assert_eq!(pages.next().await.unwrap(), []);
        }
    }
}

/// Loading begins with the newest snapshot and continues with the turns after it.
///
/// A snapshot only saves time: with a wrong set of turns after it, an event would be applied twice or never.
pub async fn stream_is_loaded_from_its_newest_snapshot(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    owner.fill("Account", &["ada", "bob"], 20).await;
    owner.snapshot("Account", "ada", 10, b"ten");
    let state = owner.load("Account", "ada").await;
    assert_eq!(state.snapshot.map(|snapshot| (snapshot.turn, snapshot.schema)), Some((10, 7)));
    assert_eq!(state.turns, []);
    for number in 11..=13 {
        let draft = TurnBuilder::new("Account", "ada", number).at(number, number - 1).event("Happened", "later");
        owner.commit(&draft).await;
    }
    owner.snapshot("Account", "ada", 11, b"eleven");
    let state = owner.load("Account", "ada").await;
    let snapshot = state.snapshot.unwrap();
    assert_eq!((snapshot.turn, snapshot.version, &snapshot.bytes[..]), (11, 11, &b"eleven"[..]));
    assert_eq!(state.turns.iter().map(|turn| turn.number).collect::<Vec<_>>(), [12, 13]);
    assert_eq!(owner.load("Account", "bob").await.turns.len(), 10);
}

/// A snapshot of turns that are not in the log is ignored.
///
/// It occurs after a crash if a snapshot reached the disk and its turns did not. The actor would remember events that
/// never happened.
pub async fn snapshot_newer_than_the_log_is_not_used(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    owner.snapshot("Account", "unknown", 1, b"false");
    owner.fill("Account", &["ada"], 3).await;
    owner.snapshot("Account", "ada", 9, b"false");
    let state = owner.load("Account", "ada").await;
    assert_eq!((state.snapshot, state.turns.len()), (None, 3));
    assert_eq!(owner.load("Account", "unknown").await.snapshot, None);
}

/// History returns all turns, with or without a snapshot.
///
/// Tools that explain a state, and checks of replay, read everything that has happened.
pub async fn history_goes_back_to_the_first_turn(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    owner.fill("Account", &["ada"], 5).await;
    owner.snapshot("Account", "ada", 5, b"five");
    let history = owner.reader.history(&name("Account"), "ada").await.unwrap();
    assert_eq!(history.iter().map(|turn| turn.number).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    let versions: Vec<u64> = history.iter().map(|turn| turn.version).collect();
    assert_eq!(versions, [0, 1, 2, 3, 4]);
}

/// A page begins after `after`, has at most `limit` events, and is empty past the end.
///
/// A subscriber continues after the last event that it has handled.
pub async fn events_are_read_in_pages(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    let draft = TurnBuilder::new("Account", "ada", 1).event("A", "1").event("B", "2").event("C", "3");
    owner.commit(&draft).await;
    owner.commit(&TurnBuilder::new("Account", "bob", 2).event("D", "4")).await;
    for after in 0..6u64 {
        for limit in [0usize, 1, 2, 3, 4, 5, usize::MAX] {
            let page = owner.events(after, limit).await;
            let positions: Vec<u64> = page.iter().map(|event| event.position).collect();
            let expected: Vec<u64> = (after + 1..=4).take(limit).collect();
            assert_eq!(positions, expected, "after {after}, at most {limit}");
            assert!(page.iter().all(|event| event.payload == event.position.to_string()));
        }
    }
    assert_eq!(owner.events(u64::MAX, usize::MAX).await, []);
}

/// Pages are correct at every start, also far from both ends.
///
/// Stores find the start of a page with an index or a search; errors at the borders of blocks show in few of the pages.
pub async fn every_page_of_a_long_log_is_correct(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    let keys = ["ada", "bob", "eve", "dan", "kim"];
    owner.fill("Account", &keys, 1_500).await;
    for after in (0..1_520).step_by(19).chain([255, 256, 257, 511, 512, 513, 1_499, 1_500]) {
        for limit in [1usize, 7, 300] {
            let page = owner.events(after, limit).await;
            assert_eq!(page.len() as u64, 1_500u64.saturating_sub(after).min(limit as u64));
            for (event, position) in page.iter().zip(after + 1..) {
                assert_eq!(event.position, position);
                assert_eq!(event.payload, (position - 1).to_string());
                assert_eq!(event.key, keys[usize::try_from((position - 1) % 5).unwrap()]);
            }
        }
    }
    for key in keys {
        let turns = owner.load("Account", key).await.turns;
        assert_eq!(turns.iter().map(|turn| turn.number).collect::<Vec<_>>(), (1..=300).collect::<Vec<_>>());
    }
}

/// Streams are listed with actor type and key.
pub async fn every_stream_is_listed(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    assert_eq!(owner.reader.streams().await.unwrap(), []);
    owner.fill("Account", &["ada", "bob"], 6).await;
    owner.commit(&TurnBuilder::new("Transfer", "ada", 1)).await;
    let mut streams = owner.reader.streams().await.unwrap();
    streams.sort();
    let expected = [("Account", "ada"), ("Account", "bob"), ("Transfer", "ada")];
    assert_eq!(streams, expected.map(|(actor, key)| (name(actor), key.to_owned())));
}
