//! One store per domain: a second node with another store, or with a copy, is refused at start and changes nothing.
#![cfg(all(feature = "testing", feature = "embedded"))]

mod bank;
mod eventually;
mod wallet;

use std::path::Path;

use bank::{Account, deposit};
use eventually::eventually;
use wallet::{Wallet, fill};
use whizbang::bridge::BridgeError;
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::message::ReplacedStore;
use whizbang::prelude::*;
use whizbang::store::Store;
use whizbang::{NodeBuilder, StartError};

fn wallets(service: &str, store: impl Store, hub: &LoopbackHub) -> NodeBuilder {
    Node::builder(service, store).threads(0).aggregate::<Wallet>().bridge(hub.bridge())
}

async fn refused(node: NodeBuilder) -> (String, String) {
    match node.start().await.map(drop) {
        Err(StartError::Bridge(BridgeError::Claimed(claim))) => (claim.to_string(), claim.store.to_string()),
        other => panic!("{other:?}"),
    }
}

fn embedded(folder: &Path) -> EmbeddedStore {
    EmbeddedStore::open(folder).unwrap()
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[whizbang::test]
async fn second_node_with_another_store_is_refused() {
    let (store, hub) = (MemoryStore::new(), LoopbackHub::new());
    let node = wallets("wallets", store.clone(), &hub).start().await.unwrap();
    let (error, _) = refused(wallets("wallets", MemoryStore::new(), &hub)).await;
    assert!(error.contains("replaces_store"), "{error}");
    let (error, _) = refused(wallets("shop", MemoryStore::new(), &hub)).await;
    assert!(error.contains("two services"), "{error}");
    node.client().send(fill("a")).await.unwrap();
    assert!(node.health().ready, "{:?}", node.health());
    // The node was not stopped in order, and starts again at once.
    drop(node);
    refused(wallets("wallets", MemoryStore::new(), &hub)).await;
    let (error, _) = refused(wallets("renamed", store.clone(), &hub)).await;
    assert!(error.contains("another name"), "{error}");
    let node = wallets("wallets", store.clone(), &hub).start().await.unwrap();
    node.stop().await.unwrap();
    refused(wallets("wallets", MemoryStore::new(), &hub)).await;
}

#[whizbang::test]
async fn copy_of_a_store_is_refused_while_its_original_runs() {
    let (folder, other, hub) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), LoopbackHub::new());
    let node = wallets("wallets", embedded(folder.path()), &hub).start().await.unwrap();
    node.client().send(fill("a")).await.unwrap();
    node.stop().await.unwrap();
    copy(folder.path(), other.path());
    let node = wallets("wallets", embedded(folder.path()), &hub).start().await.unwrap();
    // Any number of times.
    for _ in 0..20 {
        let (error, _) = refused(wallets("wallets", embedded(other.path()), &hub)).await;
        assert!(error.contains("copy"), "{error}");
    }
    drop(node);
    refused(wallets("wallets", embedded(other.path()), &hub)).await;
    wallets("wallets", embedded(folder.path()), &hub).start().await.unwrap().stop().await.unwrap();
    // The node of the original has stopped in order: now the copy may start, and the original is the copy.
    let node = wallets("wallets", embedded(other.path()), &hub).start().await.unwrap();
    refused(wallets("wallets", embedded(folder.path()), &hub)).await;
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn replaced_store_stops_the_node_that_ran_on_it() {
    let (store, hub) = (MemoryStore::new(), LoopbackHub::new());
    let old = wallets("wallets", store.clone(), &hub).start().await.unwrap();
    let (_, found) = refused(wallets("wallets", MemoryStore::new(), &hub)).await;
    let other = ReplacedStore::parse(&"f".repeat(32)).unwrap();
    refused(wallets("wallets", MemoryStore::new(), &hub).replaces_store(other)).await;
    let new = wallets("wallets", MemoryStore::new(), &hub).replaces_store(ReplacedStore::parse(&found).unwrap());
    let new = new.start().await.unwrap();
    eventually(async || !old.health().live).await;
    assert!(old.health().reasons[0].contains("another node has taken over"), "{:?}", old.health());
    assert!(old.client().send(fill("a")).await.is_err());
    new.client().send(fill("a")).await.unwrap();
    drop(old);
    refused(wallets("wallets", store, &hub)).await;
}

#[whizbang::test]
async fn nodes_without_claims_are_accepted() {
    let hub = LoopbackHub::new();
    let node = wallets("wallets", MemoryStore::new(), &hub).start().await.unwrap();
    let bank = Node::builder("bank", MemoryStore::new())
        .threads(0)
        .aggregate::<Account>()
        .bridge(hub.bridge())
        .start()
        .await
        .unwrap();
    let client = Client::connect("outside", hub.bridge()).await.unwrap();
    client.send(fill("a")).await.unwrap();
    assert_eq!(client.send(deposit("ada", 5)).await.unwrap(), 5);
    node.stop().await.unwrap();
    bank.stop().await.unwrap();
}
