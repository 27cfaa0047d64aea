//! Tests of the pulls of one consumer, without a server.

use super::*;
use crate::config::NatsBuilder;
use crate::streams;
use whizbang_core::bridge::NodeCard;
use whizbang_core::message::{Kind, MessageId, Name};

fn pull_consumer() -> PullConsumer {
    let bank = Name::new("bank").unwrap();
    let card = NodeCard::new(bank.clone()).owning(bank, 1);
    let source = streams::sources(&NatsBuilder::new("nats://host"), &card).remove(0);
    PullConsumer::new(source, "inbox".into(), Some(Incarnation::default()), Sum::default().add(0))
}

fn message(ack_subject: &'static str) -> Message {
    Message {
        subject: "x".into(),
        reply: Some(ack_subject.into()),
        payload: Default::default(),
        headers: None,
        status: None,
        description: None,
        length: 0,
    }
}

#[test]
fn two_silent_pulls_raise_suspicion() {
    let (mut consumer, now) = (pull_consumer(), monotonic());
    consumer.end_pull(408, "", now);
    assert!(!consumer.is_suspect);
    consumer.end_pull(408, "", now);
    assert!(consumer.is_suspect);
    consumer.receive(1, message("$JS.ACK.s.c.1.2.3.4.5"), monotonic());
    assert!(!consumer.is_suspect);
}

#[test]
fn lag_follows_deliveries_and_expired_pulls() {
    let all = Sum::default();
    let (mut consumer, now) = (pull_consumer(), monotonic());
    consumer.lag = all.add(0);
    consumer.receive(1, message("$JS.ACK.s.c.1.2.3.4.500"), monotonic());
    assert_eq!(all.get(), 500);
    consumer.receive(2, message("$JS.ACK.s.c.1.3.4.5.499"), monotonic());
    assert_eq!(all.get(), 499);
    // Another node of the service has received the others.
    consumer.end_pull(408, "", now);
    assert_eq!(all.get(), 0);
}

#[test]
fn consumer_that_does_not_pull_is_measured_from_time_to_time() {
    let (mut consumer, now) = (pull_consumer(), monotonic());
    let later = now + PULL_EXPIRY + Duration::from_secs(1);
    assert!(!consumer.should_measure(now), "the server has just reported");
    assert!(consumer.next_wake(now).is_some_and(|wake| wake <= later));
    assert!(consumer.should_measure(later) && !consumer.should_measure(later), "once");
    consumer.start_pull(10, later);
    assert!(!consumer.should_measure(later + PULL_EXPIRY * 2), "deliveries tell it");
    consumer.end_pull(408, "", later);
    consumer.status = ConsumerStatus::Checking;
    assert!(!consumer.should_measure(later + PULL_EXPIRY * 4), "it may not exist");
}

#[test]
fn pulls_are_limited_in_bytes_unless_for_a_large_message() {
    let (mut consumer, now) = (pull_consumer(), monotonic());
    assert_eq!(consumer.pull_size(10, now), Some(10));
    assert!(consumer.start_pull(10, now).ends_with(",\"max_bytes\":4194304}"));
    consumer.end_pull(409, "Message Size Exceeds MaxBytes", now);
    assert_eq!(consumer.outstanding(), 0);
    assert_eq!(consumer.pull_size(10, now), Some(1), "without a pause");
    assert_eq!(consumer.start_pull(1, now), "{\"batch\":1,\"expires\":15000000000}");
    assert_eq!(consumer.pull_size(10, now), None, "the message is not here yet");
    consumer.receive(1, message("$JS.ACK.s.c.1.2.3.4.5"), monotonic());
    consumer.received.clear();
    assert_eq!(consumer.pull_size(10, now), Some(10));
}

#[test]
fn consumer_that_holds_many_bytes_pulls_nothing() {
    let (mut consumer, now) = (pull_consumer(), monotonic());
    let held = consumer.held.add(MAX_HELD_BYTES / 2 - 1);
    assert!(!consumer.is_full() && consumer.is_half_full());
    let more = consumer.held.add(1);
    assert!(consumer.is_full());
    assert_eq!(consumer.pull_size(10, now), None);
    drop(more);
    assert_eq!(consumer.pull_size(10, now), Some(10));
    drop(held);
    assert!(!consumer.is_half_full());
}

#[test]
fn consumers_of_leased_shards_share_the_bytes() {
    let (mut consumer, now) = (pull_consumer(), monotonic());
    for (shards, most) in [(1, MAX_HELD_BYTES), (16, MAX_HELD_BYTES / 16), (1000, MIN_HELD_BYTES), (0, MAX_HELD_BYTES)]
    {
        consumer.share_bytes(shards);
        let pull = format!("\"max_bytes\":{}}}", most / 4);
        assert!(consumer.start_pull(1, now).ends_with(&pull), "{shards} shards");
        consumer.end_pull(408, "", now);
        let held = consumer.held.add(most / 2 - 1);
        assert_eq!((consumer.is_full(), consumer.pull_size(10, now)), (false, Some(10)), "{shards} shards");
        let more = consumer.held.add(1);
        assert_eq!((consumer.is_full(), consumer.pull_size(10, now)), (true, None), "{shards} shards");
        drop((held, more));
    }
}

#[test]
fn unchanged_outstanding_messages_mean_a_stall() {
    let mut consumer = pull_consumer();
    let outstanding = ConsumerState { pending: 3, delivered: 7, ..ConsumerState::default() };
    assert!(!consumer.has_stalled(outstanding));
    // The consumer has delivered since.
    assert!(!consumer.has_stalled(ConsumerState { delivered: 8, ..outstanding }));
    assert!(consumer.has_stalled(ConsumerState { delivered: 8, ..outstanding }));
    // Messages that arrive in the meantime are no delivery.
    assert!(consumer.has_stalled(ConsumerState { delivered: 8, pending: 9, ..outstanding }));
    let idle = ConsumerState { delivered: 8, ..ConsumerState::default() };
    assert!(!consumer.has_stalled(idle));
    assert!(!consumer.has_stalled(idle));
    // Messages in flight on this node do not count.
    consumer.handling = 1;
    assert!(!consumer.has_stalled(outstanding));
    assert!(!consumer.has_stalled(outstanding));
}

#[test]
fn decoded_envelopes_are_taken_in_parts_and_in_order() {
    let mut consumer = pull_consumer();
    assert!(consumer.take_decoded(5).is_none());
    let envelope = |id| {
        let (bank, name) = (Name::new("bank").unwrap(), Name::new("Opened").unwrap());
        let time = whizbang_core::clock::Timestamp::from_millis(0);
        Envelope::new(MessageId::from_u128(id), Kind::Event, bank, name, time)
    };
    consumer.decoded = Some(DecodedMessage { number: 7, envelopes: (1..=5).map(envelope).collect(), message: None });
    let mut taken = Vec::new();
    for most in [2, 1, 2] {
        assert!(!consumer.is_empty());
        let part = consumer.take_decoded(most).unwrap();
        assert_eq!((part.number, part.envelopes.len()), (7, most));
        taken.extend(part.envelopes.into_iter().map(|envelope| envelope.id));
    }
    assert_eq!(taken, (1..=5).map(MessageId::from_u128).collect::<Vec<_>>());
    assert!(consumer.is_empty());
    let message = Some(message("$JS.ACK.s.c.1.2.3.4.5"));
    consumer.decoded = Some(DecodedMessage { number: 8, envelopes: vec![envelope(6)], message });
    assert!(consumer.take_decoded(1).is_some_and(|whole| whole.message.is_some()));
}
