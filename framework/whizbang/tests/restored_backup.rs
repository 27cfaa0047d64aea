//! An owner whose store was restored from an older backup: it assigns the same numbers again, which is detected and
//! reported.
#![cfg(all(feature = "testing", feature = "embedded"))]

mod bank;
mod eventually;
mod raw_peer;
mod wallet;

use std::path::Path;

use bank::{deposit, outcome, transfer};
use eventually::eventually;
use raw_peer::{connect_raw_peer, forged};
use wallet::{Filled, Wallet, Wallets, fill};
use whizbang::bridge::Bridge;
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::message::ShardId;
use whizbang::prelude::*;

#[derive(Query, Serialize, Deserialize)]
#[query(domain = Wallets, reply = u64)]
struct Fillings {}

#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Filled), answers(Fillings))]
struct Counted {
    fills: u64,
}

impl Project<Filled> for Counted {
    fn project(&mut self, _filled: &Filled, _context: &EventContext) {
        self.fills += 1;
    }
}

impl whizbang::Answer<Fillings> for Counted {
    fn answer(&self, _query: Fillings) -> u64 {
        self.fills
    }
}

async fn owner(folder: &Path, hub: &LoopbackHub) -> Node {
    let store = EmbeddedStore::open(folder).unwrap();
    Node::builder("wallets", store).threads(0).aggregate::<Wallet>().bridge(hub.bridge()).start().await.unwrap()
}

async fn watcher(store: &MemoryStore, hub: &LoopbackHub) -> Node {
    Node::builder("watch", store.clone()).threads(0).projection::<Counted>().bridge(hub.bridge()).start().await.unwrap()
}

async fn fill_times(node: &Node, times: usize) {
    for _ in 0..times {
        node.client().send(fill("a")).await.unwrap();
    }
}

async fn fills(node: &Node) -> u64 {
    node.client().query(Fillings {}).await.unwrap()
}

/// Copies the files of a store, with or without its views.
fn copy(from: &Path, to: &Path, views: bool) {
    let is_view = |name: &str| name.starts_with("view-");
    for entry in std::fs::read_dir(to).unwrap().map(Result::unwrap) {
        if views || !is_view(entry.file_name().to_str().unwrap()) {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let name = entry.file_name();
        if views || !is_view(name.to_str().unwrap()) {
            std::fs::copy(entry.path(), to.join(name)).unwrap();
        }
    }
}

/// Waits until a node reports that a log was restored from a backup.
async fn reports_backup(node: &Node) {
    let reasons = async || node.health().reasons.iter().any(|reason| reason.contains("older copy"));
    eventually(reasons).await;
    assert!(!node.health().ready && node.health().live, "{:?}", node.health());
}

/// Resets an owner from seven events to a backup with three; `watch` has received all seven.
async fn restore_backup(folder: &Path, hub: &LoopbackHub, watch: &Node) {
    let backup = tempfile::tempdir().unwrap();
    let node = owner(folder, hub).await;
    fill_times(&node, 3).await;
    node.stop().await.unwrap();
    copy(folder, backup.path(), true);
    let node = owner(folder, hub).await;
    fill_times(&node, 4).await;
    eventually(async || fills(watch).await == 7).await;
    node.stop().await.unwrap();
    copy(backup.path(), folder, true);
}

#[whizbang::test]
async fn restored_owner_is_detected_by_an_ahead_subscriber() {
    // At once, with its first event, and with more events than it has lost.
    for events in [0, 1, 10] {
        let (folder, hub) = (tempfile::tempdir().unwrap(), LoopbackHub::new());
        let watch = watcher(&MemoryStore::new(), &hub).await;
        restore_backup(folder.path(), &hub, &watch).await;
        let node = owner(folder.path(), &hub).await;
        fill_times(&node, events).await;
        reports_backup(&watch).await;
        assert_eq!(fills(&watch).await, 7, "{events} events: nothing of the other story was taken");
    }
}

#[whizbang::test]
async fn forged_event_under_known_position_stops_nothing() {
    let (folder, hub) = (tempfile::tempdir().unwrap(), LoopbackHub::new());
    let node = owner(folder.path(), &hub).await;
    let watch = watcher(&MemoryStore::new(), &hub).await;
    fill_times(&node, 3).await;
    eventually(async || fills(&watch).await == 3).await;
    let forger = connect_raw_peer(&hub).await;
    let shard = ShardId::new(raw_peer::name("wallets"), 0);
    for _ in 0..20 {
        for position in 1..=3u64 {
            forger.publish(forged(position.into(), "Filled", &shard, position, None)).await.unwrap();
        }
    }
    fill_times(&node, 2).await;
    eventually(async || fills(&watch).await == 5).await;
    assert!(watch.health().ready, "{:?}", watch.health());
    forger.detach().await.unwrap();
}

#[whizbang::test]
async fn subscriber_resumes_once_the_log_is_restored() {
    let (folder, newest, hub) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), LoopbackHub::new());
    let watch = watcher(&MemoryStore::new(), &hub).await;
    let backup = tempfile::tempdir().unwrap();
    let node = owner(folder.path(), &hub).await;
    fill_times(&node, 3).await;
    node.stop().await.unwrap();
    copy(folder.path(), backup.path(), true);
    let node = owner(folder.path(), &hub).await;
    fill_times(&node, 4).await;
    eventually(async || fills(&watch).await == 7).await;
    node.stop().await.unwrap();
    copy(folder.path(), newest.path(), true);
    copy(backup.path(), folder.path(), true);
    let node = owner(folder.path(), &hub).await;
    fill_times(&node, 1).await;
    reports_backup(&watch).await;
    node.stop().await.unwrap();
    copy(newest.path(), folder.path(), true);
    let node = owner(folder.path(), &hub).await;
    fill_times(&node, 2).await;
    eventually(async || watch.health().ready && fills(&watch).await == 9).await;
}

#[whizbang::test]
async fn restored_owner_is_detected_by_a_later_subscriber() {
    let (folder, hub, store) = (tempfile::tempdir().unwrap(), LoopbackHub::new(), MemoryStore::new());
    let watch = watcher(&store, &hub).await;
    restore_backup(folder.path(), &hub, &watch).await;
    watch.stop().await.unwrap();
    let node = owner(folder.path(), &hub).await;
    fill_times(&node, 2).await;
    let watch = watcher(&store, &hub).await;
    reports_backup(&watch).await;
    assert_eq!(fills(&watch).await, 7);
}

#[whizbang::test]
async fn subscriber_restored_with_its_owner_receives_missing_events() {
    let (folder, hub) = (tempfile::tempdir().unwrap(), LoopbackHub::new());
    let watch = watcher(&MemoryStore::new(), &hub).await;
    restore_backup(folder.path(), &hub, &watch).await;
    watch.stop().await.unwrap();
    let node = owner(folder.path(), &hub).await;
    fill_times(&node, 2).await;
    let watch = watcher(&MemoryStore::new(), &hub).await;
    eventually(async || fills(&watch).await == 5).await;
    assert!(watch.health().ready, "{:?}", watch.health());
}

#[whizbang::test]
async fn view_newer_than_its_log_is_rebuilt() {
    let (folder, backup) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let node = async || {
        let store = EmbeddedStore::open(folder.path()).unwrap();
        Node::builder("wallets", store).threads(0).aggregate::<Wallet>().projection::<Counted>().start().await.unwrap()
    };
    let first = node().await;
    fill_times(&first, 3).await;
    first.stop().await.unwrap();
    copy(folder.path(), backup.path(), true);
    let second = node().await;
    fill_times(&second, 4).await;
    second.wait_idle().await;
    second.stop().await.unwrap();
    copy(backup.path(), folder.path(), false);
    let third = node().await;
    fill_times(&third, 1).await;
    third.wait_idle().await;
    assert_eq!(fills(&third).await, 4);
    assert!(third.health().ready, "{:?}", third.health());
}

async fn accounts(store: &MemoryStore, hub: &LoopbackHub) -> Node {
    Node::builder("accounts", store.clone())
        .threads(0)
        .aggregate::<bank::Account>()
        .bridge(hub.bridge())
        .start()
        .await
        .unwrap()
}

async fn transfers(store: &MemoryStore, hub: &LoopbackHub) -> Node {
    Node::builder("transfers", store.clone())
        .threads(0)
        .saga::<bank::Transfer>()
        .bridge(hub.bridge())
        .start()
        .await
        .unwrap()
}

/// Starts the oldest possible backup: an empty store, which starts only with the operator's permission.
async fn replaced_transfers(hub: &LoopbackHub) -> Node {
    let node = Node::builder("transfers", MemoryStore::new()).threads(0).saga::<bank::Transfer>().bridge(hub.bridge());
    node.replaces_store(whizbang::message::ReplacedStore::Any).start().await.unwrap()
}

/// Transfers between the same two accounts by sagas of one shard, so that all messages take the same path.
async fn transfer_some(node: &Node, names: &[String]) {
    for name in names {
        node.client().send(transfer(name, "ada", "bob", 1)).await.unwrap();
    }
}

fn names(count: usize) -> Vec<String> {
    let all = (0..).map(|n| format!("t{n}"));
    all.filter(|name| whizbang::message::shard_of(name, 16) == 0).take(count).collect()
}

#[whizbang::test]
async fn restored_sender_is_detected_by_its_receiver() {
    let (hub, money) = (LoopbackHub::new(), MemoryStore::new());
    let bank = accounts(&money, &hub).await;
    bank.client().send(deposit("ada", 100)).await.unwrap();
    let names = names(8);
    let before = transfers(&MemoryStore::new(), &hub).await;
    transfer_some(&before, &names[..5]).await;
    for name in &names[..5] {
        eventually(async || before.client().send(outcome(name)).await.unwrap() == "done").await;
    }
    before.stop().await.unwrap();
    let after = replaced_transfers(&hub).await;
    transfer_some(&after, &names[5..]).await;
    // The receiver notifies the sender that it has received more, and drops contradicting messages.
    reports_backup(&after).await;
    assert_eq!(bank.client().send(deposit("ada", 0)).await.unwrap(), 95, "nothing of it was taken for something else");
}

#[whizbang::test]
async fn restored_sender_is_detected_by_a_restarted_receiver() {
    let (hub, money) = (LoopbackHub::new(), MemoryStore::new());
    let bank = accounts(&money, &hub).await;
    bank.client().send(deposit("ada", 100)).await.unwrap();
    let names = names(8);
    let before = transfers(&MemoryStore::new(), &hub).await;
    transfer_some(&before, &names[..5]).await;
    for name in &names[..5] {
        eventually(async || before.client().send(outcome(name)).await.unwrap() == "done").await;
    }
    before.stop().await.unwrap();
    bank.stop().await.unwrap();
    let _bank = accounts(&money, &hub).await;
    let after = replaced_transfers(&hub).await;
    transfer_some(&after, &names[5..6]).await;
    reports_backup(&after).await;
}
