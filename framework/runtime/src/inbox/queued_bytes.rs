//! Payload bytes of the messages that wait on one thread: in mailboxes, for a slot, for the end of a back-off.
//!
//! Filled by the dispatchers of actors and workers; read by them, by receive windows and by subscriptions before they
//! admit a message. A bound on the number of messages alone does not bound the memory: 16,384 messages of 512 KiB are 8 GiB.

use std::cell::Cell;

/// Most payload bytes of each kind that wait on a thread: 64 MiB, as much as callers may have queued for it. A single
/// message may exceed it. At 1 KiB for each message, the bounds on their number are reached first.
pub(crate) const MAX_QUEUED_BYTES: usize = 64 << 20;
/// Most payload bytes that wait for one key before its callers are refused: a quarter, so that a slow key leaves
/// capacity for others.
pub(crate) const MAX_QUEUED_BYTES_PER_KEY: usize = MAX_QUEUED_BYTES / 4;

/// Kinds of messages that wait. Each has its own bound, so that none uses up the capacity of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueuedKind {
    /// Commands of callers to actors. More are refused as `Busy`.
    Callers,
    /// Messages of actors, events and timers. More stay in the outbox or in the log.
    Messages,
    /// Messages of actors and events that the store refuses to record. More stay in the outbox or in the log.
    Unrecorded,
    /// Commands of callers to workers. More are refused as `Busy`.
    Jobs,
}

/// Payload bytes that wait on one thread.
#[derive(Debug, Default)]
pub(crate) struct QueuedBytes {
    callers: Cell<usize>,
    messages: Cell<usize>,
    unrecorded: Cell<usize>,
    jobs: Cell<usize>,
}

impl QueuedBytes {
    fn count(&self, kind: QueuedKind) -> &Cell<usize> {
        match kind {
            QueuedKind::Callers => &self.callers,
            QueuedKind::Messages => &self.messages,
            QueuedKind::Unrecorded => &self.unrecorded,
            QueuedKind::Jobs => &self.jobs,
        }
    }

    /// Returns whether a message of that many bytes may wait with the others of its kind.
    pub(crate) fn fits(&self, kind: QueuedKind, bytes: usize) -> bool {
        is_within(self.count(kind).get(), bytes, MAX_QUEUED_BYTES)
    }

    /// Returns whether a source of messages that has others in flight may dispatch one more.
    pub(crate) fn has_capacity(&self) -> bool {
        self.has_capacity_for_recorded() && self.unrecorded.get() < MAX_QUEUED_BYTES
    }

    /// Returns whether a message that is in the log may be read to be handled. Those that the store refuses do not hold it up: they
    /// may be of one actor type.
    pub(crate) fn has_capacity_for_recorded(&self) -> bool {
        self.messages.get() < MAX_QUEUED_BYTES
    }

    pub(crate) fn add(&self, kind: QueuedKind, bytes: usize) {
        let count = self.count(kind);
        count.set(count.get() + bytes);
    }

    pub(crate) fn remove(&self, kind: QueuedKind, bytes: usize) {
        let count = self.count(kind);
        count.set(count.get().saturating_sub(bytes));
    }

    /// Returns the bytes of a kind that wait.
    #[cfg(test)]
    pub(crate) fn of(&self, kind: QueuedKind) -> usize {
        self.count(kind).get()
    }
}

/// Returns whether a message fits behind others of `before` bytes. A message of any size fits if none waits.
pub(crate) const fn is_within(before: usize, bytes: usize, limit: usize) -> bool {
    before == 0 || before.saturating_add(bytes) <= limit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_messages_have_bounds_of_their_own() {
        let queued = QueuedBytes::default();
        for kind in [QueuedKind::Callers, QueuedKind::Messages, QueuedKind::Jobs] {
            assert!(queued.fits(kind, 2 * MAX_QUEUED_BYTES), "a single message may exceed the bound");
            queued.add(kind, MAX_QUEUED_BYTES - 1);
            assert!(queued.fits(kind, 1) && !queued.fits(kind, 2), "{kind:?}");
        }
        assert!(queued.has_capacity());
        queued.add(QueuedKind::Messages, 1);
        assert!(!queued.has_capacity());
        queued.remove(QueuedKind::Messages, MAX_QUEUED_BYTES);
        assert!(queued.has_capacity() && queued.of(QueuedKind::Messages) == 0);
        assert_eq!(queued.of(QueuedKind::Callers), MAX_QUEUED_BYTES - 1);
        queued.add(QueuedKind::Unrecorded, MAX_QUEUED_BYTES);
        assert!(!queued.has_capacity() && queued.has_capacity_for_recorded());
    }
}
