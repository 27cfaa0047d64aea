//! Tests of the scan of a log.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::tests::memory_disk::MemoryDisk;
use crate::tests::test_log::TestLog;

const SIZE: u64 = 4096;
const BATCH: u64 = BATCH_BYTES as u64;

fn record(number: u64, length: usize) -> Vec<u8> {
    vec![number as u8 | 1; length]
}

fn place(segment: u64, offset: u64, batch: u64) -> BatchLocation {
    BatchLocation { segment, offset, batch }
}

type Records = Vec<(Location, Vec<u8>)>;

/// Reads the log and returns its records and its end.
fn read(log: &TestLog, from: BatchLocation) -> Result<(Records, LogEnd), StoreError> {
    let mut records = Vec::new();
    let end = scan(&log.open(), from, |location, record| {
        records.push((location, record.to_vec()));
        Ok(())
    })?;
    Ok((records, end))
}

fn read_all(log: &TestLog) -> (Records, LogEnd) {
    read(log, BatchLocation::FIRST).unwrap()
}

fn lengths(records: &Records) -> Vec<usize> {
    records.iter().map(|(_, record)| record.len()).collect()
}

/// Returns the damage that the scan reports: the file, the offset, and the number of the batch.
fn damage(log: &TestLog) -> (String, u64, String) {
    match read(log, BatchLocation::FIRST) {
        Err(StoreError::Corrupt { file, offset, reason }) => (file.display().to_string(), offset, reason),
        other => panic!("{other:?}"),
    }
}

#[test]
fn empty_log_ends_at_its_beginning() {
    for log in [TestLog::new(&[]), TestLog::new(&[SIZE]), TestLog::new(&[SIZE, SIZE])] {
        let (records, end) = read_all(&log);
        assert_eq!((records.len(), end.place, end.last, end.marked), (0, BatchLocation::FIRST, None, false));
    }
}

#[test]
fn batches_are_read_from_their_place_on() {
    let log = TestLog::new(&[SIZE, SIZE]);
    let second = log.batch(1, FIRST_OFFSET, 1, &[record(1, 10), record(2, 20)]);
    let third = log.batch(1, second, 2, &[record(3, 30)]);
    let end = log.batch(1, third, 3, &[record(4, 40)]);
    let (records, found) = read_all(&log);
    let locations: Vec<_> = records.iter().map(|(location, _)| *location).collect();
    assert_eq!(locations, [FIRST_OFFSET + 24, FIRST_OFFSET + 42, second + 24, third + 24]);
    assert!(records.iter().zip(1..).all(|((_, bytes), number)| *bytes == record(number, 10 * number as usize)));
    assert_eq!((found.place, found.last, found.marked), (place(1, end, 4), Some(place(1, third, 3)), false));
    let (records, found) = read(&log, place(1, second, 2)).unwrap();
    assert_eq!((lengths(&records), found.place), (vec![30, 40], place(1, end, 4)));
    let (records, found) = read(&log, place(1, end, 4)).unwrap();
    assert_eq!((records.len(), found.place, found.last, found.marked), (0, place(1, end, 4), None, false));
    log.head(1, end, 3, 0);
    let (_, found) = read_all(&log);
    assert_eq!((found.place, found.last, found.marked), (place(1, end, 4), Some(place(1, third, 3)), true));
    assert!(read(&log, place(1, end, 4)).unwrap().1.marked);
}

#[test]
fn log_continues_in_the_segment_with_the_next_batch() {
    for is_marked in [false, true] {
        // The second and third segment were too small for the batch.
        let log = TestLog::new(&[SIZE, 600, 600, SIZE, SIZE]);
        let end = log.batches(&[&[record(1, 10)], &[record(2, 20)]]);
        if is_marked {
            log.head(1, end, 2, 0);
        }
        let next = log.batch(4, FIRST_OFFSET, 3, &[record(3, 3000)]);
        let last = log.batch(5, FIRST_OFFSET, 4, &[record(4, 40)]);
        let (records, found) = read_all(&log);
        assert_eq!(lengths(&records), [10, 20, 3000, 40]);
        assert_eq!(records[2].0, SIZE + 1200 + FIRST_OFFSET + 24);
        assert_eq!((found.place, found.last), (place(5, last, 5), Some(place(5, FIRST_OFFSET, 4))));
        let (records, found) = read(&log, place(4, next, 4)).unwrap();
        assert_eq!((lengths(&records), found.place), (vec![40], place(5, last, 5)));
    }
}

#[test]
fn batch_that_ends_with_its_segment_is_whole() {
    let log = TestLog::new(&[SIZE, SIZE]);
    let length = (SIZE - FIRST_OFFSET) as usize - BATCH_BYTES - FRAME_BYTES;
    assert_eq!(log.batch(1, FIRST_OFFSET, 1, &[record(1, length)]), SIZE);
    let (records, end) = read_all(&log);
    assert_eq!((lengths(&records), end.place), (vec![length], place(1, SIZE, 2)));
    log.batch(2, FIRST_OFFSET, 2, &[record(2, 5)]);
    assert_eq!(lengths(&read_all(&log).0), [length, 5]);
    // Its header cannot be recovered from records that nothing proves to be complete.
    let log = TestLog::new(&[SIZE]);
    log.batch(1, FIRST_OFFSET, 1, &[record(1, length)]);
    log.put(1, FIRST_OFFSET, &[0; 4]);
    assert_eq!(read_all(&log).0.len(), 0);
}

#[test]
fn batch_beyond_its_segment_is_not_read() {
    let log = TestLog::new(&[SIZE]);
    let end = log.batches(&[&[record(1, 10)]]);
    for length in [SIZE - end - BATCH + 1, u64::from(u32::MAX)] {
        log.head(1, end, 2, length as usize);
        let (records, found) = read_all(&log);
        assert_eq!((lengths(&records), found.place, found.marked), (vec![10], place(1, end, 2), false), "{length}");
    }
}

#[test]
fn unfinished_or_old_batch_ends_the_log() {
    let log = TestLog::new(&[SIZE]);
    let end = log.batches(&[&[record(1, 10)]]);
    let whole = (end, lengths(&read_all(&log).0));
    let check = |what: &str| {
        let (records, found) = read_all(&log);
        assert_eq!((found.place.offset, lengths(&records), found.marked), (whole.0, whole.1.clone(), false), "{what}");
        log.put(1, end, &[0; 200]);
    };
    log.batch(1, end, 2, &[record(2, 20)]);
    log.put(1, end + BATCH + 10, &[0]);
    check("a torn record");
    log.batch(1, end, 1, &[record(2, 20)]);
    check("the number of an earlier batch");
    log.head(1, end, 0, 0);
    check("the mark of an earlier batch");
    log.put(1, end + 100, b"garbage");
    check("garbage");
    log.put(1, end, b"WzB\x01garbage garbage garbage");
    check("garbage with the magic");
}

#[test]
fn damaged_batch_before_a_later_write_is_an_error() {
    type Write = fn(&TestLog, u64);
    let later_writes: [(&str, Write); 5] = [
        ("the next batch", |log, end| {
            log.batch(1, end, 3, &[record(3, 30)]);
        }),
        ("its mark", |log, end| log.head(1, end, 2, 0)),
        ("a later mark", |log, _| log.head(1, SIZE - BATCH, 7, 0)),
        ("a later header", |log, _| log.head(2, SIZE - BATCH, 3, 9)),
        ("a later segment", |log, _| {
            log.batch(3, FIRST_OFFSET, 3, &[record(3, 30)]);
        }),
    ];
    for (what, write) in later_writes {
        let log = TestLog::new(&[SIZE, SIZE, SIZE]);
        let second = log.batch(1, FIRST_OFFSET, 1, &[record(1, 10)]);
        let end = log.batch(1, second, 2, &[record(2, 20)]);
        write(&log, end);
        log.put(1, second + BATCH + 10, &[0]);
        let (file, offset, reason) = damage(&log);
        assert_eq!((file.as_str(), offset), ("memory/log-0000000001", second), "{what}");
        assert!(reason.starts_with("batch 2 is damaged: it was durable once, because memory/log-"), "{what}: {reason}");
    }
}

#[test]
fn later_write_is_found_at_any_place_behind_the_end() {
    let log = TestLog::new(&[SIZE, SIZE]);
    let end = log.batches(&[&[record(1, 10)]]);
    let found = |number, length, segment, offset| {
        log.head(segment, offset, number, length);
        let found = find_later_write(&log.open(), place(1, end, 2)).unwrap();
        log.put(segment, offset, &[0; BATCH_BYTES]);
        found.map(|later| (later.segment.number, later.offset, later.number))
    };
    for (segment, offset) in
        [(1, end), (1, end + 1), (1, SIZE - BATCH), (2, FIRST_OFFSET), (2, FIRST_OFFSET + 77), (2, SIZE - BATCH)]
    {
        // The batch at the place has the number 2: its mark, and everything with a higher number, is later.
        for (number, length, is_later) in [(1, 0, false), (2, 0, true), (3, 0, true), (2, 9, false), (3, 9, true)] {
            let expected = is_later.then_some((segment, offset, number));
            assert_eq!(found(number, length, segment, offset), expected, "{number} of {length} bytes at {offset}");
        }
    }
    assert_eq!(found(9, 9, 1, end - 10), None, "only what follows is searched");
    log.head(1, end, 9, 9);
    let later = find_later_write(&log.open(), place(2, FIRST_OFFSET, 2)).unwrap();
    assert!(later.is_none(), "an earlier segment is not searched");
}

#[test]
fn garbage_before_a_later_write_does_not_hide_it() {
    let log = TestLog::new(&[SIZE]);
    let end = log.batches(&[&[record(1, 10)]]);
    log.put(1, end + 3, &[0xFF; 50]);
    log.head(1, end + 60, 5, 0);
    let later = find_later_write(&log.open(), place(1, end, 2)).unwrap().unwrap();
    assert_eq!((later.offset, later.number), (end + 60, 5));
}

/// The proofs that the records of a batch without its header are complete.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Proof {
    NextBatch,
    Mark,
    NextSegment,
    Nothing,
    OtherBatch,
    OtherMark,
    OtherSegment,
}

#[test]
fn records_without_their_header_need_a_proof() {
    use Proof::*;
    for proof in [NextBatch, Mark, NextSegment, Nothing, OtherBatch, OtherMark, OtherSegment] {
        let log = TestLog::new(&[SIZE, SIZE, SIZE]);
        let second = log.batch(1, FIRST_OFFSET, 1, &[record(1, 10)]);
        let end = log.batch(1, second, 2, &[record(2, 20), record(3, 300)]);
        match proof {
            NextBatch => {
                log.batch(1, end, 3, &[record(4, 40)]);
            }
            Mark => log.head(1, end, 2, 0),
            NextSegment => {
                log.batch(2, FIRST_OFFSET, 3, &[record(4, 40)]);
            }
            Nothing => {}
            OtherBatch => {
                log.batch(1, end, 4, &[record(4, 40)]);
            }
            OtherMark => log.head(1, end, 3, 0),
            OtherSegment => {
                log.batch(2, FIRST_OFFSET, 4, &[record(4, 40)]);
            }
        }
        log.put(1, second, &[0; BATCH_BYTES]);
        let found = read(&log, BatchLocation::FIRST).map(|(records, end)| (lengths(&records), end.place, end.marked));
        match proof {
            NextBatch => assert_eq!(found.unwrap(), (vec![10, 20, 300, 40], place(1, end + 72, 4), false)),
            Mark => assert_eq!(found.unwrap(), (vec![10, 20, 300], place(1, end, 3), true)),
            NextSegment => {
                assert_eq!(found.unwrap(), (vec![10, 20, 300, 40], place(2, FIRST_OFFSET + 72, 4), false));
            }
            Nothing => assert_eq!(found.unwrap(), (vec![10], place(1, second, 2), false)),
            OtherBatch | OtherMark | OtherSegment => assert!(found.is_err(), "{proof:?}: {found:?}"),
        }
    }
}

#[test]
fn records_without_their_header_are_at_their_locations() {
    let log = TestLog::new(&[SIZE, SIZE]);
    log.batch(1, FIRST_OFFSET, 1, &[record(1, 3000)]);
    let end = log.batch(2, FIRST_OFFSET, 2, &[record(2, 20), record(3, 30)]);
    log.batch(2, end, 3, &[record(4, 40)]);
    let whole = read(&log, place(2, FIRST_OFFSET, 2)).unwrap();
    log.put(2, FIRST_OFFSET, &[9; 4]);
    let (records, found) = read(&log, place(2, FIRST_OFFSET, 2)).unwrap();
    assert_eq!((records, found.place, found.last), (whole.0, whole.1.place, whole.1.last));
    // A frame that claims more bytes than the segment has is not read.
    log.put(2, FIRST_OFFSET + BATCH, &(SIZE as u32).to_le_bytes());
    assert!(read(&log, place(2, FIRST_OFFSET, 2)).is_err());
}

#[test]
fn error_of_a_visit_ends_the_scan() {
    let log = TestLog::new(&[SIZE]);
    log.batches(&[&[record(1, 10), record(2, 20)], &[record(3, 30)]]);
    let mut visited = 0;
    let error = scan(&log.open(), BatchLocation::FIRST, |_, _| {
        visited += 1;
        Err(StoreError::Closed)
    });
    assert!(matches!(error, Err(StoreError::Closed)));
    assert_eq!(visited, 1);
}

#[test]
fn page_ends_behind_the_batch_that_fills_it() {
    let log = TestLog::new(&[SIZE]);
    let end = log.batches(&[&[record(1, 42)], &[record(2, 92)], &[record(3, 42)], &[record(4, 92)]]);
    // The frames of the batches have 50, 100, 50 and 100 bytes.
    for (limit, pages) in [
        (1, vec![1, 1, 1, 1]),
        (50, vec![1, 1, 1, 1]),
        (51, vec![2, 2]),
        (150, vec![2, 2]),
        (151, vec![3, 1]),
        (200, vec![3, 1]),
        (201, vec![4]),
        (301, vec![4]),
    ] {
        let (mut from, mut found, mut is_page) = (BatchLocation::FIRST, Vec::new(), true);
        while is_page {
            let mut records = 0;
            let next = follow_page(&log.open(), from, limit, |_, _| {
                records += 1;
                Ok(())
            });
            let (end, further) = next.unwrap();
            (from, is_page) = (end.place, further);
            found.push(records);
        }
        found.retain(|records| *records > 0);
        assert_eq!((found, from), (pages, place(1, end, 5)), "{limit}");
    }
}

fn window(memory: &MemoryDisk, size: u64) -> SegmentWindow {
    let segment = Arc::new(Segment { number: 1, start: 0, size, salt: 1 });
    let file = crate::disk::Disk::open(memory, "file").unwrap();
    memory.take_calls();
    SegmentWindow { segment, file, start: 0, bytes: Vec::new() }
}

#[test]
fn segment_is_read_in_large_pieces() {
    const SIZE: usize = 4 * WINDOW_BYTES;
    let memory = MemoryDisk::default();
    memory.put("file", &vec![0; SIZE]);
    let mut window = window(&memory, SIZE as u64);
    for block in 0..SIZE / 4096 {
        assert_eq!(window.get(block as u64 * 4096, 4096).unwrap().len(), 4096);
    }
    let pieces: Vec<_> = (0..4).map(|nth| format!("read file {}+{WINDOW_BYTES}", nth * WINDOW_BYTES)).collect();
    assert_eq!(memory.take_calls(), pieces);
    window.get(3 * WINDOW_BYTES as u64, 100).unwrap();
    window.get(SIZE as u64 - 100, 100).unwrap();
    assert!(memory.take_calls().is_empty(), "they are in memory");
    window.get(100, 2 * WINDOW_BYTES).unwrap();
    window.get(SIZE as u64 - 100, 200).unwrap();
    assert_eq!(
        memory.take_calls(),
        [format!("read file 100+{}", 2 * WINDOW_BYTES), format!("read file {}+100", SIZE - 100)]
    );
    assert_eq!(window.next_nonzero(0).unwrap(), None);
    assert_eq!(memory.take_calls(), pieces, "zeros are read once");
}

#[test]
fn next_nonzero_byte_is_found_anywhere() {
    let size = WINDOW_BYTES + 10_000;
    let memory = MemoryDisk::default();
    for at in [0, 1, 4095, 4096, 5000, WINDOW_BYTES - 1, WINDOW_BYTES, WINDOW_BYTES + 1, size - 1] {
        let mut bytes = vec![0; size + 1];
        (bytes[at], bytes[size]) = (1, 1);
        memory.put("file", &bytes);
        let mut window = window(&memory, size as u64);
        for from in [0, at.saturating_sub(1), at] {
            assert_eq!(window.next_nonzero(from as u64).unwrap(), Some(at as u64), "from {from}");
        }
        assert_eq!(window.next_nonzero(at as u64 + 1).unwrap(), None, "bytes after the segment do not count");
        assert_eq!(window.next_nonzero(size as u64 + 5).unwrap(), None);
    }
}

/// Bytes of more than two windows.
static CONTENT: LazyLock<Vec<u8>> =
    LazyLock::new(|| (0..2_400_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect());

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn window_returns_the_bytes_of_the_file(reads in proptest::collection::vec(
        (0usize..2_500_000, prop_oneof![0usize..100, Just(4096), 900_000usize..1_200_000]), 1..30,
    )) {
        let (size, memory) = (CONTENT.len(), MemoryDisk::default());
        memory.put("file", &CONTENT);
        let mut window = window(&memory, size as u64);
        for (offset, length) in reads {
            let from = offset.min(size);
            prop_assert!(window.get(offset as u64, length).unwrap() == &CONTENT[from..(from + length).min(size)]);
        }
    }

    #[test]
    fn any_batches_are_read_as_they_were_written(
        batches in proptest::collection::vec(proptest::collection::vec(1usize..700, 1..4), 0..14),
        is_marked in any::<bool>(),
    ) {
        let mut sizes = [SIZE; 20];
        sizes[1] = 3000;
        let log = TestLog::new(&sizes);
        let (mut segment, mut offset, mut expected, mut last, mut number) = (1, FIRST_OFFSET, Vec::new(), None, 1);
        for lengths in batches {
            let records: Vec<_> = lengths.iter().map(|length| record(number, *length)).collect();
            let need: usize = BATCH_BYTES + records.iter().map(|record| FRAME_BYTES + record.len()).sum::<usize>();
            while offset + need as u64 + BATCH > log.segment(segment).size {
                (segment, offset) = (segment + 1, FIRST_OFFSET);
            }
            last = Some(place(segment, offset, number));
            let mut location = log.segment(segment).start + offset + BATCH;
            offset = log.batch(segment, offset, number, &records);
            for record in records {
                let length = record.len();
                expected.push((location, record));
                location += (FRAME_BYTES + length) as u64;
            }
            number += 1;
        }
        let is_marked = is_marked && last.is_some();
        if is_marked {
            log.head(segment, offset, number - 1, 0);
        }
        let (records, end) = read_all(&log);
        prop_assert!(records == expected);
        prop_assert_eq!((end.place, end.last, end.marked), (place(segment, offset, number), last, is_marked));
    }
}
