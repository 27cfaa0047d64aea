//! The consumers of leased shards: one per shard and owner, named after the owner's epoch.
//!
//! Called when a node takes a shard, after each reconnection, and by the watchdog. A work queue admits one consumer per
//! subject, so a shard has at most one at any time. The next owner deletes the consumers of earlier epochs: the server then
//! redelivers their unacknowledged messages at once, and the pulls of the earlier owner end. An owner deletes no consumer of a
//! later epoch and does not create its own beside one, so neither a late request nor the recovery of an earlier owner can
//! take a shard back.

use serde_json::{Value, json};

use super::config::StreamSetup;
use super::consumer_setup::SourceState;
use super::jetstream::{ApiFailure, Incarnation, JetStream, compare};
use super::streams::StreamSource;
use whizbang_core::bridge::BridgeError;
use whizbang_core::message::{Name, ShardId};
use whizbang_core::store::Epoch;

/// The maximum number of attempts to create a consumer while earlier owners create theirs again.
const MAX_ATTEMPTS: usize = 10;

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
        self.name_of(self.epoch)
    }

    /// Returns the part of the name that is the same for all owners of the shard.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Returns the name for the owner of another epoch.
    fn name_of(&self, epoch: Epoch) -> String {
        format!("{}{epoch}", self.prefix)
    }

    /// Returns the epoch in the name of a consumer of the same shard. The consumer of all shards, from a version of the service
    /// without leases, is earlier than every owner.
    fn epoch_of(&self, name: &str) -> Option<Epoch> {
        if name == self.service.as_str() {
            return Some(0);
        }
        name.strip_prefix(&self.prefix)?.parse().ok()
    }
}

/// Returns the beginning of the names of all shard consumers of a domain.
fn domain_prefix(service: &Name, domain: &Name) -> String {
    format!("{service}-{domain}-")
}

impl JetStream {
    /// Deletes the consumers of earlier owners of a shard and creates the consumer of this one. The state of the stream is not
    /// read, because that would delay the first message.
    ///
    /// # Errors
    /// [`BridgeError::Refused`] if earlier owners create their consumers again in each of [`MAX_ATTEMPTS`] attempts. The shard is
    /// not received, and the node tries again.
    pub(super) async fn take_shard(
        &self,
        source: &StreamSource,
        shard: &ShardConsumer,
    ) -> Result<SourceState, BridgeError> {
        // The previous owner almost always has the previous epoch, so that the names need not be listed.
        if shard.epoch > 1 {
            self.delete_consumer_at(&format!("{}.{}", source.stream, shard.name_of(shard.epoch - 1))).await?;
        }
        for _ in 0..MAX_ATTEMPTS {
            match self.create_shard_consumer(source).await {
                Ok(info) => {
                    compare(&source.consumer, &info)?;
                    return Ok(SourceState::Open(Incarnation::default()));
                }
                Err(ApiFailure::Overlap) => {
                    if let Some(later) = self.delete_earlier(source, shard).await? {
                        return Ok(SourceState::Superseded(later));
                    }
                }
                Err(ApiFailure::Missing) => match &source.owned {
                    Some(stream) if self.setup == StreamSetup::Create => drop(self.ensure_stream(stream).await?),
                    _ => return Err(self.bridge_error(ApiFailure::Missing)),
                },
                Err(failure) => return Err(self.bridge_error(failure)),
            }
        }
        Err(self.bridge_error(ApiFailure::Overlap))
    }

    /// Requests the creation. An existing consumer with the same settings is a success, so a repeated request does no harm.
    async fn create_shard_consumer(&self, source: &StreamSource) -> Result<Value, ApiFailure> {
        let body = json!({ "stream_name": source.stream, "config": source.consumer.settings });
        // The filter is part of the subject, so that permissions can restrict it.
        let filter = source.consumer.settings.get("filter_subject").and_then(Value::as_str).unwrap_or_default();
        self.request_with_retry(&format!("CONSUMER.CREATE.{}.{filter}", source.consumer.path), &body).await
    }

    /// Checks the consumer of a shard and creates it again if it is missing, unless a later owner has taken the shard.
    pub(super) async fn ensure_shard(
        &self,
        source: &StreamSource,
        shard: &ShardConsumer,
    ) -> Result<SourceState, BridgeError> {
        match self.request_with_retry(&format!("CONSUMER.INFO.{}", source.consumer.path), &Value::Null).await {
            Ok(_) => {
                if self.leaves_behind(source).await {
                    tracing::warn!(
                        stream = source.stream,
                        consumer = shard.name(),
                        "messages below the acknowledgement floor of the consumer remain in the stream; recreating the consumer"
                    );
                    self.delete_consumer_at(&source.consumer.path).await?;
                    self.take_shard(source, shard).await?;
                }
            }
            Err(ApiFailure::Missing) => {
                if self.stream_info(&source.stream).await?.is_some()
                    && let Some(later) = self.delete_earlier(source, shard).await?
                {
                    return Ok(SourceState::Superseded(later));
                }
                if let SourceState::Superseded(later) = self.take_shard(source, shard).await? {
                    return Ok(SourceState::Superseded(later));
                }
            }
            Err(failure) => return Err(self.bridge_error(failure)),
        }
        Ok(SourceState::Open(self.stream_info(&source.stream).await?.unwrap_or_default()))
    }

    /// Deletes the consumers of earlier owners. Returns the name of the consumer of a later one, if there is one.
    async fn delete_earlier(
        &self,
        source: &StreamSource,
        shard: &ShardConsumer,
    ) -> Result<Option<String>, BridgeError> {
        let mut earlier = Vec::new();
        for name in self.consumer_names(&source.stream).await? {
            match shard.epoch_of(&name) {
                Some(epoch) if epoch > shard.epoch => return Ok(Some(name)),
                Some(epoch) if epoch < shard.epoch => earlier.push(name),
                Some(_) | None => {}
            }
        }
        for name in earlier {
            self.delete_consumer_at(&format!("{}.{name}", source.stream)).await?;
        }
        Ok(None)
    }

    /// Deletes the consumers of all shards of a domain, when another store has replaced the one that their epochs belong to.
    pub(super) async fn delete_shard_consumers(
        &self,
        stream: &str,
        service: &Name,
        domain: &Name,
    ) -> Result<(), BridgeError> {
        let prefix = domain_prefix(service, domain);
        for name in self.consumer_names(stream).await?.into_iter().filter(|name| name.starts_with(&prefix)) {
            self.delete_consumer_at(&format!("{stream}.{name}")).await?;
        }
        Ok(())
    }

    /// Returns the names of all consumers of a stream.
    async fn consumer_names(&self, stream: &str) -> Result<Vec<String>, BridgeError> {
        let mut names = Vec::new();
        loop {
            let page = self
                .request_with_retry(&format!("CONSUMER.NAMES.{stream}"), &json!({ "offset": names.len() }))
                .await
                .map_err(|failure| self.bridge_error(failure))?;
            let found = page.get("consumers").and_then(Value::as_array).into_iter().flatten();
            let before = names.len();
            names.extend(found.filter_map(Value::as_str).map(str::to_owned));
            let total = page.get("total").and_then(Value::as_u64).unwrap_or(0);
            if names.len() == before || names.len() as u64 >= total {
                return Ok(names);
            }
        }
    }

    /// Returns the sequence of the first message of a stream on a subject. `None` if there is none or it is unknown.
    pub(super) async fn first_message(&self, stream: &str, subject: &str) -> Option<u64> {
        let asked = json!({ "seq": 1, "next_by_subj": subject });
        let answer = self.request_with_retry(&format!("STREAM.MSG.GET.{stream}"), &asked).await.ok()?;
        answer.pointer("/message/seq").and_then(Value::as_u64)
    }
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
