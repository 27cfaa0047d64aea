//! A node whose shards another node has taken over: it reports that it is fenced and serves no request.
#![cfg(feature = "testing")]

mod bank;
mod eventually;
mod payments;
mod wallet;

use std::sync::Arc;

use eventually::eventually;
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::prelude::*;

use wallet::{Wallet, fill};

#[whizbang::test]
async fn fenced_node_reports_it_and_stops_serving() {
    for threads in [0, 2] {
        let (store, hub) = (MemoryStore::new(), LoopbackHub::new());
        let node = async || {
            let builder =
                Node::builder("wallets", store.clone()).aggregate::<Wallet>().bridge(hub.bridge()).threads(threads);
            builder.start().await.unwrap()
        };
        let old = node().await;
        old.client().send(fill("a")).await.unwrap();
        assert!(old.health().ready, "{:?}", old.health());
        let young = node().await;
        let error = old.client().send(fill("a")).await.unwrap_err();
        assert!(!error.may_have_happened(), "{error}");
        eventually(async || !old.health().live).await;
        let health = old.health();
        assert!(!health.ready && health.reasons[0].contains("taken over"), "{health:?}");
        assert!(old.client().send(fill("b")).await.is_err());
        // Requests over the bridge reach the new node only.
        let client = Client::connect("outside", hub.bridge()).await.unwrap();
        for _ in 0..10 {
            client.send(fill("b")).await.unwrap();
        }
        assert!(young.health().ready, "{:?}", young.health());
        drop(old);
    }
}

#[whizbang::test]
async fn worker_of_a_fenced_node_runs_no_job() {
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
