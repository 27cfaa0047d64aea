//! Tests of the state of a shard.

use super::*;
use crate::reserved_bytes::SnapshotMemory;
use bytes::Bytes;
use whizbang_core::message::Name;
use whizbang_core::store::Snapshot;
use whizbang_log::index::StreamHasher;
use whizbang_log::traverse::Located;

fn shard() -> Shard {
    let id = ShardId::new(Name::new("bank").unwrap(), 3);
    Shard::new(id, 4, 7, 500, 2, Index::new(StreamHasher::new(1)))
}

fn stream(number: u64) -> Stream {
    Stream::from_halves(number, number)
}

fn named(turn: u64) -> NamedSnapshot {
    let snapshot = Snapshot { turn, version: turn, schema: 1, bytes: Bytes::new() };
    NamedSnapshot { tag: 7, actor: "a".to_owned(), key: "k".to_owned(), located: Located { location: 0, snapshot } }
}

/// Adds the snapshot of a turn that is at `location`.
fn add(state: &mut ShardState, number: u64, location: Location, turn: u64) {
    let held = SnapshotMemory::default().reserve(1).unwrap();
    state.add_pending(stream(number), location, named(turn), held);
}

fn fresh(state: &ShardState, number: u64, turn: u64) -> Option<u64> {
    state.fresh(stream(number), turn).map(|named| named.located.snapshot.turn)
}

#[test]
fn snapshot_waits_for_the_commit_of_its_turn() {
    let shard = shard();
    let state = &mut *shard.state.lock();
    assert!(!state.has_uncommitted() && state.take_committed().is_empty());
    for (number, location) in [(1, 600), (2, 700), (3, 800)] {
        add(state, number, location, 1);
    }
    assert!(state.has_uncommitted());
    for (committed, expected) in [(600, vec![]), (601, vec![1]), (700, vec![]), (900, vec![2, 3])] {
        state.index.commit(committed);
        let expected: Vec<_> = expected.into_iter().map(stream).collect();
        assert_eq!(state.take_committed(), expected, "committed to {committed}");
    }
    assert!(!state.has_uncommitted());
    assert_eq!(state.pending.len(), 3, "they wait to be written");
}

#[test]
fn newest_snapshot_follows_the_one_being_written() {
    let shard = shard();
    let state = &mut *shard.state.lock();
    add(state, 1, 600, 10);
    add(state, 1, 700, 20);
    add(state, 1, 800, 30);
    for (turn, expected) in [(9, None), (10, Some(10)), (29, Some(10)), (30, Some(30)), (31, Some(30))] {
        assert_eq!(fresh(state, 1, turn), expected, "up to turn {turn}");
    }
    assert_eq!((fresh(state, 2, 99), state.pending[&stream(1)].next.located.snapshot.turn), (None, 10));
    state.index.commit(900);
    assert_eq!(state.take_committed(), [stream(1)]);
    state.finish_snapshot(stream(1));
    assert_eq!((fresh(state, 1, 29), fresh(state, 1, 30)), (None, Some(30)));
    assert_eq!(state.take_committed(), [stream(1)], "the newest one is written next");
    state.finish_snapshot(stream(1));
    assert!(state.pending.is_empty() && fresh(state, 1, 30).is_none() && !state.has_uncommitted());
    state.finish_snapshot(stream(1));
    assert!(state.pending.is_empty());
}

#[test]
fn few_snapshots_wait_for_a_commit() {
    let shard = shard();
    let state = &mut *shard.state.lock();
    for number in 0..MAX_PENDING_SNAPSHOTS as u64 {
        assert!(!state.is_full(), "{number}");
        add(state, number, 600 + number, 1);
    }
    assert!(state.is_full());
    add(state, 0, 600, 2);
    state.index.commit(601);
    assert_eq!(state.take_committed(), [stream(0)]);
    assert!(!state.is_full());
}

#[test]
fn recovered_shard_is_that_of_the_log() {
    let shard = shard();
    assert_eq!((shard.opened_at, shard.tag, shard.state.lock().epoch), (500, 7, 2));
    let snapshots = HashMap::from([(stream(1), SnapshotLocation { file: 1, offset: 2, length: 3, turn: 4 })]);
    let mut index = Index::new(StreamHasher::new(1));
    index.commit(900);
    let log = RecoveredShard { id: shard.id.clone(), shards: 4, epoch: 9, index, snapshots: snapshots.clone() };
    let found = Shard::recovered(log, 5);
    assert_eq!((&found.id, found.shards, found.tag, found.opened_at), (&shard.id, 4, 5, 0));
    let state = found.state.lock();
    assert_eq!((state.epoch, state.index.committed()), (9, 900));
    assert_eq!(*found.stored.read(), snapshots);
}
