//! The bridge while its server is killed, paused, emptied, set back, or robbed of a stream.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use futures_util::future::join_all;
use whizbang::bridge::nats::{NatsBridge, NatsBuilder};
use whizbang::bridge::{AckOutcome, Bridge, BridgeError, NodeCard};
use whizbang::message::Envelope;
use whizbang::testing::bridge::cases::sample::{command, effects, event, shard};
use whizbang::testing::bridge::node::{NodeBehavior, TestNode, service};
use whizbang::testing::bridge::run;
use whizbang_tests::nats::{NatsServer, Release};

const BOTH: [Release; 2] = [Release::Distribution, Release::Pinned];

async fn start(server: &NatsServer, card: NodeCard, manners: NodeBehavior) -> TestNode {
    start_with(NatsBridge::builder(&server.url()), card, manners).await
}

async fn start_with(builder: NatsBuilder, card: NodeCard, manners: NodeBehavior) -> TestNode {
    let bridge: Arc<dyn Bridge> = Arc::new(builder.connect().await.expect("connects"));
    TestNode::attach(bridge, card, manners).await.expect("attaches")
}

/// Sends commands as a relay does: again until they are taken. A relay waits a little before it tries again; so does this.
async fn relay(node: &TestNode, commands: impl IntoIterator<Item = Envelope>) {
    for envelope in commands {
        while node.bridge.send(envelope.clone()).await.is_err() {
            tokio::task::yield_now().await;
            node.insist_once(Duration::from_millis(20)).await;
        }
    }
}

#[test]
fn ten_thousand_messages_of_a_hundred_senders_arrive_though_the_server_is_killed_twice() {
    for release in BOTH {
        run(async {
            let mut server = NatsServer::start(release);
            let bank = start(&server, service("bank").owning("bank"), NodeBehavior::default()).await;
            let shop = start(&server, service("shop").owning("shop"), NodeBehavior::default()).await;
            let senders = (0..100u16).map(|number| {
                let from = shard("bank", number);
                let bank = &bank;
                async move { relay(bank, (1..=100).map(|at| command(&from, &shard("shop", 0), at))).await }
            });
            let killing = async {
                for part in [3, 2] {
                    shop.until("a part of them", |seen| effects(&seen.direct).len() >= 10_000 / part).await;
                    server.restart();
                }
            };
            tokio::join!(join_all(senders), killing);
            shop.until("all of them", |seen| effects(&seen.direct).len() == 10_000).await;
            shop.look(|seen| assert!(seen.reconnected >= 2, "{}", seen.reconnected));
            println!(
                "{release:?}: 10,000 messages in {} deliveries over two kills",
                shop.look(|seen| seen.direct.len())
            );
            bank.stop().await;
            shop.stop().await;
        });
    }
}

#[test]
fn a_server_that_is_paused_for_longer_than_the_ack_wait_loses_nothing_and_heats_nothing() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let builder = || NatsBridge::builder(&server.url()).ack_wait(Duration::from_secs(1));
            let bank = start_with(builder(), service("bank").owning("bank"), NodeBehavior::default()).await;
            let shop = start_with(builder(), service("shop").owning("shop"), NodeBehavior::default()).await;
            relay(&bank, (1..=100).map(|at| command(&shard("bank", 0), &shard("shop", 0), at))).await;
            server.pause();
            // Longer than the ack wait, and longer than a sender waits for an acknowledgement.
            let sent = bank.bridge.send(command(&shard("bank", 0), &shard("shop", 0), 101)).await;
            assert!(matches!(&sent, Err(error) if error.is_transient()), "{sent:?}");
            let before = shop.look(|seen| seen.direct.len());
            server.resume();
            relay(&bank, (101..=200).map(|at| command(&shard("bank", 0), &shard("shop", 0), at))).await;
            shop.until("all of them", |seen| effects(&seen.direct).len() == 200).await;
            let deliveries = shop.look(|seen| seen.direct.len());
            assert!(deliveries - before <= 400, "{deliveries} deliveries, {before} before the pause");
            bank.stop().await;
            shop.stop().await;
        });
    }
}

#[test]
fn a_server_that_comes_back_empty_is_noticed_and_set_up_again() {
    for release in BOTH {
        run(async {
            let mut server = NatsServer::start(release);
            let bank = start(&server, service("bank").owning("bank"), NodeBehavior::default()).await;
            let shop = start(&server, service("shop").owning("shop").taking("bank"), NodeBehavior::default()).await;
            relay(&bank, [command(&shard("bank", 0), &shard("shop", 0), 1)]).await;
            bank.bridge.publish(event(&shard("bank", 0), 1)).await.expect("publishes");
            shop.until("both", |seen| seen.direct.len() == 1 && seen.events.len() == 1).await;
            server.restart_empty();
            for node in [&bank, &shop] {
                node.until("the news", |seen| seen.reconnected > 0).await;
            }
            relay(&bank, [command(&shard("bank", 0), &shard("shop", 0), 2)]).await;
            let mut position = 1;
            let publish = || {
                position += 1;
                bank.bridge.publish(event(&shard("bank", 0), position))
            };
            shop.insist("an event", publish, |seen| seen.events.len() > 1).await;
            shop.until("the command", |seen| effects(&seen.direct).len() == 2).await;
            bank.stop().await;
            shop.stop().await;
        });
    }
}

#[test]
fn a_server_whose_store_is_set_back_delivers_again_and_goes_on() {
    run(async {
        let mut server = NatsServer::start(Release::Pinned);
        let bank = start(&server, service("bank").owning("bank"), NodeBehavior::default()).await;
        let shop = start(&server, service("shop").owning("shop").taking("bank"), NodeBehavior::default()).await;
        let publish = async |from, to| {
            for position in from..=to {
                bank.bridge.publish(event(&shard("bank", 0), position)).await.expect("publishes");
            }
            shop.until("the events", |seen| effects(&seen.events).len() == to as usize).await;
        };
        publish(1, 10).await;
        server.kill();
        let copy = server.back_up();
        server.restart();
        bank.until("the news", |seen| seen.reconnected == 1).await;
        publish(11, 20).await;
        server.kill();
        server.restore(&copy);
        server.restart();
        bank.until("the news", |seen| seen.reconnected == 2).await;
        // The stream has forgotten 11 to 20 and numbers what comes now as it did them.
        publish(21, 30).await;
        bank.stop().await;
        shop.stop().await;
    });
}

#[test]
fn streams_and_consumers_that_are_deleted_under_way_are_made_again() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let bank = start(&server, service("bank").owning("bank"), NodeBehavior::default()).await;
            let shop = start(&server, service("shop").owning("shop").taking("bank"), NodeBehavior::default()).await;
            let operator = jetstream::new(async_nats::connect(server.url()).await.expect("connects"));
            let mut number = 0;
            let mut flows = async || {
                let calm = shop.look(|seen| (seen.direct.len(), seen.events.len()));
                let send = || {
                    number += 1;
                    let (to, position) = (shard("shop", 0), number);
                    let bridge = &bank.bridge;
                    async move {
                        bridge.send(command(&shard("bank", 0), &to, position)).await?;
                        bridge.publish(event(&shard("bank", 0), position)).await
                    }
                };
                let flowed = |seen: &whizbang::testing::bridge::node::Seen| {
                    seen.direct.len() > calm.0 && seen.events.len() > calm.1
                };
                shop.insist("both kinds of messages", send, flowed).await;
            };
            flows().await;
            let events = operator.get_stream("whizbang_events_bank").await.expect("a stream");
            events.delete_consumer("shop").await.expect("deletes");
            flows().await;
            operator.delete_stream("whizbang_commands_shop").await.expect("deletes");
            flows().await;
            shop.look(|seen| assert!(seen.reconnected >= 2, "{}", seen.reconnected));
            bank.stop().await;
            shop.stop().await;
        });
    }
}

#[test]
fn what_is_handled_for_longer_than_the_ack_wait_is_not_delivered_again() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let builder = || NatsBridge::builder(&server.url()).ack_wait(Duration::from_secs(1));
            let bank = start_with(builder(), service("bank").owning("bank"), NodeBehavior::default()).await;
            // Room for one: the others wait in the bridge as long.
            let slow = NodeBehavior { open: false, room: 1, ..NodeBehavior::default() };
            let shop = start_with(builder(), service("shop").owning("shop"), slow).await;
            relay(&bank, (1..=3).map(|at| command(&shard("bank", 0), &shard("shop", 0), at))).await;
            shop.until("the first", |seen| seen.direct.len() == 1).await;
            shop.insist_once(Duration::from_secs(4)).await;
            shop.open();
            shop.until("all", |seen| effects(&seen.direct).len() == 3).await;
            shop.look(|seen| assert_eq!(seen.direct.len(), 3));
            bank.stop().await;
            shop.stop().await;
        });
    }
}

#[test]
fn what_a_killed_node_had_in_hand_comes_to_its_successor() {
    let server = NatsServer::start(Release::Distribution);
    let builder = || NatsBridge::builder(&server.url()).ack_wait(Duration::from_secs(1));
    run(async {
        let bank = start_with(builder(), service("bank").owning("bank"), NodeBehavior::default()).await;
        let stuck = NodeBehavior { open: false, ..NodeBehavior::default() };
        let shop = start_with(builder(), service("shop").owning("shop"), stuck).await;
        relay(&bank, (1..=50).map(|at| command(&shard("bank", 0), &shard("shop", 0), at))).await;
        shop.until("some", |seen| seen.direct.len() == 50).await;
        // The end of this block drops both nodes as a crash does.
    });
    run(async {
        let shop = start_with(builder(), service("shop").owning("shop"), NodeBehavior::default()).await;
        shop.until("all", |seen| effects(&seen.direct).len() == 50).await;
        shop.stop().await;
    });
}

#[test]
fn a_node_that_stops_gives_back_what_it_has_not_begun() {
    let server = NatsServer::start(Release::Distribution);
    run(async {
        let bank = start(&server, service("bank").owning("bank"), NodeBehavior::default()).await;
        let busy = NodeBehavior { room: 2, open: false, ..NodeBehavior::default() };
        let shop = start(&server, service("shop").owning("shop"), busy).await;
        relay(&bank, (1..=50).map(|at| command(&shard("bank", 0), &shard("shop", 0), at))).await;
        shop.until("two", |seen| seen.handling == 2).await;
        let begun: BTreeSet<_> = shop.look(|seen| effects(&seen.direct));
        let stopping = async {
            let mut stopping = std::pin::pin!(shop.bridge.detach());
            // It waits for what is in hand.
            assert!(tokio::time::timeout(Duration::from_millis(200), &mut stopping).await.is_err());
            shop.open();
            stopping.await.expect("detaches");
        };
        stopping.await;
        // Far below the ack wait of 30 s: what was not begun was given back, not forgotten.
        let next = start(&server, service("shop").owning("shop"), NodeBehavior::default()).await;
        let rest = 50 - begun.len();
        let waiting = next.until("the rest", |seen| effects(&seen.direct).len() == rest);
        tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("at once");
        next.look(|seen| assert!(effects(&seen.direct).is_disjoint(&begun)));
        next.stop().await;
        bank.stop().await;
    });
}

#[test]
fn a_stream_that_is_full_makes_senders_wait_and_loses_nothing() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let builder = || NatsBridge::builder(&server.url()).stream_bytes(256 * 1024);
            let bank = start_with(builder(), service("bank").owning("bank"), NodeBehavior::default()).await;
            let stuck = NodeBehavior {
                open: false,
                room: 1,
                settling: Box::new(|_, _| AckOutcome::Ack),
                ..NodeBehavior::default()
            };
            let shop = start_with(builder(), service("shop").owning("shop"), stuck).await;
            let large =
                |at| Envelope { payload: vec![1; 10_000].into(), ..command(&shard("bank", 0), &shard("shop", 0), at) };
            let mut refused = None;
            for at in 1..=100 {
                if let Err(error) = bank.bridge.send(large(at)).await {
                    refused = Some((at, error));
                    break;
                }
            }
            let (at, error) = refused.expect("256 KiB are full before 1 MB is sent");
            assert!(error.is_transient(), "{error}");
            assert!((10..=30).contains(&at), "{at}: {error}");
            shop.open();
            relay(&bank, (at..=100).map(large)).await;
            shop.until("all", |seen| effects(&seen.direct).len() == 100).await;
            bank.stop().await;
            shop.stop().await;
        });
    }
}

#[test]
fn a_bridge_that_is_abandoned_ends_its_connection_and_leaves_its_work_to_the_next() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let builder = || NatsBridge::builder(&server.url()).ack_wait(Duration::from_secs(1));
            let bank = start_with(builder(), service("bank").owning("bank"), NodeBehavior::default()).await;
            let without = server.sockets();
            let stuck = NodeBehavior { open: false, ..NodeBehavior::default() };
            let shop = start_with(builder(), service("shop").owning("shop"), stuck).await;
            relay(&bank, (1..=50).map(|at| command(&shard("bank", 0), &shard("shop", 0), at))).await;
            shop.until("all", |seen| seen.direct.len() == 50).await;
            assert!(server.sockets() > without);
            let sending = shop.bridge.send(command(&shard("shop", 0), &shard("bank", 0), 1));
            shop.bridge.abandon();
            // What was under way hears at once that nobody knows, and nothing is sent any more.
            let told = tokio::time::timeout(Duration::from_secs(1), sending).await.expect("at once");
            assert!(matches!(told, Err(BridgeError::NoResponse { .. })), "{told:?}");
            let closed = shop.bridge.send(command(&shard("shop", 0), &shard("bank", 0), 2)).await;
            assert!(matches!(closed, Err(BridgeError::Closed)), "{closed:?}");
            assert!(matches!(shop.bridge.detach().await, Err(BridgeError::Closed)));
            shop.bridge.abandon();
            let gone = async {
                while server.sockets() > without {
                    bank.insist_once(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), gone).await.expect("the connection ends");
            let next = start_with(builder(), service("shop").owning("shop"), NodeBehavior::default()).await;
            next.until("all", |seen| effects(&seen.direct).len() == 50).await;
            bank.look(|seen| assert_eq!(seen.direct.len(), 0));
            next.stop().await;
            bank.stop().await;
        });
    }
}

#[test]
fn a_bridge_that_cannot_end_in_order_can_still_be_abandoned() {
    run(async {
        let server = NatsServer::start(Release::Pinned);
        let without = server.sockets();
        let stuck = NodeBehavior { open: false, ..NodeBehavior::default() };
        let bank = start(&server, service("bank").owning("bank"), stuck).await;
        relay(&bank, [command(&shard("bank", 0), &shard("bank", 1), 1)]).await;
        bank.until("the command", |seen| seen.handling == 1).await;
        let mut detaching = std::pin::pin!(bank.bridge.detach());
        assert!(tokio::time::timeout(Duration::from_millis(200), &mut detaching).await.is_err());
        bank.bridge.abandon();
        let ended = tokio::time::timeout(Duration::from_secs(5), detaching).await;
        assert!(matches!(ended, Ok(Ok(()))), "{ended:?}");
        let gone = async {
            while server.sockets() > without {
                bank.insist_once(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone).await.expect("the connection ends");
    });
}
