//! Several nodes of one service share a store: they spread its shards, and a caller of any of them sees one service.

mod bank;
mod eventually;

use std::collections::BTreeMap;
use std::time::Duration;

use bank::*;
use eventually::eventually;
use whizbang::NodeConfig;
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::clock::Clock;
use whizbang::node::Cluster;
use whizbang::prelude::*;

const LEASE: Duration = Duration::from_secs(2);

fn shared() -> MemoryStore {
    MemoryStore::shared(&Clock::system())
}

async fn node(store: &MemoryStore, hub: &LoopbackHub, label: &str) -> Node {
    let config = NodeConfig { lease: LEASE, ..NodeConfig::default() };
    let builder = Node::builder("accounts", store.clone()).config(config).label(label).aggregate::<Account>();
    builder.bridge(hub.bridge()).start().await.unwrap()
}

/// Returns the number of shards of each live member, as a node sees it.
fn spread(cluster: &Cluster) -> Vec<usize> {
    cluster.members.iter().map(|member| member.shards).collect()
}

async fn even(node: &Node, members: usize) {
    eventually(async || {
        let spread = spread(&node.cluster().unwrap());
        let (most, least) = (spread.iter().max().unwrap(), spread.iter().min().unwrap());
        spread.len() == members && spread.iter().sum::<usize>() == 16 && most - least <= 1
    })
    .await;
}

/// Deposits one cent to each of many accounts, through a client.
async fn deposit_everywhere(client: &Client, times: &mut BTreeMap<String, u64>) {
    for account in 0..64 {
        let account = format!("account-{account}");
        let balance = client.send(deposit(&account, 1)).deadline(Duration::from_secs(30)).await.unwrap();
        let times = times.entry(account).or_default();
        *times += 1;
        assert_eq!(balance, *times, "each deposit counts once");
    }
}

#[whizbang::test]
async fn nodes_spread_the_shards_and_serve_all_keys() {
    let (store, hub) = (shared(), LoopbackHub::new());
    let one = node(&store, &hub, "one").await;
    assert_eq!(spread(&one.cluster().unwrap()), [16]);
    let two = node(&store, &hub, "two").await;
    let three = node(&store, &hub, "three").await;
    let mut times = BTreeMap::new();
    for client in [one.client(), two.client(), three.client()] {
        deposit_everywhere(&client, &mut times).await;
    }
    even(&one, 3).await;
    for client in [one.client(), two.client(), three.client()] {
        deposit_everywhere(&client, &mut times).await;
    }
    for node in [&one, &two, &three] {
        assert!(node.health().ready, "{:?}", node.health());
        assert_eq!(node.metrics().shards_lost, 0);
    }
}

#[whizbang::test]
async fn stopped_node_hands_over_without_an_error_of_a_caller() {
    let (store, hub) = (shared(), LoopbackHub::new());
    let (one, two) = (node(&store, &hub, "one").await, node(&store, &hub, "two").await);
    even(&one, 2).await;
    let (client, mut times) = (two.client(), BTreeMap::new());
    let stop = one.stop();
    let calls = async {
        for _ in 0..3 {
            deposit_everywhere(&client, &mut times).await;
        }
    };
    let (stopped, ()) = futures_util::future::join(stop, calls).await;
    stopped.unwrap();
    even(&two, 1).await;
    deposit_everywhere(&client, &mut times).await;
    assert_eq!(two.metrics().shards_lost, 0);
}

#[whizbang::test]
async fn dropped_node_is_replaced_after_its_lease() {
    let (store, hub) = (shared(), LoopbackHub::new());
    let (one, two) = (node(&store, &hub, "one").await, node(&store, &hub, "two").await);
    even(&one, 2).await;
    let (client, mut times) = (two.client(), BTreeMap::new());
    deposit_everywhere(&client, &mut times).await;
    drop(one);
    even(&two, 1).await;
    deposit_everywhere(&client, &mut times).await;
}
