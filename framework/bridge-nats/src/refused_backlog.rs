//! Refused messages that wait in their own stream, because the stream of refused messages rejects their copies.
//!
//! Used by the consumer loop. The server counts a waiting message as unacknowledged, and at its limit it delivers nothing more. So
//! their number is bounded, and the share of each sender is: a client that writes messages that no node can handle must not stop valid
//! ones, nor push out the refused messages of others. Beyond its share a message is discarded, counted and reported.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use foldhash::fast::FixedState;
use tokio::time::Instant;

use whizbang_core::message::Name;

/// The maximum number of waiting messages, well below the server's limit of unacknowledged ones.
const MAX_WAITING: Share = Share { messages: 1024, bytes: 16 << 20 };
/// The share of one sender: a domain, or all callers together.
const MAX_OF_SENDER: Share = Share { messages: 256, bytes: 4 << 20 };
/// The time after which a message that was not delivered again no longer counts: an operator has removed it from its stream.
pub(super) const FORGOTTEN_AFTER: Duration = Duration::from_secs(300);

/// A number of messages and their size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    messages: usize,
    bytes: usize,
}

impl Share {
    /// Adds a message, unless the limit is exceeded.
    fn with(self, bytes: usize, limit: Self) -> Option<Self> {
        let sum = Self { messages: self.messages + 1, bytes: self.bytes + bytes };
        // A single message always fits, whatever its size.
        (sum.messages <= limit.messages && (sum.bytes <= limit.bytes || self.messages == 0)).then_some(sum)
    }

    /// Removes a message.
    fn without(self, bytes: usize) -> Self {
        Self { messages: self.messages.saturating_sub(1), bytes: self.bytes.saturating_sub(bytes) }
    }
}

/// The place of a message: the index of its consumer, and its sequence in the stream.
pub(super) type Place = (usize, u64);

/// A message as the backlog counts it.
#[derive(Clone, Debug)]
pub(super) struct RefusedMessage {
    /// The place in its own stream.
    pub(super) place: Place,
    /// The domain of the sender, as its subject says; `None` for callers.
    pub(super) sender: Option<Name>,
    /// The size in bytes.
    pub(super) bytes: usize,
}

/// The waiting messages.
#[derive(Debug, Default)]
pub(super) struct RefusedBacklog {
    /// The messages, and when each was delivered last.
    waiting: HashMap<Place, (RefusedMessage, Instant), FixedState>,
    /// The shares of the senders.
    senders: BTreeMap<Option<Name>, Share>,
    /// The sum of all shares.
    total: Share,
}

impl RefusedBacklog {
    /// Returns whether a message whose copy was rejected waits in its stream. Otherwise the caller discards it.
    pub(super) fn admits(&mut self, message: RefusedMessage, now: Instant) -> bool {
        if let Some((_, delivered)) = self.waiting.get_mut(&message.place) {
            *delivered = now;
            return true;
        }
        if self.add(&message, now) {
            return true;
        }
        self.forget_vanished(now) > 0 && self.add(&message, now)
    }

    /// Forgets the messages that are no longer delivered, and returns their number. Costs the number of waiting messages, which is
    /// bounded.
    pub(super) fn forget_vanished(&mut self, now: Instant) -> usize {
        let is_gone = |delivered: &Instant| *delivered + FORGOTTEN_AFTER <= now;
        let gone = self.waiting.iter().filter(|(_, (_, delivered))| is_gone(delivered));
        let gone: Vec<Place> = gone.map(|(place, _)| *place).collect();
        gone.iter().for_each(|place| self.remove(*place));
        gone.len()
    }

    /// Counts a message, unless a share is used up.
    fn add(&mut self, message: &RefusedMessage, now: Instant) -> bool {
        let of_sender = self.senders.get(&message.sender).copied().unwrap_or_default();
        let share = of_sender.with(message.bytes, MAX_OF_SENDER);
        let (Some(share), Some(total)) = (share, self.total.with(message.bytes, MAX_WAITING)) else { return false };
        self.total = total;
        self.senders.insert(message.sender.clone(), share);
        self.waiting.insert(message.place, (message.clone(), now));
        true
    }

    /// Forgets a message: its copy is stored.
    pub(super) fn remove(&mut self, place: Place) {
        let Some((message, _)) = self.waiting.remove(&place) else { return };
        self.total = self.total.without(message.bytes);
        if let Some(share) = self.senders.get_mut(&message.sender) {
            *share = share.without(message.bytes);
            if share.messages == 0 {
                self.senders.remove(&message.sender);
            }
        }
    }

    /// Returns whether no message waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Returns the number of waiting messages.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use whizbang_core::clock::monotonic;

    fn message(number: u64, sender: Option<&'static str>, bytes: usize) -> RefusedMessage {
        let sender = sender.map(|sender| Name::from_static(sender).unwrap());
        RefusedMessage { place: (0, number), sender, bytes }
    }

    #[test]
    fn callers_leave_room_for_the_messages_of_services() {
        let (mut backlog, now) = (RefusedBacklog::default(), monotonic());
        let admitted = (0..10_000).filter(|number| backlog.admits(message(*number, None, 100), now)).count();
        assert_eq!(admitted, MAX_OF_SENDER.messages);
        assert!(backlog.admits(message(5, None, 100), now), "delivered again");
        assert!(backlog.admits(message(20_000, Some("shop"), 500_000), now));
        for (number, sender) in (30_000..).zip(["mail", "cash", "bank", "shop"].into_iter().cycle().take(10_000)) {
            backlog.admits(message(number, Some(sender), 100), now);
        }
        assert_eq!(backlog.len(), MAX_WAITING.messages, "all senders together");
    }

    #[test]
    fn shares_are_bounded_in_bytes() {
        let (mut backlog, now) = (RefusedBacklog::default(), monotonic());
        assert!(backlog.admits(message(0, None, 2 * MAX_OF_SENDER.bytes), now), "one fits, whatever its size");
        assert!(!backlog.admits(message(1, None, 1), now));
        backlog.remove((0, 0));
        assert!(backlog.admits(message(1, None, 1), now));
        assert_eq!((backlog.total, backlog.senders.len()), (Share { messages: 1, bytes: 1 }, 1));
    }

    #[test]
    fn stored_and_vanished_messages_make_room() {
        let (mut backlog, now) = (RefusedBacklog::default(), monotonic());
        let count = MAX_OF_SENDER.messages as u64;
        assert!((0..count).all(|number| backlog.admits(message(number, None, 1), now)));
        backlog.remove((0, 3));
        backlog.remove((0, 3));
        assert!(backlog.admits(message(count, None, 1), now) && !backlog.admits(message(count + 1, None, 1), now));
        let later = now + FORGOTTEN_AFTER;
        assert!(backlog.admits(message(7, None, 1), later), "delivered again");
        assert!(backlog.admits(message(count + 1, None, 1), later), "the others were removed from their stream");
        assert_eq!((backlog.len(), backlog.total), (2, Share { messages: 2, bytes: 2 }));
    }
}
