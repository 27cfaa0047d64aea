//! The names of the consumers of leased shards: one per shard and owner, with the epoch of the owner.
//!
//! The epoch in the name lets an owner tell the consumers of earlier owners from those of later ones, without a clock and
//! without a request. `shard_setup` creates and deletes the consumers themselves.

use whizbang_core::message::{Name, ShardId};
use whizbang_core::store::Epoch;

/// The name of the consumer of one shard: `service-domain-shard-eEPOCH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ShardConsumer {
    /// The service, whose name the consumer of all shards has.
    service: Name,
    /// The part of the name that is the same for all owners.
    prefix: String,
    /// The epoch in which its owner has the shard. The store increases it with each owner.
    pub(super) epoch: Epoch,
}

impl ShardConsumer {
    /// Returns the name for an owner of a shard.
    pub(super) fn new(service: &Name, shard: &ShardId, epoch: Epoch) -> Self {
        let prefix = format!("{}{}-e", domain_prefix(service, &shard.domain), shard.shard);
        Self { service: service.clone(), prefix, epoch }
    }

    /// Returns the complete name, with the epoch.
    pub(super) fn name(&self) -> String {
        format!("{}{}", self.prefix, self.epoch)
    }

    /// Returns the part of the name that is the same for all owners of the shard.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Returns the epoch in the name of a consumer of the same shard. The consumer of all shards, from a version of the service
    /// without leases, is earlier than every owner.
    pub(super) fn epoch_of(&self, name: &str) -> Option<Epoch> {
        if name == self.service.as_str() {
            return Some(0);
        }
        name.strip_prefix(&self.prefix)?.parse().ok()
    }
}

/// Returns the beginning of the names of all shard consumers of a domain.
pub(super) fn domain_prefix(service: &Name, domain: &Name) -> String {
    format!("{service}-{domain}-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consumer_names_tell_shards_and_epochs_apart() {
        let name = |text| Name::from_static(text).unwrap();
        let consumer = ShardConsumer::new(&name("bank"), &ShardId::new(name("accounts"), 1), 7);
        assert_eq!(consumer.name(), "bank-accounts-1-e7");
        for (other, epoch) in [
            ("bank", Some(0)),
            ("bank-accounts-1-e6", Some(6)),
            ("bank-accounts-1-e70", Some(70)),
            ("bank-accounts-11-e6", None),
            ("bank-accounts-1-e", None),
            ("bank-accounts-1-e6x", None),
            ("bank2-accounts-1-e6", None),
            ("observer", None),
        ] {
            assert_eq!(consumer.epoch_of(other), epoch, "{other}");
        }
    }
}
