//! Lets tasks of one thread wait until something there has come to rest, woken and not polled.

use std::cell::Cell;
use std::pin::pin;

use tokio::sync::Notify;

/// Where tasks of one thread wait until something there has come to rest.
#[derive(Default)]
pub(crate) struct IdleNotifier {
    waiting: Cell<usize>,
    changed: Notify,
}

impl IdleNotifier {
    /// Something may have come to rest: whoever waits looks again. Costs next to nothing while nobody does.
    pub(crate) fn look(&self) {
        if self.waiting.get() > 0 {
            self.changed.notify_waiters();
        }
    }

    /// Waits until `at_rest` holds.
    pub(crate) async fn until(&self, at_rest: impl Fn() -> bool) {
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
            // Enlisted before the look: what comes to rest in between is not missed.
            changed.as_mut().enable();
            if at_rest() {
                return;
            }
            changed.await;
        }
    }
}
