//! Nodes on PostgreSQL: aggregates, a saga, a projection and a worker, restarts, and a server that is killed under load while
//! the checker compares what callers were told with what the log holds.

#[path = "../../../whizbang/tests/bank/mod.rs"]
mod bank;
#[path = "../../../../tests/tests/ledger/clients.rs"]
mod clients;
mod failures;
mod older_database;
mod world;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use whizbang::clock::Clock;
use whizbang::message::IdSource;
use whizbang_store_postgres::PostgresStore;
use whizbang_tests::checker::{ShardLog, Stage};
use whizbang_tests::postgres::PostgresServer;
use whizbang_tests::{brief_or_long, until};

use bank::{Bank, Transfers, deposit, outcome, transfer};
use clients::{CallerCommand, Callers};
use world::{BalanceOf, Notify, start};

/// The callers that send at the same time.
const CALLERS: u64 = 16;

#[whizbang::test]
async fn node_runs_and_continues_after_a_restart() {
    let server = PostgresServer::start();
    let node = start(&server, 0).await;
    let client = node.client();
    client.send(deposit("ada", 100)).await.unwrap();
    client.send(transfer("t1", "ada", "bob", 30)).await.unwrap();
    client.send(transfer("t2", "ada", "bob", 300)).await.unwrap();
    assert_eq!(client.send(Notify { key: "n1".into() }).await.unwrap(), "n1 notified");
    node.wait_idle().await;
    assert_eq!(client.send(outcome("t1")).await.unwrap(), "done");
    assert_eq!(client.send(outcome("t2")).await.unwrap(), "failed");
    assert_eq!(client.query(BalanceOf { account: "bob".into() }).await.unwrap(), 30);
    assert!(node.health().ready, "{:?}", node.health());
    node.stop().await.unwrap();

    let node = start(&server, 0).await;
    let client = node.client();
    node.wait_idle().await;
    assert_eq!(client.query(BalanceOf { account: "ada".into() }).await.unwrap(), 70);
    assert_eq!(client.send(deposit("ada", 1)).await.unwrap(), 71);
    assert_eq!(client.send(outcome("t1")).await.unwrap(), "done");
    node.stop().await.unwrap();
    // The money of the events, by the SQL that people write.
    let sum = "SELECT count(*) FROM whizbang.events WHERE domain = 'bank' AND type IN ('Deposited', 'Withdrawn')";
    assert_eq!(server.sql(sum), "4");
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    Restart,
    Terminate,
}

#[whizbang::test]
async fn killed_server_loses_and_doubles_nothing_under_load() {
    // Each thread has a writing connection.
    faults(&[Fault::Kill], brief_or_long(5, 100), 2).await;
}

#[whizbang::test]
async fn restarted_server_loses_and_doubles_nothing_under_load() {
    faults(&[Fault::Terminate, Fault::Restart], brief_or_long(6, 100), 0).await;
}

/// Injects a fault in each round, under load; then everything is compared.
async fn faults(kinds: &[Fault], rounds: u64, threads: usize) {
    let mut server = PostgresServer::start_on_disk();
    let node = start(&server, threads).await;
    let callers = Rc::new(Callers::default());
    let chance = Rc::new(IdSource::random(Clock::system()));
    let answered = Rc::new(Cell::new(0u64));
    for (round, fault) in (0..rounds).zip(kinds.iter().cycle()) {
        let mut tasks = Vec::new();
        for caller in 0..CALLERS {
            let (callers, chance, client) = (Rc::clone(&callers), Rc::clone(&chance), node.client());
            let answered = Rc::clone(&answered);
            tasks.push(tokio::task::spawn_local(async move {
                for command in 0..40 {
                    let number = (round * CALLERS + caller) * 40 + command;
                    let id = client.new_id();
                    callers.call(&client, id, CallerCommand::any(number, &chance)).await;
                    answered.set(answered.get() + 1);
                }
            }));
        }
        // In the middle of the load, not before it.
        let before = answered.get();
        until("further answers", async || answered.get() > before + 100).await;
        match fault {
            Fault::Kill => server.kill(),
            Fault::Restart => server.stop(),
            Fault::Terminate => assert!(server.terminate_sessions() > 0),
        }
        server.run();
        for task in tasks {
            tokio::time::timeout(Duration::from_secs(60), task).await.expect("callers come to their end").unwrap();
        }
    }
    until("a node that is ready", async || node.health().ready).await;
    tokio::time::timeout(Duration::from_secs(60), node.wait_idle()).await.expect("everything comes to its end");
    let client = node.client();
    for number in callers.started.take() {
        let id = client.new_id();
        let ended = callers.send(id, client.send(outcome(&number))).await.unwrap();
        assert_ne!(ended, "open", "{number}");
    }
    node.stop().await.unwrap();
    let store = PostgresStore::connect(&server.url()).await.unwrap();
    let mut ledger = callers.ledger.take();
    for log in ShardLog::read_domain::<Bank>(&store).await.unwrap() {
        ledger.log(log);
    }
    for log in ShardLog::read_domain::<Transfers>(&store).await.unwrap() {
        ledger.log(log);
    }
    let verdict = ledger.check(Stage::Idle);
    println!("{rounds} faults: {verdict}");
    verdict.assert_clean();
}
