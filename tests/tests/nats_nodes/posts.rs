//! A post is acknowledged by the commit of its owner, or by the broker if the caller asks for that.

use std::time::Duration;

use whizbang::prelude::*;
use whizbang::testing::bridge::run;
use whizbang::{Client, SendError};
use whizbang_tests::nats::NatsServer;

use crate::bank::{Account, deposit, withdraw};
use crate::services::bridge;
use crate::{BOTH, until};

async fn bank(server: &NatsServer, store: &MemoryStore) -> Node {
    let node = Node::builder("bank", store.clone()).threads(0).aggregate::<Account>();
    node.bridge(bridge(&server.url()).await).start().await.expect("starts")
}

#[test]
fn post_is_acknowledged_by_the_commit() {
    for release in BOTH {
        run(async {
            let (server, store) = (NatsServer::start(release), MemoryStore::new());
            let client = Client::connect("teller", bridge(&server.url()).await).await.expect("connects");
            let node = bank(&server, &store).await;
            for number in 1..=20 {
                client.post(deposit("ada", 1)).await.expect("is committed");
                assert_eq!(node.metrics().events, number, "the deposit is committed when its post is acknowledged");
            }
            // A rejection is a decision.
            client.post(withdraw("ada", 100, "t")).await.expect("is decided");
            assert_eq!(node.metrics().events, 20);
            node.stop().await.expect("stops");

            // Without an owner there is no commit, and nothing is kept.
            let posted = client.post(deposit("ada", 1000)).deadline(Duration::from_secs(1)).await;
            assert!(matches!(posted, Err(SendError::NoOwner { .. })), "{posted:?}");
            // The broker needs no owner.
            client.post_to_broker(deposit("ada", 5)).await.expect("is kept");
            let node = bank(&server, &store).await;
            until("the kept post", async || client.send(deposit("ada", 0)).await.is_ok_and(|sum| sum == 25)).await;
            node.stop().await.expect("stops");
        });
    }
}
