//! A store in memory: for tests and small examples, and as the reference for the other stores.
//!
//! Used like any store. It keeps the same records and the same index as the store on disk. Appends are committed
//! immediately. The data exists as long as one clone of the store.
//!
//! Each store must behave as this one: the suites of the conformance crate were written against it. It differs only in that a
//! commit costs nothing and is lost with the process.

mod arena;
mod commit_control;
mod leases;
mod shard;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use parking_lot::Mutex;

pub use self::commit_control::CommitControl;
use self::leases::{LeaseTable, MemoryLeases};
use self::shard::{MemoryReader, MemoryShard, MemoryWriter};
use whizbang_core::clock::{Clock, Timestamp};
use whizbang_core::message::{Name, ShardId, StoreId, StoreIdentity};
use whizbang_core::store::{
    CatalogEntry, CommitListener, Epoch, ShardHandle, ShardLeases, ShardReader, Statement, Store, StoreError, View,
};

/// The span of ids that are dropped together, in milliseconds: a day.
const IDS_SPAN_MS: u64 = 24 * 3600 * 1000;

/// A store in memory. Clones share the data, so a node restarted with a clone finds everything.
///
/// One node at a time uses a [new](Self::new) store. The nodes of a service share the shards of a [shared](Self::shared)
/// store, each with its own clone.
///
/// ```
/// use whizbang::store::{Store, memory::MemoryStore};
///
/// let store = MemoryStore::new();
/// assert!(store.durability().contains("memory"));
/// ```
///
/// # Uses
///
/// - Tests and examples: no folder, no server, and the same behavior in every run.
/// - The same store in two runs of a node: start the second one with a clone. A clone of a [new](Self::new) store takes every
///   shard over.
/// - Faults: [`faulty`](Self::faulty) delays, loses and rejects commits.
///
/// Everything is lost with the last clone. Memory grows with each turn, because nothing is ever removed.
#[derive(Default)]
pub struct MemoryStore {
    /// The data, which exists as long as one clone.
    shared: Arc<Shared>,
    /// The access of this node, which it may close.
    handle: Arc<Handle>,
}

impl Clone for MemoryStore {
    fn clone(&self) -> Self {
        // Each node that shares the store closes it for itself.
        let handle = if self.shared.leases.is_some() { Arc::default() } else { Arc::clone(&self.handle) };
        Self { shared: Arc::clone(&self.shared), handle }
    }
}

/// One node's access to a shared store.
#[derive(Default)]
struct Handle {
    /// Never set in a store that is not shared: closing it closes its shards.
    is_closed: AtomicBool,
}

/// The data of a store. Its locks are taken one at a time, except that a shard is locked while its appends are held back.
#[derive(Default)]
struct Shared {
    /// Present in a store that several nodes share.
    leases: Option<Arc<LeaseTable>>,
    /// The shards that were ever opened.
    shards: Mutex<HashMap<ShardId, Arc<MemoryShard>>>,
    /// The number of shards of each domain, which cannot change.
    domains: Mutex<HashMap<Name, u16>>,
    /// The listeners that may open shards.
    listeners: Mutex<Vec<Arc<RegisteredListener>>>,
    /// The views of projections, with the epoch of the last claim.
    views: Mutex<HashMap<Name, (Epoch, Option<View>)>>,
    /// The types that a node has hosted.
    catalog: Mutex<Option<Vec<CatalogEntry>>>,
    /// Created on first use.
    identity: Mutex<Option<StoreIdentity>>,
    /// The uncommitted appends; empty without a [`CommitControl`].
    held_commits: commit_control::HeldCommits,
    /// Runs the statements of a save.
    statements: Option<RunStatements>,
}

/// Runs the statements of one save, or none of them.
type RunStatements = Box<dyn Fn(&[Statement]) -> Result<(), StoreError> + Send + Sync>;

/// A listener and the last ticket issued for it.
///
/// Kept while the listener may open a shard again. It remembers the highest ticket reported to it: tickets that started
/// again from 1 would count as committed when they are issued.
struct RegisteredListener {
    /// The listener.
    listener: Arc<dyn CommitListener>,
    /// The last ticket. The first one is 1.
    tickets: AtomicU64,
}

impl RegisteredListener {
    /// Returns whether a shard or the owner of the listener holds on to it.
    fn is_in_use(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 1 || Arc::strong_count(&self.listener) > 1
    }
}

impl MemoryStore {
    /// Creates an empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates an empty store that several nodes of a service share: its clones have common data, members and
    /// [leases](Store::leases). The leases are counted by `clock`, without its jumps.
    ///
    /// ```
    /// use whizbang::clock::Clock;
    /// use whizbang::store::{Store, memory::MemoryStore};
    ///
    /// let store = MemoryStore::shared(&Clock::system());
    /// assert!(store.leases().is_some() && MemoryStore::new().leases().is_none());
    /// ```
    pub fn shared(clock: &Clock) -> Self {
        let shared = Shared { leases: Some(Arc::new(LeaseTable::new(clock))), ..Shared::default() };
        Self { shared: Arc::new(shared), handle: Arc::default() }
    }

    /// Creates an empty store for tests that runs the [statements](Statement) of projections with `run`. It is called once for
    /// each save with statements, while the view is locked, and runs all of them, or none and returns an error.
    ///
    /// ```
    /// use whizbang::message::Name;
    /// use whizbang::store::{Statement, Store, View, memory::MemoryStore};
    ///
    /// # whizbang::derive::block_on(async {
    /// let store = MemoryStore::run_statements_by(|statements| {
    ///     assert_eq!(statements[0].sql(), "DELETE FROM orders");
    ///     Ok(())
    /// });
    /// let orders = Name::from_static("orders")?;
    /// let epoch = store.claim_view(&orders).await?;
    /// let view = View { schema: 1, checkpoint: Vec::new(), bytes: Vec::new().into() };
    /// store.save_view_with(&orders, epoch, view, &[Statement::new("DELETE FROM orders")]).await?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn run_statements_by(run: impl Fn(&[Statement]) -> Result<(), StoreError> + Send + Sync + 'static) -> Self {
        let shared = Shared { statements: Some(Box::new(run)), ..Shared::default() };
        Self { shared: Arc::new(shared), handle: Arc::default() }
    }

    /// Creates the control of this store.
    pub fn commit_control(&self) -> CommitControl {
        CommitControl::new(self)
    }

    /// Creates an empty store for tests, and the control that makes it fail: delayed commits, lost commits, rejected appends.
    pub fn faulty() -> (Self, CommitControl) {
        let store = Self::default();
        let faults = CommitControl::new(&store);
        (store, faults)
    }

    /// Returns an error after this handle was closed.
    fn check_open(&self) -> Result<(), StoreError> {
        if self.handle.is_closed.load(Ordering::Acquire) { Err(StoreError::Closed) } else { Ok(()) }
    }

    /// Returns this handle of the store, not a new one as a clone of a shared store is.
    fn same_handle(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), handle: Arc::clone(&self.handle) }
    }

    /// Opens a shard for a new owner.
    fn open_now(
        &self,
        id: &ShardId,
        shards: u16,
        listener: Arc<dyn CommitListener>,
    ) -> Result<ShardHandle, StoreError> {
        let handle = self.claim_shard(id, shards, listener)?;
        // Before the new owner reads: what it finds must not change by a commit of an earlier owner.
        self.shared.held_commits.fence(id, handle.writer.epoch());
        Ok(handle)
    }

    /// Takes a shard. The caller loses the uncommitted appends of its earlier owners before anything is read.
    fn claim_shard(
        &self,
        id: &ShardId,
        shards: u16,
        listener: Arc<dyn CommitListener>,
    ) -> Result<ShardHandle, StoreError> {
        let found = *self.shared.domains.lock().entry(id.domain.clone()).or_insert(shards);
        if found != shards || id.shard >= shards {
            return Err(StoreError::Shards { domain: id.domain.to_string(), found, wanted: shards });
        }
        let shard = Arc::clone(
            self.shared.shards.lock().entry(id.clone()).or_insert_with(|| Arc::new(MemoryShard::new(id.clone()))),
        );
        let epoch = shard.claim();
        let registered = self.register_listener(listener);
        let reader = Arc::new(MemoryReader::new(Arc::clone(&shard)));
        Ok(ShardHandle { writer: Box::new(MemoryWriter::new(self.same_handle(), shard, epoch, registered)), reader })
    }

    /// Returns the identity, which is created on first use. It differs between the stores of a process and is the same
    /// in every run.
    fn identity_now(&self) -> StoreIdentity {
        static STORES: AtomicU64 = AtomicU64::new(1);
        let mut identity = self.shared.identity.lock();
        let made = || StoreIdentity::new(StoreId::from_u128(u128::from(STORES.fetch_add(1, Ordering::Relaxed))));
        identity.get_or_insert_with(made).clone()
    }

    /// Returns the tickets of a listener, the same for each of its shards.
    fn register_listener(&self, listener: Arc<dyn CommitListener>) -> Arc<RegisteredListener> {
        let mut listeners = self.shared.listeners.lock();
        let same =
            |known: &&Arc<RegisteredListener>| std::ptr::addr_eq(Arc::as_ptr(&known.listener), Arc::as_ptr(&listener));
        if let Some(known) = listeners.iter().find(same) {
            return Arc::clone(known);
        }
        listeners.retain(RegisteredListener::is_in_use);
        let new = Arc::new(RegisteredListener { listener, tickets: AtomicU64::new(0) });
        listeners.push(Arc::clone(&new));
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
        ready(self.check_open().and_then(|()| self.open_now(shard, shards, listener))).boxed()
    }

    fn read<'a>(&'a self, shard: &'a ShardId) -> BoxFuture<'a, Result<Option<Arc<dyn ShardReader>>, StoreError>> {
        let found = self.shared.shards.lock().get(shard).cloned();
        ready(Ok(found.map(|shard| Arc::new(MemoryReader::new(shard)) as Arc<dyn ShardReader>))).boxed()
    }

    fn view<'a>(&'a self, projection: &'a Name) -> BoxFuture<'a, Result<Option<View>, StoreError>> {
        ready(Ok(self.shared.views.lock().get(projection).and_then(|(_, view)| view.clone()))).boxed()
    }

    fn claim_view<'a>(&'a self, projection: &'a Name) -> BoxFuture<'a, Result<Epoch, StoreError>> {
        let mut views = self.shared.views.lock();
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
        self.save_view_with(projection, epoch, view, &[])
    }

    fn runs_statements(&self) -> bool {
        self.shared.statements.is_some()
    }

    fn save_view_with<'a>(
        &'a self,
        projection: &'a Name,
        epoch: Epoch,
        view: View,
        statements: &'a [Statement],
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        let mut views = self.shared.views.lock();
        let (current, kept) = views.entry(projection.clone()).or_default();
        if *current != epoch {
            let current = *current;
            return ready(Err(StoreError::ViewTaken { projection: projection.to_string(), mine: epoch, current }))
                .boxed();
        }
        let ran = match &self.shared.statements {
            _ if statements.is_empty() => Ok(()),
            Some(run) => run(statements),
            None => Err(StoreError::NoStatements),
        };
        if ran.is_ok() {
            *kept = Some(view);
        }
        ready(ran).boxed()
    }

    fn catalog(&self) -> BoxFuture<'_, Result<Option<Vec<CatalogEntry>>, StoreError>> {
        ready(Ok(self.shared.catalog.lock().clone())).boxed()
    }

    fn replace_catalog(
        &self,
        expected: Option<Vec<CatalogEntry>>,
        entries: Vec<CatalogEntry>,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        let mut catalog = self.shared.catalog.lock();
        let is_expected = *catalog == expected;
        if is_expected {
            *catalog = Some(entries);
        }
        ready(Ok(is_expected)).boxed()
    }

    fn identity(&self) -> BoxFuture<'_, Result<Option<StoreIdentity>, StoreError>> {
        ready(Ok(Some(self.identity_now()))).boxed()
    }

    fn replace_identity(
        &self,
        expected: StoreIdentity,
        identity: StoreIdentity,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        let mut current = self.shared.identity.lock();
        let is_expected = current.as_ref() == Some(&expected);
        if is_expected {
            *current = Some(identity);
        }
        ready(Ok(is_expected)).boxed()
    }

    fn leases(&self) -> Option<Arc<dyn ShardLeases>> {
        let table = Arc::clone(self.shared.leases.as_ref()?);
        Some(Arc::new(MemoryLeases { store: self.same_handle(), table }))
    }

    fn forget_ids(&self, before: Timestamp) {
        for shard in self.shared.shards.lock().values() {
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
        self.shared.held_commits.release();
        if self.shared.leases.is_some() {
            self.handle.is_closed.store(true, Ordering::Release);
            return ready(Ok(())).boxed();
        }
        for shard in self.shared.shards.lock().values() {
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

#[cfg(test)]
mod tests;
