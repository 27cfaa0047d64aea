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
