//! A database that loses the last commits under a running node, as by the promotion of a standby without them.

use std::time::Duration;

use whizbang::bridge::loopback::LoopbackHub;
use whizbang::prelude::*;
use whizbang::{NodeConfig, NodeEnd};
use whizbang_store_postgres::PostgresStore;
use whizbang_tests::postgres::PostgresServer;
use whizbang_tests::until;

use crate::bank::{Account, deposit};
use crate::world::{BalanceOf, Balances};

async fn balance(node: &Node) -> u64 {
    node.client().query(BalanceOf { account: "ada".into() }).await.unwrap()
}

/// The database goes back to a copy from before the last commits.
async fn ends_on_an_older_database(exclusive: bool) {
    let (mut server, hub) = (PostgresServer::start(), LoopbackHub::new());
    let builder = PostgresStore::builder(&server.url());
    let store = if exclusive { builder.exclusive() } else { builder }.connect().await.unwrap();
    let config = NodeConfig { threads: 0, lease: Duration::from_secs(2), ..NodeConfig::default() };
    let node = Node::builder("bank", store).config(config).aggregate::<Account>();
    let node = node.bridge(hub.bridge()).start().await.unwrap();
    let recorder = Node::builder("recorder", MemoryStore::new()).threads(0).projection::<Balances>();
    let recorder = recorder.bridge(hub.bridge()).start().await.unwrap();
    node.client().send(deposit("ada", 10)).await.unwrap();
    server.stop();
    let copy = server.back_up();
    server.run();
    until("a node that is ready again", async || node.health().ready).await;
    node.client().send(deposit("ada", 5)).await.unwrap();
    until("the events", async || balance(&recorder).await == 15).await;
    server.stop();
    server.restore(&copy);
    server.run();
    until("the end of the node", async || {
        // Whether the database is asked by a commit or by a probe makes no difference.
        drop(tokio::time::timeout(Duration::from_millis(100), node.client().send(deposit("ada", 7))).await);
        node.ended().is_some()
    })
    .await;
    let end = node.ended().unwrap();
    assert!(matches!(end, NodeEnd::OlderLog { published: 2, here: 1, .. }), "{end:?}");
    assert_eq!(balance(&recorder).await, 15, "nothing of the other history was published");
    assert!(recorder.health().ready, "{:?}", recorder.health());
    drop(node);
    assert_eq!(server.sql("SELECT count(*) FROM whizbang.events"), "1", "nothing was committed to the older database");
}

#[whizbang::test]
async fn node_ends_when_its_database_lacks_its_commits() {
    ends_on_an_older_database(true).await;
}

#[whizbang::test]
async fn member_ends_when_its_database_lacks_its_commits() {
    ends_on_an_older_database(false).await;
}
