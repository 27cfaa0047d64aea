//! A node over NATS is killed between commits and publications. The broker receives its events nevertheless.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use whizbang::bridge::Bridge;
use whizbang::bridge::nats::NatsBridge;
use whizbang::message::ShardId;
use whizbang::prelude::*;
use whizbang::store::embedded::EmbeddedStore;
use whizbang::testing::bridge::node::{NodeBehavior, Received, TestNode, named, service};
use whizbang_tests::brief_or_long;
use whizbang_tests::checker::ShardLog;
use whizbang_tests::nats::{NatsServer, Release};

use crate::bank::{Account, Bank, Transfer};
use crate::process::{Output, Process};

/// Returns the positions of the logs of the bank.
async fn logs(folder: &std::path::Path) -> BTreeMap<ShardId, u64> {
    let store = EmbeddedStore::open(folder).unwrap();
    let logs = ShardLog::read_domain::<Bank>(&store).await.unwrap();
    logs.into_iter().map(|log| (log.shard, log.position)).collect()
}

/// Attaches a service that reads events from the broker only: it requests no log.
async fn reader(server: &NatsServer, name: &'static str) -> TestNode {
    let names = ["Deposited", "Withdrawn", "Closed"].map(named);
    let card = service(name).subscribing(named("bank"), Bank::SHARDS, names);
    let bridge: Arc<dyn Bridge> = Arc::new(NatsBridge::connect(&server.url()).await.unwrap());
    TestNode::attach(bridge, card, NodeBehavior::default()).await.unwrap()
}

/// Returns the positions of the received events of each shard, in the order of their arrival.
fn positions(received: &Received) -> BTreeMap<ShardId, Vec<u64>> {
    let mut positions = BTreeMap::<_, Vec<_>>::new();
    for origin in received.events.iter().filter_map(|event| event.origin.as_ref()) {
        positions.entry(origin.shard.clone()).or_default().push(origin.sequence);
    }
    positions
}

/// Asserts that the broker has every event of the logs, and first of each in the order of the log.
async fn verify_stream(server: &NatsServer, logs: &BTreeMap<ShardId, u64>) {
    let reader = reader(server, "auditor").await;
    let wanted: u64 = logs.values().sum();
    let distinct = |received: &Received| -> u64 {
        positions(received).values().map(|seen| seen.iter().collect::<BTreeSet<_>>().len() as u64).sum()
    };
    reader.wait_until("all events of the logs", |received| distinct(received) >= wanted).await;
    reader.inspect(|received| {
        for (shard, mut seen) in positions(received) {
            let mut met = BTreeSet::new();
            seen.retain(|position| met.insert(*position));
            assert_eq!(seen, (1..=logs[&shard]).collect::<Vec<_>>(), "{shard}");
        }
    });
    reader.stop().await;
}

#[whizbang::test]
async fn events_of_a_killed_node_reach_the_broker_in_order() {
    for release in [Release::Distribution, Release::Pinned] {
        let (server, folder) = (NatsServer::start(release), tempfile::tempdir().unwrap());
        let (mut output, mut unpublished, mut last) = (Output::default(), 0, BTreeMap::new());
        for life in 0..brief_or_long(6, 60) {
            let mut process = Process::start_with_broker(folder.path(), life, Some(&server.url()));
            process.read_until(&mut output, "ready");
            process.read_replies(&mut output, 100);
            process.kill();
            process.read_rest(&mut output);
            last = logs(folder.path()).await;
            let reader = reader(&server, "observer").await;
            for (shard, position) in last.iter().filter(|(_, position)| **position > 0) {
                let found = reader.bridge.last_published(shard).await.unwrap();
                unpublished += position - found.map_or(0, |found| found.position);
            }
            reader.stop().await;
        }
        println!("{release:?}: {unpublished} events were committed and not published before a kill");
        assert!(unpublished > 0, "no kill hit an event between its commit and its publication");
        assert!(last.values().sum::<u64>() > 500, "{last:?}");
        let store = EmbeddedStore::open(folder.path()).unwrap();
        let bridge = NatsBridge::connect(&server.url()).await.unwrap();
        let builder = Node::builder("bank", store).aggregate::<Account>().saga::<Transfer>();
        let node = builder.bridge(bridge).start().await.unwrap();
        tokio::time::timeout(Duration::from_secs(60), node.wait_idle()).await.expect("the node becomes idle");
        node.stop().await.unwrap();
        verify_stream(&server, &logs(folder.path()).await).await;
    }
}
