//! A node's process is killed with SIGKILL again and again under load, and told to end with SIGTERM: what its clients were told
//! is in the log, once, in order, and nothing else is.
#![cfg(unix)]

#[path = "../../../framework/whizbang/tests/bank/mod.rs"]
mod bank;
mod crashes;
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
use process::{Process, Told};

#[whizbang::test]
async fn node_killed_under_load_loses_and_invents_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let chance = IdSource::random(Clock::system());
    let mut told = Told::default();
    let (mut interrupted, mut acknowledged) = (0, 0);
    for life in 0..brief_or_long(50, 500) {
        let mut process = Process::start(folder.path(), life);
        // Some are killed while they recover.
        if life % 8 != 7 {
            process.read_until(&mut told, "ready");
        }
        process.read_for(&mut told, Duration::from_millis(5 + chance.below(195)));
        process.kill();
        process.read_rest(&mut told);
        assert!(!told.has_said("stopped"), "it was not killed");
        interrupted += told.open();
        acknowledged = told.acknowledged();
    }
    println!("{acknowledged} commands acknowledged, {interrupted} interrupted");
    assert!(acknowledged > 1_000 && interrupted > 50, "{acknowledged} acknowledged, {interrupted} interrupted");
    verify(folder.path(), told).await;
}

#[whizbang::test]
async fn terminated_node_finishes_its_work_within_ten_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let mut told = Told::default();
    for life in 0..brief_or_long(5, 50) {
        let mut process = Process::start(folder.path(), life);
        process.read_until(&mut told, "ready");
        process.read_for(&mut told, Duration::from_millis(50 + 20 * life));
        let open = EmbeddedStore::open(folder.path());
        assert!(matches!(open, Err(StoreError::InUse { .. })), "another process has it: {open:?}");
        let begun = Instant::now();
        process.terminate();
        process.read_rest(&mut told);
        assert_eq!(process.code(), Some(0));
        assert!(told.has_said("stopped"), "it did not come to its end");
        assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?}", begun.elapsed());
        told.forget("stopped");
    }
    assert!(told.acknowledged() > 100, "{} acknowledged", told.acknowledged());
    verify(folder.path(), told).await;
}

/// Lets all that was begun come to its end, then compares what the log holds with what was told.
async fn verify(folder: &std::path::Path, told: Told) {
    let store = EmbeddedStore::open(folder).unwrap();
    let node = Node::builder("bank", store).aggregate::<Account>().saga::<Transfer>().start().await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), node.wait_idle()).await.expect("everything comes to its end");
    let begun = told.begun();
    assert!(!begun.is_empty(), "no transfer has begun");
    let mut ledger = told.into_ledger();
    let client = node.client();
    for transfer in begun {
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
