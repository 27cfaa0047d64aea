//! Streams of events over a bridge: other processes, restarts, moves, losses, and slow callers.

mod eventually;
mod plant;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use eventually::eventually;
use futures_util::future::{BoxFuture, FutureExt};
use plant::*;
use whizbang::NodeConfig;
use whizbang::bridge::loopback::{LoopbackBridge, LoopbackHub};
use whizbang::bridge::{Bridge, BridgeError, Inbound, NodeCard, Notification, Request, Response, Watch, Watcher};
use whizbang::clock::Clock;
use whizbang::message::{CodecError, Envelope, Name, ShardId};
use whizbang::prelude::*;
use whizbang::subscribe::SubscribeError;

async fn owner(store: &MemoryStore, hub: &LoopbackHub) -> Node {
    plant(store).bridge(hub.bridge()).start().await.unwrap()
}

async fn reader(hub: &LoopbackHub) -> Client {
    Client::connect("reader", hub.bridge()).await.unwrap()
}

#[whizbang::test]
async fn process_that_hosts_nothing_reads_history_and_new_events() {
    let (store, hub) = (MemoryStore::new(), LoopbackHub::new());
    let client = reader(&hub).await;
    let (mut stream, mut collected) = (client.subscribe::<Measured>().from_start(), Collected::default());
    // The owner starts later.
    assert!(poll(&mut stream).is_none());
    let node = owner(&store, &hub).await;
    measure(&node.client(), 0..1000).await;
    collected.take(&mut stream, 1000).await;
    for number in 1000..1050 {
        measure(&node.client(), [number]).await;
        collected.take(&mut stream, 1).await;
    }
    collected.assert_exactly(0..1050);
    client.disconnect().await;
    assert!(matches!(stream.next().await, Some(Err(SubscribeError::Stopped))));
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn node_of_another_service_reads_events() {
    let (store, hub) = (MemoryStore::new(), LoopbackHub::new());
    let node = owner(&store, &hub).await;
    let office = Node::builder("office", MemoryStore::new()).bridge(hub.bridge()).start().await.unwrap();
    let (mut stream, mut collected) = (office.client().subscribe::<Measured>(), Collected::default());
    stream.started().await.unwrap();
    measure(&node.client(), 0..300).await;
    collected.take(&mut stream, 300).await;
    collected.assert_exactly(0..300);
    office.stop().await.unwrap();
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn restarted_owner_continues_the_stream() {
    let (store, hub) = (MemoryStore::new(), LoopbackHub::new());
    let client = reader(&hub).await;
    let (mut stream, mut collected) = (client.subscribe::<Measured>().from_start(), Collected::default());
    for run in 0..4 {
        let node = owner(&store, &hub).await;
        measure(&node.client(), run * 100..run * 100 + 50).await;
        collected.take(&mut stream, 30).await;
        measure(&node.client(), run * 100 + 50..(run + 1) * 100).await;
        // Every other owner ends like a crash.
        if run % 2 == 0 {
            node.stop().await.unwrap()
        } else {
            drop(node)
        }
        assert!(poll(&mut stream).is_none_or(|item| item.unwrap().map(|item| collected.add(item)).is_ok()));
    }
    let node = owner(&store, &hub).await;
    let left = 400 - collected.numbers.len();
    collected.take(&mut stream, left).await;
    collected.assert_exactly(0..400);
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn moved_shards_continue_the_stream() {
    const LEASE: Duration = Duration::from_secs(2);
    let (store, hub) = (MemoryStore::shared(&Clock::system()), LoopbackHub::new());
    let node = async |label: &str| {
        let config = NodeConfig { lease: LEASE, ..NodeConfig::default() };
        plant(&store).config(config).label(label).bridge(hub.bridge()).start().await.unwrap()
    };
    let even = async |node: &Node, members: usize| {
        eventually(async || {
            let shards: Vec<_> = node.cluster().unwrap().members.iter().map(|member| member.shards).collect();
            shards.len() == members && shards.iter().all(|count| *count == 4 / members)
        })
        .await;
    };
    let (one, client) = (node("one").await, reader(&hub).await);
    let mut streams = [client.subscribe::<Measured>().from_start(), one.client().subscribe::<Measured>().from_start()];
    let mut collected = [Collected::default(), Collected::default()];
    let mut all = 0;
    let mut step = async |from: &Node| {
        measure(&from.client(), all..all + 100).await;
        all += 100;
        for (stream, collected) in streams.iter_mut().zip(&mut collected) {
            collected.take(stream, 100).await;
            collected.assert_exactly(0..all);
        }
    };
    step(&one).await;
    let two = node("two").await;
    even(&one, 2).await;
    step(&two).await;
    two.stop().await.unwrap();
    step(&one).await;
    let three = node("three").await;
    even(&one, 2).await;
    // It is gone without a word: its shards move once its lease has run out.
    drop(three);
    step(&one).await;
}

/// The counts of the calls that a client makes at its bridge.
#[derive(Default)]
struct Counts {
    pages: AtomicUsize,
    open: AtomicUsize,
    most: AtomicUsize,
    watches: AtomicUsize,
    begun: AtomicUsize,
    /// The last watcher.
    watcher: Mutex<Option<Arc<dyn Watcher>>>,
    /// The bridge reports nothing.
    is_silent: bool,
}

struct CountingBridge(LoopbackBridge, Arc<Counts>);

impl Bridge for CountingBridge {
    fn attach<'a>(&'a self, card: NodeCard, inbound: Arc<dyn Inbound>) -> BoxFuture<'a, Result<(), BridgeError>> {
        self.0.attach(card, inbound)
    }
    fn send(&self, envelope: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.0.send(envelope)
    }
    fn publish(&self, event: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.0.publish(event)
    }
    fn request(&self, to: Request, deadline: Duration) -> BoxFuture<'_, Result<Response, BridgeError>> {
        let counts = Arc::clone(&self.1);
        async move {
            counts.pages.fetch_add(1, Ordering::Relaxed);
            let open = counts.open.fetch_add(1, Ordering::Relaxed) + 1;
            counts.most.fetch_max(open, Ordering::Relaxed);
            let answer = self.0.request(to, deadline).await;
            counts.open.fetch_sub(1, Ordering::Relaxed);
            answer
        }
        .boxed()
    }
    fn watch<'a>(
        &'a self,
        domain: &'a Name,
        watcher: Arc<dyn Watcher>,
    ) -> BoxFuture<'a, Result<Option<Watch>, BridgeError>> {
        if self.1.is_silent {
            return std::future::ready(Ok(None)).boxed();
        }
        let counts = Arc::clone(&self.1);
        async move {
            *counts.watcher.lock().unwrap() = Some(Arc::clone(&watcher));
            let watch = self.0.watch(domain, watcher).await?;
            counts.begun.fetch_add(1, Ordering::Relaxed);
            counts.watches.fetch_add(1, Ordering::Relaxed);
            Ok(Some(Watch::new(move || {
                drop(watch);
                counts.watches.fetch_sub(1, Ordering::Relaxed);
            })))
        }
        .boxed()
    }
    fn notify(&self, notification: Notification) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.0.notify(notification)
    }
    fn durability(&self) -> String {
        self.0.durability()
    }
    fn detach(&self) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.0.detach()
    }
}

async fn counting_reader(hub: &LoopbackHub, is_silent: bool) -> (Client, Arc<Counts>) {
    let counts = Arc::new(Counts { is_silent, ..Counts::default() });
    (Client::connect("reader", CountingBridge(hub.bridge(), Arc::clone(&counts))).await.unwrap(), counts)
}

#[whizbang::test]
async fn slow_caller_holds_two_pages_and_loses_nothing() {
    let (store, hub) = (MemoryStore::new(), LoopbackHub::new());
    let node = owner(&store, &hub).await;
    let (client, counts) = counting_reader(&hub, false).await;
    let (mut stream, mut collected) = (client.subscribe::<Measured>().from_start(), Collected::default());
    measure(&node.client(), 0..4000).await;
    collected.take(&mut stream, 1).await;
    for _ in 0..100 {
        // Woken by new events, and polled only for an item at a time.
        let number = 4000 + collected.numbers.len() as u64 - 1;
        measure(&node.client(), [number]).await;
        collected.take(&mut stream, 1).await;
        assert!(counts.pages.load(Ordering::Relaxed) <= 3, "101 events need one page, and two more may be on the way");
    }
    collected.take(&mut stream, 3999).await;
    collected.assert_exactly(0..4100);
    assert!(counts.most.load(Ordering::Relaxed) <= 2, "{:?}", counts.most);
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn dropped_stream_leaves_nothing_at_the_bridge() {
    let (store, hub) = (MemoryStore::new(), LoopbackHub::new());
    let node = owner(&store, &hub).await;
    let (client, counts) = counting_reader(&hub, false).await;
    for _ in 0..20 {
        let mut stream = client.subscribe::<Measured>();
        stream.started().await.unwrap();
        assert_eq!(counts.watches.load(Ordering::Relaxed), 1);
    }
    assert_eq!(counts.watches.load(Ordering::Relaxed), 0);
    let pages = counts.pages.load(Ordering::Relaxed);
    measure(&node.client(), 0..50).await;
    node.wait_idle().await;
    assert_eq!(counts.pages.load(Ordering::Relaxed), pages, "nothing is read for a dropped stream");
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn bridge_without_reports_is_read_every_second() {
    let (store, hub) = (MemoryStore::new(), LoopbackHub::new());
    let node = owner(&store, &hub).await;
    let (client, _) = counting_reader(&hub, true).await;
    let (mut stream, mut collected) = (client.subscribe::<Measured>(), Collected::default());
    stream.started().await.unwrap();
    measure(&node.client(), 0..20).await;
    let begun = tokio::time::Instant::now();
    collected.take(&mut stream, 20).await;
    collected.assert_exactly(0..20);
    assert!(begun.elapsed() < Duration::from_secs(20), "far sooner than with lost reports");
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn false_report_of_a_shard_does_not_end_streams() {
    let (store, hub) = (MemoryStore::new(), LoopbackHub::new());
    let node = owner(&store, &hub).await;
    let (client, counts) = counting_reader(&hub, false).await;
    let (mut stream, mut collected) = (client.subscribe::<Measured>(), Collected::default());
    stream.started().await.unwrap();
    let watcher = counts.watcher.lock().unwrap().clone().unwrap();
    let pages = || counts.pages.load(Ordering::Relaxed);
    let before = pages();
    let unknown = ShardId::new(Name::new("plant").unwrap(), 9);
    watcher.grown(&unknown, 5);
    eventually(async || poll(&mut stream).is_none() && pages() > before).await;
    measure(&node.client(), 0..50).await;
    for number in 0..50 {
        watcher.grown(&unknown, number);
        collected.take(&mut stream, 1).await;
    }
    collected.assert_exactly(0..50);
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn ended_watch_is_begun_again() {
    let (store, hub) = (MemoryStore::new(), LoopbackHub::new());
    let node = owner(&store, &hub).await;
    let (client, counts) = counting_reader(&hub, false).await;
    let (mut stream, mut collected) = (client.subscribe::<Measured>(), Collected::default());
    stream.started().await.unwrap();
    for begun in 1..4 {
        assert_eq!(counts.begun.load(Ordering::Relaxed), begun);
        let watcher = counts.watcher.lock().unwrap().clone().unwrap();
        watcher.ended();
        eventually(async || poll(&mut stream).is_none() && counts.begun.load(Ordering::Relaxed) > begun).await;
        assert_eq!(counts.watches.load(Ordering::Relaxed), 1, "the ended one is dropped");
    }
    measure(&node.client(), 0..20).await;
    collected.take(&mut stream, 20).await;
    collected.assert_exactly(0..20);
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn lost_messages_delay_events_only() {
    let (store, hub) = (MemoryStore::new(), LoopbackHub::new());
    let node = owner(&store, &hub).await;
    let client = reader(&hub).await;
    let mut count = 0;
    // Reports, requests and responses: two of three are lost.
    hub.deliver_by(move || {
        count += 1;
        if count % 3 == 0 { vec![Duration::ZERO] } else { Vec::new() }
    });
    let (mut stream, mut collected) = (client.subscribe::<Measured>().from_start(), Collected::default());
    measure(&node.client(), 0..100).await;
    collected.take(&mut stream, 100).await;
    collected.assert_exactly(0..100);
    hub.deliver_all();
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn cursor_of_another_store_ends_the_stream() {
    let hub = LoopbackHub::new();
    let client = reader(&hub).await;
    let node = owner(&MemoryStore::new(), &hub).await;
    measure(&node.client(), 0..40).await;
    let (mut stream, mut collected) = (client.subscribe::<Measured>().from_start(), Collected::default());
    collected.take(&mut stream, 40).await;
    let cursor = stream.cursor().unwrap();
    assert!(cursor.store().is_some());
    node.stop().await.unwrap();
    hub.forget_claims();
    let other = owner(&MemoryStore::new(), &hub).await;
    measure(&other.client(), 0..40).await;
    for mut stream in [stream, client.subscribe::<Measured>().start_at(cursor.clone())] {
        let error = stream.next().await.unwrap().unwrap_err();
        assert!(matches!(error, SubscribeError::OtherStore { .. }), "{error}");
        assert_eq!(stream.cursor(), Some(cursor.clone()));
        assert!(stream.next().await.is_none());
    }
    other.stop().await.unwrap();
}

mod changed {
    use super::*;

    /// The same name and version, with another field.
    #[derive(Event, Debug, Serialize, Deserialize)]
    #[event(domain = Plant)]
    pub(super) struct Measured {
        pub(super) unit: String,
    }
}

#[whizbang::test]
async fn event_of_another_shape_is_unreadable() {
    let (store, hub) = (MemoryStore::new(), LoopbackHub::new());
    let node = owner(&store, &hub).await;
    let client = reader(&hub).await;
    client.publish("meter-0", Started {}).await.unwrap();
    measure(&node.client(), [10]).await;
    let mut stream = client.subscribe::<changed::Measured>().from_start();
    match stream.next().await.unwrap() {
        Err(SubscribeError::Unreadable { position: 2, source: CodecError::Shape { reason }, .. }) => {
            assert!(reason.contains("another shape"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    node.stop().await.unwrap();
}
