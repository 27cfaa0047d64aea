//! Tests of the log reader.

use super::*;
use crate::segment::FIRST_OFFSET;
use crate::tests::test_log::TestLog;
use proptest::prelude::*;

fn record(number: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| (number * 31 + at) as u8).collect()
}

/// Returns a log with one batch of these records, and their locations.
fn log_of(size: u64, records: &[Vec<u8>]) -> (TestLog, Vec<Location>) {
    let log = TestLog::new(&[FIRST_OFFSET + 88, size]);
    log.batch(2, FIRST_OFFSET, 1, records);
    let mut location = log.segment(2).start + FIRST_OFFSET + 24;
    let locations = records.iter().map(|record| {
        let at = location;
        location += (FRAME_BYTES + record.len()) as u64;
        at
    });
    let locations = locations.collect();
    (log, locations)
}

/// Returns the reads of the log since the last time: offset and length.
fn reads(log: &TestLog) -> Vec<(u64, u64)> {
    let calls = log.disk.take_calls_of("read log-0000000002");
    let read = calls.iter().map(|call| call.rsplit_once(' ').unwrap().1.split_once('+').unwrap());
    read.map(|(offset, length)| (offset.parse().unwrap(), length.parse().unwrap())).collect()
}

fn damage(read: Result<Bytes, StoreError>) -> String {
    match read {
        Err(StoreError::Corrupt { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn near_records_are_read_together() {
    let records: Vec<_> = (0..3000).map(|number| record(number, 92)).collect();
    let (log, locations) = log_of(512 * 1024, &records);
    let segments = log.open();
    let reader = LogReader::new(&segments);
    log.disk.take_calls();
    for (location, expected) in locations.iter().zip(&records).rev() {
        assert!(reader.read(*location).unwrap() == expected[..]);
    }
    // 300 KB in windows of 64 KiB, and before each of them one record alone.
    assert!(reads(&log).len() <= 10);
    // Forwards, each read has about 1 KiB.
    for (location, expected) in locations.iter().zip(&records) {
        assert!(reader.read(*location).unwrap() == expected[..]);
    }
    let forwards = reads(&log);
    assert!(forwards.len() > 200 && forwards.iter().all(|(_, length)| *length == 1024), "{}", forwards.len());
}

#[test]
fn distant_records_are_read_alone() {
    for (distance, is_near) in [(NEAR_BYTES - 1, true), (NEAR_BYTES, false), (NEAR_BYTES + 1, false)] {
        let gap = distance as usize - 2 * FRAME_BYTES - 10;
        let records = [record(0, 90_000), record(1, 10), record(2, gap), record(3, 10)];
        let (log, locations) = log_of(256 * 1024, &records);
        let segments = log.open();
        let reader = LogReader::new(&segments);
        assert_eq!(locations[3] - locations[1], distance);
        log.disk.take_calls();
        for number in [3, 1] {
            assert!(reader.read(locations[number]).unwrap() == records[number][..]);
        }
        let start = segments.all()[1].start;
        let (last, first) = (locations[3] - start, locations[1] - start);
        let alone = (first, FIRST_READ as u64);
        let expected = if is_near { (first - WINDOW_BYTES, WINDOW_BYTES + FIRST_READ as u64) } else { alone };
        assert_eq!(reads(&log), [(last, FIRST_READ as u64), expected], "{distance}");
        // A record behind the last one is not a link that leads back.
        reader.read(locations[3]).unwrap();
        assert_eq!(reads(&log), [(last, FIRST_READ as u64)]);
    }
}

#[test]
fn window_begins_with_its_segment_at_the_earliest() {
    let records = [record(1, 2000), record(2, 2000)];
    let (log, locations) = log_of(8192, &records);
    let segments = log.open();
    let reader = LogReader::new(&segments);
    log.disk.take_calls();
    for number in [1, 0] {
        assert!(reader.read(locations[number]).unwrap() == records[number][..]);
    }
    // The first 1024 bytes do not contain the record, so it is read again whole.
    assert_eq!(reads(&log), [(2544, 1024), (2544, 2008), (0, 536 + 1024), (536, 2008)]);
}

#[test]
fn large_record_is_read_with_two_calls() {
    let records = [record(1, 300_000), record(2, 5)];
    let (log, locations) = log_of(512 * 1024, &records);
    let segments = log.open();
    let reader = LogReader::new(&segments);
    log.disk.take_calls();
    assert!(reader.read(locations[0]).unwrap() == records[0][..]);
    assert_eq!(reads(&log), [(536, 1024), (536, 300_008)]);
}

#[test]
fn invalid_locations_are_damage() {
    let (log, locations) = log_of(4096, &[record(1, 10), record(2, 20)]);
    let segments = log.open();
    let end = segments.all()[1].end();
    let wrong = "a record's checksum is wrong";
    for (location, reason) in [
        (end, "a link leads outside of the log"),
        (u64::MAX, "a link leads outside of the log"),
        (locations[0] + 1, wrong),
        (locations[1] + 100, wrong),
        (end - 1, wrong),
        (end - 5, wrong),
        (end - 8, wrong),
    ] {
        assert_eq!(damage(LogReader::new(&segments).read(location)), reason, "{location}");
    }
    match LogReader::new(&segments).read(locations[1] + 3) {
        Err(StoreError::Corrupt { file, offset, .. }) => {
            assert_eq!((file.display().to_string().as_str(), offset), ("memory/log-0000000002", 557));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn false_length_ends_with_an_error() {
    let (log, locations) = log_of(4096, &[record(1, 10)]);
    let segments = log.open();
    for length in [11u32, 1000, 1024, 3552, 3553, 5000, u32::MAX] {
        log.put(2, FIRST_OFFSET + 24, &length.to_le_bytes());
        log.disk.take_calls();
        assert_eq!(damage(LogReader::new(&segments).read(locations[0])), "a record's checksum is wrong", "{length}");
    }
    // The segment of another reader was cut off.
    let (log, locations) = log_of(4096, &[record(1, 2000)]);
    let segments = log.open();
    let bytes = log.disk.bytes("log-0000000002");
    log.disk.put("log-0000000002", &bytes[..FIRST_OFFSET as usize + 500]);
    assert_eq!(damage(LogReader::new(&segments).read(locations[0])), "a record's checksum is wrong");
}

#[test]
fn shared_memory_is_filled_record_by_record() {
    let records: Vec<_> = (0..100).map(|number| record(number, 150)).collect();
    let (log, locations) = log_of(64 * 1024, &records);
    let segments = log.open();
    let reader = LogReader::sharing_memory(&segments);
    let read: Vec<_> = locations.iter().map(|location| reader.read(*location).unwrap()).collect();
    assert!(read.iter().zip(&records).all(|(read, expected)| *read == expected[..]));
    let follows = |pair: &[Bytes]| pair[0].as_ptr().wrapping_add(150) == pair[1].as_ptr();
    // All of them fit into one allocation of 16 KiB.
    assert!(read.windows(2).all(follows));
    let reader = LogReader::new(&segments);
    let read: Vec<_> = locations.iter().map(|location| reader.read(*location).unwrap()).collect();
    assert!(!read.windows(2).all(follows), "keeping one record does not keep its neighbors");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn records_are_read_in_any_order(
        lengths in proptest::collection::vec(prop_oneof![1usize..200, 900usize..1200, 10_000usize..14_000], 1..40),
        order in proptest::collection::vec(any::<prop::sample::Index>(), 1..80),
        shares in any::<bool>(),
    ) {
        let records: Vec<_> = lengths.iter().enumerate().map(|(number, length)| record(number, *length)).collect();
        let size = FIRST_OFFSET + 24 + records.iter().map(|record| (FRAME_BYTES + record.len()) as u64).sum::<u64>();
        let (log, locations) = log_of(size, &records);
        let segments = log.open();
        let reader = if shares { LogReader::sharing_memory(&segments) } else { LogReader::new(&segments) };
        for index in order {
            let number = index.index(records.len());
            prop_assert!(reader.read(locations[number]).unwrap() == records[number][..]);
        }
    }
}
