//! Layout of records in a segment: batches, each written and flushed at once.
//!
//! ```text
//! batch   magic 4 | checksum 4 | number 8 | length 4 | reserved 4 | frames
//! frame   length 4 | checksum 4 | record
//! mark    a batch of length 0: the batch with its number is durable
//! ```
//!
//! Batch numbers increase by one through all segments. A batch is written only after the one before it is durable. So
//! anything after a damaged batch proves that the batch was once complete: this is damage and not an unfinished end. If
//! nothing else follows, a mark provides this proof; the next batch overwrites it.
//!
//! Checksums include the location and the segment's secret salt. Valid bytes from another location, from an earlier use
//! of the same file, or from a payload sent by a caller are therefore not mistaken for a record.
//!
//! A checksum covers the bytes, the salt of the segment and the location. So bytes of an earlier use of the same place, or of
//! another store, are never taken for a record.

use std::ops::Range;

use whizbang_log::record::Location;

/// The size of a batch's header.
pub(super) const BATCH_BYTES: usize = 24;

/// The size of a frame's header.
pub(super) const FRAME_BYTES: usize = 8;

/// The first bytes of a batch, with the version of the format.
const MAGIC: [u8; 4] = *b"WzB\x01";

/// The header of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatchHead {
    /// The number of the batch. Batches are numbered from 1 without gaps, through all segments.
    pub(super) number: u64,
    /// The length of the frames; 0 for a mark.
    pub(super) length: u32,
}

impl BatchHead {
    /// Writes the header to the beginning of `into`, which is at `location`.
    pub(super) fn write(self, into: &mut [u8], salt: u64, location: Location) {
        let mut head = [0; BATCH_BYTES];
        let (front, back) = head.split_at_mut(8);
        put(back, 0, &self.number.to_le_bytes());
        put(back, 8, &self.length.to_le_bytes());
        let sum = sum(salt, location, 0, back);
        put(front, 0, &MAGIC);
        put(front, 4, &sum.to_le_bytes());
        put(into, 0, &head);
    }

    /// Reads a header from the beginning of `bytes`, or returns `None` if it is invalid.
    pub(super) fn read(bytes: &[u8], salt: u64, location: Location) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        if *magic != MAGIC {
            return None;
        }
        let (found, rest) = rest.split_first_chunk::<4>()?;
        let (body, _) = rest.split_first_chunk::<16>()?;
        let (number, rest) = body.split_first_chunk::<8>()?;
        let (length, _) = rest.split_first_chunk::<4>()?;
        let whole = u32::from_le_bytes(*found) == sum(salt, location, 0, body);
        whole.then(|| Self { number: u64::from_le_bytes(*number), length: u32::from_le_bytes(*length) })
    }
}

/// Returns the length of the record in the frame at the beginning of `bytes`.
pub(super) fn frame_length(bytes: &[u8]) -> Option<usize> {
    let (length, _) = bytes.split_first_chunk::<4>()?;
    usize::try_from(u32::from_le_bytes(*length)).ok()
}

/// Sets the length of the record that follows the `FRAME_BYTES` at `start` and ends with `batch_bytes`.
pub(super) fn close_frame(batch_bytes: &mut [u8], start: usize) {
    let length = batch_bytes.len().saturating_sub(start + FRAME_BYTES);
    // A record has at most `MAX_TURN_BYTES`, so the length fits.
    put(batch_bytes, start, &u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
}

/// Returns the record in the frame at the beginning of `bytes`, which is at `location`, if the frame is valid.
pub(super) fn open_frame(bytes: &[u8], salt: u64, location: Location) -> Option<&[u8]> {
    let length = frame_length(bytes)?;
    let (found, _) = bytes.get(4..)?.split_first_chunk::<4>()?;
    let record = bytes.get(FRAME_BYTES..FRAME_BYTES.checked_add(length)?)?;
    let whole = u32::from_le_bytes(*found) == sum(salt, location, length as u64, record);
    (whole && length > 0).then_some(record)
}

/// Writes the checksum of each frame in `frames`, the first of which is at `location`.
pub(super) fn seal_frames(frames: &mut [u8], salt: u64, location: Location) {
    let mut at = 0;
    while let Some(length) = frames.get(at..).and_then(frame_length) {
        let start = at + FRAME_BYTES;
        let Some(record) = frames.get(start..start + length) else { return };
        let sum = sum(salt, location + at as u64, length as u64, record);
        put(frames, at + 4, &sum.to_le_bytes());
        at = start + length;
    }
}

/// Returns the ranges of the records in `frames`, the first of which is at `location`, if all frames are valid and
/// nothing follows them.
pub(super) fn records(frames: &[u8], salt: u64, location: Location) -> Option<Vec<(Location, Range<usize>)>> {
    let mut records = Vec::new();
    let mut at = 0;
    while at < frames.len() {
        let place = location + at as u64;
        let length = open_frame(frames.get(at..)?, salt, place)?.len();
        let start = at + FRAME_BYTES;
        at = start + length;
        records.push((place, start..at));
    }
    Some(records)
}

/// Overwrites bytes at an offset. The caller has reserved the space.
fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(slots) = into.get_mut(at..at + bytes.len()) {
        slots.copy_from_slice(bytes);
    }
}

/// Returns the CRC-32 of `bytes`, seeded with a mix of salt, location and length (the finalizer of SplitMix64).
pub(super) fn sum(salt: u64, location: Location, length: u64, bytes: &[u8]) -> u32 {
    let mut z = salt ^ location.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (length << 40);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    let mut hasher = crc32fast::Hasher::new_with_initial((z ^ (z >> 31)) as u32);
    hasher.update(bytes);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(salt: u64, location: Location) -> Vec<u8> {
        let mut batch_bytes = vec![0; BATCH_BYTES];
        for record in [&b"one"[..], b"another", b"x"] {
            let start = batch_bytes.len();
            batch_bytes.extend_from_slice(&[0; FRAME_BYTES]);
            batch_bytes.extend_from_slice(record);
            close_frame(&mut batch_bytes, start);
        }
        let (head, frames) = batch_bytes.split_at_mut(BATCH_BYTES);
        seal_frames(frames, salt, location + BATCH_BYTES as u64);
        BatchHead { number: 5, length: frames.len() as u32 }.write(head, salt, location);
        batch_bytes
    }

    #[test]
    fn batch_is_read_only_at_its_own_location() {
        let batch_bytes = batch(1, 1_000);
        let head = BatchHead::read(&batch_bytes, 1, 1_000).unwrap();
        assert_eq!(head, BatchHead { number: 5, length: (batch_bytes.len() - BATCH_BYTES) as u32 });
        let frames = &batch_bytes[BATCH_BYTES..];
        let found: Vec<_> = records(frames, 1, 1_024).unwrap().into_iter().map(|(_, at)| &frames[at]).collect();
        assert_eq!(found, [&b"one"[..], b"another", b"x"]);
        assert_eq!(BatchHead::read(&batch_bytes, 2, 1_000), None, "another salt");
        assert_eq!(BatchHead::read(&batch_bytes, 1, 1_001), None, "another location");
        assert_eq!(records(frames, 2, 1_024), None, "another salt");
        assert_eq!(records(frames, 1, 1_025), None, "another location");
    }

    #[test]
    fn every_flipped_bit_is_detected() {
        let batch_bytes = batch(1, 1_000);
        for bit in 0..batch_bytes.len() * 8 {
            let mut corrupt = batch_bytes.clone();
            corrupt[bit / 8] ^= 1 << (bit % 8);
            let head = BatchHead::read(&corrupt, 1, 1_000);
            let whole = head.is_some() && records(&corrupt[BATCH_BYTES..], 1, 1_024).is_some();
            // The reserved bytes are covered as well.
            assert!(!whole, "bit {bit}");
        }
    }

    #[test]
    fn checksum_of_known_bytes_is_frozen() {
        // Computed by another program, from the CRC-32 of zlib.
        assert_eq!(sum(0, 0, 0, b""), 0);
        assert_eq!(sum(0x0123_4567_89AB_CDEF, 1000, 5, b"hello"), 0x2EBD_67B3);
        assert_eq!(sum(u64::MAX, 1 << 40, 70_000, &[0; 9]), 0xFF6F_1570);
        assert_eq!(sum(7, 536, 1, b"x"), 0xA71A_9FB1);
    }

    #[test]
    fn frame_without_a_record_is_invalid() {
        let mut frames = vec![0; FRAME_BYTES];
        close_frame(&mut frames, 0);
        seal_frames(&mut frames, 1, 512);
        assert_eq!(open_frame(&frames, 1, 512), None);
        frames.push(7);
        close_frame(&mut frames, 0);
        seal_frames(&mut frames, 1, 512);
        assert_eq!(open_frame(&frames, 1, 512), Some(&[7][..]));
        assert_eq!(open_frame(&frames[..FRAME_BYTES], 1, 512), None, "cut off");
        assert_eq!(open_frame(&frames[..3], 1, 512), None, "no length");
    }

    #[test]
    fn bytes_after_the_last_frame_are_invalid() {
        let mut batch_bytes = batch(1, 1_000);
        let ranges = records(&batch_bytes[BATCH_BYTES..], 1, 1_024).unwrap();
        assert_eq!(ranges, [(1_024, 8..11), (1_035, 19..26), (1_050, 34..35)]);
        batch_bytes.push(0);
        assert_eq!(records(&batch_bytes[BATCH_BYTES..], 1, 1_024), None);
        assert_eq!(records(&[], 1, 1_024), Some(Vec::new()));
    }
}
