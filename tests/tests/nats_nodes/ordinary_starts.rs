//! Connections that a node or a client closes itself are not reported as lost.

use whizbang::prelude::*;
use whizbang::testing::bridge::run;
use whizbang_tests::nats::NatsServer;

use crate::bank::Account;
use crate::log_capture::Log;
use crate::{BOTH, services, until};

#[test]
fn starts_and_stops_report_no_lost_connection() {
    for release in BOTH {
        run(async {
            let mut server = NatsServer::start(release);
            let log = Log::listen();
            let store = MemoryStore::new();
            let start = async |store: &MemoryStore| {
                let builder = Node::builder("accounts", store.clone()).threads(0).aggregate::<Account>();
                builder.bridge(services::bridge(&server.url()).await).start().await
            };
            for _ in 0..3 {
                let node = start(&store).await.expect("starts");
                let client = Client::connect("teller", services::bridge(&server.url()).await).await.expect("connects");
                client.disconnect().await;
                start(&MemoryStore::new()).await.expect_err("another store has claimed the domain");
                node.stop().await.expect("stops");
            }
            let node = start(&store).await.expect("starts");
            server.kill();
            until("a lost connection", async || log.says("connection lost") > 0).await;
            assert_eq!(log.says("connection lost"), 1, "{:#?}", log.lines());
            drop(node);
        });
    }
}
