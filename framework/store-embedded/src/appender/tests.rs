//! Tests of the writer of a shard.

use super::*;
use crate::shard::Shard;
use crate::tests::memory_disk::MemoryDisk;
use crate::tests::test_store::{append, bank, commit, kill, now, open, own, turn, turns};
use bytes::Bytes;
use whizbang_core::store::{Source, SourceKind};

fn actor() -> Name {
    Name::new("Account").unwrap()
}

fn snapshot(turn: u64) -> Snapshot {
    Snapshot { turn, version: turn, schema: 1, bytes: Bytes::from_static(b"state") }
}

/// Returns the turn and the location of the snapshot of `a` that waits.
fn pending(shard: &Shard) -> Option<(u64, u64)> {
    let state = shard.state.lock();
    let located = &state.pending.get(&state.index.stream("Account", "a"))?.next.located;
    Some((located.snapshot.turn, located.location))
}

#[test]
fn earlier_owner_is_rejected_and_changes_nothing() {
    let store = open(&MemoryDisk::default());
    let mut old = own(&store, 0);
    commit(&store, &mut old, "a", 1..=1);
    let mut new = own(&store, 0);
    let before = store.inner.write_buffer.committed();
    let watermark = Watermark { source: Source { shard: bank(1), kind: SourceKind::Direct }, through: 5 };
    for refused in [
        old.append(&turn("a", 2, 10)),
        old.append_alone(&turn("a", 2, 10)),
        old.writer.advance(&watermark),
        old.writer.sent(&bank(1), 5),
    ] {
        assert!(matches!(refused, Err(StoreError::Fenced { mine: 1, current: 2, .. })), "{refused:?}");
    }
    old.snapshot("Account", "a", 1, b"old");
    store.step();
    assert_eq!(store.inner.write_buffer.committed(), before);
    assert!(now(new.load("Account", "a")).snapshot.is_none());
    assert_eq!((old.writer.epoch(), new.writer.epoch()), (1, 2));
    append(&mut new, "a", 2, 10);
    store.step();
    assert_eq!(turns(&new, "a"), 2);
}

#[test]
fn turn_with_a_wrong_number_is_rejected() {
    let store = open(&MemoryDisk::default());
    let mut owner = own(&store, 0);
    commit(&store, &mut owner, "a", 1..=2);
    for number in [1, 2, 4] {
        let refused = owner.append(&turn("a", number, 10));
        assert!(matches!(refused, Err(StoreError::OutOfTurn { expected: 3, .. })), "{refused:?}");
    }
    assert!(store.inner.write_buffer.is_idle());
    append(&mut owner, "a", 3, 10);
}

#[test]
fn appends_of_all_kinds_survive_a_kill() {
    let memory = MemoryDisk::default();
    let store = open(&memory);
    let mut owner = own(&store, 0);
    let source = Source { shard: bank(1), kind: SourceKind::Direct };
    let first = owner.append(&turn("a", 1, 10).send(&bank(2), 1)).unwrap();
    let second = owner.writer.advance(&Watermark { source: source.clone(), through: 7 }).unwrap();
    let third = owner.writer.sent(&bank(2), 1).unwrap();
    assert_eq!(
        [&first, &second, &third].map(|appended| (appended.ticket, appended.committed)),
        [(1, false), (2, false), (3, false)]
    );
    assert_eq!(first.position, 1);
    store.step();
    let reopened = open(&kill(&memory));
    let owner = own(&reopened, 0);
    assert_eq!(owner.reader.outbox_heads(), [(bank(2), 1, 1)]);
    assert_eq!((owner.reader.watermark(&source), owner.reader.watermarks().len()), (7, 1));
}

#[test]
fn snapshot_needs_a_turn_of_the_log() {
    let store = open(&MemoryDisk::default());
    let mut owner = own(&store, 0);
    let shard = Arc::clone(&store.inner.shards()[0]);
    owner.writer.save_snapshot(&actor(), "a", snapshot(1));
    assert_eq!(pending(&shard), None, "the stream is empty");
    commit(&store, &mut owner, "a", 1..=3);
    let head = {
        let state = shard.state.lock();
        state.index.newest(state.index.stream("Account", "a")).unwrap()
    };
    for (turn, expected) in [(4, None), (3, Some((3, head.location))), (2, Some((2, 0)))] {
        shard.state.lock().pending.clear();
        owner.writer.save_snapshot(&actor(), "a", snapshot(turn));
        assert_eq!(pending(&shard), expected, "turn {turn}");
    }
}

#[test]
fn few_snapshots_wait_for_their_turns() {
    let store = open(&MemoryDisk::default());
    let mut owner = own(&store, 0);
    let shard = Arc::clone(&store.inner.shards()[0]);
    for number in 0..300 {
        let key = format!("key-{number}");
        append(&mut owner, &key, 1, 10);
        owner.writer.save_snapshot(&actor(), &key, snapshot(1));
    }
    assert_eq!(shard.state.lock().pending.len(), 256);
    while store.inner.writer.lock().step() {}
    // The next append enqueues them.
    append(&mut owner, "a", 1, 10);
    assert!(!shard.state.lock().has_uncommitted());
    store.flusher.step(&store.inner);
    assert_eq!((shard.state.lock().pending.len(), shard.stored.read().len()), (0, 256));
}

#[test]
fn memory_of_waiting_snapshots_is_bounded() {
    const MIB: usize = 1 << 20;
    let store = open(&MemoryDisk::default());
    let mut owner = own(&store, 0);
    let shard = Arc::clone(&store.inner.shards()[0]);
    for (key, length) in [("a", 60 * MIB), ("b", 5 * MIB), ("c", 4 * MIB)] {
        append(&mut owner, key, 1, 10);
        let snapshot = Snapshot { bytes: Bytes::from(vec![0; length]), ..snapshot(1) };
        owner.writer.save_snapshot(&actor(), key, snapshot);
    }
    assert_eq!(shard.state.lock().pending.len(), 2, "the second one finds no room");
    shard.state.lock().pending.clear();
    assert!(store.inner.flush_queue.memory.reserve(64 * MIB).is_some(), "it is free again");
}
