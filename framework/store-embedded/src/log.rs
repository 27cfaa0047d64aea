//! Reads single records of the log.
//!
//! Called by the readers of [shards](super::shard) while they follow the links between records. Each frame's checksum
//! is verified on every read.
//!
//! Links lead backwards, from a turn to the one before it. A reader therefore begins at the newest record that it needs and
//! reads towards older ones. Records that are near each other are read with one system call.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::disk::DiskFile;
use super::failure;
use super::frame::{FRAME_BYTES, frame_length, open_frame};
use super::segment::{Segment, Segments};
use whizbang_core::store::StoreError;
use whizbang_log::record::{Location, Malformed};
use whizbang_log::traverse::Log;

/// The size of the first read of a record; most records fit into it.
const FIRST_READ: usize = 1024;

/// The amount before a record that is read with it when records are close together.
const WINDOW_BYTES: u64 = 64 * 1024;

/// Records farther apart than this are read separately: copying the bytes between them takes longer than another system
/// call. Measured: a read of 1 KiB takes 0.5 us, one of 64 KiB 2.5 us.
const NEAR_BYTES: u64 = 12 * 1024;

/// The bytes of records that share one allocation, if sharing is allowed.
const PACK_BYTES: usize = 16 * 1024;

/// A traversal of the log.
pub(super) struct LogReader<'a> {
    /// The files of the log.
    segments: &'a Segments,
    /// The bytes that were read last. A reader is used by one thread.
    reading: RefCell<ReadState>,
}

impl<'a> LogReader<'a> {
    /// Creates a reader that allocates each record separately, so that keeping one event does not keep its neighbors in
    /// memory.
    pub(super) fn new(segments: &'a Segments) -> Self {
        Self { segments, reading: RefCell::default() }
    }

    /// Creates a reader whose records share memory, for callers that drop all of them together.
    pub(super) fn sharing_memory(segments: &'a Segments) -> Self {
        let reading = ReadState { pack: Some(BytesMut::new()), ..ReadState::default() };
        Self { segments, reading: RefCell::new(reading) }
    }
}

impl Log for LogReader<'_> {
    fn read(&self, location: Location) -> Result<Bytes, StoreError> {
        let reading = &mut *self.reading.borrow_mut();
        let Some(open) = reading.segment_at(self.segments, location).map_err(failure("opening the log"))? else {
            return Err(self.damaged(location, Malformed("a link leads outside of the log")));
        };
        let mut need = FIRST_READ;
        loop {
            match reading.window.lookup(&open.segment, location) {
                Lookup::Record(record) => return Ok(copy(&mut reading.pack, record)),
                Lookup::Short(more) if more > need || reading.window.asked != location => need = need.max(more),
                Lookup::Short(_) | Lookup::Damaged => {
                    return Err(self.damaged(location, Malformed("a record's checksum is wrong")));
                }
            }
            reading.window.fill(&open, location, need).map_err(failure("reading the log"))?;
        }
    }

    fn damaged(&self, location: Location, Malformed(reason): Malformed) -> StoreError {
        self.segments.damaged(location, reason)
    }
}

/// Copies a record into the memory of its page, so that many small records need one allocation.
fn copy(pack: &mut Option<BytesMut>, record: &[u8]) -> Bytes {
    let Some(pack) = pack else { return Bytes::copy_from_slice(record) };
    if pack.capacity() < record.len() {
        *pack = BytesMut::with_capacity(PACK_BYTES.max(record.len()));
    }
    pack.extend_from_slice(record);
    pack.split().freeze()
}

/// The state of a traversal between two records.
#[derive(Default)]
struct ReadState {
    /// The segment of the last record.
    segment: Option<OpenSegment>,
    /// The bytes around the last record.
    window: ReadWindow,
    /// The memory that records share; `None` if each record has its own.
    pack: Option<BytesMut>,
}

/// The segment that was read last, and its file.
#[derive(Clone)]
struct OpenSegment {
    /// The segment.
    segment: Arc<Segment>,
    /// Its file. Open as long as the traversal needs it.
    file: Arc<dyn DiskFile>,
}

impl ReadState {
    /// Returns the segment that contains `location`, if there is one.
    fn segment_at(&mut self, segments: &Segments, location: Location) -> io::Result<Option<OpenSegment>> {
        let is_in = |open: &&OpenSegment| (open.segment.start..open.segment.end()).contains(&location);
        if let Some(open) = self.segment.as_ref().filter(is_in) {
            return Ok(Some(open.clone()));
        }
        let Some(segment) = segments.at(location) else { return Ok(None) };
        let file = segments.file(&segment)?;
        self.segment = Some(OpenSegment { segment, file });
        Ok(self.segment.clone())
    }
}

/// The result of looking for a record in the window.
enum Lookup<'a> {
    /// The record is in memory.
    Record(&'a [u8]),
    /// The window does not hold the whole frame, which has at least this many bytes.
    Short(usize),
    /// The bytes are not a record.
    Damaged,
}

/// A part of the log in memory.
#[derive(Default)]
struct ReadWindow {
    /// The location of the first byte.
    start: Location,
    /// The bytes, fewer than asked for at the end of a segment.
    bytes: Vec<u8>,
    /// The location for which it was read.
    asked: Location,
}

impl ReadWindow {
    /// Looks for a record in the bytes in memory.
    fn lookup(&self, segment: &Segment, location: Location) -> Lookup<'_> {
        let at = location.checked_sub(self.start).and_then(|at| usize::try_from(at).ok());
        let Some(bytes) = at.and_then(|at| self.bytes.get(at..)) else { return Lookup::Short(FRAME_BYTES) };
        let Some(length) = frame_length(bytes) else { return Lookup::Short(FRAME_BYTES) };
        if bytes.len() - FRAME_BYTES.min(bytes.len()) < length {
            return Lookup::Short(length.saturating_add(FRAME_BYTES));
        }
        open_frame(bytes, segment.salt, location).map_or(Lookup::Damaged, Lookup::Record)
    }

    /// Reads bytes around a record. Neighbors are likely to be read next. One system call. The memory is reused, so a
    /// traversal allocates only for the records that it returns.
    fn fill(&mut self, open: &OpenSegment, location: Location, need: usize) -> io::Result<()> {
        let segment = &open.segment;
        // Links lead backwards. If the last one was short, the bytes before this record will probably be needed next.
        let close = self.asked > location && self.asked - location < NEAR_BYTES;
        let before = if close { WINDOW_BYTES.min(location - segment.start) } else { 0 };
        let available = segment.end() - (location - before);
        let length = usize::try_from((before + need as u64).min(available)).unwrap_or(usize::MAX);
        self.bytes.resize(length, 0);
        let read = open.file.read_at(&mut self.bytes, location - before - segment.start)?;
        self.bytes.truncate(read);
        (self.start, self.asked) = (location - before, location);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
