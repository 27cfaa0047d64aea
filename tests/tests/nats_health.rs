//! The issues that the bridge reports while the server has a fault, and their end once it is repaired.

use std::sync::Arc;

use async_nats::jetstream::{self, consumer, stream};
use futures_util::StreamExt;
use whizbang::bridge::nats::NatsBridge;
use whizbang::bridge::{AckOutcome, Bridge, BridgeError, BridgeHealth, Request, RequestError, Response};
use whizbang::message::Envelope;
use whizbang::testing::bridge::cases::sample::{command, event, external_command, shard};
use whizbang::testing::bridge::node::{NodeBehavior, TestNode, named, service};
use whizbang::testing::bridge::{SHARDS, run};
use whizbang_tests::nats::{NatsConfig, NatsServer, Release};
use whizbang_tests::until;

const BOTH: [Release; 2] = [Release::Distribution, Release::Pinned];

async fn bank(server: &NatsServer, behavior: NodeBehavior) -> TestNode {
    let bridge: Arc<dyn Bridge> = Arc::new(NatsBridge::connect(&server.url()).await.expect("connects"));
    let card = service("bank").owning(named("bank"), SHARDS).subscribing(named("shop"), SHARDS, [named("Happened")]);
    TestNode::attach(bridge, card, behavior).await.expect("attaches")
}

async fn operator(server: &NatsServer) -> jetstream::Context {
    jetstream::new(async_nats::connect(server.url()).await.expect("connects"))
}

/// Waits for a condition of the health; arriving messages wake the waiter.
async fn until_health(node: &TestNode, what: &str, holds: impl Fn(&BridgeHealth) -> bool) {
    let waiting = async {
        while !holds(&node.bridge.health()) {
            node.wait_for_message(std::time::Duration::from_millis(50)).await;
        }
    };
    if tokio::time::timeout(std::time::Duration::from_secs(120), waiting).await.is_err() {
        panic!("{what}: {:?}", node.bridge.health());
    }
}

#[test]
fn lost_connection_is_reported_until_it_is_back() {
    for release in BOTH {
        run(async {
            let mut server = NatsServer::start(release);
            let node = bank(&server, NodeBehavior::default()).await;
            assert_eq!(node.bridge.health(), BridgeHealth::default());
            server.kill();
            until_health(&node, "an issue", |health| {
                health.issues.iter().any(|issue| issue.contains("no connection to nats://127.0.0.1"))
            })
            .await;
            server.restart();
            until_health(&node, "no issue", |health| health.issues.is_empty()).await;
            node.stop().await;
        });
    }
}

/// A large event, and the events of its shard behind it, wait until the server accepts it. Health says so.
#[test]
fn reduced_max_payload_is_reported_until_it_is_raised() {
    for release in BOTH {
        run(async {
            let mut server = NatsServer::start(release);
            let node = bank(&server, NodeBehavior::default()).await;
            server.restart_with(NatsConfig { max_payload: Some(64 * 1024), ..NatsConfig::default() });
            until_health(&node, "an issue", |health| {
                health.issues.iter().any(|issue| issue.contains("65536") && issue.contains("set `max_payload`"))
            })
            .await;
            let refused = node.bridge.send(large(1)).await;
            assert!(matches!(refused, Err(BridgeError::Oversize { limit: 65_536, .. })), "{refused:?}");
            server.restart_with(NatsConfig::default());
            until_health(&node, "no issue", |health| health.issues.is_empty()).await;
            node.retry_until("a large command", || node.bridge.send(large(1)), |received| !received.direct.is_empty())
                .await;
            node.stop().await;
        });
    }
}

#[test]
fn wrong_stream_is_reported_until_it_is_repaired() {
    for release in BOTH {
        run(async {
            let mut server = NatsServer::start(release);
            let node = bank(&server, NodeBehavior::default()).await;
            let name = "whizbang_commands_bank";
            let admin = operator(&server).await;
            admin.delete_stream(name).await.expect("deletes");
            let wrong = stream::Config {
                name: name.to_owned(),
                subjects: vec!["whizbang.cmd.bank.>".to_owned()],
                retention: stream::RetentionPolicy::Limits,
                ..stream::Config::default()
            };
            admin.create_stream(wrong).await.expect("creates");
            server.restart();
            until_health(&node, "an issue", |health| {
                health.issues.iter().any(|issue| issue.contains(name) && issue.contains("exists with"))
            })
            .await;
            operator(&server).await.delete_stream(name).await.expect("deletes");
            until_health(&node, "no issue", |health| health.issues.is_empty()).await;
            let send = || node.bridge.send(command(&shard("bank", 0), &shard("bank", 1), 1));
            node.retry_until("a command", send, |received| !received.direct.is_empty()).await;
            node.stop().await;
        });
    }
}

fn refusing() -> NodeBehavior {
    NodeBehavior { handler: Box::new(|_, _| AckOutcome::Reject("unknown here".to_owned())), ..NodeBehavior::default() }
}

fn large(number: u64) -> Envelope {
    Envelope { payload: vec![7; 500_000].into(), ..external_command(&shard("bank", 1), number) }
}

/// Returns the payload sizes in the stream of refused messages.
async fn refused_sizes(server: &NatsServer, count: usize) -> Vec<usize> {
    let stream = operator(server).await.get_stream("whizbang_refused_bank").await.expect("a stream");
    let consumer = stream.create_consumer(consumer::pull::Config::default()).await.expect("a consumer");
    let messages = consumer.messages().await.expect("messages").take(count);
    messages.map(|message| message.expect("a message").payload.len()).collect().await
}

#[test]
fn refused_messages_are_copied_whole_and_counted() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let node = bank(&server, refusing()).await;
            for number in 1..=3 {
                node.bridge.send(large(number)).await.expect("sends");
            }
            until_health(&node, "three refused", |health| health.refused == 3).await;
            assert_eq!(refused_sizes(&server, 3).await, [500_000; 3]);
            assert!(node.bridge.health().issues.is_empty());
            node.stop().await;
        });
    }
}

/// While the refused stream is full, a message stays in its own stream: it is terminated only after its copy is acknowledged.
#[test]
fn refused_messages_stay_while_their_stream_is_full() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let node = bank(&server, refusing()).await;
            let admin = operator(&server).await;
            let name = "whizbang_refused_bank";
            let mut config = admin.get_stream(name).await.expect("a stream").cached_info().config.clone();
            config.max_bytes = 700_000;
            admin.update_stream(&config).await.expect("updates");
            for number in 1..=3 {
                node.bridge.send(large(number)).await.expect("sends");
            }
            until_health(&node, "a note", |health| {
                health.notes.iter().any(|note| note.contains(name) && note.contains("purge"))
            })
            .await;
            assert_eq!((node.bridge.health().refused, node.bridge.health().issues), (1, Vec::new()));
            let mut own = admin.get_stream("whizbang_commands_bank").await.expect("a stream");
            assert_eq!(own.info().await.expect("its state").state.messages, 2, "two wait in their own stream");
            config.max_bytes = 16 << 20;
            admin.update_stream(&config).await.expect("updates");
            until_health(&node, "all refused", |health| health.refused == 3 && health.notes.is_empty()).await;
            assert_eq!(node.bridge.health().discarded, 0);
            assert_eq!(refused_sizes(&server, 3).await, [500_000; 3]);
            node.stop().await;
        });
    }
}

/// A client fills the stream of refused messages, and writes more of them than the server delivers without an acknowledgement. Valid
/// messages are delivered, and the refused messages of another sender wait for an operator.
#[test]
fn client_that_fills_the_refused_stream_stops_no_message() {
    const JUNK: u64 = 12_000;
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let node = bank(&server, NodeBehavior::default()).await;
            let admin = operator(&server).await;
            let name = "whizbang_refused_bank";
            let mut config = admin.get_stream(name).await.expect("a stream").cached_info().config.clone();
            config.max_bytes = 100_000;
            admin.update_stream(&config).await.expect("updates");
            let client = async_nats::connect(server.url()).await.expect("connects");
            for _ in 0..JUNK {
                client.publish("whizbang.cmd.bank.1.outside", vec![7; 2_000].into()).await.expect("writes");
            }
            client.flush().await.expect("flushes");
            // Undecodable as well, from a service.
            for _ in 0..3 {
                let sent = admin.publish("whizbang.cmd.bank.1.shop.0", vec![7; 2_500].into()).await.expect("writes");
                sent.await.expect("is kept");
            }
            node.bridge.send(command(&shard("shop", 0), &shard("bank", 1), 1)).await.expect("sends");
            node.wait_until("the valid command", |received| received.direct.len() == 1).await;
            let waiting = async || {
                let mut own = admin.get_stream("whizbang_commands_bank").await.expect("a stream");
                own.info().await.expect("its state").state.messages
            };
            // The client has a share of 256 messages, the service keeps its three.
            until_health(&node, "discarded messages", |health| {
                health.refused + health.discarded + 256 + 3 == JUNK + 3
                    && health.notes.iter().any(|note| note.contains("purge"))
            })
            .await;
            until("only these are left", async || waiting().await == 256 + 3).await;
            assert_eq!(node.bridge.health().issues, Vec::<String>::new());
            config.max_bytes = 16 << 20;
            admin.update_stream(&config).await.expect("updates");
            until_health(&node, "all copied", |health| {
                health.refused + health.discarded == JUNK + 3 && health.notes.is_empty()
            })
            .await;
            let mut copies = refused_sizes(&server, usize::try_from(node.bridge.health().refused).expect("fits")).await;
            copies.retain(|size| *size == 2_500);
            assert_eq!(copies.len(), 3);
            node.stop().await;
        });
    }
}

/// A stream that refuses new messages when it is full must keep the old ones. nats-server 2.9.10 removes some, and a node warns.
#[test]
fn full_stream_loses_messages_only_on_older_servers() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let admin = operator(&server).await;
            let config = stream::Config {
                name: "full".to_owned(),
                subjects: vec!["full".to_owned()],
                retention: stream::RetentionPolicy::WorkQueue,
                discard: stream::DiscardPolicy::New,
                max_bytes: 10_000,
                ..stream::Config::default()
            };
            let mut full = admin.create_stream(config).await.expect("creates");
            let mut accepted = 0;
            for _ in 0..1_000 {
                // A refusal is an error.
                accepted += u64::from(admin.publish("full", "".into()).await.expect("writes").await.is_ok());
            }
            let kept = full.info().await.expect("its state").state.messages;
            println!("{release:?}: {accepted} accepted, {kept} kept");
            match release {
                Release::Distribution => assert!(kept < accepted, "nats-server 2.9.10 removes accepted messages"),
                Release::Pinned => assert_eq!(kept, accepted),
            }
        });
    }
}

/// Unacknowledged copies count in the window of their consumer, so a flood of refused messages does not fill the memory.
#[test]
fn flood_of_refused_messages_is_bounded() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let node = bank(&server, NodeBehavior { capacity: 100_000, ..refusing() }).await;
            let admin = operator(&server).await;
            admin.delete_stream("whizbang_refused_bank").await.expect("deletes");
            // A subscriber that receives the copies and acknowledges none.
            let stranger = async_nats::connect(server.url()).await.expect("connects");
            let _copies = stranger.subscribe("whizbang.refused.bank").await.expect("subscribes");
            stranger.flush().await.expect("flushes");
            let sending = (1..=3_000).map(|number| node.bridge.send(external_command(&shard("bank", 1), number)));
            let sent = futures_util::future::join_all(sending).await;
            assert!(sent.iter().all(Result::is_ok), "{:?}", sent.iter().find(|sent| sent.is_err()));
            node.wait_until("a full window", |received| received.direct.len() >= 1_024).await;
            node.wait_for_message(std::time::Duration::from_millis(500)).await;
            node.inspect(|received| {
                assert_eq!(received.direct.len(), 1_024, "the window is full and nothing beyond it was delivered")
            });
            node.bridge.abandon();
        });
    }
}

/// A stream that another service has not created yet is checked repeatedly, which is not a reason to check for gaps.
#[test]
fn missing_foreign_stream_is_not_a_reconnection() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let spy = async_nats::connect(server.url()).await.expect("connects");
            let mut looks = spy.subscribe("$JS.API.STREAM.INFO.whizbang_events_shop").await.expect("subscribes");
            spy.flush().await.expect("flushes");
            let node = bank(&server, NodeBehavior::default()).await;
            for _ in 0..5 {
                looks.next().await.expect("a look");
            }
            // All checks but the last are answered.
            node.inspect(|received| assert_eq!(received.reconnected, 0, "no reconnection and no new stream"));
            let bridge: Arc<dyn Bridge> = Arc::new(NatsBridge::connect(&server.url()).await.expect("connects"));
            let shop =
                TestNode::attach(bridge, service("shop").owning(named("shop"), SHARDS), NodeBehavior::default()).await;
            let shop = shop.expect("attaches");
            node.wait_until("the notification that the stream exists", |received| received.reconnected == 1).await;
            shop.bridge.publish(event(&shard("shop", 0), 1)).await.expect("publishes");
            node.wait_until("its event", |received| received.events.len() == 1).await;
            node.inspect(|received| assert_eq!(received.reconnected, 1));
            shop.stop().await;
            node.stop().await;
        });
    }
}

/// nats-server 2.9.10 was observed to keep messages in a work queue that its consumer counts as acknowledged, after it was killed under
/// load. This test creates the state by restoring the messages without the consumer.
#[test]
fn messages_below_the_acknowledgement_floor_are_delivered() {
    let name = "whizbang_commands_bank";
    for release in BOTH {
        run(async {
            let mut server = NatsServer::start(release);
            let shop: Arc<dyn Bridge> = Arc::new(NatsBridge::connect(&server.url()).await.expect("connects"));
            let shop = TestNode::attach(shop, service("shop").owning(named("shop"), SHARDS), NodeBehavior::default())
                .await
                .expect("attaches");
            bank(&server, NodeBehavior::default()).await.stop().await;
            for number in 1..=100 {
                shop.bridge.send(external_command(&shard("bank", 1), number)).await.expect("sends");
            }
            let messages = async |server: &NatsServer| {
                let mut stream = operator(server).await.get_stream(name).await.expect("a stream");
                stream.info().await.expect("its state").state.messages
            };
            assert_eq!(messages(&server).await, 100);
            server.stop();
            let copy = server.back_up();
            server.restart();
            let node = bank(&server, NodeBehavior::default()).await;
            node.wait_until("all commands", |received| received.direct.len() >= 100).await;
            while messages(&server).await > 0 {
                node.wait_for_message(std::time::Duration::from_millis(20)).await;
            }
            node.stop().await;
            server.stop();
            server.restore_messages(&copy, name);
            server.restart();
            let left = messages(&server).await;
            if release == Release::Distribution {
                assert_eq!(left, 100, "below the floor of the consumer");
            }
            println!("{release:?}: {left} messages left behind");
            let node = bank(&server, NodeBehavior::default()).await;
            let mut looks = 0;
            while messages(&server).await > 0 {
                looks += 1;
                assert!(looks < 500, "the messages stay");
                node.wait_for_message(std::time::Duration::from_millis(20)).await;
            }
            node.stop().await;
            shop.stop().await;
        });
    }
}

/// Events that are not completed, because of a slow job or a gap, leave capacity to the commands of the node.
#[test]
fn unfinished_events_leave_capacity_to_commands() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let shop_bridge: Arc<dyn Bridge> = Arc::new(NatsBridge::connect(&server.url()).await.expect("connects"));
            let card = service("shop").owning(named("shop"), SHARDS);
            let shop = TestNode::attach(shop_bridge, card, NodeBehavior::default()).await.expect("attaches");
            // No message completes before the node is opened.
            let node = bank(&server, NodeBehavior { capacity: 100_000, open: false, ..NodeBehavior::default() }).await;
            for position in 1..=5_000 {
                shop.bridge.publish(event(&shard("shop", 0), position)).await.expect("publishes");
            }
            node.wait_until("a full window of events", |received| received.events.len() >= 1_024).await;
            node.bridge.send(command(&shard("shop", 0), &shard("bank", 1), 1)).await.expect("sends");
            node.wait_until("the command", |received| received.direct.len() == 1).await;
            node.open();
            node.wait_until("all events", |received| received.events.len() >= 5_000).await;
            shop.stop().await;
            node.stop().await;
        });
    }
}

/// A request of forty bytes asks for a page of up to a megabyte: only a few are answered at once, the others are refused.
#[test]
fn page_requests_are_bounded() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let (open, opened) = tokio::sync::watch::channel(false);
            let responder = move |_: Request| -> futures_util::future::BoxFuture<'static, Response> {
                let mut opened = opened.clone();
                Box::pin(async move {
                    // The sender exists as long as the test.
                    let _ = opened.wait_for(|open| *open).await;
                    Response::envelopes(Vec::new(), 0)
                })
            };
            let node = bank(&server, NodeBehavior { responder: Box::new(responder), ..NodeBehavior::default() }).await;
            let question = || Request::Events { shard: shard("bank", 0), after: 0, limit: 1_000 };
            let asking = (0..200).map(|_| node.bridge.request(question(), std::time::Duration::from_secs(20)));
            let busy = std::cell::Cell::new(0);
            let answers = futures_util::future::join_all(asking.map(|answer| async {
                let answer = answer.await.expect("an answer");
                if answer == Response::Refused(RequestError::Busy) {
                    busy.set(busy.get() + 1);
                    if busy.get() == 192 {
                        open.send_replace(true);
                    }
                }
                answer
            }))
            .await;
            assert_eq!(answers.iter().filter(|answer| matches!(answer, Response::Envelopes(..))).count(), 8);
            node.inspect(|received| assert_eq!(received.requests.len(), 8));
            node.stop().await;
        });
    }
}

/// A consumer that has messages and delivers none is recreated. Other clients cause the stall: one pauses the consumer, which
/// only the pinned release can, and one holds as many messages as may be unacknowledged.
#[test]
fn stalled_consumer_is_recreated() {
    run(async {
        tokio::join!(
            paused_consumer_is_recreated(Release::Pinned),
            held_consumer_is_recreated(Release::Pinned),
            held_consumer_is_recreated(Release::Distribution),
        );
    });
}

async fn paused_consumer_is_recreated(release: Release) {
    let server = NatsServer::start(release);
    let node = bank(&server, NodeBehavior::default()).await;
    let body = format!("{{\"pause_until\":\"{}\"}}", time_in_an_hour());
    let admin = operator(&server).await;
    let paused = admin.client().request("$JS.API.CONSUMER.PAUSE.whizbang_commands_bank.bank", body.into()).await;
    let paused = paused.expect("an answer");
    assert!(String::from_utf8_lossy(&paused.payload).contains("\"paused\":true"), "{paused:?}");
    consumer_is_recreated(node).await;
}

async fn held_consumer_is_recreated(release: Release) {
    let server = NatsServer::start(release);
    // The consumer exists, and no node pulls while another client takes the message.
    bank(&server, NodeBehavior::default()).await.stop().await;
    hold_all_messages(&operator(&server).await).await;
    consumer_is_recreated(bank(&server, NodeBehavior::default()).await).await;
}

async fn consumer_is_recreated(node: TestNode) {
    node.bridge.send(command(&shard("shop", 0), &shard("bank", 1), 1)).await.expect("sends");
    until_health(&node, "a recreated consumer", |health| health.recreated_consumers == 1).await;
    node.wait_until("the command", |received| received.direct.len() == 1).await;
    until_health(&node, "no issue", |health| health.issues.is_empty()).await;
    let notes = node.bridge.health().notes;
    assert!(notes.iter().any(|note| note.contains("consumer `bank`") && note.contains("created again")), "{notes:?}");
    node.stop().await;
}

/// Holds one message for an hour and sets the limit of unacknowledged messages to one.
async fn hold_all_messages(admin: &jetstream::Context) {
    let stream = admin.get_stream("whizbang_commands_bank").await.expect("a stream");
    let settings = consumer::pull::Config {
        durable_name: Some("bank".to_owned()),
        ack_policy: consumer::AckPolicy::Explicit,
        ack_wait: std::time::Duration::from_secs(3_600),
        max_ack_pending: 1,
        ..consumer::pull::Config::default()
    };
    let consumer = stream.create_consumer(settings).await.expect("changes the consumer");
    admin.publish("whizbang.cmd.bank.1.outside", "held".into()).await.expect("sends").await.expect("is kept");
    let taken = consumer.batch().max_messages(1).expires(std::time::Duration::from_secs(10)).messages().await;
    taken.expect("messages").next().await.expect("the message").expect("a message");
}

/// Returns a time in RFC 3339 about an hour in the future.
fn time_in_an_hour() -> String {
    let output = std::process::Command::new("date")
        .args(["-u", "-d", "+1 hour", "+%Y-%m-%dT%H:%M:%SZ"])
        .output()
        .expect("runs date");
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}
