//! Reads single records of the log.

use std::cell::RefCell;
use std::io;

use bytes::Bytes;

use super::super::record::{Location, Malformed};
use super::super::walk::Log;
use super::failure;
use super::frame::{FRAME_BYTES, frame_length, open_frame};
use super::segment::{Segment, Segments};
use crate::store::StoreError;

/// Most records fit into this, so that one read brings them.
const FIRST_READ: usize = 1024;

/// When records that are asked for lie close together, so much before them is read at once.
const WINDOW: u64 = 64 * 1024;

/// One walk through the log.
pub(super) struct LogReader<'a> {
    segments: &'a Segments,
    window: RefCell<Window>,
}

impl<'a> LogReader<'a> {
    pub(super) fn new(segments: &'a Segments) -> Self {
        Self { segments, window: RefCell::default() }
    }
}

impl Log for LogReader<'_> {
    fn read(&self, location: Location) -> Result<Bytes, StoreError> {
        let Some(segment) = self.segments.at(location) else {
            return Err(self.damaged(location, Malformed("a link leads out of the log")));
        };
        let window = &mut *self.window.borrow_mut();
        let mut need = FIRST_READ;
        loop {
            match window.look(&segment, location) {
                Look::Record(record) => return Ok(record),
                Look::Short(more) if more > need || !window.tried(location) => need = need.max(more),
                Look::Short(_) | Look::Damaged => {
                    return Err(self.damaged(location, Malformed("a record's checksum is wrong")));
                }
            }
            window.fill(self.segments, &segment, location, need).map_err(failure("reading the log"))?;
        }
    }

    fn damaged(&self, location: Location, Malformed(reason): Malformed) -> StoreError {
        self.segments.damaged(location, reason)
    }
}

enum Look {
    Record(Bytes),
    /// The window has not all of the frame, which has at least so many bytes.
    Short(usize),
    Damaged,
}

/// A piece of the log that was read.
#[derive(Default)]
struct Window {
    start: Location,
    bytes: Vec<u8>,
    /// The location it was read for.
    asked: Location,
}

impl Window {
    fn look(&self, segment: &Segment, location: Location) -> Look {
        let at = location.checked_sub(self.start).and_then(|at| usize::try_from(at).ok());
        let Some(bytes) = at.and_then(|at| self.bytes.get(at..)) else { return Look::Short(FRAME_BYTES) };
        let Some(length) = frame_length(bytes) else { return Look::Short(FRAME_BYTES) };
        if bytes.len() - FRAME_BYTES.min(bytes.len()) < length {
            return Look::Short(length.saturating_add(FRAME_BYTES));
        }
        match open_frame(bytes, segment.salt, location) {
            // Copied, so that whoever keeps one event does not keep its neighbors.
            Some(record) => Look::Record(Bytes::copy_from_slice(record)),
            None => Look::Damaged,
        }
    }

    fn tried(&self, location: Location) -> bool {
        self.asked == location
    }

    fn fill(&mut self, segments: &Segments, segment: &Segment, location: Location, need: usize) -> io::Result<()> {
        // The links lead backwards. If they have led only a little way, what is before will be wanted next.
        let close = self.asked > location && self.asked - location < WINDOW / 4;
        let before = if close { WINDOW.min(location - segment.start) } else { 0 };
        let room = segment.end() - (location - before);
        let length = usize::try_from((before + need as u64).min(room)).unwrap_or(usize::MAX);
        self.bytes.resize(length, 0);
        let read = segments.file(segment)?.read_at(&mut self.bytes, location - before - segment.start)?;
        self.bytes.truncate(read);
        (self.start, self.asked) = (location - before, location);
        Ok(())
    }
}
