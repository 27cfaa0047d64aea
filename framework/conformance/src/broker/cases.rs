//! The cases, each a behavior of JetStream.
//!
//! Each case states what a program that uses the broker may rely on, and the second paragraph of its documentation says why
//! the framework asks. A case creates its own stream `s` with the consumer `c`, so it needs an empty broker. Cases run
//! against real servers and against the [model](super::model): both must behave alike.
//!
//! Times are real. A check that nothing arrives takes 200 ms, so a case has few of them.

use std::time::Duration;

use super::steps::{
    ARRIVAL_TIMEOUT, LONG_ACK_WAIT, QUIET_PERIOD, SHORT_ACK_WAIT, deliveries, duplicate, expect_no_message, limits,
    publish, pull, pull_one, set_up, state, stored, work_queue,
};
use super::{
    Acknowledgement, Broker, BrokerStream, ConsumerSettings, Discard, PublishError, ReceivedMessage, StreamSettings,
};

/// Messages get the sequences 1, 2, 3 … and arrive unchanged.
///
/// The framework finds lost messages by gaps in its own sequences, and expects that the broker adds none in normal operation.
pub async fn messages_are_numbered_and_delivered_in_order(broker: &impl Broker) {
    set_up(broker, limits(), LONG_ACK_WAIT, 5).await;
    let messages = pull(broker, 5).await;
    assert_eq!(deliveries(&messages), [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)]);
    assert!(
        messages.iter().all(|message| message.payload == message.sequence.to_string().into_bytes()),
        "{messages:?}"
    );
    let BrokerStream { first, last, messages, .. } = state(broker).await;
    assert_eq!((first, last, messages), (1, 5, 5));
    expect_no_message(broker).await;
}

/// Within the window, a second message with the same id is acknowledged with the sequence of the first, whatever its payload.
///
/// A relay that got no answer sends its message again under the same id. The answer to the second attempt must be a success,
/// or the relay would try for ever.
pub async fn repeated_id_is_stored_once(broker: &impl Broker) {
    set_up(broker, limits(), LONG_ACK_WAIT, 1).await;
    assert_eq!(publish(broker, Some("a"), 2).await, stored(2));
    assert_eq!(publish(broker, Some("b"), 3).await, stored(3));
    assert_eq!(publish(broker, Some("a"), 4).await, duplicate(2));
    assert_eq!(publish(broker, None, 4).await, stored(4));
    assert_eq!(deliveries(&pull(broker, 4).await), [(1, 1), (2, 1), (3, 1), (4, 1)]);
    expect_no_message(broker).await;
}

/// After the window a message with the same id is stored again. A duplicate does not extend the window.
///
/// Receivers therefore cannot rely on the broker: they keep watermarks of their own, which have no window.
pub async fn id_is_forgotten_after_the_window(broker: &impl Broker) {
    let window = Duration::from_millis(600);
    set_up(broker, StreamSettings { duplicate_window: window, ..limits() }, LONG_ACK_WAIT, 0).await;
    let started = whizbang_core::clock::instant();
    assert_eq!(publish(broker, Some("a"), 1).await, stored(1));
    assert_eq!(publish(broker, Some("a"), 1).await, duplicate(1));
    let again = loop {
        let stored = publish(broker, Some("a"), 1).await;
        if !stored.duplicate {
            break stored;
        }
        assert!(started.elapsed() < ARRIVAL_TIMEOUT, "the window does not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(again, stored(2));
    assert!(started.elapsed() >= window - Duration::from_millis(50), "{:?}", started.elapsed());
}

/// After a purge, an id in the window is still a duplicate although its message is gone: a false duplicate.
///
/// The sender is told that its message is stored, and it is not. The framework must find the loss by the watermark of the
/// receiver.
pub async fn id_survives_a_purge_of_its_stream(broker: &impl Broker) {
    set_up(broker, limits(), LONG_ACK_WAIT, 0).await;
    assert_eq!(publish(broker, Some("a"), 1).await, stored(1));
    broker.purge_stream("s").await;
    assert_eq!(publish(broker, Some("a"), 1).await, duplicate(1));
    expect_no_message(broker).await;
    assert_eq!(publish(broker, Some("b"), 2).await, stored(2));
}

/// An acknowledged message leaves a work queue, and its id is still known.
///
/// So a late repetition is not delivered a second time while the window lasts.
pub async fn id_survives_the_acknowledgement_of_its_message(broker: &impl Broker) {
    set_up(broker, work_queue(), LONG_ACK_WAIT, 0).await;
    assert_eq!(publish(broker, Some("a"), 1).await, stored(1));
    broker.acknowledge(&pull_one(broker).await, Acknowledgement::Ack).await;
    assert_eq!(publish(broker, Some("a"), 1).await, duplicate(1));
    expect_no_message(broker).await;
}

/// A recreated stream knows no ids.
///
/// After an operator has deleted and created a stream again, everything that is sent again is stored again.
pub async fn id_is_forgotten_with_its_stream(broker: &impl Broker) {
    set_up(broker, limits(), LONG_ACK_WAIT, 0).await;
    assert_eq!(publish(broker, Some("a"), 1).await, stored(1));
    broker.delete_stream("s").await;
    broker.create_stream("s", limits()).await;
    assert_eq!(publish(broker, Some("a"), 1).await, stored(1));
}

/// Without an acknowledgement, the message is redelivered after the ack wait, not before; and again.
///
/// This is the only way in which a message of a node that died reaches another node of its service.
pub async fn unacknowledged_message_is_redelivered(broker: &impl Broker) {
    set_up(broker, work_queue(), SHORT_ACK_WAIT, 1).await;
    assert_eq!(deliveries(&pull(broker, 1).await), [(1, 1)]);
    expect_no_message(broker).await;
    assert_eq!(deliveries(&pull(broker, 1).await), [(1, 2)]);
    let third = pull_one(broker).await;
    assert_eq!(third.deliveries, 3);
    broker.acknowledge(&third, Acknowledgement::Ack).await;
    let later = broker.pull("s", "c", 1, 2 * SHORT_ACK_WAIT).await.expect("the consumer exists");
    assert_eq!(later, []);
}

/// A progress report extends the ack wait.
///
/// A node reports progress for a command whose handler runs longer than the ack wait; otherwise a second delivery would wait
/// behind the first.
pub async fn message_in_progress_is_not_redelivered(broker: &impl Broker) {
    set_up(broker, work_queue(), SHORT_ACK_WAIT, 1).await;
    let message = pull_one(broker).await;
    for _ in 0..4 {
        expect_no_message(broker).await;
        broker.acknowledge(&message, Acknowledgement::InProgress).await;
    }
    assert_eq!(deliveries(&pull(broker, 1).await), [(1, 2)]);
}

/// Newer messages overtake a redelivered one.
///
/// Order is therefore restored by the receiver, which compares sequences, and never taken from the broker.
pub async fn redelivered_message_is_overtaken(broker: &impl Broker) {
    set_up(broker, limits(), SHORT_ACK_WAIT, 3).await;
    let messages = pull(broker, 3).await;
    broker.acknowledge(&messages[1], Acknowledgement::Ack).await;
    broker.acknowledge(&messages[2], Acknowledgement::Ack).await;
    publish(broker, None, 4).await;
    let fourth = pull_one(broker).await;
    assert_eq!((fourth.sequence, fourth.deliveries), (4, 1));
    broker.acknowledge(&fourth, Acknowledgement::Ack).await;
    assert_eq!(deliveries(&pull(broker, 1).await), [(1, 2)]);
}

/// Messages whose ack wait ends at the same time are redelivered in stream order.
///
/// A real server gives them out one after the other, as it finds them expired, so the case compares them as a set.
pub async fn expired_messages_keep_stream_order(broker: &impl Broker) {
    set_up(broker, limits(), SHORT_ACK_WAIT, 4).await;
    let messages = pull(broker, 4).await;
    broker.acknowledge(&messages[1], Acknowledgement::Ack).await;
    let mut again = pull(broker, 3).await;
    again.sort_by_key(|message| message.sequence);
    assert_eq!(deliveries(&again), [(1, 2), (3, 2), (4, 2)]);
}

/// A negative acknowledgement without a delay causes an immediate redelivery.
///
/// The order of redeliveries is that of the rejections, and so not always that of the stream.
pub async fn rejected_messages_keep_rejection_order(broker: &impl Broker) {
    set_up(broker, limits(), LONG_ACK_WAIT, 4).await;
    let messages = pull(broker, 3).await;
    for at in [2, 0] {
        broker.acknowledge(&messages[at], Acknowledgement::Nak(Duration::ZERO)).await;
    }
    // Redeliveries come before new messages.
    assert_eq!(deliveries(&pull(broker, 3).await), [(3, 2), (1, 2), (4, 1)]);
}

/// A negative acknowledgement with a delay postpones the redelivery; other messages are delivered in between.
///
/// A node that cannot handle a message at the moment asks for it again later in this way.
pub async fn delayed_redelivery_waits_for_its_delay(broker: &impl Broker) {
    set_up(broker, limits(), LONG_ACK_WAIT, 2).await;
    let first = pull_one(broker).await;
    let started = whizbang_core::clock::instant();
    broker.acknowledge(&first, Acknowledgement::Nak(SHORT_ACK_WAIT)).await;
    assert_eq!(deliveries(&pull(broker, 1).await), [(2, 1)]);
    expect_no_message(broker).await;
    assert_eq!(deliveries(&pull(broker, 1).await), [(1, 2)]);
    assert!(started.elapsed() >= SHORT_ACK_WAIT - Duration::from_millis(50), "{:?}", started.elapsed());
}

/// A terminated message is complete.
///
/// A message that cannot be decoded is terminated after its copy is stored among the refused ones. It would fail at every
/// delivery.
pub async fn terminated_message_is_not_redelivered(broker: &impl Broker) {
    set_up(broker, work_queue(), SHORT_ACK_WAIT, 1).await;
    broker.acknowledge(&pull_one(broker).await, Acknowledgement::Term).await;
    let later = broker.pull("s", "c", 1, 2 * SHORT_ACK_WAIT).await.expect("the consumer exists");
    assert_eq!(later, []);
    assert_eq!(state(broker).await.messages, 0);
}

/// An acknowledgement after a redelivery still counts.
///
/// An acknowledgement names a message and not one delivery of it. So a slow node completes its message even after the ack
/// wait.
pub async fn late_acknowledgement_of_an_earlier_delivery_counts(broker: &impl Broker) {
    set_up(broker, work_queue(), SHORT_ACK_WAIT, 1).await;
    let first = pull_one(broker).await;
    assert_eq!(pull_one(broker).await.deliveries, 2);
    broker.acknowledge(&first, Acknowledgement::Ack).await;
    assert_eq!(state(broker).await.messages, 0);
    let later = broker.pull("s", "c", 1, 2 * SHORT_ACK_WAIT).await.expect("the consumer exists");
    assert_eq!(later, []);
}

/// A second acknowledgement of one message has no effect.
///
/// Acknowledgements need no bookkeeping by the caller: one that got no confirmation is sent again.
pub async fn repeated_acknowledgement_counts_once(broker: &impl Broker) {
    set_up(broker, work_queue(), LONG_ACK_WAIT, 2).await;
    let first = pull_one(broker).await;
    broker.acknowledge(&first, Acknowledgement::Ack).await;
    broker.acknowledge(&first, Acknowledgement::Ack).await;
    broker.acknowledge(&first, Acknowledgement::Nak(Duration::ZERO)).await;
    assert_eq!(deliveries(&pull(broker, 1).await), [(2, 1)]);
    expect_no_message(broker).await;
}

/// Each acknowledgement makes room for one more delivery.
///
/// The limit bounds the memory that the messages in flight of a node take.
pub async fn unacknowledged_messages_are_limited(broker: &impl Broker) {
    broker.create_stream("s", limits()).await;
    broker.create_consumer("s", "c", ConsumerSettings { ack_wait: LONG_ACK_WAIT, max_ack_pending: 2 }).await;
    for number in 1..=4 {
        publish(broker, None, number).await;
    }
    let messages = pull(broker, 2).await;
    expect_no_message(broker).await;
    broker.acknowledge(&messages[1], Acknowledgement::Ack).await;
    assert_eq!(deliveries(&pull(broker, 1).await), [(3, 1)]);
    expect_no_message(broker).await;
    broker.acknowledge(&messages[0], Acknowledgement::Term).await;
    assert_eq!(deliveries(&pull(broker, 1).await), [(4, 1)]);
}

/// The limit of unacknowledged messages holds for new messages, not for redeliveries.
///
/// A node must therefore be able to take somewhat more messages than the limit.
pub async fn redelivery_ignores_the_limit(broker: &impl Broker) {
    broker.create_stream("s", limits()).await;
    broker.create_consumer("s", "c", ConsumerSettings { ack_wait: LONG_ACK_WAIT, max_ack_pending: 2 }).await;
    for number in 1..=3 {
        publish(broker, None, number).await;
    }
    let messages = pull(broker, 2).await;
    broker.acknowledge(&messages[1], Acknowledgement::Nak(Duration::ZERO)).await;
    assert_eq!(deliveries(&pull(broker, 1).await), [(2, 2)]);
    expect_no_message(broker).await;
}

/// An acknowledged message is removed, and the sequence continues.
///
/// So the number of stored messages is the number of those that no node has handled.
pub async fn acknowledged_message_leaves_a_work_queue(broker: &impl Broker) {
    set_up(broker, work_queue(), LONG_ACK_WAIT, 3).await;
    let pulled = pull(broker, 3).await;
    broker.acknowledge(&pulled[1], Acknowledgement::Ack).await;
    let BrokerStream { first, last, messages, .. } = state(broker).await;
    assert_eq!((first, last, messages), (1, 3, 2));
    broker.acknowledge(&pulled[0], Acknowledgement::Ack).await;
    broker.acknowledge(&pulled[2], Acknowledgement::Ack).await;
    let BrokerStream { last, messages, .. } = state(broker).await;
    assert_eq!((last, messages), (3, 0));
    assert_eq!(publish(broker, None, 4).await, stored(4));
}

/// Every consumer receives every message.
///
/// Every subscribing service has a consumer of its own on the event stream, and may be slower than the others.
pub async fn acknowledged_message_stays_for_other_consumers(broker: &impl Broker) {
    set_up(broker, limits(), LONG_ACK_WAIT, 2).await;
    for message in pull(broker, 2).await {
        broker.acknowledge(&message, Acknowledgement::Ack).await;
    }
    broker.create_consumer("s", "d", ConsumerSettings { ack_wait: LONG_ACK_WAIT, max_ack_pending: 100 }).await;
    let other = broker.pull("s", "d", 2, ARRIVAL_TIMEOUT).await.expect("the consumer exists");
    assert_eq!(deliveries(&other), [(1, 1), (2, 1)]);
    assert_eq!(state(broker).await.messages, 2);
    expect_no_message(broker).await;
}

/// Each message goes to one of the pulls of a consumer.
///
/// The nodes of a service pull from one consumer, which divides the work among them.
pub async fn pulls_of_one_consumer_share_messages(broker: &impl Broker) {
    set_up(broker, limits(), LONG_ACK_WAIT, 6).await;
    let mut messages = pull(broker, 2).await;
    messages.extend(pull(broker, 3).await);
    messages.extend(pull(broker, 1).await);
    assert_eq!(deliveries(&messages), [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1)]);
}

/// A new consumer receives the earlier messages.
///
/// A service that subscribes later catches up with everything that the stream still has. It reads older events from the log
/// of their owner.
pub async fn new_consumer_starts_at_the_oldest_message(broker: &impl Broker) {
    broker.create_stream("s", limits()).await;
    for number in 1..=3 {
        publish(broker, None, number).await;
    }
    broker.create_consumer("s", "c", ConsumerSettings { ack_wait: LONG_ACK_WAIT, max_ack_pending: 100 }).await;
    assert_eq!(deliveries(&pull(broker, 3).await), [(1, 1), (2, 1), (3, 1)]);
}

/// The acknowledgements of a deleted consumer are lost with it.
///
/// Receivers recognize these messages by their watermarks, so a consumer may be deleted and created again without an effect
/// on states.
pub async fn recreated_consumer_redelivers_everything(broker: &impl Broker) {
    set_up(broker, limits(), LONG_ACK_WAIT, 2).await;
    for message in pull(broker, 2).await {
        broker.acknowledge(&message, Acknowledgement::Ack).await;
    }
    broker.delete_consumer("s", "c").await;
    assert_eq!(broker.pull("s", "c", 1, QUIET_PERIOD).await, None);
    broker.create_consumer("s", "c", ConsumerSettings { ack_wait: LONG_ACK_WAIT, max_ack_pending: 100 }).await;
    assert_eq!(deliveries(&pull(broker, 2).await), [(1, 1), (2, 1)]);
}

/// A purge removes the messages and nothing else.
///
/// A sequence is never used for two messages in one incarnation.
pub async fn purged_stream_continues_its_sequence(broker: &impl Broker) {
    set_up(broker, limits(), LONG_ACK_WAIT, 3).await;
    let before = state(broker).await;
    broker.purge_stream("s").await;
    expect_no_message(broker).await;
    let after = state(broker).await;
    assert_eq!((after.incarnation, after.last, after.messages), (before.incarnation, 3, 0));
    assert_eq!(publish(broker, None, 4).await, stored(4));
    assert_eq!(deliveries(&pull(broker, 1).await), [(4, 1)]);
}

/// Acknowledgements of purged messages have no effect.
///
/// The purge is final for the broker; the relays of the senders repair the loss from their outboxes.
pub async fn purged_message_is_not_redelivered(broker: &impl Broker) {
    set_up(broker, limits(), SHORT_ACK_WAIT, 2).await;
    let messages = pull(broker, 2).await;
    broker.purge_stream("s").await;
    broker.acknowledge(&messages[0], Acknowledgement::Nak(Duration::ZERO)).await;
    let later = broker.pull("s", "c", 1, 2 * SHORT_ACK_WAIT).await.expect("the consumer exists");
    assert_eq!(later, []);
    publish(broker, None, 3).await;
    assert_eq!(deliveries(&pull(broker, 1).await), [(3, 1)]);
}

/// A deleted stream accepts no messages and has no consumers.
///
/// The error must say that the stream is missing: the bridge then creates it again, and does not wait for a timeout.
pub async fn deleted_stream_has_no_messages_and_no_consumers(broker: &impl Broker) {
    set_up(broker, limits(), LONG_ACK_WAIT, 2).await;
    broker.delete_stream("s").await;
    assert_eq!(broker.publish("s", None, b"3").await, Err(PublishError::NoStream));
    assert_eq!(broker.pull("s", "c", 1, QUIET_PERIOD).await, None);
    assert_eq!(broker.state("s").await, None);
}

/// Sequences start again at 1, and the incarnation differs.
///
/// The incarnation tells that remembered sequences have lost their meaning.
pub async fn recreated_stream_restarts_its_sequence(broker: &impl Broker) {
    set_up(broker, limits(), LONG_ACK_WAIT, 2).await;
    let before = state(broker).await;
    broker.delete_stream("s").await;
    broker.create_stream("s", limits()).await;
    let after = state(broker).await;
    assert_ne!(after.incarnation, before.incarnation);
    assert_eq!((after.first, after.last, after.messages), (0, 0, 0));
    assert_eq!(broker.pull("s", "c", 1, QUIET_PERIOD).await, None);
    assert_eq!(publish(broker, None, 1).await, stored(1));
}

/// An acknowledgement contains a sequence and no incarnation: it can complete a message that was never handled.
///
/// The message is lost at the broker, and repaired as after a purge. Programs must not assume that acknowledgements are safe
/// across a deletion.
pub async fn stale_acknowledgement_hits_the_recreated_stream(broker: &impl Broker) {
    set_up(broker, work_queue(), SHORT_ACK_WAIT, 1).await;
    let lost = pull_one(broker).await;
    broker.delete_stream("s").await;
    set_up(broker, work_queue(), SHORT_ACK_WAIT, 1).await;
    assert_eq!(deliveries(&pull(broker, 1).await), [(1, 1)]);
    broker.acknowledge(&lost, Acknowledgement::Ack).await;
    assert_eq!(state(broker).await.messages, 0);
    let later = broker.pull("s", "c", 1, 2 * SHORT_ACK_WAIT).await.expect("the consumer exists");
    assert_eq!(later, []);
}

/// The sender has to wait.
///
/// The message stays in the outbox of the sender, which tries again. Nothing is dropped.
pub async fn full_work_queue_rejects_until_an_acknowledgement(broker: &impl Broker) {
    set_up(broker, StreamSettings { max_messages: 2, ..work_queue() }, LONG_ACK_WAIT, 2).await;
    assert_eq!(broker.publish("s", None, b"3").await, Err(PublishError::Full));
    broker.acknowledge(&pull_one(broker).await, Acknowledgement::Ack).await;
    assert_eq!(publish(broker, None, 3).await, stored(3));
    assert_eq!(deliveries(&pull(broker, 2).await), [(2, 1), (3, 1)]);
}

/// Consumers receive the remaining messages.
///
/// A subscriber that is too slow misses events at the broker and reads them from the log of their owner.
pub async fn full_stream_drops_its_oldest_message(broker: &impl Broker) {
    let settings = StreamSettings { max_messages: 2, discard: Discard::Old, ..limits() };
    set_up(broker, settings, LONG_ACK_WAIT, 4).await;
    let BrokerStream { first, last, messages, .. } = state(broker).await;
    assert_eq!((first, last, messages), (3, 4, 2));
    assert_eq!(deliveries(&pull(broker, 2).await), [(3, 1), (4, 1)]);
}

/// Streams with their messages, ids and consumers survive a restart of the server. Messages in flight are redelivered.
///
/// A published message that was acknowledged to its sender is durable. The outbox forgets it on that promise.
pub async fn stored_messages_survive_a_restart(broker: &impl Broker) {
    set_up(broker, limits(), SHORT_ACK_WAIT, 2).await;
    assert_eq!(publish(broker, Some("a"), 3).await, stored(3));
    let before = state(broker).await;
    let message = pull_one(broker).await;
    assert_eq!(message.sequence, 1);
    broker.restart().await;
    assert_eq!(state(broker).await, before);
    assert_eq!(publish(broker, Some("a"), 3).await, duplicate(3));
    let mut messages = Vec::new();
    while !messages.iter().any(|message: &ReceivedMessage| message.sequence == 1) {
        let message = pull_one(broker).await;
        broker.acknowledge(&message, Acknowledgement::Ack).await;
        messages.push(message);
    }
    assert!(messages.iter().all(|message| message.sequence <= 3), "{messages:?}");
}
