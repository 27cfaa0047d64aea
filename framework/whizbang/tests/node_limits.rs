//! The limits and the life cycle of a node: canceled starts, stops, views that cannot be saved, an unlimited number of
//! callers.
#![cfg(feature = "testing")]

mod bank;
mod eventually;
mod wallet;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use eventually::eventually_within;
use futures_util::future::{BoxFuture, FutureExt, join_all};
use wallet::{Filled, Wallet, Wallets, fill};
use whizbang::NodeConfig;
use whizbang::bridge::{Bridge, BridgeError, Inbound, NodeCard, Notification, Request, Response};
use whizbang::message::{Envelope, Name, ShardId};
use whizbang::prelude::*;
use whizbang::store::{CatalogEntry, CommitListener, Epoch, ShardHandle, ShardReader, Store, StoreError, View};

#[derive(Domain)]
#[domain(name = "desk", shards = 1)]
struct Desk;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Desk)]
struct Print {
    #[key]
    paper: String,
}

#[derive(Worker)]
#[worker(domain = Desk, performs(Print))]
struct Printer;

impl Perform<Print> for Printer {
    async fn perform(&self, _print: Print, _job: Job) -> Result<(), WorkError> {
        Ok(())
    }
}

/// A bridge that delays its calls.
#[derive(Default)]
struct Slow {
    never_attaches: bool,
    published: Arc<AtomicUsize>,
    at_detach: Arc<AtomicUsize>,
}

impl Bridge for Slow {
    fn attach<'a>(&'a self, _card: NodeCard, _inbound: Arc<dyn Inbound>) -> BoxFuture<'a, Result<(), BridgeError>> {
        if self.never_attaches { std::future::pending().boxed() } else { std::future::ready(Ok(())).boxed() }
    }
    fn send(&self, _envelope: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        std::future::ready(Ok(())).boxed()
    }
    fn publish(&self, _event: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.published.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
        .boxed()
    }
    fn request(&self, _to: Request, _deadline: Duration) -> BoxFuture<'_, Result<Response, BridgeError>> {
        std::future::ready(Err(BridgeError::NoOwner { domain: "x".into() })).boxed()
    }
    fn notify(&self, _notification: Notification) -> BoxFuture<'_, Result<(), BridgeError>> {
        std::future::ready(Ok(())).boxed()
    }
    fn durability(&self) -> String {
        "none".to_owned()
    }
    fn detach(&self) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.at_detach.store(self.published.load(Ordering::Relaxed), Ordering::Relaxed);
        std::future::ready(Ok(())).boxed()
    }
}

#[whizbang::test]
async fn stopping_node_sends_committed_messages_first() {
    for threads in [0, 2] {
        let bridge = Slow::default();
        let at_detach = Arc::clone(&bridge.at_detach);
        let node = Node::builder("wallets", MemoryStore::new()).aggregate::<Wallet>().bridge(bridge).threads(threads);
        let node = node.start().await.unwrap();
        let client = node.client();
        for sent in join_all((0..600).map(|_| client.send(fill("a")))).await {
            sent.unwrap();
        }
        node.stop().await.unwrap();
        assert_eq!(at_detach.load(Ordering::Relaxed), 600, "{threads} threads");
    }
}

#[cfg(feature = "embedded")]
#[whizbang::test]
async fn canceled_start_releases_the_store() {
    for threads in [0, 2] {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let opened = std::cell::RefCell::new(None);
            let opens = async || {
                opened.replace(EmbeddedStore::open(folder.path()).ok());
                opened.borrow().is_some()
            };
            eventually_within(5, opens).await;
            let store = opened.take().unwrap();
            let bridge = Slow { never_attaches: true, ..Slow::default() };
            let start = Node::builder("wallets", store).aggregate::<Wallet>().bridge(bridge).threads(threads).start();
            assert!(tokio::time::timeout(Duration::from_millis(50), start).await.is_err());
        }
    }
}

#[whizbang::test]
async fn invalid_configuration_is_refused_by_field_name() {
    let config = NodeConfig { threads: 0, jobs: usize::MAX, ..NodeConfig::default() };
    let start = Node::builder("desk", MemoryStore::new()).threads(0).worker(Printer).config(config).start().await;
    let error = start.unwrap_err();
    assert!(error.to_string().contains("`jobs`"), "{error:?}");
}

/// A store whose views cannot be saved.
struct NoViews(MemoryStore, Arc<AtomicUsize>);

impl Store for NoViews {
    fn open<'a>(
        &'a self,
        shard: &'a ShardId,
        shards: u16,
        listener: Arc<dyn CommitListener>,
    ) -> BoxFuture<'a, Result<ShardHandle, StoreError>> {
        self.0.open(shard, shards, listener)
    }
    fn read<'a>(&'a self, shard: &'a ShardId) -> BoxFuture<'a, Result<Option<Arc<dyn ShardReader>>, StoreError>> {
        self.0.read(shard)
    }
    fn view<'a>(&'a self, projection: &'a Name) -> BoxFuture<'a, Result<Option<View>, StoreError>> {
        self.0.view(projection)
    }
    fn claim_view<'a>(&'a self, projection: &'a Name) -> BoxFuture<'a, Result<Epoch, StoreError>> {
        self.0.claim_view(projection)
    }
    fn save_view<'a>(
        &'a self,
        _projection: &'a Name,
        _epoch: Epoch,
        _view: View,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        async {
            tokio::task::yield_now().await;
            Err(StoreError::Full { at: "the disk".to_owned() })
        }
        .boxed()
    }
    fn catalog(&self) -> BoxFuture<'_, Result<Option<Vec<CatalogEntry>>, StoreError>> {
        self.0.catalog()
    }
    fn replace_catalog(
        &self,
        expected: Option<Vec<CatalogEntry>>,
        entries: Vec<CatalogEntry>,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.0.replace_catalog(expected, entries)
    }
    fn durability(&self) -> &'static str {
        self.0.durability()
    }
    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.0.close()
    }
}

#[derive(Query, Serialize, Deserialize)]
#[query(domain = Wallets, reply = u64)]
struct Fillings {}

#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Filled), answers(Fillings))]
struct Counted {
    fillings: u64,
}

impl Project<Filled> for Counted {
    fn project(&mut self, _filled: &Filled, _context: &EventContext) {
        self.fillings += 1;
    }
}

impl whizbang::Answer<Fillings> for Counted {
    fn answer(&self, _query: Fillings) -> u64 {
        self.fillings
    }
}

#[whizbang::test]
async fn unsavable_view_does_not_delay_stop() {
    let saves = Arc::new(AtomicUsize::new(0));
    let store = NoViews(MemoryStore::new(), Arc::clone(&saves));
    let node =
        Node::builder("wallets", store).threads(0).aggregate::<Wallet>().projection::<Counted>().start().await.unwrap();
    node.client().send(fill("a")).await.unwrap();
    node.wait_idle().await;
    assert_eq!(node.client().query(Fillings {}).await.unwrap(), 1);
    let begun = tokio::time::Instant::now();
    node.stop().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let saves = saves.load(Ordering::Relaxed);
    assert!((1..=3).contains(&saves), "{saves} saves");
}

static BLOCKED: AtomicBool = AtomicBool::new(true);

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Desk)]
struct Wait {
    #[key]
    paper: String,
    blocks: bool,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Desk, handles(Wait))]
struct Blocker;

impl Handle<Wait> for Blocker {
    fn handle(&self, wait: Wait, _effects: &mut Effects<Self>) -> Result<(), Rejection> {
        while wait.blocks && BLOCKED.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        Ok(())
    }
}

#[whizbang::test]
async fn blocked_thread_replies_busy_instead_of_queueing() {
    let config = NodeConfig { threads: 1, in_flight: 16, ..NodeConfig::default() };
    let node = Node::builder("desk", MemoryStore::new())
        .threads(0)
        .aggregate::<Blocker>()
        .config(config)
        .start()
        .await
        .unwrap();
    let client = node.client();
    let blocked = tokio::task::spawn_local(client.send(Wait { paper: "a".into(), blocks: true }));
    let busy = Arc::new(AtomicUsize::new(0));
    let waiting: Vec<_> = (0..1000)
        .map(|n| {
            let (client, busy) = (client.clone(), Arc::clone(&busy));
            tokio::task::spawn_local(async move {
                match client.send(Wait { paper: format!("p{n}"), blocks: false }).no_retry().await {
                    Err(whizbang::SendError::Busy { .. }) => drop(busy.fetch_add(1, Ordering::Relaxed)),
                    other => other.unwrap(),
                }
            })
        })
        .collect();
    let mut all_told = 0;
    eventually_within(3, async || busy.load(Ordering::Relaxed) >= 900).await;
    BLOCKED.store(false, Ordering::Relaxed);
    blocked.await.unwrap().unwrap();
    for one in waiting {
        one.await.unwrap();
        all_told += 1;
    }
    assert_eq!(all_told, 1000);
}

#[derive(Domain)]
struct Inking;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Inking)]
struct Ink {
    #[key]
    paper: String,
}

/// A worker with a reference that shows whether it was dropped.
#[derive(Worker)]
#[worker(domain = Inking, performs(Ink))]
struct Inker {
    _ink: Arc<()>,
}

impl Perform<Ink> for Inker {
    async fn perform(&self, _command: Ink, _job: Job) -> Result<(), WorkError> {
        Ok(())
    }
}

#[test]
fn dropped_runtime_releases_all_of_its_node() {
    let ink = Arc::new(());
    let inker = Inker { _ink: Arc::clone(&ink) };
    whizbang::derive::block_on(async {
        let node = Node::builder("inking", MemoryStore::new()).threads(0).worker(inker).start().await.unwrap();
        node.client().send(Ink { paper: "a".into() }).await.unwrap();
        assert!(Arc::strong_count(&ink) > 1);
        // Nothing of it is polled afterwards: the runtime ends here.
        drop(node);
    });
    assert_eq!(Arc::strong_count(&ink), 1, "something of the node was kept");
}
