//! Anchors: locations of some records of a chain, from which the links lead to the records before them.
//!
//! Used for the events of a shard and for the entries of each destination. Anchors increase, so they are saved as differences.

use crate::record::decode::Decoder;
use crate::record::{Malformed, encode};

/// One in this many positions has its location in the index. Other positions are reached from there along the links.
pub(super) const POSITIONS_PER_ANCHOR: u64 = 256;

/// The number of entries encoded per slice. Appends wait while a slice is encoded.
pub(crate) const ENTRIES_AT_ONCE: usize = 4096;

/// Appends the next of the first `count` anchors and returns whether these were the last. Anchors increase, so each is
/// encoded as the difference from the one before.
pub(super) fn encode_anchors(
    into: &mut Vec<u8>,
    marks: &[u64],
    count: usize,
    next: &mut usize,
    before: &mut u64,
) -> bool {
    let end = count.min(*next + ENTRIES_AT_ONCE);
    for mark in marks.get(*next..end).unwrap_or_default() {
        encode::number(into, mark.wrapping_sub(*before));
        *before = *mark;
    }
    *next = end;
    end == count
}

/// Reads a list of locations, which are written as differences.
pub(super) fn decode_anchors(decoder: &mut Decoder<'_>) -> Result<Vec<u64>, Malformed> {
    let count = decoder.count()?;
    let mut marks = Vec::with_capacity(count);
    let mut mark = 0u64;
    for _ in 0..count {
        mark = mark.wrapping_add(decoder.number()?);
        marks.push(mark);
    }
    Ok(marks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_are_saved_in_slices() {
        for count in [0, 1, ENTRIES_AT_ONCE - 1, ENTRIES_AT_ONCE, ENTRIES_AT_ONCE + 1, 2 * ENTRIES_AT_ONCE + 7] {
            // Later anchors are added while a save runs, and are not part of it.
            let marks: Vec<u64> = (1..).map(|nth| nth * 1_000).take(count + 3).collect();
            let mut bytes = Vec::new();
            encode::number(&mut bytes, count as u64);
            let (mut next, mut before, mut slices) = (0, 0, 1);
            while !encode_anchors(&mut bytes, &marks, count, &mut next, &mut before) {
                assert_eq!(next, slices * ENTRIES_AT_ONCE);
                slices += 1;
            }
            assert_eq!((next, slices), (count, count.div_ceil(ENTRIES_AT_ONCE).max(1)));
            let mut decoder = Decoder(&bytes);
            assert_eq!(decode_anchors(&mut decoder), Ok(marks[..count].to_vec()));
            assert!(decoder.is_empty());
        }
    }
}
