//! A node that is dropped without being stopped.

use std::time::Duration;

use whizbang::prelude::*;
use whizbang::testing::bridge::run;
use whizbang_tests::nats::NatsServer;

use crate::bank::{Account, deposit};
use crate::services::bridge;
use crate::{BOTH, until};

#[test]
fn dropped_node_disconnects_and_its_successor_continues() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let store = MemoryStore::new();
            let client = Client::connect("caller", bridge(&server.url()).await).await.expect("connects");
            let without = server.sockets();
            for round in 1..=3 {
                let node =
                    Node::builder("bank", store.clone()).aggregate::<Account>().bridge(bridge(&server.url()).await);
                let node = node.start().await.expect("starts");
                assert_eq!(client.send(deposit("ada", 1)).await.expect("is handled"), 2 * round - 1);
                client.post_to_broker(deposit("ada", 1)).await.expect("is accepted");
                until("what was handed over", async || {
                    node.client().send(deposit("ada", 0)).await.is_ok_and(|balance| balance == 2 * round)
                })
                .await;
                drop(node);
                until("the end of its connection", async || server.sockets() <= without).await;
                // Nothing answers in its name. The server closes a socket before it forgets the subscriptions of that connection.
                until("the error that the domain has no owner", async || {
                    let asked = client.send(deposit("ada", 0)).deadline(Duration::from_secs(1)).await;
                    matches!(asked, Err(whizbang::SendError::NoOwner { .. }))
                })
                .await;
            }
        });
    }
}
