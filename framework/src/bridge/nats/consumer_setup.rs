//! Consumers: made, compared, looked at, and made anew if they have stalled or left messages behind.
//!
//! Called at attach, after each reconnection and by the watchdog.

use serde_json::{Value, json};

use super::config::StreamSetup;
use super::jetstream::{ApiFailure, DesiredConfig, Incarnation, JetStream, RETRY_PAUSE};
use super::streams::{StreamContent, StreamSource};
use crate::bridge::BridgeError;

/// What a consumer has and has not delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ConsumerState {
    /// Messages that it has not delivered yet.
    pub(super) pending: u64,
    /// Messages that it has delivered and that are not acknowledged.
    pub(super) unacknowledged: u64,
    /// The number of its last delivery.
    pub(super) delivered: u64,
    /// Everything up to this number is acknowledged.
    pub(super) acknowledged: u64,
}

impl ConsumerState {
    pub(super) fn read(info: &Value) -> Self {
        let number = |path: &str| info.pointer(path).and_then(Value::as_u64).unwrap_or(0);
        Self {
            pending: number("/num_pending"),
            unacknowledged: number("/num_ack_pending"),
            delivered: number("/delivered/consumer_seq"),
            acknowledged: number("/ack_floor/consumer_seq"),
        }
    }

    /// Returns whether there is something that the consumer should deliver.
    pub(super) fn has_outstanding(&self) -> bool {
        self.pending > 0 || self.unacknowledged > 0
    }
}

impl JetStream {
    /// Makes sure that a stream and its consumer are there and as they should be; none if the stream is another's and missing.
    pub(super) async fn ensure_source(&self, source: &StreamSource) -> Result<Option<Incarnation>, BridgeError> {
        let incarnation = match &source.owned {
            Some(wanted) => Some(self.ensure_stream(wanted).await?),
            None => self.stream_info(&source.stream).await?,
        };
        if incarnation.is_some() {
            if self.leaves_behind(source).await {
                tracing::warn!(
                    stream = source.stream,
                    "messages below the floor of the consumer are left in the stream; recreating the consumer"
                );
                self.delete_consumer(source).await?;
            }
            self.ensure_consumer(&source.stream, &source.consumer).await?;
        }
        Ok(incarnation)
    }

    /// Makes a consumer unless it exists; then compares it.
    async fn ensure_consumer(&self, stream: &str, wanted: &DesiredConfig) -> Result<(), BridgeError> {
        let body = json!({ "stream_name": stream, "config": wanted.settings });
        self.ensure("CONSUMER", wanted, &body).await.map(|_| ())
    }

    /// Returns the state of a consumer.
    pub(super) async fn consumer_state(&self, path: &str) -> Result<ConsumerState, BridgeError> {
        match self.request_with_retry(&format!("CONSUMER.INFO.{path}"), &Value::Null).await {
            Ok(info) => Ok(ConsumerState::read(&info)),
            // A missing consumer answers no pull; the lane hears of that by itself.
            Err(ApiFailure::Missing) => Ok(ConsumerState::default()),
            Err(failure) => Err(self.bridge_error(failure)),
        }
    }

    /// Deletes the consumer of a source and makes it anew. Harmless to messages: the stream keeps what is not acknowledged, the
    /// new consumer delivers it again, and the receiver drops what it has.
    pub(super) async fn recreate_consumer(&self, source: &StreamSource) -> Result<Option<Incarnation>, BridgeError> {
        if self.setup == StreamSetup::Existing {
            let consumer = &source.consumer.label;
            let reason = format!(
                "{consumer} has stalled and this node may not recreate it: delete it with `nats consumer rm` and run the setup"
            );
            return Err(self.refused(reason));
        }
        self.delete_consumer(source).await?;
        self.ensure_source(source).await
    }

    async fn delete_consumer(&self, source: &StreamSource) -> Result<(), BridgeError> {
        match self.request_with_retry(&format!("CONSUMER.DELETE.{}", source.consumer.path), &Value::Null).await {
            Ok(_) | Err(ApiFailure::Missing) => Ok(()),
            Err(failure) => Err(self.bridge_error(failure)),
        }
    }

    /// Returns whether a work queue holds messages that its consumer counts as acknowledged, and so never delivers. They would stay
    /// until the stream is full.
    ///
    /// nats-server 2.9.10 was seen to leave thousands after it was killed under load. A consumer made anew delivers them; the
    /// receiver drops what it has, and acknowledges it again.
    pub(super) async fn leaves_behind(&self, source: &StreamSource) -> bool {
        // A node that may not make a consumer anew does not stop receiving for that.
        if source.content != StreamContent::Direct || self.setup == StreamSetup::Existing {
            return false;
        }
        // What was acknowledged just now may be on its way out of the stream: only what is still there after a while was left.
        let Some(first) = self.left_behind(source).await else { return false };
        tokio::time::sleep(RETRY_PAUSE * 2).await;
        self.left_behind(source).await == Some(first)
    }

    /// The number of the first message of a stream if it is below the floor of the consumer.
    async fn left_behind(&self, source: &StreamSource) -> Option<u64> {
        let read = async |path: String| self.request_with_retry(&path, &Value::Null).await.ok();
        let number = |info: &Value, path: &str| info.pointer(path).and_then(Value::as_u64).unwrap_or(0);
        // In this order: what is acknowledged between the two is above the floor.
        let consumer = read(format!("CONSUMER.INFO.{}", source.consumer.path)).await?;
        let stream = read(format!("STREAM.INFO.{}", source.stream)).await?;
        let (first, floor) = (number(&stream, "/state/first_seq"), number(&consumer, "/ack_floor/stream_seq"));
        (number(&stream, "/state/messages") > 0 && first <= floor).then_some(first)
    }
}
