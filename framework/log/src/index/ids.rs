//! Finds the turn that handled a message from outside by the id of the message.
//!
//! Called by the [index](super) with the shard's lock held. An id is added with its turn and found in constant time,
//! independent of the length of the stream and of the clocks of callers. Ids are kept in generations: a store on disk
//! writes older generations to a file and drops them here; a store in memory drops them when they expire.
//!
//! An id is a hash of stream and message, so the same message to two actors of a shard has two entries.

use std::collections::HashMap;
use std::sync::Arc;

use super::stream::IdHash;
use crate::record::Location;
use whizbang_core::clock::Timestamp;

/// The newest turn of each id that was handled in a span of time.
#[derive(Debug, Default)]
pub struct Generation {
    /// The location of the last turn with each id.
    turns: HashMap<IdHash, Location, foldhash::fast::FixedState>,
    /// The times of the oldest and the newest turn.
    oldest: Timestamp,
    /// The time of the newest turn. A generation is dropped as a whole when it has expired.
    newest: Timestamp,
}

impl Generation {
    /// Adds an id. A later turn with the same id replaces the location.
    fn add(&mut self, id: IdHash, location: Location, time: Timestamp) {
        self.oldest = if self.turns.is_empty() { time } else { self.oldest.min(time) };
        self.newest = self.newest.max(time);
        self.turns.insert(id, location);
    }

    /// Returns the time of the newest turn.
    pub fn newest(&self) -> Timestamp {
        self.newest
    }

    /// Returns all ids with the locations of their turns, unordered.
    pub fn iter(&self) -> impl Iterator<Item = (IdHash, Location)> {
        self.turns.iter().map(|(id, location)| (*id, *location))
    }
}

/// The ids of one shard that are held in memory.
#[derive(Debug, Default)]
pub struct Ids {
    /// The generation that new ids are added to.
    current: Generation,
    /// Oldest first.
    frozen: Vec<Arc<Generation>>,
    /// Ids that were added and are not saved, for a store that saves them.
    new: Option<Vec<(IdHash, Location, Timestamp)>>,
}

impl Ids {
    /// Adds the id of the turn at `location`. If several turns have the same id, the last one added is found first.
    pub(crate) fn add(&mut self, id: IdHash, location: Location, time: Timestamp) {
        self.current.add(id, location, time);
        if let Some(new) = &mut self.new {
            new.push((id, location, time));
        }
    }

    /// Adds an id that is saved.
    pub(crate) fn add_saved(&mut self, id: IdHash, location: Location, time: Timestamp) {
        self.current.add(id, location, time);
    }

    /// From now on notes which ids are added.
    pub(crate) fn note_new(&mut self) {
        self.new.get_or_insert_default();
    }

    /// Returns the ids that were noted, in the order of their locations.
    pub(crate) fn noted(&self) -> &[(IdHash, Location, Timestamp)] {
        self.new.as_deref().unwrap_or_default()
    }

    /// Forgets the noted ids of turns before `location`.
    pub(crate) fn forget_new(&mut self, location: Location) {
        if let Some(new) = &mut self.new {
            new.retain(|(_, at, _)| *at >= location);
        }
    }

    /// Returns the locations of the turns with an id, newest first; at most one per generation.
    pub(crate) fn find(&self, id: IdHash) -> impl Iterator<Item = Location> {
        let frozen = self.frozen.iter().rev().map(|generation| &**generation);
        std::iter::once(&self.current).chain(frozen).filter_map(move |generation| generation.turns.get(&id).copied())
    }

    /// Starts a new generation. Returns the generations that no longer change, oldest first.
    pub fn freeze(&mut self) -> Vec<Arc<Generation>> {
        if !self.current.turns.is_empty() {
            self.frozen.push(Arc::new(std::mem::take(&mut self.current)));
        }
        self.frozen.clone()
    }

    /// Drops generations that [`freeze`](Self::freeze) returned and adds their remaining ids to the current generation.
    pub fn replace_frozen(
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

    /// Drops generations whose turns are all older than `before`. Starts a new generation when the current one spans
    /// more than `span` milliseconds, so that ids are dropped soon after they expire.
    pub(crate) fn expire(&mut self, before: Timestamp, span: u64) {
        self.frozen.retain(|generation| generation.newest >= before);
        if self.current.newest.as_millis().saturating_sub(self.current.oldest.as_millis()) > span {
            self.freeze();
        }
        if self.current.newest < before {
            self.current = Generation::default();
        }
    }

    /// Returns the number of ids.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.current.turns.len() + self.frozen.iter().map(|generation| generation.turns.len()).sum::<usize>()
    }
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

    #[test]
    fn id_expires_after_the_time_of_its_turn() {
        let found = |ids: &Ids| [1, 2].map(|number| ids.find(id(number)).count());
        let mut ids = Ids::default();
        ids.add(id(1), 10, time(100));
        // A span that is not longer than the allowed one stays in one generation.
        ids.add(id(2), 20, time(300));
        ids.expire(time(0), 200);
        assert_eq!((ids.frozen.len(), found(&ids)), (0, [1, 1]));
        ids.expire(time(300), 200);
        assert_eq!((ids.frozen.len(), found(&ids)), (0, [1, 1]), "the newest turn is not older");
        ids.expire(time(0), 199);
        assert_eq!((ids.frozen.len(), ids.current.turns.len(), found(&ids)), (1, 0, [1, 1]));
        ids.expire(time(300), 199);
        assert_eq!(found(&ids), [1, 1], "a frozen generation expires with its newest turn");
        ids.expire(time(301), 199);
        assert_eq!((ids.frozen.len(), ids.len(), found(&ids)), (0, 0, [0, 0]));
        ids.add(id(1), 30, time(400));
        ids.expire(time(400), 199);
        assert_eq!(found(&ids), [1, 0]);
        ids.expire(time(401), 199);
        assert_eq!((ids.len(), found(&ids)), (0, [0, 0]));
    }

    #[test]
    fn generation_knows_its_ids_and_its_newest_turn() {
        let mut ids = Ids::default();
        assert_eq!(ids.freeze().len(), 0, "there is no empty generation");
        ids.add(id(1), 10, time(5));
        ids.add(id(2), 20, time(3));
        ids.add(id(1), 30, time(4));
        let frozen = ids.freeze();
        assert_eq!((frozen.len(), frozen[0].newest(), frozen[0].oldest), (1, time(5), time(3)));
        let mut held: Vec<_> = frozen[0].iter().collect();
        held.sort_unstable();
        assert_eq!(held, [(id(1), 30), (id(2), 20)]);
        assert_eq!((ids.freeze().len(), ids.len()), (1, 2), "freezing again changes nothing");
        ids.add(id(3), 40, time(6));
        let both = ids.freeze();
        assert_eq!(both.iter().map(|generation| generation.newest()).collect::<Vec<_>>(), [time(5), time(6)]);
        ids.replace_frozen(&both[..1], []);
        assert_eq!([1, 2, 3].map(|number| ids.find(id(number)).count()), [0, 0, 1], "others are kept");
    }

    #[test]
    fn id_left_by_a_generation_does_not_hide_a_younger_turn() {
        for (younger, found) in [(19, 20), (20, 20), (21, 21)] {
            let mut ids = Ids::default();
            ids.add(id(1), 20, time(2));
            let frozen = ids.freeze();
            ids.add(id(1), younger, time(9));
            ids.replace_frozen(&frozen, [(id(1), 20, time(2))]);
            assert_eq!(ids.find(id(1)).collect::<Vec<_>>(), [found]);
        }
        // An equal location was added before, so its time is not extended.
        let mut ids = Ids::default();
        ids.add(id(1), 20, time(2));
        ids.replace_frozen(&[], [(id(1), 20, time(1))]);
        assert_eq!((ids.current.oldest, ids.current.newest), (time(2), time(2)));
    }

    #[test]
    fn new_ids_are_noted_until_they_are_saved() {
        let mut ids = Ids::default();
        ids.add(id(1), 10, time(1));
        assert!(ids.noted().is_empty());
        ids.note_new();
        ids.add_saved(id(2), 20, time(2));
        ids.add(id(3), 30, time(3));
        ids.add(id(4), 40, time(4));
        ids.note_new();
        assert_eq!(ids.noted(), [(id(3), 30, time(3)), (id(4), 40, time(4))]);
        assert_eq!([1, 2, 3, 4].map(|number| ids.find(id(number)).count()), [1; 4]);
        ids.forget_new(30);
        assert_eq!(ids.noted().len(), 2);
        ids.forget_new(31);
        assert_eq!(ids.noted(), [(id(4), 40, time(4))]);
        ids.forget_new(40);
        assert_eq!(ids.noted().len(), 1);
        ids.forget_new(u64::MAX);
        assert_eq!((ids.noted().len(), ids.len()), (0, 4));
    }
}
