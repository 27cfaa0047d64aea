//! Durable consumers at the server: creates, compares and inspects them, and recreates those that stalled or left messages behind.
//!
//! Called at attach, after each reconnection and by the watchdog.
//!
//! A check reads before it writes: a node that may not create anything works as long as everything exists.

use serde_json::{Value, json};

use super::config::StreamSetup;
use super::jetstream::{ApiFailure, DesiredConfig, Incarnation, JetStream, RETRY_PAUSE};
use super::streams::{DeliveryMode, StreamContent, StreamSource};
use whizbang_core::bridge::BridgeError;

/// The number of consumers that an error names.
const MAX_SHOWN: usize = 3;

/// The delivery state of a consumer at the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ConsumerState {
    /// The number of messages not delivered yet.
    pub(super) pending: u64,
    /// The number of delivered messages that are not acknowledged.
    pub(super) unacknowledged: u64,
    /// The sequence of the last delivery.
    pub(super) delivered: u64,
    /// The sequence up to which every delivery is acknowledged.
    pub(super) acknowledged: u64,
}

impl ConsumerState {
    /// Reads the state from a response of the API. Missing numbers count as 0.
    pub(super) fn read(info: &Value) -> Self {
        let number = |path: &str| info.pointer(path).and_then(Value::as_u64).unwrap_or(0);
        Self {
            pending: number("/num_pending"),
            unacknowledged: number("/num_ack_pending"),
            delivered: number("/delivered/consumer_seq"),
            acknowledged: number("/ack_floor/consumer_seq"),
        }
    }

    /// Returns true if the consumer has messages to deliver or to redeliver.
    pub(super) fn has_outstanding(&self) -> bool {
        self.pending > 0 || self.unacknowledged > 0
    }
}

/// The condition of a source after a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SourceState {
    /// The stream and the consumer exist.
    Open(Incarnation),
    /// The stream of another service does not exist.
    Absent,
    /// A later owner receives the shard, through the consumer with this name.
    Superseded(String),
}

impl JetStream {
    /// Ensures that a stream and its consumer exist with the right settings.
    ///
    /// Missing ones are created if [`StreamSetup`] permits it. A consumer that has left messages behind is recreated. The cost is
    /// two or three requests, and a second request after a pause if messages seem to be left behind.
    pub(super) async fn ensure_source(&self, source: &StreamSource) -> Result<SourceState, BridgeError> {
        if let DeliveryMode::Shard(shard) = &source.delivery {
            return self.ensure_shard(source, shard).await;
        }
        let incarnation = match &source.owned {
            Some(wanted) => Some(self.ensure_stream(wanted).await?),
            None => self.stream_info(&source.stream).await?,
        };
        if incarnation.is_some() {
            if self.may_recreate(source) && self.leaves_behind(source).await {
                tracing::warn!(
                    stream = source.stream,
                    "messages below the acknowledgement floor of the consumer remain in the stream; recreating the consumer"
                );
                self.delete_consumer(source).await?;
            }
            self.ensure_consumer(&source.stream, &source.consumer).await?;
        }
        Ok(incarnation.map_or(SourceState::Absent, SourceState::Open))
    }

    /// Creates a consumer if it does not exist, then compares it.
    async fn ensure_consumer(&self, stream: &str, wanted: &DesiredConfig) -> Result<(), BridgeError> {
        let body = json!({ "stream_name": stream, "config": wanted.settings });
        self.ensure("CONSUMER", wanted, &body).await.map(|_| ())
    }

    /// Returns the error for a consumer of a work queue beside others, which have the same messages. It names them: they are of the
    /// service under an earlier name, or from before it shared its shards by leases, or stopped doing so.
    pub(super) async fn overlap_error(&self, wanted: &DesiredConfig) -> BridgeError {
        let stream = wanted.path.split('.').next().unwrap_or_default();
        // A login of an earlier version may not list them.
        let names = self.consumer_names(stream).await.unwrap_or_default();
        let shown = names.iter().take(MAX_SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let others = match names.len() {
            0 => format!("see `nats consumer ls {stream}`"),
            count if count > MAX_SHOWN => format!("{shown} and {} others", count - MAX_SHOWN),
            _ => shown,
        };
        self.refused(format!(
            "{} cannot be created beside other consumers of that stream ({others}), because each message goes to only one of \
             them: if the service had another name, or shared its shards by leases differently, stop its earlier nodes and \
             delete their consumers (`nats consumer rm {stream} NAME`); the messages stay in the stream",
            wanted.label
        ))
    }

    /// Returns the state of a consumer.
    pub(super) async fn consumer_state(&self, path: &str) -> Result<ConsumerState, BridgeError> {
        match self.request_with_retry(&format!("CONSUMER.INFO.{path}"), &Value::Null).await {
            Ok(info) => Ok(ConsumerState::read(&info)),
            // A missing consumer has no state. The failing pulls reveal that it is missing.
            Err(ApiFailure::Missing) => Ok(ConsumerState::default()),
            Err(failure) => Err(self.bridge_error(failure)),
        }
    }

    /// Returns true if this node may delete a consumer and create it again.
    pub(super) fn may_recreate(&self, source: &StreamSource) -> bool {
        self.setup == StreamSetup::Create || source.delivery != DeliveryMode::Service
    }

    /// Deletes the consumer of a source and creates it again. No message is lost: the stream keeps unacknowledged messages, the new
    /// consumer redelivers them, and the receiver drops duplicates.
    pub(super) async fn recreate_consumer(&self, source: &StreamSource) -> Result<SourceState, BridgeError> {
        self.delete_consumer(source).await?;
        self.ensure_source(source).await
    }

    /// Deletes the consumer of a source, if it exists. Its unacknowledged messages stay in the stream.
    async fn delete_consumer(&self, source: &StreamSource) -> Result<(), BridgeError> {
        self.delete_consumer_at(&source.consumer.path).await
    }

    /// Deletes the consumer at `stream.consumer`, if it exists.
    pub(super) async fn delete_consumer_at(&self, path: &str) -> Result<(), BridgeError> {
        match self.request_with_retry(&format!("CONSUMER.DELETE.{path}"), &Value::Null).await {
            Ok(_) | Err(ApiFailure::Missing) => Ok(()),
            Err(failure) => Err(self.bridge_error(failure)),
        }
    }

    /// Returns true if a work queue holds messages that its consumer counts as acknowledged and therefore never delivers. They would
    /// remain until the stream is full.
    ///
    /// nats-server 2.9.10 was observed to leave thousands behind after it was killed under load. A recreated consumer delivers them;
    /// the receiver drops the duplicates and acknowledges them again.
    pub(super) async fn leaves_behind(&self, source: &StreamSource) -> bool {
        if source.content != StreamContent::Direct {
            return false;
        }
        // A message acknowledged just now may not be removed from the stream yet. Only one that remains for a while was left behind.
        let Some(first) = self.left_behind(source).await else { return false };
        tokio::time::sleep(RETRY_PAUSE * 2).await;
        self.left_behind(source).await == Some(first)
    }

    /// Returns the sequence of the first message for a consumer if it is below the acknowledgement floor of the consumer.
    async fn left_behind(&self, source: &StreamSource) -> Option<u64> {
        let read = async |path: String| self.request_with_retry(&path, &Value::Null).await.ok();
        let number = |info: &Value, path: &str| info.pointer(path).and_then(Value::as_u64).unwrap_or(0);
        // Read the consumer first: messages acknowledged between the two reads are above the floor.
        let consumer = read(format!("CONSUMER.INFO.{}", source.consumer.path)).await?;
        let floor = number(&consumer, "/ack_floor/stream_seq");
        if let DeliveryMode::Shard(_) = &source.delivery {
            let filter = consumer.pointer("/config/filter_subject").and_then(Value::as_str)?;
            return self.first_message(&source.stream, filter).await.filter(|first| *first <= floor);
        }
        let stream = read(format!("STREAM.INFO.{}", source.stream)).await?;
        let first = number(&stream, "/state/first_seq");
        (number(&stream, "/state/messages") > 0 && first <= floor).then_some(first)
    }
}
