//! A broker that blocks while its link is up: local messages do not wait for it, nor do messages that it still accepts.
#![cfg(feature = "testing")]

mod bank;
mod eventually;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bank::{Account, Transfer, deposit, outcome, transfer};
use eventually::eventually;
use futures_util::future::{BoxFuture, FutureExt, pending, ready};
use whizbang::bridge::{Bridge, BridgeError, Inbound, LastPublished, NodeCard, Notification, Request, Response};
use whizbang::message::{Envelope, ShardId, shard_of};
use whizbang::prelude::*;

/// A bridge that accepts every message and never acknowledges one.
struct BlockedBridge(Arc<AtomicUsize>);

impl Bridge for BlockedBridge {
    fn attach<'a>(&'a self, _card: NodeCard, _inbound: Arc<dyn Inbound>) -> BoxFuture<'a, Result<(), BridgeError>> {
        ready(Ok(())).boxed()
    }
    fn send(&self, _envelope: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        pending().boxed()
    }
    fn publish(&self, _event: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        pending().boxed()
    }
    fn request(&self, _to: Request, _deadline: Duration) -> BoxFuture<'_, Result<Response, BridgeError>> {
        pending().boxed()
    }
    fn notify(&self, _notification: Notification) -> BoxFuture<'_, Result<(), BridgeError>> {
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
async fn local_messages_do_not_wait_for_a_blocked_broker() {
    for threads in [0, 2] {
        let published = Arc::<AtomicUsize>::default();
        let builder =
            Node::builder("all", MemoryStore::new()).aggregate::<Account>().saga::<Transfer>().threads(threads);
        let node = builder.bridge(BlockedBridge(Arc::clone(&published))).start().await.unwrap();
        let client = node.client();
        client.send(deposit("ada", 100)).await.unwrap();
        eventually(async || published.load(Ordering::Relaxed) > 0).await;
        for n in 0..10 {
            client.send(transfer(&format!("t{n}"), "ada", "bob", 5)).await.unwrap();
        }
        for n in 0..10 {
            eventually(async || client.send(outcome(&format!("t{n}"))).await.unwrap() == "done").await;
        }
        // The broker has the messages from before it blocked, and gets no more of them.
        let published = published.load(Ordering::Relaxed);
        assert!(published <= 2 * (threads.max(1) + 1), "{published} publications are under way");
    }
}

/// A bridge that accepts every message and does not reply until it is released.
struct SilentBridge {
    answers: tokio::sync::watch::Receiver<bool>,
    sent: Arc<AtomicUsize>,
    published: Arc<AtomicUsize>,
}

impl Bridge for SilentBridge {
    fn attach<'a>(&'a self, _card: NodeCard, _inbound: Arc<dyn Inbound>) -> BoxFuture<'a, Result<(), BridgeError>> {
        ready(Ok(())).boxed()
    }
    fn send(&self, _envelope: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.sent.fetch_add(1, Ordering::Relaxed);
        ready(Ok(())).boxed()
    }
    fn publish(&self, _event: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.published.fetch_add(1, Ordering::Relaxed);
        ready(Ok(())).boxed()
    }
    fn last_published<'a>(&'a self, _shard: &'a ShardId) -> BoxFuture<'a, Result<Option<LastPublished>, BridgeError>> {
        let mut answers = self.answers.clone();
        async move {
            // The sender exists as long as the test.
            let _ = answers.wait_for(|answers| *answers).await;
            Ok(None)
        }
        .boxed()
    }
    fn keeps_events(&self) -> bool {
        true
    }
    fn request(&self, _to: Request, _deadline: Duration) -> BoxFuture<'_, Result<Response, BridgeError>> {
        pending().boxed()
    }
    fn notify(&self, _notification: Notification) -> BoxFuture<'_, Result<(), BridgeError>> {
        ready(Ok(())).boxed()
    }
    fn durability(&self) -> String {
        "none".to_owned()
    }
    fn detach(&self) -> BoxFuture<'_, Result<(), BridgeError>> {
        ready(Ok(())).boxed()
    }
}

#[whizbang::test]
async fn silent_broker_delays_only_events_of_existing_shards() {
    let store = MemoryStore::new();
    let node = Node::builder("moves", store.clone()).saga::<Transfer>().start().await.unwrap();
    node.client().send(transfer("t1", "ada", "bob", 5)).await.unwrap();
    node.stop().await.unwrap();

    let (answer, answers) = tokio::sync::watch::channel(false);
    let (sent, published) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let bridge = SilentBridge { answers, sent: Arc::clone(&sent), published: Arc::clone(&published) };
    let node = Node::builder("moves", store).saga::<Transfer>().bridge(bridge).start().await.unwrap();
    // The command of the transfer leaves, whichever events the broker holds.
    eventually(async || sent.load(Ordering::Relaxed) > 0).await;
    assert_eq!(published.load(Ordering::Relaxed), 0, "the events of that shard would overtake what may be missing");
    let reported = |node: &Node| node.health().reasons.iter().any(|reason| reason.contains("events of 1 shards"));
    eventually(async || reported(&node)).await;
    assert!(!node.health().ready);
    // A shard without history needs no request.
    let elsewhere = (2..100).map(|n| format!("t{n}")).find(|key| shard_of(key, 16) != shard_of("t1", 16)).unwrap();
    node.client().send(transfer(&elsewhere, "ada", "bob", 5)).await.unwrap();
    eventually(async || published.load(Ordering::Relaxed) == 1).await;
    answer.send_replace(true);
    eventually(async || published.load(Ordering::Relaxed) == 2).await;
    eventually(async || node.health().ready).await;
}

#[derive(Domain)]
#[domain(name = "loads")]
struct Loads;

#[derive(Domain)]
#[domain(name = "yard")]
struct Yard;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Loads)]
struct Load {
    #[key]
    truck: String,
    kilobytes: usize,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Yard)]
struct Unload {
    #[key]
    truck: String,
    content: Vec<u8>,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Loads, handles(Load))]
struct Truck;

impl Handle<Load> for Truck {
    fn handle(&self, load: Load, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.send(Unload { truck: load.truck, content: vec![0; load.kilobytes * 1000] });
        Ok(())
    }
}

/// The messages in flight of a bridge that acknowledges with a delay.
#[derive(Default)]
struct InFlightBytes {
    messages: AtomicUsize,
    bytes: AtomicUsize,
    most: AtomicUsize,
}

struct MeasuredBridge(Arc<InFlightBytes>);

impl Bridge for MeasuredBridge {
    fn attach<'a>(&'a self, _card: NodeCard, _inbound: Arc<dyn Inbound>) -> BoxFuture<'a, Result<(), BridgeError>> {
        ready(Ok(())).boxed()
    }
    fn send(&self, envelope: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        let bytes = envelope.payload.len();
        let held = self.0.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.0.most.fetch_max(held, Ordering::Relaxed);
        async move {
            tokio::task::yield_now().await;
            self.0.bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.0.messages.fetch_add(1, Ordering::Relaxed);
            drop(envelope);
            Ok(())
        }
        .boxed()
    }
    fn publish(&self, _event: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        ready(Ok(())).boxed()
    }
    fn request(&self, _to: Request, _deadline: Duration) -> BoxFuture<'_, Result<Response, BridgeError>> {
        pending().boxed()
    }
    fn notify(&self, _notification: Notification) -> BoxFuture<'_, Result<(), BridgeError>> {
        ready(Ok(())).boxed()
    }
    fn durability(&self) -> String {
        "none".to_owned()
    }
    fn detach(&self) -> BoxFuture<'_, Result<(), BridgeError>> {
        ready(Ok(())).boxed()
    }
}

#[whizbang::test]
async fn full_outbox_is_sent_in_parts_of_bounded_bytes() {
    const COUNT: usize = 100;
    let store = MemoryStore::new();
    let node = Node::builder("loads", store.clone()).aggregate::<Truck>().start().await.unwrap();
    for n in 0..COUNT {
        node.client().send(Load { truck: format!("truck {n}"), kilobytes: 400 }).await.unwrap();
    }
    node.stop().await.unwrap();
    let bridge = Arc::<InFlightBytes>::default();
    let node = Node::builder("loads", store)
        .aggregate::<Truck>()
        .bridge(MeasuredBridge(Arc::clone(&bridge)))
        .start()
        .await
        .unwrap();
    eventually(async || bridge.messages.load(Ordering::Relaxed) >= COUNT).await;
    let most = bridge.most.load(Ordering::Relaxed);
    assert!((1_000_000..10_000_000).contains(&most), "{most} bytes of {COUNT} times 400 kB at once");
    drop(node);
}
