//! The queues of deferred jobs of one worker and thread: by priority and due time, with an id for each.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::admission_queue::AdmissionQueue;
use super::priority::{PRIORITIES, Priority};
use crate::actor::OwnedShard;
use whizbang_core::clock::instant;
use whizbang_core::message::MessageId;
use whizbang_core::spawn::Task;
use whizbang_core::telemetry::Counts;

/// Most deferred jobs of one worker on one thread. Each takes about 100 bytes of memory.
const MAX_DEFERRED: usize = 65_536;

/// Deferred jobs by due time and insertion number: the shard and the message.
type Due = BTreeMap<(Instant, u64), (Rc<OwnedShard>, MessageId)>;

/// Deferred jobs of one priority, by the time when they are due.
#[derive(Default)]
struct Queue {
    due: RefCell<Due>,
    wake: Notify,
    task: RefCell<Option<Task>>,
}

/// Deferred jobs. Those of a worker without priorities are normal ones.
pub(super) struct DeferredJobs {
    low: Queue,
    normal: Queue,
    urgent: Queue,
    /// The queue before the slots of a worker with priorities, for jobs of the queues and for messages that are not recorded.
    pub(super) admissions: Rc<AdmissionQueue>,
    next: Cell<u64>,
    /// Recorded jobs that wait for others of their key, and are not in the queue.
    behind: Cell<usize>,
    counts: Arc<Counts>,
}

impl DeferredJobs {
    pub(super) fn new(counts: Arc<Counts>) -> Rc<Self> {
        let (low, normal, urgent) = (Queue::default(), Queue::default(), Queue::default());
        let (admissions, next, behind) = (Rc::default(), Cell::default(), Cell::new(0));
        Rc::new(Self { low, normal, urgent, admissions, next, behind, counts })
    }

    fn queue(&self, priority: Priority) -> &Queue {
        match priority {
            Priority::Low => &self.low,
            Priority::Normal => &self.normal,
            Priority::Urgent => &self.urgent,
        }
    }

    fn queues(&self) -> [&Queue; 3] {
        PRIORITIES.map(|priority| self.queue(priority))
    }

    /// Returns the task that begins the jobs of a priority.
    pub(super) fn task(&self, priority: Priority) -> &RefCell<Option<Task>> {
        &self.queue(priority).task
    }

    fn len(&self) -> usize {
        self.queues().map(|queue| queue.due.borrow().len()).into_iter().sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() + self.behind.get() >= MAX_DEFERRED
    }

    /// Counts recorded jobs that begin and that end to wait for others of their key.
    pub(super) fn count(&self, begin: usize, end: usize) {
        self.behind.set((self.behind.get() + begin).saturating_sub(end));
        let deferred = &self.counts.deferred;
        deferred.set((deferred.get() + begin as u64).saturating_sub(end as u64));
    }

    pub(super) fn clear(&self) {
        for queue in self.queues() {
            let task = queue.task.borrow_mut().take();
            drop(task);
            let gone = std::mem::take(&mut *queue.due.borrow_mut());
            self.counts.deferred.set(self.counts.deferred.get().saturating_sub(gone.len() as u64));
        }
    }

    /// Removes the jobs of a shard that is closed. Its next owner reads them from the log.
    pub(super) fn remove(&self, shard: &Rc<OwnedShard>) {
        let before = self.len();
        for queue in self.queues() {
            queue.due.borrow_mut().retain(|_, (of, _)| !Rc::ptr_eq(of, shard));
        }
        let gone = before - self.len();
        self.counts.deferred.set(self.counts.deferred.get().saturating_sub(gone as u64));
    }

    pub(super) fn push(&self, shard: &Rc<OwnedShard>, id: MessageId, priority: Priority, due: Instant) {
        let (queue, number) = (self.queue(priority), self.next.replace(self.next.get() + 1));
        queue.due.borrow_mut().insert((due, number), (Rc::clone(shard), id));
        self.counts.deferred.set(self.counts.deferred.get() + 1);
        queue.wake.notify_one();
    }

    pub(super) fn pop_due(&self, priority: Priority) -> Option<(Rc<OwnedShard>, MessageId)> {
        let mut due = self.queue(priority).due.borrow_mut();
        let first = due.first_entry().filter(|entry| entry.key().0 <= instant())?;
        let job = first.remove();
        self.counts.deferred.set(self.counts.deferred.get().saturating_sub(1));
        Some(job)
    }

    /// Waits until a job of a priority is due.
    pub(super) async fn is_due(&self, priority: Priority) {
        let queue = self.queue(priority);
        loop {
            let next = queue.due.borrow().first_key_value().map(|((due, _), _)| *due);
            match next {
                Some(due) if due <= instant() => return,
                Some(due) => tokio::select! {
                    biased;
                    () = queue.wake.notified() => {}
                    () = tokio::time::sleep_until(due) => {}
                },
                None => queue.wake.notified().await,
            }
        }
    }
}
