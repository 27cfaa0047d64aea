//! The names of streams and consumers at the simulated broker.
//!
//! They have the parts of the names at a NATS server: service, domain, shard and epoch.

use whizbang_core::message::{Name, ShardId};
use whizbang_core::store::Epoch;

/// Returns the name of the stream with messages for a domain.
pub(super) fn commands(domain: &Name) -> String {
    format!("commands_{domain}")
}

/// Returns the name of the stream with the events of a domain.
pub(super) fn events(domain: &Name) -> String {
    format!("events_{domain}")
}

/// Returns the name of the consumer of a shard for its owner in an epoch.
pub(super) fn shard_consumer(service: &Name, shard: &ShardId, epoch: Epoch) -> String {
    format!("{}{epoch}", consumer_prefix(service, shard))
}

/// Returns the part of the name that is the same for all owners of a shard.
pub(super) fn consumer_prefix(service: &Name, shard: &ShardId) -> String {
    format!("{service}-{}-{}-e", shard.domain, shard.shard)
}
