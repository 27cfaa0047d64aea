//! The dead letters of one key, in the order in which they are redriven, and their size.
//!
//! Part of the [state](super::state); read before a message is parked and while parked messages are redriven. Rebuilt
//! from the stream's notes. Every operation costs O(log n).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use whizbang_core::message::{Kind, MessageId};
use whizbang_core::store::DeadLetter;

/// The most messages parked for one key. Redriving that many takes about a second.
pub(super) const MAX_MESSAGES: usize = 10_000;
/// The payload bytes after which no more messages are parked for one key: 64 MiB.
pub(super) const MAX_BYTES: usize = 64 * 1024 * 1024;

/// The dead letters of one key. Stored as a list of ids.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Vec<MessageId>", into = "Vec<MessageId>")]
pub(crate) struct Parked {
    /// By the order in which they were parked.
    messages: BTreeMap<u64, ParkedMessage>,
    order: BTreeMap<MessageId, u64>,
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
        Self { messages: BTreeMap::new(), order: BTreeMap::new(), timers: BTreeMap::new(), bytes: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(crate) fn contains(&self, message: MessageId) -> bool {
        self.order.contains_key(&message)
    }

    /// Returns whether one more message may be parked.
    pub(super) fn has_capacity(&self) -> bool {
        self.len() < MAX_MESSAGES && self.bytes < MAX_BYTES
    }

    /// Parks a message behind all others. `timer` is the stored name, if it is a timer.
    pub(super) fn add(&mut self, entry: &DeadLetter, timer: &str) {
        let envelope = &entry.envelope;
        let timer = (envelope.kind == Kind::Document).then(|| timer.to_owned());
        self.put(ParkedMessage { message: envelope.id, bytes: envelope.payload.len(), timer });
    }

    fn put(&mut self, entry: ParkedMessage) {
        self.remove(entry.message);
        let place = self.messages.last_key_value().map_or(0, |(last, _)| last + 1);
        self.bytes += entry.bytes;
        self.order.insert(entry.message, place);
        if let Some(timer) = &entry.timer {
            self.timers.entry(timer.clone()).or_default().push(entry.message);
        }
        self.messages.insert(place, entry);
    }

    /// Removes a message that was handled or discarded.
    pub(super) fn remove(&mut self, message: MessageId) {
        let Some(entry) = self.order.remove(&message).and_then(|place| self.messages.remove(&place)) else { return };
        self.bytes -= entry.bytes;
        if let Some(timer) = entry.timer
            && let Some(ids) = self.timers.get_mut(&timer)
        {
            ids.retain(|id| *id != message);
            if ids.is_empty() {
                self.timers.remove(&timer);
            }
        }
    }

    /// Returns the first `most` messages, fewer if they exceed `bytes`, but at least one.
    pub(super) fn first(&self, most: usize, bytes: usize) -> Vec<MessageId> {
        let mut sum = 0;
        let mut first = Vec::new();
        for entry in self.messages.values().take(most) {
            sum += entry.bytes;
            if sum > bytes && !first.is_empty() {
                break;
            }
            first.push(entry.message);
        }
        first
    }

    /// Returns the parked timers of a name, in no particular order.
    pub(super) fn timers(&self, name: &str) -> &[MessageId] {
        self.timers.get(name).map_or(&[], Vec::as_slice)
    }
}

/// Equal if both hold the same messages in the same order.
impl PartialEq for Parked {
    fn eq(&self, other: &Self) -> bool {
        let ids = |parked: &Self| parked.messages.values().map(|entry| entry.message).collect::<Vec<_>>();
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
        parked.messages.into_values().map(|entry| entry.message).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use whizbang_core::clock::Timestamp;
    use whizbang_core::message::{Envelope, Name};
    use whizbang_core::store::DeadLetterReason;

    fn entry(n: u128, bytes: usize, timer: Option<&str>) -> ParkedMessage {
        ParkedMessage { message: MessageId::from_u128(n), bytes, timer: timer.map(str::to_owned) }
    }

    fn ids(numbers: &[u128]) -> Vec<MessageId> {
        numbers.iter().map(|n| MessageId::from_u128(*n)).collect()
    }

    #[test]
    fn first_messages_are_ordered_and_bounded_by_bytes() {
        let mut parked = Parked::new();
        for n in [3, 1, 2, 4] {
            parked.put(entry(n, 10, None));
        }
        assert_eq!(parked.first(10, 1000), ids(&[3, 1, 2, 4]));
        assert_eq!(parked.first(2, 1000), ids(&[3, 1]));
        assert_eq!(parked.first(10, 25), ids(&[3, 1]));
        assert_eq!(parked.first(10, 20), ids(&[3, 1]), "exactly full");
        assert_eq!(parked.first(10, 19), ids(&[3]));
        assert_eq!(parked.first(10, 1), ids(&[3]), "at least one");
        parked.remove(MessageId::from_u128(3));
        parked.put(entry(1, 5, None));
        assert_eq!(parked.first(10, 1000), ids(&[2, 4, 1]), "parked again, it is last");
        assert_eq!(parked.bytes, 25);
    }

    #[test]
    fn timers_are_found_by_name_while_parked() {
        let mut parked = Parked::new();
        parked.put(entry(1, 1, Some("Bell")));
        parked.put(entry(2, 1, Some("Bell")));
        assert_eq!(parked.timers("Bell"), ids(&[1, 2]));
        parked.remove(MessageId::from_u128(1));
        assert_eq!(parked.timers("Bell"), ids(&[2]));
        parked.remove(MessageId::from_u128(2));
        assert!(parked.timers("Bell").is_empty() && parked.is_empty() && parked.bytes == 0);
    }

    #[test]
    fn capacity_is_bounded_by_messages_and_bytes() {
        let mut parked = Parked::new();
        parked.put(entry(0, MAX_BYTES, None));
        assert!(!parked.has_capacity());
        parked.remove(MessageId::from_u128(0));
        for n in 0..MAX_MESSAGES {
            assert!(parked.has_capacity());
            parked.put(entry(n as u128, 0, None));
        }
        assert!(!parked.has_capacity());
    }

    #[test]
    fn only_documents_are_parked_as_timers() {
        let mut parked = Parked::new();
        let name = |name| Name::from_static(name).unwrap();
        for (n, kind) in [(1, Kind::Command), (2, Kind::Document), (3, Kind::Event)] {
            let message = MessageId::from_u128(n);
            let envelope = Envelope::new(message, kind, name("bank"), name("Bell"), Timestamp::default());
            let (actor, key, reason) = (name("account"), "a".to_owned(), DeadLetterReason::Attempts);
            let (error, time) = (String::new(), Timestamp::default());
            let envelope = Envelope { payload: vec![0; 7].into(), ..envelope };
            parked.add(&DeadLetter { actor, key, reason, error, attempts: 1, time, envelope }, "Bell");
        }
        assert_eq!((parked.timers("Bell"), parked.timers("Other")), (&ids(&[2])[..], &[][..]));
        assert_eq!((parked.first(9, 21), parked.bytes, parked.len()), (ids(&[1, 2, 3]), 21, 3));
        assert!(parked.contains(MessageId::from_u128(3)) && !parked.contains(MessageId::from_u128(4)));
    }

    #[test]
    fn parked_messages_are_equal_in_the_same_order_only() {
        let of = |numbers: &[u128]| Parked::from(ids(numbers));
        assert!(of(&[1, 2]) == of(&[1, 2]) && of(&[]) == Parked::new());
        for other in [&[2, 1][..], &[1], &[1, 2, 3], &[1, 3]] {
            assert!(of(&[1, 2]) != of(other), "{other:?}");
        }
        assert_eq!(Vec::from(of(&[3, 1, 2])), ids(&[3, 1, 2]));
    }
}
