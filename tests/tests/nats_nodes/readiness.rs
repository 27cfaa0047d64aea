//! A node is not ready while its bridge cannot receive or publish, and ready again once it can.

use async_nats::jetstream::{self, stream};
use whizbang::prelude::*;
use whizbang::testing::bridge::run;
use whizbang_tests::nats::NatsServer;

use crate::bank::{Account, deposit};
use crate::{BOTH, services, until};

async fn accounts(server: &NatsServer) -> Node {
    let node = Node::builder("accounts", MemoryStore::new()).aggregate::<Account>();
    node.bridge(services::bridge(&server.url()).await).start().await.expect("starts")
}

/// Waits until a node is live, not ready, and names the cause.
async fn not_ready(node: &Node, cause: &str) {
    until(cause, async || {
        let health = node.health();
        health.live && !health.ready && health.reasons.iter().any(|reason| reason.contains(cause))
    })
    .await;
}

async fn ready(node: &Node) {
    until("a node that is ready", async || node.health().ready && node.health().reasons.is_empty()).await;
}

#[test]
fn node_without_a_server_is_not_ready() {
    for release in BOTH {
        run(async {
            let mut server = NatsServer::start(release);
            let node = accounts(&server).await;
            ready(&node).await;
            assert_eq!(node.metrics().disconnected_seconds, 0);
            for _ in 0..2 {
                server.kill();
                not_ready(&node, "no connection to nats://").await;
                assert!(node.metrics().disconnected_seconds >= 5);
                // Its own callers are served.
                node.client().send(deposit("ada", 1)).await.expect("is handled");
                server.restart();
                ready(&node).await;
                assert_eq!(node.metrics().disconnected_seconds, 0);
            }
            node.stop().await.expect("stops");
        });
    }
}

#[test]
fn node_with_a_wrong_stream_is_not_ready() {
    for release in BOTH {
        for (name, subjects) in
            [("whizbang_commands_bank", "whizbang.cmd.bank.>"), ("whizbang_events_bank", "whizbang.evt.bank.>")]
        {
            run(async {
                let mut server = NatsServer::start(release);
                let node = accounts(&server).await;
                ready(&node).await;
                assert_eq!(node.metrics().blocked_streams, 0);
                let operator = jetstream::new(async_nats::connect(server.url()).await.expect("connects"));
                operator.delete_stream(name).await.expect("deletes");
                let wrong = stream::Config {
                    name: name.to_owned(),
                    subjects: vec![subjects.to_owned()],
                    retention: stream::RetentionPolicy::Interest,
                    ..stream::Config::default()
                };
                operator.create_stream(wrong).await.expect("creates");
                server.restart();
                not_ready(&node, name).await;
                assert_eq!(node.metrics().blocked_streams, 1);
                // The earlier connection may not be back yet.
                let operator = jetstream::new(async_nats::connect(server.url()).await.expect("connects"));
                operator.delete_stream(name).await.expect("deletes");
                ready(&node).await;
                assert_eq!(node.metrics().blocked_streams, 0);
                node.stop().await.expect("stops");
            });
        }
    }
}
