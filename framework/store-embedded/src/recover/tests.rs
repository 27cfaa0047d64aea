//! Tests of the recovery of a log.

use std::io::ErrorKind;

use proptest::prelude::*;

use super::*;
use crate::ids::IdRuns;
use crate::tests::memory_disk::MemoryDisk;
use crate::tests::test_log::TestLog;
use crate::tests::test_store::{append, bank, commit, kill, open, own, small, turn, turns};
use whizbang_log::record::write_opened;

const SIZE: u64 = 4096;
const BATCH: u64 = BATCH_BYTES as u64;

/// Returns the record of an opening.
fn opened(number: u16, shards: u16, tag: u32, epoch: Epoch) -> Vec<u8> {
    let mut record = Vec::new();
    write_opened(&mut record, &bank(number), shards, tag, epoch);
    record
}

fn recovered(log: &TestLog) -> Result<Recovered, StoreError> {
    let disk = log.disk.disk();
    recover(&disk, &log.open(), &StreamHasher::new(1), &small(), &IdRuns::open(&disk), || 5)
}

/// Returns the reason and the offset of the damage in a log with these records.
fn damage(records: &[Vec<u8>]) -> String {
    let log = TestLog::new(&[SIZE]);
    log.batches(&[records]);
    match recovered(&log) {
        Err(StoreError::Corrupt { reason, .. }) => reason,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("no damage was found"),
    }
}

fn place(segment: u64, offset: u64, batch: u64) -> BatchLocation {
    BatchLocation { segment, offset, batch }
}

#[test]
fn empty_folder_gets_its_first_segment() {
    let log = TestLog::new(&[]);
    let found = recovered(&log).unwrap();
    assert_eq!((found.segment.number, found.segment.salt, found.offset), (1, 5, FIRST_OFFSET));
    assert_eq!((found.batch, found.last, found.since_checkpoint, found.checkpoint), (0, None, 0, 0));
    assert!(found.shards.is_empty() && matches!(found.spare, NextSegment::Pending));
    assert!(log.disk.bytes("log-0000000001")[FIRST_OFFSET as usize..].iter().all(|byte| *byte == 0), "no mark");
    for (kind, is_full) in [(ErrorKind::StorageFull, true), (ErrorKind::PermissionDenied, false)] {
        let log = TestLog::new(&[]);
        log.disk.fail("create", kind);
        let error = recovered(&log).map(drop).unwrap_err();
        assert_eq!(matches!(error, StoreError::Full { .. }), is_full, "{error}");
        assert_eq!(matches!(error, StoreError::Io { .. }), !is_full, "{error}");
    }
}

#[test]
fn log_continues_behind_its_last_batch() {
    for is_marked in [false, true] {
        let log = TestLog::new(&[SIZE, SIZE, SIZE]);
        log.batches(&[&[opened(0, 4, 0, 1)], &[opened(3, 4, 1, 1), opened(0, 4, 0, 7)]]);
        let end = log.batch(2, FIRST_OFFSET, 3, &[opened(3, 4, 1, 2)]);
        if is_marked {
            log.head(2, end, 3, 0);
        }
        let found = recovered(&log).unwrap();
        assert_eq!((found.segment.number, found.offset, found.batch), (2, end, 3));
        assert_eq!((found.last, found.since_checkpoint), (Some(place(2, FIRST_OFFSET, 3)), SIZE + end - FIRST_OFFSET));
        assert!(matches!(&found.spare, NextSegment::Ready(spare) if spare.number == 3));
        let shards = found.shards.iter().map(|shard| (&shard.id, shard.shards, shard.epoch, shard.index.committed()));
        assert!(shards.eq([(&bank(0), 4, 7, SIZE + end), (&bank(3), 4, 2, SIZE + end)]));
        assert_eq!(found.domains, HashMap::from([(bank(0).domain, 4)]));
        assert_eq!(found.snapshots_from, (0, 0));
    }
}

#[test]
fn conflicting_openings_are_damage() {
    let first = opened(1, 4, 0, 1);
    let conflict = "conflicting number of shards for its domain";
    let taken = "its shard's number belongs to another shard";
    for (record, reason) in [
        (opened(0, 5, 1, 1), conflict),
        (opened(0, 3, 1, 1), conflict),
        (opened(4, 4, 1, 1), conflict),
        (opened(5, 4, 1, 1), conflict),
        (opened(0, 4, 0, 1), taken),
        (opened(0, 4, 2, 1), taken),
    ] {
        assert_eq!(damage(&[first.clone(), record]), reason);
    }
    assert_eq!(damage(&[opened(0, 4, 1, 1)]), taken);
    let log = TestLog::new(&[SIZE]);
    log.batches(&[&[first, opened(3, 4, 1, 1)]]);
    assert_eq!(recovered(&log).unwrap().shards.len(), 2);
}

/// Returns a record of a watermark as a store writes it: shard 0 of the log, epoch 2.
fn advanced() -> Vec<u8> {
    use whizbang_core::store::{Source, SourceKind, Watermark};
    use whizbang_log::index::append::AppendContext;
    let watermark = Watermark { source: Source { shard: bank(2), kind: SourceKind::Direct }, through: 5 };
    let mut record = Vec::new();
    let at = AppendContext { tag: 0, epoch: 2, location: 700, committed: false };
    Index::new(StreamHasher::new(1)).append_advance(&watermark, at, &mut record);
    record
}

#[test]
fn record_needs_an_opened_shard_and_epoch() {
    assert_eq!(damage(&[advanced()]), "unknown shard");
    assert_eq!(damage(&[opened(0, 4, 0, 1), advanced()]), "its epoch was never opened");
    for epoch in [2, 3] {
        let log = TestLog::new(&[SIZE]);
        log.batches(&[&[opened(0, 4, 0, epoch), advanced()]]);
        assert_eq!(recovered(&log).unwrap().shards[0].index.watermarks().len(), 1);
    }
}

/// Returns the bytes of all segments.
fn bytes(log: &TestLog) -> Vec<Vec<u8>> {
    log.segments.iter().map(|segment| log.disk.bytes(&segment.name())).collect()
}

/// Puts garbage at these places of a log, cleans it, and expects what the log was before, with a mark at its end.
fn check_clean(log: &TestLog, garbage: &[(u64, u64, usize)], is_marked: bool) {
    let before = bytes(log);
    let end = scan::follow(&log.open(), BatchLocation::FIRST, |_, _| Ok(())).unwrap();
    assert_eq!(end.marked, is_marked);
    for (segment, offset, length) in garbage {
        log.put(*segment, *offset, &vec![0xA5; *length]);
    }
    log.disk.take_calls();
    clean_end(&log.open(), &end).unwrap();
    let marked = TestLog { disk: MemoryDisk::default(), segments: log.segments.clone() };
    log.segments.iter().zip(&before).for_each(|(segment, bytes)| marked.disk.put(&segment.name(), bytes));
    if end.last.is_some() {
        marked.head(end.place.segment, end.place.offset, end.place.batch - 1, 0);
    }
    assert!(bytes(log) == bytes(&marked), "{garbage:?}");
}

#[test]
fn everything_behind_the_end_is_cleared() {
    for is_marked in [false, true] {
        let size = 20_000;
        let log = TestLog::new(&[SIZE, size, 9000, SIZE]);
        log.batches(&[&[opened(0, 4, 0, 1)]]);
        let end = log.batch(2, FIRST_OFFSET, 2, &[opened(0, 4, 0, 2)]);
        if is_marked {
            log.head(2, end, 2, 0);
        }
        let free = if is_marked { end + BATCH } else { end };
        for garbage in [
            vec![],
            vec![(2, free, 1)],
            vec![(2, free, (size - free) as usize)],
            vec![(2, free + 100, 5000), (2, size - 1, 1), (3, FIRST_OFFSET, 1)],
            vec![(3, FIRST_OFFSET, 9000 - 512), (4, SIZE - 1, 1)],
            vec![(2, 8192, 4096), (2, 12_288, 4097), (3, 8999, 1)],
        ] {
            check_clean(&log, &garbage, is_marked);
            // As it was before the first check.
            if !is_marked {
                log.put(2, end, &[0; BATCH_BYTES]);
            }
        }
    }
    let empty = TestLog::new(&[SIZE, SIZE]);
    check_clean(&empty, &[(1, FIRST_OFFSET, 30), (1, 2000, 1), (2, 1000, 500)], false);
    check_clean(&empty, &[], false);
    assert!(empty.disk.take_calls_of("write").is_empty());
}

#[test]
fn marked_and_clean_log_is_not_written() {
    let log = TestLog::new(&[SIZE, SIZE]);
    let end = log.batches(&[&[opened(0, 4, 0, 1)], &[opened(0, 4, 0, 2)]]);
    log.head(1, end, 2, 0);
    check_clean(&log, &[], true);
    let calls = log.disk.take_calls();
    assert!(!calls.iter().any(|call| call.starts_with("write") || call.starts_with("sync")), "{calls:?}");
}

#[test]
fn last_batch_without_a_mark_is_written_again() {
    let log = TestLog::new(&[SIZE, SIZE, SIZE]);
    let last = log.batches(&[&[opened(0, 4, 0, 1)]]);
    let end = log.batch(1, last, 2, &[opened(0, 4, 0, 2)]);
    check_clean(&log, &[(1, end + 50, 10), (2, 600, 1)], false);
    let calls = log.disk.take_calls();
    let calls: Vec<_> = calls.iter().filter(|call| call.starts_with("write") || call.starts_with("sync")).collect();
    // An earlier flush may have failed, and a repeated one would not report that.
    let expected = [
        format!("write log-0000000001 {last}+{}", end - last),
        format!("write log-0000000001 {}+{}", end + 50, SIZE - end - 50),
        "sync log-0000000001".to_owned(),
        format!("write log-0000000001 {end}+24"),
        "sync log-0000000001".to_owned(),
        format!("write log-0000000002 600+{}", SIZE - 600),
        "sync log-0000000002".to_owned(),
    ];
    assert_eq!(calls, expected.iter().collect::<Vec<_>>());
}

#[test]
fn growth_since_the_checkpoint_is_known_after_an_opening() {
    let memory = MemoryDisk::default();
    let store = open(&memory);
    let mut owner = own(&store, 0);
    commit(&store, &mut owner, "a", 1..=40);
    let last = store.inner.write_buffer.last().unwrap();
    assert!(last.segment > 1);
    store.checkpoint();
    commit(&store, &mut owner, "a", 41..=60);
    let begin = store.inner.segments.location(last).unwrap();
    let reopened = open(&kill(&memory));
    assert_eq!(reopened.inner.flush_queue.growth(), store.inner.write_buffer.committed() - begin);
    assert_eq!(turns(&own(&reopened, 0), "a"), 60);
}

/// Returns the segments whose records were read since the last time.
fn read_segments(memory: &MemoryDisk) -> Vec<String> {
    let mut read = memory.take_calls_of("read log-");
    read.retain(|call| !call.ends_with(" 0+52"));
    let mut read: Vec<_> = read.iter().map(|call| call.split(' ').nth(1).unwrap().to_owned()).collect();
    read.dedup();
    read
}

#[test]
fn opening_reads_only_the_log_since_the_checkpoint() {
    let memory = MemoryDisk::default();
    let store = open(&memory);
    let mut owner = own(&store, 0);
    commit(&store, &mut owner, "a", 1..=60);
    let last = store.inner.write_buffer.last().unwrap().segment;
    assert!(last > 3);
    store.checkpoint();
    let killed = kill(&memory);
    killed.take_calls();
    let reopened = open(&killed);
    let read = read_segments(&killed);
    assert!(!read.is_empty() && read.iter().all(|name| *name >= segment::name(last)), "{read:?}");
    assert_eq!(reopened.inner.ids.through(), store.inner.write_buffer.committed());
    drop(reopened);
    let closed = kill(&memory);
    drop(open(&closed));
    closed.take_calls();
    drop(open(&closed));
    let read = read_segments(&closed);
    assert!(read.iter().all(|name| *name >= segment::name(last)), "after a closing as well: {read:?}");
}

#[test]
fn ids_of_a_newer_log_are_read_again() {
    let memory = MemoryDisk::default();
    let store = open(&memory);
    let mut owner = own(&store, 0);
    commit(&store, &mut owner, "a", 1..=3);
    let early = kill(&memory);
    commit(&store, &mut owner, "a", 4..=6);
    store.checkpoint();
    let restored = kill(&early);
    for name in memory.names().iter().filter(|name| name.starts_with("ids")) {
        restored.put(name, &memory.bytes(name));
    }
    let reopened = open(&restored);
    assert_eq!((reopened.inner.ids.from(), reopened.inner.ids.through()), (0, 0));
    let owner = own(&reopened, 0);
    assert_eq!((1..=6).map(|number| handled(&owner, number)).collect::<Vec<_>>(), [1, 2, 3, 0, 0, 0]);
}

/// Returns the number of the turn that has handled a message; 0 if none has.
fn handled(owner: &whizbang_conformance::store::Owner, number: u64) -> u64 {
    let id = turn("a", number, 1).write(|turn| turn.id);
    let actor = Name::new("Account").unwrap();
    let found = crate::tests::test_store::now(owner.reader.find_turn(&actor, "a", id)).unwrap();
    found.map_or(0, |turn| turn.number)
}

#[test]
fn lost_ids_are_read_from_the_whole_log() {
    let memory = MemoryDisk::default();
    let store = open(&memory);
    let mut owner = own(&store, 0);
    commit(&store, &mut owner, "a", 1..=60);
    store.checkpoint();
    let lost = kill(&memory);
    crate::disk::Disk::remove(&lost, "ids").unwrap();
    lost.take_calls();
    let reopened = open(&lost);
    assert!(read_segments(&lost).contains(&"log-0000000001".to_owned()));
    assert_eq!(reopened.inner.flush_queue.growth(), reopened.inner.write_buffer.committed() - FIRST_OFFSET);
    let owner = own(&reopened, 0);
    assert_eq!([1, 30, 60, 61].map(|number| handled(&owner, number)), [1, 30, 60, 0]);

    // With damage before the checkpoint, which is not needed to open: ids are found by reading the stream.
    let damaged = kill(&memory);
    crate::disk::Disk::remove(&damaged, "ids").unwrap();
    let mut log = damaged.bytes("log-0000000001");
    log[1000] ^= 1;
    damaged.put("log-0000000001", &log);
    let reopened = open(&damaged);
    assert_eq!(reopened.inner.ids.from(), store.inner.write_buffer.committed());
    assert_eq!(own(&reopened, 0).reader.position(), 60);
}

#[test]
fn log_shorter_than_its_checkpoint_is_refused() {
    let memory = MemoryDisk::default();
    let store = open(&memory);
    let mut owner = own(&store, 0);
    let empty = kill(&memory);
    commit(&store, &mut owner, "a", 1..=3);
    let early = kill(&memory);
    commit(&store, &mut owner, "a", 4..=5);
    store.checkpoint();
    let late = kill(&memory);
    for log in [&empty, &early] {
        let mixed = kill(log);
        for name in late.names().iter().filter(|name| !name.starts_with("log-")) {
            mixed.put(name, &late.bytes(name));
        }
        let refused = crate::EmbeddedStore::open_on(mixed.disk(), &small(), Some(1)).map(drop);
        assert!(matches!(&refused, Err(StoreError::Corrupt { reason, .. }) if reason.starts_with("the log ends here")));
    }
    for name in late.names().iter().filter(|name| name.starts_with("log-")) {
        crate::disk::Disk::remove(&late, name).unwrap();
    }
    let refused = crate::EmbeddedStore::open_on(late.disk(), &small(), Some(1)).map(drop);
    assert!(matches!(&refused, Err(StoreError::Corrupt { reason, .. }) if reason.starts_with("the log ends here")));
}

#[test]
fn short_log_is_read_without_a_run_of_ids() {
    let memory = MemoryDisk::default();
    let store = open(&memory);
    let mut owner = own(&store, 0);
    commit(&store, &mut owner, "a", 1..=50);
    let killed = kill(&memory);
    let reopened = open(&killed);
    assert!(!killed.names().iter().any(|name| name.starts_with("ids")));
    assert_eq!([1, 50].map(|number| handled(&own(&reopened, 0), number)), [1, 50]);
}

#[test]
fn ids_of_a_replay_move_to_a_run() {
    let memory = MemoryDisk::default();
    let store = open(&memory);
    let mut owner = own(&store, 0);
    commit(&store, &mut owner, "a", 1..=5);
    let segments = Segments::read(&memory.disk()).unwrap();
    let hasher = store.inner.hasher.clone();
    let mut log = LogReplay::new(&segments, &hasher, Vec::new(), 0);
    scan::follow(&segments, BatchLocation::FIRST, |location, record| log.replay(location, record)).unwrap();
    let ids = IdRuns::open(&MemoryDisk::default().disk());
    log.write_ids(&ids, 4000).unwrap();
    assert_eq!((ids.len(), ids.through()), (1, 4000));
    log.write_ids(&ids, 5000).unwrap();
    assert_eq!((ids.len(), ids.through()), (1, 5000), "they are no longer in memory");
    let index = &log.shards[0].index;
    let id = index.id(index.stream("Account", "a"), turn("a", 3, 1).write(|turn| turn.id));
    assert_eq!(ids.find(id).unwrap().len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn reopened_store_equals_the_one_that_was_killed(
        steps in proptest::collection::vec((0u8..10, 0usize..3, 1usize..900), 1..60),
    ) {
        const KEYS: [&str; 3] = ["a", "b", "c"];
        let memory = MemoryDisk::default();
        let store = open(&memory);
        let mut owner = own(&store, 0);
        let mut counts = [0; 3];
        for (step, key, length) in steps {
            match step {
                0 => store.checkpoint(),
                1 => owner = own(&store, 0),
                2 => owner.snapshot("Account", KEYS[key], counts[key], b"state"),
                3 => store.step(),
                _ => {
                    counts[key] += 1;
                    append(&mut owner, KEYS[key], counts[key], length);
                    store.step();
                }
            }
        }
        let killed = kill(&memory);
        let reopened = open(&killed);
        let again = own(&reopened, 0);
        prop_assert_eq!(again.reader.position(), counts.iter().sum::<u64>());
        prop_assert!(again.writer.epoch() > owner.writer.epoch());
        for (key, count) in KEYS.iter().zip(counts) {
            prop_assert_eq!(turns(&again, key) as u64, count);
            let loaded = crate::tests::test_store::now(again.load("Account", key));
            let known = loaded.snapshot.map_or(0, |snapshot| snapshot.turn);
            prop_assert_eq!(known + loaded.turns.len() as u64, count);
        }
    }
}
