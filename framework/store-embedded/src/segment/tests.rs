//! Tests of segments.

use std::io::ErrorKind;

use super::*;
use crate::tests::memory_disk::MemoryDisk;
use crate::tests::test_log::TestLog;

const MIB: u64 = 1 << 20;

fn small() -> EmbeddedConfig {
    EmbeddedConfig::default().segment_bytes(4096)
}

/// Returns the damage that is found when the log is opened: the file, the offset, and the reason.
fn damage(memory: &MemoryDisk) -> (String, u64, String) {
    match Segments::read(&memory.disk()) {
        Err(StoreError::Corrupt { file, offset, reason }) => (file.display().to_string(), offset, reason),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("no damage was found"),
    }
}

#[test]
fn header_is_read_as_it_was_written() {
    let segment = Segment { number: 3, start: 8192, size: 513, salt: u64::MAX };
    let head = segment.head();
    assert_eq!((head.len(), segment.end(), segment.name().as_str()), (HEAD_BYTES, 8705, "log-0000000003"));
    assert_eq!(Segment::read(&head), Some(segment.clone()));
    for at in 0..HEAD_BYTES {
        let mut damaged = head.clone();
        damaged[at] ^= 1;
        assert_eq!(Segment::read(&damaged), None, "byte {at}");
        assert_eq!(Segment::read(&head[..at]), None, "cut to {at}");
    }
    assert_eq!(Segment::read(&Segment { size: FIRST_OFFSET, ..segment.clone() }.head()), None, "no room for records");
    assert_eq!(Segment::read(&Segment { start: u64::MAX - 512, ..segment }.head()), None, "beyond all locations");
}

#[test]
fn other_magic_with_a_valid_checksum_is_refused() {
    let mut head = Segment { number: 1, start: 0, size: 4096, salt: 1 }.head();
    head[7] += 1;
    let sum = sum(0, 0, 0, &head[..40]).to_le_bytes();
    head[48..].copy_from_slice(&sum);
    assert_eq!(Segment::read(&head), None);
}

#[test]
fn locations_are_those_of_one_long_file() {
    let log = TestLog::new(&[4096, 8192, 600]);
    let segments = log.open();
    assert_eq!(segments.all().iter().map(|segment| (**segment).clone()).collect::<Vec<_>>(), log.segments);
    for (location, number) in [(0, 1), (1, 1), (4095, 1), (4096, 2), (12_287, 2), (12_288, 3), (12_887, 3)] {
        assert_eq!(segments.at(location).map(|segment| segment.number), Some(number), "{location}");
    }
    assert_eq!(segments.at(12_888), None);
    let place = |segment, offset| BatchLocation { segment, offset, batch: 1 };
    assert_eq!(segments.location(place(1, 700)).unwrap(), 700);
    assert_eq!(segments.location(place(3, 513)).unwrap(), 12_801);
    assert!(matches!(segments.location(place(4, 512)), Err(StoreError::Closed)));
    assert_eq!(segments.path(&log.segments[1]), "memory/log-0000000002");
    for (location, file, offset) in [(5000, "memory/log-0000000002", 904), (20_000, "memory/", 20_000)] {
        match segments.damaged(location, "testing") {
            StoreError::Corrupt { file: found, offset: at, reason } => {
                assert_eq!((found.display().to_string().as_str(), at, reason.as_str()), (file, offset, "testing"));
            }
            error => panic!("{error}"),
        }
    }
}

#[test]
fn empty_log_begins_in_its_future_segment() {
    let segments = Segments::read(&MemoryDisk::default().disk()).unwrap();
    assert_eq!((segments.all().len(), segments.at(0)), (0, None));
    assert_eq!(segments.location(BatchLocation::FIRST).unwrap(), FIRST_OFFSET);
    let other = BatchLocation { batch: 2, ..BatchLocation::FIRST };
    assert!(matches!(segments.location(other), Err(StoreError::Closed)));
}

#[test]
fn missing_or_exchanged_files_are_named() {
    let log = TestLog::new(&[4096, 4096, 4096]);
    log.disk.put("log.txt", b"another file");
    log.open();
    let [first, second, third] = [1, 2, 3].map(|number| log.disk.bytes(&name(number)));
    log.disk.remove(&name(2)).unwrap();
    let missing = "the file is missing, but later segments exist";
    assert_eq!(damage(&log.disk), ("memory/log-0000000002".to_owned(), 0, missing.to_owned()));
    log.disk.put(&name(2), &third);
    let exchanged = "its header has another segment number than its name";
    assert_eq!(damage(&log.disk), ("memory/log-0000000002".to_owned(), 0, exchanged.to_owned()));
    // The number is right, but the location is that of another log.
    log.disk.put(&name(2), &[Segment { number: 2, start: 5000, size: 4096, salt: 1 }.head(), vec![0; 4044]].concat());
    assert_eq!(damage(&log.disk), ("memory/log-0000000002".to_owned(), 0, exchanged.to_owned()));
    log.disk.put(&name(2), &second[..20]);
    assert_eq!(damage(&log.disk).2, "the segment's header is damaged");
    log.disk.put(&name(2), &second);
    for (length, is_whole) in [(4095, false), (4096, true), (4097, true)] {
        let mut resized = first.clone();
        resized.resize(length, 0);
        log.disk.put(&name(1), &resized);
        if is_whole {
            log.open();
        } else {
            let short = "the file is shorter than its header says";
            assert_eq!(damage(&log.disk), ("memory/log-0000000001".to_owned(), 4095, short.to_owned()));
        }
    }
}

#[test]
fn unfinished_segment_is_removed_by_the_opening() {
    let log = TestLog::new(&[4096]);
    log.disk.put("log.new", b"unfinished");
    log.disk.take_calls();
    Segments::read(&log.disk.disk()).unwrap();
    assert!(log.disk.names().contains(&"log.new".to_owned()), "a reader changes nothing");
    assert!(!log.disk.take_calls().contains(&"sync".to_owned()));
    Segments::find(&log.disk.disk()).unwrap();
    let calls = log.disk.take_calls();
    assert!(calls.starts_with(&["names".to_owned(), "remove log.new".to_owned(), "sync".to_owned()]), "{calls:?}");
    Segments::find(&log.disk.disk()).unwrap();
    assert!(log.disk.take_calls_of("remove").is_empty());
}

#[test]
fn segment_is_filled_with_zeros_before_it_appears() {
    for (size, writes, flushes) in [(4096, 1, 1), (70_000, 2, 1), (2 * MIB, 32, 2), (5 * MIB - 1, 80, 3)] {
        let memory = MemoryDisk::default();
        let segments = Segments::read(&memory.disk()).unwrap();
        let segment = Segment { number: 1, start: 0, size, salt: 5 };
        memory.take_calls();
        segments.make(&segment).unwrap();
        let calls = memory.take_calls();
        let count = |call: &str| calls.iter().filter(|found| found.starts_with(call)).count();
        assert_eq!((count("write"), count("sync log.new")), (writes + 1, flushes), "{size}");
        let end = ["write log.new 0+52", "sync log.new", "rename log.new log-0000000001", "sync"];
        assert!(calls.ends_with(&end.map(str::to_owned)), "{calls:?}");
        let mut expected = segment.head();
        expected.resize(size as usize, 0);
        assert!(memory.bytes("log-0000000001") == expected, "{size}");
    }
}

#[test]
fn next_segment_is_created_once() {
    let memory = MemoryDisk::default();
    let segments = Segments::read(&memory.disk()).unwrap();
    let first = segments.preallocate(0, &small(), 11).unwrap();
    assert_eq!(*first, Segment { number: 1, start: 0, size: 4096, salt: 11 });
    memory.take_calls();
    assert_eq!(segments.preallocate(0, &small(), 12).unwrap(), first, "one that a crash has left is used");
    assert!(memory.take_calls().is_empty());
    let second = segments.preallocate(1, &small().segment_bytes(8192), 12).unwrap();
    assert_eq!(*second, Segment { number: 2, start: 4096, size: 8192, salt: 12 });
    assert_eq!(segments.preallocate(0, &small(), 13).unwrap(), first);
    assert_eq!(segments.all(), [first, second]);
    assert_eq!(Segments::read(&memory.disk()).unwrap().all(), segments.all());
}

#[test]
fn full_disk_gets_a_smaller_segment() {
    let memory = MemoryDisk::default();
    let segments = Segments::read(&memory.disk()).unwrap();
    let config = EmbeddedConfig::default();
    assert_eq!(segments.preallocate(0, &config, 1).unwrap().size, 4 * MIB);
    memory.take_calls();
    memory.set_size(Some(8 * MIB as usize));
    assert_eq!(segments.preallocate(1, &config, 2).unwrap().size, 4 * MIB, "not 16 or 8, but as small as the first");
    assert_eq!(memory.take_calls_of("create").len(), 3);
    memory.set_size(Some(12 * MIB as usize - 1));
    let error = segments.preallocate(2, &config, 3).unwrap_err();
    assert!(is_full(&error), "{error}");
    let calls = memory.take_calls();
    let count = |call: &str| calls.iter().filter(|found| *found == call).count();
    assert_eq!((count("create log.new"), count("remove log.new")), (5, 5), "64, 32, 16, 8 and 4 MiB");
    assert_eq!((memory.names().len(), segments.all().len()), (2, 2));
}

#[test]
fn other_errors_are_reported_at_once() {
    let memory = MemoryDisk::default();
    let segments = Segments::read(&memory.disk()).unwrap();
    memory.fail("rename", ErrorKind::PermissionDenied);
    memory.take_calls();
    let error = segments.preallocate(0, &EmbeddedConfig::default(), 1).unwrap_err();
    assert_eq!((error.kind(), memory.take_calls_of("create").len()), (ErrorKind::PermissionDenied, 1));
    assert!(memory.names().is_empty() && segments.all().is_empty());
}

#[test]
fn files_of_few_segments_stay_open() {
    let log = TestLog::new(&[600; OPEN_FILES + 2]);
    let segments = log.open();
    log.disk.take_calls();
    let opens = |number: usize| {
        segments.file(&log.segment(number as u64)).unwrap();
        log.disk.take_calls_of("open").len()
    };
    for number in 1..=OPEN_FILES {
        assert_eq!((opens(number), opens(number)), (1, 0), "{number}");
    }
    assert_eq!(opens(1), 0, "all of them are open");
    assert_eq!((opens(OPEN_FILES + 1), opens(2), opens(1)), (1, 0, 1), "the one opened first was closed");
    assert_eq!((opens(3), opens(2)), (0, 1));
    let mut byte = [0; 16];
    segments.file(&log.segment(9)).unwrap().read_at(&mut byte, 0).unwrap();
    assert_eq!(byte[8], 9, "it is the file of that segment");
}
