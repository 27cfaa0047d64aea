//! Events that were committed and not published before a node ended.

use std::sync::Arc;

use whizbang::bridge::nats::NatsBridge;
use whizbang::bridge::{Bridge, NodeCard};
use whizbang::prelude::*;
use whizbang::testing::bridge::node::{NodeBehavior, Seen, TestNode, named, service};
use whizbang::testing::bridge::run;
use whizbang_tests::nats::NatsServer;

use crate::BOTH;
use crate::bank::{Account, deposit};

/// A subscriber that has the broker alone: it asks no log.
async fn listener(server: &NatsServer) -> TestNode {
    let bank = (named("bank"), 16, vec![named("Deposited")]);
    let card = NodeCard { subscribes: vec![bank], ..service("listener") };
    let bridge: Arc<dyn Bridge> = Arc::new(NatsBridge::connect(&server.url()).await.expect("connects"));
    TestNode::attach(bridge, card, NodeBehavior::default()).await.expect("attaches")
}

/// The positions that the listener has received, in their order.
fn positions(seen: &Seen) -> Vec<u64> {
    seen.events.iter().filter_map(|event| event.origin.as_ref()).map(|origin| origin.sequence).collect()
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
                    if with_bridge { builder.bridge(crate::town::bridge(&server.url()).await) } else { builder };
                builder.start().await.expect("starts")
            };
            // Without a bridge nothing is published: as after a crash between commit and publication.
            let node = start(false).await;
            deposits(&node, 5).await;
            node.stop().await.expect("stops");
            // The broker holds nothing of the shard: all of its few events are published.
            let node = start(true).await;
            let listener = listener(&server).await;
            listener.until("five events", |seen| positions(seen).len() == 5).await;
            deposits(&node, 3).await;
            listener.until("eight events", |seen| positions(seen).len() == 8).await;
            node.stop().await.expect("stops");
            let node = start(false).await;
            deposits(&node, 4).await;
            node.stop().await.expect("stops");
            // The broker holds eight: only the four after them are published.
            let node = start(true).await;
            listener.until("twelve events", |seen| positions(seen).len() >= 12).await;
            node.stop().await.expect("stops");
            // A start that finds everything published publishes nothing; the next event proves that it was done looking.
            let node = start(true).await;
            deposits(&node, 1).await;
            listener.until("one more", |seen| positions(seen).contains(&13)).await;
            node.stop().await.expect("stops");
            listener.look(|seen| assert_eq!(positions(seen), (1..=13).collect::<Vec<_>>(), "each once, in order"));
            listener.stop().await;
        });
    }
}
