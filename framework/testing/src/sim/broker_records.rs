//! The records of the simulated broker, which the rules of a run compare with the stores, and the question whether it is idle.
//!
//! Written by [bridges](super::bridge) and consumers, read by the [store checks](super::store_checks) and the [end of a
//! run](super::idle).

use std::sync::Arc;

use tokio::time::Instant;

use super::broker::Broker;
use super::broker_names::{commands, events};
use super::link::SimLink;
use whizbang_core::message::{Envelope, MessageId, ShardId};

impl Broker {
    /// Records that an event was published, for the rule that no position is published with two ids.
    pub(super) fn record_published(&self, shard: &ShardId, position: u64, id: MessageId) {
        self.state().published.insert((shard.clone(), position), id);
    }

    /// Records that a node rejected a message.
    pub(super) fn record_rejected(&self, envelope: &Envelope) {
        self.state().lost.insert(envelope.id);
    }

    /// Returns whether a command sent at or after `since` may be lost, or was rejected.
    pub(super) fn may_have_lost(&self, id: MessageId, since: Instant) -> bool {
        let state = self.state();
        state.lost.contains(&id) || state.purged_at.is_some_and(|purged_at| purged_at >= since)
    }

    /// Returns all published events, in the order of their shards and positions.
    pub(super) fn published(&self) -> Vec<(ShardId, u64, MessageId)> {
        let state = self.state();
        state.published.iter().map(|((shard, position), id)| (shard.clone(), *position, *id)).collect()
    }

    /// Returns whether no message is in transit, in flight or waiting for delivery.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.state();
        // A new version of a service may no longer subscribe to a stream; its messages stay in the broker.
        let is_taken = |stream: &str, service: &str| {
            let consumer = service.rsplit_once("-e").map_or(service, |(shard, _)| shard);
            let is_of = |link: &&Arc<SimLink>| {
                link.card.service.as_str() == service || link.is_consumer_of_its_shard(stream, consumer)
            };
            let mut links = state.links.values().filter(is_of).peekable();
            let takes = |link: &Arc<SimLink>| {
                let mut domains = link.card.subscribes.iter().map(|(domain, ..)| events(domain));
                let mut owned = link.card.owns.iter().map(|(domain, _)| commands(domain));
                domains.any(|of| of == stream) || owned.any(|of| of == stream)
            };
            links.peek().is_none() || links.any(takes)
        };
        state.in_transit == 0 && state.model.unfinished_consumer(is_taken).is_none()
    }
}
