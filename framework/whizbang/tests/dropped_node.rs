//! A node that is dropped while its clients are alive: its store is free for the next node.
#![cfg(feature = "embedded")]

mod bank;
mod eventually;

use bank::*;
use eventually::eventually;
use whizbang::SendError;
use whizbang::prelude::*;

#[whizbang::test]
async fn dropped_node_releases_its_store_though_clients_live() {
    for threads in [0, 2] {
        let folder = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(folder.path()).unwrap();
        let node = Node::builder("bank", store).aggregate::<Account>().threads(threads).start().await.unwrap();
        let client = node.client();
        assert_eq!(client.send(deposit("ada", 5)).await.unwrap(), 5);
        drop(node);
        eventually(async || {
            let refused = client.send(deposit("ada", 1)).await;
            matches!(refused, Err(SendError::Stopped))
        })
        .await;
        let posted = client.post(deposit("ada", 1)).await;
        assert!(matches!(posted, Err(SendError::Stopped)), "{posted:?}");
        // The threads of the node end some time after the drop.
        let opened = std::cell::RefCell::new(None);
        eventually(async || {
            *opened.borrow_mut() = EmbeddedStore::open(folder.path()).ok();
            opened.borrow().is_some()
        })
        .await;
        let next =
            Node::builder("bank", opened.take().unwrap()).threads(0).aggregate::<Account>().start().await.unwrap();
        assert_eq!(next.client().send(deposit("ada", 1)).await.unwrap(), 6);
        assert!(matches!(client.send(deposit("ada", 1)).await, Err(SendError::Stopped)), "not the next node's client");
        next.stop().await.unwrap();
    }
}
