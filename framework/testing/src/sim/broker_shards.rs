//! The owners of domains and of leased shards at the simulated broker: claims of stores, and a consumer per shard and owner.
//!
//! Called by the [bridges](super::bridge) of simulated nodes and by their [consumers](super::consumer), as a server is by the bridge
//! to NATS. The next owner of a shard deletes the consumers of earlier epochs, so their unacknowledged messages are redelivered
//! at once.

use std::sync::Arc;

use super::broker::{Broker, StoredPacket};
use super::broker_names::{commands, consumer_prefix};
use super::link::SimLink;
use whizbang_core::bridge::{BridgeError, Claim, NodeCard};
use whizbang_core::message::{Name, ShardId, StoreId};
use whizbang_core::store::Epoch;

/// The name of the broker in errors.
pub(super) const BROKER: &str = "the simulated broker";

impl Broker {
    /// Returns the store that holds the claim on a domain.
    pub(super) fn owner(&self, domain: &Name) -> Option<StoreId> {
        self.state().claims.get(domain).map(|claim| claim.store)
    }

    /// Claims all domains of a node for its store, or none, as the bridge to a real broker does.
    pub(super) fn claim(&self, card: &NodeCard) -> Result<(), BridgeError> {
        let Some(store) = &card.store else { return Ok(()) };
        let claims = &mut self.state().claims;
        for (domain, _) in &card.owns {
            if let Some(found) = claims.get(domain) {
                found.admits(card, store, domain)?;
            }
        }
        for (domain, _) in &card.owns {
            if !claims.get(domain).is_some_and(|found| found.is_shared_with(card, store)) {
                claims.insert(domain.clone(), Claim::of(card, store));
            }
        }
        Ok(())
    }

    /// Deletes the consumers of earlier owners of a shard and creates the consumer of this one.
    pub(super) fn take_shard(&self, link: &SimLink, shard: &ShardId, epoch: Epoch) -> Result<(), BridgeError> {
        let (stream, prefix) = (commands(&shard.domain), consumer_prefix(&link.card.service, shard));
        {
            let mut state = self.state();
            let names = state.model.consumer_names(&stream);
            let epochs = names.iter().filter_map(|name| name.strip_prefix(&prefix)?.parse::<Epoch>().ok());
            let epochs: Vec<Epoch> = epochs.collect();
            if let Some(later) = epochs.iter().find(|other| **other > epoch) {
                let reason = format!("shard {shard} is received by a later owner, with epoch {later}");
                return Err(BridgeError::Refused { broker: BROKER.to_owned(), reason });
            }
            for earlier in epochs.into_iter().filter(|other| *other < epoch) {
                state.model.delete_consumer(&stream, &format!("{prefix}{earlier}"));
            }
            let (settings, of) = (state.consumers, shard.clone());
            let filter = Box::new(move |stored: &Arc<StoredPacket>| stored.to.as_ref() == Some(&of));
            state.model.create_filtered_consumer(&stream, &format!("{prefix}{epoch}"), settings, filter);
        }
        self.trace.add(format_args!("{} receives {shard} in epoch {epoch}", link.card.service));
        self.notify_all();
        Ok(())
    }
}
