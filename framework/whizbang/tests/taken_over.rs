//! A node whose shards another one has taken over: it says so and serves no more.
#![cfg(feature = "testing")]

mod bank;
mod payments;
mod tills;

use std::sync::Arc;

use bank::eventually;
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::prelude::*;

use tills::{Till, put};

#[whizbang::test]
async fn a_node_that_was_taken_over_says_so_and_serves_no_more() {
    for threads in [0, 2] {
        let (store, hub) = (MemoryStore::new(), LoopbackHub::new());
        let node = async || {
            let builder =
                Node::builder("tills", store.clone()).aggregate::<Till>().bridge(hub.bridge()).threads(threads);
            builder.start().await.unwrap()
        };
        let old = node().await;
        old.client().send(put("a")).await.unwrap();
        assert!(old.health().ready, "{:?}", old.health());
        let young = node().await;
        let error = old.client().send(put("a")).await.unwrap_err();
        assert!(!error.may_have_happened(), "{error}");
        eventually(async || !old.health().live).await;
        let health = old.health();
        assert!(!health.ready && health.reasons[0].contains("taken over"), "{health:?}");
        assert!(old.client().send(put("b")).await.is_err());
        // Who asks over the bridge reaches the new one only.
        let client = Client::connect("outside", hub.bridge()).await.unwrap();
        for _ in 0..10 {
            client.send(put("b")).await.unwrap();
        }
        assert!(young.health().ready, "{:?}", young.health());
        drop(old);
    }
}

#[whizbang::test]
async fn a_worker_whose_node_was_taken_over_does_no_more_jobs() {
    let (store, world) = (MemoryStore::new(), Arc::<payments::World>::default());
    let old = payments::start(&store, &world).await;
    let young = payments::start(&store, &world).await;
    let error = old.client().send(payments::charge("o1", 5)).await.unwrap_err();
    assert!(error.may_have_happened(), "{error}");
    eventually(async || !old.health().live).await;
    assert!(old.client().send(payments::charge("o2", 5)).await.is_err());
    assert!(!world.called("o2").await);
    assert_eq!(young.client().send(payments::charge("o2", 5)).await.unwrap(), "5 charged");
}
