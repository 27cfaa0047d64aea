//! A log that a test writes batch by batch.

use std::sync::Arc;

use super::memory_disk::MemoryDisk;
use crate::frame::{BATCH_BYTES, BatchHead, FRAME_BYTES, close_frame, seal_frames};
use crate::segment::{FIRST_OFFSET, Segment, Segments, name};

/// The segments of a log in memory.
pub(crate) struct TestLog {
    pub(crate) disk: MemoryDisk,
    pub(crate) segments: Vec<Segment>,
}

/// Returns the frames of records, whose checksums are missing.
pub(crate) fn frames_of(records: &[Vec<u8>]) -> Vec<u8> {
    let mut frames = Vec::new();
    for record in records {
        let start = frames.len();
        frames.extend_from_slice(&[0; FRAME_BYTES]);
        frames.extend_from_slice(record);
        close_frame(&mut frames, start);
    }
    frames
}

impl TestLog {
    /// Creates segments of these sizes, filled with zeros.
    pub(crate) fn new(sizes: &[u64]) -> Self {
        let mut log = Self { disk: MemoryDisk::default(), segments: Vec::new() };
        for size in sizes {
            let (number, start) = log.segments.last().map_or((1, 0), |last| (last.number + 1, last.end()));
            let segment = Segment { number, start, size: *size, salt: 1000 + number };
            let mut bytes = segment.head();
            bytes.resize(*size as usize, 0);
            log.disk.put(&segment.name(), &bytes);
            log.segments.push(segment);
        }
        log
    }

    /// Opens the log.
    pub(crate) fn open(&self) -> Segments {
        Segments::read(&self.disk.disk()).unwrap()
    }

    /// Returns the segment with this number.
    pub(crate) fn segment(&self, number: u64) -> Arc<Segment> {
        Arc::new(self.segments[number as usize - 1].clone())
    }

    /// Overwrites bytes.
    pub(crate) fn put(&self, segment: u64, offset: u64, bytes: &[u8]) {
        let mut content = self.disk.bytes(&name(segment));
        content[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
        self.disk.put(&name(segment), &content);
    }

    /// Writes a batch and returns the offset after it.
    pub(crate) fn batch(&self, segment: u64, offset: u64, number: u64, records: &[Vec<u8>]) -> u64 {
        let Segment { start, salt, .. } = *self.segment(segment);
        let mut frames = frames_of(records);
        seal_frames(&mut frames, salt, start + offset + BATCH_BYTES as u64);
        self.head(segment, offset, number, frames.len());
        self.put(segment, offset + BATCH_BYTES as u64, &frames);
        offset + (BATCH_BYTES + frames.len()) as u64
    }

    /// Writes the header of a batch alone; a mark for the length 0.
    pub(crate) fn head(&self, segment: u64, offset: u64, number: u64, length: usize) {
        let Segment { start, salt, .. } = *self.segment(segment);
        let mut head = [0; BATCH_BYTES];
        BatchHead { number, length: length as u32 }.write(&mut head, salt, start + offset);
        self.put(segment, offset, &head);
    }

    /// Writes batches with these records from the beginning of the first segment on, and returns the offset after them.
    pub(crate) fn batches(&self, batches: &[&[Vec<u8>]]) -> u64 {
        let mut offset = FIRST_OFFSET;
        for (records, number) in batches.iter().zip(1..) {
            offset = self.batch(1, offset, number, records);
        }
        offset
    }
}
