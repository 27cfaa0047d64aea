//! The messages of a key that arrive while one of them is in back-off.
//!
//! Held by the live [actor](super::instance) from the first back-off until everything that arrived in between is handled.

use std::collections::VecDeque;

use super::stuck_key::StuckKey;

/// The messages that arrived during a back-off and are not written to the backlog: commands of callers, and timers. Permits bound
/// their number.
pub(super) struct BackOffQueue<T> {
    /// The back-off is not over.
    pub(super) is_active: bool,
    /// The refusals of the message in back-off by a layer.
    pub(super) refusals: StuckKey,
    /// In the order of their arrival.
    queue: VecDeque<T>,
}

impl<T> Default for BackOffQueue<T> {
    fn default() -> Self {
        Self { is_active: false, refusals: StuckKey::default(), queue: VecDeque::new() }
    }
}

impl<T> BackOffQueue<T> {
    pub(super) fn push(&mut self, message: T) {
        self.queue.push_back(message);
    }

    /// Returns the next message, once the one in back-off is handled.
    pub(super) fn next(&mut self) -> Option<T> {
        self.refusals.served();
        self.queue.pop_front()
    }
}
