//! The consumers of leased shards: one per shard and owner, named after the owner's epoch.
//!
//! Called when a node takes a shard, after each reconnection, and by the watchdog. A work queue admits one consumer per
//! subject, so a shard has at most one at any time. The next owner deletes the consumers of earlier epochs: the server then
//! redelivers their unacknowledged messages at once, and the pulls of the earlier owner end. An owner deletes no consumer of a
//! later epoch and does not create its own beside one, so neither a late request nor the recovery of an earlier owner can
//! take a shard back.
//!
//! The server decides every race: it creates a consumer or refuses it because another one has the same messages. No clock is
//! compared.

use serde_json::{Value, json};

use super::config::StreamSetup;
use super::consumer_setup::SourceState;
use super::jetstream::{ApiFailure, Incarnation, JetStream, compare};
use super::shard_consumer::{ShardConsumer, domain_prefix};
use super::streams::StreamSource;
use whizbang_core::bridge::BridgeError;
use whizbang_core::message::Name;

/// The maximum number of attempts to create a consumer while earlier owners create theirs again.
const MAX_ATTEMPTS: usize = 10;

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
        Err(self.overlap_error(&source.consumer).await)
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
    pub(super) async fn consumer_names(&self, stream: &str) -> Result<Vec<String>, BridgeError> {
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
