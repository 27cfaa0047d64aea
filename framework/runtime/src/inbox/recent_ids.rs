//! Recent ids of a source, to detect a log that was restored from an older backup.
//!
//! A restored log assigns used sequences to new messages. By the sequence alone they would be dropped as duplicates.

use std::collections::VecDeque;

use whizbang_core::message::MessageId;

/// Number of sequences remembered.
const CAPACITY: usize = 256;

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
    pub(crate) fn record(&mut self, place: u64, id: MessageId) {
        if place != self.last + 1 {
            self.parts.clear();
        } else if self.parts.len() >= CAPACITY {
            self.parts.pop_front();
        }
        self.last = place;
        self.parts.push_back(part(id));
    }

    /// Returns whether the id at `place` is this one; `None` if it is not remembered.
    pub(crate) fn matches(&self, place: u64, id: MessageId) -> Option<bool> {
        let back = usize::try_from(self.last.checked_sub(place)?).ok()?;
        let at = self.parts.len().checked_sub(back + 1)?;
        self.parts.get(at).map(|known| *known == part(id))
    }
}

/// Returns 64 bits of an id. Both halves count: ids of one millisecond differ in the lower half only.
fn part(id: MessageId) -> u64 {
    let id = id.as_u128();
    (id >> 64) as u64 ^ id as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_sequences_are_known() {
        let id = |n: u64| MessageId::from_u128(u128::from(n) + 7);
        let mut recent_ids = RecentIds::default();
        assert_eq!(recent_ids.matches(0, id(0)), None);
        let last = 10 + CAPACITY as u64;
        for place in 1..=last {
            recent_ids.record(place, id(place));
        }
        assert_eq!((recent_ids.matches(10, id(10)), recent_ids.matches(11, id(11))), (None, Some(true)));
        assert_eq!((recent_ids.matches(last, id(last)), recent_ids.matches(last, id(1))), (Some(true), Some(false)));
        assert_eq!(recent_ids.matches(last + 1, id(last + 1)), None);
        // A jump to another sequence.
        recent_ids.record(5, id(5));
        assert_eq!((recent_ids.matches(5, id(5)), recent_ids.matches(4, id(4))), (Some(true), None));
    }

    #[test]
    fn each_half_of_an_id_distinguishes_messages() {
        let (old, young) = (1u128 << 64 | 5, 2u128 << 64 | 5);
        let mut recent_ids = RecentIds::default();
        recent_ids.record(1, MessageId::from_u128(old));
        assert_eq!(recent_ids.matches(1, MessageId::from_u128(young)), Some(false));
        assert_eq!(recent_ids.matches(1, MessageId::from_u128(old + 1)), Some(false));
        assert_eq!(recent_ids.matches(1, MessageId::from_u128(old)), Some(true));
    }
}
