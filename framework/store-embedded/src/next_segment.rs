//! The segment after the current one, as the write buffer and the preallocator hand it over.
//!
//! The buffer requests a segment when it has begun to use the last one. The [preallocator](super::preallocator) waits for requests
//! here, and appends that have reached the end of the current segment wait here for its result.

use std::time::Duration;

use super::segment::NextSegment;
use super::write_buffer::{BufferState, WriteBuffer};

/// The time after which creating a segment is retried even without an append. A node that is not ready may receive no
/// traffic, so that no append would trigger the retry.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

impl WriteBuffer {
    /// Waits until the next segment is requested, or until a failed creation should be retried. Returns `false` once
    /// the buffer is closed.
    pub(super) fn wait_for_request(&self) -> bool {
        let mut tail = self.tail.lock();
        while tail.state == BufferState::Open && !std::mem::take(&mut tail.segment_requested) {
            if !matches!(tail.spare, NextSegment::Failed(_)) {
                self.segment_requested.wait(&mut tail);
            } else if self.segment_requested.wait_for(&mut tail, RETRY_INTERVAL).timed_out() {
                break;
            }
        }
        tail.state == BufferState::Open
    }

    /// Waits for `pause`, or until the buffer is closed. Requests for a segment do not end or extend it.
    pub(super) fn pause(&self, pause: Duration) {
        let mut tail = self.tail.lock();
        while tail.state == BufferState::Open && !self.ended.wait_for(&mut tail, pause).timed_out() {}
    }

    /// Returns the number of the current segment.
    pub(super) fn segment(&self) -> u64 {
        self.tail.lock().segment.number
    }

    /// Returns whether the next segment exists.
    pub(super) fn has_spare(&self) -> bool {
        matches!(self.tail.lock().spare, NextSegment::Ready(_))
    }

    /// Sets the result of creating the next segment.
    pub(super) fn set_spare(&self, spare: NextSegment) {
        let mut tail = self.tail.lock();
        if let NextSegment::Ready(_) = spare {
            tail.refusal = None;
        }
        tail.spare = spare;
        drop(tail);
        self.segment_ready.notify_all();
    }

    /// Waits until the next segment exists or could not be created.
    pub(super) fn wait_for_segment(&self) {
        let mut tail = self.tail.lock();
        while tail.state == BufferState::Open && matches!(tail.spare, NextSegment::Pending) {
            self.segment_ready.wait(&mut tail);
        }
    }
}

#[cfg(test)]
mod tests;
