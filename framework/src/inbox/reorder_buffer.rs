//! Messages that came early: kept until those before them have come, as far as there is room.

use std::collections::BTreeMap;

use crate::message::{Envelope, MessageId};

/// How many messages are kept while one before them is missing.
const MOST: usize = 1024;
/// How many bytes of payload they have at most.
const BYTES: usize = 16 << 20;

/// Messages that came before their turn, by their place, each with what is to be told once it is settled.
pub(super) struct ReorderBuffer<T> {
    messages: BTreeMap<u64, Early<T>>,
    bytes: usize,
    /// How many were ever kept.
    kept: u64,
}

struct Early<T> {
    message: Envelope,
    told: T,
    /// Its number among all that were ever kept.
    number: u64,
}

impl<T> Default for ReorderBuffer<T> {
    fn default() -> Self {
        Self { messages: BTreeMap::new(), bytes: 0, kept: 0 }
    }
}

impl<T> ReorderBuffer<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Keeps a message, or gives `told` back: it is kept already, or there is no room.
    pub(super) fn keep(&mut self, place: u64, message: Envelope, told: T) -> Option<T> {
        let bytes = message.payload.len();
        let room = self.messages.len() < MOST && self.bytes + bytes <= BYTES;
        if !room || self.messages.contains_key(&place) {
            return Some(told);
        }
        self.bytes += bytes;
        self.kept += 1;
        self.messages.insert(place, Early { message, told, number: self.kept });
        None
    }

    /// Takes out the first message if it stands at or below `place`.
    pub(super) fn first_up_to(&mut self, place: u64) -> Option<(u64, Envelope, T)> {
        let place = self.messages.first_key_value().map(|(first, _)| *first).filter(|first| *first <= place)?;
        let early = self.remove(place)?;
        Some((place, early.message, early.told))
    }

    /// Takes out all of them.
    pub(super) fn take(&mut self) -> impl Iterator<Item = (Envelope, T)> + use<T> {
        self.bytes = 0;
        std::mem::take(&mut self.messages).into_values().map(|early| (early.message, early.told))
    }

    /// A mark between what is kept now and what is kept later.
    pub(super) fn mark(&self) -> u64 {
        self.kept
    }

    /// Takes out what was kept before `mark` above `place`: the sender's log, read after the mark, ends there, so it did not send
    /// these. Costs the number of messages kept.
    pub(super) fn above(&mut self, place: u64, mark: u64) -> Vec<T> {
        let above = self.messages.range(place.saturating_add(1)..).filter(|(_, early)| early.number <= mark);
        let places: Vec<u64> = above.map(|(place, _)| *place).collect();
        places.into_iter().filter_map(|place| self.remove(place)).map(|early| early.told).collect()
    }

    /// Takes out what is kept at `place` if the sender's log has another message there.
    pub(super) fn other_than(&mut self, place: u64, id: MessageId) -> Option<T> {
        self.messages.get(&place).filter(|early| early.message.id != id)?;
        self.remove(place).map(|early| early.told)
    }

    fn remove(&mut self, place: u64) -> Option<Early<T>> {
        let early = self.messages.remove(&place)?;
        self.bytes -= early.message.payload.len();
        Some(early)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::clock::Timestamp;
    use crate::message::{Kind, Name};

    fn empty() -> Envelope {
        let name = Name::from_static("bank").unwrap();
        Envelope::new(MessageId::from_u128(1), Kind::Event, name.clone(), name, Timestamp::from_millis(0))
    }

    #[test]
    fn held_messages_are_bounded_in_count_and_bytes() {
        let empty = empty();
        let mut held = ReorderBuffer::default();
        let kept = (0..2 * MOST as u64).filter(|place| held.keep(*place, empty.clone(), ()).is_none()).count();
        assert_eq!(kept, MOST);
        assert_eq!(held.keep(0, empty.clone(), ()), Some(()), "it is kept already");
        assert_eq!(held.first_up_to(7).map(|(place, ..)| place), Some(0));
        assert_eq!(held.take().count(), MOST - 1);
        let large = Envelope { payload: Bytes::from(vec![0; BYTES / 4]), ..empty };
        let kept = (0..10).filter(|place| held.keep(*place, large.clone(), ()).is_none()).count();
        assert_eq!(kept, 4);
        assert!(held.first_up_to(0).is_some() && held.keep(9, large, ()).is_none() && !held.is_empty());
    }

    #[test]
    fn a_place_is_kept_for_its_first_message() {
        let mut held = ReorderBuffer::default();
        assert_eq!(held.keep(3, empty(), 1), None);
        assert_eq!(held.keep(3, empty(), 2), Some(2));
        assert_eq!(held.first_up_to(2).map(|(.., told)| told), None);
        assert_eq!(held.first_up_to(3).map(|(.., told)| told), Some(1));
    }

    #[test]
    fn held_messages_give_way_to_the_log() {
        let mut held = ReorderBuffer::default();
        for place in [5, 7, 9] {
            held.keep(place, empty(), place);
        }
        let mark = held.mark();
        held.keep(8, empty(), 8);
        assert_eq!(held.other_than(5, empty().id), None, "the log has the same");
        assert_eq!(held.other_than(5, MessageId::from_u128(2)), Some(5));
        assert_eq!(held.above(6, mark), [7, 9], "8 came after the question");
        assert_eq!(held.first_up_to(8).map(|(place, ..)| place), Some(8));
        assert!(held.is_empty() && held.bytes == 0);
    }
}
