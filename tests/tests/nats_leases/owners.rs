//! The consumers of shards: one for each, whatever an earlier owner does.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use futures_util::StreamExt;
use tokio::time::Instant;
use whizbang::bridge::nats::NatsBridge;
use whizbang::bridge::{BridgeError, Request};
use whizbang::testing::bridge::cases::sample::{command, effects, external_command, shard};
use whizbang::testing::bridge::run;
use whizbang_tests::nats::{NatsCluster, NatsServer, Release};

use crate::{BOTH, attach, bank, consumers, shop, start, until};

const STREAM: &str = "whizbang_commands_shop";

/// An earlier owner that was not told finds the consumer of a later one, after its pull has ended or after a reconnection.
#[test]
fn earlier_owner_does_not_recreate_its_consumer() {
    for release in BOTH {
        run(async {
            let mut server = NatsServer::start(release);
            let bank = start(&server, bank()).await;
            let [one, two] = [start(&server, shop()).await, start(&server, shop()).await];
            let to = shard("shop", 1);
            one.bridge.own(&to, 3).await.expect("owns");
            let client = async_nats::connect(server.url()).await.expect("connects");
            assert_eq!(consumers(&client, STREAM).await, ["e-shop-shop-1-e3"]);
            two.bridge.own(&to, 5).await.expect("owns");
            assert_eq!(consumers(&client, STREAM).await, ["e-shop-shop-1-e5"]);
            let calm = [&one, &two].map(|node| node.inspect(|got| got.reconnected));
            server.restart();
            for (node, calm) in [&one, &two].into_iter().zip(calm) {
                node.wait_until("the reconnection", |got| got.reconnected > calm).await;
            }
            let from = shard("bank", 0);
            let mut sequence = 0;
            two.retry_until(
                "a command",
                || {
                    sequence += 1;
                    bank.bridge.send(command(&from, &to, sequence))
                },
                |got| effects(&got.direct).len() >= 10,
            )
            .await;
            let client = async_nats::connect(server.url()).await.expect("connects");
            assert_eq!(consumers(&client, STREAM).await, ["e-shop-shop-1-e5"]);
            one.inspect(|got| assert!(got.direct.is_empty()));
            assert_eq!(one.bridge.health().issues, Vec::<String>::new());
            let refused = one.bridge.own(&to, 4).await.expect_err("a later owner exists").to_string();
            assert!(refused.contains("e-shop-shop-1-e5") && refused.contains("restored"), "{refused}");
            assert!(one.bridge.health().issues.iter().any(|issue| issue.contains("nats consumer rm")));
            one.bridge.own(&to, 6).await.expect("owns");
            assert_eq!(one.bridge.health().issues, Vec::<String>::new());
            for node in [bank, one, two] {
                node.stop().await;
            }
        });
    }
}

/// A consumer that an operator has deleted, or that was lost with its stream, is created again by its owner.
#[test]
fn lost_consumer_of_a_shard_is_recreated_by_its_owner() {
    for release in BOTH {
        run(async {
            let mut server = NatsServer::start(release);
            let bank = start(&server, bank()).await;
            let node = start(&server, shop()).await;
            let (from, to) = (shard("bank", 0), shard("shop", 2));
            node.bridge.own(&to, 7).await.expect("owns");
            let client = async_nats::connect(server.url()).await.expect("connects");
            let path = format!("$JS.API.CONSUMER.DELETE.{STREAM}.e-shop-shop-2-e7");
            client.request(path, "".into()).await.expect("an answer");
            let mut sequence = 0;
            for round in 1..=2 {
                node.retry_until(
                    "a command",
                    || {
                        sequence += 1;
                        bank.bridge.send(command(&from, &to, sequence))
                    },
                    |got| effects(&got.direct).len() >= 10 * round,
                )
                .await;
                let client = async_nats::connect(server.url()).await.expect("connects");
                until("its consumer", async || consumers(&client, STREAM).await == ["e-shop-shop-2-e7"]).await;
                if round == 1 {
                    server.restart_empty();
                }
            }
            bank.stop().await;
            node.stop().await;
        });
    }
}

/// The consumer of a shard that has messages and delivers none is created again by the owner, which needs no setup for it.
#[test]
fn stalled_consumer_of_a_shard_is_recreated_by_its_owner() {
    run(async {
        tokio::join!(stalled_consumer(Release::Distribution), stalled_consumer(Release::Pinned));
    });
}

async fn stalled_consumer(release: Release) {
    const CONSUMER: &str = "e-shop-shop-1-e7";
    let server = NatsServer::start(release);
    let (from, to) = (shard("bank", 0), shard("shop", 1));
    let bank = start(&server, bank()).await;
    let node = start(&server, shop()).await;
    node.bridge.own(&to, 7).await.expect("owns");
    node.stop().await;
    // Another client holds one message, and no more may be unacknowledged.
    let operator = jetstream::new(async_nats::connect(server.url()).await.expect("connects"));
    let stream = operator.get_stream(STREAM).await.expect("a stream");
    let limit = async || {
        let settings = pull::Config {
            durable_name: Some(CONSUMER.to_owned()),
            filter_subject: "whizbang.cmd.shop.1.>".to_owned(),
            ack_policy: AckPolicy::Explicit,
            ack_wait: Duration::from_secs(3_600),
            max_ack_pending: 1,
            ..pull::Config::default()
        };
        stream.create_consumer(settings).await.expect("changes the consumer")
    };
    let consumer = limit().await;
    operator.publish("whizbang.cmd.shop.1.outside", "held".into()).await.expect("sends").await.expect("is kept");
    let taken = consumer.batch().max_messages(1).expires(Duration::from_secs(10)).messages().await;
    taken.expect("messages").next().await.expect("the message").expect("a message");
    let node = start(&server, shop()).await;
    node.bridge.own(&to, 7).await.expect("owns");
    // The owner has set the limits of the consumer again.
    limit().await;
    bank.bridge.send(command(&from, &to, 1)).await.expect("sends");
    until("a recreated consumer", async || node.bridge.health().recreated_consumers == 1).await;
    node.wait_until("the command", |got| got.direct.len() == 1).await;
    until("no issue", async || node.bridge.health().issues.is_empty()).await;
    let notes = node.bridge.health().notes;
    assert!(notes.iter().any(|note| note.contains(CONSUMER) && note.contains("created again")), "{notes:?}");
    assert_eq!(consumers(&operator.client(), STREAM).await, [CONSUMER]);
    node.stop().await;
    bank.stop().await;
}

/// The time to move all shards of a domain, which the test prints. The events themselves are asserted.
#[test]
fn hundred_shards_move_to_another_node() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let card = || {
                let mut card = shop();
                card.owns.iter_mut().for_each(|(_, shards)| *shards = 100);
                card
            };
            let bank = start(&server, bank()).await;
            let [one, two] = [start(&server, card()).await, start(&server, card()).await];
            let shards: Vec<_> = (0..100).map(|number| shard("shop", number)).collect();
            let begun = Instant::now();
            for shard in &shards {
                one.bridge.own(shard, 1).await.expect("owns");
            }
            let taken = begun.elapsed();
            let mut moves = Vec::new();
            for (number, to) in (1..).zip(&shards) {
                let begun = Instant::now();
                one.bridge.disown(to).await;
                two.bridge.own(to, 2).await.expect("owns");
                let message = command(&shard("bank", 0), to, number);
                bank.bridge.send(message).await.expect("sends");
                let arrived = usize::try_from(number).expect("fits");
                two.wait_until("the command", |got| got.direct.len() >= arrived).await;
                moves.push(begun.elapsed());
            }
            moves.sort_unstable();
            println!(
                "{release:?}: 100 shards taken in {taken:?}; moves: median {:?}, longest {:?}",
                moves[50], moves[99]
            );
            one.inspect(|got| assert!(got.direct.is_empty()));
            // A bound that only a wait for a redelivery or a poll would exceed.
            assert!(moves[50] < Duration::from_secs(1), "{:?}", moves[50]);
            for node in [bank, one, two] {
                node.stop().await;
            }
        });
    }
}

/// Without a quorum no consumer is created. Callers of the shard do not wait for it: commands that are answered need no stream.
#[test]
fn requests_are_answered_before_the_consumer_exists() {
    for release in BOTH {
        run(async {
            let mut cluster = NatsCluster::start(release);
            let url = format!("nats://127.0.0.1:{}", cluster.ports()[0]);
            let bank = attach(NatsBridge::builder(&url).replicas(3), bank()).await;
            let node = attach(NatsBridge::builder(&url).replicas(3), shop()).await;
            cluster.kill(1);
            cluster.kill(2);
            let to = shard("shop", 1);
            let asking = async {
                let ask = || bank.bridge.request(Request::Command(external_command(&to, 5)), Duration::from_secs(5));
                // Until the node has subscribed, the shard has no owner.
                while let Err(BridgeError::NoOwner { .. }) = ask().await {}
                ask().await
            };
            let answer = tokio::select! {
                owned = node.bridge.own(&to, 1) => panic!("owned without a quorum: {owned:?}"),
                answer = tokio::time::timeout(Duration::from_secs(30), asking) => answer.expect("an answer in time"),
            };
            assert!(answer.is_ok(), "{answer:?}");
            node.inspect(|got| assert!(!got.requests.is_empty()));
        });
    }
}
