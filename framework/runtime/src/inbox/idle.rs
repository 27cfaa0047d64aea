//! Idle notifier: lets tasks of one thread wait for a condition, without polling.

use std::cell::Cell;
use std::pin::pin;

use tokio::sync::Notify;

/// Lets tasks of one thread wait until a condition holds, usually that something is idle.
#[derive(Default)]
pub(crate) struct IdleNotifier {
    waiting: Cell<usize>,
    changed: Notify,
}

impl IdleNotifier {
    /// Wakes the waiting tasks to check their condition again. Nearly free while no task waits.
    pub(crate) fn notify(&self) {
        if self.waiting.get() > 0 {
            self.changed.notify_waiters();
        }
    }

    /// Waits until `at_rest` returns true.
    pub(crate) async fn wait_until(&self, at_rest: impl Fn() -> bool) {
        struct Waiting<'a>(&'a Cell<usize>);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.set(self.0.get() - 1);
            }
        }
        self.waiting.set(self.waiting.get() + 1);
        let _waiting = Waiting(&self.waiting);
        loop {
            let mut changed = pin!(self.changed.notified());
            // Registered before the check: a notification in between is not missed.
            changed.as_mut().enable();
            if at_rest() {
                return;
            }
            changed.await;
        }
    }
}
