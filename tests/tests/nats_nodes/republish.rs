//! Events that were committed but not published before a node ended.

use std::sync::Arc;

use whizbang::bridge::Bridge;
use whizbang::bridge::nats::NatsBridge;
use whizbang::prelude::*;
use whizbang::testing::bridge::node::{NodeBehavior, Received, TestNode, named, service};
use whizbang::testing::bridge::run;
use whizbang_tests::nats::NatsServer;

use crate::BOTH;
use crate::bank::{Account, deposit};

/// Starts a subscriber that reads from the broker only and requests no log.
async fn listener(server: &NatsServer) -> TestNode {
    let card = service("listener").subscribing(named("bank"), 16, [named("Deposited")]);
    let bridge: Arc<dyn Bridge> = Arc::new(NatsBridge::connect(&server.url()).await.expect("connects"));
    TestNode::attach(bridge, card, NodeBehavior::default()).await.expect("attaches")
}

/// Returns the positions that the listener has received, in order.
fn positions(received: &Received) -> Vec<u64> {
    received.events.iter().filter_map(|event| event.origin.as_ref()).map(|origin| origin.sequence).collect()
}

async fn deposits(node: &Node, count: u64) {
    for _ in 0..count {
        node.client().send(deposit("ada", 1)).await.expect("deposits");
        node.wait_idle().await;
    }
}

#[test]
fn unpublished_events_are_published_at_start() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let store = MemoryStore::new();
            let start = async |with_bridge: bool| {
                let builder = Node::builder("bank", store.clone()).aggregate::<Account>();
                let builder =
                    if with_bridge { builder.bridge(crate::services::bridge(&server.url()).await) } else { builder };
                builder.start().await.expect("starts")
            };
            // Without a bridge nothing is published, as after a crash between commit and publication.
            let node = start(false).await;
            deposits(&node, 5).await;
            node.stop().await.expect("stops");
            // The broker has no event of the shard: all of its few events are published.
            let node = start(true).await;
            let listener = listener(&server).await;
            listener.wait_until("five events", |received| positions(received).len() == 5).await;
            deposits(&node, 3).await;
            listener.wait_until("eight events", |received| positions(received).len() == 8).await;
            node.stop().await.expect("stops");
            let node = start(false).await;
            deposits(&node, 4).await;
            node.stop().await.expect("stops");
            // The broker has eight: only the four after them are published.
            let node = start(true).await;
            listener.wait_until("twelve events", |received| positions(received).len() >= 12).await;
            node.stop().await.expect("stops");
            // A start that finds everything published publishes nothing; the next event proves that the check has ended.
            let node = start(true).await;
            deposits(&node, 1).await;
            listener.wait_until("one more", |received| positions(received).contains(&13)).await;
            node.stop().await.expect("stops");
            listener.inspect(|received| {
                assert_eq!(positions(received), (1..=13).collect::<Vec<_>>(), "each once, in order")
            });
            listener.stop().await;
        });
    }
}

#[derive(Domain)]
#[domain(codec = json)]
struct Library;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Library)]
struct Lend {
    #[key]
    book: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Library)]
struct Lent {}

#[derive(Aggregate, Default)]
#[aggregate(domain = Library, handles(Lend), records(Lent))]
struct Book;

impl Handle<Lend> for Book {
    fn handle(&self, _: Lend, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Lent {});
        Ok(())
    }
}

/// Of several events in flight to the broker one may be lost. The node is killed before it learns that, and the broker holds
/// a later event. Programs in other languages have only the broker.
#[test]
fn json_event_missing_before_others_is_published_at_start() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let store = MemoryStore::new();
            let start = async || {
                let builder = Node::builder("library", store.clone()).aggregate::<Book>();
                builder.bridge(crate::services::bridge(&server.url()).await).start().await.expect("starts")
            };
            let node = start().await;
            for _ in 0..5 {
                node.client().send(Lend { book: "a".to_owned() }).await.expect("lends");
            }
            node.wait_idle().await;
            node.stop().await.expect("stops");
            let client = async_nats::connect(server.url()).await.expect("connects");
            let stream = async_nats::jetstream::new(client).get_stream("whizbang_events_library").await;
            let stream = stream.expect("a stream");
            stream.delete_message(3).await.expect("deletes");
            let node = start().await;
            let mut found = std::collections::BTreeSet::new();
            let mut next = 4;
            while found.len() < 5 {
                // The first five were published by the first node; each later one is read as soon as it arrives.
                if let Ok(message) = stream.get_raw_message(next).await {
                    let position = message.headers.get("ce-sequence").expect("an event").as_str().parse::<u64>();
                    found.insert(position.expect("a number"));
                    next += 1;
                } else {
                    whizbang_tests::poll_interval().await;
                }
            }
            assert_eq!(found, (1..=5).collect());
            node.stop().await.expect("stops");
        });
    }
}
