//! A service that is down, or whose consumer delivers nothing, while another service sends commands to it.

use std::ops::Range;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::{self, Context};
use futures_util::{FutureExt, StreamExt};
use whizbang::prelude::*;
use whizbang::testing::bridge::run;
use whizbang_tests::nats::NatsServer;
use whizbang_tests::{brief_or_long, poll_interval};

use crate::bank::{Account, Transfer, deposit, outcome, transfer};
use crate::{BOTH, services, until};

const STREAM: &str = "whizbang_commands_bank";

async fn accounts(server: &NatsServer, store: &MemoryStore) -> Node {
    let builder = Node::builder("accounts", store.clone()).aggregate::<Account>();
    builder.bridge(services::bridge(&server.url()).await).start().await.expect("starts")
}

async fn transfers(server: &NatsServer) -> Node {
    let builder = Node::builder("transfers", MemoryStore::new()).saga::<Transfer>();
    builder.bridge(services::bridge(&server.url()).await).start().await.expect("starts")
}

/// Returns the store of a bank with its streams created and money to transfer.
async fn rich_bank(server: &NatsServer) -> MemoryStore {
    let store = MemoryStore::new();
    let node = accounts(server, &store).await;
    assert_eq!(node.client().send(deposit("ada", 10_000)).await.expect("is handled"), 10_000);
    node.stop().await.expect("stops");
    store
}

async fn operator(server: &NatsServer) -> Context {
    jetstream::new(async_nats::connect(server.url()).await.expect("connects"))
}

async fn messages(context: &Context) -> u64 {
    let mut stream = context.get_stream(STREAM).await.expect("a stream");
    stream.info().await.expect("its state").state.messages
}

/// Returns the number of messages that a stream has ever had.
async fn ever_sent(context: &Context, stream: &str) -> u64 {
    let mut stream = context.get_stream(stream).await.expect("a stream");
    stream.info().await.expect("its state").state.last_sequence
}

async fn begin(node: &Node, transfers: Range<usize>) {
    let client = node.client();
    for number in transfers {
        client.send(transfer(&format!("t{number}"), "ada", &format!("b{number}"), 5)).await.expect("begins here");
    }
}

async fn all_done(node: &Node, count: usize) {
    let client = node.client();
    for number in 0..count {
        let name = format!("t{number}");
        until("the end of a transfer", async || {
            client.send(outcome(&name)).await.is_ok_and(|outcome| outcome == "done")
        })
        .await;
    }
}

/// A stream keeps an accepted command, so nothing is sent again while the owner is down; the owner is asked for its watermark.
#[test]
fn commands_to_a_service_that_is_down_are_sent_once() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let store = rich_bank(&server).await;
            let context = operator(&server).await;
            let mut questions = context.client().subscribe("whizbang.ask.bank.mark.>").await.expect("subscribes");
            let node = transfers(&server).await;
            begin(&node, 0..1_000).await;
            until("all commands", async || messages(&context).await >= 1_000).await;
            // Four requests of each shard take seven seconds, ten of them a minute. A resending relay would send everything again.
            let rounds = brief_or_long(4, 10);
            for _ in 0..rounds * 16 {
                questions.next().await.expect("a question");
            }
            let more = std::iter::from_fn(|| questions.next().now_or_never().flatten()).count();
            assert!(more < 16, "{more} more than one question of each shard in a round");
            assert_eq!(messages(&context).await, 1_000, "each command is in the stream once");
            let teller = Client::connect("teller", services::bridge(&server.url()).await).await.expect("connects");
            let error = teller.send(deposit("ada", 0)).deadline(Duration::from_secs(2)).await.expect_err("is down");
            let text = whizbang::error_chain(&error).to_string();
            assert!(!text.contains("0ns"), "{text}");
            println!("{release:?}: {text}");
            teller.post_to_broker(deposit("ada", 0)).await.expect("the stream has room for other callers");
            teller.disconnect().await;
            let bank = accounts(&server, &store).await;
            all_done(&node, 1_000).await;
            assert_eq!(bank.client().send(deposit("ada", 0)).await.expect("is handled"), 5_000);
            until("an empty stream", async || messages(&context).await == 0).await;
            node.stop().await.expect("stops");
            bank.stop().await.expect("stops");
        });
    }
}

/// Messages that a consumer does not deliver are fetched from the outbox of their sender.
#[test]
fn stuck_consumer_stops_no_flow() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let store = rich_bank(&server).await;
            let context = operator(&server).await;
            // The limit of unacknowledged messages is one, and another client holds one message for an hour.
            let stream = context.get_stream(STREAM).await.expect("a stream");
            let settings = pull::Config {
                durable_name: Some("accounts".to_owned()),
                ack_policy: AckPolicy::Explicit,
                ack_wait: Duration::from_secs(3_600),
                max_ack_pending: 1,
                ..pull::Config::default()
            };
            let consumer = stream.create_consumer(settings).await.expect("changes the consumer");
            context.publish("whizbang.cmd.bank.1.outside", "bait".into()).await.expect("sends").await.expect("is kept");
            let taken = consumer.batch().max_messages(1).expires(Duration::from_secs(10)).messages().await;
            let mut taken = taken.expect("messages");
            taken.next().await.expect("the bait").expect("a message");
            let (bank, node) = (accounts(&server, &store).await, transfers(&server).await);
            begin(&node, 0..300).await;
            all_done(&node, 300).await;
            assert_eq!(bank.client().send(deposit("ada", 0)).await.expect("is handled"), 8_500);
            assert_eq!(bank.metrics().recreated_consumers, 0, "the consumer delivered nothing during the test");
            assert!(messages(&context).await > 300, "the bait, and what was fetched instead");
            node.stop().await.expect("stops");
            bank.stop().await.expect("stops");
        });
    }
}

/// A full stream rejects immediately: the caller gets that error, not a missing reply.
#[test]
fn full_stream_is_reported_to_the_caller() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let builder = Node::builder("accounts", MemoryStore::new()).aggregate::<Account>();
            let bridge = services::builder(&server.url()).stream_bytes(64 * 1024).connect().await.expect("connects");
            builder.bridge(bridge).start().await.expect("starts").stop().await.expect("stops");
            let teller = Client::connect("teller", services::bridge(&server.url()).await).await.expect("connects");
            let mut refused = None;
            for _ in 0..1_000 {
                if let Err(error) = teller.post_to_broker(deposit("ada", 5)).no_retry().await {
                    refused = Some(error);
                    break;
                }
            }
            let error = refused.expect("64 KiB overflow before a thousand commands are sent");
            let text = whizbang::error_chain(&error).to_string();
            assert!(text.contains("maximum bytes exceeded"), "{text}");
            assert!(error.is_transient() && !error.may_have_happened(), "{error:?}");
            teller.disconnect().await;
        });
    }
}

/// Messages that wait for the server, or were on their way when it was killed, are sent a few times at most, however long it is
/// away.
#[test]
fn outage_causes_few_copies_of_each_message() {
    for release in BOTH {
        run(async {
            let mut server = NatsServer::start(release);
            let store = rich_bank(&server).await;
            let (bank, node) = (accounts(&server, &store).await, transfers(&server).await);
            let streams = [STREAM, "whizbang_commands_transfers"];
            begin(&node, 0..300).await;
            server.kill();
            let (begun, lasts) = (tokio::time::Instant::now(), Duration::from_secs(brief_or_long(1, 60)));
            begin(&node, 300..600).await;
            let is_reported = |node: &Node| node.health().reasons.iter().any(|reason| reason.contains("no connection"));
            while begun.elapsed() < lasts || !is_reported(&node) || !is_reported(&bank) {
                assert!(begun.elapsed() < lasts + Duration::from_secs(60), "{:?}", node.health());
                poll_interval().await;
            }
            server.restart();
            let outage = begun.elapsed();
            all_done(&node, 600).await;
            assert_eq!(bank.client().send(deposit("ada", 0)).await.expect("is handled"), 7_000);
            until("good health", async || !is_reported(&node) && !is_reported(&bank)).await;
            let context = operator(&server).await;
            for stream in streams {
                until("an empty stream", async || {
                    let mut stream = context.get_stream(stream).await.expect("a stream");
                    stream.info().await.expect("its state").state.messages == 0
                })
                .await;
                // A withdrawal and a deposit for each transfer, or their replies.
                let sent = ever_sent(&context, stream).await;
                println!("{release:?}: {sent} messages in {stream} for 1,200, after {outage:?} without the server");
                assert!(sent <= 2 * 1_200, "{sent} messages in {stream}");
            }
            node.stop().await.expect("stops");
            bank.stop().await.expect("stops");
        });
    }
}

/// Nodes crash and the server is killed in turn, while transfers are in flight.
#[test]
fn alternating_kills_lose_nothing_and_leave_nothing_behind() {
    const EACH: usize = 60;
    for release in BOTH {
        run(async {
            let mut server = NatsServer::start(release);
            let (money, moves) = (rich_bank(&server).await, MemoryStore::new());
            let start = async |server: &NatsServer| {
                let builder = Node::builder("transfers", moves.clone()).saga::<Transfer>();
                builder.bridge(services::bridge(&server.url()).await).start().await.expect("starts")
            };
            let (mut bank, mut node) = (accounts(&server, &money).await, start(&server).await);
            for round in 0..9 {
                let client = node.client();
                let ended = node.metrics().events;
                for number in 0..EACH {
                    let name = format!("t{}", round * EACH + number);
                    client.send(transfer(&name, "ada", &format!("b{number}"), 5)).await.expect("begins here");
                }
                // Each transfer records its beginning and its end: some have ended, and most are in flight.
                until("some ends", async || node.metrics().events > ended + EACH as u64 + 3).await;
                match round % 3 {
                    0 => server.restart(),
                    1 => {
                        drop(bank);
                        bank = accounts(&server, &money).await;
                    }
                    _ => {
                        drop(node);
                        node = start(&server).await;
                    }
                }
            }
            all_done(&node, 9 * EACH).await;
            assert_eq!(bank.client().send(deposit("ada", 0)).await.expect("is handled"), 10_000 - 5 * 9 * EACH as u64);
            let context = operator(&server).await;
            for stream in [STREAM, "whizbang_commands_transfers"] {
                until("an empty stream", async || {
                    let mut stream = context.get_stream(stream).await.expect("a stream");
                    stream.info().await.expect("its state").state.messages == 0
                })
                .await;
            }
            node.stop().await.expect("stops");
            bank.stop().await.expect("stops");
        });
    }
}
