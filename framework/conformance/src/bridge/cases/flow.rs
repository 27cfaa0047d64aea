//! Many messages at once, their order, and nodes that are slow or stop.
//!
//! A bridge has a queue in each direction. The cases fill both, and check that they are bounded, ordered and drained.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};

use super::sample::{command, effects, event, external_command, shard};
use crate::bridge::node::{NodeBehavior, Received, TestNode, named, service};
use crate::bridge::{Fixture, SHARDS};
use whizbang_core::bridge::{AckOutcome, Bridge, BridgeError, Notification, Request, Response};
use whizbang_core::message::{Envelope, Kind};

/// Detaching loses nothing: messages accepted by `send` and `publish` are delivered.
///
/// A node that stops detaches last. Its relay has noted these messages as sent.
pub async fn message_sent_before_detaching_arrives(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, service("bank").owning(named("bank"), SHARDS)).await;
    let shop = TestNode::start(
        fixture,
        service("shop").owning(named("shop"), SHARDS).subscribing(named("bank"), SHARDS, [named("Happened")]),
    )
    .await;
    let sent: Vec<_> = (1..=200)
        .flat_map(|sequence| {
            [
                bank.bridge.send(command(&shard("bank", 0), &shard("shop", 0), sequence)),
                bank.bridge.publish(event(&shard("bank", 0), sequence)),
            ]
        })
        .collect();
    let (results, ()) = tokio::join!(join_all(sent), async { bank.bridge.detach().await.unwrap() });
    let accepted = results.iter().filter(|result| result.is_ok()).count();
    let arrived = |received: &Received| effects(&received.direct).len() + effects(&received.events).len();
    shop.wait_until("all accepted messages", |received| arrived(received) >= accepted).await;
    assert!(accepted > 0);
    shop.stop().await;
}

/// A bridge sends nothing before it is attached and after it is detached, and is attached only once.
///
/// An error is returned, so that a caller does not wait for an answer that cannot arrive.
pub async fn unattached_bridge_refuses_every_call(fixture: &dyn Fixture) {
    let bridge = fixture.bridge().await;
    let (bank, notification) = (shard("bank", 0), Notification::Head { shard: shard("bank", 0), position: 1 });
    let refused = async |bridge: &Arc<dyn Bridge>| {
        assert!(matches!(bridge.send(command(&bank, &bank, 1)).await, Err(BridgeError::Closed)));
        assert!(matches!(bridge.publish(event(&bank, 1)).await, Err(BridgeError::Closed)));
        let watermark = Request::Watermark { from: bank.clone(), to: bank.clone() };
        assert!(matches!(bridge.request(watermark, Duration::from_secs(1)).await, Err(BridgeError::Closed)));
        assert!(matches!(bridge.notify(notification.clone()).await, Err(BridgeError::Closed)));
        assert!(matches!(bridge.detach().await, Err(BridgeError::Closed)));
    };
    refused(&bridge).await;
    let node = TestNode::start(fixture, service("bank").owning(named("bank"), SHARDS)).await;
    node.bridge.send(command(&bank, &bank, 1)).await.unwrap();
    node.bridge.detach().await.unwrap();
    refused(&node.bridge).await;
}

/// A thousand messages are in flight each way at once.
///
/// Limits of the client library for open acknowledgements or requests show here.
pub async fn thousand_messages_in_flight_arrive(fixture: &dyn Fixture) {
    let responder = |request: Request| -> BoxFuture<'static, Response> {
        let Request::Command(envelope) = request else { return Box::pin(async { Response::watermark(0) }) };
        Box::pin(async move { Response::Reply(envelope.payload) })
    };
    let behavior = NodeBehavior { responder: Box::new(responder), ..NodeBehavior::default() };
    let bank = TestNode::start_with(fixture, service("bank").owning(named("bank"), SHARDS), behavior).await;
    let shop = TestNode::start(
        fixture,
        service("shop").owning(named("shop"), SHARDS).subscribing(named("bank"), SHARDS, [named("Happened")]),
    )
    .await;
    let (from, to) = (shard("bank", 0), shard("shop", 0));
    let sends = (1..=1000).map(|sequence| bank.bridge.send(command(&from, &to, sequence)));
    let publishes = (1..=1000).map(|position| bank.bridge.publish(event(&from, position)));
    let asks = (1..=1000)
        .map(|number| shop.bridge.request(Request::Command(external_command(&from, number)), Duration::from_secs(30)));
    let (sent, published, responses) = tokio::join!(join_all(sends), join_all(publishes), join_all(asks));
    sent.into_iter().chain(published).for_each(|result| result.unwrap());
    for (number, response) in (1u64..).zip(responses) {
        assert_eq!(response.unwrap(), Response::Reply(number.to_be_bytes().to_vec().into()));
    }
    shop.wait_until("all", |received| {
        effects(&received.direct).len() == 1000 && effects(&received.events).len() == 1000
    })
    .await;
    bank.stop().await;
    shop.stop().await;
}

/// Without faults, messages of one shard to another arrive in the order of the calls, awaited or not.
///
/// Nodes tolerate another order, by waiting for the missing message, but slowly.
pub async fn order_per_destination_is_preserved(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, service("bank").owning(named("bank"), SHARDS)).await;
    let shop = TestNode::start(
        fixture,
        service("shop").owning(named("shop"), SHARDS).subscribing(named("bank"), SHARDS, [named("Happened")]),
    )
    .await;
    let pairs: Vec<_> =
        (0..SHARDS).flat_map(|from| (0..SHARDS).map(move |to| (shard("bank", from), shard("shop", to)))).collect();
    let mut sends = Vec::new();
    for sequence in 1..=50 {
        sends.extend(pairs.iter().map(|(from, to)| bank.bridge.send(command(from, to, sequence))));
        sends.extend((0..SHARDS).map(|number| bank.bridge.publish(event(&shard("bank", number), sequence))));
    }
    join_all(sends).await.into_iter().for_each(|result| result.unwrap());
    let (commands, events) = (50 * pairs.len(), 50 * usize::from(SHARDS));
    shop.wait_until("all", |received| {
        effects(&received.direct).len() == commands && effects(&received.events).len() == events
    })
    .await;
    shop.inspect(|received| {
        for (from, to) in &pairs {
            let of_pair = |envelope: &&Envelope| {
                envelope.origin.as_ref().is_some_and(|origin| origin.shard == *from) && envelope.to.as_ref() == Some(to)
            };
            let sequences: Vec<_> = received
                .direct
                .iter()
                .filter(of_pair)
                .map(|envelope| envelope.origin.as_ref().unwrap().sequence)
                .collect();
            assert!(sequences.is_sorted(), "{from} -> {to}: {sequences:?}");
        }
        for number in 0..SHARDS {
            let of_shard =
                |envelope: &&Envelope| envelope.origin.as_ref().is_some_and(|origin| origin.shard.shard == number);
            let positions: Vec<_> = received
                .events
                .iter()
                .filter(of_shard)
                .map(|envelope| envelope.origin.as_ref().unwrap().sequence)
                .collect();
            assert!(positions.is_sorted(), "{number}: {positions:?}");
        }
    });
    bank.stop().await;
    shop.stop().await;
}

/// A slow node slows its senders down: it never handles more messages than its capacity.
///
/// Otherwise the memory of a slow node would grow with the speed of its senders.
pub async fn node_receives_no_more_than_its_capacity(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, service("bank").owning(named("bank"), SHARDS)).await;
    let behavior = NodeBehavior { capacity: 8, open: false, ..NodeBehavior::default() };
    let shop = TestNode::start_with(
        fixture,
        service("shop").owning(named("shop"), SHARDS).subscribing(named("bank"), SHARDS, [named("Happened")]),
        behavior,
    )
    .await;
    let sends = (1..=200).map(|sequence| bank.bridge.send(command(&shard("bank", 0), &shard("shop", 0), sequence)));
    let publishes = (1..=200).map(|position| bank.bridge.publish(event(&shard("bank", 0), position)));
    let (sent, published) = tokio::join!(join_all(sends), join_all(publishes));
    sent.into_iter().chain(published).for_each(|result| result.unwrap());
    shop.wait_until("as many messages as its capacity", |received| received.handling == 8).await;
    shop.open();
    shop.wait_until("all", |received| effects(&received.direct).len() == 200 && effects(&received.events).len() == 200)
        .await;
    shop.inspect(|received| assert_eq!(received.max_handling, 8));
    bank.stop().await;
    shop.stop().await;
}

/// A node that requests a retry gets the message again, and not in a tight loop.
///
/// A node requests a retry of a message that it cannot handle at the moment.
pub async fn retried_message_is_redelivered(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, service("bank").owning(named("bank"), SHARDS)).await;
    let handler = |envelope: &Envelope, received: &Received| {
        let list = if envelope.kind == Kind::Event { &received.events } else { &received.direct };
        let before = list.iter().filter(|known| known.id == envelope.id).count();
        if before < 3 { AckOutcome::Retry } else { AckOutcome::Ack }
    };
    let behavior = NodeBehavior { handler: Box::new(handler), ..NodeBehavior::default() };
    let shop = TestNode::start_with(
        fixture,
        service("shop").owning(named("shop"), SHARDS).subscribing(named("bank"), SHARDS, [named("Happened")]),
        behavior,
    )
    .await;
    let command = command(&shard("bank", 0), &shard("shop", 0), 1);
    bank.bridge.send(command.clone()).await.unwrap();
    bank.bridge.publish(event(&shard("bank", 0), 1)).await.unwrap();
    shop.wait_until("the fourth delivery", |received| received.direct.len() >= 4 && received.events.len() >= 4).await;
    shop.inspect(|received| assert!(received.direct.iter().all(|known| *known == command)));
    bank.stop().await;
    shop.stop().await;
}
