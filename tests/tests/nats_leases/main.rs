//! Leased shards on real servers: consumers of shards, their permissions, and the upgrade from a service without leases.

mod owners;
mod permissions;
mod upgrade;

use std::sync::Arc;

use whizbang::bridge::nats::{NatsBridge, NatsBuilder};
use whizbang::bridge::{Bridge, NodeCard};
use whizbang::testing::bridge::SHARDS;
use whizbang::testing::bridge::node::{NodeBehavior, TestNode, named, service};
use whizbang_tests::nats::{NatsServer, Release};
use whizbang_tests::until;

const BOTH: [Release; 2] = [Release::Distribution, Release::Pinned];

/// The card of a node that shares the shards of the domain `shop`.
fn shop() -> NodeCard {
    exclusive_shop().sharing_shards()
}

fn exclusive_shop() -> NodeCard {
    service("e-shop").owning(named("shop"), SHARDS).subscribing(named("bank"), SHARDS, [named("Happened")])
}

fn bank() -> NodeCard {
    service("bank").owning(named("bank"), SHARDS).answering(named("bank"), named("Total"))
}

async fn attach(builder: NatsBuilder, card: NodeCard) -> TestNode {
    let bridge: Arc<dyn Bridge> = Arc::new(builder.connect().await.expect("connects"));
    TestNode::attach(bridge, card, NodeBehavior::default()).await.expect("attaches")
}

async fn start(server: &NatsServer, card: NodeCard) -> TestNode {
    attach(NatsBridge::builder(&server.url()), card).await
}

/// Returns the names of the consumers of a stream.
async fn consumers(client: &async_nats::Client, stream: &str) -> Vec<String> {
    let subject = format!("$JS.API.CONSUMER.NAMES.{stream}");
    let answer = client.request(subject, "".into()).await.expect("an answer");
    let answer: serde_json::Value = serde_json::from_slice(&answer.payload).expect("JSON");
    let names = answer["consumers"].as_array().cloned().unwrap_or_default();
    let mut names: Vec<_> = names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect();
    names.sort_unstable();
    names
}
