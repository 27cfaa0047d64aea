//! View subscriber: delivers the events of a subscription to a view.

use std::cell::Cell;
use std::rc::Rc;

use actix::{Actor, Addr, Context, Handler};

use super::requests::DeliveredEvent;
use crate::actor::LocalMessage;
use crate::inbox::{Done, Subscriber};
use whizbang_core::message::{Envelope, Name};

/// Delivers the events of one source shard to a view.
pub(super) struct ViewSubscriber<A: Actor> {
    pub(super) view: Addr<A>,
    pub(super) events: Vec<Name>,
    pub(super) source: usize,
    pub(super) round: u64,
    pub(super) watermark: u64,
    pub(super) waiting: Rc<Cell<usize>>,
}

impl<A> Subscriber for ViewSubscriber<A>
where
    A: Actor<Context = Context<A>> + Handler<LocalMessage<DeliveredEvent>>,
{
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
