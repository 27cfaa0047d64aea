//! A broker that hangs while its link is up: what stays inside the node does not wait for it.
#![cfg(feature = "testing")]

mod bank;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bank::{Account, Transfer, deposit, eventually, outcome, transfer};
use futures_util::future::{BoxFuture, FutureExt, pending, ready};
use whizbang::bridge::{Answer as Told, Asked, Bridge, BridgeError, Inbound, NodeCard, Tidings};
use whizbang::message::Envelope;
use whizbang::prelude::*;

/// A bridge that takes everything and never says that it has.
struct Hangs(Arc<AtomicUsize>);

impl Bridge for Hangs {
    fn attach<'a>(&'a self, _card: NodeCard, _door: Arc<dyn Inbound>) -> BoxFuture<'a, Result<(), BridgeError>> {
        ready(Ok(())).boxed()
    }
    fn send(&self, _envelope: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        pending().boxed()
    }
    fn publish(&self, _event: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        pending().boxed()
    }
    fn ask(&self, _to: Asked, _deadline: Duration) -> BoxFuture<'_, Result<Told, BridgeError>> {
        pending().boxed()
    }
    fn tell(&self, _tidings: Tidings) -> BoxFuture<'_, Result<(), BridgeError>> {
        pending().boxed()
    }
    fn durability(&self) -> String {
        "none".to_owned()
    }
    fn detach(&self) -> BoxFuture<'_, Result<(), BridgeError>> {
        ready(Ok(())).boxed()
    }
}

#[whizbang::test]
async fn what_stays_in_the_node_does_not_wait_for_a_broker_that_hangs() {
    for threads in [0, 2] {
        let published = Arc::<AtomicUsize>::default();
        let builder = Node::builder("all", MemoryStore::new()).host::<Account>().host::<Transfer>().threads(threads);
        let node = builder.bridge(Hangs(Arc::clone(&published))).start().await.unwrap();
        let client = node.client();
        client.send(deposit("ada", 100)).await.unwrap();
        eventually(async || published.load(Ordering::Relaxed) > 0).await;
        for n in 0..10 {
            client.send(transfer(&format!("t{n}"), "ada", "bob", 5)).await.unwrap();
        }
        for n in 0..10 {
            eventually(async || client.send(outcome(&format!("t{n}"))).await.unwrap() == "done").await;
        }
        // The broker has what it was given before it hung, and is not given more and more.
        let published = published.load(Ordering::Relaxed);
        assert!(published <= 2 * (threads.max(1) + 1), "{published} publications are under way");
    }
}
