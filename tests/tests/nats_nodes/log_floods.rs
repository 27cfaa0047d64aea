//! A client floods a node with messages of one kind that each are worth a log line: the log stays short, and all are counted.

use whizbang::message::shard_of;
use whizbang::prelude::*;
use whizbang::testing::bridge::run;
use whizbang_tests::nats::{NatsServer, Release};

use crate::bank::{Account, Bank};
use crate::log_capture::Log;
use crate::services::bridge;
use crate::until;

/// The number of messages of each kind.
const MESSAGES: u64 = 500;
/// The kinds of lines.
const KINDS: [&str; 4] =
    ["dropped a request without an inbox", "refused a request", "dropped a notification", "refused a message"];

/// Nodes on both servers share the log: they write a few lines of each kind, and afterwards how many they have left out.
#[test]
fn flood_of_refused_messages_writes_few_lines() {
    run(async {
        let log = Log::listen();
        let nodes = tokio::join!(flooded(Release::Distribution), flooded(Release::Pinned));
        until("the summaries", async || KINDS.iter().all(|kind| reported(&log, kind).1 == 2 * MESSAGES)).await;
        for kind in KINDS {
            let (lines, _) = reported(&log, kind);
            assert!(lines < MESSAGES / 10, "{lines} lines of {kind}: {:#?}", log.lines());
        }
        for (_server, node) in [nodes.0, nodes.1] {
            node.stop().await.expect("stops");
        }
    });
}

/// Returns the number of lines of a kind, and the number of messages that they stand for.
fn reported(log: &Log, kind: &str) -> (u64, u64) {
    let lines = log.lines();
    lines.iter().filter(|line| line.contains(kind)).fold((0, 0), |(lines, messages), line| {
        let left_out = line.split("left_out=").nth(1).map(|number| number.trim().parse().expect("a number"));
        (lines + 1, messages + left_out.unwrap_or(1u64))
    })
}

/// Sends messages of each kind to a node, and waits until all are counted.
async fn flooded(release: Release) -> (NatsServer, Node) {
    let server = NatsServer::start(release);
    let node = Node::builder("bank", MemoryStore::new()).threads(0).aggregate::<Account>();
    let node = node.bridge(bridge(&server.url()).await).start().await.expect("starts");
    let stranger = async_nats::connect(server.url()).await.expect("connects");
    let shard = shard_of("ada", Bank::SHARDS);
    let (ask, inbox) = (format!("whizbang.ask.bank.cmd.{shard}"), stranger.new_inbox());
    for _ in 0..MESSAGES {
        stranger.publish(ask.clone(), "junk".into()).await.expect("writes");
        stranger.publish_with_reply(ask.clone(), inbox.clone(), "junk".into()).await.expect("writes");
        stranger.publish(format!("whizbang.done.bank.{shard}.shop.0"), "junk".into()).await.expect("writes");
        stranger.publish(format!("whizbang.cmd.bank.{shard}.outside"), "junk".into()).await.expect("writes");
    }
    stranger.flush().await.expect("flushes");
    until("all messages are counted", async || {
        let metrics = node.metrics();
        metrics.refused == MESSAGES && metrics.refused_requests == 3 * MESSAGES
    })
    .await;
    (server, node)
}
