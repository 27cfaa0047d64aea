//! A store in memory: for tests and small examples, and as the reference for the other stores.
//!
//! Used like any store. It keeps the same records and the same index as the store on disk. Appends are committed
//! immediately. The data lives as long as one clone of the store.

mod arena;
#[cfg(feature = "testing")]
mod commit_control;
mod shard;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use parking_lot::Mutex;

#[cfg(feature = "testing")]
pub use self::commit_control::CommitControl;
use self::shard::{MemoryReader, MemoryShard, MemoryWriter};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Name, ShardId, StoreId, StoreIdentity};
use whizbang_core::store::{CatalogEntry, CommitListener, Epoch, ShardHandle, ShardReader, Store, StoreError, View};

/// The span of ids that are dropped together, in milliseconds: a day.
const IDS_SPAN_MS: u64 = 24 * 3600 * 1000;

/// A store in memory. Clones share the data, so a node restarted with a clone finds everything.
///
/// ```
/// use whizbang::store::{Store, memory::MemoryStore};
///
/// let store = MemoryStore::new();
/// assert!(store.durability().contains("memory"));
/// ```
#[derive(Clone, Default)]
pub struct MemoryStore(Arc<Shared>);

#[derive(Default)]
struct Shared {
    shards: Mutex<HashMap<ShardId, Arc<MemoryShard>>>,
    domains: Mutex<HashMap<Name, u16>>,
    listeners: Mutex<Vec<Weak<RegisteredListener>>>,
    views: Mutex<HashMap<Name, (Epoch, Option<View>)>>,
    catalog: Mutex<Option<Vec<CatalogEntry>>>,
    identity: Mutex<Option<StoreIdentity>>,
    #[cfg(feature = "testing")]
    held_commits: commit_control::HeldCommits,
}

/// A listener and the last ticket issued for it.
struct RegisteredListener {
    listener: Arc<dyn CommitListener>,
    tickets: AtomicU64,
}

impl MemoryStore {
    /// Creates an empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates an empty store and the control that makes it fail: delayed commits, lost commits, rejected appends.
    #[cfg(feature = "testing")]
    pub fn faulty() -> (Self, CommitControl) {
        let store = Self::default();
        let faults = CommitControl::new(&store);
        (store, faults)
    }

    fn open_now(
        &self,
        id: &ShardId,
        shards: u16,
        listener: Arc<dyn CommitListener>,
    ) -> Result<ShardHandle, StoreError> {
        let found = *self.0.domains.lock().entry(id.domain.clone()).or_insert(shards);
        if found != shards || id.shard >= shards {
            return Err(StoreError::Shards { domain: id.domain.to_string(), found, wanted: shards });
        }
        let shard = Arc::clone(
            self.0.shards.lock().entry(id.clone()).or_insert_with(|| Arc::new(MemoryShard::new(id.clone()))),
        );
        let epoch = shard.claim();
        let registered = self.register_listener(listener);
        let reader = Arc::new(MemoryReader::new(Arc::clone(&shard)));
        Ok(ShardHandle { writer: Box::new(MemoryWriter::new(self.clone(), shard, epoch, registered)), reader })
    }

    /// Returns the identity, which is created on first use. It differs between the stores of a process and is the same
    /// in every run.
    fn identity_now(&self) -> StoreIdentity {
        static STORES: AtomicU64 = AtomicU64::new(1);
        let mut identity = self.0.identity.lock();
        let made = || StoreIdentity::new(StoreId::from_u128(u128::from(STORES.fetch_add(1, Ordering::Relaxed))));
        identity.get_or_insert_with(made).clone()
    }

    fn register_listener(&self, listener: Arc<dyn CommitListener>) -> Arc<RegisteredListener> {
        let mut listeners = self.0.listeners.lock();
        listeners.retain(|known| known.strong_count() > 0);
        let known = listeners.iter().filter_map(Weak::upgrade);
        let same =
            |known: &Arc<RegisteredListener>| std::ptr::addr_eq(Arc::as_ptr(&known.listener), Arc::as_ptr(&listener));
        if let Some(known) = known.into_iter().find(same) {
            return known;
        }
        let new = Arc::new(RegisteredListener { listener, tickets: AtomicU64::new(0) });
        listeners.push(Arc::downgrade(&new));
        new
    }
}

impl Store for MemoryStore {
    fn open<'a>(
        &'a self,
        shard: &'a ShardId,
        shards: u16,
        listener: Arc<dyn CommitListener>,
    ) -> BoxFuture<'a, Result<ShardHandle, StoreError>> {
        ready(self.open_now(shard, shards, listener)).boxed()
    }

    fn read<'a>(&'a self, shard: &'a ShardId) -> BoxFuture<'a, Result<Option<Arc<dyn ShardReader>>, StoreError>> {
        let found = self.0.shards.lock().get(shard).cloned();
        ready(Ok(found.map(|shard| Arc::new(MemoryReader::new(shard)) as Arc<dyn ShardReader>))).boxed()
    }

    fn view<'a>(&'a self, projection: &'a Name) -> BoxFuture<'a, Result<Option<View>, StoreError>> {
        ready(Ok(self.0.views.lock().get(projection).and_then(|(_, view)| view.clone()))).boxed()
    }

    fn claim_view<'a>(&'a self, projection: &'a Name) -> BoxFuture<'a, Result<Epoch, StoreError>> {
        let mut views = self.0.views.lock();
        let (epoch, _) = views.entry(projection.clone()).or_default();
        *epoch += 1;
        ready(Ok(*epoch)).boxed()
    }

    fn save_view<'a>(
        &'a self,
        projection: &'a Name,
        epoch: Epoch,
        view: View,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        let mut views = self.0.views.lock();
        let (current, kept) = views.entry(projection.clone()).or_default();
        let saved = if *current == epoch {
            *kept = Some(view);
            Ok(())
        } else {
            Err(StoreError::ViewTaken { projection: projection.to_string(), mine: epoch, current: *current })
        };
        ready(saved).boxed()
    }

    fn catalog(&self) -> BoxFuture<'_, Result<Option<Vec<CatalogEntry>>, StoreError>> {
        ready(Ok(self.0.catalog.lock().clone())).boxed()
    }

    fn save_catalog(&self, entries: Vec<CatalogEntry>) -> BoxFuture<'_, Result<(), StoreError>> {
        *self.0.catalog.lock() = Some(entries);
        ready(Ok(())).boxed()
    }

    fn identity(&self) -> BoxFuture<'_, Result<Option<StoreIdentity>, StoreError>> {
        ready(Ok(Some(self.identity_now()))).boxed()
    }

    fn save_identity(&self, identity: StoreIdentity) -> BoxFuture<'_, Result<(), StoreError>> {
        *self.0.identity.lock() = Some(identity);
        ready(Ok(())).boxed()
    }

    fn forget_ids(&self, before: Timestamp) {
        for shard in self.0.shards.lock().values() {
            shard.forget_ids(before, IDS_SPAN_MS);
        }
    }

    fn digest_key(&self) -> u128 {
        // A store in memory is for tests, where every run must be the same.
        0x5EED
    }

    fn durability(&self) -> &'static str {
        "in memory: a commit survives the restart of a node inside this process and nothing else"
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        #[cfg(feature = "testing")]
        self.0.held_commits.release();
        for shard in self.0.shards.lock().values() {
            shard.stop_accepting();
        }
        ready(Ok(())).boxed()
    }
}

impl std::fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}
