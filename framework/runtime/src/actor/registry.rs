//! The live actors of one type on one thread, by key, in a list whose neighbors were mostly activated together.
//!
//! Called by the [dispatcher](super::dispatcher) with every message, so a lookup touches little memory: a small table
//! of indices, and the slot in the list, which holds the beginning of its key. Keys that are used together were often
//! activated together.

use std::hash::BuildHasher;
use std::rc::Rc;

use foldhash::fast::FixedState;
use hashbrown::HashTable;

/// Keys up to this length are compared without access to their own allocation.
const PREFIX_LEN: usize = 24;

/// A hash table of slot numbers, and the slots in a list.
pub(super) struct ActorRegistry<T> {
    slots: Vec<Slot<T>>,
    index: HashTable<u32>,
    hasher: FixedState,
    /// The slot that [`advance_cursor`](Self::advance_cursor) returns next.
    cursor: usize,
}

struct Slot<T> {
    /// The beginning of the key, padded with zeros.
    prefix: [u8; PREFIX_LEN],
    key: Rc<str>,
    value: T,
}

impl<T> Slot<T> {
    fn is_of(&self, key: &str) -> bool {
        let same = |start: &[u8]| start == key.as_bytes();
        self.key.len() == key.len() && self.prefix.get(..key.len()).map_or_else(|| *self.key == *key, same)
    }
}

impl<T> ActorRegistry<T> {
    /// Returns an empty registry. Keys come from external callers: a secret seed makes it hard to choose colliding
    /// ones.
    pub(super) fn new(seed: u64) -> Self {
        Self { slots: Vec::new(), index: HashTable::new(), hasher: FixedState::with_seed(seed), cursor: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn get(&self, key: &str) -> Option<&T> {
        let is_it = |number: &u32| self.slots.get(*number as usize).is_some_and(|slot| slot.is_of(key));
        let number = self.index.find(self.hasher.hash_one(key), is_it)?;
        self.slots.get(*number as usize).map(|slot| &slot.value)
    }

    /// Adds the value of a key that is not in the registry.
    pub(super) fn add(&mut self, key: Rc<str>, value: T) {
        let mut start = [0; PREFIX_LEN];
        start.iter_mut().zip(key.bytes()).for_each(|(slot, byte)| *slot = byte);
        // More keys than that cannot be live at once.
        let number = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        let Self { slots: list, index: numbers, hasher, .. } = self;
        let hash = hasher.hash_one(&*key);
        list.push(Slot { prefix: start, key, value });
        numbers.insert_unique(hash, number, |number| hash_of(list, hasher, *number as usize));
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().map(|slot| &slot.value)
    }

    /// Returns the next value of an endless round, with its index. The index is valid until a value is added or
    /// removed.
    pub(super) fn advance_cursor(&mut self) -> (usize, Option<&T>) {
        if self.cursor >= self.slots.len() {
            self.cursor = 0;
        }
        let at = self.cursor;
        self.cursor += 1;
        (at, self.slots.get(at).map(|slot| &slot.value))
    }

    /// Removes the value at an index.
    pub(super) fn remove_at(&mut self, at: usize) -> Option<T> {
        (at < self.slots.len()).then(|| self.swap_remove(at))
    }

    /// Removes the value of a key.
    pub(super) fn remove(&mut self, key: &str) -> Option<T> {
        let is_it = |number: &u32| self.slots.get(*number as usize).is_some_and(|slot| slot.is_of(key));
        let at = *self.index.find(self.hasher.hash_one(key), is_it)?;
        self.remove_at(at as usize)
    }

    /// Removes every value for which `goes` returns true.
    pub(super) fn extract(&mut self, mut goes: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut gone = Vec::new();
        let mut at = 0;
        while let Some(slot) = self.slots.get(at) {
            if goes(&slot.value) {
                gone.push(self.swap_remove(at));
            } else {
                at += 1;
            }
        }
        gone
    }

    /// Removes one slot; the last one of the list moves to its index.
    fn swap_remove(&mut self, at: usize) -> T {
        let Self { slots: list, index: numbers, hasher, .. } = self;
        if let Ok(number) = numbers.find_entry(hash_of(list, hasher, at), |number| *number as usize == at) {
            number.remove();
        }
        let gone = list.swap_remove(at);
        let moved = list.len();
        if let Some(number) = numbers.find_mut(hash_of(list, hasher, at), |number| *number as usize == moved) {
            *number = u32::try_from(at).unwrap_or(u32::MAX);
        }
        gone.value
    }
}

fn hash_of<T>(list: &[Slot<T>], hasher: &FixedState, number: usize) -> u64 {
    list.get(number).map_or(0, |slot| hasher.hash_one(&*slot.key))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn registry_matches_a_map_after_adds_and_removals() {
        let mut keys = ActorRegistry::new(7);
        let mut map = BTreeMap::new();
        for round in 0..40u32 {
            for nth in 0..50 {
                let length = (round * 50 + nth) as usize % 40;
                let key = format!("{round}-{nth}-{}", "x".repeat(length));
                keys.add(Rc::from(key.as_str()), (round, nth));
                map.insert(key, (round, nth));
            }
            let goes = |(of, nth): &(u32, u32)| (of * 31 + nth * 7 + round) % 3 == 0;
            let mut gone = keys.extract(goes);
            let mut missed: Vec<_> = map.extract_if(.., |_, value| goes(value)).map(|(_, value)| value).collect();
            gone.sort_unstable();
            missed.sort_unstable();
            assert_eq!(gone, missed, "round {round}");
            assert_eq!(keys.len(), map.len());
            assert!(map.iter().all(|(key, value)| keys.get(key) == Some(value)), "round {round}");
        }
        assert!(!map.is_empty());
        assert_eq!(keys.extract(|_| true).len(), map.len());
        assert!(map.keys().all(|key| keys.get(key).is_none()));
    }

    #[test]
    fn cursor_visits_every_value_and_removed_keys_are_gone() {
        let mut keys = ActorRegistry::new(3);
        (0..100).for_each(|n| keys.add(Rc::from(format!("k{n}")), n));
        let mut met: Vec<_> = (0..100).filter_map(|_| keys.advance_cursor().1.copied()).collect();
        met.sort_unstable();
        assert_eq!(met, (0..100).collect::<Vec<_>>());
        for n in (0..100).step_by(3) {
            assert_eq!(keys.remove(&format!("k{n}")), Some(n));
            assert_eq!(keys.remove(&format!("k{n}")), None);
        }
        let mut left = Vec::new();
        while let (at, Some(_)) = keys.advance_cursor() {
            left.extend(keys.remove_at(at));
        }
        left.sort_unstable();
        assert_eq!(left, (0..100).filter(|n| n % 3 != 0).collect::<Vec<_>>());
    }

    #[test]
    fn keys_with_a_common_prefix_are_distinct() {
        let mut keys = ActorRegistry::new(1);
        let long = "a".repeat(PREFIX_LEN);
        let all = ["", "a", "a\0", &long, &format!("{long}b"), &format!("{long}c")];
        for (nth, key) in all.iter().enumerate() {
            assert_eq!(keys.get(key), None, "{key:?}");
            keys.add(Rc::from(*key), nth);
        }
        for (nth, key) in all.iter().enumerate() {
            assert_eq!(keys.get(key), Some(&nth), "{key:?}");
        }
    }

    #[test]
    fn cursor_returns_to_the_first_value_after_the_last() {
        let mut keys = ActorRegistry::new(5);
        assert_eq!(keys.advance_cursor(), (0, None));
        (0..3).for_each(|n| keys.add(Rc::from(format!("k{n}")), n));
        let mut next = || {
            let (at, value) = keys.advance_cursor();
            (at, value.copied())
        };
        let round: Vec<_> = (0..7).map(|_| next()).collect();
        let expected = [1, 2, 0, 1, 2, 0, 1].map(|at| (at, Some(at)));
        assert_eq!(round, expected);
        assert_eq!((keys.remove_at(3), keys.len()), (None, 3));
        assert_eq!((keys.remove_at(2), keys.len()), (Some(2), 2));
    }
}
