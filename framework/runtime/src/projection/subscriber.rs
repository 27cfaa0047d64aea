//! View subscriber: delivers the events of a subscription to a view.

use std::cell::Cell;
use std::rc::Rc;

use actix::Addr;

use super::Projection;
use super::view::ViewActor;
use crate::actor::LocalMessage;
use crate::inbox::{Done, Subscriber};
use whizbang_core::message::{Envelope, Name};

/// An event on its way to its view.
pub(super) struct DeliveredEvent {
    pub(super) source: usize,
    pub(super) round: u64,
    pub(super) event: Envelope,
    pub(super) done: Done,
    pub(super) waiting: Rc<Cell<usize>>,
}

/// Delivers the events of one source shard to a view.
pub(super) struct ViewSubscriber<P: Projection> {
    pub(super) view: Addr<ViewActor<P>>,
    pub(super) events: Vec<Name>,
    pub(super) source: usize,
    pub(super) round: u64,
    pub(super) watermark: u64,
    pub(super) waiting: Rc<Cell<usize>>,
}

impl<P: Projection> Subscriber for ViewSubscriber<P> {
    fn watermark(&self) -> u64 {
        self.watermark
    }

    fn takes(&self, event: &Name) -> bool {
        self.events.contains(event)
    }

    fn handle(&self, event: &Envelope, done: Done) {
        self.waiting.set(self.waiting.get() + 1);
        let (event, waiting) = (event.clone(), Rc::clone(&self.waiting));
        #[expect(clippy::disallowed_methods, reason = "the subscription bounds unsettled events")]
        self.view.do_send(LocalMessage::new(DeliveredEvent {
            source: self.source,
            round: self.round,
            event,
            done,
            waiting,
        }));
    }
}
