//! Recent ids of a source, to detect a log that was restored from an older backup.
//!
//! A restored log assigns used sequences to new messages. By the sequence alone they would be dropped as duplicates.

use std::collections::VecDeque;

use crate::message::MessageId;

/// Number of sequences remembered.
const PLACES: usize = 256;

/// Ids at the last sequences of a source.
#[derive(Default)]
pub(crate) struct RecentIds {
    /// Sequence of the newest id.
    last: u64,
    /// A 64-bit part of each id, oldest first.
    parts: VecDeque<u64>,
}

impl RecentIds {
    /// Records the id at `place`.
    pub(crate) fn passed(&mut self, place: u64, id: MessageId) {
        if place != self.last + 1 {
            self.parts.clear();
        } else if self.parts.len() >= PLACES {
            self.parts.pop_front();
        }
        self.last = place;
        self.parts.push_back(part(id));
    }

    /// Returns whether the id at `place` is this one; `None` if it is not remembered.
    pub(crate) fn knows(&self, place: u64, id: MessageId) -> Option<bool> {
        let back = usize::try_from(self.last.checked_sub(place)?).ok()?;
        let at = self.parts.len().checked_sub(back + 1)?;
        self.parts.get(at).map(|known| *known == part(id))
    }
}

fn part(id: MessageId) -> u64 {
    let id = id.as_u128();
    (id >> 64) as u64 ^ id as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_places_are_known_and_nothing_else() {
        let id = |n: u64| MessageId::from_u128(u128::from(n) + 7);
        let mut trail = RecentIds::default();
        assert_eq!(trail.knows(0, id(0)), None);
        let last = 10 + PLACES as u64;
        for place in 1..=last {
            trail.passed(place, id(place));
        }
        assert_eq!((trail.knows(10, id(10)), trail.knows(11, id(11))), (None, Some(true)));
        assert_eq!((trail.knows(last, id(last)), trail.knows(last, id(1))), (Some(true), Some(false)));
        assert_eq!(trail.knows(last + 1, id(last + 1)), None);
        // A jump to another sequence.
        trail.passed(5, id(5));
        assert_eq!((trail.knows(5, id(5)), trail.knows(4, id(4))), (Some(true), None));
    }

    #[test]
    fn each_half_of_an_id_tells_messages_apart() {
        let (old, young) = (1u128 << 64 | 5, 2u128 << 64 | 5);
        let mut trail = RecentIds::default();
        trail.passed(1, MessageId::from_u128(old));
        assert_eq!(trail.knows(1, MessageId::from_u128(young)), Some(false));
        assert_eq!(trail.knows(1, MessageId::from_u128(old + 1)), Some(false));
        assert_eq!(trail.knows(1, MessageId::from_u128(old)), Some(true));
    }
}
