//! Backends of a simulated store: memory, or the store on disk on a simulated disk.
//!
//! Called by the [store](super::store), which decides about commits and power failures.

use std::sync::Arc;

use whizbang_core::clock::Clock;
use whizbang_core::message::{Name, ShardId, StoreIdentity};
use whizbang_core::store::{
    CatalogEntry, CommitListener, Epoch, ShardHandle, ShardLeases, ShardReader, Store, StoreError, View,
};
use whizbang_log::memory::{CommitControl, MemoryStore};

#[cfg(feature = "embedded")]
use {
    super::disk_image::DiskImage,
    parking_lot::Mutex,
    whizbang_core::message::IdSource,
    whizbang_store_embedded::{EmbeddedConfig, EmbeddedStore},
};

/// Small segments and checkpoints, so that their borders are reached often.
#[cfg(feature = "embedded")]
const SEGMENT_BYTES: u64 = 16 * 1024;
/// The size of the log in bytes after which the store on disk saves a checkpoint. Small, so that runs have several.
#[cfg(feature = "embedded")]
const CHECKPOINT_BYTES: u64 = 4 * 1024;

/// The catalog of a store.
pub(super) type Catalog = Vec<CatalogEntry>;

/// The place of committed data.
pub(super) enum Backend {
    /// Appends are committed on request and survive.
    Memory(MemoryStore, CommitControl),
    /// Appends are committed once the store has written and flushed them.
    #[cfg(feature = "embedded")]
    OnDisk(OnDisk),
}

/// The store on disk, on a simulated disk.
#[cfg(feature = "embedded")]
pub(super) struct OnDisk {
    /// The disk, which survives the store.
    image: DiskImage,
    /// The open store, and the generation of the disk in which it was opened.
    store: Mutex<Option<(u64, Arc<EmbeddedStore>)>>,
    /// The source of the seeds of stores, one for each opening.
    seeds: Mutex<IdSource>,
}

impl Backend {
    /// Creates a backend in memory, whose commits the simulation decides.
    pub(super) fn memory() -> Self {
        let (store, commit_control) = MemoryStore::faulty();
        Self::Memory(store, commit_control)
    }

    /// Creates a store in memory that several nodes share. Its leases are counted by `clock`.
    pub(super) fn shared(clock: &Clock) -> Self {
        let store = MemoryStore::shared(clock);
        let commit_control = store.commit_control();
        Self::Memory(store, commit_control)
    }

    /// Creates a backend on an empty simulated disk.
    #[cfg(feature = "embedded")]
    pub(super) fn on_disk(rng: &IdSource) -> Self {
        Self::OnDisk(OnDisk {
            image: DiskImage::new(rng.fork()),
            store: Mutex::new(None),
            seeds: Mutex::new(rng.fork()),
        })
    }

    /// Opens the store again from the surviving data.
    pub(super) fn reopen(&self) -> Result<(), StoreError> {
        match self {
            Self::Memory(_, commit_control) => {
                commit_control.hold();
                Ok(())
            }
            #[cfg(feature = "embedded")]
            Self::OnDisk(disk) => {
                let mut store = disk.store.lock();
                // Drop the old store first: it must not write to the disk after that.
                *store = None;
                let config = EmbeddedConfig::default().segment_bytes(SEGMENT_BYTES).checkpoint_bytes(CHECKPOINT_BYTES);
                let (generation, seed) = (disk.image.generation(), disk.seeds.lock().next_u64());
                let opened = EmbeddedStore::open_on(Arc::new(disk.image.mount()), &config, Some(seed))?;
                *store = Some((generation, Arc::new(opened)));
                Ok(())
            }
        }
    }

    /// Returns the leases of a store that several nodes share.
    pub(super) fn leases(&self) -> Option<Arc<dyn ShardLeases>> {
        match self {
            Self::Memory(store, _) => store.leases(),
            #[cfg(feature = "embedded")]
            Self::OnDisk(_) => None,
        }
    }

    /// Returns whether several nodes share the store.
    pub(super) fn is_shared(&self) -> bool {
        self.leases().is_some()
    }

    /// Commits the first pending appends of one listener, which is one opening of a shard. Only in memory: the store on disk is
    /// not shared, and [`commit`](Self::commit) commits for its one node.
    pub(super) fn commit_of(&self, listener: &Arc<dyn CommitListener>, appends: usize) {
        match self {
            Self::Memory(_, commit_control) => {
                commit_control.commit_of(listener, appends);
            }
            #[cfg(feature = "embedded")]
            Self::OnDisk(_) => {}
        }
    }

    /// Loses the pending appends of one listener, except the first `survivors`. Only in memory, as [`commit_of`](Self::commit_of).
    pub(super) fn lose(&self, listener: &Arc<dyn CommitListener>, survivors: usize) {
        match self {
            Self::Memory(_, commit_control) => {
                commit_control.lose(listener, survivors);
            }
            #[cfg(feature = "embedded")]
            Self::OnDisk(_) => {}
        }
    }

    /// Returns the open store.
    ///
    /// # Errors
    /// [`StoreError::Closed`] between a crash and the next opening of the store on disk.
    fn store(&self) -> Result<Arc<dyn Store>, StoreError> {
        match self {
            Self::Memory(store, _) => Ok(Arc::new(store.clone())),
            #[cfg(feature = "embedded")]
            Self::OnDisk(disk) => {
                let store = disk.store.lock();
                store.as_ref().map(|(_, store)| Arc::clone(store) as _).ok_or(StoreError::Closed)
            }
        }
    }

    /// Same as [`Store::open`].
    pub(super) async fn open(
        &self,
        id: &ShardId,
        shards: u16,
        listener: Arc<dyn CommitListener>,
    ) -> Result<ShardHandle, StoreError> {
        self.store()?.open(id, shards, listener).await
    }

    /// Same as [`Store::read`].
    pub(super) async fn read(&self, shard: &ShardId) -> Result<Option<Arc<dyn ShardReader>>, StoreError> {
        self.store()?.read(shard).await
    }

    /// Same as [`Store::view`].
    pub(super) async fn view(&self, projection: &Name) -> Result<Option<View>, StoreError> {
        self.store()?.view(projection).await
    }

    /// Same as [`Store::claim_view`].
    pub(super) async fn claim_view(&self, projection: &Name) -> Result<Epoch, StoreError> {
        self.store()?.claim_view(projection).await
    }

    /// Same as [`Store::save_view`].
    pub(super) async fn save_view(&self, projection: &Name, epoch: Epoch, view: View) -> Result<(), StoreError> {
        self.store()?.save_view(projection, epoch, view).await
    }

    /// Same as [`Store::catalog`].
    pub(super) async fn catalog(&self) -> Result<Option<Catalog>, StoreError> {
        self.store()?.catalog().await
    }

    /// Same as [`Store::replace_catalog`].
    pub(super) async fn replace_catalog(
        &self,
        expected: Option<Catalog>,
        entries: Catalog,
    ) -> Result<bool, StoreError> {
        self.store()?.replace_catalog(expected, entries).await
    }

    /// Same as [`Store::identity`].
    pub(super) async fn identity(&self) -> Result<Option<StoreIdentity>, StoreError> {
        self.store()?.identity().await
    }

    /// Same as [`Store::replace_identity`].
    pub(super) async fn replace_identity(
        &self,
        expected: StoreIdentity,
        identity: StoreIdentity,
    ) -> Result<bool, StoreError> {
        self.store()?.replace_identity(expected, identity).await
    }

    /// Commits at least the first `appends` pending appends.
    pub(super) fn commit(&self, appends: usize) {
        match self {
            Self::Memory(_, commit_control) => drop(commit_control.commit(appends)),
            #[cfg(feature = "embedded")]
            Self::OnDisk(disk) => {
                let store = disk.store.lock().as_ref().map(|(_, store)| Arc::clone(store));
                if let Some(store) = store {
                    store.step();
                }
            }
        }
    }

    /// Returns whether the result of a crash is known only after reopening.
    pub(super) fn is_on_disk(&self) -> bool {
        !matches!(self, Self::Memory(..))
    }

    /// Ends this generation. A store in memory keeps the first `survivors` pending appends. A store on disk loses power while it
    /// writes, after at most `changes` changes of the disk.
    #[cfg_attr(not(feature = "embedded"), expect(unused_variables, reason = "only a simulated disk counts changes"))]
    pub(super) fn fail(&self, survivors: usize, changes: u64) {
        match self {
            Self::Memory(_, commit_control) => commit_control.fail(survivors, StoreError::Closed),
            #[cfg(feature = "embedded")]
            Self::OnDisk(disk) => {
                let store = disk.store.lock().as_ref().map(|(generation, store)| (*generation, Arc::clone(store)));
                if let Some((generation, store)) = store {
                    disk.image.fail_after(changes);
                    store.step();
                    disk.image.end(generation);
                }
            }
        }
    }
}
