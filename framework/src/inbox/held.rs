//! Messages that came early: kept until those before them have come, as far as there is room.

use std::collections::BTreeMap;

use crate::message::Envelope;

/// How many messages are kept while one before them is missing.
const MOST: usize = 1024;
/// How many bytes of payload they have at most.
const BYTES: usize = 16 << 20;

/// Messages that came before their turn, by their place, each with what is to be told once it is settled.
pub(super) struct Held<T> {
    messages: BTreeMap<u64, (Envelope, T)>,
    bytes: usize,
}

impl<T> Default for Held<T> {
    fn default() -> Self {
        Self { messages: BTreeMap::new(), bytes: 0 }
    }
}

impl<T> Held<T> {
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
        self.messages.insert(place, (message, told));
        None
    }

    /// Takes out the first message if it stands at or below `place`.
    pub(super) fn first_up_to(&mut self, place: u64) -> Option<(u64, Envelope, T)> {
        let first = self.messages.first_entry().filter(|first| *first.key() <= place)?;
        let (place, (message, told)) = first.remove_entry();
        self.bytes -= message.payload.len();
        Some((place, message, told))
    }

    /// Takes out all of them.
    pub(super) fn take(&mut self) -> impl Iterator<Item = (Envelope, T)> + use<T> {
        self.bytes = 0;
        std::mem::take(&mut self.messages).into_values()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::clock::Timestamp;
    use crate::message::{Kind, MessageId, Name};

    #[test]
    fn held_messages_are_bounded_in_count_and_bytes() {
        let name = Name::from_static("bank").unwrap();
        let empty = Envelope::new(MessageId::from_u128(1), Kind::Event, name.clone(), name, Timestamp::from_millis(0));
        let mut held = Held::default();
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
}
