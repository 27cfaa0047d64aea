//! The index as bytes, in slices, and the ids that were added since the last time.
//!
//! Called by stores that save the index of a shard while turns are appended to it. Saved bytes are a cache of the records.

use super::{Damage, ShardLog};
use crate::index::IdHash;
use crate::index::{Index, Stream, StreamHasher};
use crate::record::decode::Decoder;
use crate::record::{Names, encode};
use whizbang_core::clock::Timestamp;

/// Ids of handled messages as bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedIds {
    /// Empty if there are none.
    pub bytes: Vec<u8>,
    /// The time of the newest turn.
    pub newest: Timestamp,
}

/// Hashes a fixed stream. The result is the same in every run and version, unless the hash function has changed.
fn probe(hasher: &StreamHasher) -> Stream {
    hasher.stream("probe", "the quick brown fox jumps over the lazy dog")
}

impl ShardLog {
    /// Returns the number of streams.
    pub fn streams(&self) -> usize {
        self.index.streams()
    }

    /// Begins to save the index of everything committed. The rest follows with [`save_next`](Self::save_next); records may
    /// be appended in between. Returns the location before which all records are included. The ids are not included.
    pub fn begin_saving(&mut self, into: &mut Vec<u8>) -> u64 {
        let (first, second) = probe(&self.hasher).halves();
        into.extend_from_slice(&first.to_le_bytes());
        into.extend_from_slice(&second.to_le_bytes());
        self.index.begin_saving(into);
        self.index.committed()
    }

    /// Saves the next slice, of a bounded size. Returns whether there are more.
    pub fn save_next(&mut self, into: &mut Vec<u8>) -> bool {
        self.index.save_next(into)
    }

    /// Ends a save that will not be finished.
    pub fn abort_saving(&mut self) {
        self.index.abort_saving();
    }

    /// Restores the index that was saved with the same seed.
    ///
    /// # Errors
    /// If the bytes are damaged, or were saved with another seed or hash function.
    pub fn restore(saved: &[u8], seed: u64) -> Result<Self, Damage> {
        let (hasher, mut decoder) = (StreamHasher::new(seed), Decoder(saved));
        let mut half = || decoder.array().map(u64::from_le_bytes).map_err(|malformed| malformed.0);
        if (half()?, half()?) != probe(&hasher).halves() {
            return Err("its streams were hashed with another seed or function");
        }
        let mut names = Names::default();
        let index = Index::restore(&mut decoder, hasher.clone(), &mut names).map_err(|malformed| malformed.0)?;
        if !decoder.is_empty() {
            return Err("trailing bytes");
        }
        Ok(Self { index, names, hasher })
    }

    /// From now on the ids of added turns are noted for [`new_ids`](Self::new_ids), 40 bytes each.
    pub fn note_new_ids(&mut self) {
        self.index.ids.note_new();
    }

    /// Returns the noted ids of turns before `location`, and forgets them once they are [saved](Self::saved_ids).
    pub fn new_ids(&self, location: u64) -> SavedIds {
        let mut saved = SavedIds::default();
        for (IdHash(first, second), at, time) in self.index.ids.noted().iter().filter(|(_, at, _)| *at < location) {
            saved.bytes.extend_from_slice(&first.to_le_bytes());
            saved.bytes.extend_from_slice(&second.to_le_bytes());
            encode::number(&mut saved.bytes, *at);
            encode::number(&mut saved.bytes, time.as_millis());
            saved.newest = saved.newest.max(*time);
        }
        saved
    }

    /// Forgets the noted ids of turns before `location`: they are saved.
    pub fn saved_ids(&mut self, location: u64) {
        self.index.ids.forget_new(location);
    }

    /// Adds ids that were saved. Does not note them.
    ///
    /// # Errors
    /// If the bytes are damaged.
    pub fn add_saved_ids(&mut self, saved: &[u8]) -> Result<(), Damage> {
        let mut decoder = Decoder(saved);
        while !decoder.is_empty() {
            let mut half = || decoder.array().map(u64::from_le_bytes);
            let id = half().and_then(|first| Ok(IdHash(first, half()?))).map_err(|malformed| malformed.0)?;
            let mut number = || decoder.number().map_err(|malformed| malformed.0);
            let (location, time) = (number()?, Timestamp::from_millis(number()?));
            self.index.ids.add_saved(id, location, time);
        }
        Ok(())
    }
}
