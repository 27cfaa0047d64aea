//! Tests of the reader of a shard.

use super::*;
use crate::reserved_bytes::SnapshotMemory;
use crate::snapshots::NamedSnapshot;
use crate::tests::memory_disk::MemoryDisk;
use crate::tests::test_store::{append, append_all, bank, commit, kill, now, open, open_with, own, small, turn, turns};
use whizbang_conformance::store::{Owner, TurnBuilder};
use whizbang_core::store::{Snapshot, Source, SourceKind, Store as _};

fn actor() -> Name {
    Name::new("Account").unwrap()
}

fn id(number: u64) -> MessageId {
    turn("a", number, 1).write(|turn| turn.id)
}

/// Returns the number of reads of the log since the last time.
fn reads(memory: &MemoryDisk) -> usize {
    memory.take_calls_of("read log-").len()
}

#[test]
fn only_long_streams_are_read_in_pages() {
    let store = open(&MemoryDisk::default());
    let mut owner = own(&store, 0);
    let free = || store.inner.long_reads.available_permits();
    let before = free();
    for (count, is_long) in [(1, false), (traverse::PAGE_TURNS, false), (traverse::PAGE_TURNS + 1, true)] {
        let known = owner.reader.position();
        append_all(&mut owner, "a", known + 1..=count);
        store.step();
        let mut pages = now(owner.reader.pages(&actor(), "a", true)).unwrap();
        assert_eq!(before - free(), usize::from(is_long), "{count}");
        let first = now(pages.next()).unwrap();
        let second = now(pages.next()).unwrap();
        let expected = if is_long { vec![1, traverse::PAGE_TURNS] } else { vec![count, 0] };
        assert_eq!([first.len() as u64, second.len() as u64], expected[..], "{count}");
        let numbers = first.iter().chain(&second).map(|turn| turn.number);
        assert!(numbers.eq(1..=count) && now(pages.next()).unwrap().is_empty());
        drop(pages);
        assert_eq!(free(), before);
    }
    // The turns before a snapshot are not read.
    owner.snapshot("Account", "a", 1, b"one");
    store.step();
    let pages = now(owner.reader.pages(&actor(), "a", true)).unwrap();
    assert_eq!((pages.snapshot().unwrap().turn, free()), (1, before));
    let pages = now(owner.reader.pages(&actor(), "a", false)).unwrap();
    assert_eq!((pages.snapshot().is_none(), free()), (true, before - 1));
    append_all(&mut owner, "a", traverse::PAGE_TURNS + 2..=600);
    store.step();
    let mut pages = now(owner.reader.pages(&actor(), "a", true)).unwrap();
    assert_eq!(pages.snapshot().unwrap().turn, 1);
    assert_eq!(now(pages.next()).unwrap()[0].number, 2);
}

/// A few turns may be as large as many.
#[test]
fn stream_of_large_turns_is_read_in_pages() {
    let store = open_with(&MemoryDisk::default(), &small().segment_bytes(1 << 20));
    let mut owner = own(&store, 0);
    let free = || store.inner.long_reads.available_permits();
    let before = free();
    for number in 1..=5 {
        append(&mut owner, "a", number, 400 << 10);
        store.step();
    }
    let mut pages = now(owner.reader.pages(&actor(), "a", true)).unwrap();
    assert_eq!(before - free(), 1, "as one of the long ones");
    let mut lengths = Vec::new();
    while let Some(page) = Some(now(pages.next()).unwrap()).filter(|page| !page.is_empty()) {
        lengths.push(page.len());
    }
    assert_eq!(lengths, [2, 3]);
}

#[test]
fn reading_at_the_end_reads_no_records() {
    let memory = MemoryDisk::default();
    let store = open(&memory);
    let mut owner = own(&store, 0);
    let to = bank(3);
    for number in 1..=3 {
        owner.append(&turn("a", number, 10).send(&to, number)).unwrap();
        store.step();
    }
    memory.take_calls();
    for after in 0..3 {
        let (events, entries) =
            (now(owner.reader.events(after, 10)).unwrap(), now(owner.reader.outbox(&to, after, 10)).unwrap());
        assert!(events.iter().map(|event| event.position).eq(after + 1..=3));
        assert!(entries.iter().map(|entry| entry.sequence).eq(after + 1..=3));
        assert_eq!(now(owner.reader.events(after, 1)).unwrap().len(), 1);
        assert_eq!(now(owner.reader.outbox(&to, after, 1)).unwrap().len(), 1);
        assert!(reads(&memory) > 0);
    }
    for after in [3, 4, u64::MAX] {
        assert!(now(owner.reader.events(after, 10)).unwrap().is_empty());
        assert!(now(owner.reader.outbox(&to, after, 10)).unwrap().is_empty());
    }
    assert!(
        now(owner.reader.events(1, 0)).unwrap().is_empty() && now(owner.reader.outbox(&to, 1, 0)).unwrap().is_empty()
    );
    assert!(now(owner.reader.outbox(&bank(2), 0, 10)).unwrap().is_empty(), "nothing was sent there");
    assert_eq!(reads(&memory), 0);
}

#[test]
fn uncommitted_appends_are_not_read() {
    let store = open(&MemoryDisk::default());
    let mut owner = own(&store, 0);
    commit(&store, &mut owner, "a", 1..=2);
    let pending = owner.append(&turn("a", 3, 10).send(&bank(1), 3).set("timer", 5).dead(9)).unwrap();
    owner.snapshot("Account", "a", 3, b"three");
    let seen = |owner: &Owner| {
        let reader = &owner.reader;
        let heads = reader.outbox_heads();
        let loaded = now(owner.load("Account", "a"));
        (
            reader.position(),
            heads,
            reader.next_timer(),
            reader.dead_letter_count(),
            turns(owner, "a"),
            loaded.turns.len(),
        )
    };
    assert_eq!(seen(&owner), (2, vec![], None, 0, 2, 2));
    store.step();
    assert_eq!(owner.listener.through(), pending.ticket);
    let timer = Some(Timestamp::from_millis(5));
    assert_eq!(seen(&owner), (3, vec![(bank(1), 0, 1)], timer, 1, 3, 0));
}

#[test]
fn snapshot_of_another_stream_is_not_used() {
    let store = open(&MemoryDisk::default());
    let mut owner = own(&store, 0);
    commit(&store, &mut owner, "a", 1..=2);
    let shard = Arc::clone(&store.inner.shards()[0]);
    // As if the hashes of two streams were the same.
    for (actor, key, is_used) in
        [("Account", "b", false), ("Other", "a", false), ("Other", "b", false), ("Account", "a", true)]
    {
        let mut state = shard.state.lock();
        let stream = state.index.stream("Account", "a");
        state.pending.clear();
        let snapshot = Snapshot { turn: 1, version: 1, schema: 1, bytes: bytes::Bytes::new() };
        let located = Located { location: 0, snapshot };
        let named = NamedSnapshot { tag: 0, actor: actor.to_owned(), key: key.to_owned(), located };
        state.add_pending(stream, 0, named, SnapshotMemory::default().reserve(1).unwrap());
        drop(state);
        let loaded = now(owner.load("Account", "a"));
        assert_eq!(
            (loaded.snapshot.is_some(), loaded.turns.len()),
            (is_used, if is_used { 1 } else { 2 }),
            "{actor} {key}"
        );
    }
}

#[test]
fn stored_snapshot_is_used_after_an_opening() {
    let memory = MemoryDisk::default();
    let store = open(&memory);
    let mut owner = own(&store, 0);
    commit(&store, &mut owner, "a", 1..=5);
    owner.snapshot("Account", "a", 3, b"three");
    store.step();
    for store in [store, open(&kill(&memory))] {
        let owner = own(&store, 0);
        let loaded = now(owner.load("Account", "a"));
        assert_eq!((loaded.snapshot.unwrap().bytes, loaded.turns.len()), ("three".into(), 2));
        assert_eq!(turns(&owner, "a"), 5, "the history is whole");
    }
}

#[test]
fn turn_is_found_by_its_message_without_an_index() {
    let memory = MemoryDisk::default();
    let store = open(&memory);
    let mut owner = own(&store, 0);
    commit(&store, &mut owner, "a", 1..=3);
    // A message from inside is not found by its id.
    owner.append(&TurnBuilder::new("Account", "a", 4).at(4, 3)).unwrap();
    store.step();
    let find = |owner: &Owner, key: &str, number: u64| {
        let found = now(owner.reader.find_turn(&actor(), key, id(number))).unwrap();
        found.map(|turn| turn.number)
    };
    let check = |owner: &Owner| {
        assert_eq!([1, 2, 3, 4, 5].map(|number| find(owner, "a", number)), [Some(1), Some(2), Some(3), None, None]);
        assert_eq!(find(owner, "b", 1), None, "another stream");
    };
    check(&owner);
    store.checkpoint();
    check(&owner);
    memory.take_calls();
    assert_eq!(find(&owner, "b", 1), None);
    assert!(memory.take_calls().is_empty(), "an empty stream has no turns");
    // The index of older ids is not complete, so the stream is read.
    store.inner.ids.reset(100);
    check(&owner);
}

#[test]
fn damage_is_returned_and_remembered() {
    let memory = MemoryDisk::default();
    let store = open(&memory);
    let mut owner = own(&store, 0);
    commit(&store, &mut owner, "a", 1..=2);
    let killed = kill(&memory);
    let store = open(&killed);
    let owner = own(&store, 0);
    killed.fail("read log-", std::io::ErrorKind::Other);
    assert!(matches!(now(owner.reader.events(0, 9)), Err(StoreError::Io { .. })));
    assert!(store.issues().is_empty(), "an error of the disk is no damage");
    killed.repair();
    let segment = store.inner.segments.all()[0].clone();
    let file = store.inner.segments.file(&segment).unwrap();
    let last = store.inner.write_buffer.last().unwrap().offset;
    file.write_at(&[0xFF; 40], last - 60).unwrap();
    assert!(matches!(now(owner.reader.events(0, 9)), Err(StoreError::Corrupt { .. })));
    assert_eq!(store.issues().len(), 1);
    assert!(now(owner.reader.pages(&actor(), "a", true)).is_err() && now(owner.reader.history(&actor(), "a")).is_err());
}

#[test]
fn reader_returns_what_a_turn_has_left() {
    let store = open(&MemoryDisk::default());
    let mut owner = own(&store, 0);
    let (other, source) = (Name::new("Other").unwrap(), Source { shard: bank(1), kind: SourceKind::Direct });
    owner.append(&turn("a", 1, 10).set("early", 5).set("late", 50).dead(9)).unwrap();
    owner.append(&TurnBuilder::new("Account", "b", 2).from(&source, 7, 6)).unwrap();
    store.step();
    let reader = &owner.reader;
    let at = Timestamp::from_millis;
    let due = |now, limit| reader.timers_due(at(now), limit).into_iter().map(|timer| timer.name).collect::<Vec<_>>();
    assert_eq!(
        (due(4, 9), due(5, 9), due(50, 1), due(50, 9)),
        (vec![], vec!["early".to_owned()], vec!["early".to_owned()], vec!["early".to_owned(), "late".to_owned()],)
    );
    let first = TimerCursor { due: at(0), number: 0 };
    let page = reader.timers_of(&actor(), first, at(5), 9);
    assert_eq!((page.due.len(), page.next), (1, Some(at(50))));
    assert!(reader.timers_of(&other, first, at(50), 9).due.is_empty());
    assert_eq!((reader.timer_counts(), reader.next_timer()), (vec![(actor(), 2)], Some(at(5))));
    let letters = now(reader.dead_letters(None, 9)).unwrap();
    assert_eq!((letters.len(), letters[0].attempts, reader.dead_letter_count()), (1, 5, 1));
    assert!(now(reader.dead_letters(Some(letters[0].envelope.id), 9)).unwrap().is_empty());
    let mut streams = now(reader.streams()).unwrap();
    streams.sort();
    assert_eq!(streams, [(actor(), "a".to_owned()), (actor(), "b".to_owned())]);
    assert_eq!((reader.watermark(&source), reader.watermarks()), (6, vec![Watermark { source, through: 6 }]));
}
