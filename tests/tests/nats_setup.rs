//! The setup of a bridge on a server: missing, matching and conflicting streams and consumers.

#[path = "nats_nodes/log_capture.rs"]
mod log_capture;

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::{self, consumer, stream};
use whizbang::bridge::nats::NatsBridge;
use whizbang::bridge::subject::Namespace;
use whizbang::bridge::{Bridge, BridgeError, BridgeHealth, NodeCard};
use whizbang::testing::bridge::cases::sample::{command, shard};
use whizbang::testing::bridge::node::{NodeBehavior, TestNode, named, service};
use whizbang::testing::bridge::{SHARDS, run};
use whizbang_tests::nats::{NatsConfig, NatsServer, Release};

use crate::log_capture::Log;

const BOTH: [Release; 2] = [Release::Distribution, Release::Pinned];

async fn attach(server: &NatsServer, card: NodeCard) -> Result<TestNode, BridgeError> {
    let bridge: Arc<dyn Bridge> = Arc::new(NatsBridge::connect(&server.url()).await?);
    TestNode::attach(bridge, card, NodeBehavior::default()).await
}

async fn operator(server: &NatsServer) -> jetstream::Context {
    jetstream::new(async_nats::connect(server.url()).await.expect("connects"))
}

/// Returns the difference that attaching reports.
async fn difference(server: &NatsServer) -> (String, String, String, String) {
    match attach(server, service("bank").owning(named("bank"), SHARDS)).await.map(|_| ()) {
        Err(BridgeError::Mismatch { what, setting, found, wanted }) => (what, setting, found, wanted),
        other => panic!("{other:?}"),
    }
}

#[test]
fn conflicting_stream_is_reported_and_left_unchanged() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let operator = operator(&server).await;
            let name = "whizbang_commands_bank";
            let foreign = stream::Config {
                name: name.to_owned(),
                subjects: vec!["whizbang.cmd.bank.>".to_owned()],
                retention: stream::RetentionPolicy::Limits,
                ..stream::Config::default()
            };
            operator.create_stream(foreign.clone()).await.expect("creates");
            let found = difference(&server).await;
            assert_eq!(found.0, format!("stream `{name}`"));
            // The first difference in alphabetical order.
            assert_eq!((found.1.as_str(), found.2.as_str(), found.3.as_str()), ("discard", "\"old\"", "\"new\""));
            let left = operator.get_stream(name).await.expect("a stream");
            assert_eq!(left.cached_info().config.retention, stream::RetentionPolicy::Limits);
        });
    }
}

/// With such a setting, a header of any message could remove other messages of the stream, or set their end.
#[test]
fn stream_that_headers_can_change_is_refused() {
    for (release, setting) in [
        (Release::Distribution, "allow_rollup_hdrs"),
        (Release::Pinned, "allow_rollup_hdrs"),
        (Release::Pinned, "allow_msg_ttl"),
    ] {
        run(async {
            let server = NatsServer::start(release);
            let card = service("bank").owning(named("bank"), SHARDS);
            attach(&server, card).await.expect("attaches").stop().await;
            let client = async_nats::connect(server.url()).await.expect("connects");
            let api = async |request: &str, body: String| {
                let subject = format!("$JS.API.STREAM.{request}.whizbang_commands_bank");
                let answer = client.request(subject, body.into()).await.expect("an answer");
                serde_json::from_slice::<serde_json::Value>(&answer.payload).expect("JSON")
            };
            let mut config = api("INFO", String::new()).await["config"].take();
            config[setting] = true.into();
            let answer = api("UPDATE", config.to_string()).await;
            assert!(answer["error"].is_null(), "{answer}");
            let found = difference(&server).await;
            assert_eq!((found.1.as_str(), found.2.as_str(), found.3.as_str()), (setting, "true", "nothing"));
        });
    }
}

#[test]
fn foreign_stream_on_the_subjects_is_reported() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let greedy = stream::Config {
                name: "audit".to_owned(),
                subjects: vec!["whizbang.>".to_owned()],
                ..stream::Config::default()
            };
            operator(&server).await.create_stream(greedy).await.expect("creates");
            match attach(&server, service("bank").owning(named("bank"), SHARDS)).await.map(|_| ()) {
                Err(BridgeError::Refused { reason, .. }) => assert!(reason.contains("overlap"), "{reason}"),
                other => panic!("{other:?}"),
            }
        });
    }
}

#[test]
fn filtering_consumer_is_reported() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let node = attach(&server, service("bank").owning(named("bank"), SHARDS)).await.expect("attaches");
            node.stop().await;
            let stream = operator(&server).await.get_stream("whizbang_commands_bank").await.expect("a stream");
            stream.delete_consumer("bank").await.expect("deletes");
            let foreign = consumer::pull::Config {
                durable_name: Some("bank".to_owned()),
                filter_subject: "whizbang.cmd.bank.3.>".to_owned(),
                max_ack_pending: 10_000,
                ..consumer::pull::Config::default()
            };
            stream.create_consumer(foreign).await.expect("creates");
            let (what, setting, found, wanted) = difference(&server).await;
            assert_eq!(what, "consumer `bank` of stream `whizbang_commands_bank`");
            assert_eq!(setting, "filter_subject");
            assert_eq!((found.as_str(), wanted.as_str()), ("\"whizbang.cmd.bank.3.>\"", "nothing"));
        });
    }
}

#[test]
fn same_card_reuses_its_streams() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            for _ in 0..2 {
                let node = attach(
                    &server,
                    service("bank").owning(named("bank"), SHARDS).subscribing(
                        named("bank"),
                        SHARDS,
                        [named("Happened")],
                    ),
                )
                .await
                .expect("attaches");
                node.bridge.send(command(&shard("bank", 0), &shard("bank", 0), 1)).await.expect("sends");
                node.wait_until("the command", |received| received.direct.len() == 1).await;
                node.stop().await;
            }
        });
    }
}

#[test]
fn server_without_jetstream_is_refused_with_a_remedy() {
    for release in BOTH {
        run(async {
            let config = NatsConfig { without_jetstream: true, ..NatsConfig::default() };
            let server = NatsServer::start_with(release, config);
            match NatsBridge::connect(&server.url()).await.map(|_| ()) {
                Err(BridgeError::Refused { reason, .. }) => assert!(reason.contains("-js"), "{reason}"),
                other => panic!("{other:?}"),
            }
        });
    }
}

#[test]
fn insufficient_storage_is_reported_immediately() {
    run(async {
        let server = NatsServer::start(Release::Pinned);
        let builder = NatsBridge::builder(&server.url()).stream_bytes(1 << 40);
        let bridge: Arc<dyn Bridge> = Arc::new(builder.connect().await.expect("connects"));
        let start = tokio::time::Instant::now();
        match TestNode::attach(bridge, service("bank").owning(named("bank"), SHARDS), NodeBehavior::default())
            .await
            .map(|_| ())
        {
            Err(BridgeError::Refused { reason, .. }) => assert!(reason.contains("insufficient storage"), "{reason}"),
            other => panic!("{other:?}"),
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    });
}

#[test]
fn server_with_small_max_payload_is_refused_at_connect() {
    for release in BOTH {
        run(async {
            let config = NatsConfig { max_payload: Some(10_000), ..NatsConfig::default() };
            let server = NatsServer::start_with(release, config);
            match NatsBridge::connect(&server.url()).await.map(|_| ()) {
                Err(BridgeError::Refused { reason, .. }) => assert!(reason.contains("max_payload"), "{reason}"),
                other => panic!("{other:?}"),
            }
        });
    }
}

/// The server is restarted with a smaller limit after the check of [`NatsBridge::connect`].
#[test]
fn server_with_reduced_max_payload_is_refused_at_attach() {
    for release in BOTH {
        run(async {
            let mut server = NatsServer::start(release);
            let bridge: Arc<dyn Bridge> = Arc::new(NatsBridge::connect(&server.url()).await.expect("connects"));
            server.restart_with(NatsConfig { max_payload: Some(10_000), ..NatsConfig::default() });
            let card = service("bank").owning(named("bank"), SHARDS);
            match TestNode::attach(bridge, card, NodeBehavior::default()).await.map(|_| ()) {
                Err(BridgeError::Refused { reason, .. }) => assert!(reason.contains("max_payload"), "{reason}"),
                other => panic!("{other:?}"),
            }
        });
    }
}

/// An operator gives a stream more space, or less: a node uses it unchanged, also after a restart of the server.
#[test]
fn resized_streams_are_used_as_they_are() {
    for release in BOTH {
        for bytes in [1 << 30, 1 << 20] {
            run(async {
                let mut server = NatsServer::start(release);
                let node = attach(
                    &server,
                    service("bank").owning(named("bank"), SHARDS).subscribing(
                        named("bank"),
                        SHARDS,
                        [named("Happened")],
                    ),
                )
                .await
                .expect("attaches");
                for name in ["whizbang_commands_bank", "whizbang_events_bank"] {
                    let operator = operator(&server).await;
                    let mut config = operator.get_stream(name).await.expect("a stream").cached_info().config.clone();
                    config.max_bytes = bytes;
                    operator.update_stream(config).await.expect("updates");
                }
                server.restart();
                let send = || node.bridge.send(command(&shard("bank", 0), &shard("bank", 1), 1));
                node.retry_until("a command", send, |received| !received.direct.is_empty()).await;
                node.stop().await;
                let again = attach(
                    &server,
                    service("bank").owning(named("bank"), SHARDS).subscribing(
                        named("bank"),
                        SHARDS,
                        [named("Happened")],
                    ),
                )
                .await
                .expect("attaches");
                assert_eq!(again.bridge.health(), BridgeHealth::default());
                again.stop().await;
            });
        }
    }
}

/// All settings that an operator may change, of a stream and of a consumer: a node uses them unchanged, and logs each once.
#[test]
fn adjusted_settings_are_used_and_logged_once() {
    for release in BOTH {
        run(async {
            let mut server = NatsServer::start(release);
            let card = || service("bank").owning(named("bank"), SHARDS);
            attach(&server, card()).await.expect("attaches").stop().await;
            let admin = operator(&server).await;
            let mut events =
                admin.get_stream("whizbang_events_bank").await.expect("a stream").cached_info().config.clone();
            (events.max_age, events.max_bytes) = (Duration::from_secs(7_200), 1 << 20);
            admin.update_stream(events).await.expect("updates");
            let settings = consumer::pull::Config {
                durable_name: Some("bank".to_owned()),
                ack_policy: consumer::AckPolicy::Explicit,
                ack_wait: Duration::from_secs(10),
                max_ack_pending: 5_000,
                ..consumer::pull::Config::default()
            };
            let commands = admin.get_stream("whizbang_commands_bank").await.expect("a stream");
            commands.create_consumer(settings).await.expect("updates");
            let mut larger = commands.cached_info().config.clone();
            larger.max_bytes = 1 << 30;
            admin.update_stream(larger).await.expect("updates");
            let log = Log::listen();
            // The operator of a server without a cluster cannot have other replicas than one, but a node can be configured so.
            let bridge: Arc<dyn Bridge> =
                Arc::new(NatsBridge::builder(&server.url()).replicas(3).connect().await.expect("connects"));
            let node = TestNode::attach(bridge, card(), NodeBehavior::default()).await.expect("attaches");
            let send = || node.bridge.send(command(&shard("bank", 0), &shard("bank", 1), 1));
            node.retry_until("a command", send, |received| !received.direct.is_empty()).await;
            assert_eq!(node.bridge.health(), BridgeHealth::default());
            server.restart();
            node.wait_until("the reconnection", |received| received.reconnected > 0).await;
            for (of, setting, found) in [
                ("stream `whizbang_events_bank`", "max_age", "7200000000000"),
                ("stream `whizbang_events_bank`", "max_bytes", "1048576"),
                ("stream `whizbang_events_bank`", "num_replicas", "1"),
                ("stream `whizbang_commands_bank`", "num_replicas", "1"),
                ("consumer `bank`", "ack_wait", "10000000000"),
                ("consumer `bank`", "max_ack_pending", "5000"),
            ] {
                let is_about = |line: &&String| {
                    [of, "is used unchanged", &format!("\"{setting}\""), &format!("found=\"{found}\"")]
                        .iter()
                        .all(|part| line.contains(part))
                };
                assert_eq!(log.lines().iter().filter(is_about).count(), 1, "{of} {setting}: {:?}", log.lines());
            }
            // The stream of refused messages has other replicas, too. Larger values than configured are not logged.
            assert_eq!(log.says("is used unchanged"), 7, "{:?}", log.lines());
            let admin = operator(&server).await;
            let left = admin.get_stream("whizbang_events_bank").await.expect("a stream").cached_info().config.clone();
            assert_eq!((left.max_age, left.max_bytes, left.num_replicas), (Duration::from_secs(7_200), 1 << 20, 1));
            let commands = admin.get_stream("whizbang_commands_bank").await.expect("a stream");
            let left = commands.consumer_info("bank").await.expect("a consumer").config;
            assert_eq!((left.ack_wait, left.max_ack_pending), (Duration::from_secs(10), 5_000));
            node.stop().await;
        });
    }
}

#[test]
fn namespaces_on_one_server_are_isolated() {
    run(async {
        let server = NatsServer::start(Release::Pinned);
        let start = async |namespace: &str| {
            let builder = NatsBridge::builder(&server.url()).namespace(Namespace::new(namespace).expect("a namespace"));
            let bridge: Arc<dyn Bridge> = Arc::new(builder.connect().await.expect("connects"));
            TestNode::attach(bridge, service("bank").owning(named("bank"), SHARDS), NodeBehavior::default())
                .await
                .expect("attaches")
        };
        let (test, production) = (start("test").await, start("production").await);
        test.bridge.send(command(&shard("bank", 0), &shard("bank", 1), 1)).await.expect("sends");
        test.wait_until("its own", |received| received.direct.len() == 1).await;
        production.bridge.send(command(&shard("bank", 0), &shard("bank", 1), 2)).await.expect("sends");
        production.wait_until("its own", |received| received.direct.len() == 1).await;
        test.stop().await;
        production.inspect(|received| assert_eq!(received.direct.len(), 1));
        production.stop().await;
    });
}

#[test]
fn durability_of_the_server_is_described() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let bridge = NatsBridge::connect(&server.url()).await.expect("connects");
            let words = bridge.durability();
            println!("{words}");
            assert!(words.contains("before its disk has synced") && words.contains("nats-server 2."), "{words}");
        });
    }
}
