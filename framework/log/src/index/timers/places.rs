//! The places of timers by stream and name.
//!
//! Used by the turn that sets, moves or clears a timer. Most streams have one: setting it again hashes no text and needs no memory.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use foldhash::fast::FixedState;

use crate::index::stream::Stream;
use whizbang_core::message::Name;
use whizbang_core::store::TimerCursor;

/// The actor type of a timer, and its place among the timers of the type.
type Place = (Name, TimerCursor);

/// The places of all timers.
#[derive(Debug, Default)]
pub(super) struct TimerPlaces {
    streams: HashMap<Stream, NamedTimers, FixedState>,
    len: usize,
}

/// The timers of one stream.
#[derive(Debug)]
enum NamedTimers {
    One(Box<str>, Place),
    Many(HashMap<Box<str>, Place, FixedState>),
}

impl TimerPlaces {
    /// Records the place of a timer. Returns its earlier one.
    pub(super) fn insert(&mut self, stream: Stream, name: &str, place: Place) -> Option<Place> {
        let timers = match self.streams.entry(stream) {
            Entry::Occupied(timers) => timers.into_mut(),
            Entry::Vacant(none) => {
                self.len += 1;
                none.insert(NamedTimers::One(name.into(), place));
                return None;
            }
        };
        let known = match timers {
            NamedTimers::One(only, known) => (**only == *name).then_some(known),
            NamedTimers::Many(all) => all.get_mut(name),
        };
        if let Some(known) = known {
            return Some(std::mem::replace(known, place));
        }
        self.len += 1;
        let mut all = match std::mem::replace(timers, NamedTimers::Many(HashMap::default())) {
            NamedTimers::One(only, known) => HashMap::from_iter([(only, known)]),
            NamedTimers::Many(all) => all,
        };
        all.insert(name.into(), place);
        *timers = NamedTimers::Many(all);
        None
    }

    /// Removes a timer. Returns its place.
    pub(super) fn remove(&mut self, stream: Stream, name: &str) -> Option<Place> {
        let Entry::Occupied(mut timers) = self.streams.entry(stream) else { return None };
        let removed = match timers.get_mut() {
            NamedTimers::One(only, _) if **only != *name => None,
            NamedTimers::One(_, place) => {
                let place = place.clone();
                timers.remove();
                Some(place)
            }
            NamedTimers::Many(all) => {
                let removed = all.remove(name);
                if all.is_empty() {
                    timers.remove();
                }
                removed
            }
        };
        self.len -= usize::from(removed.is_some());
        removed
    }

    /// Returns the number of timers.
    pub(super) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use whizbang_core::clock::Timestamp;

    use super::*;

    #[test]
    fn places_equal_those_of_a_map_after_any_operations() {
        let (mut places, mut reference) = (TimerPlaces::default(), BTreeMap::new());
        let actor = Name::from_static("Order").unwrap();
        let mut random = 1u64;
        for number in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (stream, name) = ((random >> 33) as u32 % 7, ["a", "b", "c"][(random >> 40) as usize % 3]);
            let place = (actor.clone(), TimerCursor { due: Timestamp::from_millis(number), number });
            let (stream, key) = (Stream(u64::from(stream), 0), (stream, name));
            let (found, expected) = match random >> 50 & 1 {
                0 => (places.insert(stream, name, place.clone()), reference.insert(key, place)),
                _ => (places.remove(stream, name), reference.remove(&key)),
            };
            assert_eq!((found, places.len()), (expected, reference.len()), "{key:?} after {number}");
        }
        assert!(reference.len() > 5 && places.streams.len() <= 7);
    }
}
