//! How records stand in a segment: in batches, each written and flushed at once.
//!
//! ```text
//! batch   magic 4 | checksum 4 | number 8 | length 4 | reserved 4 | frames
//! frame   length 4 | checksum 4 | record
//! mark    a batch of length 0: the batch with its number is durable
//! ```
//!
//! Numbers of batches rise by one through all segments. A batch is written only after the one before it is durable, so
//! whatever comes behind a damaged batch proves that it was whole once: then it is damage and not an unfinished end. A mark
//! proves it when nothing else comes; the next batch takes its place.
//! Checksums are mixed with the place and with the segment's secret salt, so that bytes which were valid elsewhere, or in
//! another life of the same file, or that somebody sent as a payload, are not taken for a record.

use std::ops::Range;

use super::super::record::Location;

/// The bytes before a batch's frames.
pub(super) const BATCH_BYTES: usize = 24;

/// The bytes before a frame's record.
pub(super) const FRAME_BYTES: usize = 8;

const MAGIC: [u8; 4] = *b"WzB\x01";

/// What stands before a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatchHead {
    pub(super) number: u64,
    /// Of the frames; 0 for a mark.
    pub(super) length: u32,
}

impl BatchHead {
    /// Writes it to the beginning of `into`, which lies at `location`.
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

    /// Reads it from the beginning of `bytes`, if there is one.
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

/// The length of the frame at the beginning of `bytes`: of its record alone.
pub(super) fn frame_length(bytes: &[u8]) -> Option<usize> {
    let (length, _) = bytes.split_first_chunk::<4>()?;
    usize::try_from(u32::from_le_bytes(*length)).ok()
}

/// Writes the length of the record that follows the `FRAME_BYTES` at `start`, to the end of `part`.
pub(super) fn close_frame(part: &mut [u8], start: usize) {
    let length = part.len().saturating_sub(start + FRAME_BYTES);
    // A record has at most `MAX_TURN_BYTES`, so the length fits.
    put(part, start, &u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
}

/// The record in the frame at the beginning of `bytes`, which lies at `location`, if it is whole.
pub(super) fn open_frame(bytes: &[u8], salt: u64, location: Location) -> Option<&[u8]> {
    let length = frame_length(bytes)?;
    let (found, _) = bytes.get(4..)?.split_first_chunk::<4>()?;
    let record = bytes.get(FRAME_BYTES..FRAME_BYTES.checked_add(length)?)?;
    let whole = u32::from_le_bytes(*found) == sum(salt, location, length as u64, record);
    (whole && length > 0).then_some(record)
}

/// Writes the checksum of each frame in `frames`, whose first one lies at `location`.
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

/// Where the records in `frames` are, whose first frame lies at `location`, if all of them are whole and nothing is left over.
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

fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(slots) = into.get_mut(at..at + bytes.len()) {
        slots.copy_from_slice(bytes);
    }
}

/// CRC-32 of `bytes`, begun with a number that salt, place and length are mixed into (SplitMix64's finish).
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
        let mut part = vec![0; BATCH_BYTES];
        for record in [&b"one"[..], b"another", b"x"] {
            let start = part.len();
            part.extend_from_slice(&[0; FRAME_BYTES]);
            part.extend_from_slice(record);
            close_frame(&mut part, start);
        }
        let (head, frames) = part.split_at_mut(BATCH_BYTES);
        seal_frames(frames, salt, location + BATCH_BYTES as u64);
        BatchHead { number: 5, length: frames.len() as u32 }.write(head, salt, location);
        part
    }

    #[test]
    fn batch_is_read_only_at_its_own_location() {
        let part = batch(1, 1_000);
        let head = BatchHead::read(&part, 1, 1_000).unwrap();
        assert_eq!(head, BatchHead { number: 5, length: (part.len() - BATCH_BYTES) as u32 });
        let frames = &part[BATCH_BYTES..];
        let found: Vec<_> = records(frames, 1, 1_024).unwrap().into_iter().map(|(_, at)| &frames[at]).collect();
        assert_eq!(found, [&b"one"[..], b"another", b"x"]);
        assert_eq!(BatchHead::read(&part, 2, 1_000), None, "another salt");
        assert_eq!(BatchHead::read(&part, 1, 1_001), None, "another place");
        assert_eq!(records(frames, 2, 1_024), None, "another salt");
        assert_eq!(records(frames, 1, 1_025), None, "another place");
    }

    #[test]
    fn every_flipped_bit_is_detected() {
        let part = batch(1, 1_000);
        for bit in 0..part.len() * 8 {
            let mut spoilt = part.clone();
            spoilt[bit / 8] ^= 1 << (bit % 8);
            let head = BatchHead::read(&spoilt, 1, 1_000);
            let whole = head.is_some() && records(&spoilt[BATCH_BYTES..], 1, 1_024).is_some();
            // The reserved bytes are covered, too.
            assert!(!whole, "bit {bit}");
        }
    }
}
