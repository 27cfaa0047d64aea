//! Moves what a shard has committed to where it belongs: outbox entries to their destination, events to their subscribers.
//!
//! Called by nobody: it wakes on commits. Reads the [store](crate::store), hands over to gates and feeds of this node and to
//! the [bridge](crate::bridge). An entry stays until its *destination* has committed it; no courier's word counts for that.

pub(crate) mod page;
mod send_window;

pub(crate) use send_window::{ConfirmationCheck, Forward, SendWindows, Suspicion};

use crate::message::{Envelope, Kind, MessageId, Origin, ReplyMode, ShardId};
use crate::store::StoredEvent;
use crate::telemetry::passes;

/// A stored event as it travels.
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
        // It has no destination: who takes it finds the key of its own inside.
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
        headers: Vec::new(),
        codec: event.codec,
        payload: event.payload,
    }
}
