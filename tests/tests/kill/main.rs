//! The process of a node is killed with SIGKILL repeatedly under load, and terminated with SIGTERM. The log contains everything
//! that its clients were told, once and in order, and nothing else.
#![cfg(unix)]

#[path = "../../../framework/whizbang/tests/bank/mod.rs"]
mod bank;
mod crashes;
mod nats;
mod postgres;
mod process;

use std::time::{Duration, Instant};

use whizbang::clock::Clock;
use whizbang::message::IdSource;
use whizbang::prelude::*;
use whizbang::store::StoreError;
use whizbang::store::embedded::EmbeddedStore;
use whizbang_tests::brief_or_long;
use whizbang_tests::checker::{ShardLog, Stage};

use bank::{Account, Bank, Transfer, Transfers, outcome};
use process::{Output, Process};

#[whizbang::test]
async fn node_killed_under_load_loses_and_invents_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let chance = chance();
    let mut output = Output::default();
    let (mut interrupted, mut acknowledged) = (0, 0);
    for life in 0..brief_or_long(50, 500) {
        let mut process = Process::start(folder.path(), life);
        // Every eighth process is killed during recovery.
        if life % 8 != 7 {
            process.read_until(&mut output, "ready");
            // Counted in lines, so that a slow machine does as much work.
            process.read_lines(&mut output, chance.below(200));
        }
        process.read_for(&mut output, Duration::from_millis(chance.below(50)));
        process.kill();
        process.read_rest(&mut output);
        assert!(!output.contains("stopped"), "the process stopped before the kill");
        interrupted += output.take_unanswered();
        acknowledged = output.acknowledged();
    }
    println!("{acknowledged} commands acknowledged, {interrupted} interrupted");
    assert!(acknowledged > 1_000 && interrupted > 50, "{acknowledged} acknowledged, {interrupted} interrupted");
    verify(folder.path(), output).await;
}

/// The random numbers of a test. `TESTS_SEED` repeats those of an earlier run; what the processes do in between is up to the machine.
fn chance() -> IdSource {
    let seed = std::env::var("TESTS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| IdSource::random(Clock::system()).next_u64());
    println!("TESTS_SEED={seed}");
    IdSource::seeded(Clock::system(), seed)
}

#[whizbang::test]
async fn terminated_node_finishes_its_work_within_ten_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let mut output = Output::default();
    for life in 0..brief_or_long(5, 50) {
        let mut process = Process::start(folder.path(), life);
        process.read_until(&mut output, "ready");
        process.read_lines(&mut output, 100 + 20 * life);
        let open = EmbeddedStore::open(folder.path());
        assert!(matches!(open, Err(StoreError::InUse { .. })), "another process owns the store: {open:?}");
        let begun = Instant::now();
        process.terminate();
        process.read_rest(&mut output);
        assert_eq!(process.code(), Some(0));
        assert!(output.contains("stopped"), "the node did not stop gracefully");
        assert!(begun.elapsed() < Duration::from_secs(10), "stopping took {:?}", begun.elapsed());
        output.forget("stopped");
    }
    assert!(output.acknowledged() > 100, "{} acknowledged", output.acknowledged());
    verify(folder.path(), output).await;
}

/// Lets all transfers end, then compares the log with the replies that the clients got.
async fn verify(folder: &std::path::Path, output: Output) {
    let store = EmbeddedStore::open(folder).unwrap();
    let node = Node::builder("bank", store).aggregate::<Account>().saga::<Transfer>().start().await.unwrap();
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
    let store = EmbeddedStore::open(folder).unwrap();
    let logs = [
        ShardLog::read_domain::<Bank>(&store).await.unwrap(),
        ShardLog::read_domain::<Transfers>(&store).await.unwrap(),
    ];
    logs.into_iter().flatten().for_each(|log| ledger.log(log));
    let verdict = ledger.check(Stage::Idle);
    println!("{verdict}");
    verdict.assert_clean();
}
