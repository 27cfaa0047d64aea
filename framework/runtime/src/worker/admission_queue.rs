//! The admission queue of a worker with priorities on one thread: one job at a time waits for its slot and the limits.
//!
//! Called where a [job](super::job) starts. All others wait in the queue, by priority, because slots, rates and
//! circuits admit in the order of arrival. A job whose task is dropped is skipped. A step costs the same however many wait.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::sync::oneshot;

use super::priority::{Passed, Priority};

/// Jobs that wait, by priority.
#[derive(Default)]
pub(super) struct AdmissionQueue {
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    is_taken: bool,
    waiting: [VecDeque<oneshot::Sender<AdmissionPermit>>; 3],
    passed: Passed,
}

/// The right to wait for a slot. Dropping it admits the next job.
pub(super) struct AdmissionPermit {
    queue: Rc<AdmissionQueue>,
    /// False if the job ended before it was admitted.
    is_held: bool,
}

impl AdmissionQueue {
    /// Waits until a job may wait for its slot. Cancellation safe: a job that is dropped is skipped.
    pub(super) async fn enter(self: &Rc<Self>, priority: Priority) -> Option<AdmissionPermit> {
        let next = {
            let state = &mut *self.state.borrow_mut();
            let (send, next) = oneshot::channel();
            state.waiting.get_mut(priority.index())?.push_back(send);
            next
        };
        if !self.state.borrow().is_taken {
            self.admit_next();
        }
        // The queue keeps the sender until it sends.
        next.await.ok()
    }

    /// Admits the next job, if one waits.
    fn admit_next(self: &Rc<Self>) {
        loop {
            let next = {
                let state = &mut *self.state.borrow_mut();
                for queue in &mut state.waiting {
                    while queue.pop_front_if(|waiting| waiting.is_closed()).is_some() {}
                }
                let waits = std::array::from_fn(|at| state.waiting.get(at).is_some_and(|queue| !queue.is_empty()));
                let next = state.passed.next(waits);
                let next = next.and_then(|next| state.waiting.get_mut(next.index())?.pop_front());
                state.is_taken = next.is_some();
                next
            };
            let Some(next) = next else { return };
            match next.send(AdmissionPermit { queue: Rc::clone(self), is_held: true }) {
                Ok(()) => return,
                Err(mut permit) => permit.is_held = false,
            }
        }
    }
}

impl Drop for AdmissionPermit {
    fn drop(&mut self) {
        if self.is_held {
            self.queue.admit_next();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn job_that_ends_before_or_after_its_admission_is_skipped() {
        let queue = Rc::<AdmissionQueue>::default();
        let first = queue.enter(Priority::Normal).now_or_never().flatten().expect("nothing waits");
        let [mut low, mut ended, mut urgent] =
            [Priority::Low, Priority::Urgent, Priority::Urgent].map(|priority| Box::pin(queue.enter(priority)));
        assert!((&mut low).now_or_never().is_none());
        assert!((&mut ended).now_or_never().is_none() && (&mut urgent).now_or_never().is_none());
        drop(ended);
        drop(first);
        // It is admitted and ends before it is polled again.
        drop(urgent);
        let low = low.now_or_never().flatten().expect("the others have ended");
        let mut next = Box::pin(queue.enter(Priority::Urgent));
        assert!((&mut next).now_or_never().is_none());
        drop(low);
        assert!(next.now_or_never().flatten().is_some());
    }
}
