//! A listener and the tickets of the appends that it is notified of.
//!
//! Called by the [queue](crate::queue) and the [writer](crate::writer). All shards that are opened with one listener are
//! written by one writer, so its tickets are committed in their order.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use whizbang_core::store::{CommitListener, Ticket};

/// A listener and its last ticket.
///
/// Kept while the listener may open a shard again. It remembers the highest ticket reported to it: tickets that started
/// again from 1 would count as committed when they are issued.
pub(crate) struct Tickets {
    /// The thread that appended; it is notified from the writer's thread or, inside an append, from its own.
    pub(crate) listener: Arc<dyn CommitListener>,
    /// The last ticket. The first one is 1.
    given: AtomicU64,
}

impl Tickets {
    /// Returns the tickets of a listener. None is given yet.
    pub(crate) fn new(listener: Arc<dyn CommitListener>) -> Self {
        Self { listener, given: AtomicU64::new(0) }
    }

    /// The next ticket. The caller holds the lock of the writer's queue.
    pub(crate) fn next(&self) -> Ticket {
        self.given.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Returns whether an open shard, a group or the owner of the listener holds on to it.
    pub(crate) fn is_in_use(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 1 || Arc::strong_count(&self.listener) > 1
    }

    /// Returns whether these are the tickets of `listener`.
    pub(crate) fn is_of(&self, listener: &Arc<dyn CommitListener>) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.listener), Arc::as_ptr(listener))
    }
}

impl std::fmt::Debug for Tickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tickets").field("given", &self.given).finish_non_exhaustive()
    }
}
