//! State shared by the handles of an opened store.
//!
//! Called by the store, by the shards' writers and readers, and by its threads. Lock order: registry, shard, write
//! buffer. The log writer's lock is never taken with a shard's lock held.
//!
//! Everything that a thread of the store needs is here. The flusher is not: it uses this state, and nothing here waits for
//! it.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, mpsc};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::disk::Disk;
use super::flush_queue::FlushQueue;
use super::frame::{BATCH_BYTES, FRAME_BYTES};
use super::ids::IdRuns;
use super::log_source::{LogSource, ReadJob};
use super::preallocator::Preallocator;
use super::segment::{FIRST_OFFSET, Segments};
use super::shard::{Shard, ShardState};
use super::snapshots::{SnapshotLocation, Snapshots};
use super::write_buffer::{AppendRefused, WriteBuffer, WriteMode};
use super::writer::LogWriter;
use super::{EmbeddedConfig, ExecutionMode};
use whizbang_core::message::{Name, ShardId};
use whizbang_core::store::{Epoch, StoreError};
use whizbang_core::telemetry::error_chain;
use whizbang_core::user_code::Panicked;
use whizbang_log::index::{IdHash, Index, StreamHasher};
use whizbang_log::record::{Location, write_opened};
use whizbang_log::traverse::Located;

/// The state of an opened store. Its locks are taken in the order registry, shard, write buffer.
pub(super) struct Inner {
    /// The locked folder.
    pub(super) disk: Arc<dyn Disk>,
    /// The sizes of files.
    pub(super) config: EmbeddedConfig,
    /// Turns actor and key into a stream, with the secret seed of the store.
    pub(super) hasher: StreamHasher,
    /// The files of the log.
    pub(super) segments: Arc<Segments>,
    /// The end of the log that is not written yet.
    pub(super) write_buffer: Arc<WriteBuffer>,
    /// Creates the next segment.
    pub(super) preallocator: Preallocator,
    /// The files of snapshots.
    pub(super) snapshots: Snapshots,
    /// The files of handled ids.
    pub(super) ids: IdRuns,
    /// The key of the digests that detect a repeated id with another payload.
    pub(super) digest_key: u128,
    /// The sender to the reading thread, while the thread exists.
    pub(super) reads: Mutex<Option<mpsc::Sender<ReadJob>>>,
    /// One permit for each long stream that may be read concurrently.
    pub(super) long_reads: Arc<Semaphore>,
    /// The damage found while reading, once per place, and the panics of background work.
    pub(super) known_issues: Mutex<Vec<StoreError>>,
    /// The work that waits for the flusher.
    pub(super) flush_queue: Arc<FlushQueue>,
    /// The shards of the log. Locked while a shard is opened.
    pub(super) registry: Mutex<Registry>,
    /// The writer of the log. Its lock is the permission to write.
    pub(super) writer: Mutex<LogWriter>,
    /// Held while the catalog or the identity is compared and replaced.
    pub(super) replacing: Mutex<()>,
    /// The threads that do the work behind appends, or none in a simulation.
    pub(super) execution: ExecutionMode,
}

/// All shards in the log.
#[derive(Default)]
pub(super) struct Registry {
    /// The index of a shard in this list is its number in the log.
    pub(super) list: Vec<Arc<Shard>>,
    /// The same shards by their names.
    pub(super) by_id: HashMap<ShardId, Arc<Shard>>,
    /// The number of shards of each domain, which never changes.
    pub(super) domains: HashMap<Name, u16>,
}

/// An upper bound for the record that a shard was opened.
const OPENED_BYTES: usize = 160;

/// The number of damaged places and panics that are remembered for health.
const MAX_KNOWN_ISSUES: usize = 16;

impl Inner {
    /// Remembers damage that was found while reading. Reported in the health of the node until the store is opened again.
    pub(super) fn record_damage(&self, error: &StoreError) {
        let StoreError::Corrupt { file, offset, .. } = error else { return };
        let mut known_issues = self.known_issues.lock();
        let is_here = |known: &StoreError| matches!(known, StoreError::Corrupt { file: f, offset: o, .. } if f == file && o == offset);
        if known_issues.len() < MAX_KNOWN_ISSUES && !known_issues.iter().any(is_here) {
            tracing::error!(
                target: whizbang_core::telemetry::TARGET, error = %error_chain(&error),
                "log damaged: restore the file from a backup",
            );
            known_issues.push(error.clone());
        }
    }

    /// Remembers a panic of background work. Reported in the health of the node until the store is opened again.
    pub(super) fn record_panic(&self, work: &'static str, panicked: &Panicked) {
        let issue = StoreError::io(work, io::Error::other(format!("{panicked}; report it with the log of this node")));
        tracing::error!(
            target: whizbang_core::telemetry::TARGET, error = %error_chain(&issue),
            "background work of the store failed",
        );
        let is_same = |known: &StoreError| error_chain(known).to_string() == error_chain(&issue).to_string();
        let mut known = self.known_issues.lock();
        if known.len() < MAX_KNOWN_ISSUES && !known.iter().any(is_same) {
            known.push(issue);
        }
    }

    /// Takes ownership of a shard, with an epoch after `above`. Returns the shard, the new epoch, and the location of the record
    /// of the opening. Appends of earlier owners are rejected from now on, before the new epoch is durable. The caller waits for
    /// that.
    ///
    /// # Errors
    /// [`StoreError::Shards`] if the domain has another number of shards. [`StoreError::Full`] without space for the record.
    /// Nothing was changed.
    pub(super) fn claim_shard(
        &self,
        id: &ShardId,
        shards: u16,
        above: Epoch,
    ) -> Result<(Arc<Shard>, Epoch, Location), StoreError> {
        let mut registry = self.registry.lock();
        let found = registry.domains.get(&id.domain).copied().unwrap_or(shards);
        if found != shards || id.shard >= shards {
            return Err(StoreError::Shards { domain: id.domain.to_string(), found, wanted: shards });
        }
        if let Some(shard) = registry.by_id.get(id).cloned() {
            loop {
                let mut state = shard.state.lock();
                let epoch = state.epoch.max(above) + 1;
                match self.append_opened(id, shards, shard.tag, epoch) {
                    Ok(location) => {
                        state.epoch = epoch;
                        drop(state);
                        return Ok((shard, epoch, location));
                    }
                    Err(refused) => {
                        drop(state);
                        self.wait_for_segment(refused)?;
                    }
                }
            }
        }
        let tag = u32::try_from(registry.list.len()).unwrap_or(u32::MAX);
        let epoch = above + 1;
        let location = loop {
            match self.append_opened(id, shards, tag, epoch) {
                Ok(location) => break location,
                Err(refused) => self.wait_for_segment(refused)?,
            }
        };
        let shard = Shard::new(id.clone(), shards, tag, location, epoch, Index::new(self.hasher.clone()));
        let shard = Arc::new(shard);
        registry.list.push(Arc::clone(&shard));
        registry.by_id.insert(id.clone(), Arc::clone(&shard));
        registry.domains.insert(id.domain.clone(), shards);
        Ok((shard, epoch, location))
    }

    /// Appends the record that raises the epoch of a shard. The caller holds the lock that makes its number unique.
    fn append_opened(&self, id: &ShardId, shards: u16, tag: u32, epoch: Epoch) -> Result<Location, AppendRefused> {
        let (_, location) = self.write_buffer.append(OPENED_BYTES, None, WriteMode::Thread, |location, into| {
            write_opened(into, id, shards, tag, epoch);
            Ok(location)
        })?;
        Ok(location)
    }

    /// Handles a rejected append. Returns `Ok` if the append can be retried. Blocks while the next segment is being created,
    /// which takes some 10 ms on a fast disk.
    pub(super) fn wait_for_segment(&self, refused: AppendRefused) -> Result<(), StoreError> {
        match refused {
            AppendRefused::Wait if self.execution == ExecutionMode::Caller => {
                self.preallocator.preallocate();
                Ok(())
            }
            AppendRefused::Wait => {
                self.write_buffer.wait_for_segment();
                Ok(())
            }
            AppendRefused::Store(error @ (StoreError::Full { .. } | StoreError::Io { .. }))
                if self.execution == ExecutionMode::Caller =>
            {
                if self.preallocator.preallocate() {
                    Ok(())
                } else {
                    Err(error)
                }
            }
            AppendRefused::Store(error) => Err(error),
            // Appends of turns handle this before; an opening is not a turn.
            AppendRefused::OutOfTurn(_) => Err(StoreError::Closed),
        }
    }

    /// Enqueues the snapshots of a shard whose turns are committed.
    pub(super) fn enqueue_snapshots(&self, shard: &Arc<Shard>, state: &mut ShardState) {
        for stream in state.take_committed() {
            if !self.flush_queue.enqueue_snapshot(shard, stream) {
                state.pending.remove(&stream);
            }
        }
    }

    /// Enqueues the committed snapshots of all shards.
    pub(super) fn enqueue_all_snapshots(&self) {
        for shard in self.shards() {
            let mut state = shard.state.lock();
            state.index.commit(self.write_buffer.committed());
            self.enqueue_snapshots(&shard, &mut state);
        }
    }

    /// Returns all shards, in the order of their numbers in the log.
    pub(super) fn shards(&self) -> Vec<Arc<Shard>> {
        self.registry.lock().list.clone()
    }

    /// Returns the largest size of a turn that fits into every segment.
    pub(super) fn largest_turn(&self) -> usize {
        let smallest = usize::try_from(self.config.size_of_segment(1)).unwrap_or(usize::MAX);
        smallest.saturating_sub(usize::try_from(FIRST_OFFSET).unwrap_or(0) + 2 * BATCH_BYTES + FRAME_BYTES)
    }

    /// Writes appended batches until the buffer is closed.
    pub(super) fn run_writer(&self) {
        while self.write_buffer.wait_for_batch() {
            self.writer.lock().step();
        }
        self.writer.lock().finish();
    }

    /// Returns the thread that writes a turn with no other turn in flight.
    pub(super) fn write_mode(&self) -> WriteMode {
        if self.write_buffer.is_slow() && self.execution == ExecutionMode::Threads {
            WriteMode::Thread
        } else {
            WriteMode::Inline
        }
    }

    /// Writes the batches up to the record at `location` on the calling thread. If another thread is writing, wakes the
    /// writing thread instead. Returns whether the record is durable.
    pub(super) fn write_inline(&self, location: Location) -> bool {
        match self.writer.try_lock() {
            Some(mut writer) => while self.write_buffer.committed() <= location && writer.step() {},
            // The thread with the lock may have taken its batch before the record was added.
            None => self.write_buffer.wake(),
        }
        self.write_buffer.committed() > location
    }
}

impl LogSource for Inner {
    fn segments(&self) -> &Segments {
        &self.segments
    }

    fn committed(&self) -> Location {
        self.write_buffer.committed()
    }

    fn spawn_read(&self, job: ReadJob) -> Option<ReadJob> {
        match &*self.reads.lock() {
            Some(reads) => reads.send(job).err().map(|unsent| unsent.0),
            None => Some(job),
        }
    }

    fn record_damage(&self, error: &StoreError) {
        Self::record_damage(self, error);
    }

    fn older_turns(&self, id: IdHash) -> Option<Vec<Location>> {
        match self.ids.find(id) {
            Ok(found) => Some(found).filter(|_| self.ids.from() == 0),
            Err(error) => {
                tracing::warn!(target: whizbang_core::telemetry::TARGET, error = %whizbang_core::telemetry::error_chain(&error), "failed to look up an id in the index: reading its stream instead");
                None
            }
        }
    }

    fn snapshot(&self, stored: SnapshotLocation, actor: &str, key: &str) -> Option<Located> {
        self.snapshots.read(stored, actor, key)
    }

    fn long_reads(&self) -> Option<Arc<Semaphore>> {
        Some(Arc::clone(&self.long_reads))
    }
}

#[cfg(test)]
mod tests;
