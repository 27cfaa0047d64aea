//! The newest turn, called the head, of each stream.
//!
//! The heads are in a list in the order in which their streams began; a hash table maps a stream to its number in the
//! list. A live actor passes the number with each turn as a hint, so no hash or lookup is needed. Heads of streams that
//! began together are adjacent in memory, and such streams are often active together.

use hashbrown::HashTable;

use super::stream::Stream;
use crate::record::Location;
use whizbang_core::store::StreamHint;

/// The number of a head in the list. Four bytes suffice: 2^32 heads would need 130 GB.
type Number = u32;

/// The newest turn of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The location of its record.
    pub location: Location,
    /// The number of the turn.
    pub number: u64,
}

/// The newest turns of all streams. A stream is never removed: its turn numbers must continue.
#[derive(Debug, Default)]
pub(super) struct LatestVersions {
    /// The heads by number. A head changes in place.
    list: Vec<(Stream, Head)>,
    /// The numbers by stream. The table stores no streams: it compares with the list.
    by_stream: HashTable<Number>,
}

impl LatestVersions {
    /// Returns the number of streams.
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// Reserves memory for `more` heads. Called once before many heads are restored, so that the list and the table grow only
    /// once.
    pub(super) fn reserve(&mut self, more: usize) {
        self.list.reserve_exact(more);
        let Self { list, by_stream } = self;
        by_stream.reserve(more, |number| hash_of(list, *number));
    }

    /// Returns all streams with their newest turns, in the order in which they were added.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Stream, Head)> {
        self.list.iter().copied()
    }

    /// Returns the newest turn of a stream.
    pub(super) fn get(&self, stream: Stream) -> Option<Head> {
        self.number(stream).and_then(|number| self.list.get(number as usize)).map(|(_, head)| *head)
    }

    /// Returns the number of a stream's head.
    pub(super) fn number(&self, stream: Stream) -> Option<Number> {
        self.by_stream.find(stream.0, |number| self.at(*number).is_some_and(|(of, _)| of == stream)).copied()
    }

    /// Returns the stream with a number, and its newest turn.
    pub(super) fn at(&self, number: Number) -> Option<(Stream, Head)> {
        self.list.get(number as usize).copied()
    }

    /// Replaces the newest turn of a stream.
    pub(super) fn set(&mut self, number: Number, head: Head) {
        if let Some((_, slot)) = self.list.get_mut(number as usize) {
            *slot = head;
        }
    }

    /// Adds the head of a stream that has none.
    pub(super) fn add(&mut self, stream: Stream, head: Head) -> Number {
        let number = Number::try_from(self.list.len()).unwrap_or(Number::MAX);
        self.list.push((stream, head));
        let Self { list, by_stream } = self;
        by_stream.insert_unique(stream.0, number, |number| hash_of(list, *number));
        number
    }

    /// Returns the hint for the next append of a stream.
    pub(super) fn hint(stream: Stream, number: Number) -> StreamHint {
        StreamHint::new((u64::from(stream.0 as u32) << 32) | (u64::from(number) + 1))
    }

    /// Returns the head that a hint refers to, if any. The hint contains half of the stream's hash, which guards
    /// against hints of another index.
    pub(super) fn hinted(&self, hint: StreamHint) -> Option<(Stream, Number)> {
        let number = (hint.get() as u32).checked_sub(1)?;
        let (stream, _) = self.at(number)?;
        (u64::from(stream.0 as u32) == hint.get() >> 32).then_some((stream, number))
    }
}

/// Returns the hash by which a stream is found. The stream is a hash itself.
fn hash_of(list: &[(Stream, Head)], number: Number) -> u64 {
    list.get(number as usize).map_or(0, |(stream, _)| stream.0)
}
