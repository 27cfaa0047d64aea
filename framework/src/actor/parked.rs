//! The dead letters of one key, in the order in which they are handled again, and how much they hold.
//!
//! Kept by the [state](super::state); asked before a message is parked and while parked messages are redriven. Rebuilt from the
//! stream's notes. Every operation costs O(log n).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::message::{Kind, MessageId};
use crate::store::DeadLetter;

/// How many messages are parked for one key, at most. Redriving that many takes a second or so, and an operator who looks at the
/// key has not lost sight of it.
pub(super) const MOST_MESSAGES: usize = 10_000;
/// How many payload bytes are parked for one key before no more messages are: 64 MiB.
pub(super) const MOST_BYTES: usize = 64 * 1024 * 1024;

/// The dead letters of one key. Stored as a list of ids.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Vec<MessageId>", into = "Vec<MessageId>")]
pub(crate) struct Parked {
    /// By the order in which they were parked.
    letters: BTreeMap<u64, ParkedMessage>,
    places: BTreeMap<MessageId, u64>,
    /// The parked timers, by name.
    timers: BTreeMap<String, Vec<MessageId>>,
    bytes: usize,
}

#[derive(Clone, Debug)]
struct ParkedMessage {
    message: MessageId,
    bytes: usize,
    timer: Option<String>,
}

impl Parked {
    pub(crate) const fn new() -> Self {
        Self { letters: BTreeMap::new(), places: BTreeMap::new(), timers: BTreeMap::new(), bytes: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.letters.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.letters.len()
    }

    pub(crate) fn contains(&self, message: MessageId) -> bool {
        self.places.contains_key(&message)
    }

    /// Returns whether one more message may be parked.
    pub(super) fn has_room(&self) -> bool {
        self.len() < MOST_MESSAGES && self.bytes < MOST_BYTES
    }

    /// Parks a message behind all others. `timer` is the stored name, if it is a timer.
    pub(super) fn add(&mut self, letter: &DeadLetter, timer: &str) {
        let envelope = &letter.envelope;
        let timer = (envelope.kind == Kind::Document).then(|| timer.to_owned());
        self.put(ParkedMessage { message: envelope.id, bytes: envelope.payload.len(), timer });
    }

    fn put(&mut self, letter: ParkedMessage) {
        self.remove(letter.message);
        let place = self.letters.last_key_value().map_or(0, |(last, _)| last + 1);
        self.bytes += letter.bytes;
        self.places.insert(letter.message, place);
        if let Some(timer) = &letter.timer {
            self.timers.entry(timer.clone()).or_default().push(letter.message);
        }
        self.letters.insert(place, letter);
    }

    /// Takes out a message that was handled or discarded.
    pub(super) fn remove(&mut self, message: MessageId) {
        let Some(letter) = self.places.remove(&message).and_then(|place| self.letters.remove(&place)) else { return };
        self.bytes -= letter.bytes;
        if let Some(timer) = letter.timer
            && let Some(ids) = self.timers.get_mut(&timer)
        {
            ids.retain(|id| *id != message);
            if ids.is_empty() {
                self.timers.remove(&timer);
            }
        }
    }

    /// The first messages: `most` of them, fewer if they hold more than `bytes`, one at least.
    pub(super) fn first(&self, most: usize, bytes: usize) -> Vec<MessageId> {
        let mut sum = 0;
        let mut first = Vec::new();
        for letter in self.letters.values().take(most) {
            sum += letter.bytes;
            if sum > bytes && !first.is_empty() {
                break;
            }
            first.push(letter.message);
        }
        first
    }

    /// The parked timers of a name, in no order.
    pub(super) fn timers(&self, name: &str) -> &[MessageId] {
        self.timers.get(name).map_or(&[], Vec::as_slice)
    }
}

/// Equal if the same messages come in the same order.
impl PartialEq for Parked {
    fn eq(&self, other: &Self) -> bool {
        let ids = |parked: &Self| parked.letters.values().map(|letter| letter.message).collect::<Vec<_>>();
        self.len() == other.len() && ids(self) == ids(other)
    }
}

impl From<Vec<MessageId>> for Parked {
    fn from(ids: Vec<MessageId>) -> Self {
        let mut parked = Self::new();
        ids.into_iter().for_each(|message| parked.put(ParkedMessage { message, bytes: 0, timer: None }));
        parked
    }
}

impl From<Parked> for Vec<MessageId> {
    fn from(parked: Parked) -> Self {
        parked.letters.into_values().map(|letter| letter.message).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(n: u128, bytes: usize, timer: Option<&str>) -> ParkedMessage {
        ParkedMessage { message: MessageId::from_u128(n), bytes, timer: timer.map(str::to_owned) }
    }

    fn ids(numbers: &[u128]) -> Vec<MessageId> {
        numbers.iter().map(|n| MessageId::from_u128(*n)).collect()
    }

    #[test]
    fn first_messages_come_in_order_within_bytes() {
        let mut parked = Parked::new();
        for n in [3, 1, 2, 4] {
            parked.put(letter(n, 10, None));
        }
        assert_eq!(parked.first(10, 1000), ids(&[3, 1, 2, 4]));
        assert_eq!(parked.first(2, 1000), ids(&[3, 1]));
        assert_eq!(parked.first(10, 25), ids(&[3, 1]));
        assert_eq!(parked.first(10, 1), ids(&[3]), "one at least");
        parked.remove(MessageId::from_u128(3));
        parked.put(letter(1, 5, None));
        assert_eq!(parked.first(10, 1000), ids(&[2, 4, 1]), "parked again, it comes last");
        assert_eq!(parked.bytes, 25);
    }

    #[test]
    fn timers_are_found_by_name_while_parked() {
        let mut parked = Parked::new();
        parked.put(letter(1, 1, Some("Bell")));
        parked.put(letter(2, 1, Some("Bell")));
        assert_eq!(parked.timers("Bell"), ids(&[1, 2]));
        parked.remove(MessageId::from_u128(1));
        assert_eq!(parked.timers("Bell"), ids(&[2]));
        parked.remove(MessageId::from_u128(2));
        assert!(parked.timers("Bell").is_empty() && parked.is_empty() && parked.bytes == 0);
    }

    #[test]
    fn room_ends_with_messages_and_with_bytes() {
        let mut parked = Parked::new();
        parked.put(letter(0, MOST_BYTES, None));
        assert!(!parked.has_room());
        parked.remove(MessageId::from_u128(0));
        for n in 0..MOST_MESSAGES {
            assert!(parked.has_room());
            parked.put(letter(n as u128, 0, None));
        }
        assert!(!parked.has_room());
    }
}
