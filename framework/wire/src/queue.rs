//! A first-in first-out queue with a bound that slows senders down instead of losing messages.
//!
//! Filled on any thread by bridges; emptied by one loop. The position in the queue is assigned in the call, so calls keep their
//! order whether or not they are awaited.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

/// A bounded queue with one reader.
///
/// Items beyond the bound are kept as well, and their senders wait: a message is never lost between its sender and the reader.
pub struct Queue<T> {
    /// The items. Locked for the time of one push or pop.
    state: Mutex<QueueState<T>>,
    /// Wakes the reader.
    filled: Notify,
    /// The number of items whose senders do not wait.
    capacity: usize,
}

impl<T> std::fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

/// The part of a queue that changes.
struct QueueState<T> {
    /// The items, and for those beyond the bound the sender that waits.
    items: VecDeque<(T, Option<oneshot::Sender<()>>)>,
    /// The reader is gone.
    closed: bool,
}

/// The result of a push.
pub(crate) enum PushOutcome {
    /// The item is within the bound.
    Accepted,
    /// The item is beyond the bound. The receiver resolves once the item is within it, and fails if the reader is gone.
    Waiting(oneshot::Receiver<()>),
    /// The reader is gone; the item was dropped.
    Closed,
}

impl<T> Queue<T> {
    /// Creates an empty queue for `capacity` items, at least one.
    pub fn new(capacity: usize) -> Self {
        Self {
            state: Mutex::new(QueueState { items: VecDeque::new(), closed: false }),
            filled: Notify::new(),
            capacity: capacity.max(1),
        }
    }

    /// Appends an item. The bound slows down only callers that await the receiver in [`PushOutcome::Waiting`].
    pub(crate) fn push(&self, item: T) -> PushOutcome {
        let mut state = self.state.lock();
        if state.closed {
            return PushOutcome::Closed;
        }
        let pushed = if state.items.len() < self.capacity {
            state.items.push_back((item, None));
            PushOutcome::Accepted
        } else {
            let (accepted, waiting) = oneshot::channel();
            state.items.push_back((item, Some(accepted)));
            PushOutcome::Waiting(waiting)
        };
        drop(state);
        self.filled.notify_one();
        pushed
    }

    /// Appends an item if that is within the bound; otherwise returns the item.
    ///
    /// Returns it also if the reader is gone.
    pub fn try_push(&self, item: T) -> Result<(), T> {
        let mut state = self.state.lock();
        if state.closed || state.items.len() >= self.capacity {
            return Err(item);
        }
        state.items.push_back((item, None));
        drop(state);
        self.filled.notify_one();
        Ok(())
    }

    /// Removes the first item.
    ///
    /// The item that thereby comes within the bound is accepted, which lets its sender continue.
    pub fn pop(&self) -> Option<T> {
        let mut state = self.state.lock();
        let (item, _) = state.items.pop_front()?;
        let last_accepted = self.capacity - 1;
        if let Some(accepted) = state.items.get_mut(last_accepted).and_then(|(_, accepted)| accepted.take()) {
            // The sender may have dropped its receiver; the item is within the bound in either case.
            let _ = accepted.send(());
        }
        Some(item)
    }

    /// Lets the waiting senders of some items continue, although the items are still beyond the bound.
    pub(crate) fn release(&self, is_released: impl Fn(&T) -> bool) {
        for (item, waiting) in &mut self.state.lock().items {
            if let Some(accepted) = waiting.take_if(|_| is_released(item)) {
                // The sender may have dropped its receiver.
                let _ = accepted.send(());
            }
        }
    }

    /// Returns the number of queued items.
    ///
    /// Items beyond the bound count too.
    pub fn len(&self) -> usize {
        self.state.lock().items.len()
    }

    /// Returns true if no item is queued.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns true if the reader is gone.
    pub fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Waits until an item was pushed since the previous wait.
    ///
    /// Also returns after [`wake`](Self::wake) and [`close`](Self::close), so check for items and for the end
    /// afterwards. Cancel safe.
    pub async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Wakes the reader.
    ///
    /// For a reader that waits for something besides items.
    pub fn wake(&self) {
        self.filled.notify_one();
    }

    /// Rejects further pushes and drops the queued items. Waiting senders get an error.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let dropped = std::mem::take(&mut state.items);
        drop(state);
        drop(dropped);
        self.filled.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_beyond_the_bound_are_accepted_in_order() {
        let queue = Queue::new(2);
        assert!(matches!(queue.push(1), PushOutcome::Accepted));
        assert!(matches!(queue.push(2), PushOutcome::Accepted));
        let PushOutcome::Waiting(mut third) = queue.push(3) else { panic!("accepted beyond the bound") };
        let PushOutcome::Waiting(mut fourth) = queue.push(4) else { panic!("accepted beyond the bound") };
        assert_eq!(queue.try_push(5), Err(5));
        assert_eq!(queue.pop(), Some(1));
        assert!(third.try_recv().is_ok());
        assert!(fourth.try_recv().is_err());
        assert_eq!([queue.pop(), queue.pop(), queue.pop(), queue.pop()], [Some(2), Some(3), Some(4), None]);
        assert!(fourth.try_recv().is_ok());
    }

    #[test]
    fn released_senders_continue_and_items_stay() {
        let queue = Queue::new(1);
        assert!(matches!(queue.push(1), PushOutcome::Accepted));
        let PushOutcome::Waiting(mut second) = queue.push(2) else { panic!("accepted beyond the bound") };
        let PushOutcome::Waiting(mut third) = queue.push(3) else { panic!("accepted beyond the bound") };
        queue.release(|item| *item == 3);
        assert!(second.try_recv().is_err() && third.try_recv().is_ok());
        assert_eq!([queue.pop(), queue.pop(), queue.pop(), queue.pop()], [Some(1), Some(2), Some(3), None]);
        assert!(second.try_recv().is_ok());
    }

    #[test]
    fn closed_queue_fails_waiting_senders() {
        let queue = Queue::new(1);
        assert!(matches!(queue.push(1), PushOutcome::Accepted));
        let PushOutcome::Waiting(mut second) = queue.push(2) else { panic!("accepted beyond the bound") };
        queue.close();
        assert!(matches!(second.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
        assert!(matches!(queue.push(3), PushOutcome::Closed));
    }
}
