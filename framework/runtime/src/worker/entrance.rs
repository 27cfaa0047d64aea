//! Entrance of a worker with priorities on one thread: one job at a time goes from it to its slot and past the limits.
//!
//! Called where a [job](super::job) starts. All others wait before the entrance, by priority, because slots, rates and
//! circuits admit in the order of arrival. A job whose task is dropped makes way. A step costs the same however many wait.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::sync::oneshot;

use super::priority::{Passed, Priority};

/// Jobs that wait, by priority.
#[derive(Default)]
pub(super) struct Entrance {
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    is_taken: bool,
    waiting: [VecDeque<oneshot::Sender<Pass>>; 3],
    passed: Passed,
}

/// Permission to go for a slot. Dropped, it lets the next job go.
pub(super) struct Pass {
    entrance: Rc<Entrance>,
    /// False if the job has ended before it got the permission.
    is_held: bool,
}

impl Entrance {
    /// Waits until a job may go for its slot. Cancelled, it makes way.
    pub(super) async fn enter(self: &Rc<Self>, priority: Priority) -> Option<Pass> {
        let next = {
            let state = &mut *self.state.borrow_mut();
            let (send, next) = oneshot::channel();
            state.waiting.get_mut(priority.index())?.push_back(send);
            next
        };
        if !self.state.borrow().is_taken {
            self.let_next();
        }
        // The entrance keeps the sender until it sends.
        next.await.ok()
    }

    /// Lets the next job go, if one waits.
    fn let_next(self: &Rc<Self>) {
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
            match next.send(Pass { entrance: Rc::clone(self), is_held: true }) {
                Ok(()) => return,
                Err(mut pass) => pass.is_held = false,
            }
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.is_held {
            self.entrance.let_next();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn job_that_ends_before_or_with_its_pass_makes_way() {
        let entrance = Rc::<Entrance>::default();
        let first = entrance.enter(Priority::Normal).now_or_never().flatten().expect("nothing waits");
        let [mut low, mut ended, mut urgent] =
            [Priority::Low, Priority::Urgent, Priority::Urgent].map(|priority| Box::pin(entrance.enter(priority)));
        assert!((&mut low).now_or_never().is_none());
        assert!((&mut ended).now_or_never().is_none() && (&mut urgent).now_or_never().is_none());
        drop(ended);
        drop(first);
        // It has the permission and ends before it is polled again.
        drop(urgent);
        let low = low.now_or_never().flatten().expect("the others have ended");
        let mut next = Box::pin(entrance.enter(Priority::Urgent));
        assert!((&mut next).now_or_never().is_none());
        drop(low);
        assert!(next.now_or_never().flatten().is_some());
    }
}
