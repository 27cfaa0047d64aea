//! A node that reads too slowly: its client or the server drops messages. Nothing that is kept elsewhere is lost, and health says so.

use whizbang::message::shard_of;
use whizbang::prelude::*;
use whizbang::testing::bridge::run;
use whizbang_tests::nats::{NatsConfig, NatsServer};
use whizbang_tests::{Direction, StallingProxy};

use crate::bank::{Account, Bank, deposit};
use crate::log_capture::Log;
use crate::services::bridge;
use crate::{BOTH, until};

/// Starts a node whose connection passes a proxy.
async fn bank_behind(proxy: &StallingProxy) -> Node {
    let url = format!("nats://127.0.0.1:{}", proxy.port());
    let node = Node::builder("bank", MemoryStore::new()).threads(0).aggregate::<Account>();
    node.bridge(bridge(&url).await).start().await.expect("starts")
}

fn ask() -> String {
    format!("whizbang.ask.bank.cmd.{}", shard_of("ada", Bank::SHARDS))
}

/// The node cannot write its responses, so requests wait for it until its client drops further ones.
#[test]
fn messages_dropped_by_the_client_are_reported() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let proxy = StallingProxy::start(server.port());
            // The client library logs each of its events.
            let log = Log::listen_to("info,async_nats=warn");
            let node = bank_behind(&proxy).await;
            let stranger = async_nats::connect(server.url()).await.expect("connects");
            let inbox = stranger.new_inbox();
            proxy.stall(Direction::Requests);
            until("a dropped request", async || {
                for _ in 0..10_000 {
                    let written = stranger.publish_with_reply(ask(), inbox.clone(), "junk".into()).await;
                    written.expect("writes");
                }
                stranger.flush().await.expect("flushes");
                node.metrics().dropped_messages > 0
            })
            .await;
            let health = node.health();
            assert!(health.ready, "{health:?}");
            assert!(health.reasons.iter().any(|reason| reason.contains("messages from the server were dropped")));
            proxy.resume();
            let client = Client::connect("cashier", bridge(&server.url()).await).await.expect("connects");
            until("a response", async || client.send(deposit("ada", 1)).await.is_ok()).await;
            assert!((1..=12).contains(&log.says("slow consumer")), "{:#?}", log.lines());
            client.disconnect().await;
            node.stop().await.expect("stops");
        });
    }
}

/// A server closes the connection of a client that does not read. The node connects again and receives what is in the streams.
#[test]
fn node_closed_by_the_server_receives_its_messages_later() {
    for release in BOTH {
        run(async {
            let more = "max_pending: 1MB\nwrite_deadline: \"2s\"\n".to_owned();
            let server = NatsServer::start_with(release, NatsConfig { more, ..NatsConfig::default() });
            let proxy = StallingProxy::start(server.port());
            let log = Log::listen();
            let node = bank_behind(&proxy).await;
            let stranger = async_nats::connect(server.url()).await.expect("connects");
            let client = Client::connect("cashier", bridge(&server.url()).await).await.expect("connects");
            proxy.stall(Direction::Answers);
            client.post(deposit("ada", 7)).await.expect("is kept");
            until("the server to close the connection", async || {
                for _ in 0..20 {
                    stranger.publish(ask(), vec![7; 100_000].into()).await.expect("writes");
                }
                stranger.flush().await.expect("flushes");
                server.log().contains("Slow Consumer")
            })
            .await;
            proxy.resume();
            until("the post", async || node.client().send(deposit("ada", 0)).await.is_ok_and(|sum| sum == 7)).await;
            assert!(log.says("connection lost") > 0, "{:#?}", log.lines());
            until("readiness", async || node.health().ready).await;
            assert_eq!(client.send(deposit("ada", 1)).await.expect("is answered"), 8);
            client.disconnect().await;
            node.stop().await.expect("stops");
        });
    }
}
