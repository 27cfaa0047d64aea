//! Leased shards: their messages follow the owner, and an earlier owner cannot disturb a later one.
//!
//! The nodes of a service share the shards by leases in their store; here the cases give the shards to test nodes.
//!
//! An epoch numbers the takeovers of a shard. Every owner receives under a greater epoch than the one before it. A bridge
//! must refuse a smaller epoch, so that a paused process which wakes up late cannot receive again.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};

use super::sample::{command, effects, event, external_command, shard};
use crate::bridge::node::{ARRIVAL_TIMEOUT, NodeBehavior, Received, TestNode, named, service};
use crate::bridge::{Fixture, SHARDS};
use whizbang_core::bridge::{BridgeError, NodeCard, Notification, Request, Response, StoreCard};
use whizbang_core::clock::monotonic;
use whizbang_core::message::{Envelope, Run, ShardId, StoreId};

/// The card of a node that shares the shards of the domain `shop`.
fn shop() -> NodeCard {
    exclusive_shop().sharing_shards()
}

/// Returns the card of a node that owns the domain `shop` alone, and subscribes to the bank.
fn exclusive_shop() -> NodeCard {
    service("shop").owning(named("shop"), SHARDS).subscribing(named("bank"), SHARDS, [named("Happened")])
}

/// Returns the card of the sending service, which shares nothing.
fn bank() -> NodeCard {
    service("bank").owning(named("bank"), SHARDS)
}

/// Returns a start on a store.
fn start(store: u128, epoch: u64) -> StoreCard {
    StoreCard::new(StoreId::from_u128(store), Run { epoch, nonce: epoch })
}

/// Returns a behavior that answers a command with its payload, and every other request with watermark 9.
fn echoing() -> NodeBehavior {
    let responder = |request: Request| -> BoxFuture<'static, Response> {
        let Request::Command(envelope) = request else { return Box::pin(async { Response::watermark(9) }) };
        Box::pin(async move { Response::Reply(envelope.payload) })
    };
    NodeBehavior { responder: Box::new(responder), ..NodeBehavior::default() }
}

/// Returns the sequences of the received commands for a shard, in the order of their arrival.
fn sequences(node: &TestNode, to: &ShardId) -> Vec<u64> {
    node.inspect(|received| sequences_in(received, to))
}

/// Returns the sequences of the received commands for a shard, in the order of their arrival.
fn sequences_in(received: &Received, to: &ShardId) -> Vec<u64> {
    let of_shard = |envelope: &Envelope| {
        let origin = envelope.origin.as_ref().filter(|_| envelope.to.as_ref() == Some(to))?;
        Some(origin.sequence)
    };
    received.direct.iter().filter_map(of_shard).collect()
}

/// Waits until `holds`, which may read several nodes.
async fn until(node: &TestNode, what: &str, holds: impl Fn() -> bool) {
    let start = monotonic();
    while !holds() {
        assert!(start.elapsed() < ARRIVAL_TIMEOUT, "{what}: not within {ARRIVAL_TIMEOUT:?}");
        node.wait_for_message(Duration::from_millis(10)).await;
    }
}

/// Sends commands from shard 0 of the bank, all at once, and waits until the bridge has accepted each.
async fn send(bank: &TestNode, to: &ShardId, numbers: std::ops::RangeInclusive<u64>) {
    let from = shard("bank", 0);
    let sends = numbers.map(|sequence| bank.bridge.send(command(&from, to, sequence)));
    join_all(sends).await.into_iter().for_each(|sent| sent.unwrap());
}

/// Commands, requests and notifications for a shard reach its owner and no other node of the service.
///
/// A message that reaches another node would have to be passed on, or would fail.
pub async fn owner_alone_receives_a_leased_shard(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, bank()).await;
    let [one, two] = [
        TestNode::start_with(fixture, shop(), echoing()).await,
        TestNode::start_with(fixture, shop(), echoing()).await,
    ];
    let owned =
        [(&one, shard("shop", 0)), (&two, shard("shop", 1)), (&one, shard("shop", 2)), (&two, shard("shop", 3))];
    for (node, shard) in &owned {
        node.bridge.own(shard, 1).await.unwrap();
        // A repeated call changes nothing.
        node.bridge.own(shard, 1).await.unwrap();
    }
    let from = shard("bank", 1);
    for (node, to) in &owned {
        send(&bank, to, 1..=20).await;
        node.wait_until("its commands", |received| sequences_in(received, to).len() >= 20).await;
        let asked = external_command(to, 5);
        let reply = Response::Reply(asked.payload.clone());
        let unaddressed = Envelope { to: None, ..asked.clone() };
        for request in [Request::Command(asked), Request::Command(unaddressed)] {
            assert_eq!(bank.bridge.request(request, Duration::from_secs(10)).await.unwrap(), reply);
        }
        for request in [
            Request::Watermark { from: from.clone(), to: to.clone() },
            Request::Sent { from: from.clone(), to: to.clone(), through: 3 },
            Request::Events { shard: to.clone(), after: 0, limit: 1 },
            Request::Outbox { from: to.clone(), to: from.clone(), after: 0, limit: 1 },
        ] {
            assert_eq!(bank.bridge.request(request, Duration::from_secs(10)).await.unwrap(), Response::watermark(9));
        }
        let committed = Notification::Committed { from: to.clone(), to: from.clone(), through: 7 };
        node.retry_until(
            "the watermark",
            || bank.bridge.notify(committed.clone()),
            |received| received.notifications.contains(&committed),
        )
        .await;
    }
    for (node, to) in &owned {
        let other = if std::ptr::eq(*node, &one) { &two } else { &one };
        assert_eq!(sequences(node, to).len(), 20);
        assert!(sequences(other, to).is_empty());
        other.inspect(|received| {
            let concerns = |notification: &Notification| matches!(notification, Notification::Committed { from, .. } if from == to);
            assert!(!received.notifications.iter().any(concerns));
        });
    }
    for node in [&one, &two] {
        node.inspect(|received| assert_eq!(received.requests.len(), 12, "{:?}", received.requests));
    }
    for node in [bank, one, two] {
        node.stop().await;
    }
}

/// While no node owns a shard, its commands wait and its requests fail at once, as one that the caller repeats.
///
/// A command is not lost during a failover. A request has a caller that waits, and repeating it is faster than waiting
/// for a lease.
pub async fn message_waits_for_the_next_owner(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, bank()).await;
    let one = TestNode::start_with(fixture, shop(), echoing()).await;
    let to = shard("shop", 1);
    let refused = async || {
        let asked = Request::Command(external_command(&to, 5));
        bank.bridge.request(asked, Duration::from_secs(30)).await.unwrap_err()
    };
    let error = refused().await;
    assert!(matches!(&error, BridgeError::NoOwner { .. }) && error.is_transient(), "{error:?}");
    send(&bank, &to, 1..=20).await;
    one.inspect(|received| assert!(received.direct.is_empty()));
    one.bridge.own(&to, 1).await.unwrap();
    one.wait_until("its commands", |received| received.direct.len() >= 20).await;
    one.bridge.disown(&to).await;
    send(&bank, &to, 21..=40).await;
    let error = refused().await;
    assert!(matches!(&error, BridgeError::NoOwner { .. }), "{error:?}");
    one.inspect(|received| assert_eq!(received.direct.len(), 20));
    one.bridge.own(&to, 2).await.unwrap();
    one.wait_until("its commands", |received| received.direct.len() >= 40).await;
    assert_eq!(sequences(&one, &to), Vec::from_iter(1..=40));
    // Disowning a shard that is not received does nothing.
    one.bridge.disown(&shard("shop", 2)).await;
    bank.stop().await;
    one.stop().await;
}

/// Messages that the earlier owner has acknowledged are not redelivered to the next one.
///
/// A redelivery would be recognized as a duplicate, but a failover is the time at which the next owner has most to do.
pub async fn moved_shard_redelivers_nothing_acknowledged(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, bank()).await;
    let [one, two] = [TestNode::start(fixture, shop()).await, TestNode::start(fixture, shop()).await];
    let to = shard("shop", 0);
    one.bridge.own(&to, 1).await.unwrap();
    send(&bank, &to, 1..=40).await;
    one.wait_until("its commands", |received| received.direct.len() >= 40).await;
    one.bridge.disown(&to).await;
    two.bridge.own(&to, 2).await.unwrap();
    send(&bank, &to, 41..=60).await;
    two.wait_until("its commands", |received| effects(&received.direct).len() >= 20).await;
    assert_eq!(sequences(&one, &to), Vec::from_iter(1..=40));
    assert_eq!(sequences(&two, &to), Vec::from_iter(41..=60));
    for node in [bank, one, two] {
        node.stop().await;
    }
}

/// A shard is handed over again and again while commands are sent: each arrives, and hardly one arrives again.
///
/// A lost command would stay in the outbox of its sender until the relay notices, and hold up all later commands of its
/// shard.
pub async fn moves_under_load_lose_nothing(fixture: &dyn Fixture) {
    let repeated = move_under_load(fixture, true).await;
    // A command that is being handled at one of the moves is not acknowledged yet.
    assert!(repeated <= 50, "{repeated} deliveries were repetitions");
}

/// The same with owners that do not respond any longer when the next one takes the shard: each command arrives.
///
/// Repetitions are not limited here: the earlier owner had no chance to acknowledge.
pub async fn takeovers_under_load_lose_nothing(fixture: &dyn Fixture) {
    move_under_load(fixture, false).await;
}

/// Moves a shard between two nodes while commands are sent to it. Returns the number of repeated deliveries.
async fn move_under_load(fixture: &dyn Fixture, are_handed_over: bool) -> u64 {
    const COMMANDS: u64 = 1000;
    let bank = TestNode::start(fixture, bank()).await;
    let nodes = [TestNode::start(fixture, shop()).await, TestNode::start(fixture, shop()).await];
    let to = shard("shop", 3);
    let [one, two] = &nodes;
    one.bridge.own(&to, 1).await.unwrap();
    let sending = async {
        for number in 1..=COMMANDS {
            send(&bank, &to, number..=number).await;
        }
    };
    let arrived = || {
        let all: BTreeSet<_> = nodes.iter().flat_map(|node| sequences(node, &to)).collect();
        all.len() as u64
    };
    let moving = async {
        for epoch in 2..=12 {
            let (old, new) = if epoch % 2 == 0 { (one, two) } else { (two, one) };
            let before = arrived();
            until(old, "some commands", || arrived() > before.min(COMMANDS - 1)).await;
            if are_handed_over {
                old.bridge.disown(&to).await;
            }
            new.bridge.own(&to, epoch).await.unwrap();
            // An earlier owner that notices the move.
            old.bridge.disown(&to).await;
        }
    };
    tokio::join!(sending, moving);
    until(two, "all commands", || arrived() >= COMMANDS).await;
    let received: usize = nodes.iter().map(|node| node.inspect(|received| received.direct.len())).sum();
    let repeated = received as u64 - arrived();
    bank.stop().await;
    for node in nodes {
        node.stop().await;
    }
    repeated
}

/// The messages that an earlier owner has received and not acknowledged are delivered to the next owner at once, whether the
/// earlier one has disowned the shard or does not respond any longer.
///
/// Otherwise they would arrive only when the broker's time for an acknowledgement has passed.
pub async fn unacknowledged_messages_follow_the_shard(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, bank()).await;
    let busy = || NodeBehavior { capacity: 8, open: false, ..NodeBehavior::default() };
    let [one, two, three] = [
        TestNode::start_with(fixture, shop(), busy()).await,
        TestNode::start_with(fixture, shop(), busy()).await,
        TestNode::start(fixture, shop()).await,
    ];
    let to = shard("shop", 2);
    one.bridge.own(&to, 1).await.unwrap();
    send(&bank, &to, 1..=50).await;
    one.wait_until("as many as it handles", |received| received.handling == 8).await;
    // The first owner is paused: it disowns nothing.
    two.bridge.own(&to, 2).await.unwrap();
    two.wait_until("as many as it handles", |received| received.handling == 8).await;
    two.bridge.disown(&to).await;
    three.bridge.own(&to, 3).await.unwrap();
    three.wait_until("all", |received| effects(&received.direct).len() >= 50).await;
    assert_eq!(sequences(&three, &to).len(), 50);
    assert_eq!(sequences(&two, &to), sequences(&one, &to));
    one.open();
    two.open();
    for node in [bank, one, two, three] {
        node.stop().await;
    }
}

/// Acknowledgements, `disown` and `own` of an earlier owner that arrive after a later owner has taken the shard.
///
/// They arrive after a pause of the process, which may last longer than a lease.
pub async fn late_calls_of_an_earlier_owner_change_nothing(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, bank()).await;
    let closed = || NodeBehavior { open: false, ..NodeBehavior::default() };
    let [one, two] =
        [TestNode::start_with(fixture, shop(), closed()).await, TestNode::start_with(fixture, shop(), closed()).await];
    let to = shard("shop", 0);
    one.bridge.own(&to, 4).await.unwrap();
    send(&bank, &to, 1..=5).await;
    one.wait_until("its commands", |received| received.handling == 5).await;
    two.bridge.own(&to, 7).await.unwrap();
    two.wait_until("the same commands", |received| received.handling == 5).await;
    // The first owner acknowledges all of them now, and disowns the shard.
    one.open();
    one.wait_until("the end of its work", |received| received.handling == 0).await;
    one.bridge.disown(&to).await;
    // It also takes the shard again with its old epoch, which is refused.
    for epoch in [4, 6] {
        assert!(one.bridge.own(&to, epoch).await.is_err(), "epoch {epoch}");
    }
    one.bridge.disown(&to).await;
    send(&bank, &to, 6..=10).await;
    two.wait_until("further commands", |received| received.handling == 10).await;
    assert_eq!(sequences(&one, &to), Vec::from_iter(1..=5));
    // The second owner has acknowledged nothing, so everything is left for the next one.
    one.bridge.own(&to, 8).await.unwrap();
    one.wait_until("all commands", |received| received.direct.len() >= 15).await;
    assert_eq!(sequences(&one, &to), Vec::from_iter((1..=5).chain(1..=10)));
    two.open();
    two.bridge.disown(&to).await;
    send(&bank, &to, 11..=12).await;
    one.wait_until("further commands", |received| received.direct.len() >= 17).await;
    for node in [bank, one, two] {
        node.stop().await;
    }
}

/// Each node of a service with leased shards receives each event and head, because each of its shards has watermarks of its own.
pub async fn every_node_with_leased_shards_receives_events(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, bank()).await;
    let card = || shop().subscribing(named("shop"), SHARDS, [named("Happened")]);
    let [one, two] = [TestNode::start(fixture, card()).await, TestNode::start(fixture, card()).await];
    let mail = TestNode::start(fixture, service("mail").subscribing(named("bank"), SHARDS, [named("Happened")])).await;
    for position in 1..=100 {
        bank.bridge.publish(event(&shard("bank", (position % u64::from(SHARDS)) as u16), position)).await.unwrap();
    }
    for node in [&one, &two, &mail] {
        node.wait_until("all events", |received| effects(&received.events).len() >= 100).await;
        node.inspect(|received| assert_eq!(received.events.len(), 100));
    }
    // An event of the own domain reaches the other nodes; its own subscribers have it already.
    let own = shard("shop", 2);
    one.bridge.own(&own, 1).await.unwrap();
    one.bridge.publish(event(&own, 1)).await.unwrap();
    two.wait_until("the event of the other node", |received| received.events.len() >= 101).await;
    let head = Notification::Head { shard: shard("bank", 1), position: 5 };
    for node in [&one, &two] {
        node.retry_until(
            "the head",
            || bank.bridge.notify(head.clone()),
            |received| received.notifications.contains(&head),
        )
        .await;
    }
    for node in [bank, one, two, mail] {
        node.stop().await;
    }
}

/// A claim admits every node with leased shards on the same store, and no other node. A node that leaves does not release it.
///
/// A claim keeps two services with different stores from owning one domain.
pub async fn nodes_with_one_store_share_its_claim(fixture: &dyn Fixture) {
    let one = TestNode::start(fixture, shop().store(start(1, 1))).await;
    let two = TestNode::start(fixture, shop().store(start(1, 2))).await;
    let refused = async |card: NodeCard| {
        let bridge = fixture.bridge().await;
        let attached = TestNode::attach(bridge, card, NodeBehavior::default()).await;
        assert!(matches!(attached.map(drop), Err(BridgeError::Claimed(_))));
    };
    let rivals = [shop().store(start(2, 3)), exclusive_shop().store(start(2, 3)), exclusive_shop().store(start(1, 3))];
    for card in &rivals {
        refused(card.clone()).await;
    }
    two.stop().await;
    for card in &rivals {
        refused(card.clone()).await;
    }
    let three = TestNode::start(fixture, shop().store(start(1, 3))).await;
    one.stop().await;
    refused(shop().store(start(2, 3))).await;
    let to = shard("shop", 0);
    three.bridge.own(&to, 1).await.unwrap();
    three.bridge.send(command(&to, &to, 1)).await.unwrap();
    three.wait_until("its command", |received| received.direct.len() == 1).await;
    three.stop().await;
}
