//! What is kept for each live key: found by the key, in a list whose neighbors were added together.
//!
//! Called by the [door](super::dispatcher) with every message, so it looks at few places: a small table of numbers, and the slot in
//! the list, which holds the beginning of its key. Keys that are used together were often activated together.

use std::hash::BuildHasher;
use std::rc::Rc;

use foldhash::fast::FixedState;
use hashbrown::HashTable;

/// Keys up to this length are compared without a look at their own memory.
const START: usize = 24;

pub(super) struct ActorRegistry<T> {
    list: Vec<Slot<T>>,
    numbers: HashTable<u32>,
    hasher: FixedState,
    /// Where the next [turn of the hand](Self::turn_hand) looks.
    hand: usize,
}

struct Slot<T> {
    start: [u8; START],
    key: Rc<str>,
    value: T,
}

impl<T> Slot<T> {
    fn is_of(&self, key: &str) -> bool {
        let same = |start: &[u8]| start == key.as_bytes();
        self.key.len() == key.len() && self.start.get(..key.len()).map_or_else(|| *self.key == *key, same)
    }
}

impl<T> ActorRegistry<T> {
    /// Nothing yet. Keys come from outside: a seed that nobody outside knows makes it hard to choose many that collide.
    pub(super) fn new(seed: u64) -> Self {
        Self { list: Vec::new(), numbers: HashTable::new(), hasher: FixedState::with_seed(seed), hand: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn get(&self, key: &str) -> Option<&T> {
        let is_it = |number: &u32| self.list.get(*number as usize).is_some_and(|slot| slot.is_of(key));
        let number = self.numbers.find(self.hasher.hash_one(key), is_it)?;
        self.list.get(*number as usize).map(|slot| &slot.value)
    }

    /// Adds what is kept for a key that has nothing.
    pub(super) fn add(&mut self, key: Rc<str>, value: T) {
        let mut start = [0; START];
        start.iter_mut().zip(key.bytes()).for_each(|(slot, byte)| *slot = byte);
        // More keys than that would have to be live at once.
        let number = u32::try_from(self.list.len()).unwrap_or(u32::MAX);
        let Self { list, numbers, hasher, .. } = self;
        let hash = hasher.hash_one(&*key);
        list.push(Slot { start, key, value });
        numbers.insert_unique(hash, number, |number| hash_of(list, hasher, *number as usize));
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.list.iter().map(|slot| &slot.value)
    }

    /// The next of all in a round that never ends: its place, which holds until something is added or taken out.
    pub(super) fn turn_hand(&mut self) -> (usize, Option<&T>) {
        if self.hand >= self.list.len() {
            self.hand = 0;
        }
        let at = self.hand;
        self.hand += 1;
        (at, self.list.get(at).map(|slot| &slot.value))
    }

    /// Takes out what is at a place.
    pub(super) fn take_out(&mut self, at: usize) -> Option<T> {
        (at < self.list.len()).then(|| self.swap_remove(at))
    }

    /// Takes out what is kept for a key.
    pub(super) fn remove(&mut self, key: &str) -> Option<T> {
        let is_it = |number: &u32| self.list.get(*number as usize).is_some_and(|slot| slot.is_of(key));
        let at = *self.numbers.find(self.hasher.hash_one(key), is_it)?;
        self.take_out(at as usize)
    }

    /// Takes out whatever `goes`.
    pub(super) fn extract(&mut self, mut goes: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut gone = Vec::new();
        let mut at = 0;
        while let Some(slot) = self.list.get(at) {
            if goes(&slot.value) {
                gone.push(self.swap_remove(at));
            } else {
                at += 1;
            }
        }
        gone
    }

    /// Takes out one; the last of the list moves to its place.
    fn swap_remove(&mut self, at: usize) -> T {
        let Self { list, numbers, hasher, .. } = self;
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
    fn it_holds_what_a_map_holds_whatever_goes_and_comes() {
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
    fn hand_comes_by_every_value_and_removed_keys_are_gone() {
        let mut keys = ActorRegistry::new(3);
        (0..100).for_each(|n| keys.add(Rc::from(format!("k{n}")), n));
        let mut met: Vec<_> = (0..100).filter_map(|_| keys.turn_hand().1.copied()).collect();
        met.sort_unstable();
        assert_eq!(met, (0..100).collect::<Vec<_>>());
        for n in (0..100).step_by(3) {
            assert_eq!(keys.remove(&format!("k{n}")), Some(n));
            assert_eq!(keys.remove(&format!("k{n}")), None);
        }
        let mut left = Vec::new();
        while let (at, Some(_)) = keys.turn_hand() {
            left.extend(keys.take_out(at));
        }
        left.sort_unstable();
        assert_eq!(left, (0..100).filter(|n| n % 3 != 0).collect::<Vec<_>>());
    }

    #[test]
    fn keys_that_begin_alike_are_different() {
        let mut keys = ActorRegistry::new(1);
        let long = "a".repeat(START);
        let all = ["", "a", "a\0", &long, &format!("{long}b"), &format!("{long}c")];
        for (nth, key) in all.iter().enumerate() {
            assert_eq!(keys.get(key), None, "{key:?}");
            keys.add(Rc::from(*key), nth);
        }
        for (nth, key) in all.iter().enumerate() {
            assert_eq!(keys.get(key), Some(&nth), "{key:?}");
        }
    }
}
