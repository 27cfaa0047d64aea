//! Many messages at once, their order, and nodes that are slow or go.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};

use super::sample::{command, effects, event, outside, shard};
use crate::bridge::{AckOutcome, Bridge, BridgeError, Notification, Request, Response};
use crate::message::{Envelope, Kind};
use crate::testing::bridge::node::{NodeBehavior, Seen, TestNode, service};
use crate::testing::bridge::{Fixture, SHARDS};

/// Detaching is no loss: what `send` and `publish` had taken is delivered.
pub async fn what_was_sent_before_detaching_arrives(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, service("bank").owning("bank")).await;
    let shop = TestNode::start(fixture, service("shop").owning("shop").taking("bank")).await;
    let sent: Vec<_> = (1..=200)
        .flat_map(|sequence| {
            [
                bank.bridge.send(command(&shard("bank", 0), &shard("shop", 0), sequence)),
                bank.bridge.publish(event(&shard("bank", 0), sequence)),
            ]
        })
        .collect();
    let (results, ()) = tokio::join!(join_all(sent), async { bank.bridge.detach().await.unwrap() });
    let taken = results.iter().filter(|result| result.is_ok()).count();
    shop.until("all that was taken", |seen| effects(&seen.direct).len() + effects(&seen.events).len() >= taken).await;
    assert!(taken > 0);
    shop.stop().await;
}

/// Before attaching and after detaching nothing is sent, and attaching happens once.
pub async fn a_bridge_that_is_not_attached_refuses(fixture: &dyn Fixture) {
    let bridge = fixture.bridge().await;
    let (bank, tidings) = (shard("bank", 0), Notification::Head { shard: shard("bank", 0), position: 1 });
    let refused = async |bridge: &Arc<dyn Bridge>| {
        assert!(matches!(bridge.send(command(&bank, &bank, 1)).await, Err(BridgeError::Closed)));
        assert!(matches!(bridge.publish(event(&bank, 1)).await, Err(BridgeError::Closed)));
        let watermark = Request::Watermark { from: bank.clone(), to: bank.clone() };
        assert!(matches!(bridge.request(watermark, Duration::from_secs(1)).await, Err(BridgeError::Closed)));
        assert!(matches!(bridge.notify(tidings.clone()).await, Err(BridgeError::Closed)));
        assert!(matches!(bridge.detach().await, Err(BridgeError::Closed)));
    };
    refused(&bridge).await;
    let node = TestNode::start(fixture, service("bank").owning("bank")).await;
    node.bridge.send(command(&bank, &bank, 1)).await.unwrap();
    node.bridge.detach().await.unwrap();
    refused(&node.bridge).await;
}

/// A thousand messages each way at once.
pub async fn a_thousand_in_flight_arrive(fixture: &dyn Fixture) {
    let answering = |asked: Request| -> BoxFuture<'static, Response> {
        let Request::Command(envelope) = asked else { return Box::pin(async { Response::watermark(0) }) };
        Box::pin(async move { Response::Reply(envelope.payload) })
    };
    let manners = NodeBehavior { answering: Box::new(answering), ..NodeBehavior::default() };
    let bank = TestNode::start_with(fixture, service("bank").owning("bank"), manners).await;
    let shop = TestNode::start(fixture, service("shop").owning("shop").taking("bank")).await;
    let (from, to) = (shard("bank", 0), shard("shop", 0));
    let sends = (1..=1000).map(|sequence| bank.bridge.send(command(&from, &to, sequence)));
    let publishes = (1..=1000).map(|position| bank.bridge.publish(event(&from, position)));
    let asks =
        (1..=1000).map(|number| shop.bridge.request(Request::Command(outside(&from, number)), Duration::from_secs(30)));
    let (sent, published, answers) = tokio::join!(join_all(sends), join_all(publishes), join_all(asks));
    sent.into_iter().chain(published).for_each(|result| result.unwrap());
    for (number, answer) in (1u64..).zip(answers) {
        assert_eq!(answer.unwrap(), Response::Reply(number.to_be_bytes().to_vec().into()));
    }
    shop.until("all", |seen| effects(&seen.direct).len() == 1000 && effects(&seen.events).len() == 1000).await;
    bank.stop().await;
    shop.stop().await;
}

/// While nothing goes wrong, what one shard sends to another comes in the order of the calls, awaited or not.
pub async fn order_is_kept_towards_each_destination(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, service("bank").owning("bank")).await;
    let shop = TestNode::start(fixture, service("shop").owning("shop").taking("bank")).await;
    let pairs: Vec<_> =
        (0..SHARDS).flat_map(|from| (0..SHARDS).map(move |to| (shard("bank", from), shard("shop", to)))).collect();
    let mut sends = Vec::new();
    for sequence in 1..=50 {
        sends.extend(pairs.iter().map(|(from, to)| bank.bridge.send(command(from, to, sequence))));
        sends.extend((0..SHARDS).map(|number| bank.bridge.publish(event(&shard("bank", number), sequence))));
    }
    join_all(sends).await.into_iter().for_each(|result| result.unwrap());
    let (commands, events) = (50 * pairs.len(), 50 * usize::from(SHARDS));
    shop.until("all", |seen| effects(&seen.direct).len() == commands && effects(&seen.events).len() == events).await;
    shop.look(|seen| {
        for (from, to) in &pairs {
            let of_pair = |envelope: &&Envelope| {
                envelope.origin.as_ref().is_some_and(|origin| origin.shard == *from) && envelope.to.as_ref() == Some(to)
            };
            let sequences: Vec<_> =
                seen.direct.iter().filter(of_pair).map(|envelope| envelope.origin.as_ref().unwrap().sequence).collect();
            assert!(sequences.is_sorted(), "{from} -> {to}: {sequences:?}");
        }
        for number in 0..SHARDS {
            let of_shard =
                |envelope: &&Envelope| envelope.origin.as_ref().is_some_and(|origin| origin.shard.shard == number);
            let positions: Vec<_> = seen
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

/// A slow node slows its courier: it never holds more messages than it has said it has room for.
pub async fn a_node_is_never_given_more_than_it_has_room_for(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, service("bank").owning("bank")).await;
    let manners = NodeBehavior { room: 8, open: false, ..NodeBehavior::default() };
    let shop = TestNode::start_with(fixture, service("shop").owning("shop").taking("bank"), manners).await;
    let sends = (1..=200).map(|sequence| bank.bridge.send(command(&shard("bank", 0), &shard("shop", 0), sequence)));
    let publishes = (1..=200).map(|position| bank.bridge.publish(event(&shard("bank", 0), position)));
    let (sent, published) = tokio::join!(join_all(sends), join_all(publishes));
    sent.into_iter().chain(published).for_each(|result| result.unwrap());
    shop.until("as much as there is room for", |seen| seen.handling == 8).await;
    shop.open();
    shop.until("all", |seen| effects(&seen.direct).len() == 200 && effects(&seen.events).len() == 200).await;
    shop.look(|seen| assert_eq!(seen.most, 8));
    bank.stop().await;
    shop.stop().await;
}

/// A node that says "later" gets the message again, and not at once for ever.
pub async fn what_was_not_taken_comes_again(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, service("bank").owning("bank")).await;
    let settling = |envelope: &Envelope, seen: &Seen| {
        let list = if envelope.kind == Kind::Event { &seen.events } else { &seen.direct };
        let before = list.iter().filter(|known| known.id == envelope.id).count();
        if before < 3 { AckOutcome::Retry } else { AckOutcome::Ack }
    };
    let manners = NodeBehavior { settling: Box::new(settling), ..NodeBehavior::default() };
    let shop = TestNode::start_with(fixture, service("shop").owning("shop").taking("bank"), manners).await;
    let command = command(&shard("bank", 0), &shard("shop", 0), 1);
    bank.bridge.send(command.clone()).await.unwrap();
    bank.bridge.publish(event(&shard("bank", 0), 1)).await.unwrap();
    shop.until("the fourth delivery", |seen| seen.direct.len() >= 4 && seen.events.len() >= 4).await;
    shop.look(|seen| assert!(seen.direct.iter().all(|known| *known == command)));
    bank.stop().await;
    shop.stop().await;
}
