//! Messages in the name of another service, on a broker without permissions. The answer of the owner decides, so forged
//! messages stop nothing, and no undelivered message is deleted.
#![cfg(all(feature = "testing", feature = "embedded"))]

mod bank;
mod eventually;
mod raw_peer;
mod wallet;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bank::{Account, Transfer, deposit, outcome, transfer};
use eventually::eventually;
use raw_peer::{CountingBridge, RequestCounts, connect_raw_peer, forged, name};
use wallet::{Filled, Wallet, Wallets, fill};
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::bridge::{Bridge, Notification};
use whizbang::message::{ShardId, shard_of};
use whizbang::prelude::*;

fn accounts(hub: &LoopbackHub) -> whizbang::NodeBuilder {
    Node::builder("accounts", MemoryStore::new()).aggregate::<Account>().bridge(hub.bridge())
}

fn transfers(folder: &Path, bridge: impl Bridge) -> whizbang::NodeBuilder {
    Node::builder("transfers", EmbeddedStore::open(folder).unwrap()).saga::<Transfer>().bridge(bridge)
}

/// Returns sagas of one shard, so that all their messages take the same path.
fn names(from: usize, count: usize) -> Vec<String> {
    let all = (0..).map(|n| format!("t{n}"));
    all.filter(|name| shard_of(name, 16) == 0).skip(from).take(count).collect()
}

fn sagas() -> ShardId {
    ShardId::new(name("transfers"), 0)
}

fn adas() -> ShardId {
    ShardId::new(name("bank"), shard_of("ada", 16))
}

async fn begin(node: &Node, names: &[String]) {
    for name in names {
        node.client().send(transfer(name, "ada", "bob", 1)).await.unwrap();
    }
}

async fn done(node: &Node, names: &[String]) {
    for name in names {
        eventually(async || node.client().send(outcome(name)).await.unwrap() == "done").await;
    }
}

async fn balances(node: &Node) -> (u64, u64) {
    let client = node.client();
    (client.send(deposit("ada", 0)).await.unwrap(), client.send(deposit("bob", 0)).await.unwrap())
}

#[whizbang::test]
async fn forged_command_under_known_number_stops_nothing() {
    let (folder, hub) = (tempfile::tempdir().unwrap(), LoopbackHub::new());
    let bank = accounts(&hub).start().await.unwrap();
    let sagas_node = transfers(folder.path(), hub.bridge()).start().await.unwrap();
    bank.client().send(deposit("ada", 100)).await.unwrap();
    begin(&sagas_node, &names(0, 3)).await;
    done(&sagas_node, &names(0, 3)).await;
    let forger = connect_raw_peer(&hub).await;
    for round in 0..20 {
        for number in 1..=3 {
            let id = u128::from(round * 10 + number);
            forger.send(forged(id, "Withdraw", &sagas(), number, Some(adas()))).await.unwrap();
        }
    }
    begin(&sagas_node, &names(3, 5)).await;
    done(&sagas_node, &names(3, 5)).await;
    assert_eq!(balances(&bank).await, (92, 8));
    assert!(bank.metrics().commands_dropped > 0);
    assert!(bank.health().ready && sagas_node.health().ready, "{:?} {:?}", bank.health(), sagas_node.health());
    assert_eq!(bank.metrics().dead_letters, 0);
}

/// A sequence ahead of everything that was sent is never handled, even after as many messages were sent.
#[whizbang::test]
async fn forged_command_ahead_of_its_sender_is_dropped() {
    let (folder, hub) = (tempfile::tempdir().unwrap(), LoopbackHub::new());
    let bank = accounts(&hub).start().await.unwrap();
    let sagas_node = transfers(folder.path(), hub.bridge()).start().await.unwrap();
    bank.client().send(deposit("ada", 100)).await.unwrap();
    let forger = connect_raw_peer(&hub).await;
    for number in 2..=9 {
        forger.send(forged(u128::from(number), "Withdraw", &sagas(), number, Some(adas()))).await.unwrap();
    }
    eventually(async || bank.metrics().commands_dropped == 8).await;
    begin(&sagas_node, &names(0, 8)).await;
    done(&sagas_node, &names(0, 8)).await;
    assert_eq!(balances(&bank).await, (92, 8));
    assert_eq!(bank.metrics().dead_letters, 0);
    assert!(bank.health().ready, "{:?}", bank.health());
}

#[whizbang::test]
async fn forged_confirmation_deletes_no_message() {
    for restart in [false, true] {
        let (folder, hub) = (tempfile::tempdir().unwrap(), LoopbackHub::new());
        let mut sagas_node = transfers(folder.path(), hub.bridge()).start().await.unwrap();
        begin(&sagas_node, &names(0, 5)).await;
        let forger = connect_raw_peer(&hub).await;
        for through in [1, 3, 5] {
            forger.notify(Notification::Committed { from: sagas(), to: adas(), through }).await.unwrap();
        }
        // It arrives after the notifications before it.
        for _ in 0..20 {
            sagas_node.client().send(outcome("t0")).await.unwrap();
        }
        if restart {
            sagas_node.stop().await.unwrap();
            sagas_node = transfers(folder.path(), hub.bridge()).start().await.unwrap();
        }
        let bank = accounts(&hub).start().await.unwrap();
        bank.client().send(deposit("ada", 100)).await.unwrap();
        eventually(async || bank.client().send(deposit("ada", 0)).await.unwrap() < 100 || !sagas_node.health().live)
            .await;
        assert!(sagas_node.health().live);
        sagas_node.stop().await.unwrap();
        bank.stop().await.unwrap();
    }
}

#[whizbang::test]
async fn forged_confirmation_is_reverted_while_sending() {
    let (folder, hub) = (tempfile::tempdir().unwrap(), LoopbackHub::new());
    let bank = accounts(&hub).start().await.unwrap();
    let sagas_node = transfers(folder.path(), hub.bridge()).start().await.unwrap();
    bank.client().send(deposit("ada", 100)).await.unwrap();
    let forger = connect_raw_peer(&hub).await;
    for name in &names(0, 8) {
        begin(&sagas_node, std::slice::from_ref(name)).await;
        for through in 1..=8 {
            forger.notify(Notification::Committed { from: sagas(), to: adas(), through }).await.unwrap();
        }
    }
    done(&sagas_node, &names(0, 8)).await;
    assert_eq!(balances(&bank).await, (92, 8));
    assert!(sagas_node.health().ready, "{:?}", sagas_node.health());
}

#[whizbang::test]
async fn many_confirmations_cause_few_requests() {
    let (folder, hub, requests) =
        (tempfile::tempdir().unwrap(), LoopbackHub::new(), Arc::new(RequestCounts::default()));
    let bridge = CountingBridge(hub.bridge(), Arc::clone(&requests));
    let sagas_node = transfers(folder.path(), bridge).start().await.unwrap();
    let forger = connect_raw_peer(&hub).await;
    for n in 0..5_000 {
        let to = ShardId::new(name(&format!("d{}", n % 50)), n / 50);
        forger.notify(Notification::Committed { from: sagas(), to, through: u64::MAX }).await.unwrap();
        if n % 100 == 0 {
            sagas_node.client().send(outcome("t0")).await.unwrap();
        }
    }
    eventually(async || requests.asked.load(Ordering::Relaxed) > 0).await;
    sagas_node.client().send(outcome("t0")).await.unwrap();
    assert!(requests.most.load(Ordering::Relaxed) <= 64, "{}", requests.most.load(Ordering::Relaxed));
    assert!(requests.asked.load(Ordering::Relaxed) <= 640, "{}", requests.asked.load(Ordering::Relaxed));
    assert!(sagas_node.health().ready, "{:?}", sagas_node.health());
}

#[derive(Query, Serialize, Deserialize)]
#[query(domain = Wallets, reply = u64)]
struct Fillings {}

#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Filled), answers(Fillings))]
struct Fills {
    fillings: u64,
}

impl Project<Filled> for Fills {
    fn project(&mut self, _filled: &Filled, _context: &EventContext) {
        self.fillings += 1;
    }
}

impl whizbang::Answer<Fillings> for Fills {
    fn answer(&self, _query: Fillings) -> u64 {
        self.fillings
    }
}

#[whizbang::test]
async fn forged_head_does_not_block_wait_idle() {
    let (hub, requests) = (LoopbackHub::new(), Arc::new(RequestCounts::default()));
    let owner =
        Node::builder("wallets", MemoryStore::new()).aggregate::<Wallet>().bridge(hub.bridge()).start().await.unwrap();
    let bridge = CountingBridge(hub.bridge(), Arc::clone(&requests));
    let watch = Node::builder("watch", MemoryStore::new()).projection::<Fills>().bridge(bridge).start().await.unwrap();
    let fillings = async || watch.client().query(Fillings {}).await.unwrap();
    for _ in 0..3 {
        owner.client().send(fill("a")).await.unwrap();
    }
    eventually(async || fillings().await == 3).await;
    let forger = connect_raw_peer(&hub).await;
    let shard = ShardId::new(name("wallets"), 0);
    for _ in 0..50 {
        forger.notify(Notification::Head { shard: shard.clone(), position: u64::MAX }).await.unwrap();
        forger.publish(forged(7, "Filled", &shard, u64::MAX - 1, None)).await.unwrap();
        forger.publish(forged(8, "Filled", &shard, 6, None)).await.unwrap();
    }
    eventually(async || watch.metrics().events_dropped > 0).await;
    tokio::time::timeout(Duration::from_secs(10), watch.wait_idle()).await.expect("the owner's log has nothing more");
    for _ in 0..5 {
        owner.client().send(fill("a")).await.unwrap();
    }
    eventually(async || fillings().await == 8).await;
    let asked = requests.asked.load(Ordering::Relaxed);
    assert!(asked < 100, "{asked} requests, though nothing was missing");
    assert!(watch.health().ready, "{:?}", watch.health());
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(to).unwrap().map(Result::unwrap) {
        std::fs::remove_file(entry.path()).unwrap();
    }
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[whizbang::test]
async fn receiver_resumes_once_the_senders_log_is_restored() {
    let (folder, hub) = (tempfile::tempdir().unwrap(), LoopbackHub::new());
    let (older, newest) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bank = accounts(&hub).start().await.unwrap();
    bank.client().send(deposit("ada", 100)).await.unwrap();
    let node = transfers(folder.path(), hub.bridge()).start().await.unwrap();
    begin(&node, &names(0, 2)).await;
    done(&node, &names(0, 2)).await;
    node.stop().await.unwrap();
    copy(folder.path(), older.path());
    let node = transfers(folder.path(), hub.bridge()).start().await.unwrap();
    begin(&node, &names(2, 3)).await;
    done(&node, &names(2, 3)).await;
    node.stop().await.unwrap();
    copy(folder.path(), newest.path());
    copy(older.path(), folder.path());
    let node = transfers(folder.path(), hub.bridge()).start().await.unwrap();
    begin(&node, &names(5, 1)).await;
    eventually(async || bank.health().reasons.iter().any(|reason| reason.contains("older copy"))).await;
    node.stop().await.unwrap();
    copy(newest.path(), folder.path());
    let node = transfers(folder.path(), hub.bridge()).start().await.unwrap();
    begin(&node, &names(6, 2)).await;
    done(&node, &names(6, 2)).await;
    eventually(async || bank.health().ready).await;
    assert_eq!(balances(&bank).await, (93, 7));
}
