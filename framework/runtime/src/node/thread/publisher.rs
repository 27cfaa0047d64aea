//! State of a thread's publisher: the shards with something to publish, and what the broker has of each.
//!
//! Written by the relay and by the publisher's task, which it survives.

use std::cell::{Cell, RefCell};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use tokio::sync::Notify;

use crate::actor::OwnedShard;
use whizbang_core::message::ShardId;

/// Shards that may have messages to publish.
#[derive(Default)]
pub(in crate::node) struct Publisher {
    pub(in crate::node) dirty: RefCell<BTreeMap<ShardId, Rc<OwnedShard>>>,
    pub(in crate::node) wake: Notify,
    pub(in crate::node) is_running: Cell<bool>,
    /// The node has a bridge.
    pub(in crate::node) is_used: Cell<bool>,
    /// Position up to which the events of each shard are published; absent while the broker has not answered what it
    /// holds. Stored here to survive a restart of the task.
    pub(in crate::node) published: RefCell<BTreeMap<ShardId, u64>>,
    /// Shards for which the broker has not yet answered what it holds.
    pub(in crate::node) unanswered: RefCell<BTreeSet<ShardId>>,
}

impl Publisher {
    pub(in crate::node) fn mark_dirty(&self, cell: &Rc<OwnedShard>) {
        match self.dirty.borrow_mut().entry(cell.id.clone()) {
            Entry::Vacant(entry) => {
                entry.insert(Rc::clone(cell));
            }
            // The relay may mark an opening that was closed while it read the outbox. Kept here while the broker is slow, it
            // would hide the present opening, whose messages would then wait for its next commit.
            Entry::Occupied(mut entry) if entry.get().epoch() < cell.epoch() => {
                entry.insert(Rc::clone(cell));
            }
            Entry::Occupied(_) => {}
        }
        self.wake.notify_one();
    }

    /// Resets the state of a failed task.
    pub(in crate::node) fn failed(&self) {
        self.is_running.set(false);
    }

    /// Returns whether every committed event of a shard is with the broker. True without a bridge.
    pub(in crate::node) fn has_published(&self, shard: &OwnedShard) -> bool {
        let position = shard.reader().position();
        !self.is_used.get() || self.published.borrow().get(&shard.id).is_some_and(|last| *last >= position)
    }

    /// Forgets a shard that was closed.
    pub(in crate::node) fn closed(&self, shard: &ShardId) {
        self.dirty.borrow_mut().remove(shard);
        self.published.borrow_mut().remove(shard);
        self.unanswered.borrow_mut().remove(shard);
    }

    /// Wakes the task: confirmations are pending.
    pub(in crate::node) fn notify(&self) {
        self.wake.notify_one();
    }

    /// Returns whether every shard has been handled and all its messages are with the broker.
    pub(in crate::node) fn is_idle(&self) -> bool {
        !self.is_running.get() && self.dirty.borrow().is_empty() && self.unanswered.borrow().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt as _;

    use super::*;
    use whizbang_core::message::Name;
    use whizbang_core::store::{CommitListener, Store as _, StoreError, Ticket};
    use whizbang_log::memory::MemoryStore;

    struct Deaf;

    impl CommitListener for Deaf {
        fn committed(&self, _: Ticket) {}
        fn failed(&self, _: StoreError) {}
    }

    #[test]
    fn closed_opening_does_not_hide_the_present_one() {
        let store = MemoryStore::new();
        let id = ShardId::new(Name::from_static("bank").unwrap(), 0);
        let open = || {
            let handle = store.open(&id, 1, Arc::new(Deaf)).now_or_never().unwrap().unwrap();
            OwnedShard::new(id.clone(), handle, true)
        };
        let (closed, present) = (open(), open());
        let publisher = Publisher::default();
        for marked in [[&closed, &present], [&present, &closed]] {
            marked.into_iter().for_each(|cell| publisher.mark_dirty(cell));
            let dirty = std::mem::take(&mut *publisher.dirty.borrow_mut());
            assert!(Rc::ptr_eq(&dirty[&id], &present));
        }
    }
}
