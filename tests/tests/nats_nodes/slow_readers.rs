//! A node that reads too slowly: its client or the server drops messages. Nothing that is kept elsewhere is lost, and health says so.

use std::sync::Arc;

use whizbang::message::shard_of;
use whizbang::prelude::*;
use whizbang::testing::bridge::cases::sample::{command, shard};
use whizbang::testing::bridge::node::{NodeBehavior, TestNode, named, service};
use whizbang::testing::bridge::{SHARDS, run};
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

/// Floods a node with requests from another thread, and blocks this one until the server has sent them.
fn flood_while_blocked(url: String, requests: usize) {
    let flood = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let stranger = async_nats::connect(url).await.expect("connects");
            for _ in 0..requests {
                let written = stranger.publish_with_reply(ask(), "_INBOX.nothing", "junk".into()).await;
                written.expect("writes");
            }
            stranger.flush().await.expect("flushes");
        });
    });
    flood.join().expect("the flood ends");
}

/// The thread of a node is blocked, so requests wait until its client drops further ones. Live events may be among the dropped
/// messages, so the node looks for gaps.
#[test]
fn messages_dropped_by_the_client_are_reported() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            // The client library logs each of its events.
            let log = Log::listen_to("info,async_nats=warn");
            let card = service("bank").owning(named("bank"), SHARDS);
            let node = TestNode::attach(Arc::new(bridge(&server.url()).await), card, NodeBehavior::default())
                .await
                .expect("attaches");
            let before = node.inspect(|received| received.reconnected);
            until("a dropped request", async || {
                flood_while_blocked(server.url(), 50_000);
                node.bridge.health().dropped_messages > 0
            })
            .await;
            let health = node.bridge.health();
            assert!(health.issues.is_empty(), "{health:?}");
            assert!(
                health.notes.iter().any(|note| note.contains("messages from the server were dropped")),
                "{health:?}"
            );
            node.wait_until("a look for gaps", |received| received.reconnected > before).await;
            assert!((1..=12).contains(&log.says("slow consumer")), "{:#?}", log.lines());
            node.bridge.send(command(&shard("bank", 0), &shard("bank", 1), 1)).await.expect("sends");
            node.wait_until("a command", |received| received.direct.len() == 1).await;
            node.stop().await;
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
            client.post_to_broker(deposit("ada", 7)).await.expect("is kept");
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
            // The messages from before the end may arrive before the node notices it.
            until("the lost connection", async || log.says("connection lost") > 0).await;
            until("readiness", async || node.health().ready).await;
            assert_eq!(client.send(deposit("ada", 1)).await.expect("is answered"), 8);
            client.disconnect().await;
            node.stop().await.expect("stops");
        });
    }
}
