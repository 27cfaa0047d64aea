//! The items of streams of events.

use crate::actor::EventContext;
use whizbang_core::message::{Envelope, MessageId};

/// An event that a stream has read, with its context.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamedEvent<T> {
    /// The event.
    pub event: T,
    /// The id of the event: the same in every stream, so that an effect can be repeated safely. The parts of an event that was
    /// [split](whizbang_core::message::Message::decode_each) share it.
    pub id: MessageId,
    /// The key, shard, position, time and headers of the event.
    pub context: EventContext,
}

impl<T> StreamedEvent<T> {
    /// Creates the item of an event.
    pub(super) fn new(event: T, envelope: &Envelope) -> Self {
        Self { event, id: envelope.id, context: EventContext::of(envelope) }
    }
}
