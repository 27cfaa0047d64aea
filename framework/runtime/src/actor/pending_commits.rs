//! The callbacks of a thread that wait for commits, and the notifications of the store.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::owned_shard::OwnedShard;
use whizbang_core::store::{CommitListener, StoreError, Ticket};

/// Called once, with the result of the commit.
pub(super) type CommitCallback = Box<dyn FnOnce(Result<(), StoreError>)>;

/// The callbacks that wait for commits, in the order of their tickets.
#[derive(Default)]
pub(super) struct PendingCommits {
    pub(super) queue: RefCell<VecDeque<PendingCommit>>,
    /// The number of fences that this thread has seen.
    pub(super) fences_seen: Cell<usize>,
    /// The fences that this thread has seen and not handled.
    pub(super) fences: RefCell<Vec<StoreError>>,
}

/// A callback, and the append that it waits for.
pub(super) struct PendingCommit {
    pub(super) ticket: Ticket,
    pub(super) shard: Rc<OwnedShard>,
    pub(super) release: CommitCallback,
}

impl PendingCommits {
    pub(super) fn is_empty(&self) -> bool {
        self.queue.borrow().is_empty()
    }
}

impl PendingCommit {
    /// Calls the callback, and returns the shard, which may be drained now.
    pub(super) fn complete(self, result: Result<(), StoreError>) -> Rc<OwnedShard> {
        self.shard.pending_commits.set(self.shard.pending_commits.get() - 1);
        (self.release)(result);
        self.shard
    }
}

/// Receives commit notifications on the store's thread and wakes the actors' thread.
#[derive(Default)]
pub struct CommitNotifier {
    /// The last ticket that the store has reported.
    pub(super) committed_through: AtomicU64,
    /// The number of fences reported so far. Read with each commit, and only if it has changed the list is.
    pub(super) fences: AtomicUsize,
    /// Shards that belong to a newer owner, since this thread has looked.
    pub(super) fenced: Mutex<Vec<StoreError>>,
    /// The failure that is not handled yet.
    pub(super) failed: Mutex<Option<ReportedFailure>>,
    /// The number of failures reported so far, without fences.
    failures: AtomicU64,
    /// Wakes the task that calls the callbacks.
    pub(super) changed: Notify,
}

/// A failure after which the shards must be reopened.
#[derive(Clone, Debug)]
pub(crate) struct ReportedFailure {
    pub(crate) error: StoreError,
    /// The last ticket that was certainly committed: nothing behind it counts as committed, although later tickets of shards that
    /// were reopened may be.
    pub(crate) committed_through: Ticket,
}

impl std::fmt::Debug for CommitNotifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommitNotifier").finish_non_exhaustive()
    }
}

impl CommitNotifier {
    /// Takes the failure before the shards are reopened. One that is reported later is another one.
    pub(crate) fn take_failure(&self) -> Option<ReportedFailure> {
        self.failed.lock().take()
    }

    /// Returns the number of failures that the store has reported so far. Appends to a shard that was opened before the last of
    /// them fail until it is opened again.
    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Acquire)
    }

    /// Returns whether a failure is not handled yet.
    #[cfg(test)]
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.lock().is_some()
    }

    /// Reports a panic that makes the shards reopen. The store works, so what it reports as committed is.
    pub(super) fn panicked(&self, error: StoreError) {
        self.failed.lock().get_or_insert(ReportedFailure { error, committed_through: Ticket::MAX });
        self.changed.notify_one();
    }

    /// Returns the last ticket that counts as committed, and the failure that is not handled yet.
    pub(super) fn committed_so_far(&self) -> (Ticket, Option<ReportedFailure>) {
        // In this order: what was committed before a failure is reported is.
        let through = self.committed_through.load(Ordering::Acquire);
        let failed = self.failed.lock().clone();
        (failed.as_ref().map_or(through, |failed| through.min(failed.committed_through)), failed)
    }

    /// Wakes the task that calls the callbacks after the shards were reopened: commits, fences and failures may have been
    /// reported in between.
    pub(crate) fn wake(&self) {
        self.changed.notify_one();
    }
}

impl CommitListener for CommitNotifier {
    fn committed(&self, through: Ticket) {
        self.committed_through.fetch_max(through, Ordering::Release);
        self.changed.notify_one();
    }

    fn failed(&self, error: StoreError) {
        if let StoreError::Fenced { .. } = error {
            self.fenced.lock().push(error);
            self.fences.fetch_add(1, Ordering::Release);
        } else {
            let through = self.committed_through.load(Ordering::Acquire);
            let mut failed = self.failed.lock();
            let failed = failed.get_or_insert(ReportedFailure { error, committed_through: through });
            failed.committed_through = failed.committed_through.min(through);
            self.failures.fetch_add(1, Ordering::Release);
        }
        self.changed.notify_one();
    }
}
