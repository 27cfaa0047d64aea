//! The clock of the server differs from those of the nodes, by days in both directions.

use std::time::Duration;

use whizbang::clock::Clock;
use whizbang::prelude::*;
use whizbang::testing::bridge::run;
use whizbang_tests::nats::NatsServer;

use crate::bank::{Account, Transfer, deposit, outcome, transfer};
use crate::services::bridge;
use crate::{BOTH, until};

/// The difference between the clocks. Streams of events keep them for a day, and nodes remember ids for less.
const DIFFERENCE: Duration = Duration::from_secs(3 * 86_400);

/// Commands, replies, posts and events pass between the services, and are recovered after the server was killed.
#[test]
fn clock_of_the_server_decides_nothing() {
    for release in BOTH {
        for server_is_ahead in [false, true] {
            run(async {
                let mut server = NatsServer::start(release);
                let now = Clock::system().now();
                let start = if server_is_ahead { now.before(DIFFERENCE) } else { now.after(DIFFERENCE) };
                let (clock, _jumps) = Clock::ticking(start);
                let accounts = Node::builder("accounts", MemoryStore::new()).threads(0).clock(clock.clone());
                let accounts = accounts.aggregate::<Account>().bridge(bridge(&server.url()).await).start();
                let accounts = accounts.await.expect("starts");
                let transfers = Node::builder("transfers", MemoryStore::new()).threads(0).clock(clock.clone());
                let transfers = transfers.saga::<Transfer>().bridge(bridge(&server.url()).await).start();
                let transfers = transfers.await.expect("starts");
                let client = transfers.client();
                assert_eq!(client.send(deposit("ada", 100)).await.expect("is handled"), 100);
                for (name, sum) in [("first", 30), ("second", 60)] {
                    client.send(transfer(name, "ada", "bob", 30)).await.expect("is handled");
                    let is_done = async || client.send(outcome(name)).await.is_ok_and(|outcome| outcome != "open");
                    until("the end of the transfer", is_done).await;
                    let is_there = async || client.send(deposit("bob", 0)).await.is_ok_and(|found| found == sum);
                    until("the money", is_there).await;
                    server.restart();
                }
                until("the connection", async || client.send(deposit("ada", 0)).await.is_ok()).await;
                client.post_to_broker(deposit("ada", 1)).await.expect("is kept");
                until("the post", async || client.send(deposit("ada", 0)).await.is_ok_and(|sum| sum == 41)).await;
                for node in [accounts, transfers] {
                    assert_eq!(node.metrics().refused, 0);
                    node.stop().await.expect("stops");
                }
            });
        }
    }
}
