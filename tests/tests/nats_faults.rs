//! The bridge while its server is killed, paused, emptied or restored from a backup, or loses a stream.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::jetstream;
use futures_util::future::join_all;
use whizbang::bridge::nats::{NatsBridge, NatsBuilder};
use whizbang::bridge::{AckOutcome, Bridge, BridgeError, NodeCard};
use whizbang::message::Envelope;
use whizbang::testing::bridge::cases::sample::{command, effects, event, shard};
use whizbang::testing::bridge::node::{NodeBehavior, Received, TestNode, named, service};
use whizbang::testing::bridge::{SHARDS, run};
use whizbang_tests::nats::{NatsConfig, NatsServer, Release};
use whizbang_tests::until;

const BOTH: [Release; 2] = [Release::Distribution, Release::Pinned];

async fn start(server: &NatsServer, card: NodeCard, behavior: NodeBehavior) -> TestNode {
    start_with(NatsBridge::builder(&server.url()), card, behavior).await
}

async fn start_with(builder: NatsBuilder, card: NodeCard, behavior: NodeBehavior) -> TestNode {
    let bridge: Arc<dyn Bridge> = Arc::new(builder.connect().await.expect("connects"));
    TestNode::attach(bridge, card, behavior).await.expect("attaches")
}

/// Sends commands as a relay does: again after a short pause until they are accepted.
async fn relay(node: &TestNode, commands: impl IntoIterator<Item = Envelope>) {
    for envelope in commands {
        while node.bridge.send(envelope.clone()).await.is_err() {
            tokio::task::yield_now().await;
            node.wait_for_message(Duration::from_millis(20)).await;
        }
    }
}

#[test]
fn messages_arrive_although_the_server_is_killed_twice() {
    for release in BOTH {
        run(async {
            let mut server = NatsServer::start(release);
            let bank = start(&server, service("bank").owning(named("bank"), SHARDS), NodeBehavior::default()).await;
            let shop = start(&server, service("shop").owning(named("shop"), SHARDS), NodeBehavior::default()).await;
            let senders = (0..100u16).map(|number| {
                let from = shard("bank", number);
                let bank = &bank;
                async move { relay(bank, (1..=100).map(|at| command(&from, &shard("shop", 0), at))).await }
            });
            let killing = async {
                for part in [3, 2] {
                    shop.wait_until("a part of them", |received| effects(&received.direct).len() >= 10_000 / part)
                        .await;
                    server.restart();
                }
            };
            tokio::join!(join_all(senders), killing);
            shop.wait_until("all commands", |received| effects(&received.direct).len() == 10_000).await;
            shop.inspect(|received| assert!(received.reconnected >= 2, "{}", received.reconnected));
            println!(
                "{release:?}: 10,000 messages in {} deliveries over two kills",
                shop.inspect(|received| received.direct.len())
            );
            bank.stop().await;
            shop.stop().await;
        });
    }
}

/// A pull has a limit in bytes. A message above it is received alone, and the ones behind it as usual.
#[test]
fn message_with_more_bytes_than_a_pull_stops_nothing() {
    const BYTES: usize = 6 << 20;
    for release in BOTH {
        run(async {
            let mut server = NatsServer::start(release);
            server.restart_with(NatsConfig { max_payload: Some(8 << 20), ..NatsConfig::default() });
            let bank = start(&server, service("bank").owning(named("bank"), SHARDS), NodeBehavior::default()).await;
            let shop = start(&server, service("shop").owning(named("shop"), SHARDS), NodeBehavior::default()).await;
            let stranger = jetstream::new(async_nats::connect(server.url()).await.expect("connects"));
            let send = async |at| relay(&bank, [command(&shard("bank", 0), &shard("shop", 0), at)]).await;
            for at in 1..=3 {
                send(at).await;
                let stored = stranger.publish("whizbang.cmd.shop.0.1", vec![b'x'; BYTES].into()).await;
                stored.expect("is sent").await.expect("is stored");
            }
            send(4).await;
            shop.wait_until("all commands", |received| effects(&received.direct).len() == 4).await;
            until("three refused messages", async || shop.bridge.health().refused == 3).await;
            bank.stop().await;
            shop.stop().await;
        });
    }
}

/// A node without capacity pulls nothing, so no delivery tells it how many messages wait: it asks.
#[test]
fn lag_of_a_node_without_capacity_is_measured() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let bank = start(&server, service("bank").owning(named("bank"), SHARDS), NodeBehavior::default()).await;
            let behavior = NodeBehavior { capacity: 100, open: false, ..NodeBehavior::default() };
            let shop = start(&server, service("shop").owning(named("shop"), SHARDS), behavior).await;
            let send = async |from, to| {
                relay(&bank, (from..=to).map(|at| command(&shard("bank", 0), &shard("shop", 0), at))).await;
            };
            send(1, 100).await;
            shop.wait_until("as many as it handles", |received| received.direct.len() == 100).await;
            send(101, 3_000).await;
            until("the lag", async || shop.bridge.health().lag >= 2_800).await;
            shop.open();
            shop.wait_until("all commands", |received| effects(&received.direct).len() == 3_000).await;
            until("no lag", async || shop.bridge.health().lag == 0).await;
            bank.stop().await;
            shop.stop().await;
        });
    }
}

#[test]
fn loop_that_panics_is_restarted_and_loses_nothing() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let bank = start(&server, service("bank").owning(named("bank"), SHARDS), NodeBehavior::default()).await;
            let left = AtomicUsize::new(3);
            let handler = move |_: &Envelope, received: &Received| {
                let is_planned = received.direct.len() >= 10
                    && left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
                assert!(!is_planned, "planned: the node panics in the consumer loop");
                AckOutcome::Ack
            };
            let behavior = NodeBehavior { handler: Box::new(handler), ..NodeBehavior::default() };
            let shop = start(&server, service("shop").owning(named("shop"), SHARDS), behavior).await;
            let commands = |from: &'static str, to: &'static str| {
                let (from, to) = (shard(from, 0), shard(to, 0));
                (1..=100).map(move |at| command(&from, &to, at))
            };
            relay(&bank, commands("bank", "shop")).await;
            shop.wait_until("the first panic", |received| received.direct.len() >= 10).await;
            shop.wait_until("all commands", |received| effects(&received.direct).len() == 100).await;
            let health = shop.bridge.health();
            let is_named =
                |issue: &String| issue.contains("consumer loop") && issue.contains("planned: the node panics");
            assert!(health.issues.iter().any(is_named), "{health:?}");
            assert!(shop.inspect(|received| received.reconnected) > 0, "the node looks for gaps");
            // It sends and receives as before, and health forgets the panic.
            relay(&shop, commands("shop", "bank")).await;
            bank.wait_until("all replies", |received| effects(&received.direct).len() == 100).await;
            while !shop.bridge.health().issues.is_empty() {
                shop.wait_for_message(Duration::from_millis(50)).await;
            }
            bank.stop().await;
            shop.stop().await;
        });
    }
}

#[test]
fn paused_server_loses_nothing_and_causes_no_redelivery_storm() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let builder = || NatsBridge::builder(&server.url()).ack_wait(Duration::from_secs(1));
            let bank =
                start_with(builder(), service("bank").owning(named("bank"), SHARDS), NodeBehavior::default()).await;
            let shop =
                start_with(builder(), service("shop").owning(named("shop"), SHARDS), NodeBehavior::default()).await;
            relay(&bank, (1..=100).map(|at| command(&shard("bank", 0), &shard("shop", 0), at))).await;
            server.pause();
            // Longer than the ack wait, and longer than a sender waits for an acknowledgement.
            let sent = bank.bridge.send(command(&shard("bank", 0), &shard("shop", 0), 101)).await;
            assert!(matches!(&sent, Err(error) if error.is_transient()), "{sent:?}");
            let before = shop.inspect(|received| received.direct.len());
            server.resume();
            relay(&bank, (101..=200).map(|at| command(&shard("bank", 0), &shard("shop", 0), at))).await;
            shop.wait_until("all commands", |received| effects(&received.direct).len() == 200).await;
            let deliveries = shop.inspect(|received| received.direct.len());
            assert!(deliveries - before <= 400, "{deliveries} deliveries, {before} before the pause");
            bank.stop().await;
            shop.stop().await;
        });
    }
}

#[test]
fn emptied_server_is_detected_and_set_up_again() {
    for release in BOTH {
        run(async {
            let mut server = NatsServer::start(release);
            let bank = start(&server, service("bank").owning(named("bank"), SHARDS), NodeBehavior::default()).await;
            let shop = start(
                &server,
                service("shop").owning(named("shop"), SHARDS).subscribing(named("bank"), SHARDS, [named("Happened")]),
                NodeBehavior::default(),
            )
            .await;
            relay(&bank, [command(&shard("bank", 0), &shard("shop", 0), 1)]).await;
            bank.bridge.publish(event(&shard("bank", 0), 1)).await.expect("publishes");
            shop.wait_until("both", |received| received.direct.len() == 1 && received.events.len() == 1).await;
            server.restart_empty();
            for node in [&bank, &shop] {
                node.wait_until("the reconnection", |received| received.reconnected > 0).await;
            }
            relay(&bank, [command(&shard("bank", 0), &shard("shop", 0), 2)]).await;
            let mut position = 1;
            let publish = || {
                position += 1;
                bank.bridge.publish(event(&shard("bank", 0), position))
            };
            shop.retry_until("an event", publish, |received| received.events.len() > 1).await;
            shop.wait_until("the command", |received| effects(&received.direct).len() == 2).await;
            bank.stop().await;
            shop.stop().await;
        });
    }
}

#[test]
fn restored_server_redelivers_and_continues() {
    run(async {
        let mut server = NatsServer::start(Release::Pinned);
        let bank = start(&server, service("bank").owning(named("bank"), SHARDS), NodeBehavior::default()).await;
        let shop = start(
            &server,
            service("shop").owning(named("shop"), SHARDS).subscribing(named("bank"), SHARDS, [named("Happened")]),
            NodeBehavior::default(),
        )
        .await;
        let publish = async |from, to| {
            for position in from..=to {
                bank.bridge.publish(event(&shard("bank", 0), position)).await.expect("publishes");
            }
            shop.wait_until("the events", |received| effects(&received.events).len() == to as usize).await;
        };
        publish(1, 10).await;
        server.kill();
        let copy = server.back_up();
        server.restart();
        bank.wait_until("the first reconnection", |received| received.reconnected == 1).await;
        publish(11, 20).await;
        server.kill();
        server.restore(&copy);
        server.restart();
        bank.wait_until("the second reconnection", |received| received.reconnected == 2).await;
        // The restored stream has lost 11 to 20 and assigns their sequences again.
        publish(21, 30).await;
        bank.stop().await;
        shop.stop().await;
    });
}

#[test]
fn deleted_streams_and_consumers_are_recreated() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let bank = start(&server, service("bank").owning(named("bank"), SHARDS), NodeBehavior::default()).await;
            let shop = start(
                &server,
                service("shop").owning(named("shop"), SHARDS).subscribing(named("bank"), SHARDS, [named("Happened")]),
                NodeBehavior::default(),
            )
            .await;
            let operator = jetstream::new(async_nats::connect(server.url()).await.expect("connects"));
            let mut number = 0;
            let mut flows = async || {
                let calm = shop.inspect(|received| (received.direct.len(), received.events.len()));
                let send = || {
                    number += 1;
                    let (to, position) = (shard("shop", 0), number);
                    let bridge = &bank.bridge;
                    async move {
                        bridge.send(command(&shard("bank", 0), &to, position)).await?;
                        bridge.publish(event(&shard("bank", 0), position)).await
                    }
                };
                let flowed = |received: &whizbang::testing::bridge::node::Received| {
                    received.direct.len() > calm.0 && received.events.len() > calm.1
                };
                shop.retry_until("both kinds of messages", send, flowed).await;
            };
            flows().await;
            let events = operator.get_stream("whizbang_events_bank").await.expect("a stream");
            events.delete_consumer("shop").await.expect("deletes");
            flows().await;
            operator.delete_stream("whizbang_commands_shop").await.expect("deletes");
            flows().await;
            shop.inspect(|received| assert!(received.reconnected >= 2, "{}", received.reconnected));
            bank.stop().await;
            shop.stop().await;
        });
    }
}

#[test]
fn slow_message_is_not_redelivered_while_handled() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let builder = || NatsBridge::builder(&server.url()).ack_wait(Duration::from_secs(1));
            let bank =
                start_with(builder(), service("bank").owning(named("bank"), SHARDS), NodeBehavior::default()).await;
            // With a capacity of one, the other messages wait in the bridge as long.
            let slow = NodeBehavior { open: false, capacity: 1, ..NodeBehavior::default() };
            let shop = start_with(builder(), service("shop").owning(named("shop"), SHARDS), slow).await;
            relay(&bank, (1..=3).map(|at| command(&shard("bank", 0), &shard("shop", 0), at))).await;
            shop.wait_until("the first", |received| received.direct.len() == 1).await;
            shop.wait_for_message(Duration::from_secs(4)).await;
            shop.open();
            shop.wait_until("all", |received| effects(&received.direct).len() == 3).await;
            shop.inspect(|received| assert_eq!(received.direct.len(), 3));
            bank.stop().await;
            shop.stop().await;
        });
    }
}

#[test]
fn successor_receives_messages_of_a_killed_node() {
    let server = NatsServer::start(Release::Distribution);
    let builder = || NatsBridge::builder(&server.url()).ack_wait(Duration::from_secs(1));
    run(async {
        let bank = start_with(builder(), service("bank").owning(named("bank"), SHARDS), NodeBehavior::default()).await;
        let stuck = NodeBehavior { open: false, ..NodeBehavior::default() };
        let shop = start_with(builder(), service("shop").owning(named("shop"), SHARDS), stuck).await;
        relay(&bank, (1..=50).map(|at| command(&shard("bank", 0), &shard("shop", 0), at))).await;
        shop.wait_until("some", |received| received.direct.len() == 50).await;
        // The end of this block drops both nodes as a crash does.
    });
    run(async {
        let shop = start_with(builder(), service("shop").owning(named("shop"), SHARDS), NodeBehavior::default()).await;
        shop.wait_until("all", |received| effects(&received.direct).len() == 50).await;
        shop.stop().await;
    });
}

#[test]
fn stopping_node_returns_undelivered_messages() {
    let server = NatsServer::start(Release::Distribution);
    run(async {
        let bank = start(&server, service("bank").owning(named("bank"), SHARDS), NodeBehavior::default()).await;
        let busy = NodeBehavior { capacity: 2, open: false, ..NodeBehavior::default() };
        let shop = start(&server, service("shop").owning(named("shop"), SHARDS), busy).await;
        relay(&bank, (1..=50).map(|at| command(&shard("bank", 0), &shard("shop", 0), at))).await;
        shop.wait_until("two", |received| received.handling == 2).await;
        let begun: BTreeSet<_> = shop.inspect(|received| effects(&received.direct));
        let stopping = async {
            let mut stopping = std::pin::pin!(shop.bridge.detach());
            // The node waits for its messages in flight.
            assert!(tokio::time::timeout(Duration::from_millis(200), &mut stopping).await.is_err());
            shop.open();
            stopping.await.expect("detaches");
        };
        stopping.await;
        // Far below the ack wait of 30 s: undelivered messages were returned to the server.
        let next = start(&server, service("shop").owning(named("shop"), SHARDS), NodeBehavior::default()).await;
        let rest = 50 - begun.len();
        let waiting = next.wait_until("the rest", |received| effects(&received.direct).len() == rest);
        tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("immediately");
        next.inspect(|received| assert!(effects(&received.direct).is_disjoint(&begun)));
        next.stop().await;
        bank.stop().await;
    });
}

#[test]
fn full_stream_makes_senders_wait_and_loses_nothing() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let builder = || NatsBridge::builder(&server.url()).stream_bytes(256 * 1024);
            let bank =
                start_with(builder(), service("bank").owning(named("bank"), SHARDS), NodeBehavior::default()).await;
            let stuck = NodeBehavior {
                open: false,
                capacity: 1,
                handler: Box::new(|_, _| AckOutcome::Ack),
                ..NodeBehavior::default()
            };
            let shop = start_with(builder(), service("shop").owning(named("shop"), SHARDS), stuck).await;
            let large =
                |at| Envelope { payload: vec![1; 10_000].into(), ..command(&shard("bank", 0), &shard("shop", 0), at) };
            let mut refused = None;
            for at in 1..=100 {
                if let Err(error) = bank.bridge.send(large(at)).await {
                    refused = Some((at, error));
                    break;
                }
            }
            let (at, error) = refused.expect("256 KiB overflow before 1 MB is sent");
            assert!(error.is_transient(), "{error}");
            assert!((10..=30).contains(&at), "{at}: {error}");
            shop.open();
            relay(&bank, (at..=100).map(large)).await;
            shop.wait_until("all", |received| effects(&received.direct).len() == 100).await;
            bank.stop().await;
            shop.stop().await;
        });
    }
}

#[test]
fn abandoned_bridge_closes_and_leaves_messages_to_the_next() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let builder = || NatsBridge::builder(&server.url()).ack_wait(Duration::from_secs(1));
            let bank =
                start_with(builder(), service("bank").owning(named("bank"), SHARDS), NodeBehavior::default()).await;
            let without = server.sockets();
            let stuck = NodeBehavior { open: false, ..NodeBehavior::default() };
            let shop = start_with(builder(), service("shop").owning(named("shop"), SHARDS), stuck).await;
            relay(&bank, (1..=50).map(|at| command(&shard("bank", 0), &shard("shop", 0), at))).await;
            shop.wait_until("all", |received| received.direct.len() == 50).await;
            assert!(server.sockets() > without);
            let sending = shop.bridge.send(command(&shard("shop", 0), &shard("bank", 0), 1));
            shop.bridge.abandon();
            // A send in flight fails immediately with an unknown result, and nothing is sent afterwards.
            let told = tokio::time::timeout(Duration::from_secs(1), sending).await.expect("immediately");
            assert!(matches!(told, Err(BridgeError::NoResponse { .. })), "{told:?}");
            let closed = shop.bridge.send(command(&shard("shop", 0), &shard("bank", 0), 2)).await;
            assert!(matches!(closed, Err(BridgeError::Closed)), "{closed:?}");
            assert!(matches!(shop.bridge.detach().await, Err(BridgeError::Closed)));
            shop.bridge.abandon();
            let gone = async {
                while server.sockets() > without {
                    bank.wait_for_message(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), gone).await.expect("the connection ends");
            let next =
                start_with(builder(), service("shop").owning(named("shop"), SHARDS), NodeBehavior::default()).await;
            next.wait_until("all", |received| effects(&received.direct).len() == 50).await;
            bank.inspect(|received| assert_eq!(received.direct.len(), 0));
            next.stop().await;
            bank.stop().await;
        });
    }
}

#[test]
fn blocked_detach_can_be_abandoned() {
    run(async {
        let server = NatsServer::start(Release::Pinned);
        let without = server.sockets();
        let stuck = NodeBehavior { open: false, ..NodeBehavior::default() };
        let bank = start(&server, service("bank").owning(named("bank"), SHARDS), stuck).await;
        relay(&bank, [command(&shard("bank", 0), &shard("bank", 1), 1)]).await;
        bank.wait_until("the command", |received| received.handling == 1).await;
        let mut detaching = std::pin::pin!(bank.bridge.detach());
        assert!(tokio::time::timeout(Duration::from_millis(200), &mut detaching).await.is_err());
        bank.bridge.abandon();
        let ended = tokio::time::timeout(Duration::from_secs(5), detaching).await;
        assert!(matches!(ended, Ok(Ok(()))), "{ended:?}");
        let gone = async {
            while server.sockets() > without {
                bank.wait_for_message(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone).await.expect("the connection ends");
    });
}
