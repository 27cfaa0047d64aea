//! The context of an event that an actor or a projection handles.

use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Envelope, MessageId, Name, header};

/// The context of an event: the stream and position in which it was recorded. [`Project`](crate::Project) gets it with each
/// event, and a saga or an aggregate from [`Effects::event_context`](crate::Effects::event_context).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventContext {
    /// The domain of the event.
    pub domain: Name,
    /// The key of the aggregate or saga that recorded it.
    pub key: String,
    /// The version in that stream, from 1.
    pub version: u64,
    /// The shard of the domain.
    pub shard: u16,
    /// The position in the shard's log.
    pub position: u64,
    /// The time of recording.
    pub time: Timestamp,
    /// The correlation id.
    pub correlation: MessageId,
    /// The headers: those that the turn that recorded it has [set](crate::Effects::set_header) or
    /// [propagated](crate::NodeBuilder::propagate_headers), sorted by name.
    pub headers: Vec<(String, String)>,
}

impl EventContext {
    /// Returns the value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// Reads the context from an event's envelope.
    pub(crate) fn of(event: &Envelope) -> Self {
        let origin = event.origin.as_ref();
        Self {
            domain: event.domain.clone(),
            key: origin.map_or_else(String::new, |origin| origin.key.clone()),
            version: origin.map_or(0, |origin| origin.version),
            shard: origin.map_or(0, |origin| origin.shard.shard),
            position: origin.map_or(0, |origin| origin.sequence),
            time: event.time,
            correlation: event.correlation,
            headers: event.headers.clone(),
        }
    }
}
