//! Reads the log batch by batch and distinguishes an unfinished end from damage.
//!
//! Called by [recovery](super::recover) and by the [read-only store](super::read_only). Never writes: recovery clears
//! the end that is found here.
//!
//! A batch is unfinished if nothing was written after it: a crash may have interrupted its write. If anything was written
//! after it, it was durable once, and now is damaged: committed turns are gone, and the opening fails with the name of the
//! file. The later write is the proof, because a batch is written only after the one before it is durable.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::disk::DiskFile;
use super::failure;
use super::frame::{self, BATCH_BYTES, BatchHead, FRAME_BYTES};
use super::segment::{BatchLocation, FIRST_OFFSET, Segment, Segments};
use whizbang_core::store::StoreError;
use whizbang_log::record::Location;

/// The bytes of a segment that are in memory at once.
const WINDOW_BYTES: usize = 1024 * 1024;

/// The end of a log.
#[derive(Clone, Debug)]
pub(super) struct LogEnd {
    /// The place of the next batch.
    pub(super) place: BatchLocation,
    /// The place of the last batch, if this scan read one.
    pub(super) last: Option<BatchLocation>,
    /// `true` if a mark proves that the last batch is durable.
    pub(super) marked: bool,
}

/// Reads all batches from `from` on and passes their records to `visit`, in order.
///
/// # Errors
/// [`StoreError::Corrupt`] if a batch is damaged that was once complete, and the errors of `visit`.
pub(super) fn scan(
    segments: &Segments,
    from: BatchLocation,
    visit: impl FnMut(Location, &[u8]) -> Result<(), StoreError>,
) -> Result<LogEnd, StoreError> {
    let end = follow(segments, from, visit)?;
    match find_later_write(segments, end.place)? {
        Some(later_write) => Err(damaged(segments, end.place, &later_write)?),
        None => Ok(end),
    }
}

/// Reads all complete batches from `from` on, up to the first one that is missing or invalid.
///
/// # Errors
/// The errors of `visit`.
pub(super) fn follow(
    segments: &Segments,
    from: BatchLocation,
    visit: impl FnMut(Location, &[u8]) -> Result<(), StoreError>,
) -> Result<LogEnd, StoreError> {
    follow_page(segments, from, usize::MAX, visit).map(|(end, _)| end)
}

/// Reads like [`follow`], and stops behind the batch with which it has read `limit` bytes. Returns whether it has stopped there;
/// another call continues at the returned place.
///
/// # Errors
/// The errors of `visit`.
pub(super) fn follow_page(
    segments: &Segments,
    from: BatchLocation,
    limit: usize,
    mut visit: impl FnMut(Location, &[u8]) -> Result<(), StoreError>,
) -> Result<(LogEnd, bool), StoreError> {
    let all = segments.all();
    let mut rest = all.iter().skip_while(|segment| segment.number < from.segment);
    let mut place = from;
    let mut end = LogEnd { place, last: None, marked: false };
    let Some(segment) = rest.next() else { return Ok((end, false)) };
    let mut window = SegmentWindow::open(segments, segment)?;
    let mut read = 0;
    loop {
        if read >= limit {
            return Ok((end, true));
        }
        match window.batch(place)? {
            ScannedBatch::Batch { length, records } => {
                let frames = window.get(place.offset + BATCH_BYTES as u64, length)?;
                for (location, range) in records {
                    visit(location, frames.get(range).unwrap_or_default())?;
                }
                let last = Some(place);
                place.offset += (BATCH_BYTES + length) as u64;
                place.batch += 1;
                read += length;
                end = LogEnd { place, last, marked: false };
            }
            found => {
                let is_mark = matches!(found, ScannedBatch::Mark);
                // Only the header is damaged if the records are intact and a later write proves that they are all.
                // Treating this as damage would give up committed turns that can still be read.
                if !is_mark && let Some(length) = window.length_without_head(place, &mut rest.clone(), segments)? {
                    let file = segments.path(&window.segment);
                    tracing::warn!(target: whizbang_core::telemetry::TARGET, file, offset = place.offset, batch = place.batch, "header of a batch damaged: its records are intact and were kept");
                    let offset = place.offset + BATCH_BYTES as u64;
                    let (salt, location) = (window.segment.salt, window.segment.start + offset);
                    let frames = window.get(offset, length)?;
                    for (location, range) in frame::records(frames, salt, location).unwrap_or_default() {
                        visit(location, frames.get(range).unwrap_or_default())?;
                    }
                    let last = Some(place);
                    place.offset = offset + length as u64;
                    place.batch += 1;
                    end = LogEnd { place, last, marked: false };
                    continue;
                }
                end.marked = is_mark;
                // The batch may be in a later segment if it did not fit into this one.
                let Some(next) = first_with(segments, rest.clone(), place.batch)? else { break };
                place = BatchLocation { segment: next.number, offset: FIRST_OFFSET, batch: place.batch };
                window = SegmentWindow::open(segments, next)?;
                rest.by_ref().find(|segment| segment.number == next.number);
            }
        }
    }
    Ok((end, false))
}

/// Returns the error for a batch at `place` that was once complete, as proven by `later_write`.
pub(super) fn damaged(
    segments: &Segments,
    place: BatchLocation,
    later_write: &LaterWrite,
) -> Result<StoreError, StoreError> {
    let LaterWrite { segment, offset, number } = later_write;
    let reason = format!(
        "batch {} is damaged: it was durable once, because {} contains number {number} at byte {offset}",
        place.batch,
        segments.path(segment),
    );
    Ok(segments.damaged(segments.location(place)?, &reason))
}

/// Returns the segment that begins with the complete batch of this number. Empty segments may precede it: they were
/// created with a size too small for the batch.
fn first_with<'a>(
    segments: &Segments,
    later: impl Iterator<Item = &'a Arc<Segment>>,
    batch: u64,
) -> Result<Option<&'a Arc<Segment>>, StoreError> {
    for segment in later {
        let place = BatchLocation { segment: segment.number, offset: FIRST_OFFSET, batch };
        if matches!(SegmentWindow::open(segments, segment)?.batch(place)?, ScannedBatch::Batch { .. }) {
            return Ok(Some(segment));
        }
    }
    Ok(None)
}

/// A later write, which proves that a batch was durable.
pub(super) struct LaterWrite {
    /// The segment that contains it.
    segment: Arc<Segment>,
    /// Its offset in the segment.
    offset: u64,
    /// The number of the batch, or of the batch before a mark.
    number: u64,
}

/// Finds something at or after `place` that was written after the batch expected there. Reads everything behind the end,
/// which is mostly zeros: at most two segments in practice.
///
/// # Errors
/// Those of the disk.
pub(super) fn find_later_write(segments: &Segments, place: BatchLocation) -> Result<Option<LaterWrite>, StoreError> {
    for segment in segments.all().iter().filter(|segment| segment.number >= place.segment) {
        let mut window = SegmentWindow::open(segments, segment)?;
        let mut offset = if segment.number == place.segment { place.offset } else { FIRST_OFFSET };
        while offset + BATCH_BYTES as u64 <= segment.size {
            let Some(next) = window.next_nonzero(offset)? else { break };
            offset = next;
            if let Some(head) = window.head(offset)? {
                let later = if head.length == 0 { head.number >= place.batch } else { head.number > place.batch };
                if later {
                    return Ok(Some(LaterWrite { segment: Arc::clone(segment), offset, number: head.number }));
                }
            }
            offset += 1;
        }
    }
    Ok(None)
}

/// The bytes at a place where a batch may begin.
enum ScannedBatch {
    /// A complete batch with the expected number: the length of its frames, and its records as ranges of them.
    Batch { length: usize, records: Vec<(Location, Range<usize>)> },
    /// The log ended here in order.
    Mark,
    /// Zeros or an incomplete batch.
    Nothing,
}

/// A segment's file, read in large pieces.
pub(super) struct SegmentWindow {
    /// The segment.
    segment: Arc<Segment>,
    /// Its file.
    file: Arc<dyn DiskFile>,
    /// The offset of the bytes in memory.
    start: u64,
    /// The bytes in memory, about 1 MiB.
    bytes: Vec<u8>,
}

impl SegmentWindow {
    /// Opens a segment. Nothing is read yet.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub(super) fn open(segments: &Segments, segment: &Arc<Segment>) -> Result<Self, StoreError> {
        let file = segments.file(segment).map_err(failure("opening a segment"))?;
        Ok(Self { segment: Arc::clone(segment), file, start: 0, bytes: Vec::new() })
    }

    /// Returns up to `length` bytes from `offset` on; fewer only at the end of the segment.
    pub(super) fn get(&mut self, offset: u64, length: usize) -> Result<&[u8], StoreError> {
        let length = length.min(usize::try_from(self.segment.size.saturating_sub(offset)).unwrap_or(usize::MAX));
        let end = offset + length as u64;
        if offset < self.start || end > self.start + self.bytes.len() as u64 {
            self.fill(offset, length.max(WINDOW_BYTES)).map_err(failure("reading a segment"))?;
        }
        let from = usize::try_from(offset - self.start).unwrap_or(usize::MAX);
        Ok(self.bytes.get(from..from + length).unwrap_or_default())
    }

    /// Reads the bytes around an offset, unless they are in memory.
    fn fill(&mut self, offset: u64, length: usize) -> io::Result<()> {
        let length = length.min(usize::try_from(self.segment.size.saturating_sub(offset)).unwrap_or(usize::MAX));
        self.bytes.resize(length, 0);
        let read = self.file.read_at(&mut self.bytes, offset)?;
        self.bytes.truncate(read);
        self.start = offset;
        Ok(())
    }

    /// Reads the header of a batch; `None` if there is none.
    fn head(&mut self, offset: u64) -> Result<Option<BatchHead>, StoreError> {
        let (salt, location) = (self.segment.salt, self.segment.start + offset);
        Ok(BatchHead::read(self.get(offset, BATCH_BYTES)?, salt, location))
    }

    /// Reads the batch at `place`, if it is complete and has the expected number, or the mark after the last batch. A batch
    /// with another number is [`ScannedBatch::Nothing`]: it is the rest of an earlier use of the place.
    fn batch(&mut self, place: BatchLocation) -> Result<ScannedBatch, StoreError> {
        let Some(head) = self.head(place.offset)? else { return Ok(ScannedBatch::Nothing) };
        if head.length == 0 {
            let marks = head.number.checked_add(1) == Some(place.batch);
            return Ok(if marks { ScannedBatch::Mark } else { ScannedBatch::Nothing });
        }
        let length = usize::try_from(head.length).unwrap_or(usize::MAX);
        let offset = place.offset + BATCH_BYTES as u64;
        let (salt, location, size) = (self.segment.salt, self.segment.start + offset, self.segment.size);
        if head.number != place.batch || offset + length as u64 > size {
            return Ok(ScannedBatch::Nothing);
        }
        let frames = self.get(offset, length)?;
        match frame::records(frames, salt, location) {
            Some(records) if frames.len() == length => Ok(ScannedBatch::Batch { length, records }),
            _ => Ok(ScannedBatch::Nothing),
        }
    }

    /// Returns the length of the batch at `place` whose header is damaged, if its records are valid and complete. The
    /// proof that they are complete is the next batch, or the mark for this one.
    fn length_without_head(
        &mut self,
        place: BatchLocation,
        later: &mut dyn Iterator<Item = &Arc<Segment>>,
        segments: &Segments,
    ) -> Result<Option<usize>, StoreError> {
        let begin = place.offset + BATCH_BYTES as u64;
        let (salt, start) = (self.segment.salt, self.segment.start);
        let mut offset = begin;
        loop {
            let length = self.get(offset, FRAME_BYTES).map(|bytes| frame::frame_length(bytes).unwrap_or(0))?;
            let frame = length.saturating_add(FRAME_BYTES);
            if length == 0 || frame as u64 > self.segment.size.saturating_sub(offset) {
                break;
            }
            if frame::open_frame(self.get(offset, frame)?, salt, start + offset).is_none() {
                break;
            }
            offset += frame as u64;
        }
        if offset == begin {
            return Ok(None);
        }
        let next = place.batch.saturating_add(1);
        let is_proof = match self.head(offset)? {
            Some(head) if head.length == 0 => head.number == place.batch,
            Some(head) => head.number == next,
            None => first_with(segments, later, next)?.is_some(),
        };
        Ok(is_proof.then(|| usize::try_from(offset - begin).unwrap_or(usize::MAX)))
    }

    /// Returns the offset of the next nonzero byte at or after `offset`.
    pub(super) fn next_nonzero(&mut self, mut offset: u64) -> Result<Option<u64>, StoreError> {
        const BLOCK: usize = 4096;
        const ZEROS: [u8; BLOCK] = [0; BLOCK];
        while offset < self.segment.size {
            // Compare whole blocks first, because most of a segment is empty.
            let block = self.get(offset, BLOCK)?;
            if block.is_empty() {
                return Ok(None);
            }
            if ZEROS.get(..block.len()) != Some(block) {
                let nth = block.iter().position(|byte| *byte != 0).unwrap_or(0);
                return Ok(Some(offset + nth as u64));
            }
            offset += block.len() as u64;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
