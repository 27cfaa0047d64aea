//! A store on the local disk. The shards' logs are the database; everything else is a cache derived from them.
//!
//! Used like any store. All shards share one log in segment files. Appends go into a buffer; one thread writes and
//! flushes the gathered appends and reports them as committed. Opening reads the end of the log, removes what a crash
//! left unfinished, and rejects damage with an error that names the file. Committed data is never lost. An actor's
//! thread flushes by itself only for a turn with no other turn in flight, and only while flushes are fast.
//!
//! Start reading at `write_buffer.rs`, `frame.rs` and `scan.rs`.

// docs.rs marks the items that need a feature.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod appender;
mod catalog;
mod checkpoint;
mod config;
mod disk;
mod flush_queue;
mod flusher;
mod frame;
mod identity;
mod ids;
mod inner;
mod layout;
mod log;
mod log_source;
mod next_segment;
mod pages;
mod place;
mod preallocator;
mod read_only;
mod reader;
mod recover;
mod recovered;
mod reserved_bytes;
mod scan;
mod segment;
mod shard;
mod snapshots;
mod threads;
mod views;
mod write_buffer;
mod writer;

use std::io;
use std::path::Path;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use self::appender::EmbeddedWriter;
pub use self::config::EmbeddedConfig;
use self::disk::Folder;
#[doc(hidden)]
pub use self::disk::{Disk, DiskFile};
use self::flush_queue::FlushQueue;
use self::flusher::Flusher;
use self::ids::IdRuns;
use self::inner::{Inner, Registry};
use self::layout::Layout;
pub use self::place::EmbeddedPlace;
use self::preallocator::Preallocator;
pub use self::read_only::ReadOnlyStore;
use self::reader::EmbeddedReader;
use self::recovered::RecoveredShard;
use self::segment::Segments;
use self::shard::Shard;
use self::snapshots::Snapshots;
use self::threads::Threads;
use self::write_buffer::WriteBuffer;
use whizbang_core::clock::{Clock, Timestamp};
use whizbang_core::message::{IdSource, Name, ShardId, StoreIdentity};
use whizbang_core::store::{CatalogEntry, CommitListener, Epoch, ShardHandle, ShardReader, Store, StoreError, View};
use whizbang_log::index::StreamHasher;
use whizbang_log::record::Location;

/// A store in a folder of the local disk.
///
/// Only one process can open it at a time; others may [read](Self::read_only) it concurrently. Commits survive a crash
/// of the process and of the machine. Its memory use is 38 to 75 bytes for each stream that ever existed and 8 bytes
/// for each 256 events, for the location of their records.
///
/// ```no_run
/// use whizbang::store::embedded::EmbeddedStore;
///
/// let store = EmbeddedStore::open("data")?;
/// # Ok::<(), whizbang::store::StoreError>(())
/// ```
///
/// # Files
///
/// | file | contents | if it is lost |
/// |---|---|---|
/// | `whizbang` | the format and the secret seed | the store cannot be opened |
/// | `log-0000000001`, … | the log, in segments that are filled with zeros in advance | a gap is an error; without the last ones their turns are lost |
/// | `identity` | the identity of the store | a new one is made, and peers see another store |
/// | `catalog` | the types that the store has hosted | the next start compares with nothing and writes a new one |
/// | `index-…`, `snapshots-…`, `ids` and `ids-…` | the index, states of actors, older ids | caches: read from the log again |
/// | `view-…` | the views of projections | projections begin at their first event |
///
/// The folder is created with access for this user only.
///
/// # Errors while it runs
///
/// A full disk rejects appends with [`StoreError::Full`] before anything is written, and the store continues as soon as there is
/// space. After a failed write or flush the state of the disk is unknown: all further appends are rejected until the store is
/// opened again.
pub struct EmbeddedStore {
    /// The state, shared with the writers, the readers and the threads.
    inner: Arc<Inner>,
    /// The writer of the caches, shared with its thread.
    flusher: Arc<Flusher>,
    /// `None` after the end, and in a store that a test steps.
    threads: Mutex<Option<Threads>>,
}

/// The threads that do the work behind the appends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExecutionMode {
    /// Each on a thread of its own.
    Threads,
    /// The calling thread, for tests with a deterministic schedule.
    Caller,
}

/// Converts an error of the disk, adding the failed operation.
fn failure(doing: &'static str) -> impl FnOnce(io::Error) -> StoreError {
    move |error| StoreError::io(doing, error)
}

impl EmbeddedStore {
    /// Opens the store in `folder`, or creates one there. Blocks while it reads the end of the log.
    ///
    /// # Errors
    /// [`StoreError::InUse`] if another process has it open, [`StoreError::Newer`] if a newer version wrote it,
    /// [`StoreError::Moved`] and [`StoreError::Unfinished`] if it is a part of a move, [`StoreError::Corrupt`] if it is damaged,
    /// [`StoreError::Full`], [`StoreError::Io`]. On an error nothing was changed, except that the unfinished end of the log may
    /// have been removed.
    ///
    /// Opening takes a time that grows with the log since the last checkpoint, at most 64 MiB by default. Call it before the node
    /// starts, or on a thread that may block.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_with(folder, &EmbeddedConfig::default())
    }

    /// Opens a store like [`open`](Self::open), with other sizes.
    ///
    /// # Errors
    /// Same as [`open`](Self::open).
    pub fn open_with(folder: impl AsRef<Path>, config: &EmbeddedConfig) -> Result<Self, StoreError> {
        let at = folder.as_ref();
        let folder = Folder::new(at)
            .map_err(|error| StoreError::io(format!("opening the store's folder {}", at.display()), error))?;
        let disk = Arc::new(folder);
        Self::start(disk, config, IdSource::random(Clock::system()), ExecutionMode::Threads, layout::open)
    }

    /// Opens a store on any disk. With a seed, the store works only when it is [stepped](Self::step), and every run
    /// with the same seed and steps is the same.
    ///
    /// # Errors
    /// Same as [`open`](Self::open).
    #[doc(hidden)]
    pub fn open_on(disk: Arc<dyn Disk>, config: &EmbeddedConfig, seed: Option<u64>) -> Result<Self, StoreError> {
        let (ids, execution) = match seed {
            Some(seed) => (IdSource::seeded(Clock::system(), seed), ExecutionMode::Caller),
            None => (IdSource::random(Clock::system()), ExecutionMode::Threads),
        };
        Self::start(disk, config, ids, execution, layout::open)
    }

    /// Writes, flushes and reports all appends, and writes the caches. Does nothing in a store with threads.
    #[doc(hidden)]
    pub fn step(&self) {
        if self.inner.execution == ExecutionMode::Caller {
            let mut writer = self.inner.writer.lock();
            while writer.step() {}
            drop(writer);
            self.flusher.step(&self.inner);
        }
    }

    /// Writes a checkpoint now, which makes the next opening fast. Otherwise a checkpoint is written when the log has
    /// grown.
    ///
    /// Blocks until it is written. A failure is only logged, because a checkpoint is a cache.
    pub fn checkpoint(&self) {
        self.flusher.checkpoint(&self.inner);
    }

    /// Locks the folder and starts the store. `layout` reads or creates the first file; it gets a new seed. After an error the
    /// folder is unlocked.
    fn start(
        disk: Arc<dyn Disk>,
        config: &EmbeddedConfig,
        ids: IdSource,
        execution: ExecutionMode,
        layout: impl FnOnce(&Arc<dyn Disk>, u64) -> Result<Layout, StoreError>,
    ) -> Result<Self, StoreError> {
        let at = disk.path("").display().to_string();
        let locked = disk.lock().map_err(|error| StoreError::io(format!("locking the store's folder {at}"), error));
        if !locked? {
            return Err(StoreError::InUse { at });
        }
        let layout = layout(&disk, ids.next_u64());
        let started = layout.and_then(|layout| Self::start_locked(&disk, config, ids, execution, &layout, at));
        if started.is_err() {
            disk.unlock();
        }
        started
    }

    /// Reads the end of the log, the caches, and starts the threads.
    fn start_locked(
        disk: &Arc<dyn Disk>,
        config: &EmbeddedConfig,
        ids: IdSource,
        execution: ExecutionMode,
        layout: &Layout,
        at: String,
    ) -> Result<Self, StoreError> {
        let seed = layout.seed;
        identity::open(disk, || u128::from(ids.next_u64()) << 64 | u128::from(ids.next_u64()))?;
        let hasher = StreamHasher::new(seed);
        let segments = Arc::new(Segments::find(disk)?);
        let runs = IdRuns::open(disk);
        let mut found = recover::recover(disk, &segments, &hasher, config, &runs, || ids.next_u64())?;
        let shards = &mut found.shards;
        let snapshots = Snapshots::open(disk, seed, found.snapshots_from, |named, stored| {
            let shard = usize::try_from(named.tag).ok().and_then(|tag| shards.get_mut(tag));
            let stream = hasher.stream(&named.actor, &named.key);
            // A snapshot of a turn that is not in the log belongs to a newer log: this one was restored from a backup.
            let fits =
                |shard: &&mut RecoveredShard| shard.index.head(stream).is_some_and(|head| head.number >= stored.turn);
            if let Some(shard) = shard.filter(fits) {
                shard.snapshots.insert(stream, stored);
            }
        });
        let snapshots = snapshots.map_err(failure("reading the snapshots"))?;
        let live = found.shards.iter().flat_map(|shard| shard.snapshots.values()).map(|stored| stored.length).sum();
        let mut registry = Registry { domains: found.domains, ..Registry::default() };
        for (log, tag) in found.shards.into_iter().zip(0..) {
            let shard = Arc::new(Shard::recovered(log, tag));
            registry.by_id.insert(shard.id.clone(), Arc::clone(&shard));
            registry.list.push(shard);
        }
        let flusher = Arc::new(Flusher::new(found.checkpoint, live));
        let flush_queue = Arc::new(FlushQueue::new(found.since_checkpoint, config.checkpoint_bytes));
        let write_buffer = Arc::new(WriteBuffer::new(found.segment, found.offset, found.last, found.spare, at));
        let writer = writer::LogWriter::new(
            Arc::clone(&write_buffer),
            Arc::clone(&segments),
            Arc::clone(&flush_queue),
            found.batch,
        );
        let preallocator = Preallocator::new(Arc::clone(&write_buffer), Arc::clone(&segments), config.clone(), ids);
        let inner = Arc::new(Inner {
            disk: Arc::clone(disk),
            config: config.clone(),
            digest_key: layout.digest_key(),
            hasher,
            segments,
            write_buffer,
            preallocator,
            snapshots,
            ids: runs,
            flush_queue,
            reads: Mutex::default(),
            long_reads: Arc::new(Semaphore::new(pages::LONG_READS)),
            known_issues: Mutex::default(),
            registry: Mutex::new(registry),
            writer: Mutex::new(writer),
            replacing: Mutex::new(()),
            execution,
        });
        let threads = match execution {
            ExecutionMode::Threads => {
                Some(Threads::start(&inner, &flusher).map_err(failure("starting the store's threads"))?)
            }
            ExecutionMode::Caller => None,
        };
        Ok(Self { inner, flusher, threads: Mutex::new(threads) })
    }

    /// Raises the epoch of a shard, to more than `above`, and waits until that is durable: earlier owners are rejected from
    /// then on.
    async fn claim_shard(
        &self,
        id: &ShardId,
        shards: u16,
        listener: Arc<dyn CommitListener>,
        above: Epoch,
    ) -> Result<ShardHandle, StoreError> {
        let (shard, epoch, location) = self.inner.claim_shard(id, shards, above)?;
        self.step();
        self.wait_for(self.inner.write_buffer.when_durable(location + 1)).await?;
        let writer = EmbeddedWriter::new(Arc::clone(&self.inner), Arc::clone(&shard), epoch, listener);
        let reader = EmbeddedReader::new(Arc::clone(&self.inner) as _, shard);
        Ok(ShardHandle { writer: Box::new(writer), reader: Arc::new(reader) })
    }

    /// Waits for another thread. It has ended without an answer if the store is closed.
    async fn wait_for<T>(
        &self,
        receiver: tokio::sync::oneshot::Receiver<Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        receiver.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Writes all appends, stops the threads and releases the lock. Blocks until this is done.
    fn shut_down(&self) {
        self.inner.write_buffer.close();
        let threads = self.threads.lock().take();
        match threads {
            Some(threads) => {
                *self.inner.reads.lock() = None;
                let _ = threads.reader.join();
                let _ = threads.writer.join();
                self.flush_caches();
                let _ = threads.flusher.join();
                let _ = threads.preallocator.join();
            }
            None if self.inner.execution == ExecutionMode::Caller && !self.inner.write_buffer.is_closed() => {
                self.step();
                self.inner.writer.lock().finish();
                self.flush_caches();
                self.flusher.step(&self.inner);
            }
            None => {}
        }
        self.inner.disk.unlock();
    }

    /// Writes the caches that make the next opening fast.
    fn flush_caches(&self) {
        self.inner.enqueue_all_snapshots();
        if self.flusher.should_checkpoint(&self.inner) {
            self.flusher.checkpoint(&self.inner);
        }
        self.inner.flush_queue.stop();
    }
}

impl Store for EmbeddedStore {
    fn open<'a>(
        &'a self,
        shard: &'a ShardId,
        shards: u16,
        listener: Arc<dyn CommitListener>,
    ) -> BoxFuture<'a, Result<ShardHandle, StoreError>> {
        self.claim_shard(shard, shards, listener, 0).boxed()
    }

    fn read<'a>(&'a self, shard: &'a ShardId) -> BoxFuture<'a, Result<Option<Arc<dyn ShardReader>>, StoreError>> {
        let found = self.inner.registry.lock().by_id.get(shard).cloned();
        let reader = found
            .map(|shard| Arc::new(EmbeddedReader::new(Arc::clone(&self.inner) as _, shard)) as Arc<dyn ShardReader>);
        async move { Ok(reader) }.boxed()
    }

    fn view<'a>(&'a self, projection: &'a Name) -> BoxFuture<'a, Result<Option<View>, StoreError>> {
        async { views::load(&self.inner.disk, projection) }.boxed()
    }

    fn claim_view<'a>(&'a self, projection: &'a Name) -> BoxFuture<'a, Result<Epoch, StoreError>> {
        // Only this process has the folder open, so all competing owners of the view are in this process.
        async { Ok(self.flusher.claim_view(projection)) }.boxed()
    }

    fn save_view<'a>(
        &'a self,
        projection: &'a Name,
        epoch: Epoch,
        view: View,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        async move {
            let receiver = self.inner.flush_queue.enqueue_view(projection, epoch, view);
            self.step();
            self.wait_for(receiver).await
        }
        .boxed()
    }

    fn catalog(&self) -> BoxFuture<'_, Result<Option<Vec<CatalogEntry>>, StoreError>> {
        async { catalog::load(&self.inner.disk) }.boxed()
    }

    fn replace_catalog(
        &self,
        expected: Option<Vec<CatalogEntry>>,
        entries: Vec<CatalogEntry>,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        async move {
            let _replacing = self.inner.replacing.lock();
            if catalog::load(&self.inner.disk)? != expected {
                return Ok(false);
            }
            catalog::save(&self.inner.disk, &entries).map(|()| true)
        }
        .boxed()
    }

    fn identity(&self) -> BoxFuture<'_, Result<Option<StoreIdentity>, StoreError>> {
        async { identity::load(&self.inner.disk) }.boxed()
    }

    fn replace_identity(
        &self,
        expected: StoreIdentity,
        identity: StoreIdentity,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        async move {
            let _replacing = self.inner.replacing.lock();
            if identity::load(&self.inner.disk)? != Some(expected) {
                return Ok(false);
            }
            identity::save(&self.inner.disk, &identity).map(|()| true)
        }
        .boxed()
    }

    fn forget_ids(&self, before: Timestamp) {
        self.inner.flush_queue.forget_ids(before);
        self.step();
    }

    fn digest_key(&self) -> u128 {
        self.inner.digest_key
    }

    fn issues(&self) -> Vec<StoreError> {
        let mut issues: Vec<_> = self.inner.write_buffer.refused().into_iter().collect();
        issues.extend(self.inner.known_issues.lock().iter().cloned());
        issues
    }

    fn durability(&self) -> &'static str {
        "on the local disk: a commit survives a crash of the process and of the machine (flushed before it is reported)"
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async {
            self.inner.write_buffer.close();
            if self.inner.execution == ExecutionMode::Threads {
                // Everything is written when this returns; the remaining work is short.
                let _ = self.wait_for(self.inner.write_buffer.when_durable(Location::MAX)).await;
            }
            self.shut_down();
            self.inner.write_buffer.failure().map_or(Ok(()), Err)
        }
        .boxed()
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl std::fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedStore").field("at", &self.inner.write_buffer.at()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
