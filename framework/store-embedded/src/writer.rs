//! The log writer of a store: one write, one flush and one report per batch.
//!
//! The thread that holds its lock writes: the store's writing thread for gathered appends, an actor's thread for a turn
//! with no other turn in flight, or a test by calling `step`. Batches are taken with the lock held, so they are written
//! in order. The first error stops the writer for good: after a failed flush the state of the disk is unknown, and a
//! repeated flush may report success for lost data.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::disk::DiskFile;
use super::flush_queue::FlushQueue;
use super::frame::{BATCH_BYTES, BatchHead, seal_frames};
use super::segment::{Segment, Segments};
use super::write_buffer::{PendingBatch, WriteBuffer};
use whizbang_core::clock::monotonic;
use whizbang_core::store::StoreError;
use whizbang_core::telemetry::error_chain;
use whizbang_core::user_code::user_code;

/// A flush that takes longer is too slow to run on an actor's thread.
const SLOW_FLUSH: Duration = Duration::from_micros(500);

/// The state of the writer. Its lock is the permission to write.
pub(super) struct LogWriter {
    /// The source of batches, which is told when they are durable.
    write_buffer: Arc<WriteBuffer>,
    /// The files of the log.
    segments: Arc<Segments>,
    /// It counts the growth of the log, which makes checkpoints due.
    flush_queue: Arc<FlushQueue>,
    /// The number of the last written batch.
    batch: u64,
    /// The file of the segment that was written last.
    file: Option<(u64, Arc<dyn DiskFile>)>,
    /// The end of the last batch, if there is no mark yet.
    unmarked: Option<(Arc<Segment>, u64)>,
}

impl LogWriter {
    /// Returns a writer whose last written batch has the number `batch`.
    pub(super) fn new(
        write_buffer: Arc<WriteBuffer>,
        segments: Arc<Segments>,
        flush_queue: Arc<FlushQueue>,
        batch: u64,
    ) -> Self {
        Self { write_buffer, segments, flush_queue, batch, file: None, unmarked: None }
    }

    /// Writes the next batch, if there is one. Returns `true` if it was written successfully.
    ///
    /// A panic stops the store like an error of the disk: callers would wait for ever for a batch that is never written.
    pub(super) fn step(&mut self) -> bool {
        let written = user_code(|| match self.write_buffer.take_batch() {
            Some(pending) => self.write(pending),
            None => false,
        });
        written.unwrap_or_else(|panicked| {
            self.stop(&StoreError::io("writing the log", io::Error::other(panicked.to_string())));
            false
        })
    }

    /// Writes a durable mark after the last batch and ends, unless the writer has already ended.
    pub(super) fn finish(&mut self) {
        if self.write_buffer.is_closed() {
            return;
        }
        if let Err(error) = self.write_mark(true) {
            tracing::warn!(
                target: whizbang_core::telemetry::TARGET, error = %error_chain(&error),
                "failed to mark the end of the log",
            );
        }
        self.write_buffer.mark_closed();
    }

    /// Writes a batch and reports it. Returns whether this succeeded.
    fn write(&mut self, mut pending: PendingBatch) -> bool {
        match self.flush(&mut pending) {
            Ok(()) => {
                self.unmarked = Some((Arc::clone(&pending.segment), pending.offset + pending.bytes.len() as u64));
                let bytes = pending.bytes.len() as u64;
                self.write_buffer.mark_durable(pending, self.batch);
                self.flush_queue.add_growth(bytes);
                // No caller waits for the mark, so it is written only when there is no other work, and not flushed.
                if self.write_buffer.is_idle() && self.write_mark(false).is_err() {
                    // The next flush will report the error.
                    self.unmarked = None;
                }
                true
            }
            Err(error) => {
                self.stop(&StoreError::io(format!("writing to {}", pending.segment.name()), error));
                false
            }
        }
    }

    fn stop(&self, error: &StoreError) {
        tracing::error!(
            target: whizbang_core::telemetry::TARGET, error = %error_chain(error),
            "store failed: all further appends will be rejected; restart the node",
        );
        self.write_buffer.fail(error);
    }

    /// Writes and flushes one batch, and measures how long that took.
    ///
    /// The time decides whether actors' threads may flush: on a slow disk a batch of many turns on the writing thread beats one
    /// flush per turn, and the thread's other actors are not delayed.
    ///
    /// # Errors
    /// Those of the disk. The batch may be durable or not then, so the caller stops the store.
    fn flush(&mut self, pending: &mut PendingBatch) -> io::Result<()> {
        let PendingBatch { segment, offset, bytes, .. } = pending;
        let location = segment.start + *offset;
        let (head, frames) = bytes.split_at_mut(BATCH_BYTES);
        seal_frames(frames, segment.salt, location + BATCH_BYTES as u64);
        let length = u32::try_from(frames.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        BatchHead { number: self.batch + 1, length }.write(head, segment.salt, location);
        let file = self.file(segment)?;
        let begun = monotonic();
        file.write_at(bytes, *offset)?;
        file.sync()?;
        self.write_buffer.set_slow(begun.elapsed() > SLOW_FLUSH);
        self.batch += 1;
        Ok(())
    }

    /// Writes an empty batch, which tells the next opening that the log ends here in order.
    fn write_mark(&mut self, flush: bool) -> io::Result<()> {
        if let Some((segment, offset)) = self.unmarked.take() {
            let mut mark = [0; BATCH_BYTES];
            BatchHead { number: self.batch, length: 0 }.write(&mut mark, segment.salt, segment.start + offset);
            let file = self.file(&segment)?;
            file.write_at(&mark, offset)?;
            if flush {
                file.sync()?;
            } else {
                self.unmarked = Some((segment, offset));
            }
        }
        Ok(())
    }

    /// Returns the file of a segment, opened once.
    fn file(&mut self, segment: &Segment) -> io::Result<Arc<dyn DiskFile>> {
        match &self.file {
            Some((number, file)) if *number == segment.number => Ok(Arc::clone(file)),
            _ => {
                let file = self.segments.file(segment)?;
                self.file = Some((segment.number, Arc::clone(&file)));
                Ok(file)
            }
        }
    }
}

#[cfg(test)]
mod tests;
