//! Nodes and clients work on every tokio runtime, and requests are ordinary futures.
#![expect(clippy::disallowed_methods, reason = "programs of users spawn with tokio")]

mod bank;

use std::time::Duration;

use bank::*;
use futures_util::future::join_all;
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::prelude::*;
use whizbang::{SendError, StartError};

async fn two_nodes_and_a_client() {
    let hub = LoopbackHub::new();
    let bank =
        Node::builder("bank", MemoryStore::new()).aggregate::<Account>().bridge(hub.bridge()).start().await.unwrap();
    let transfers = Node::builder("transfers", MemoryStore::new()).saga::<Transfer>().bridge(hub.bridge());
    let transfers = transfers.start().await.unwrap();
    let client = Client::connect("outside", hub.bridge()).await.unwrap();
    assert_eq!(client.send(deposit("ada", 100)).await.unwrap(), 100);
    client.send(transfer("one", "ada", "bob", 30)).await.unwrap();
    transfers.wait_idle().await;
    bank.wait_idle().await;
    transfers.wait_idle().await;
    assert_eq!(bank.client().send(deposit("bob", 0)).await.unwrap(), 30);
    assert_eq!(client.send(deposit("ada", 0)).await.unwrap(), 70);
    client.disconnect().await;
    transfers.stop().await.unwrap();
    bank.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_and_clients_start_on_a_runtime_with_several_threads() {
    two_nodes_and_a_client().await;
}

#[tokio::test]
async fn nodes_and_clients_start_on_a_runtime_with_one_thread() {
    two_nodes_and_a_client().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_starts_and_stops_inside_a_spawned_task() {
    let spawned = tokio::spawn(async {
        let node = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().start().await.unwrap();
        let balance = node.client().send(deposit("ada", 5)).await.unwrap();
        node.stop().await.unwrap();
        balance
    });
    assert_eq!(spawned.await.unwrap(), 5);
}

#[tokio::test]
async fn node_without_own_threads_requires_a_local_set() {
    let node = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().threads(0);
    let error = node.start().await.expect_err("there is no local set");
    assert!(matches!(error, StartError::NoLocalSet), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_spawned_joined_and_selected_like_other_futures() {
    let node = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().start().await.unwrap();
    let client = node.client();
    assert_eq!(tokio::spawn(client.send(deposit("ada", 5))).await.unwrap().unwrap(), 5);
    let all = join_all((0..10).map(|_| client.send(deposit("ada", 1)))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    let balance = tokio::select! {
        reply = client.send(deposit("ada", 0)) => reply,
        () = tokio::time::sleep(Duration::from_secs(60)) => Err(SendError::Stopped),
    };
    assert_eq!(balance.unwrap(), 15);
    node.stop().await.unwrap();
}

/// A request that is dropped before it was polled has not happened.
#[whizbang::test]
async fn nothing_is_sent_before_the_first_poll() {
    for threads in [0, 1] {
        let node =
            Node::builder("bank", MemoryStore::new()).aggregate::<Account>().threads(threads).start().await.unwrap();
        let client = node.client();
        drop(client.send(deposit("ada", 5)));
        drop(client.post(deposit("ada", 5)));
        assert_eq!(client.send(deposit("ada", 1)).await.unwrap(), 1, "{threads} threads");
        node.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn handle_observes_a_running_node_and_stops_it() {
    let node = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().start().await.unwrap();
    let (handle, client) = (node.handle(), node.client());
    let running = tokio::spawn(node.run());
    assert_eq!(client.send(deposit("ada", 5)).await.unwrap(), 5);
    assert_eq!(handle.health().reasons, [""; 0]);
    assert!(handle.health().ready);
    assert_eq!(handle.metrics().unwrap().turns, 1);
    assert_eq!(handle.dead_letters().await.unwrap(), []);
    handle.request_stop();
    running.await.unwrap().unwrap();
    handle.ended().await;
    assert!(!handle.health().live);
    assert_eq!(handle.metrics(), None);
    assert!(matches!(client.send(deposit("ada", 5)).await, Err(SendError::Stopped)));
}

#[tokio::test]
async fn stop_requested_early_ends_the_run() {
    let node = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().start().await.unwrap();
    node.handle().request_stop();
    let ran = tokio::time::timeout(Duration::from_secs(30), node.run()).await;
    ran.expect("the run ends").unwrap();
}
