//! An owner whose store was put back to an older copy: it gives the same numbers again, and that is seen and said.
#![cfg(all(feature = "testing", feature = "embedded"))]

mod bank;
mod stranger;
mod tills;

use std::path::Path;

use bank::{deposit, eventually, outcome, transfer};
use stranger::{forged, stranger};
use tills::{Filled, Till, Tills, put};
use whizbang::bridge::Bridge;
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::message::ShardId;
use whizbang::prelude::*;

#[derive(Query, Serialize, Deserialize)]
#[query(domain = Tills, reply = u64)]
struct Fillings {}

#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Filled), answers(Fillings))]
struct Counted {
    fillings: u64,
}

impl Project<Filled> for Counted {
    fn project(&mut self, _filled: &Filled, _about: &EventContext) {
        self.fillings += 1;
    }
}

impl whizbang::Answer<Fillings> for Counted {
    fn answer(&self, _query: Fillings) -> u64 {
        self.fillings
    }
}

async fn owner(folder: &Path, hub: &LoopbackHub) -> Node {
    let store = EmbeddedStore::open(folder).unwrap();
    Node::builder("tills", store).threads(0).aggregate::<Till>().bridge(hub.bridge()).start().await.unwrap()
}

async fn watcher(store: &MemoryStore, hub: &LoopbackHub) -> Node {
    Node::builder("watch", store.clone()).threads(0).projection::<Counted>().bridge(hub.bridge()).start().await.unwrap()
}

async fn fill(node: &Node, times: usize) {
    for _ in 0..times {
        node.client().send(put("a")).await.unwrap();
    }
}

async fn fillings(node: &Node) -> u64 {
    node.client().query(Fillings {}).await.unwrap()
}

/// Copies the files of a store, or all but its views.
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

/// Waits until a node says that somebody's log is an older copy.
async fn says_so(node: &Node) {
    let reasons = async || node.health().reasons.iter().any(|reason| reason.contains("older copy"));
    eventually(reasons).await;
    assert!(!node.health().ready && node.health().live, "{:?}", node.health());
}

/// An owner with seven events that was put back to three, and who has taken the seven.
async fn put_back(folder: &Path, hub: &LoopbackHub, watch: &Node) {
    let backup = tempfile::tempdir().unwrap();
    let node = owner(folder, hub).await;
    fill(&node, 3).await;
    node.stop().await.unwrap();
    copy(folder, backup.path(), true);
    let node = owner(folder, hub).await;
    fill(&node, 4).await;
    eventually(async || fillings(watch).await == 7).await;
    node.stop().await.unwrap();
    copy(backup.path(), folder, true);
}

#[whizbang::test]
async fn an_owner_that_was_put_back_is_found_out_by_who_has_taken_more() {
    // As soon as it is there, with its first event, and with more events than it has lost.
    for events in [0, 1, 10] {
        let (folder, hub) = (tempfile::tempdir().unwrap(), LoopbackHub::new());
        let watch = watcher(&MemoryStore::new(), &hub).await;
        put_back(folder.path(), &hub, &watch).await;
        let node = owner(folder.path(), &hub).await;
        fill(&node, events).await;
        says_so(&watch).await;
        assert_eq!(fillings(&watch).await, 7, "{events} events: nothing of the other story was taken");
    }
}

#[whizbang::test]
async fn forged_event_under_known_position_stops_nothing() {
    let (folder, hub) = (tempfile::tempdir().unwrap(), LoopbackHub::new());
    let node = owner(folder.path(), &hub).await;
    let watch = watcher(&MemoryStore::new(), &hub).await;
    fill(&node, 3).await;
    eventually(async || fillings(&watch).await == 3).await;
    let stranger = stranger(&hub).await;
    let shard = ShardId::new(stranger::name("tills"), 0);
    for _ in 0..20 {
        for position in 1..=3u64 {
            stranger.publish(forged(position.into(), "Filled", &shard, position, None)).await.unwrap();
        }
    }
    fill(&node, 2).await;
    eventually(async || fillings(&watch).await == 5).await;
    assert!(watch.health().ready, "{:?}", watch.health());
    stranger.detach().await.unwrap();
}

#[whizbang::test]
async fn subscriber_goes_on_once_the_log_is_back() {
    let (folder, newest, hub) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), LoopbackHub::new());
    let watch = watcher(&MemoryStore::new(), &hub).await;
    let backup = tempfile::tempdir().unwrap();
    let node = owner(folder.path(), &hub).await;
    fill(&node, 3).await;
    node.stop().await.unwrap();
    copy(folder.path(), backup.path(), true);
    let node = owner(folder.path(), &hub).await;
    fill(&node, 4).await;
    eventually(async || fillings(&watch).await == 7).await;
    node.stop().await.unwrap();
    copy(folder.path(), newest.path(), true);
    copy(backup.path(), folder.path(), true);
    let node = owner(folder.path(), &hub).await;
    fill(&node, 1).await;
    says_so(&watch).await;
    node.stop().await.unwrap();
    copy(newest.path(), folder.path(), true);
    let node = owner(folder.path(), &hub).await;
    fill(&node, 2).await;
    eventually(async || watch.health().ready && fillings(&watch).await == 9).await;
}

#[whizbang::test]
async fn an_owner_that_was_put_back_is_found_out_by_who_starts_later() {
    let (folder, hub, store) = (tempfile::tempdir().unwrap(), LoopbackHub::new(), MemoryStore::new());
    let watch = watcher(&store, &hub).await;
    put_back(folder.path(), &hub, &watch).await;
    watch.stop().await.unwrap();
    let node = owner(folder.path(), &hub).await;
    fill(&node, 2).await;
    let watch = watcher(&store, &hub).await;
    says_so(&watch).await;
    assert_eq!(fillings(&watch).await, 7);
}

#[whizbang::test]
async fn who_was_put_back_with_its_owner_or_further_takes_what_it_lacks() {
    let (folder, hub) = (tempfile::tempdir().unwrap(), LoopbackHub::new());
    let watch = watcher(&MemoryStore::new(), &hub).await;
    put_back(folder.path(), &hub, &watch).await;
    watch.stop().await.unwrap();
    let node = owner(folder.path(), &hub).await;
    fill(&node, 2).await;
    let watch = watcher(&MemoryStore::new(), &hub).await;
    eventually(async || fillings(&watch).await == 5).await;
    assert!(watch.health().ready, "{:?}", watch.health());
}

#[whizbang::test]
async fn a_view_that_is_newer_than_the_log_it_stands_beside_is_built_again() {
    let (folder, backup) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let node = async || {
        let store = EmbeddedStore::open(folder.path()).unwrap();
        Node::builder("tills", store).threads(0).aggregate::<Till>().projection::<Counted>().start().await.unwrap()
    };
    let first = node().await;
    fill(&first, 3).await;
    first.stop().await.unwrap();
    copy(folder.path(), backup.path(), true);
    let second = node().await;
    fill(&second, 4).await;
    second.wait_idle().await;
    second.stop().await.unwrap();
    copy(backup.path(), folder.path(), false);
    let third = node().await;
    fill(&third, 1).await;
    third.wait_idle().await;
    assert_eq!(fillings(&third).await, 4);
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

/// The oldest copy there is: an empty store, which starts only because an operator says so.
async fn replaced_transfers(hub: &LoopbackHub) -> Node {
    let node = Node::builder("transfers", MemoryStore::new()).threads(0).saga::<bank::Transfer>().bridge(hub.bridge());
    node.replaces_store(whizbang::message::ReplacedStore::Any).start().await.unwrap()
}

/// Transfers between the same two accounts by sagas of one shard, so that all goes the same way.
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
async fn a_sender_that_was_put_back_finds_out_from_who_has_taken_more() {
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
    // The receiver tells the sender that it has taken more, and drops what contradicts that.
    says_so(&after).await;
    assert_eq!(bank.client().send(deposit("ada", 0)).await.unwrap(), 95, "nothing of it was taken for something else");
}

#[whizbang::test]
async fn a_sender_that_was_put_back_is_told_so_by_who_has_taken_more_and_started_again() {
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
    says_so(&after).await;
}
