//! What waits to be carried: first in, first out, with a bound that holds senders back instead of losing what they send.
//!
//! Filled on any thread; emptied by one loop. The place in the queue is taken in the call, so calls keep their order whether or not they are awaited.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

/// A bounded queue with one reader.
pub(crate) struct Queue<T> {
    state: Mutex<QueueState<T>>,
    filled: Notify,
    capacity: usize,
}

struct QueueState<T> {
    items: VecDeque<(T, Option<oneshot::Sender<()>>)>,
    closed: bool,
}

/// How a push went.
pub(crate) enum PushOutcome {
    /// The item is inside the bound.
    Accepted,
    /// The item stands behind the bound; the receiver fires once it is inside, and fails if the reader has gone.
    Waiting(oneshot::Receiver<()>),
    /// The reader has gone.
    Closed,
}

impl<T> Queue<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            state: Mutex::new(QueueState { items: VecDeque::new(), closed: false }),
            filled: Notify::new(),
            capacity: capacity.max(1),
        }
    }

    /// Puts an item at the end. Whoever does not await what [`PushOutcome::Waiting`] holds is not held back.
    pub(crate) fn push(&self, item: T) -> PushOutcome {
        let mut state = self.state.lock();
        if state.closed {
            return PushOutcome::Closed;
        }
        let pushed = if state.items.len() < self.capacity {
            state.items.push_back((item, None));
            PushOutcome::Accepted
        } else {
            let (inside, waits) = oneshot::channel();
            state.items.push_back((item, Some(inside)));
            PushOutcome::Waiting(waits)
        };
        drop(state);
        self.filled.notify_one();
        pushed
    }

    /// Puts an item at the end if it is inside the bound there; otherwise gives it back.
    pub(crate) fn try_push(&self, item: T) -> Result<(), T> {
        let mut state = self.state.lock();
        if state.closed || state.items.len() >= self.capacity {
            return Err(item);
        }
        state.items.push_back((item, None));
        drop(state);
        self.filled.notify_one();
        Ok(())
    }

    pub(crate) fn pop(&self) -> Option<T> {
        self.pop_if(|_| true)
    }

    /// Takes the first item if it is wanted.
    pub(crate) fn pop_if(&self, wanted: impl FnOnce(&T) -> bool) -> Option<T> {
        let mut state = self.state.lock();
        state.items.front().filter(|(first, _)| wanted(first))?;
        let (item, _) = state.items.pop_front()?;
        let last_inside = self.capacity - 1;
        if let Some(inside) = state.items.get_mut(last_inside).and_then(|(_, inside)| inside.take()) {
            // Nobody may be waiting any more; the item is inside all the same.
            let _ = inside.send(());
        }
        Some(item)
    }

    pub(crate) fn len(&self) -> usize {
        self.state.lock().items.len()
    }

    /// Whether the reader has gone.
    #[cfg(feature = "nats")]
    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Waits until something was pushed since the last wait ended.
    pub(crate) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Wakes the reader.
    pub(crate) fn wake(&self) {
        self.filled.notify_one();
    }

    /// Refuses further pushes and drops what waits; senders held back hear of it.
    pub(crate) fn close(&self) {
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
    fn items_behind_the_bound_come_inside_in_their_order() {
        let queue = Queue::new(2);
        assert!(matches!(queue.push(1), PushOutcome::Accepted));
        assert!(matches!(queue.push(2), PushOutcome::Accepted));
        let PushOutcome::Waiting(mut third) = queue.push(3) else { panic!("taken past the bound") };
        let PushOutcome::Waiting(mut fourth) = queue.push(4) else { panic!("taken past the bound") };
        assert_eq!(queue.try_push(5), Err(5));
        assert_eq!(queue.pop(), Some(1));
        assert!(third.try_recv().is_ok());
        assert!(fourth.try_recv().is_err());
        assert_eq!([queue.pop(), queue.pop(), queue.pop(), queue.pop()], [Some(2), Some(3), Some(4), None]);
        assert!(fourth.try_recv().is_ok());
    }

    #[test]
    fn a_closed_queue_tells_those_who_wait() {
        let queue = Queue::new(1);
        assert!(matches!(queue.push(1), PushOutcome::Accepted));
        let PushOutcome::Waiting(mut second) = queue.push(2) else { panic!("taken past the bound") };
        queue.close();
        assert!(matches!(second.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
        assert!(matches!(queue.push(3), PushOutcome::Closed));
    }
}
