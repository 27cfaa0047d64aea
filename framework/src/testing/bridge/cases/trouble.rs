//! Interruptions, sizes, and bytes that are no messages.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::sample::{command, event, outside, shard};
use crate::bridge::wire::Packet;
use crate::bridge::{BridgeError, Request, Response};
use crate::clock::monotonic;
use crate::message::{Envelope, MAX_PAYLOAD_BYTES};
use crate::testing::bridge::Fixture;
use crate::testing::bridge::node::{NodeBehavior, PATIENCE, TestNode, service};

/// After an interruption the node is told, and messages flow again.
pub async fn a_node_is_told_when_its_connection_is_back(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, service("bank").owning("bank")).await;
    let shop = TestNode::start(fixture, service("shop").owning("shop").taking("bank")).await;
    let calm = shop.look(|seen| seen.reconnected);
    fixture.interrupt().await;
    shop.until("the news", |seen| seen.reconnected > calm).await;
    let (mut sequence, mut position) = (0, 0);
    let mut send = || {
        sequence += 1;
        bank.bridge.send(command(&shard("bank", 0), &shard("shop", 0), sequence))
    };
    shop.insist("a command", &mut send, |seen| !seen.direct.is_empty()).await;
    let mut publish = || {
        position += 1;
        bank.bridge.publish(event(&shard("bank", 0), position))
    };
    shop.insist("an event", &mut publish, |seen| !seen.events.is_empty()).await;
    bank.stop().await;
    shop.stop().await;
}

/// One byte too much is refused with its sizes; the largest payload arrives, in each kind of message.
pub async fn what_is_too_large_is_refused_and_the_largest_arrives(fixture: &dyn Fixture) {
    let answering = |asked: Request| -> BoxFuture<'static, Response> {
        let Request::Command(envelope) = asked else { return Box::pin(async { Response::watermark(0) }) };
        Box::pin(async move { Response::Reply(envelope.payload) })
    };
    let manners = NodeBehavior { answering: Box::new(answering), ..NodeBehavior::default() };
    let bank = TestNode::start_with(fixture, service("bank").owning("bank").taking("bank"), manners).await;
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
    refused(bank.bridge.request(Request::Command(over(outside(&to, 1))), Duration::from_secs(10)).await.map(|_| ()));

    let full = |envelope| Envelope { payload: payload(MAX_PAYLOAD_BYTES), ..envelope };
    bank.bridge.send(full(command(&to, &to, 1))).await.unwrap();
    bank.bridge.publish(full(event(&to, 1))).await.unwrap();
    let answer = bank.bridge.request(Request::Command(full(outside(&to, 2))), Duration::from_secs(10)).await.unwrap();
    assert_eq!(answer, Response::Reply(payload(MAX_PAYLOAD_BYTES)));
    bank.until("both", |seen| seen.direct.len() == 1 && seen.events.len() == 1).await;
    bank.look(|seen| {
        assert!(seen.direct.iter().chain(&seen.events).all(|known| known.payload.len() == MAX_PAYLOAD_BYTES));
    });
    bank.stop().await;
}

/// Bytes that are no message do not reach the door, do not stop what comes behind them, and do not come again for ever.
pub async fn what_is_no_message_is_put_aside_and_blocks_nothing(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, service("bank").owning("bank")).await;
    let to = shard("bank", 0);
    let good = Packet::from_envelope(&outside(&to, 1)).unwrap();
    let mut hostile = vec![Packet::default()];
    hostile.push(Packet { headers: Vec::new(), payload: Bytes::from_static(b"\0\xff nothing") });
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
    // Without a destination in its headers a command is one all the same: the subject says where it goes.
    let fine = hostile.iter().filter(|packet| packet.envelope().is_ok()).count();
    let bad = hostile.len() - fine;
    for packet in hostile {
        fixture.inject(to.clone(), packet).await;
    }
    bank.bridge.send(command(&to, &to, 1)).await.unwrap();
    bank.until("the good one", |seen| seen.direct.iter().any(|known| known.origin.is_some())).await;
    bank.insist("what was put aside", || async { Ok(()) }, |_| true).await;
    let start = monotonic();
    while fixture.refused().await < bad && start.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(fixture.refused().await, bad);
    bank.look(|seen| assert_eq!(seen.direct.len(), fine + 1, "{:?}", seen.direct));
    bank.stop().await;
}
