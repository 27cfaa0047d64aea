//! The messages of a key that arrive while one of them is in back-off.
//!
//! Held by the live [actor](super::instance) from the first back-off until everything that arrived in between is handled.

use std::collections::VecDeque;

use super::stuck_key::StuckKey;

/// The messages that arrived during a back-off and are not written to the backlog: commands of callers and timers, whose number
/// permits bound, and those with a sequence that the store did not accept, which the windows of their senders bound.
pub(super) struct BackOffQueue<T> {
    /// The back-off is not over.
    pub(super) is_active: bool,
    /// The message in back-off has a sequence and is not in the log. A later one that is written to the backlog before would make it
    /// a duplicate.
    pub(super) is_unrecorded: bool,
    /// A message with a sequence was given back to its sender, because the shard closes. A later one that is handled here would make
    /// it a duplicate.
    pub(super) has_given_up: bool,
    /// A timer will try to write the unrecorded messages.
    pub(super) is_retrying: bool,
    /// The refusals of the message in back-off by a layer.
    pub(super) refusals: StuckKey,
    /// The refusals of messages with a sequence by the store.
    pub(super) unrecordable: StuckKey,
    /// In the order of their arrival.
    queue: VecDeque<T>,
    /// The messages with a sequence that the backlog does not keep, in the order of their arrival.
    unrecorded: VecDeque<T>,
}

impl<T> Default for BackOffQueue<T> {
    fn default() -> Self {
        Self {
            is_active: false,
            is_unrecorded: false,
            is_retrying: false,
            has_given_up: false,
            refusals: StuckKey::default(),
            unrecordable: StuckKey::default(),
            queue: VecDeque::new(),
            unrecorded: VecDeque::new(),
        }
    }
}

impl<T> BackOffQueue<T> {
    pub(super) fn push(&mut self, message: T) {
        self.queue.push_back(message);
    }

    /// Returns whether a message with a sequence must wait here: one before it is not in the log.
    pub(super) fn blocks_sequences(&self) -> bool {
        self.has_given_up || !self.unrecorded.is_empty() || self.is_active && self.is_unrecorded
    }

    /// Adds a message with a sequence behind the others.
    pub(super) fn push_unrecorded(&mut self, message: T) {
        self.unrecorded.push_back(message);
    }

    /// Adds the first message with a sequence again.
    pub(super) fn return_unrecorded(&mut self, message: T) {
        self.unrecorded.push_front(message);
    }

    /// Returns the first message with a sequence, unless it waits for the timer.
    pub(super) fn next_unrecorded(&mut self) -> Option<T> {
        if self.is_retrying { None } else { self.unrecorded.pop_front() }
    }

    /// Takes the messages with a sequence, in order.
    pub(super) fn take_unrecorded(&mut self) -> VecDeque<T> {
        std::mem::take(&mut self.unrecorded)
    }

    /// Returns the next message, once the one in back-off is handled.
    pub(super) fn next(&mut self) -> Option<T> {
        self.refusals.served();
        self.queue.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_wait_behind_a_message_outside_of_the_log() {
        let blocks = |change: fn(&mut BackOffQueue<u32>)| {
            let mut queue = BackOffQueue::default();
            change(&mut queue);
            queue.blocks_sequences()
        };
        assert!(!blocks(|_| {}));
        assert!(!blocks(|queue| queue.is_active = true) && !blocks(|queue| queue.is_unrecorded = true));
        assert!(!blocks(|queue| queue.push(1)), "it has no sequence");
        assert!(blocks(|queue| (queue.is_active, queue.is_unrecorded) = (true, true)));
        assert!(blocks(|queue| queue.has_given_up = true));
        assert!(blocks(|queue| queue.push_unrecorded(1)));
    }

    #[test]
    fn messages_leave_in_the_order_of_their_arrival() {
        let mut queue = BackOffQueue::default();
        (1..=2).for_each(|message| queue.push(message));
        (11..=14).for_each(|message| queue.push_unrecorded(message));
        assert_eq!(queue.next_unrecorded(), Some(11));
        queue.return_unrecorded(11);
        queue.is_retrying = true;
        assert_eq!(queue.next_unrecorded(), None, "the timer takes it");
        queue.is_retrying = false;
        assert_eq!((queue.next_unrecorded(), queue.next_unrecorded()), (Some(11), Some(12)));
        assert_eq!(queue.take_unrecorded(), [13, 14]);
        assert_eq!((queue.next_unrecorded(), queue.blocks_sequences()), (None, false));
        assert_eq!([queue.next(), queue.next(), queue.next()], [Some(1), Some(2), None]);
    }
}
