//! Tests of the next segment.

use std::sync::Arc;
use std::thread;

use super::*;
use crate::segment::Segment;
use whizbang_core::clock::monotonic;
use whizbang_core::store::StoreError;

fn segment(number: u64) -> Arc<Segment> {
    Arc::new(Segment { number, start: 0, size: 4096, salt: 1 })
}

fn buffer(spare: NextSegment) -> WriteBuffer {
    WriteBuffer::new(segment(7), 600, None, spare, String::new())
}

fn failed() -> NextSegment {
    NextSegment::Failed(StoreError::Full { at: String::new() })
}

#[test]
fn request_is_seen_once() {
    let buffer = buffer(NextSegment::Pending);
    assert_eq!(buffer.segment(), 7);
    assert!(buffer.wait_for_request(), "a buffer without a next segment requests one");
    thread::scope(|scope| {
        let second = scope.spawn(|| buffer.wait_for_request());
        buffer.close();
        assert!(!second.join().unwrap(), "only the end of the buffer ends the wait");
    });
    assert!(!buffer.wait_for_request());
}

#[test]
fn failed_segment_is_requested_again_without_an_append() {
    let buffer = buffer(failed());
    let begun = monotonic();
    assert!(buffer.wait_for_request());
    assert!(begun.elapsed() >= RETRY_INTERVAL);
}

#[test]
fn result_ends_the_wait_for_a_segment() {
    for (result, is_ready) in [(NextSegment::Ready(segment(8)), true), (failed(), false)] {
        let buffer = buffer(NextSegment::Pending);
        assert!(!buffer.has_spare());
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                buffer.wait_for_segment();
                matches!(buffer.tail.lock().spare, NextSegment::Pending)
            });
            buffer.set_spare(result);
            assert!(!waiting.join().unwrap(), "it has waited for the result");
        });
        assert_eq!(buffer.has_spare(), is_ready);
        buffer.wait_for_segment();
    }
    let closed = buffer(NextSegment::Pending);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| closed.wait_for_segment());
        closed.close();
        waiting.join().unwrap();
    });
    closed.wait_for_segment();
}

#[test]
fn pause_lasts_until_its_end_or_that_of_the_buffer() {
    let buffer = buffer(NextSegment::Pending);
    let (begun, pause) = (monotonic(), Duration::from_millis(30));
    buffer.pause(pause);
    assert!(begun.elapsed() >= pause);
    thread::scope(|scope| {
        let pausing = scope.spawn(|| buffer.pause(Duration::from_secs(3600)));
        buffer.close();
        pausing.join().unwrap();
    });
    buffer.pause(Duration::from_secs(3600));
}
