//! A store that loses committed turns under a running node, as a database does whose standby is promoted without them.

mod eventually;
mod wallet;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use eventually::eventually;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use wallet::{Filled, Wallet, Wallets, fill};
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::message::{Name, ShardId, StoreIdentity};
use whizbang::prelude::*;
use whizbang::store::{CatalogEntry, CommitListener, Epoch, ShardHandle, ShardReader, Store, StoreError, View};
use whizbang::{NodeEnd, SendError};

#[derive(Query, Serialize, Deserialize)]
#[query(domain = Wallets, reply = u64)]
struct Fillings {}

#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Filled), answers(Fillings))]
struct Counted {
    fills: u64,
}

impl Project<Filled> for Counted {
    fn project(&mut self, _filled: &Filled, _context: &EventContext) {
        self.fills += 1;
    }
}

impl Answer<Fillings> for Counted {
    fn answer(&self, _query: Fillings) -> u64 {
        self.fills
    }
}

/// A store and an older copy of it, which is opened once the store has failed.
#[derive(Clone, Default)]
struct RollingBack {
    newest: MemoryStore,
    older: MemoryStore,
    is_rolled_back: Arc<AtomicBool>,
    listeners: Arc<Mutex<Vec<Arc<dyn CommitListener>>>>,
}

impl RollingBack {
    fn now(&self) -> &MemoryStore {
        if self.is_rolled_back.load(Ordering::SeqCst) { &self.older } else { &self.newest }
    }

    /// Fails the commits. The shards are then opened again, in the older copy.
    fn roll_back(&self) {
        self.is_rolled_back.store(true, Ordering::SeqCst);
        let listeners = std::mem::take(&mut *self.listeners.lock());
        assert!(!listeners.is_empty(), "no shard was open");
        for listener in listeners {
            listener.failed(StoreError::io("committing", std::io::Error::other("the server has failed over")));
        }
    }
}

impl Store for RollingBack {
    fn open<'a>(
        &'a self,
        shard: &'a ShardId,
        shards: u16,
        listener: Arc<dyn CommitListener>,
    ) -> BoxFuture<'a, Result<ShardHandle, StoreError>> {
        self.listeners.lock().push(Arc::clone(&listener));
        self.now().open(shard, shards, listener)
    }

    fn read<'a>(&'a self, shard: &'a ShardId) -> BoxFuture<'a, Result<Option<Arc<dyn ShardReader>>, StoreError>> {
        self.now().read(shard)
    }

    fn view<'a>(&'a self, projection: &'a Name) -> BoxFuture<'a, Result<Option<View>, StoreError>> {
        self.now().view(projection)
    }

    fn claim_view<'a>(&'a self, projection: &'a Name) -> BoxFuture<'a, Result<Epoch, StoreError>> {
        self.now().claim_view(projection)
    }

    fn save_view<'a>(
        &'a self,
        projection: &'a Name,
        epoch: Epoch,
        view: View,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.now().save_view(projection, epoch, view)
    }

    fn catalog(&self) -> BoxFuture<'_, Result<Option<Vec<CatalogEntry>>, StoreError>> {
        self.now().catalog()
    }

    fn replace_catalog(
        &self,
        expected: Option<Vec<CatalogEntry>>,
        entries: Vec<CatalogEntry>,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.now().replace_catalog(expected, entries)
    }

    fn identity(&self) -> BoxFuture<'_, Result<Option<StoreIdentity>, StoreError>> {
        self.newest.identity()
    }

    fn durability(&self) -> &'static str {
        self.newest.durability()
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.newest.close()
    }
}

async fn fill_times(node: &Node, times: u64) {
    for _ in 0..times {
        node.client().send(fill("a")).await.unwrap();
    }
}

async fn fills(node: &Node) -> u64 {
    node.client().query(Fillings {}).await.unwrap()
}

/// Returns a store with so many events in its older copy.
async fn rolling_back(lasting: u64) -> RollingBack {
    let store = RollingBack::default();
    if lasting > 0 {
        let node = Node::builder("wallets", store.older.clone()).aggregate::<Wallet>().start().await.unwrap();
        fill_times(&node, lasting).await;
        node.stop().await.unwrap();
    }
    store
}

/// With a copy of no events, and with one that lacks the last events.
#[whizbang::test]
async fn node_ends_when_its_store_loses_committed_events() {
    for lasting in [0, 3] {
        let (store, hub) = (rolling_back(lasting).await, LoopbackHub::new());
        let watch = Node::builder("watch", MemoryStore::new()).threads(0).projection::<Counted>();
        let watch = watch.bridge(hub.bridge()).start().await.unwrap();
        let node = Node::builder("wallets", store.clone()).threads(0).aggregate::<Wallet>();
        let node = node.bridge(hub.bridge()).start().await.unwrap();
        fill_times(&node, 7).await;
        eventually(async || fills(&watch).await == 7).await;
        store.roll_back();
        let mut refused: Result<(), SendError> = Ok(());
        eventually(async || {
            refused = node.client().send(fill("a")).await.map(|_| ());
            node.ended().is_some()
        })
        .await;
        let end = node.ended().unwrap();
        let NodeEnd::OlderLog { published, here, .. } = end else { panic!("{end:?}") };
        // The writer of the newest store may commit until the node has opened the older copy.
        assert!(published >= 7 && here == lasting, "{published} and {here}");
        assert!(!node.health().live && node.health().reasons[0].contains("replaces_store"), "{:?}", node.health());
        assert!(refused.is_err(), "nothing is decided on the older copy");
        assert!(node.client().send(fill("a")).await.is_err());
        assert!((7..=published).contains(&fills(&watch).await), "nothing of the other history was published");
        assert!(watch.health().ready, "{:?}", watch.health());
    }
}

/// Its views, which show the lost events, are rebuilt at the next start.
#[whizbang::test]
async fn node_without_a_bridge_ends_when_its_store_loses_events() {
    let store = rolling_back(3).await;
    let node = Node::builder("wallets", store.clone()).threads(0).aggregate::<Wallet>().projection::<Counted>();
    let node = node.start().await.unwrap();
    fill_times(&node, 7).await;
    eventually(async || fills(&node).await == 7).await;
    store.roll_back();
    eventually(async || node.ended().is_some()).await;
    let end = node.ended().unwrap();
    assert!(matches!(end, NodeEnd::OlderLog { published: 7, here: 3, .. }), "{end:?}");
    drop(node);
    let node = Node::builder("wallets", store).threads(0).aggregate::<Wallet>().projection::<Counted>();
    let node = node.start().await.unwrap();
    fill_times(&node, 1).await;
    eventually(async || fills(&node).await == 4).await;
}

#[whizbang::test]
async fn node_continues_when_its_store_keeps_all_events() {
    let store = rolling_back(7).await;
    let node = Node::builder("wallets", store.clone()).threads(0).aggregate::<Wallet>().start().await.unwrap();
    fill_times(&node, 7).await;
    store.roll_back();
    fill_times(&node, 1).await;
    assert_eq!(node.ended(), None);
    node.stop().await.unwrap();
}
