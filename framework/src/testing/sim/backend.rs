//! Where a simulated service keeps what is committed: in memory, or in the store on disk on a disk that is simulated.
//!
//! Called by the [disk](super::disk), which decides when something is committed and when the power fails.

use std::sync::Arc;

use crate::message::{Name, ShardId, StoreIdentity};
use crate::store::memory::{CommitControl, MemoryStore};
use crate::store::{CatalogEntry, CommitListener, Epoch, ShardHandle, ShardReader, Store, StoreError, View};

#[cfg(feature = "embedded")]
use {
    super::disk_image::DiskImage,
    crate::message::IdSource,
    crate::store::embedded::{EmbeddedConfig, EmbeddedStore},
    parking_lot::Mutex,
};

/// Segments and checkpoints are small: what happens at their borders happens often.
#[cfg(feature = "embedded")]
const SEGMENT_BYTES: u64 = 16 * 1024;
#[cfg(feature = "embedded")]
const CHECKPOINT_BYTES: u64 = 4 * 1024;

/// Where what is committed is kept.
pub(super) enum Backend {
    /// What is appended is committed when it is said, and stays.
    Memory(MemoryStore, CommitControl),
    /// What is appended is committed once the store has written and flushed it.
    #[cfg(feature = "embedded")]
    OnDisk(OnDisk),
}

/// The store on disk, on a disk that is simulated.
#[cfg(feature = "embedded")]
pub(super) struct OnDisk {
    platter: DiskImage,
    /// The store of the present life, and the life of the disk in which it was opened.
    store: Mutex<Option<(u64, Arc<EmbeddedStore>)>>,
    seeds: Mutex<IdSource>,
}

impl Backend {
    pub(super) fn memory() -> Self {
        let (store, faults) = MemoryStore::faulty();
        Self::Memory(store, faults)
    }

    #[cfg(feature = "embedded")]
    pub(super) fn on_disk(dice: &IdSource) -> Self {
        Self::OnDisk(OnDisk {
            platter: DiskImage::new(dice.fork()),
            store: Mutex::new(None),
            seeds: Mutex::new(dice.fork()),
        })
    }

    /// A new life begins: the store is opened anew from what is left of it.
    pub(super) fn renew(&self) -> Result<(), StoreError> {
        match self {
            Self::Memory(_, faults) => {
                faults.hold();
                Ok(())
            }
            #[cfg(feature = "embedded")]
            Self::OnDisk(disk) => {
                let mut store = disk.store.lock();
                // It lets go of the disk first; what is left of it cannot write any more.
                *store = None;
                let config = EmbeddedConfig::default().segment_bytes(SEGMENT_BYTES).checkpoint_bytes(CHECKPOINT_BYTES);
                let (life, seed) = (disk.platter.life(), disk.seeds.lock().next_u64());
                let opened = EmbeddedStore::open_on(Arc::new(disk.platter.spin()), &config, Some(seed))?;
                *store = Some((life, Arc::new(opened)));
                Ok(())
            }
        }
    }

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

    pub(super) async fn open(
        &self,
        id: &ShardId,
        shards: u16,
        listener: Arc<dyn CommitListener>,
    ) -> Result<ShardHandle, StoreError> {
        self.store()?.open(id, shards, listener).await
    }

    pub(super) async fn read(&self, shard: &ShardId) -> Result<Option<Arc<dyn ShardReader>>, StoreError> {
        self.store()?.read(shard).await
    }

    pub(super) async fn view(&self, projection: &Name) -> Result<Option<View>, StoreError> {
        self.store()?.view(projection).await
    }

    pub(super) async fn take_view(&self, projection: &Name) -> Result<Epoch, StoreError> {
        self.store()?.claim_view(projection).await
    }

    pub(super) async fn save_view(&self, projection: &Name, epoch: Epoch, view: View) -> Result<(), StoreError> {
        self.store()?.save_view(projection, epoch, view).await
    }

    pub(super) async fn catalog(&self) -> Result<Option<Vec<CatalogEntry>>, StoreError> {
        self.store()?.catalog().await
    }

    pub(super) async fn save_catalog(&self, entries: Vec<CatalogEntry>) -> Result<(), StoreError> {
        self.store()?.save_catalog(entries).await
    }

    pub(super) async fn identity(&self) -> Result<Option<StoreIdentity>, StoreError> {
        self.store()?.identity().await
    }

    pub(super) async fn save_identity(&self, identity: StoreIdentity) -> Result<(), StoreError> {
        self.store()?.save_identity(identity).await
    }

    /// Commits the first `appends` of what was appended, or more.
    pub(super) fn commit(&self, appends: usize) {
        match self {
            Self::Memory(_, faults) => drop(faults.commit(appends)),
            #[cfg(feature = "embedded")]
            Self::OnDisk(disk) => {
                let store = disk.store.lock().as_ref().map(|(_, store)| Arc::clone(store));
                if let Some(store) = store {
                    store.step();
                }
            }
        }
    }

    /// Whether nobody knows what a crash leaves before it is opened again.
    pub(super) fn is_on_disk(&self) -> bool {
        !matches!(self, Self::Memory(..))
    }

    /// The life ends. Of what was appended the first `kept` are in the log of a store in memory. A store on disk is writing when
    /// the power fails, after some `changes` of the disk at the latest.
    #[cfg_attr(not(feature = "embedded"), expect(unused_variables, reason = "only a disk changes"))]
    pub(super) fn fail(&self, kept: usize, changes: u64) {
        match self {
            Self::Memory(_, faults) => faults.fail(kept, StoreError::Closed),
            #[cfg(feature = "embedded")]
            Self::OnDisk(disk) => {
                let store = disk.store.lock().as_ref().map(|(life, store)| (*life, Arc::clone(store)));
                if let Some((life, store)) = store {
                    disk.platter.fail_after(changes);
                    store.step();
                    disk.platter.end(life);
                }
            }
        }
    }
}
