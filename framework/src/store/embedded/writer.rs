//! The one writer of a store: a batch, one write, one flush, one report.
//!
//! Whoever has its lock writes: a thread of the store, for what has gathered; the thread of an actor, for a turn that nothing
//! else is in flight with; tests, by hand. Parts are taken with the lock held, so they are written in their order.
//! The first error ends it for good: after a failed flush nobody knows what the disk holds, and asking again would be answered
//! with a lie.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::disk::DiskFile;
use super::flusher::Flusher;
use super::frame::{BATCH_BYTES, BatchHead, seal_frames};
use super::segment::{Segment, Segments};
use super::write_buffer::{PendingBatch, WriteBuffer};
use crate::clock::monotonic;
use crate::store::StoreError;

/// A flush that takes longer is too slow for the thread of an actor to stand still for it.
const SLOW_FLUSH: Duration = Duration::from_micros(500);

pub(super) struct LogWriter {
    write_buffer: Arc<WriteBuffer>,
    segments: Arc<Segments>,
    flusher: Arc<Flusher>,
    /// The number of the last batch that was written.
    batch: u64,
    file: Option<(u64, Arc<dyn DiskFile>)>,
    /// Where the last batch ended, if no mark stands there yet.
    unmarked: Option<(Arc<Segment>, u64)>,
}

impl LogWriter {
    pub(super) fn new(journal: Arc<WriteBuffer>, segments: Arc<Segments>, keeper: Arc<Flusher>, batch: u64) -> Self {
        Self { write_buffer: journal, segments, flusher: keeper, batch, file: None, unmarked: None }
    }

    /// Writes the next part, if there is one; whether there was, and it went well.
    pub(super) fn step(&mut self) -> bool {
        match self.write_buffer.take_batch() {
            Some(part) => self.write(part),
            None => false,
        }
    }

    /// Leaves a durable mark behind the last batch and ends, unless it has ended.
    pub(super) fn finish(&mut self) {
        if self.write_buffer.is_closed() {
            return;
        }
        if let Err(error) = self.write_mark(true) {
            tracing::warn!(target: crate::telemetry::TARGET, %error, "the end of the log could not be marked");
        }
        self.write_buffer.mark_closed();
    }

    /// Whether it went well.
    fn write(&mut self, mut part: PendingBatch) -> bool {
        match self.flush(&mut part) {
            Ok(()) => {
                self.unmarked = Some((Arc::clone(&part.segment), part.offset + part.bytes.len() as u64));
                let bytes = part.bytes.len() as u64;
                self.write_buffer.mark_durable(part, self.batch);
                self.flusher.add_growth(bytes);
                // Nobody waits for the mark, so it is written when there is nothing better to do, and not flushed.
                if self.write_buffer.is_idle() && self.write_mark(false).is_err() {
                    // The next flush will say it again.
                    self.unmarked = None;
                }
                true
            }
            Err(error) => {
                let error = StoreError::io(format!("writing to {}", part.segment.name()), error);
                tracing::error!(target: crate::telemetry::TARGET, %error, "the store has failed and takes nothing in");
                self.write_buffer.fail(&error);
                false
            }
        }
    }

    fn flush(&mut self, part: &mut PendingBatch) -> io::Result<()> {
        let PendingBatch { segment, offset, bytes, .. } = part;
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
