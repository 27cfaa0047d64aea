//! The events of a subscription that are dispatched and not settled.
//!
//! Used by the subscription only.

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::Notify;

use crate::inbox::{Done, IdleNotifier};

/// Counters of dispatched and unsettled events.
#[derive(Default)]
pub(super) struct InFlight {
    pub(super) events: Cell<usize>,
    pub(super) bytes: Cell<usize>,
}

/// One event and its subscribers: it is settled when the last of them is done.
pub(super) struct DispatchedEvent {
    /// The number of subscribers that are not done, and one for the dispatch itself.
    pub(super) open: Cell<usize>,
    pub(super) done: Cell<Option<Done>>,
    pub(super) bytes: usize,
    pub(super) in_flight: Rc<InFlight>,
    pub(super) settled: Rc<Notify>,
    pub(super) idle: Rc<IdleNotifier>,
}

impl DispatchedEvent {
    /// Counts the dispatch or a subscriber as done.
    pub(super) fn settle(&self) {
        self.open.set(self.open.get() - 1);
        if self.open.get() > 0 {
            return;
        }
        self.in_flight.events.set(self.in_flight.events.get() - 1);
        self.in_flight.bytes.set(self.in_flight.bytes.get() - self.bytes);
        self.settled.notify_one();
        self.idle.notify();
        if let Some(done) = self.done.take() {
            done();
        }
    }
}
