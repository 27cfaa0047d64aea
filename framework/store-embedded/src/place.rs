//! A folder as one end of a move.
//!
//! Called by the [move of a store](whizbang_log::transfer). The store is locked as long as it is an end of a move.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::disk::{Disk, Folder};
use super::inner::Inner;
use super::layout::{self, Layout};
use super::scan;
use super::segment::BatchLocation;
use super::{EmbeddedConfig, EmbeddedStore, ExecutionMode, identity, views};
use bytes::Bytes;
use whizbang_core::clock::Clock;
use whizbang_core::message::{IdSource, Name, ShardId};
use whizbang_core::store::{CommitListener, ShardHandle, Store, StoreError};
use whizbang_log::record::Names;
use whizbang_log::transfer::{
    CopiedShard, CopiedTurn, FoundSource, MoveEnd, MoveMark, MoveSource, MoveState, MoveTarget, NewStore, StorePlace,
    TurnPages,
};

/// A page of turns ends with the batch that reaches so many bytes.
const PAGE_BYTES: usize = 1024 * 1024;

/// The operation that errors of marks name.
const MARKING: &str = "marking the store as moved";

/// A folder whose store is moved with `move_store`, or into which one is moved.
///
/// ```
/// use whizbang::store::embedded::{EmbeddedConfig, EmbeddedPlace};
///
/// let place = EmbeddedPlace::new("data").config(EmbeddedConfig::default().segment_bytes(16 << 20));
/// # drop(place);
/// ```
#[derive(Clone, Debug)]
pub struct EmbeddedPlace {
    /// The folder, which may be missing.
    folder: PathBuf,
    /// The sizes of the opened store.
    config: EmbeddedConfig,
}

impl EmbeddedPlace {
    /// Refers to the store in `folder`. A folder to which a store is moved is created if it does not exist.
    pub fn new(folder: impl AsRef<Path>) -> Self {
        Self { folder: folder.as_ref().to_owned(), config: EmbeddedConfig::default() }
    }

    /// Sets the sizes with which the store is opened; the defaults by default.
    pub fn config(mut self, config: EmbeddedConfig) -> Self {
        self.config = config;
        self
    }

    /// Locks the folder and opens the store. `layout` reads or creates its first file and decides whether the store may be opened.
    ///
    /// # Errors
    /// [`StoreError::InUse`] if a process has the store open, those of `layout`, and those of opening.
    fn open(
        &self,
        disk: Arc<dyn Disk>,
        layout: impl FnOnce(&Arc<dyn Disk>, u64) -> Result<Layout, StoreError>,
    ) -> Result<MovedFolder, StoreError> {
        let mut found = None;
        let ids = IdSource::random(Clock::system());
        let store = EmbeddedStore::start(disk, &self.config, ids, ExecutionMode::Threads, |disk, seed| {
            let layout = layout(disk, seed)?;
            found = Some(layout.clone());
            Ok(layout)
        })?;
        let layout = found.ok_or(StoreError::Closed)?;
        Ok(MovedFolder { store, layout })
    }

    /// Opens the store that is moved away. A folder that does not exist is not created.
    ///
    /// # Errors
    /// [`StoreError::Missing`] without a store, [`StoreError::Unfinished`] for the copy of an interrupted move.
    fn source_now(&self) -> Result<FoundSource, StoreError> {
        let disk: Arc<dyn Disk> = Arc::new(Folder::at(&self.folder));
        // Before the folder is locked: it may not exist.
        let mark = layout::read(&disk)?.mark().cloned();
        match mark {
            Some(mark @ MoveMark { state: MoveState::Away(_), .. }) => {
                Ok(FoundSource::Moved { at: layout::place(&disk), mark })
            }
            Some(mark) => Err(mark.refusal(layout::place(&disk))),
            None => {
                let folder = self.open(disk, |disk, _| layout::read(disk)?.usable(disk))?;
                Ok(FoundSource::Ready(Box::new(folder)))
            }
        }
    }

    /// Creates the folder and a store whose mark keeps nodes from opening it.
    ///
    /// # Errors
    /// Those of [`layout::create`]. Nothing was changed, except that the folder may have been created.
    fn create_now(&self, new: &NewStore) -> Result<MovedFolder, StoreError> {
        let at = self.folder.display();
        let folder = Folder::new(&self.folder)
            .map_err(|error| StoreError::io(format!("opening the store's folder {at}"), error))?;
        self.open(Arc::new(folder), |disk, seed| {
            let layout = layout::create(disk, Layout::copied(seed, new.digest_key, new.number))?;
            if let Some(identity) = &new.identity {
                identity::save(disk, identity)?;
            }
            Ok(layout)
        })
    }

    /// Removes the mark of a complete copy. Returns `false` for any other folder, and changes nothing there.
    ///
    /// # Errors
    /// [`StoreError::InUse`] if another program has locked the folder, and those of reading and writing the mark.
    fn finish_now(&self, number: u128) -> Result<bool, StoreError> {
        let disk: Arc<dyn Disk> = Arc::new(Folder::at(&self.folder));
        let complete = MoveMark::new(number, MoveState::Complete);
        let copy = || match layout::read(&disk) {
            Err(StoreError::Missing { .. }) => Ok(None),
            layout => layout.map(|layout| Some(layout).filter(|layout| layout.mark() == Some(&complete))),
        };
        // Before the folder is locked: it may not exist.
        if copy()?.is_none() {
            return Ok(false);
        }
        let at = layout::place(&disk);
        let locked = disk.lock().map_err(|error| StoreError::io(format!("locking the store's folder {at}"), error));
        if !locked? {
            return Err(StoreError::InUse { at });
        }
        // Another program may have finished the move, and the store may have moved on.
        let finished = copy().and_then(|copy| match copy {
            Some(layout) => layout.marked(None).save(&disk, MARKING).map(|()| true),
            None => Ok(false),
        });
        disk.unlock();
        finished
    }
}

impl StorePlace for EmbeddedPlace {
    fn source(&self) -> BoxFuture<'_, Result<FoundSource, StoreError>> {
        async { self.source_now() }.boxed()
    }

    fn create(&self, new: NewStore) -> BoxFuture<'_, Result<Box<dyn MoveTarget>, StoreError>> {
        async move { self.create_now(&new).map(|folder| Box::new(folder) as Box<dyn MoveTarget>) }.boxed()
    }

    fn finish(&self, number: u128) -> BoxFuture<'_, Result<bool, StoreError>> {
        async move { self.finish_now(number) }.boxed()
    }
}

/// The store in a folder, while it is an end of a move.
struct MovedFolder {
    /// Open, so that the folder is locked.
    store: EmbeddedStore,
    /// The content of the file with the mark, as it was when the store was opened.
    layout: Layout,
}

impl MovedFolder {
    /// Replaces the mark, durably.
    fn mark(&self, mark: Option<MoveMark>) -> Result<(), StoreError> {
        self.layout.marked(mark).save(&self.store.inner.disk, MARKING)
    }
}

impl MoveEnd for MovedFolder {
    fn store(&self) -> &dyn Store {
        &self.store
    }

    fn at(&self) -> String {
        layout::place(&self.store.inner.disk)
    }

    fn shards(&self) -> BoxFuture<'_, Result<Vec<CopiedShard>, StoreError>> {
        let copied = self.store.inner.shards().into_iter().map(|shard| CopiedShard {
            id: shard.id.clone(),
            shards: shard.shards,
            epoch: shard.state.lock().epoch,
        });
        let copied = copied.collect();
        async { Ok(copied) }.boxed()
    }

    fn views(&self) -> BoxFuture<'_, Result<Vec<Name>, StoreError>> {
        async { views::names(&self.store.inner.disk) }.boxed()
    }

    fn turns(&self) -> Box<dyn TurnPages + '_> {
        let inner = &*self.store.inner;
        let shards = inner.shards().iter().map(|shard| shard.id.clone()).collect();
        Box::new(LogPages { inner, shards, names: Names::default(), place: Some(BatchLocation::FIRST) })
    }
}

impl MoveSource for MovedFolder {
    fn mark_moved<'a>(&'a self, mark: &'a MoveMark) -> BoxFuture<'a, Result<(), StoreError>> {
        async { self.mark(Some(mark.clone())) }.boxed()
    }
}

impl MoveTarget for MovedFolder {
    fn open<'a>(
        &'a self,
        shard: &'a CopiedShard,
        listener: Arc<dyn CommitListener>,
    ) -> BoxFuture<'a, Result<ShardHandle, StoreError>> {
        self.store.claim_shard(&shard.id, shard.shards, listener, shard.epoch).boxed()
    }

    fn complete(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        let number = self.layout.mark().map_or(0, |mark| mark.number);
        async move { self.mark(Some(MoveMark::new(number, MoveState::Complete))) }.boxed()
    }

    fn activate(self: Box<Self>) -> BoxFuture<'static, Result<(), StoreError>> {
        async move {
            // Under the lock: a later mark of another program is not lost.
            self.mark(None)?;
            self.store.close().await
        }
        .boxed()
    }
}

/// The turns of the log, read on the calling thread.
struct LogPages<'a> {
    /// The opened store. Nothing is appended while its turns are read.
    inner: &'a Inner,
    /// By their numbers in the log.
    shards: Vec<ShardId>,
    /// The names that records repeat.
    names: Names,
    /// The place of the next batch; `None` at the end of the log.
    place: Option<BatchLocation>,
}

impl LogPages<'_> {
    /// Returns the turns of the next batches; none at the end of the log.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] for damage, as when the store is opened: nothing is skipped.
    fn read_page(&mut self) -> Result<Vec<(ShardId, CopiedTurn)>, StoreError> {
        let (inner, shards) = (self.inner, &self.shards);
        let (segments, names, mut turns) = (&*inner.segments, &mut self.names, Vec::new());
        while let (true, Some(from)) = (turns.is_empty(), self.place) {
            let (end, is_page) = scan::follow_page(segments, from, PAGE_BYTES, |location, record| {
                let shard = |tag| shards.get(usize::try_from(tag).ok()?).cloned();
                let read = CopiedTurn::read(location, &Bytes::copy_from_slice(record), None, names, shard);
                turns.extend(read.map_err(|reason| segments.damaged(location, reason))?);
                Ok(())
            })?;
            self.place = is_page.then_some(end.place);
            if !is_page && let Some(later) = scan::find_later_write(segments, end.place)? {
                return Err(scan::damaged(segments, end.place, &later)?);
            }
        }
        Ok(turns)
    }
}

impl TurnPages for LogPages<'_> {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<(ShardId, CopiedTurn)>, StoreError>> {
        async { self.read_page() }.boxed()
    }
}

#[cfg(test)]
mod tests;
