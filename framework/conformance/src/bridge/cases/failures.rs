//! Interruptions, size limits and invalid messages.
//!
//! Each case provokes one failure through the [fixture](crate::bridge::Fixture), and checks both what callers are told and
//! that later messages still arrive.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::sample::{command, event, external_command, shard};
use crate::bridge::node::{ARRIVAL_TIMEOUT, NodeBehavior, TestNode, named, service};
use crate::bridge::{Fixture, SHARDS};
use whizbang_core::bridge::{BridgeError, Request, Response};
use whizbang_core::clock::monotonic;
use whizbang_core::message::{Envelope, MAX_PAYLOAD_BYTES};
use whizbang_wire::Packet;

/// After an interruption the node is notified, and messages flow again.
///
/// The node then repeats the messages that may have been lost in between.
pub async fn node_is_notified_of_a_reconnection(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, service("bank").owning(named("bank"), SHARDS)).await;
    let shop = TestNode::start(
        fixture,
        service("shop").owning(named("shop"), SHARDS).subscribing(named("bank"), SHARDS, [named("Happened")]),
    )
    .await;
    let calm = shop.inspect(|received| received.reconnected);
    fixture.interrupt().await;
    shop.wait_until("the reconnection", |received| received.reconnected > calm).await;
    let (mut sequence, mut position) = (0, 0);
    let mut send = || {
        sequence += 1;
        bank.bridge.send(command(&shard("bank", 0), &shard("shop", 0), sequence))
    };
    shop.retry_until("a command", &mut send, |received| !received.direct.is_empty()).await;
    let mut publish = || {
        position += 1;
        bank.bridge.publish(event(&shard("bank", 0), position))
    };
    shop.retry_until("an event", &mut publish, |received| !received.events.is_empty()).await;
    bank.stop().await;
    shop.stop().await;
}

/// A payload one byte too large is refused with its sizes; the maximum payload arrives, in each kind of message.
///
/// A message that is dropped without an error would be sent again and again.
pub async fn oversize_is_refused_and_maximum_size_arrives(fixture: &dyn Fixture) {
    let responder = |request: Request| -> BoxFuture<'static, Response> {
        let Request::Command(envelope) = request else { return Box::pin(async { Response::watermark(0) }) };
        Box::pin(async move { Response::Reply(envelope.payload) })
    };
    let behavior = NodeBehavior { responder: Box::new(responder), ..NodeBehavior::default() };
    let bank = TestNode::start_with(
        fixture,
        service("bank").owning(named("bank"), SHARDS).subscribing(named("bank"), SHARDS, [named("Happened")]),
        behavior,
    )
    .await;
    let (to, payload) = (shard("bank", 0), |bytes| Bytes::from(vec![9; bytes]));
    let over = |envelope| Envelope { payload: payload(MAX_PAYLOAD_BYTES + 1), ..envelope };
    let refused = |result: Result<(), BridgeError>| {
        assert!(
            matches!(result, Err(BridgeError::Oversize { bytes, limit }) if bytes > limit && limit == MAX_PAYLOAD_BYTES),
            "{result:?}"
        );
    };
    refused(bank.bridge.send(over(command(&to, &to, 1))).await);
    refused(bank.bridge.publish(over(event(&to, 1))).await);
    refused(
        bank.bridge
            .request(Request::Command(over(external_command(&to, 1))), Duration::from_secs(10))
            .await
            .map(|_| ()),
    );

    let full = |envelope| Envelope { payload: payload(MAX_PAYLOAD_BYTES), ..envelope };
    bank.bridge.send(full(command(&to, &to, 1))).await.unwrap();
    bank.bridge.publish(full(event(&to, 1))).await.unwrap();
    let response =
        bank.bridge.request(Request::Command(full(external_command(&to, 2))), Duration::from_secs(10)).await.unwrap();
    assert_eq!(response, Response::Reply(payload(MAX_PAYLOAD_BYTES)));
    bank.wait_until("both", |received| received.direct.len() == 1 && received.events.len() == 1).await;
    bank.inspect(|received| {
        assert!(received.direct.iter().chain(&received.events).all(|known| known.payload.len() == MAX_PAYLOAD_BYTES));
    });
    bank.stop().await;
}

/// Invalid messages do not reach the node, do not stop the messages after them, and are not redelivered.
///
/// Any client of the broker can write such a message, and one that is redelivered forever would use up the capacity of
/// its owner.
pub async fn invalid_message_is_refused_and_blocks_nothing(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, service("bank").owning(named("bank"), SHARDS)).await;
    let to = shard("bank", 0);
    let good = Packet::from_envelope(&external_command(&to, 1)).unwrap();
    let mut hostile = vec![Packet::default()];
    hostile.push(Packet { headers: Vec::new(), payload: Bytes::from_static(b"\0\xff noise") });
    for (name, value) in
        [("ce-id", "1"), ("ce-type", "bank.>"), ("ce-kind", "Order"), ("ce-partitionkey", "bank/99999")]
    {
        let mut packet = good.clone();
        packet.headers.retain(|(known, _)| known != name);
        hostile.push(packet.clone());
        packet.headers.push((Cow::Borrowed(name), value.to_owned()));
        hostile.push(packet);
    }
    let mut doubled = good.clone();
    doubled.headers.extend(good.headers.clone());
    hostile.push(doubled);
    // A command without a destination in its headers is valid: the subject contains the destination.
    let fine = hostile.iter().filter(|packet| packet.envelope().is_ok()).count();
    let bad = hostile.len() - fine;
    for packet in hostile {
        fixture.inject(to.clone(), packet).await;
    }
    bank.bridge.send(command(&to, &to, 1)).await.unwrap();
    bank.wait_until("the good one", |received| received.direct.iter().any(|known| known.origin.is_some())).await;
    bank.retry_until("the refused messages", || async { Ok(()) }, |_| true).await;
    let start = monotonic();
    while fixture.refused().await < bad && start.elapsed() < ARRIVAL_TIMEOUT {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(fixture.refused().await, bad);
    bank.inspect(|received| assert_eq!(received.direct.len(), fine + 1, "{:?}", received.direct));
    bank.stop().await;
}
