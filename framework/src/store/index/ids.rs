//! Which turn handled which message from outside, by the id of the message.
//!
//! Called by the [index](super) with the shard's lock held. An id is added with its turn and found in constant time, whatever
//! the length of the stream and whatever the clocks of callers say. The ids are kept in generations: a store on disk writes
//! the older ones to a file and drops them here, a store in memory drops them once they have expired.

use std::collections::HashMap;
use std::sync::Arc;

use super::stream::Stream;
use crate::clock::Timestamp;
use crate::store::record::Location;

/// The hash of a stream and a message id, 128 bits, with the store's secret seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct IdHash(pub(crate) u64, pub(crate) u64);

/// The newest turn of each id that was handled in one span of time.
#[derive(Debug, Default)]
pub(crate) struct Generation {
    turns: HashMap<IdHash, Location, foldhash::fast::FixedState>,
    /// The span of the turns' times.
    oldest: Timestamp,
    newest: Timestamp,
}

impl Generation {
    fn add(&mut self, id: IdHash, location: Location, time: Timestamp) {
        self.oldest = if self.turns.is_empty() { time } else { self.oldest.min(time) };
        self.newest = self.newest.max(time);
        self.turns.insert(id, location);
    }

    /// The time of the newest turn.
    pub(crate) fn newest(&self) -> Timestamp {
        self.newest
    }

    /// Every id and where its turn is, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (IdHash, Location)> {
        self.turns.iter().map(|(id, location)| (*id, *location))
    }
}

/// The ids of one shard that are held in memory.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    current: Generation,
    /// Oldest first.
    frozen: Vec<Arc<Generation>>,
}

impl Ids {
    /// Adds the id of the turn at `location`. Of several turns of one id the last one added is found.
    pub(crate) fn add(&mut self, id: IdHash, location: Location, time: Timestamp) {
        self.current.add(id, location, time);
    }

    /// Where the turns of an id are, newest first. At most one for each generation.
    pub(crate) fn find(&self, id: IdHash) -> impl Iterator<Item = Location> {
        let frozen = self.frozen.iter().rev().map(|generation| &**generation);
        std::iter::once(&self.current).chain(frozen).filter_map(move |generation| generation.turns.get(&id).copied())
    }

    /// Begins a new generation. Returns those that no longer change, oldest first.
    pub(crate) fn freeze(&mut self) -> Vec<Arc<Generation>> {
        if !self.current.turns.is_empty() {
            self.frozen.push(Arc::new(std::mem::take(&mut self.current)));
        }
        self.frozen.clone()
    }

    /// Drops generations that were returned by [`freeze`](Self::freeze), but for what is left of them.
    pub(crate) fn replace_frozen(
        &mut self,
        generations: &[Arc<Generation>],
        left: impl IntoIterator<Item = (IdHash, Location, Timestamp)>,
    ) {
        self.frozen.retain(|generation| !generations.iter().any(|gone| Arc::ptr_eq(gone, generation)));
        for (id, location, time) in left {
            if self.current.turns.get(&id).is_none_or(|younger| *younger < location) {
                self.current.add(id, location, time);
            }
        }
    }

    /// Drops the generations all of whose turns are older than `before`, and begins a new one when the youngest spans more
    /// than `span` milliseconds, so that ids are kept only little longer than they must be.
    pub(crate) fn expire(&mut self, before: Timestamp, span: u64) {
        self.frozen.retain(|generation| generation.newest >= before);
        if self.current.newest.as_millis().saturating_sub(self.current.oldest.as_millis()) > span {
            self.freeze();
        }
        if self.current.newest < before {
            self.current = Generation::default();
        }
    }

    /// How many ids are held.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.current.turns.len() + self.frozen.iter().map(|generation| generation.turns.len()).sum::<usize>()
    }
}

/// Everything [`IdHash`] is made of.
pub(super) fn hash(
    fast: &foldhash::fast::FixedState,
    quality: &foldhash::quality::FixedState,
    stream: Stream,
    id: u128,
) -> IdHash {
    use std::hash::{BuildHasher, Hasher};
    fn feed<H: Hasher>(mut hasher: H, stream: Stream, id: u128) -> u64 {
        hasher.write_u64(stream.0);
        hasher.write_u64(stream.1);
        hasher.write_u128(id);
        hasher.finish()
    }
    IdHash(feed(quality.build_hasher(), stream, id), feed(fast.build_hasher(), stream, id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> IdHash {
        IdHash(number, !number)
    }

    fn time(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn last_turn_of_an_id_is_found_first() {
        let mut ids = Ids::default();
        ids.add(id(1), 10, time(1));
        ids.freeze();
        ids.add(id(1), 20, time(2));
        ids.add(id(2), 30, time(3));
        assert_eq!(ids.find(id(1)).collect::<Vec<_>>(), [20, 10]);
        assert_eq!(ids.find(id(3)).count(), 0);
    }

    #[test]
    fn dropped_generation_keeps_unwritten_ids() {
        let mut ids = Ids::default();
        ids.add(id(1), 10, time(1));
        ids.add(id(2), 20, time(2));
        let frozen = ids.freeze();
        ids.add(id(3), 30, time(3));
        ids.replace_frozen(&frozen, [(id(2), 20, time(2))]);
        assert_eq!(ids.find(id(1)).count(), 0);
        assert_eq!(ids.find(id(2)).collect::<Vec<_>>(), [20]);
        assert_eq!(ids.find(id(3)).collect::<Vec<_>>(), [30]);
    }

    #[test]
    fn expired_ids_free_memory() {
        let mut ids = Ids::default();
        for hour in 0..1_000u64 {
            ids.add(id(hour), hour + 1, time(hour * 100));
            ids.expire(time((hour * 100).saturating_sub(1_000)), 200);
            assert!(ids.len() <= 16, "{}", ids.len());
            assert_eq!(ids.find(id(hour)).count(), 1);
            assert_eq!(ids.find(id(hour.saturating_sub(9))).count(), 1, "{hour} is not old enough");
        }
    }
}
