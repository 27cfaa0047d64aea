//! A server without logins: the power of any program that reaches it.

use futures_util::StreamExt;
use whizbang::prelude::*;
use whizbang::testing::bridge::run;
use whizbang_tests::nats::NatsServer;

use crate::bank::{Account, deposit};
use crate::services::bridge;
use crate::{BOTH, until};

/// A peer reads all messages and writes a claim that ends the owner. Only logins and permissions prevent that.
#[test]
fn peer_reads_and_ends_everything_without_logins() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let node =
                Node::builder("bank", MemoryStore::new()).aggregate::<Account>().bridge(bridge(&server.url()).await);
            let node = node.start().await.expect("starts");
            let peer = async_nats::connect(server.url()).await.expect("connects");
            let mut heard = peer.subscribe("whizbang.>").await.expect("subscribes");
            peer.flush().await.expect("flushes");
            let client = Client::connect("cashier", bridge(&server.url()).await).await.expect("connects");
            client.send(deposit("account-of-ada", 5)).await.expect("is handled");
            let has_it = |payload: &[u8]| payload.windows(14).any(|part| part == b"account-of-ada");
            let read = async { while !heard.next().await.is_some_and(|message| has_it(&message.payload)) {} };
            tokio::time::timeout(std::time::Duration::from_secs(20), read).await.expect("the payload was heard");

            let claim = r#"{"service":"evil","store":"00000000000000000000000000000666","run":{"epoch":9,"nonce":1},"released":false}"#;
            peer.publish("whizbang.claim.bank", claim.into()).await.expect("writes");
            until("the node to end", async || !node.health().live).await;
            client.disconnect().await;
            node.stop().await.expect("stops");
        });
    }
}
