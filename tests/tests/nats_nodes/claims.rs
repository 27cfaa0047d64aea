//! Claims on real servers: a second node of a domain is refused at start, and a node that has lost its claim stops serving.

use std::path::Path;

use async_nats::jetstream;
use whizbang::bridge::BridgeError;
use whizbang::bridge::nats::NatsBridge;
use whizbang::message::{ReplacedStore, shard_of};
use whizbang::prelude::*;
use whizbang::store::Store;
use whizbang::testing::bridge::run;
use whizbang::{NodeBuilder, NodeEnd, StartError};
use whizbang_tests::nats::NatsServer;

use crate::bank::{Account, Transfer, deposit, outcome, transfer};
use crate::event_recorder::{self, EventRecorder};
use crate::{BOTH, services, until};

async fn bank(server: &NatsServer, service: &str, store: impl Store) -> NodeBuilder {
    let bridge = NatsBridge::connect(&server.url()).await.expect("connects");
    Node::builder(service, store).aggregate::<Account>().bridge(bridge)
}

async fn refused(node: NodeBuilder) -> (String, String) {
    match node.start().await.map(drop) {
        Err(StartError::Bridge(BridgeError::Claimed(claim))) => (claim.to_string(), claim.store.to_string()),
        other => panic!("{other:?}"),
    }
}

fn embedded(folder: &Path) -> EmbeddedStore {
    EmbeddedStore::open(folder).expect("opens")
}

async fn client(server: &NatsServer) -> Client {
    let bridge = NatsBridge::connect(&server.url()).await.expect("connects");
    Client::connect("outside", bridge).await.expect("attaches")
}

#[test]
fn second_node_with_another_store_is_refused_by_nats() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let folder = tempfile::tempdir().expect("a folder");
            let node = bank(&server, "bank", embedded(folder.path())).await.start().await.expect("starts");
            let outside = client(&server).await;
            assert_eq!(outside.send(deposit("ada", 5)).await.expect("a reply"), 5);
            let (error, _) = refused(bank(&server, "bank", MemoryStore::new()).await).await;
            assert!(error.contains("replaces_store"), "{error}");
            refused(bank(&server, "savings", MemoryStore::new()).await).await;
            // As many replies as commands, all from the first node.
            for cents in 6..26 {
                assert_eq!(outside.send(deposit("ada", 1)).await.expect("a reply"), cents);
            }
            assert!(node.health().ready, "{:?}", node.health());
            // After a crash the node can restart immediately, and no other store can.
            drop(node);
            refused(bank(&server, "bank", MemoryStore::new()).await).await;
            let (error, _) = refused(bank(&server, "renamed", embedded(folder.path())).await).await;
            assert!(error.contains("another name"), "{error}");
            let node = bank(&server, "bank", embedded(folder.path())).await.start().await.expect("starts again");
            node.stop().await.expect("stops");
            refused(bank(&server, "bank", MemoryStore::new()).await).await;
        });
    }
}

/// Otherwise one service could fill the stream, and all others could no longer renew their claims.
#[test]
fn claims_are_limited_in_size() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let node = bank(&server, "bank", MemoryStore::new()).await.start().await.expect("starts");
            let stranger = jetstream::new(async_nats::connect(server.url()).await.expect("connects"));
            let publish = async |bytes| {
                stranger.publish("whizbang.claim.shop", vec![7; bytes].into()).await.expect("is sent").await
            };
            assert!(publish(1000).await.is_ok());
            let refused = publish(4200).await.expect_err("is too large").to_string();
            assert!(refused.contains("size"), "{refused}");
            node.stop().await.expect("stops");
        });
    }
}

/// The steps of docs/running.md, in their order and word by word, while commands wait in the stream.
#[test]
fn renamed_service_starts_by_the_documented_steps() {
    const STREAM: &str = "whizbang_commands_bank";
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let folder = tempfile::tempdir().expect("a folder");
            let renamed = async |replaces| {
                bank(&server, "savings", services::open(folder.path()).await)
                    .await
                    .replaces_store(replaces)
                    .start()
                    .await
            };
            let node = bank(&server, "bank", services::open(folder.path()).await).await.start().await.expect("starts");
            let recorder = Node::builder("recorder", MemoryStore::new()).projection::<EventRecorder>();
            let recorder = recorder.bridge(services::bridge(&server.url()).await).start().await.expect("starts");
            let outside = client(&server).await;
            assert_eq!(outside.send(deposit("ada", 5)).await.expect("a reply"), 5);
            // Step 1.
            node.stop().await.expect("stops");
            for _ in 0..10 {
                outside.post_to_broker(deposit("ada", 1)).await.expect("is kept");
            }
            let (error, found) = refused(bank(&server, "savings", services::open(folder.path()).await).await).await;
            assert!(error.contains("another name"), "{error}");
            let found = ReplacedStore::parse(&found).expect("an identity");
            // Without step 2 the error names the consumer in the way and the command that deletes it.
            let error = match renamed(found).await.map(drop) {
                Err(StartError::Bridge(error @ BridgeError::Refused { .. })) => error.to_string(),
                other => panic!("{other:?}"),
            };
            for part in ["consumer `savings`", "(`bank`)", "another name", "nats consumer rm whizbang_commands_bank"] {
                assert!(error.contains(part), "{error}");
            }
            // Step 2.
            let operator = jetstream::new(async_nats::connect(server.url()).await.expect("connects"));
            let mut stream = operator.get_stream(STREAM).await.expect("a stream");
            assert_eq!(stream.info().await.expect("its state").state.messages, 10, "the refused starts took nothing");
            stream.delete_consumer("bank").await.expect("deletes");
            // Step 4. Step 3 concerns servers with permissions.
            let node = renamed(found).await.expect("starts under the new name");
            until("the posts", async || outside.send(deposit("ada", 0)).await.is_ok_and(|cents| cents == 15)).await;
            until("an empty stream", async || stream.info().await.expect("its state").state.messages == 0).await;
            assert!(node.health().ready, "{:?}", node.health());
            assert_eq!(stream.info().await.expect("its state").state.consumer_count, 1);
            drop(node);
            // Step 5.
            let node = renamed(ReplacedStore::None).await.expect("starts without the setting");
            assert_eq!(outside.send(deposit("ada", 1)).await.expect("a reply"), 16);
            until("all events", async || event_recorder::read(&recorder.client()).await.len() >= 12).await;
            assert!(recorder.health().ready, "{:?}", recorder.health());
            node.stop().await.expect("stops");
            // The old name cannot start again by mistake.
            let (error, _) = refused(bank(&server, "bank", services::open(folder.path()).await).await).await;
            assert!(error.contains("another name"), "{error}");
            recorder.stop().await.expect("stops");
        });
    }
}

#[test]
fn node_that_loses_its_claim_stops_serving() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let old = bank(&server, "bank", MemoryStore::new()).await.start().await.expect("starts");
            let outside = client(&server).await;
            assert_eq!(outside.send(deposit("ada", 5)).await.expect("a reply"), 5);
            let (_, found) = refused(bank(&server, "bank", MemoryStore::new()).await).await;
            let found = ReplacedStore::parse(&found).expect("an identity");
            let new = bank(&server, "bank", MemoryStore::new()).await.replaces_store(found);
            let new = new.start().await.expect("configured by an operator");
            until("the old node ends", async || !old.health().live).await;
            assert!(old.health().reasons[0].contains("another node has taken over"), "{:?}", old.health());
            for cents in 1..20 {
                assert_eq!(outside.send(deposit("bob", 1)).await.expect("a reply"), cents);
            }
            assert!(new.health().ready, "{:?}", new.health());
            new.stop().await.expect("stops");
        });
    }
}

#[test]
fn claim_survives_the_loss_of_its_stream() {
    for release in BOTH {
        run(async {
            let mut server = NatsServer::start(release);
            let node = bank(&server, "bank", MemoryStore::new()).await.start().await.expect("starts");
            let operator = jetstream::new(async_nats::connect(server.url()).await.expect("connects"));
            operator.delete_stream("whizbang_claims").await.expect("deletes");
            let is_claimed = async || {
                let Ok(stream) = operator.get_stream("whizbang_claims").await else { return false };
                stream.get_last_raw_message_by_subject("whizbang.claim.bank").await.is_ok()
            };
            until("it is claimed again", is_claimed).await;
            refused(bank(&server, "bank", MemoryStore::new()).await).await;
            server.restart();
            until("ready", async || node.health().ready).await;
            refused(bank(&server, "bank", MemoryStore::new()).await).await;
            assert!(node.health().live, "{:?}", node.health());
            node.stop().await.expect("stops");
        });
    }
}

/// A service can direct the response of JetStream to one of its requests to the subject of a claim. That neither ends the owner nor
/// prevents its next start.
#[test]
fn message_that_is_no_claim_is_replaced_by_the_owner() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let store = MemoryStore::new();
            let node = bank(&server, "bank", store.clone()).await.start().await.expect("starts");
            let operator = jetstream::new(async_nats::connect(server.url()).await.expect("connects"));
            let claims = operator.get_stream("whizbang_claims").await.expect("a stream");
            let last = async || {
                let last = claims.get_last_raw_message_by_subject("whizbang.claim.bank").await.expect("a message");
                (last.sequence, String::from_utf8(last.payload.to_vec()).expect("text"))
            };
            let replace = async || {
                let acknowledgement = r#"{"stream":"whizbang_events_evil","seq":3}"#;
                let sent = operator.publish("whizbang.claim.bank", acknowledgement.into()).await.expect("sends");
                sent.await.expect("is kept").sequence
            };
            let (_, claim) = last().await;
            let replaced = replace().await;
            until("its claim", async || {
                let (sequence, message) = last().await;
                sequence > replaced && message == claim
            })
            .await;
            refused(bank(&server, "bank", MemoryStore::new()).await).await;
            assert!(node.health().ready, "{:?}", node.health());
            // The same while the owner is down.
            drop(node);
            let replaced = replace().await;
            let node = bank(&server, "bank", store.clone()).await.start().await.expect("starts again");
            assert!(last().await.0 > replaced);
            refused(bank(&server, "bank", MemoryStore::new()).await).await;
            assert!(node.health().ready, "{:?}", node.health());
            node.stop().await.expect("stops");
        });
    }
}

/// The claims are lost while no node of the service runs, and its folder too: the senders know the committed sequences.
#[test]
fn node_on_an_emptied_store_ends_before_handling_repeats() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let node = bank(&server, "bank", MemoryStore::new()).await.start().await.expect("starts");
            let bridge = NatsBridge::connect(&server.url()).await.expect("connects");
            let sagas = Node::builder("transfers", MemoryStore::new()).saga::<Transfer>().bridge(bridge);
            let sagas = sagas.start().await.expect("starts");
            let client = sagas.client();
            client.send(deposit("ada", 100)).await.expect("is handled");
            let names = (0..).map(|n| format!("t{n}")).filter(|name| shard_of(name, 16) == 0);
            let names: Vec<_> = names.take(8).collect();
            for name in &names {
                client.send(transfer(name, "ada", "bob", 1)).await.expect("begins");
            }
            for name in &names {
                until(name, async || client.send(outcome(name)).await.is_ok_and(|outcome| outcome == "done")).await;
            }
            sagas.wait_idle().await;
            node.stop().await.expect("stops");
            let operator = jetstream::new(async_nats::connect(server.url()).await.expect("connects"));
            operator.delete_stream("whizbang_claims").await.expect("deletes");
            let node = bank(&server, "bank", MemoryStore::new()).await.start().await.expect("no claim exists");
            let all = (8..).map(|n| format!("u{n}")).filter(|name| shard_of(name, 16) == 0);
            for name in all.take(3) {
                client.send(transfer(&name, "ada", "bob", 1)).await.expect("begins");
            }
            until("it ends", async || node.ended().is_some()).await;
            assert!(matches!(node.ended(), Some(NodeEnd::OlderStore { here: 0, .. })), "{:?}", node.ended());
            assert!(!node.health().live && node.health().reasons[0].contains("replaces_store"), "{:?}", node.health());
            assert_eq!(node.metrics().events, 0, "no withdrawal was repeated");
            sagas.stop().await.expect("stops");
        });
    }
}
