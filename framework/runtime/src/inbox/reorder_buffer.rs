//! Reorder buffer: messages that arrived early, held until those before them arrive.
//!
//! Used by receive windows and subscriptions. Bounded: a refused message is in its sender's log.

use std::collections::BTreeMap;

use whizbang_core::message::{Envelope, MessageId};

/// Most messages held.
const MAX_MESSAGES: usize = 1024;
/// Most payload bytes held.
const MAX_BYTES: usize = 16 << 20;

/// Early messages by sequence, each with its completion.
pub(super) struct ReorderBuffer<T> {
    messages: BTreeMap<u64, BufferedMessage<T>>,
    bytes: usize,
    /// Number of messages ever inserted.
    inserted: u64,
}

/// A held message with the callback that completes it.
struct BufferedMessage<T> {
    message: Envelope,
    completion: T,
    /// Insertion number, compared with [`mark`](ReorderBuffer::mark).
    number: u64,
}

impl<T> Default for ReorderBuffer<T> {
    fn default() -> Self {
        Self { messages: BTreeMap::new(), bytes: 0, inserted: 0 }
    }
}

impl<T> ReorderBuffer<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Holds a message. Returns `completion` if it is held already or the buffer is full.
    pub(super) fn keep(&mut self, place: u64, message: Envelope, completion: T) -> Option<T> {
        let bytes = message.payload.len();
        let room = self.messages.len() < MAX_MESSAGES && self.bytes + bytes <= MAX_BYTES;
        if !room || self.messages.contains_key(&place) {
            return Some(completion);
        }
        self.bytes += bytes;
        self.inserted += 1;
        self.messages.insert(place, BufferedMessage { message, completion, number: self.inserted });
        None
    }

    /// Removes the first message if its sequence is at most `place`.
    pub(super) fn pop_through(&mut self, place: u64) -> Option<(u64, Envelope, T)> {
        let place = self.messages.first_key_value().map(|(first, _)| *first).filter(|first| *first <= place)?;
        let early = self.remove(place)?;
        Some((place, early.message, early.completion))
    }

    /// Removes all messages.
    pub(super) fn take(&mut self) -> impl Iterator<Item = (Envelope, T)> + use<T> {
        self.bytes = 0;
        std::mem::take(&mut self.messages).into_values().map(|early| (early.message, early.completion))
    }

    /// Returns a mark between the messages inserted so far and later ones.
    pub(super) fn mark(&self) -> u64 {
        self.inserted
    }

    /// Removes messages above `place` inserted before `mark`: the sender's log, read after the mark, ends there, so
    /// it did not send them. Costs the number of messages held.
    pub(super) fn remove_above(&mut self, place: u64, mark: u64) -> Vec<T> {
        let above = self.messages.range(place.saturating_add(1)..).filter(|(_, early)| early.number <= mark);
        let places: Vec<u64> = above.map(|(place, _)| *place).collect();
        places.into_iter().filter_map(|place| self.remove(place)).map(|early| early.completion).collect()
    }

    /// Removes the message at `place` if the sender's log has another one there.
    pub(super) fn remove_conflicting(&mut self, place: u64, id: MessageId) -> Option<T> {
        self.messages.get(&place).filter(|early| early.message.id != id)?;
        self.remove(place).map(|early| early.completion)
    }

    /// Removes a message and its bytes.
    fn remove(&mut self, place: u64) -> Option<BufferedMessage<T>> {
        let early = self.messages.remove(&place)?;
        self.bytes -= early.message.payload.len();
        Some(early)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use whizbang_core::clock::Timestamp;
    use whizbang_core::message::{Kind, Name};

    fn empty() -> Envelope {
        let name = Name::from_static("bank").unwrap();
        Envelope::new(MessageId::from_u128(1), Kind::Event, name.clone(), name, Timestamp::from_millis(0))
    }

    #[test]
    fn held_messages_are_bounded_in_count_and_bytes() {
        let empty = empty();
        let mut held = ReorderBuffer::default();
        let kept = (0..2 * MAX_MESSAGES as u64).filter(|place| held.keep(*place, empty.clone(), ()).is_none()).count();
        assert_eq!(kept, MAX_MESSAGES);
        assert_eq!(held.keep(0, empty.clone(), ()), Some(()), "it is held already");
        assert_eq!(held.pop_through(7).map(|(place, ..)| place), Some(0));
        assert_eq!(held.take().count(), MAX_MESSAGES - 1);
        let large = Envelope { payload: Bytes::from(vec![0; MAX_BYTES / 4]), ..empty };
        let kept = (0..10).filter(|place| held.keep(*place, large.clone(), ()).is_none()).count();
        assert_eq!(kept, 4);
        assert!(held.pop_through(0).is_some() && held.keep(9, large, ()).is_none() && !held.is_empty());
    }

    #[test]
    fn sequence_keeps_its_first_message() {
        let mut held = ReorderBuffer::default();
        assert_eq!(held.keep(3, empty(), 1), None);
        assert_eq!(held.keep(3, empty(), 2), Some(2));
        assert_eq!(held.pop_through(2).map(|(.., completion)| completion), None);
        assert_eq!(held.pop_through(3).map(|(.., completion)| completion), Some(1));
    }

    #[test]
    fn held_messages_are_replaced_by_the_log() {
        let mut held = ReorderBuffer::default();
        for place in [5, 7, 9] {
            held.keep(place, empty(), place);
        }
        let mark = held.mark();
        held.keep(8, empty(), 8);
        assert_eq!(held.remove_conflicting(5, empty().id), None, "the log has the same");
        assert_eq!(held.remove_conflicting(5, MessageId::from_u128(2)), Some(5));
        assert_eq!(held.remove_above(6, mark), [7, 9], "8 arrived after the mark");
        assert_eq!(held.pop_through(8).map(|(place, ..)| place), Some(8));
        assert!(held.is_empty() && held.bytes == 0);
    }
}
