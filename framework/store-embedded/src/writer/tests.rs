//! Tests of the log writer.

use std::io::ErrorKind;

use super::*;
use crate::scan;
use crate::segment::BatchLocation;
use crate::segment::{FIRST_OFFSET, NextSegment};
use crate::tests::memory_disk::MemoryDisk;
use crate::tests::test_log::TestLog;
use crate::write_buffer::WriteMode;
use whizbang_conformance::store::RecordingListener;
use whizbang_core::store::CommitListener;

/// A writer of an empty log, with the buffer that it writes.
struct Fixture {
    log: TestLog,
    buffer: Arc<WriteBuffer>,
    segments: Arc<Segments>,
    queue: Arc<FlushQueue>,
    writer: LogWriter,
    listener: Arc<RecordingListener>,
    _kept: Arc<dyn CommitListener>,
    number: usize,
}

impl Fixture {
    fn new(sizes: &[u64]) -> Self {
        let log = TestLog::new(sizes);
        let segments = Arc::new(log.open());
        let spare = if sizes.len() > 1 { NextSegment::Ready(log.segment(2)) } else { NextSegment::Pending };
        let buffer = Arc::new(WriteBuffer::new(log.segment(1), FIRST_OFFSET, None, spare, "memory".to_owned()));
        let queue = Arc::new(FlushQueue::new(0, u64::MAX));
        let writer = LogWriter::new(Arc::clone(&buffer), Arc::clone(&segments), Arc::clone(&queue), 40);
        let listener = Arc::new(RecordingListener::default());
        let kept: Arc<dyn CommitListener> = Arc::clone(&listener) as _;
        let number = buffer.register_listener(&kept);
        log.disk.take_calls();
        Self { log, buffer, segments, queue, writer, listener, _kept: kept, number }
    }

    fn append(&self, record: &[u8]) {
        let appended = self.buffer.append(record.len(), Some(self.number), WriteMode::Thread, |_, into| {
            into.extend_from_slice(record);
            Ok(())
        });
        assert!(appended.is_ok());
    }

    fn calls(&self) -> Vec<String> {
        self.log.disk.take_calls()
    }

    /// Returns all records of the log, whether the end is marked, and the place of the next batch.
    fn read(&self) -> (Vec<String>, bool, BatchLocation) {
        let mut records = Vec::new();
        let first = BatchLocation { batch: 41, ..BatchLocation::FIRST };
        let end = scan::follow(&self.segments, first, |_, record| {
            records.push(String::from_utf8(record.to_vec()).unwrap());
            Ok(())
        });
        let end = end.unwrap();
        (records, end.marked, end.place)
    }
}

#[test]
fn batch_is_flushed_and_then_marked() {
    let mut fixture = Fixture::new(&[4096]);
    assert!(!fixture.writer.step(), "there is nothing to write");
    fixture.append(b"one");
    fixture.append(b"two");
    assert!(fixture.writer.step());
    let expected = [
        "open log-0000000001",
        "write log-0000000001 512+46",
        "sync log-0000000001",
        // The mark is not flushed: no caller waits for it.
        "write log-0000000001 558+24",
    ];
    assert_eq!(fixture.calls(), expected);
    assert_eq!((fixture.listener.reports(), fixture.buffer.committed(), fixture.queue.growth()), (vec![2], 558, 46));
    assert_eq!(fixture.buffer.last(), Some(BatchLocation { segment: 1, offset: 512, batch: 41 }));
    let end = BatchLocation { segment: 1, offset: 558, batch: 42 };
    assert_eq!(fixture.read(), (vec!["one".to_owned(), "two".to_owned()], true, end));
}

#[test]
fn next_batch_overwrites_the_mark() {
    let mut fixture = Fixture::new(&[4096]);
    for record in ["first", "second", "third"] {
        fixture.append(record.as_bytes());
        assert!(fixture.writer.step());
    }
    assert_eq!(fixture.log.disk.take_calls_of("open").len(), 1);
    let (records, marked, place) = fixture.read();
    assert_eq!((records.join(" "), marked, place.batch), ("first second third".to_owned(), true, 44));
    assert_eq!((fixture.listener.reports(), fixture.queue.growth()), (vec![1, 2, 3], place.offset - FIRST_OFFSET));
}

#[test]
fn no_mark_is_written_while_a_batch_waits() {
    let mut fixture = Fixture::new(&[600, 4096]);
    fixture.append(b"one");
    // It does not fit into the first segment.
    fixture.append(&[b'x'; 100]);
    assert!(fixture.writer.step());
    assert_eq!(fixture.log.disk.take_calls_of("write"), ["write log-0000000001 512+35"]);
    assert!(!fixture.buffer.is_idle());
    assert!(fixture.writer.step());
    assert_eq!(
        fixture.log.disk.take_calls_of("write"),
        ["write log-0000000002 512+132", "write log-0000000002 644+24"]
    );
    let end = BatchLocation { segment: 2, offset: 644, batch: 43 };
    assert_eq!(fixture.read(), (vec!["one".to_owned(), "x".repeat(100)], true, end));
    assert!(!fixture.writer.step());
}

#[test]
fn end_of_the_log_is_marked_durably_once() {
    let mut fixture = Fixture::new(&[4096]);
    fixture.append(b"one");
    assert!(fixture.writer.step());
    fixture.buffer.close();
    fixture.calls();
    fixture.writer.finish();
    assert_eq!(fixture.calls(), ["write log-0000000001 547+24", "sync log-0000000001"]);
    assert!(fixture.buffer.is_closed() && fixture.buffer.failure().is_none());
    fixture.writer.finish();
    assert!(fixture.calls().is_empty());

    let mut empty = Fixture::new(&[4096]);
    empty.writer.finish();
    assert!(empty.calls().is_empty() && empty.buffer.is_closed(), "nothing was written, so there is nothing to mark");
}

#[test]
fn failed_write_or_flush_stops_the_store() {
    for call in ["write log-", "sync log-", "open log-"] {
        let mut fixture = Fixture::new(&[4096]);
        fixture.log.disk.fail(call, ErrorKind::StorageFull);
        fixture.append(b"one");
        assert!(!fixture.writer.step(), "{call}");
        let error = fixture.buffer.failure().unwrap();
        assert!(matches!(&error, StoreError::Io { doing, .. } if doing == "writing to log-0000000001"), "{error}");
        assert!(fixture.listener.error().is_some() && fixture.listener.reports().is_empty());
        assert_eq!((fixture.buffer.committed(), fixture.queue.growth()), (FIRST_OFFSET, 0));
        fixture.log.disk.repair();
        fixture.calls();
        fixture.writer.finish();
        assert!(fixture.calls().is_empty(), "a repeated flush could report success for lost data");
    }
}

#[test]
fn failed_mark_is_not_repeated() {
    let mut fixture = Fixture::new(&[4096]);
    fixture.append(b"one");
    fixture.log.disk.fail("write log-0000000001 547+24", ErrorKind::Other);
    assert!(fixture.writer.step(), "the batch is durable");
    assert_eq!(fixture.listener.reports(), [1]);
    fixture.log.disk.repair();
    fixture.calls();
    fixture.writer.finish();
    assert!(fixture.calls().is_empty());
}

#[test]
fn file_of_the_current_segment_stays_open() {
    let mut fixture = Fixture::new(&[600; 40]);
    fixture.append(b"one");
    assert!(fixture.writer.step());
    // More files are read than stay open.
    for number in 2..=40 {
        fixture.segments.file(&fixture.log.segment(number)).unwrap();
    }
    fixture.calls();
    fixture.writer.finish();
    assert!(fixture.log.disk.take_calls_of("open").is_empty());
}

/// A disk whose flushes take longer than the limit of an actor's thread.
struct SlowDisk(MemoryDisk);

struct SlowFile(Arc<dyn DiskFile>);

impl crate::disk::Disk for SlowDisk {
    fn lock(&self) -> io::Result<bool> {
        self.0.lock()
    }

    fn unlock(&self) {}

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.0.names())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.0.create(name)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(SlowFile(self.0.open(name)?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path(name)
    }
}

impl DiskFile for SlowFile {
    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        let begun = monotonic();
        while begun.elapsed() <= SLOW_FLUSH {
            std::hint::spin_loop();
        }
        self.0.sync()
    }
}

#[test]
fn duration_of_the_last_flush_decides_about_the_next() {
    let mut slow = Fixture::new(&[4096]);
    let segments = Segments::read(&(Arc::new(SlowDisk(slow.log.disk.clone())) as Arc<dyn crate::disk::Disk>)).unwrap();
    slow.writer = LogWriter::new(Arc::clone(&slow.buffer), Arc::new(segments), Arc::clone(&slow.queue), 40);
    slow.append(b"one");
    assert!(slow.writer.step() && slow.buffer.is_slow());

    // The clock stands still, so the flush takes no time.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let mut fast = Fixture::new(&[4096]);
    fast.buffer.set_slow(true);
    fast.append(b"one");
    let stepped = runtime.block_on(async { fast.writer.step() });
    assert!(stepped && !fast.buffer.is_slow());
}
