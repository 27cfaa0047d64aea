//! Who gets what, and that it arrives as it was sent.

use super::sample::{command, effects, event, shard};
use crate::bridge::Notification;
use crate::clock::Timestamp;
use crate::message::{Codec, Envelope, MessageId, Name, ReplyMode, shard_of};
use crate::testing::bridge::node::{Seen, TestNode, named, service};
use crate::testing::bridge::{Fixture, SHARDS};

/// A command is sent to one owner; other owners and subscribers see nothing of it.
pub async fn a_command_reaches_its_owner_and_nobody_else(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, service("bank").owning("bank")).await;
    let shop = TestNode::start(fixture, service("shop").owning("shop").taking("bank")).await;
    shop.bridge.send(command(&shard("shop", 0), &shard("bank", 1), 1)).await.unwrap();
    bank.bridge.send(command(&shard("bank", 1), &shard("bank", 2), 1)).await.unwrap();
    bank.bridge.send(command(&shard("bank", 1), &shard("shop", 3), 1)).await.unwrap();
    bank.until("both commands", |seen| effects(&seen.direct).len() == 2).await;
    shop.until("the other command", |seen| effects(&seen.direct).len() == 1).await;
    bank.stop().await;
    shop.look(|seen| assert!(seen.events.is_empty() && effects(&seen.direct).len() == 1));
    shop.stop().await;
}

/// All fields of an envelope arrive, whatever text is in keys and headers.
pub async fn a_command_arrives_as_it_was_sent(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, service("bank").owning("bank")).await;
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
    bank.until("all commands", |seen| effects(&seen.direct).len() == sent.len()).await;
    bank.look(|seen| assert!(sent.iter().all(|envelope| seen.direct.contains(envelope)), "{:?}", seen.direct));
    bank.stop().await;
}

/// An event goes to each service that takes its domain, and to no other.
pub async fn an_event_reaches_every_subscribing_service(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, service("bank").owning("bank")).await;
    let shop = TestNode::start(fixture, service("shop").taking("bank")).await;
    let mail = TestNode::start(fixture, service("mail").taking("bank").owning("mail")).await;
    let other = TestNode::start(fixture, service("other").owning("other").taking("mail")).await;
    for number in 0..SHARDS {
        for position in 1..=25 {
            bank.bridge.publish(event(&shard("bank", number), position)).await.unwrap();
        }
    }
    for subscriber in [&shop, &mail] {
        subscriber.until("all events", |seen| effects(&seen.events).len() == 100).await;
        subscriber.look(|seen| assert!(seen.direct.is_empty()));
    }
    for node in [&bank, &other] {
        node.look(|seen| assert!(seen.events.is_empty()));
    }
    for node in [bank, shop, mail, other] {
        node.stop().await;
    }
}

/// Services start in any order. What was published before a subscriber knew the source it gets from the log.
pub async fn a_subscriber_may_start_before_its_source(fixture: &dyn Fixture) {
    let shop = TestNode::start(fixture, service("shop").taking("bank")).await;
    let bank = TestNode::start(fixture, service("bank").owning("bank")).await;
    let mut position = 0;
    shop.insist(
        "an event",
        || {
            position += 1;
            bank.bridge.publish(event(&shard("bank", 0), position))
        },
        |seen| !seen.events.is_empty(),
    )
    .await;
    shop.stop().await;
    bank.stop().await;
}

/// Of two nodes of one service one gets a message, not both.
pub async fn nodes_of_one_service_share_the_work(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, service("bank").owning("bank")).await;
    let [one, two] = [
        TestNode::start(fixture, service("shop").owning("shop").taking("bank")).await,
        TestNode::start(fixture, service("shop").owning("shop").taking("bank")).await,
    ];
    for sequence in 1..=100 {
        bank.bridge.send(command(&shard("bank", 0), &shard("shop", (sequence % 4) as u16), sequence)).await.unwrap();
        bank.bridge.publish(event(&shard("bank", (sequence % 4) as u16), sequence)).await.unwrap();
    }
    // Each waits for the sum, so that a message both got or neither got is seen.
    let sum = || one.look(|seen| (seen.direct.len(), seen.events.len()));
    two.insist(
        "all messages",
        || async { Ok(()) },
        |seen| {
            let (direct, events) = sum();
            direct + seen.direct.len() >= 100 && events + seen.events.len() >= 100
        },
    )
    .await;
    let all = |list: fn(&Seen) -> &Vec<Envelope>| {
        let mut seen = one.look(|seen| list(seen).clone());
        seen.extend(two.look(|seen| list(seen).clone()));
        (seen.len(), effects(&seen).len())
    };
    assert_eq!(all(|seen| &seen.direct), (100, 100));
    assert_eq!(all(|seen| &seen.events), (100, 100));
    for node in [bank, one, two] {
        node.stop().await;
    }
}

/// A watermark goes to the sender's owner, the head of a log to its subscribers.
pub async fn tidings_reach_those_they_concern(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, service("bank").owning("bank")).await;
    let shop = TestNode::start(fixture, service("shop").owning("shop").taking("bank")).await;
    let mail = TestNode::start(fixture, service("mail").owning("mail")).await;
    let committed = Notification::Committed { from: shard("bank", 1), to: shard("shop", 2), through: 9 };
    let head = Notification::Head { shard: shard("bank", 1), position: 5 };
    bank.insist("the watermark", || shop.bridge.notify(committed.clone()), |seen| seen.told.contains(&committed)).await;
    shop.insist("the head", || bank.bridge.notify(head.clone()), |seen| seen.told.contains(&head)).await;
    bank.look(|seen| assert!(!seen.told.contains(&head)));
    shop.look(|seen| assert!(!seen.told.contains(&committed)));
    mail.look(|seen| assert!(seen.told.is_empty()));
    for node in [bank, shop, mail] {
        node.stop().await;
    }
}

/// Names with all allowed characters, of full length, and such as would run into each other if they were glued together.
pub async fn names_that_look_alike_stay_apart(fixture: &dyn Fixture) {
    const LONG: &str = "aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffff_-09";
    let domains = ["a", "a_b", "a-b", "A", "b", "_", "-", "0", "events", "outside", LONG];
    let mut nodes = Vec::new();
    for domain in domains {
        nodes.push(TestNode::start(fixture, service(domain).owning(domain).taking(domain)).await);
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
        node.until("its own", |seen| !seen.direct.is_empty() && !seen.events.is_empty()).await;
        node.look(|seen| {
            assert!(effects(&seen.direct).iter().all(|(_, sequence)| *sequence == number), "{:?}", seen.direct);
            assert!(effects(&seen.events).iter().all(|(_, sequence)| *sequence == number), "{:?}", seen.events);
        });
    }
    for node in nodes {
        node.stop().await;
    }
}
