//! Routing, and integrity of the delivered messages.
//!
//! A route is found by the domain and shard of the addressee, or by subscriptions. Cards say which node has which of them.
//!
//! A case fails as well if a message reaches a node that it does not concern.

use futures_util::future::join_all;

use super::sample::{command, effects, event, shard};
use crate::bridge::node::{Received, TestNode, named, service};
use crate::bridge::{Fixture, SHARDS};
use whizbang_core::bridge::{LastPublished, Notification};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Codec, Envelope, MessageId, Name, ReplyMode, StoreId, shard_of};

/// A command is delivered to its owner; other owners and subscribers receive nothing.
pub async fn command_reaches_its_owner_only(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, service("bank").owning(named("bank"), SHARDS)).await;
    let shop = TestNode::start(
        fixture,
        service("shop").owning(named("shop"), SHARDS).subscribing(named("bank"), SHARDS, [named("Happened")]),
    )
    .await;
    shop.bridge.send(command(&shard("shop", 0), &shard("bank", 1), 1)).await.unwrap();
    bank.bridge.send(command(&shard("bank", 1), &shard("bank", 2), 1)).await.unwrap();
    bank.bridge.send(command(&shard("bank", 1), &shard("shop", 3), 1)).await.unwrap();
    bank.wait_until("both commands", |received| effects(&received.direct).len() == 2).await;
    shop.wait_until("the other command", |received| effects(&received.direct).len() == 1).await;
    bank.stop().await;
    shop.inspect(|received| assert!(received.events.is_empty() && effects(&received.direct).len() == 1));
    shop.stop().await;
}

/// All fields of an envelope arrive, with any text in keys and headers.
///
/// The id decides about duplicates, and the origin about the reply, so no field may be lost or altered.
pub async fn command_arrives_unchanged(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, service("bank").owning(named("bank"), SHARDS)).await;
    let mut sent = Vec::new();
    for (number, key) in
        ["ada", "a.b>*", " \r\n\t\0%25", "é€🦀", "$JS.API", "\u{202e}x", &"k".repeat(256)].iter().enumerate()
    {
        let to = shard("bank", shard_of(key, SHARDS));
        let mut envelope = command(&shard("bank", 0), &to, number as u64 + 1);
        envelope.key = (*key).to_owned();
        envelope.origin.as_mut().unwrap().key = (*key).to_owned();
        envelope.actor = Some(named("Transfer"));
        envelope.causation = Some(MessageId::from_u128(77));
        envelope.deadline = Some(Timestamp::from_millis(1_700_000_000_123));
        envelope.wants = ReplyMode::Rejection;
        envelope.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned());
        envelope.headers =
            vec![("tracestate".to_owned(), "a=b, c=d é".to_owned()), ("x-empty".to_owned(), String::new())];
        envelope.codec = Codec::Json;
        bank.bridge.send(envelope.clone()).await.unwrap();
        sent.push(envelope);
    }
    bank.wait_until("all commands", |received| effects(&received.direct).len() == sent.len()).await;
    bank.inspect(|received| {
        assert!(sent.iter().all(|envelope| received.direct.contains(envelope)), "{:?}", received.direct)
    });
    bank.stop().await;
}

/// A broker that keeps events tells the owner the last one of each shard and its store, whether it was published alone or together
/// with others.
pub async fn last_kept_event_names_its_store(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, service("bank").owning(named("bank"), SHARDS)).await;
    let store = StoreId::from_u128(7);
    let last = async |number| bank.bridge.last_published(&shard("bank", number)).await.unwrap();
    let of_store = |number, position| {
        let mut event = event(&shard("bank", number), position);
        event.origin.as_mut().unwrap().store = Some(store);
        event
    };
    bank.bridge.publish(of_store(1, 1)).await.unwrap();
    let alone = last(1).await;
    let sent = join_all((2..=50).map(|position| bank.bridge.publish(of_store(1, position)))).await;
    assert!(sent.iter().all(Result::is_ok), "{sent:?}");
    bank.bridge.publish(event(&shard("bank", 2), 3)).await.unwrap();
    if bank.bridge.keeps_events() {
        assert_eq!(alone, Some(LastPublished::new(1, store)));
        assert_eq!(last(1).await, Some(LastPublished::new(50, store)));
        assert_eq!(last(2).await, Some(LastPublished::new(3, None)));
    }
    assert_eq!(last(3).await, None);
    bank.stop().await;
}

/// An event is delivered to each service that subscribes to its domain, and to no other.
pub async fn event_reaches_every_subscribing_service(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, service("bank").owning(named("bank"), SHARDS)).await;
    let shop = TestNode::start(fixture, service("shop").subscribing(named("bank"), SHARDS, [named("Happened")])).await;
    let mail = TestNode::start(
        fixture,
        service("mail").subscribing(named("bank"), SHARDS, [named("Happened")]).owning(named("mail"), SHARDS),
    )
    .await;
    let other = TestNode::start(
        fixture,
        service("other").owning(named("other"), SHARDS).subscribing(named("mail"), SHARDS, [named("Happened")]),
    )
    .await;
    for number in 0..SHARDS {
        for position in 1..=25 {
            bank.bridge.publish(event(&shard("bank", number), position)).await.unwrap();
        }
    }
    for subscriber in [&shop, &mail] {
        subscriber.wait_until("all events", |received| effects(&received.events).len() == 100).await;
        subscriber.inspect(|received| assert!(received.direct.is_empty()));
    }
    for node in [&bank, &other] {
        node.inspect(|received| assert!(received.events.is_empty()));
    }
    for node in [bank, shop, mail, other] {
        node.stop().await;
    }
}

/// Services start in any order. A late subscriber gets earlier events from the log, so this case repeats the event.
///
/// No order of deployments is required.
pub async fn subscriber_may_start_before_its_source(fixture: &dyn Fixture) {
    let shop = TestNode::start(fixture, service("shop").subscribing(named("bank"), SHARDS, [named("Happened")])).await;
    let bank = TestNode::start(fixture, service("bank").owning(named("bank"), SHARDS)).await;
    let mut position = 0;
    shop.retry_until(
        "an event",
        || {
            position += 1;
            bank.bridge.publish(event(&shard("bank", 0), position))
        },
        |received| !received.events.is_empty(),
    )
    .await;
    shop.stop().await;
    bank.stop().await;
}

/// One of two nodes of a service receives a message, never both.
///
/// A message at both nodes would be handled twice, or refused by one of them.
pub async fn nodes_of_one_service_share_messages(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, service("bank").owning(named("bank"), SHARDS)).await;
    let [one, two] = [
        TestNode::start(
            fixture,
            service("shop").owning(named("shop"), SHARDS).subscribing(named("bank"), SHARDS, [named("Happened")]),
        )
        .await,
        TestNode::start(
            fixture,
            service("shop").owning(named("shop"), SHARDS).subscribing(named("bank"), SHARDS, [named("Happened")]),
        )
        .await,
    ];
    for sequence in 1..=100 {
        bank.bridge.send(command(&shard("bank", 0), &shard("shop", (sequence % 4) as u16), sequence)).await.unwrap();
        bank.bridge.publish(event(&shard("bank", (sequence % 4) as u16), sequence)).await.unwrap();
    }
    // Wait for the sum, which reveals a message that both nodes or no node received.
    let sum = || one.inspect(|received| (received.direct.len(), received.events.len()));
    two.retry_until(
        "all messages",
        || async { Ok(()) },
        |received| {
            let (direct, events) = sum();
            direct + received.direct.len() >= 100 && events + received.events.len() >= 100
        },
    )
    .await;
    let all = |list: fn(&Received) -> &Vec<Envelope>| {
        let mut received = one.inspect(|received| list(received).clone());
        received.extend(two.inspect(|received| list(received).clone()));
        (received.len(), effects(&received).len())
    };
    assert_eq!(all(|received| &received.direct), (100, 100));
    assert_eq!(all(|received| &received.events), (100, 100));
    for node in [bank, one, two] {
        node.stop().await;
    }
}

/// A watermark goes to the owner of the sending shard, the head of a log to its subscribers.
pub async fn notification_reaches_the_concerned_nodes(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, service("bank").owning(named("bank"), SHARDS)).await;
    let shop = TestNode::start(
        fixture,
        service("shop").owning(named("shop"), SHARDS).subscribing(named("bank"), SHARDS, [named("Happened")]),
    )
    .await;
    let mail = TestNode::start(fixture, service("mail").owning(named("mail"), SHARDS)).await;
    let committed = Notification::Committed { from: shard("bank", 1), to: shard("shop", 2), through: 9 };
    let head = Notification::Head { shard: shard("bank", 1), position: 5 };
    bank.retry_until(
        "the watermark",
        || shop.bridge.notify(committed.clone()),
        |received| received.notifications.contains(&committed),
    )
    .await;
    shop.retry_until(
        "the head",
        || bank.bridge.notify(head.clone()),
        |received| received.notifications.contains(&head),
    )
    .await;
    bank.inspect(|received| assert!(!received.notifications.contains(&head)));
    shop.inspect(|received| assert!(!received.notifications.contains(&committed)));
    mail.inspect(|received| assert!(received.notifications.is_empty()));
    for node in [bank, shop, mail] {
        node.stop().await;
    }
}

/// Names with all allowed characters, of maximum length, and names that would collide if they were concatenated.
///
/// A bridge that joins the names of service, domain and shard into one address needs a separator that no name contains.
pub async fn similar_names_do_not_collide(fixture: &dyn Fixture) {
    const LONG: &str = "aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffff_-09";
    let domains = ["a", "a_b", "a-b", "A", "b", "_", "-", "0", "events", "outside", LONG];
    let mut nodes = Vec::new();
    for domain in domains {
        nodes.push(
            TestNode::start(
                fixture,
                service(domain).owning(named(domain), SHARDS).subscribing(named(domain), SHARDS, [named("Happened")]),
            )
            .await,
        );
    }
    let first = nodes.first().unwrap();
    for (number, domain) in (1u64..).zip(domains) {
        first.bridge.send(command(&shard("a", 0), &shard(domain, 3), number)).await.unwrap();
        let node = nodes.get(number as usize - 1).unwrap();
        let mut event = event(&shard(domain, 3), number);
        event.name = Name::new(domain).unwrap();
        node.bridge.publish(event).await.unwrap();
    }
    for (number, node) in (1u64..).zip(&nodes) {
        node.wait_until("its own", |received| !received.direct.is_empty() && !received.events.is_empty()).await;
        node.inspect(|received| {
            assert!(effects(&received.direct).iter().all(|(_, sequence)| *sequence == number), "{:?}", received.direct);
            assert!(effects(&received.events).iter().all(|(_, sequence)| *sequence == number), "{:?}", received.events);
        });
    }
    for node in nodes {
        node.stop().await;
    }
}
