//! Tests of the write buffer.

use super::*;
use futures_util::FutureExt as _;
use whizbang_conformance::store::RecordingListener;

const SIZE: u64 = 4096;

fn segment(number: u64) -> Arc<Segment> {
    Arc::new(Segment { number, start: 1000 * number, size: SIZE, salt: 1 })
}

/// Returns a buffer that continues at the offset of segment 1.
fn buffer(offset: u64, spare: NextSegment) -> WriteBuffer {
    WriteBuffer::new(segment(1), offset, None, spare, "folder".to_owned())
}

fn ready() -> WriteBuffer {
    buffer(600, NextSegment::Ready(segment(2)))
}

fn listener() -> (Arc<RecordingListener>, Arc<dyn CommitListener>) {
    let listener = Arc::new(RecordingListener::default());
    (Arc::clone(&listener), listener)
}

/// Appends a record of this length and returns its ticket and its location.
fn append(buffer: &WriteBuffer, listener: Option<usize>, length: usize) -> Result<(Ticket, Location), AppendRefused> {
    buffer.append(length, listener, WriteMode::Thread, |location, into| {
        into.resize(into.len() + length, 7);
        Ok(location)
    })
}

fn accept(buffer: &WriteBuffer, listener: Option<usize>, length: usize) -> (Ticket, Location) {
    append(buffer, listener, length).unwrap_or_else(|_| panic!("the record is appended"))
}

fn take(buffer: &WriteBuffer) -> PendingBatch {
    buffer.take_batch().expect("a batch waits")
}

const BATCH: u64 = BATCH_BYTES as u64;
const FRAME: u64 = FRAME_BYTES as u64;

#[test]
fn records_of_a_batch_follow_each_other() {
    let buffer = ready();
    assert_eq!((buffer.committed(), buffer.is_idle(), buffer.segment(), buffer.at()), (1600, true, 1, "folder"));
    assert!(buffer.take_batch().is_none());
    assert_eq!(accept(&buffer, None, 10), (0, 1600 + BATCH));
    assert_eq!(accept(&buffer, None, 1), (0, 1610 + BATCH + FRAME));
    assert!(!buffer.is_idle());
    let batch = take(&buffer);
    assert_eq!((batch.offset, batch.segment.number), (600, 1));
    let frame = |length: u8| [&[length, 0, 0, 0, 0, 0, 0, 0][..], &vec![7; length.into()]].concat();
    assert_eq!(batch.bytes, [vec![0; BATCH_BYTES], frame(10), frame(1)].concat());
    assert_eq!(batch.end(), 1611 + BATCH + 2 * FRAME);
    // The next batch begins where this one ends, before it is written.
    assert_eq!(accept(&buffer, None, 5), (0, batch.end() + BATCH));
    assert_eq!(take(&buffer).offset, batch.end() - 1000);
}

#[test]
fn tickets_of_each_listener_rise_by_one() {
    let buffer = ready();
    let ((first, one), (second, two)) = (listener(), listener());
    let numbers = [buffer.register_listener(&one), buffer.register_listener(&two), buffer.register_listener(&one)];
    assert_eq!(numbers, [0, 1, 0], "a listener is registered once");
    let tickets = [0, 1, 0, 0].map(|number| accept(&buffer, Some(number), 1).0);
    assert_eq!((tickets, accept(&buffer, None, 1).0), ([1, 1, 2, 3], 0));
    let batch = take(&buffer);
    let later = [1, 0].map(|number| accept(&buffer, Some(number), 1).0);
    assert_eq!(later, [2, 4]);
    buffer.mark_durable(batch, 5);
    assert_eq!((first.reports(), second.reports()), (vec![3], vec![1]));
    let batch = take(&buffer);
    drop((second, two));
    buffer.mark_durable(batch, 6);
    assert_eq!(first.reports(), [3, 4]);
    let (_, three) = listener();
    assert_eq!(buffer.register_listener(&three), 2, "the number of a dropped listener is not given again");
}

#[test]
fn durable_batch_resolves_what_waits_for_it() {
    let buffer = ready();
    assert!(matches!(buffer.when_durable(1600).now_or_never(), Some(Ok(Ok(())))), "it is durable already");
    let (_, location) = accept(&buffer, None, 10);
    let batch = take(&buffer);
    let end = batch.end();
    let [mut before, mut at, mut after] = [location + 1, end, end + 1].map(|location| buffer.when_durable(location));
    assert!(before.try_recv().is_err());
    buffer.mark_durable(batch, 9);
    assert_eq!(buffer.committed(), end);
    assert_eq!(buffer.last(), Some(BatchLocation { segment: 1, offset: 600, batch: 9 }));
    assert!(matches!((before.try_recv(), at.try_recv()), (Ok(Ok(())), Ok(Ok(())))));
    assert!(after.try_recv().is_err());
    buffer.close();
    buffer.mark_closed();
    assert!(matches!(after.try_recv(), Ok(Err(StoreError::Closed))));
    assert!(matches!(buffer.when_durable(end).now_or_never(), Some(Ok(Ok(())))));
    assert!(matches!(buffer.when_durable(end + 1).now_or_never(), Some(Ok(Err(StoreError::Closed)))));
}

#[test]
fn rejected_record_leaves_the_buffer_as_before() {
    let buffer = ready();
    let (_, listener) = listener();
    let number = buffer.register_listener(&listener);
    let reject = || {
        let rejected = buffer.append(50, Some(number), WriteMode::Thread, |_, into| {
            into.extend_from_slice(&[9; 50]);
            Err::<(), _>(OutOfTurn { expected: 3 })
        });
        assert!(matches!(rejected, Err(AppendRefused::OutOfTurn(OutOfTurn { expected: 3 }))));
    };
    reject();
    assert!(buffer.is_idle(), "a batch without records would be a mark");
    assert_eq!(accept(&buffer, Some(number), 10), (1, 1600 + BATCH));
    reject();
    assert_eq!(accept(&buffer, Some(number), 10), (2, 1610 + BATCH + FRAME));
    assert_eq!(take(&buffer).bytes.len() as u64, BATCH + 2 * (FRAME + 10));
}

/// The bytes of a segment that a batch of one record needs besides the record: its headers, and a mark after it.
const NEED: u64 = 2 * BATCH + FRAME;

#[test]
fn record_that_just_fits_stays_in_its_segment() {
    for (rest, fits) in [(NEED + 100, true), (NEED + 99, false)] {
        let buffer = buffer(SIZE - rest, NextSegment::Ready(segment(2)));
        let (_, location) = accept(&buffer, None, 100);
        assert_eq!(location, if fits { 1000 + SIZE - rest + BATCH } else { 2000 + FIRST_OFFSET + BATCH }, "{rest}");
        assert_eq!(buffer.segment(), if fits { 1 } else { 2 });
    }
    // A batch that exists already needs no further header.
    for (rest, fits) in [(NEED + FRAME + 101, true), (NEED + FRAME + 100, false)] {
        let buffer = buffer(SIZE - rest, NextSegment::Ready(segment(2)));
        accept(&buffer, None, 1);
        accept(&buffer, None, 100);
        assert_eq!(buffer.segment(), if fits { 1 } else { 2 }, "{rest}");
        let batches = std::iter::from_fn(|| buffer.take_batch()).map(|batch| (batch.segment.number, batch.offset));
        let expected = [(1, SIZE - rest), (2, FIRST_OFFSET)];
        assert!(batches.eq(expected.into_iter().take(if fits { 1 } else { 2 })), "{rest}");
    }
}

#[test]
fn full_segment_is_followed_by_the_next_one() {
    let buffer = buffer(SIZE - 1, NextSegment::Pending);
    assert!(buffer.tail.lock().segment_requested, "the first one is requested at once");
    assert!(matches!(append(&buffer, None, 10), Err(AppendRefused::Wait)));
    buffer.set_spare(NextSegment::Ready(segment(2)));
    assert!(buffer.has_spare());
    buffer.tail.lock().segment_requested = false;
    assert_eq!(accept(&buffer, None, 10).1, 2000 + FIRST_OFFSET + BATCH);
    assert!(!buffer.has_spare() && buffer.tail.lock().segment_requested, "the one after it is requested");
    assert!(!ready().tail.lock().segment_requested);
}

#[test]
fn failed_segment_rejects_until_there_is_another() {
    let full = || StoreError::Full { at: "folder".to_owned() };
    let buffer = buffer(SIZE - 200, NextSegment::Failed(full()));
    assert!(buffer.refused().is_none(), "nothing was rejected yet");
    for _ in 0..2 {
        buffer.tail.lock().segment_requested = false;
        assert!(matches!(append(&buffer, None, 300), Err(AppendRefused::Store(StoreError::Full { .. }))));
        assert!(buffer.tail.lock().segment_requested && !buffer.has_spare());
        assert!(matches!(buffer.refused(), Some(StoreError::Full { .. })));
    }
    assert_eq!(accept(&buffer, None, 10).1, 1000 + SIZE - 200 + BATCH, "a smaller one still fits");
    buffer.set_spare(NextSegment::Failed(full()));
    assert!(buffer.refused().is_some());
    buffer.set_spare(NextSegment::Ready(segment(2)));
    assert!(buffer.refused().is_none());
    assert_eq!(accept(&buffer, None, 300).1, 2000 + FIRST_OFFSET + BATCH);
}

#[test]
fn closing_buffer_rejects_and_keeps_its_batches() {
    let buffer = ready();
    accept(&buffer, None, 1);
    assert!(!buffer.is_closed());
    buffer.close();
    assert!(matches!(append(&buffer, None, 1), Err(AppendRefused::Store(StoreError::Closed))));
    assert!(!buffer.is_closed() && buffer.wait_for_batch());
    let batch = take(&buffer);
    assert!(!buffer.wait_for_batch());
    buffer.mark_durable(batch, 1);
    buffer.mark_closed();
    assert!(buffer.is_closed() && buffer.failure().is_none());
    buffer.close();
    assert!(buffer.is_closed(), "a later call changes nothing");
}

#[test]
fn failure_is_reported_and_ends_the_buffer() {
    let buffer = ready();
    let (recording, listener) = listener();
    let number = buffer.register_listener(&listener);
    accept(&buffer, Some(number), 1);
    let waiter = buffer.when_durable(1700);
    buffer.fail(&StoreError::io("testing", std::io::Error::other("broken")));
    assert!(buffer.is_closed() && buffer.is_idle() && buffer.take_batch().is_none() && !buffer.wait_for_batch());
    assert!(matches!(waiter.now_or_never(), Some(Ok(Err(StoreError::Io { .. })))));
    assert!(matches!(buffer.when_durable(1700).now_or_never(), Some(Ok(Err(StoreError::Io { .. })))));
    let errors = [recording.error(), buffer.failure(), buffer.refused()];
    assert!(errors.iter().all(|error| matches!(error, Some(StoreError::Io { .. }))), "{errors:?}");
    assert!(recording.reports().is_empty() && append(&buffer, None, 1).is_err());
    let closed = buffer.when_durable(0);
    assert!(matches!(closed.now_or_never(), Some(Ok(Ok(())))), "what was durable stays so");
}

#[test]
fn only_an_append_for_the_thread_wakes_it() {
    let buffer = ready();
    let write = |_, into: &mut Vec<u8>| {
        into.push(1);
        Ok(())
    };
    let inline = || buffer.append(1, None, WriteMode::Inline, write).is_ok();
    buffer.tail.lock().idle = true;
    assert!(inline() && buffer.tail.lock().idle);
    accept(&buffer, None, 1);
    assert!(!buffer.tail.lock().idle, "only the first one wakes it");
    buffer.tail.lock().idle = true;
    buffer.wake();
    assert!(!buffer.tail.lock().idle);
}

#[test]
fn writing_thread_is_woken_for_each_batch() {
    let buffer = ready();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut batches = 0;
            while buffer.wait_for_batch() {
                batches += 1;
                buffer.mark_durable(take(&buffer), batches);
            }
            batches
        });
        for number in 1..=5 {
            let (_, location) = accept(&buffer, None, number);
            let durable = buffer.when_durable(location + 1);
            assert!(matches!(durable.blocking_recv(), Ok(Ok(()))));
        }
        buffer.close();
        assert_eq!(writer.join().unwrap(), 5);
    });
}

#[test]
fn memory_of_few_small_batches_is_kept() {
    let buffer = ready();
    let kept = || buffer.tail.lock().buffers.iter().map(Vec::capacity).collect::<Vec<_>>();
    let with_capacity = |bytes: usize| PendingBatch { bytes: Vec::with_capacity(bytes), ..batch() };
    buffer.mark_durable(with_capacity(KEPT_BUFFER_BYTES + 1), 1);
    assert!(kept().is_empty());
    buffer.mark_durable(with_capacity(KEPT_BUFFER_BYTES), 2);
    assert_eq!(kept(), [KEPT_BUFFER_BYTES]);
    for number in 3..6 {
        buffer.mark_durable(with_capacity(100), number);
        assert_eq!(kept(), [KEPT_BUFFER_BYTES, 100]);
    }
    accept(&buffer, None, 10);
    assert_eq!(kept(), [KEPT_BUFFER_BYTES], "the next batch uses it");
    assert_eq!(take(&buffer).bytes.len() as u64, BATCH + FRAME + 10);
}

fn batch() -> PendingBatch {
    PendingBatch { segment: segment(1), offset: 600, bytes: Vec::new(), tickets: Vec::new() }
}

#[test]
fn slow_flush_is_remembered_until_the_next_one() {
    let buffer = ready();
    assert!(!buffer.is_slow());
    buffer.set_slow(true);
    assert!(buffer.is_slow());
    buffer.set_slow(false);
    assert!(!buffer.is_slow());
}
