//! Relay: moves committed messages on, outbox entries to their destination and events to their subscribers.
//!
//! Woken by commits. The loops that use it are in the folder `relay` of the node. Reads the
//! [store](whizbang_core::store), passes messages to receive windows and subscriptions of this node and to the
//! [bridge](whizbang_core::bridge). An outbox entry stays until its *destination* has committed it; a broker's acknowledgment
//! does not count.

pub(crate) mod page;
mod send_window;

pub(crate) use send_window::{ConfirmationCheck, Forward, SendWindows, StalledWindows};

use whizbang_core::message::{Envelope, Kind, MessageId, Origin, ReplyMode, ShardId};
use whizbang_core::store::StoredEvent;
use whizbang_core::telemetry::passes;

/// Converts a stored event to the envelope in which it travels.
pub(crate) fn envelope_of(shard: &ShardId, event: StoredEvent) -> Envelope {
    let id = MessageId::of_event(shard, event.position, event.cause);
    passes!("relay", event.name, id, event.correlation);
    Envelope {
        id,
        kind: Kind::Event,
        name: event.name,
        version: event.version,
        shape: None,
        domain: shard.domain.clone(),
        to: None,
        // No destination: each subscriber finds its own key in the event.
        key: String::new(),
        actor: None,
        origin: Some(Origin {
            shard: shard.clone(),
            actor: event.actor,
            key: event.key,
            sequence: event.position,
            version: event.stream_version,
            store: None,
        }),
        correlation: event.correlation,
        causation: Some(event.cause),
        time: event.time,
        deadline: None,
        wants: ReplyMode::Nothing,
        traceparent: event.traceparent,
        headers: event.headers,
        codec: event.codec,
        payload: event.payload,
    }
}

#[cfg(test)]
mod tests;
