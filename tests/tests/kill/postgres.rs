//! A node on PostgreSQL: its process and the server are killed with SIGKILL, at random, under load.

use std::path::Path;
use std::time::Duration;

use whizbang::PostgresStore;
use whizbang::prelude::*;
use whizbang_tests::brief_or_long;
use whizbang_tests::checker::{ShardLog, Stage};
use whizbang_tests::postgres::PostgresServer;

use crate::bank::{Account, Bank, Transfer, Transfers, outcome};
use crate::chance;
use crate::process::{Output, Process};

#[whizbang::test]
async fn node_and_server_killed_under_load_lose_and_invent_nothing() {
    let mut server = PostgresServer::start_on_disk();
    let url = server.url();
    let chance = chance();
    let mut output = Output::default();
    let (mut interrupted, mut servers_killed) = (0, 0);
    for life in 0..brief_or_long(12, 100) {
        let mut process = Process::start(Path::new(&url), life);
        // Every eighth process is killed while it starts.
        if life % 8 != 7 {
            process.read_until(&mut output, "ready");
        }
        // The server is killed while the node runs, or together with it, or not at all; each at least every third time.
        for _ in 0..life % 3 {
            process.read_for(&mut output, Duration::from_millis(50 + chance.below(250)));
            server.kill();
            servers_killed += 1;
            if chance.below(2) == 0 {
                process.read_for(&mut output, Duration::from_millis(chance.below(100)));
            }
            server.run();
        }
        if life % 8 != 7 {
            // Counted in replies, so that a slow machine does as much work, and a node that does not recover is found.
            process.read_replies(&mut output, 1 + chance.below(200));
        }
        process.read_for(&mut output, Duration::from_millis(chance.below(50)));
        process.kill();
        process.read_rest(&mut output);
        interrupted += output.take_unanswered();
    }
    let acknowledged = output.acknowledged();
    println!("{acknowledged} commands acknowledged, {interrupted} interrupted, {servers_killed} kills of the server");
    assert!(acknowledged > 500 && interrupted > 50, "{acknowledged} acknowledged, {interrupted} interrupted");
    verify(&url, output).await;
}

/// Lets all transfers end, then compares the log with the replies that the clients got.
async fn verify(url: &str, output: Output) {
    let connect = async || PostgresStore::builder(url).exclusive().connect().await.unwrap();
    let builder = Node::builder("bank", connect().await).aggregate::<Account>().saga::<Transfer>();
    let node = builder.start().await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), node.wait_idle()).await.expect("the node becomes idle");
    let started = output.started_transfers();
    assert!(!started.is_empty(), "no transfer was started");
    let mut ledger = output.into_ledger();
    let client = node.client();
    for transfer in started {
        let id = client.new_id();
        ledger.sends(id);
        let ended = client.send(outcome(&transfer)).id(id).await.unwrap();
        assert_ne!(ended, "open", "{transfer}");
    }
    node.stop().await.unwrap();
    let store = connect().await;
    let logs = [
        ShardLog::read_domain::<Bank>(&store).await.unwrap(),
        ShardLog::read_domain::<Transfers>(&store).await.unwrap(),
    ];
    logs.into_iter().flatten().for_each(|log| ledger.log(log));
    let verdict = ledger.check(Stage::Idle);
    println!("{verdict}");
    verdict.assert_clean();
}
