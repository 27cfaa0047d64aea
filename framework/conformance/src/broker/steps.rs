//! The steps of which the [cases](super::cases) of brokers are made: a stream `s` with the consumer `c`, publishing, and pulling.
//!
//! A step checks what every case expects of it, so that a case contains only what is particular to it.

use std::time::Duration;

use super::{Broker, BrokerStream, ConsumerSettings, PublishAck, ReceivedMessage, Retention, StreamSettings};

/// The time limit for a message that must arrive.
pub(super) const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(10);
/// The time in which a message must not arrive.
pub(super) const QUIET_PERIOD: Duration = Duration::from_millis(200);
/// The ack wait of consumers whose messages are redelivered.
pub(super) const SHORT_ACK_WAIT: Duration = Duration::from_millis(500);
/// The ack wait of the other consumers.
pub(super) const LONG_ACK_WAIT: Duration = Duration::from_secs(60);

/// Returns the settings of a stream that keeps messages after their acknowledgement, as the event streams of a domain do.
pub(super) fn limits() -> StreamSettings {
    StreamSettings::of(Retention::Limits)
}

/// Returns the settings of a stream that drops each message with its acknowledgement, as the streams of commands and replies
/// do.
pub(super) fn work_queue() -> StreamSettings {
    StreamSettings::of(Retention::WorkQueue)
}

/// Creates a stream `s` with a consumer `c` and publishes messages `1` to `count`.
pub(super) async fn set_up(broker: &impl Broker, settings: StreamSettings, ack_wait: Duration, count: u64) {
    broker.create_stream("s", settings).await;
    broker.create_consumer("s", "c", ConsumerSettings { ack_wait, max_ack_pending: 100 }).await;
    for number in 1..=count {
        assert_eq!(publish(broker, None, number).await, stored(number));
    }
}

/// Publishes a message whose payload is a number.
pub(super) async fn publish(broker: &impl Broker, id: Option<&str>, number: u64) -> PublishAck {
    broker.publish("s", id, number.to_string().as_bytes()).await.expect("is stored")
}

/// Returns the answer to the first message with an id.
pub(super) fn stored(sequence: u64) -> PublishAck {
    PublishAck { sequence, duplicate: false }
}

/// Returns the answer to a message whose id is known: the sequence of the first one.
pub(super) fn duplicate(sequence: u64) -> PublishAck {
    PublishAck { sequence, duplicate: true }
}

/// Pulls `count` messages, which must arrive.
pub(super) async fn pull(broker: &impl Broker, count: usize) -> Vec<ReceivedMessage> {
    let messages = broker.pull("s", "c", count, ARRIVAL_TIMEOUT).await.expect("the consumer exists");
    assert_eq!(messages.len(), count, "{messages:?}");
    messages
}

/// Pulls one message, which must be there.
pub(super) async fn pull_one(broker: &impl Broker) -> ReceivedMessage {
    pull(broker, 1).await.remove(0)
}

/// Checks that no message arrives.
pub(super) async fn expect_no_message(broker: &impl Broker) {
    let messages = broker.pull("s", "c", 1, QUIET_PERIOD).await.expect("the consumer exists");
    assert_eq!(messages, []);
}

/// Returns the state of the suite's stream.
pub(super) async fn state(broker: &impl Broker) -> BrokerStream {
    broker.state("s").await.expect("the stream exists")
}

/// Returns sequence and number of deliveries of each message.
pub(super) fn deliveries(messages: &[ReceivedMessage]) -> Vec<(u64, u32)> {
    messages.iter().map(|message| (message.sequence, message.deliveries)).collect()
}
