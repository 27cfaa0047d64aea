//! Tests of snapshots.

use std::io::ErrorKind;

use super::*;
use crate::tests::memory_disk::MemoryDisk;

/// The bits overlap with those of the numbers of files.
const SEED: u64 = 0xFFFF_0000_FFFF_000F;

fn named(key: &str, turn: u64, length: usize) -> NamedSnapshot {
    let snapshot = Snapshot { turn, version: turn + 1, schema: 3, bytes: Bytes::from(vec![turn as u8; length]) };
    NamedSnapshot {
        tag: 2,
        actor: "account".to_owned(),
        key: key.to_owned(),
        located: Located { location: turn * 100, snapshot },
    }
}

type Found = Vec<(NamedSnapshot, SnapshotLocation)>;

/// Opens the files and returns the snapshots behind a place.
fn open(memory: &MemoryDisk, from: (u64, u64)) -> (Snapshots, Found) {
    let mut found = Vec::new();
    let opened = Snapshots::open(&memory.disk(), SEED, from, |named, stored| found.push((named, stored)));
    (opened.unwrap(), found)
}

fn text(named: &NamedSnapshot) -> String {
    format!("{named:?}")
}

fn read(snapshots: &Snapshots, stored: SnapshotLocation, key: &str) -> Option<u64> {
    snapshots.read(stored, "account", key).map(|located| located.snapshot.turn)
}

#[test]
fn snapshots_are_read_as_they_were_written() {
    let memory = MemoryDisk::default();
    let (snapshots, found) = open(&memory, (0, 0));
    assert!(found.is_empty() && memory.names().is_empty());
    assert_eq!(snapshots.end(), (0, 0));
    let all = [named("a", 1, 10), named("b", 2, 0), named("a", 3, 5000)];
    let stored: Vec<_> = all.iter().map(|named| snapshots.write(named).unwrap()).collect();
    assert_eq!(memory.names(), ["snapshots-0000000001"]);
    let length = memory.bytes("snapshots-0000000001").len() as u64;
    let mut offset = 0;
    for (stored, named) in stored.iter().zip(&all) {
        assert_eq!((stored.file, stored.offset, stored.turn), (1, offset, named.located.snapshot.turn));
        offset += stored.length;
        let located = snapshots.read(*stored, "account", &named.key).unwrap();
        assert_eq!(format!("{located:?}"), format!("{:?}", named.located));
    }
    assert_eq!((offset, snapshots.end()), (length, (1, length)));
    let (reopened, found) = open(&memory, (0, 0));
    assert_eq!(reopened.end(), (1, length));
    assert!(found.iter().map(|(named, stored)| (text(named), *stored)).eq(all.iter().map(text).zip(stored)));
}

#[test]
fn snapshot_of_another_stream_or_turn_is_not_used() {
    let (snapshots, _) = open(&MemoryDisk::default(), (0, 0));
    let stored = snapshots.write(&named("a", 5, 100)).unwrap();
    assert_eq!(read(&snapshots, stored, "a"), Some(5));
    assert_eq!(read(&snapshots, stored, "b"), None);
    assert!(snapshots.read(stored, "other", "a").is_none());
    assert_eq!(read(&snapshots, SnapshotLocation { turn: 6, ..stored }, "a"), None);
    assert_eq!(read(&snapshots, SnapshotLocation { file: 2, ..stored }, "a"), None);
    assert_eq!(read(&snapshots, SnapshotLocation { offset: 1, ..stored }, "a"), None);
    assert_eq!(read(&snapshots, SnapshotLocation { length: stored.length - 1, ..stored }, "a"), None);
}

#[test]
fn damaged_snapshot_counts_as_missing() {
    let memory = MemoryDisk::default();
    let (snapshots, _) = open(&memory, (0, 0));
    let stored = [1, 2, 3].map(|turn| snapshots.write(&named("a", turn, 20)).unwrap());
    let whole = memory.bytes("snapshots-0000000001");
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 2;
        memory.put("snapshots-0000000001", &damaged);
        let (snapshots, found) = open(&memory, (0, 0));
        let hit =
            stored.iter().position(|stored| (stored.offset..stored.offset + stored.length).contains(&(at as u64)));
        let hit = hit.unwrap();
        assert_eq!(found.len(), hit, "byte {at}: what follows a damaged one is not read");
        assert_eq!(snapshots.end(), (1, stored[hit].offset), "the next one overwrites it");
        for (nth, stored) in stored.iter().enumerate() {
            assert_eq!(read(&snapshots, *stored, "a").is_some(), nth != hit, "byte {at}");
        }
    }
}

#[test]
fn only_snapshots_behind_the_checkpoint_are_read() {
    let memory = MemoryDisk::default();
    let (snapshots, _) = open(&memory, (0, 0));
    let mut stored = Vec::new();
    for file in 0..3 {
        for nth in 1..=2 {
            stored.push(snapshots.write(&named("a", file * 10 + nth, 30)).unwrap());
        }
        if file < 2 {
            assert_eq!(snapshots.rotate().unwrap(), file + 1);
        }
    }
    for (from, expected) in [
        ((0, 0), vec![1, 2, 11, 12, 21, 22]),
        ((1, 0), vec![1, 2, 11, 12, 21, 22]),
        ((1, stored[1].offset), vec![2, 11, 12, 21, 22]),
        ((2, stored[3].offset), vec![12, 21, 22]),
        ((2, 1 << 40), vec![21, 22]),
        ((3, stored[5].offset), vec![22]),
        ((3, snapshots.end().1), vec![]),
        ((4, 0), vec![]),
    ] {
        let (opened, found) = open(&memory, from);
        let turns: Vec<_> = found.iter().map(|(named, _)| named.located.snapshot.turn).collect();
        assert_eq!(turns, expected, "{from:?}");
        for stored in &stored {
            assert_eq!(read(&opened, *stored, "a"), Some(stored.turn), "a file that is not scanned is read");
        }
    }
    let (opened, _) = open(&memory, (3, snapshots.end().1));
    assert_eq!(opened.end(), snapshots.end());
    assert_eq!(opened.write(&named("a", 23, 5)).unwrap().offset, snapshots.end().1);
}

#[test]
fn copied_snapshots_survive_the_removal_of_old_files() {
    let memory = MemoryDisk::default();
    let (snapshots, _) = open(&memory, (0, 0));
    let old: Vec<_> = (1..=3).map(|turn| snapshots.write(&named("a", turn, 30)).unwrap()).collect();
    assert_eq!(snapshots.rotate().unwrap(), 1);
    assert_eq!(snapshots.end(), (2, 0));
    let copy = snapshots.copy(old[1]).unwrap();
    assert_eq!(copy, SnapshotLocation { file: 2, offset: 0, ..old[1] });
    assert_eq!(snapshots.end(), (2, copy.length));
    assert!(snapshots.copy(SnapshotLocation { offset: 1, ..old[0] }).is_none());
    assert_eq!(memory.names().len(), 2);
    snapshots.remove_old().unwrap();
    assert_eq!(memory.names(), ["snapshots-0000000002"]);
    assert_eq!((read(&snapshots, copy, "a"), read(&snapshots, old[0], "a")), (Some(2), None));
    let (opened, found) = open(&memory, (0, 0));
    assert_eq!((found.len(), found[0].1, read(&opened, copy, "a")), (1, copy, Some(2)));
    memory.take_calls();
    snapshots.remove_old().unwrap();
    assert!(memory.take_calls().is_empty());
}

#[test]
fn current_file_is_flushed() {
    let memory = MemoryDisk::default();
    let (snapshots, _) = open(&memory, (0, 0));
    memory.take_calls();
    snapshots.sync().unwrap();
    assert!(memory.take_calls().is_empty(), "there is no file yet");
    snapshots.write(&named("a", 1, 1)).unwrap();
    assert!(memory.take_calls_of("sync").is_empty(), "a snapshot is a cache");
    snapshots.sync().unwrap();
    assert_eq!(memory.take_calls(), ["sync snapshots-0000000001"]);
    snapshots.rotate().unwrap();
    memory.take_calls();
    snapshots.sync().unwrap();
    assert_eq!(memory.take_calls(), ["sync snapshots-0000000002"]);
    memory.fail("sync", ErrorKind::Other);
    assert!(snapshots.sync().is_err());
}

#[test]
fn failed_write_is_overwritten_by_the_next() {
    let memory = MemoryDisk::default();
    let (snapshots, _) = open(&memory, (0, 0));
    snapshots.write(&named("a", 1, 10)).unwrap();
    let end = snapshots.end();
    memory.fail("write", ErrorKind::StorageFull);
    assert!(snapshots.write(&named("a", 2, 500)).is_err());
    assert_eq!(snapshots.end(), end);
    memory.repair();
    assert_eq!(snapshots.write(&named("a", 3, 10)).unwrap().offset, end.1);
    memory.fail("open", ErrorKind::PermissionDenied);
    let (opened, found) = open(&memory, (0, 0));
    assert!(found.is_empty(), "an unreadable file is ignored");
    memory.repair();
    assert_eq!(opened.write(&named("a", 4, 10)).unwrap().file, 2, "and not written to");
}

/// Returns the reads of the opening: offset and length.
fn reads(memory: &MemoryDisk) -> Vec<(u64, u64)> {
    let calls = memory.take_calls_of("read");
    let read = calls.iter().map(|call| call.rsplit_once(' ').unwrap().1.split_once('+').unwrap());
    read.map(|(offset, length)| (offset.parse().unwrap(), length.parse().unwrap())).collect()
}

#[test]
fn large_and_small_snapshots_are_scanned_in_pieces() {
    const PIECE: usize = 1 << 20;
    let memory = MemoryDisk::default();
    let (snapshots, _) = open(&memory, (0, 0));
    let lengths = [3, PIECE - 100, 200, 3 * PIECE, 10, PIECE / 2, PIECE / 2, 1, 7];
    for (length, turn) in lengths.into_iter().zip(1..) {
        snapshots.write(&named("a", turn, length)).unwrap();
    }
    memory.take_calls();
    let (opened, found) = open(&memory, (0, 0));
    let found_lengths = found.iter().map(|(named, _)| named.located.snapshot.bytes.len());
    assert!(found_lengths.eq(lengths));
    assert_eq!(opened.end(), snapshots.end());
    assert!(reads(&memory).len() <= 9);
    let many = MemoryDisk::default();
    let (snapshots, _) = open(&many, (0, 0));
    for turn in 1..=2000 {
        snapshots.write(&named("a", turn, 970)).unwrap();
    }
    many.take_calls();
    assert_eq!(open(&many, (0, 0)).1.len(), 2000);
    let reads = reads(&many);
    assert!(reads.len() <= 4 && reads.iter().all(|(_, length)| *length == PIECE as u64), "{reads:?}");
}

#[test]
fn false_length_reads_no_more_than_a_piece() {
    let memory = MemoryDisk::default();
    let (snapshots, _) = open(&memory, (0, 0));
    let stored = snapshots.write(&named("a", 1, 10)).unwrap();
    let whole = memory.bytes("snapshots-0000000001");
    for length in [u32::MAX, 1 << 24, 100, 20, 13, 12, 4, 0] {
        let mut bytes = whole.clone();
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&[1; 12]);
        memory.put("snapshots-0000000001", &bytes);
        memory.take_calls();
        let (opened, found) = open(&memory, (0, 0));
        assert_eq!((found.len(), opened.end()), (1, (1, stored.length)), "{length}");
        assert!(reads(&memory).iter().all(|(_, length)| *length <= 1 << 20), "{length}");
    }
    for cut in 0..whole.len() {
        memory.put("snapshots-0000000001", &whole[..cut]);
        let (opened, found) = open(&memory, (0, 0));
        assert_eq!((found.len(), opened.end()), (0, (1, 0)), "cut to {cut}");
    }
}
