//! The queue of deferred jobs of one worker and thread: by due time, with an id for each.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::actor::OwnedShard;
use whizbang_core::clock::instant;
use whizbang_core::message::MessageId;
use whizbang_core::spawn::Task;
use whizbang_core::telemetry::Counts;

/// Most deferred jobs of one worker on one thread. Each takes about 100 bytes of memory.
const MAX_DEFERRED: usize = 65_536;

/// Deferred jobs by due time and insertion number: the shard and the message.
type Due = BTreeMap<(Instant, u64), (Rc<OwnedShard>, MessageId)>;

/// Deferred jobs, by the time when they are due.
pub(super) struct DeferredJobs {
    due: RefCell<Due>,
    next: Cell<u64>,
    /// Recorded jobs that wait for others of their key, and are not in the queue.
    behind: Cell<usize>,
    wake: Notify,
    pub(super) task: RefCell<Option<Task>>,
    counts: Arc<Counts>,
}

impl DeferredJobs {
    pub(super) fn new(counts: Arc<Counts>) -> Rc<Self> {
        let (due, next, wake, task) = (RefCell::default(), Cell::default(), Notify::new(), RefCell::default());
        Rc::new(Self { due, next, behind: Cell::new(0), wake, task, counts })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.due.borrow().is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.due.borrow().len() + self.behind.get() >= MAX_DEFERRED
    }

    /// Counts recorded jobs that begin and that end to wait for others of their key.
    pub(super) fn count(&self, begin: usize, end: usize) {
        self.behind.set((self.behind.get() + begin).saturating_sub(end));
        let deferred = &self.counts.deferred;
        deferred.set((deferred.get() + begin as u64).saturating_sub(end as u64));
    }

    pub(super) fn clear(&self) {
        let task = self.task.borrow_mut().take();
        drop(task);
        let gone = std::mem::take(&mut *self.due.borrow_mut());
        self.counts.deferred.set(self.counts.deferred.get().saturating_sub(gone.len() as u64));
    }

    /// Removes the jobs of a shard that is closed. Its next owner reads them from the log.
    pub(super) fn remove(&self, shard: &Rc<OwnedShard>) {
        let before = self.due.borrow().len();
        self.due.borrow_mut().retain(|_, (of, _)| !Rc::ptr_eq(of, shard));
        let gone = before - self.due.borrow().len();
        self.counts.deferred.set(self.counts.deferred.get().saturating_sub(gone as u64));
    }

    pub(super) fn push(&self, shard: &Rc<OwnedShard>, id: MessageId, due: Instant) {
        let number = self.next.replace(self.next.get() + 1);
        self.due.borrow_mut().insert((due, number), (Rc::clone(shard), id));
        self.counts.deferred.set(self.counts.deferred.get() + 1);
        self.wake.notify_one();
    }

    pub(super) fn pop_due(&self) -> Option<(Rc<OwnedShard>, MessageId)> {
        let mut due = self.due.borrow_mut();
        let first = due.first_entry().filter(|entry| entry.key().0 <= instant())?;
        let job = first.remove();
        self.counts.deferred.set(self.counts.deferred.get().saturating_sub(1));
        Some(job)
    }

    /// Waits until a job is due.
    pub(super) async fn is_due(&self) {
        loop {
            let next = self.due.borrow().first_key_value().map(|((due, _), _)| *due);
            match next {
                Some(due) if due <= instant() => return,
                Some(due) => tokio::select! {
                    biased;
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep_until(due) => {}
                },
                None => self.wake.notified().await,
            }
        }
    }
}
