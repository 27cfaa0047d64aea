//! Shards whose store fails between their opening and their installation.

use super::*;
use whizbang_core::store::StoreError;

/// The store opens a shard, its commits fail, the node reopens what it has, and only then the shard is installed.
async fn handle_of_a_failed_store(threads: usize) {
    let store = MemoryStore::shared(&Clock::system());
    let peer = Peer::start(builder(&store, &LoopbackHub::new(), threads), &store, 1).await;
    let id = shard(shard_of(&pot(0), SHARDS));
    let thread = peer.node.definition.thread_of(id.shard);
    let listener = peer.node.threads.listener(thread).await.unwrap();
    let failures = listener.failures();
    let handle = peer.leases.open(peer.member, &id, SHARDS, Arc::clone(&listener) as _).await.unwrap().unwrap();
    store.commit_control().fail(0, StoreError::io("committing", std::io::Error::other("the disk is gone")));
    // The thread has reopened its shards once it has taken the failure.
    eventually("the failure is taken", async || match listener.has_failed() {
        true => Err("not yet".to_owned()),
        false => Ok(()),
    })
    .await;
    let stale = peer.node.threads.open_shard(thread, id.clone(), handle, failures).await;
    assert!(stale.as_ref().is_err_and(StoreError::is_transient), "{stale:?}");
    assert!(peer.open(&id).await);
    let sent = peer.node.client().send(Add { pot: pot(0), nth: 1 }).await;
    assert_eq!(sent.unwrap(), 1);
}

#[test]
fn shard_opened_before_a_failure_is_opened_again_inline() {
    crate::derive::block_on(handle_of_a_failed_store(0));
}

#[test]
fn shard_opened_before_a_failure_is_opened_again() {
    crate::derive::block_on(handle_of_a_failed_store(2));
}
