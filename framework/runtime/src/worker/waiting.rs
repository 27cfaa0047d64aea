//! Messages with a deferred job, in the order in which they were recorded.
//!
//! Part of the [ledger](super::ledger). The order is that of the stream, and a snapshot keeps it.

use std::collections::BTreeMap;

use whizbang_core::message::MessageId;

/// Ids of deferred messages, in order.
#[derive(Default)]
pub(super) struct Waiting {
    numbers: BTreeMap<MessageId, u64>,
    ids: BTreeMap<u64, MessageId>,
    next: u64,
}

impl Waiting {
    /// Adds an id at the end; one that is known keeps its place.
    pub(super) fn insert(&mut self, id: MessageId) {
        if !self.numbers.contains_key(&id) {
            self.numbers.insert(id, self.next);
            self.ids.insert(self.next, id);
            self.next += 1;
        }
    }

    pub(super) fn remove(&mut self, id: &MessageId) {
        if let Some(number) = self.numbers.remove(id) {
            self.ids.remove(&number);
        }
    }

    pub(super) fn contains(&self, id: &MessageId) -> bool {
        self.numbers.contains_key(id)
    }

    /// Returns the ids, first recorded first.
    pub(super) fn iter(&self) -> impl Iterator<Item = MessageId> {
        self.ids.values().copied()
    }
}

impl FromIterator<MessageId> for Waiting {
    fn from_iter<I: IntoIterator<Item = MessageId>>(ids: I) -> Self {
        let mut waiting = Self::default();
        ids.into_iter().for_each(|id| waiting.insert(id));
        waiting
    }
}
