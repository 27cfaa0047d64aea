//! Each service with the permissions made from its card: it works, and everything else is denied.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::{Event, ServerError};
use whizbang::bridge::nats::{NatsBridge, NatsPermissions};
use whizbang::bridge::subject::Namespace;
use whizbang::bridge::{Answer, Asked, Bridge, BridgeError, NodeCard, Tidings};
use whizbang::message::{Envelope, Kind};
use whizbang::testing::bridge::cases::sample::{command, effects, event, outside, shard};
use whizbang::testing::bridge::node::{Manners, TestNode, named, service};
use whizbang::testing::bridge::run;
use whizbang_tests::nats::{NatsConfig, NatsServer, Release};

fn bank() -> NodeCard {
    service("bank").owning("bank").answering("bank", "Total")
}

fn shop() -> NodeCard {
    service("e-shop").owning("shop").taking("bank")
}

/// A server on which each service has its own user and the permissions of its card.
fn guarded(release: Release) -> NatsServer {
    let namespace = Namespace::default();
    let mut block = String::new();
    let mut users = String::new();
    for card in [bank(), shop()] {
        block += &NatsPermissions::for_card(&card, &namespace).to_string();
        let name = &card.service;
        users += &format!("  {{ user: \"{name}\", password: \"secret of {name}\", permissions: $WHIZBANG_{name} }}\n");
    }
    // Looks on, and may do everything.
    users += "  { user: operator, password: operator }\n";
    NatsServer::start_with(release, NatsConfig::authorization(&format!("{block}users: [\n{users}]")))
}

async fn start(server: &NatsServer, card: NodeCard) -> TestNode {
    let answering = |asked: Asked| -> futures_util::future::BoxFuture<'static, Answer> {
        Box::pin(async move {
            match asked {
                Asked::Command(envelope) | Asked::Query(envelope) => Answer::Reply(envelope.payload),
                Asked::Events { .. } | Asked::Outbox { .. } => Answer::Envelopes(Vec::new(), 0),
                Asked::Watermark { .. } => Answer::Watermark(3),
            }
        })
    };
    let name = card.service.to_string();
    let builder = NatsBridge::builder(&server.url()).user(name.clone(), format!("secret of {name}"));
    let bridge: Arc<dyn Bridge> = Arc::new(builder.connect().await.expect("connects"));
    TestNode::attach(bridge, card, Manners { answering: Box::new(answering), ..Manners::default() })
        .await
        .expect("attaches")
}

#[test]
fn a_service_does_all_it_has_to_with_the_permissions_of_its_card() {
    for release in [Release::Distribution, Release::Pinned] {
        run(async {
            let server = guarded(release);
            // The subscriber first: it waits for a stream that it may not make.
            let shop = start(&server, shop()).await;
            let bank = start(&server, bank()).await;
            let (from, to) = (shard("bank", 1), shard("shop", 2));
            bank.bridge.send(command(&from, &to, 1)).await.expect("sends");
            let mut reply = command(&to, &from, 1);
            (reply.kind, reply.domain) = (Kind::Reply, named("shop"));
            shop.bridge.send(reply).await.expect("replies");
            bank.bridge.publish(event(&from, 1)).await.expect("publishes");
            shop.until("command and event", |seen| seen.direct.len() == 1 && seen.events.len() == 1).await;
            bank.until("reply", |seen| seen.direct.len() == 1).await;

            let ask = |asked| shop.bridge.ask(asked, Duration::from_secs(10));
            let asked = outside(&from, 5);
            assert_eq!(ask(Asked::Command(asked.clone())).await.expect("asks"), Answer::Reply(asked.payload.clone()));
            let query = Envelope { kind: Kind::Query, name: named("Total"), to: None, ..asked };
            assert_eq!(ask(Asked::Query(query.clone())).await.expect("asks"), Answer::Reply(query.payload.clone()));
            let empty = Answer::Envelopes(Vec::new(), 0);
            let events = Asked::Events { shard: from.clone(), after: 0, limit: 1 };
            assert_eq!(ask(events).await.expect("asks"), empty);
            let outbox = Asked::Outbox { from: from.clone(), to: to.clone(), after: 0, limit: 1 };
            assert_eq!(ask(outbox).await.expect("asks"), empty);
            let watermark = Asked::Watermark { from: to.clone(), to: from.clone() };
            assert_eq!(ask(watermark).await.expect("asks"), Answer::Watermark(3));

            let head = Tidings::Head { shard: from.clone(), position: 1 };
            shop.insist("the head", || bank.bridge.tell(head.clone()), |seen| seen.told.contains(&head)).await;
            let committed = Tidings::Committed { from, to, through: 1 };
            bank.insist("the watermark", || shop.bridge.tell(committed.clone()), |seen| seen.told.contains(&committed))
                .await;
            bank.stop().await;
            shop.stop().await;
        });
    }
}

#[test]
fn every_foreign_publish_and_subscribe_is_denied() {
    for release in [Release::Distribution, Release::Pinned] {
        run(async {
            let server = guarded(release);
            let (bank_node, shop_node) = (start(&server, bank()).await, start(&server, shop()).await);
            bank_node.bridge.publish(event(&shard("bank", 0), 1)).await.expect("publishes");
            let denied = Arc::new(AtomicUsize::new(0));
            let counter = Arc::clone(&denied);
            let hostile = async_nats::ConnectOptions::with_user_and_password("e-shop".into(), "secret of e-shop".into())
                .custom_inbox_prefix("_INBOX_whizbang_e-shop")
                .event_callback(move |event| {
                    if matches!(event, Event::ServerError(ServerError::Other(ref text)) if text.to_lowercase().contains("permissions violation")) {
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                    async {}
                })
                .connect(server.url())
                .await
                .expect("connects");
            let mut expected = 0;
            let mut check = async |what: String| {
                expected += 1;
                let start = tokio::time::Instant::now();
                while denied.load(Ordering::Relaxed) < expected {
                    assert!(start.elapsed() < Duration::from_secs(10), "{what} was not denied");
                    hostile.flush().await.expect("flushes");
                    tokio::task::yield_now().await;
                }
                assert_eq!(denied.load(Ordering::Relaxed), expected, "after {what}");
            };
            for subject in [
                // Events, heads and commands in the bank's name, and in nobody's.
                "whizbang.evt.bank.0.Happened",
                "whizbang.head.bank.0",
                "whizbang.cmd.shop.0.bank.0",
                "whizbang.cmd.bank.0.bank.0",
                "whizbang.done.shop.0.bank.0",
                "whizbang.done.other.0.bank.0",
                "whizbang.ask.bank.out.0.other.0",
                "whizbang.ask.bank.mark.0.other.0",
                "whizbang.ask.other.evt.0",
                // What others have refused, and their answers.
                "whizbang.refused.bank",
                "_INBOX_whizbang_bank.x.r.1",
                "_INBOX.anybody",
                // Streams and consumers that are not its own.
                "$JS.API.STREAM.DELETE.whizbang_events_bank",
                "$JS.API.STREAM.PURGE.whizbang_events_bank",
                "$JS.API.STREAM.UPDATE.whizbang_events_bank",
                "$JS.API.STREAM.CREATE.whizbang_events_bank",
                "$JS.API.STREAM.CREATE.whizbang_events_other",
                "$JS.API.STREAM.MSG.DELETE.whizbang_events_bank",
                "$JS.API.STREAM.MSG.GET.whizbang_commands_bank",
                "$JS.API.DIRECT.GET.whizbang_commands_bank",
                "$JS.API.STREAM.NAMES",
                "$JS.API.STREAM.LIST",
                "$JS.API.INFO",
                "$JS.API.CONSUMER.CREATE.whizbang_commands_bank",
                "$JS.API.CONSUMER.CREATE.whizbang_commands_bank.e-shop",
                "$JS.API.CONSUMER.CREATE.whizbang_events_bank",
                "$JS.API.CONSUMER.CREATE.whizbang_events_bank.bank",
                "$JS.API.CONSUMER.DURABLE.CREATE.whizbang_events_bank.x",
                "$JS.API.CONSUMER.DELETE.whizbang_commands_bank.bank",
                "$JS.API.CONSUMER.MSG.NEXT.whizbang_commands_bank.bank",
                "$JS.ACK.whizbang_commands_bank.bank.1.1.1.1700000000000000000.0",
                "$SYS.REQ.SERVER.PING",
                "whizbang",
                "other.evt.bank.0.Happened",
            ] {
                hostile.publish(subject, "x".into()).await.expect("writes");
                check(format!("publishing to {subject}")).await;
            }
            let mut subscriptions = Vec::new();
            for subject in [
                ">",
                "*",
                "whizbang.>",
                "whizbang.*.bank.>",
                "whizbang.cmd.bank.>",
                "whizbang.cmd.shop.>",
                "whizbang.evt.bank.>",
                "whizbang.ask.bank.>",
                "whizbang.done.bank.>",
                "whizbang.head.other.*",
                "whizbang.qry.bank.Total",
                "whizbang.refused.>",
                "_INBOX.>",
                "_INBOX_whizbang_bank.>",
                "$JS.>",
                "$JS.ACK.>",
                "$SYS.>",
            ] {
                subscriptions.push(hostile.subscribe(subject).await.expect("writes"));
                check(format!("subscribing to {subject}")).await;
            }
            bank_node.look(|seen| assert!(seen.direct.is_empty() && seen.told.is_empty() && seen.asked.is_empty()));
            shop_node.look(|seen| assert!(seen.direct.is_empty() && seen.told.is_empty()));
            println!("{release:?}: {expected} foreign publishes and subscribes denied");
            bank_node.stop().await;
            shop_node.stop().await;
        });
    }
}

#[test]
fn a_bridge_that_may_not_do_what_its_card_says_is_told_what_it_lacks() {
    run(async {
        let server = guarded(Release::Pinned);
        // The shop's user, with a card that claims the bank's domain.
        let builder = NatsBridge::builder(&server.url()).user("e-shop", "secret of e-shop");
        let bridge: Arc<dyn Bridge> = Arc::new(builder.connect().await.expect("connects"));
        let thief = service("e-shop").owning("bank");
        let attached = TestNode::attach(bridge, thief, Manners::default()).await;
        match attached.map(|_| ()) {
            Err(BridgeError::Refused { reason, .. }) => assert!(reason.contains("whizbang_events_bank"), "{reason}"),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn what_may_not_be_sent_is_refused_at_once_and_not_at_its_deadline() {
    run(async {
        let server = guarded(Release::Pinned);
        let (bank, shop) = (start(&server, bank()).await, start(&server, shop()).await);
        let start = tokio::time::Instant::now();
        let forged = shop.bridge.send(command(&shard("bank", 0), &shard("bank", 1), 1)).await;
        assert!(matches!(&forged, Err(BridgeError::Refused { .. })), "{forged:?}");
        let forged = shop.bridge.publish(event(&shard("bank", 0), 1)).await;
        assert!(matches!(&forged, Err(BridgeError::Refused { .. })), "{forged:?}");
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
        bank.look(|seen| assert_eq!(effects(&seen.direct).len(), 0));
        bank.stop().await;
        shop.stop().await;
    });
}
