//! The records of a shard, in chunks that never move.
//!
//! A record is a length of four bytes and the bytes of the record. Chunks double in size, so a large log has few of them, and
//! finding the chunk of a location is a short binary search.

use bytes::Bytes;

use crate::record::{Location, Malformed};
use crate::traverse::Log;
use whizbang_core::store::StoreError;

/// The first chunk is small, because a node has many shards; later chunks grow with the shard.
const FIRST_CHUNK_BYTES: usize = 4 * 1024;
/// Chunks do not grow further. A larger record gets a chunk of its own size.
const LARGEST_CHUNK_BYTES: usize = 1024 * 1024;
/// The size in front of each record.
const LENGTH_BYTES: usize = 4;

/// A location is the number of bytes before the record, plus 1: 0 means no record.
#[derive(Debug, Default)]
pub(super) struct Arena {
    /// Oldest first. Records are only added to the last one.
    chunks: Vec<Chunk>,
}

/// A block of memory with records.
#[derive(Debug)]
struct Chunk {
    /// The location of its first record.
    start: Location,
    /// Allocated once with its final capacity, so that records never move.
    bytes: Vec<u8>,
}

impl Arena {
    /// Reserves space for a record of up to `bound` bytes. Returns its location and the buffer to write it to.
    pub(super) fn begin(&mut self, bound: usize) -> (Location, &mut Vec<u8>) {
        let need = bound + LENGTH_BYTES;
        if self.chunks.last().is_none_or(|chunk| chunk.bytes.capacity() - chunk.bytes.len() < need) {
            let capacity = self.chunks.last().map_or(FIRST_CHUNK_BYTES, |chunk| chunk.bytes.capacity() * 2);
            let bytes = Vec::with_capacity(capacity.min(LARGEST_CHUNK_BYTES).max(need));
            self.chunks.push(Chunk { start: self.end(), bytes });
        }
        let last = self.chunks.len() - 1;
        #[expect(clippy::indexing_slicing, reason = "the chunk was pushed above if there was none")]
        let Chunk { start, bytes } = &mut self.chunks[last];
        let location = *start + bytes.len() as u64;
        bytes.extend_from_slice(&[0; LENGTH_BYTES]);
        (location, bytes)
    }

    /// Completes the record that was begun at `location`.
    pub(super) fn finish(&mut self, location: Location) {
        let Some(chunk) = self.chunks.last_mut() else { return };
        let offset = usize::try_from(location - chunk.start).unwrap_or(usize::MAX);
        let length = chunk.bytes.len().saturating_sub(offset + LENGTH_BYTES);
        if let Some(slot) = chunk.bytes.get_mut(offset..offset + LENGTH_BYTES) {
            slot.copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        }
    }

    /// Removes all records from `location` on. Used for lost appends, and for an append that the index has rejected.
    pub(super) fn cut(&mut self, location: Location) {
        while let Some(chunk) = self.chunks.last_mut() {
            if chunk.start < location {
                chunk.bytes.truncate(usize::try_from(location - chunk.start).unwrap_or(usize::MAX));
                return;
            }
            self.chunks.pop();
        }
    }

    /// Returns the location of the next record.
    pub(super) fn end(&self) -> Location {
        self.chunks.last().map_or(1, |chunk| chunk.start + chunk.bytes.len() as u64)
    }

    /// Returns all records with their locations, oldest first.
    pub(super) fn records(&self) -> Vec<(Location, Bytes)> {
        let mut records = Vec::new();
        let mut location = 1;
        while location < self.end() {
            let Some(record) = self.get(location) else { break };
            records.push((location, Bytes::copy_from_slice(record)));
            location += (record.len() + LENGTH_BYTES) as u64;
        }
        records
    }

    /// Returns the record at a location.
    fn get(&self, location: Location) -> Option<&[u8]> {
        let nth = self.chunks.partition_point(|chunk| chunk.start <= location).checked_sub(1)?;
        let chunk = self.chunks.get(nth)?;
        let rest = chunk.bytes.get(usize::try_from(location - chunk.start).ok()?..)?;
        let (length, rest) = rest.split_first_chunk::<LENGTH_BYTES>()?;
        rest.get(..usize::try_from(u32::from_le_bytes(*length)).ok()?)
    }
}

impl Log for Arena {
    fn read(&self, location: Location) -> Result<Bytes, StoreError> {
        let record = self.get(location).ok_or_else(|| self.damaged(location, Malformed("no record found")))?;
        Ok(Bytes::copy_from_slice(record))
    }

    fn damaged(&self, location: Location, Malformed(reason): Malformed) -> StoreError {
        StoreError::Corrupt { file: "memory".into(), offset: location, reason: reason.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Appends a record that may use less than its bound. Returns its location.
    fn append(arena: &mut Arena, bound: usize, record: &[u8]) -> Location {
        let (location, into) = arena.begin(bound);
        let memory = into.as_ptr();
        into.extend_from_slice(record);
        assert_eq!(into.as_ptr(), memory, "records never move");
        arena.finish(location);
        location
    }

    fn capacities(arena: &Arena) -> Vec<usize> {
        arena.chunks.iter().map(|chunk| chunk.bytes.capacity()).collect()
    }

    #[derive(Clone, Debug)]
    enum Step {
        Append { length: usize, unused: usize },
        Cut(proptest::sample::Index),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0..3_000usize, 0..3_000usize).prop_map(|(length, unused)| Step::Append { length, unused }),
            1 => any::<proptest::sample::Index>().prop_map(Step::Cut),
        ]
    }

    proptest! {
        #[test]
        fn records_are_read_at_their_locations(steps in proptest::collection::vec(step(), 0..60)) {
            let mut arena = Arena::default();
            let mut expected: Vec<(Location, Vec<u8>)> = Vec::new();
            let mut end = 1;
            for (step, fill) in steps.into_iter().zip(1u8..) {
                match step {
                    Step::Append { length, unused } => {
                        let record = vec![fill; length];
                        prop_assert_eq!(append(&mut arena, length + unused, &record), end);
                        expected.push((end, record));
                        end += (length + LENGTH_BYTES) as u64;
                    }
                    Step::Cut(at) => {
                        let nth = at.index(expected.len() + 1);
                        end = expected.get(nth).map_or(end, |(location, _)| *location);
                        expected.truncate(nth);
                        arena.cut(end);
                    }
                }
                prop_assert_eq!(arena.end(), end);
                for (location, record) in &expected {
                    prop_assert_eq!(arena.read(*location).unwrap(), record);
                }
                let records = arena.records();
                prop_assert!(records.iter().map(|(location, record)| (*location, record.to_vec())).eq(expected.iter().cloned()));
            }
        }
    }

    #[test]
    fn chunks_double_up_to_one_mebibyte() {
        let mut arena = Arena::default();
        (0..100).for_each(|_| assert!(append(&mut arena, 64 * 1024 - LENGTH_BYTES, &[1]) > 0));
        // Most of a bound is not used, so many records share a chunk.
        assert_eq!(capacities(&arena), [64 * 1024, 128 * 1024]);
        let mut arena = Arena::default();
        let record = vec![0; 1024 - LENGTH_BYTES];
        (0..6 * 1024).for_each(|_| assert!(append(&mut arena, record.len(), &record) > 0));
        let doubled: Vec<usize> = (2..=10).map(|bit| 1024 << bit).collect();
        let mebibytes = [doubled, vec![1024 * 1024; 5]].concat();
        assert_eq!(capacities(&arena), mebibytes);
        assert!(
            arena.chunks.iter().rev().skip(1).all(|chunk| chunk.bytes.len() == chunk.bytes.capacity()),
            "no chunk has a gap"
        );
        // A larger record has a chunk of its own size.
        (0..2).for_each(|_| assert!(append(&mut arena, 3 * 1024 * 1024, &[1]) > 0));
        assert_eq!(capacities(&arena)[mebibytes.len()..], [3 * 1024 * 1024 + LENGTH_BYTES; 2]);
    }

    #[test]
    fn cut_chunk_is_freed_with_its_first_record() {
        let mut arena = Arena::default();
        let places: Vec<Location> = (0..3).map(|_| append(&mut arena, 9, &[7; 9])).collect();
        let large = append(&mut arena, LARGEST_CHUNK_BYTES, &[8]);
        assert_eq!(arena.chunks.len(), 2);
        arena.cut(large);
        assert_eq!((arena.chunks.len(), arena.end(), arena.records().len()), (1, large, 3));
        arena.cut(places[1]);
        assert_eq!((arena.end(), arena.records().len()), (places[1], 1));
        arena.cut(places[0]);
        assert_eq!((arena.chunks.len(), arena.end()), (0, 1));
    }

    #[test]
    fn missing_record_is_damage() {
        let mut arena = Arena::default();
        let location = append(&mut arena, 4, &[1, 2]);
        for missing in [0, arena.end(), arena.end() + 1, u64::MAX] {
            let Err(StoreError::Corrupt { file, offset, reason }) = arena.read(missing) else { panic!("at {missing}") };
            assert_eq!((file, offset, reason.as_str()), ("memory".into(), missing, "no record found"));
        }
        assert_eq!(arena.read(location).unwrap(), [1, 2][..]);
    }
}
