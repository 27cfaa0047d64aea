//! Turns are speculative, replies are not: what a failing store may do to a node.
#![cfg(feature = "testing")]

mod bank;

use std::future::IntoFuture;

use bank::*;
use whizbang::prelude::*;
use whizbang::store::StoreError;
use whizbang::{SendError, client::Replying};

fn broken() -> StoreError {
    StoreError::io("flushing", std::io::Error::other("the disk is gone"))
}

async fn turn_over() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[whizbang::test]
async fn no_reply_leaves_before_its_commit_and_the_actor_goes_on_meanwhile() {
    let (store, faults) = MemoryStore::faulty();
    let node = start(store).await;
    let client = node.client();
    client.send(deposit("ada", 0)).await.unwrap();
    faults.hold();
    let mut replies: Vec<Replying<Deposit>> = (0..10).map(|_| client.send(deposit("ada", 1)).into_future()).collect();
    turn_over().await;
    assert_eq!(faults.waiting(), 10, "all ten turns were taken on uncommitted state");
    for reply in &mut replies {
        assert!(futures_util::poll!(reply).is_pending());
    }
    faults.commit(4);
    turn_over().await;
    let mut ready = 0;
    for reply in &mut replies {
        if let std::task::Poll::Ready(reply) = futures_util::poll!(reply) {
            ready += 1;
            assert_eq!(reply.unwrap(), ready);
        }
    }
    assert_eq!(ready, 4);
    faults.go_on();
    turn_over().await;
    assert_eq!(client.send(deposit("ada", 0)).await.unwrap(), 10);
}

#[whizbang::test]
async fn a_failed_commit_is_unknown_to_all_who_built_on_it_and_asking_again_is_safe() {
    for kept in 0..=10 {
        let (store, faults) = MemoryStore::faulty();
        let node = start(store).await;
        let client = node.client();
        client.send(deposit("ada", 0)).await.unwrap();
        faults.hold();
        let ids: Vec<_> = (0..10).map(|_| client.new_id()).collect();
        let replies: Vec<_> = ids.iter().map(|id| client.send(deposit("ada", 1)).id(*id).into_future()).collect();
        turn_over().await;
        faults.fail(kept, broken());
        for reply in replies {
            let error = reply.await.unwrap_err();
            assert!(matches!(error, SendError::Unknown { .. }) && error.may_have_happened(), "{error}");
        }
        // The shard is opened again by itself.
        for (at, id) in ids.iter().enumerate() {
            let balance = loop {
                match client.send(deposit("ada", 1)).id(*id).await {
                    Ok(balance) => break balance,
                    Err(error) if error.is_transient() => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            };
            assert_eq!(balance, at as u64 + 1, "{kept} were kept");
        }
        assert_eq!(client.send(deposit("ada", 0)).await.unwrap(), 10);
    }
}

/// Keys that live on shard 0 of sixteen.
fn keys(prefix: &str, count: usize) -> Vec<String> {
    let all = (0..).map(|n| format!("{prefix}{n}"));
    all.filter(|key| whizbang::message::shard_of(key, 16) == 0).take(count).collect()
}

#[whizbang::test]
async fn a_refused_append_is_not_taken_for_done_whenever_the_node_dies() {
    const ROUNDS: usize = 20;
    let (store, faults) = MemoryStore::faulty();
    // All sagas on one shard and all accounts on one shard: what is sent between them has one row of sequences.
    let (sagas, accounts) = (keys("t", 2 * ROUNDS), keys("from", 2 * ROUNDS));
    {
        let node = start(store.clone()).await;
        for account in &accounts {
            node.client().send(deposit(account, 100)).await.unwrap();
        }
    }
    for (round, pair) in sagas.chunks(2).zip(accounts.chunks(2)).enumerate() {
        let node = start(store.clone()).await;
        let client = node.client();
        client.send(outcome("warm")).await.unwrap();
        faults.hold();
        let accepted: Vec<_> = pair
            .0
            .iter()
            .zip(pair.1)
            .map(|(saga, account)| client.send(transfer(saga, account, "bob", 10)).into_future())
            .collect();
        turn_over().await;
        assert_eq!(faults.waiting(), 2);
        // The next append, which the node makes by itself, finds the disk full; the one behind it does not. Then the node dies
        // before it tries again.
        faults.refuse(1, StoreError::Full { at: "memory".to_owned() });
        faults.go_on();
        for reply in accepted {
            reply.await.unwrap();
        }
        for _ in 0..round {
            tokio::task::yield_now().await;
        }
        drop(node);
        turn_over().await;
    }
    let node = start(store).await;
    let client = node.client();
    eventually(async || client.send(deposit("bob", 0)).await.unwrap() == 20 * ROUNDS as u64).await;
    for account in &accounts {
        assert_eq!(client.send(deposit(account, 0)).await.unwrap(), 90, "{account}");
    }
}
