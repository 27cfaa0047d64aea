//! Writes the caches, that is snapshots, checkpoints, views and id runs, on a thread of its own.
//!
//! Called by the store. Takes its work from the [queue](super::flush_queue), which the shards' writers and the log writer fill:
//! appends never wait for it.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::checkpoint::{self, CheckpointWriter};
use super::flush_queue::Job;
use super::inner::Inner;
use super::segment::BatchLocation;
use super::shard::Shard;
use super::views;
use whizbang_core::clock::Timestamp;
use whizbang_core::message::Name;
use whizbang_core::store::{Epoch, StoreError, View};
use whizbang_core::telemetry::error_chain;
use whizbang_core::user_code::user_code;
use whizbang_log::index::Stream;

/// The snapshot file is compacted when replaced snapshots exceed this size and the size of the live ones.
const MAX_DEAD_BYTES: u64 = 64 * 1024 * 1024;

/// A checkpoint is written when the log has grown by this multiple of the last checkpoint's size, so that checkpoints
/// remain a small part of all writes.
const CHECKPOINT_GROWTH: u64 = 4;

/// The writer of the caches. None of its failures affects a commit.
pub(super) struct Flusher {
    /// Locked while files are written, so that one piece of work runs at a time.
    state: Mutex<FlusherState>,
    /// The epochs of the views' owners.
    views: Mutex<HashMap<Name, Epoch>>,
}

/// State of the flusher's own work, locked for as long as a piece of work takes.
struct FlusherState {
    /// The number of the newest checkpoint.
    checkpoint: u64,
    /// The bytes of the snapshots that are still used.
    live: u64,
    /// The bytes of the snapshots that were replaced. Beyond a limit the files are compacted.
    dead: u64,
}

impl Flusher {
    /// Returns the flusher of a store with this newest checkpoint and this many bytes of live snapshots.
    pub(super) fn new(checkpoint: u64, live: u64) -> Self {
        Self { state: Mutex::new(FlusherState { checkpoint, live, dead: 0 }), views: Mutex::default() }
    }

    /// Gives a view a new owner and returns the new epoch.
    pub(super) fn claim_view(&self, projection: &Name) -> Epoch {
        let mut views = self.views.lock();
        let epoch = views.entry(projection.clone()).or_default();
        *epoch += 1;
        *epoch
    }

    /// Runs until the queue is stopped and empty.
    pub(super) fn run(&self, store: &Inner) {
        while store.flush_queue.wait() {
            self.step(store);
        }
    }

    /// Does all queued work. A panic ends one piece of it. The projection whose view was to be saved gets no result, and
    /// treats that as an error.
    pub(super) fn step(&self, store: &Inner) {
        while let Some(job) = store.flush_queue.take() {
            let snapshot = match &job {
                Job::Snapshot(shard, stream) => Some((Arc::clone(shard), *stream)),
                _ => None,
            };
            if let Err(panicked) = user_code(|| self.run_job(store, job)) {
                store.record_panic("writing snapshots, views and checkpoints", &panicked);
                // Otherwise the later snapshots of the stream would wait for this one.
                if let Some((shard, stream)) = snapshot {
                    shard.state.lock().finish_snapshot(stream);
                }
                // A checkpoint that is given up must not keep what was cleared since it began.
                for shard in store.shards() {
                    shard.state.lock().index.abort_saving();
                }
            }
        }
    }

    fn run_job(&self, store: &Inner, job: Job) {
        match job {
            Job::Snapshot(shard, stream) => self.write_snapshot(store, &shard, stream),
            Job::View(projection, epoch, view, sender) => {
                let _ = sender.send(self.save_view(store, &projection, epoch, &view));
            }
            Job::Maintain { write_ids, forget, checkpoint } => {
                self.maintain_ids(store, write_ids, forget);
                if checkpoint {
                    self.checkpoint(store);
                }
            }
        }
    }

    /// Writes ids to a run and drops expired ids. A failure is only logged: the ids stay where they are.
    fn maintain_ids(&self, store: &Inner, write: bool, forget: Option<Timestamp>) {
        let _work = self.state.lock();
        let written = if write { self.write_ids(store) } else { Ok(()) };
        let tended = written.and_then(|()| forget.map_or(Ok(()), |before| store.ids.forget(before)));
        if let Err(error) = tended {
            tracing::warn!(
                target: whizbang_core::telemetry::TARGET, error = %error_chain(&error),
                "failed to write the index of ids",
            );
        }
    }

    /// Moves the ids in memory to a run. The caller holds the lock of the state. The ids of uncommitted turns stay in memory,
    /// because their turns may still be lost.
    ///
    /// # Errors
    /// Those of the disk. No id is dropped from memory then.
    fn write_ids(&self, store: &Inner) -> io::Result<()> {
        let through = store.write_buffer.committed();
        store.flush_queue.reset_ids();
        let (mut entries, mut newest, mut frozen) = (Vec::new(), Timestamp::default(), Vec::new());
        for shard in store.shards() {
            let generations = shard.state.lock().index.ids.freeze();
            let mut left = Vec::new();
            for generation in &generations {
                newest = newest.max(generation.newest());
                for (id, location) in generation.iter() {
                    if location < through {
                        entries.push((id, location));
                    } else {
                        left.push((id, location, generation.newest()));
                    }
                }
            }
            frozen.push((shard, generations, left));
        }
        store.ids.write(entries, through, newest)?;
        for (shard, generations, left) in &frozen {
            shard.state.lock().index.ids.replace_frozen(generations, left.iter().copied());
        }
        Ok(())
    }

    /// Writes the view of a projection durably, unless it has a later owner.
    ///
    /// # Errors
    /// [`StoreError::ViewTaken`] for an earlier owner. [`StoreError::Full`] and [`StoreError::Io`] leave the former file.
    fn save_view(&self, store: &Inner, projection: &Name, mine: Epoch, view: &View) -> Result<(), StoreError> {
        // Held during the write: a new owner that claims the view then reads the result of this save, and this save
        // cannot overwrite that of the new owner.
        let mut views = self.views.lock();
        // If the view was not claimed since the store was opened, the caller is still its owner.
        let current = *views.entry(projection.clone()).or_insert(mine);
        if current != mine {
            return Err(StoreError::ViewTaken { projection: projection.to_string(), mine, current });
        }
        views::save(&store.disk, projection, view)
    }

    /// Writes a snapshot whose turn is committed. One that has been replaced by a newer one is skipped. The shard is locked
    /// before and after the write, never during it.
    fn write_snapshot(&self, store: &Inner, shard: &Arc<Shard>, stream: Stream) {
        let mut work = self.state.lock();
        // Without the shard's lock, which its actors need.
        let named = shard.state.lock().pending.get(&stream).map(|fresh| fresh.next.clone());
        let Some(named) = named else { return };
        let written = store.snapshots.write(&named);
        let mut state = shard.state.lock();
        state.finish_snapshot(stream);
        let old = written.as_ref().ok().and_then(|stored| shard.stored.write().insert(stream, *stored));
        // The stream's next pending snapshot may be committed as well.
        state.index.commit(store.write_buffer.committed());
        store.enqueue_snapshots(shard, &mut state);
        drop(state);
        match written {
            Ok(stored) => {
                work.live += stored.length;
                if let Some(old) = old {
                    work.live = work.live.saturating_sub(old.length);
                    work.dead += old.length;
                }
                if work.dead > work.live.max(MAX_DEAD_BYTES) {
                    store.flush_queue.request_checkpoint();
                }
            }
            Err(error) => {
                tracing::warn!(
                    target: whizbang_core::telemetry::TARGET, error = %error_chain(&error),
                    "failed to write a snapshot",
                );
            }
        }
    }

    /// Writes a checkpoint. It is a cache: a failure is only logged. After a failure half of the growth is returned, so that
    /// the next attempt comes earlier than usual, but not at once.
    pub(super) fn checkpoint(&self, store: &Inner) {
        let grown = store.flush_queue.take_growth();
        let mut work = self.state.lock();
        // Write the ids first: an opening reads no records before the checkpoint, so their ids would be lost.
        let last = store.write_buffer.last();
        match self.write_ids(store).and_then(|()| work.save_checkpoint(store, last)) {
            Ok(bytes) => {
                let enough = (bytes * CHECKPOINT_GROWTH).max(store.config.checkpoint_bytes);
                store.flush_queue.set_threshold(enough);
            }
            Err(error) => {
                tracing::warn!(
                    target: whizbang_core::telemetry::TARGET, error = %error_chain(&error),
                    "failed to write a checkpoint",
                );
                checkpoint::remove_unfinished(&store.disk);
                store.flush_queue.return_growth(grown / 2);
            }
        }
    }

    /// Returns whether the log has grown so much that a checkpoint speeds up the next opening. Used when the store closes.
    pub(super) fn should_checkpoint(&self, store: &Inner) -> bool {
        store.flush_queue.growth() >= store.config.checkpoint_bytes / 16
    }
}

impl FlusherState {
    /// Writes a checkpoint of all shards. `last` must have been read before the shards are saved, so that each saved
    /// index includes at least everything up to it.
    fn save_checkpoint(&mut self, store: &Inner, last: Option<BatchLocation>) -> io::Result<u64> {
        let committed = store.write_buffer.committed();
        let shards = store.shards();
        let turned_over = self.dead > self.live.max(MAX_DEAD_BYTES);
        if turned_over {
            self.copy_snapshots(store, &shards)?;
        }
        store.snapshots.sync()?;
        let snapshots = store.snapshots.end();
        // A shard whose opening is not durable yet may not exist after a crash.
        let known: Vec<_> = shards.iter().take_while(|shard| shard.opened_at < committed).collect();
        let mut writing = CheckpointWriter::begin(&store.disk)?;
        let mut piece = Vec::new();
        checkpoint::encode_head(&mut piece, &store.hasher, last, snapshots, known.len());
        writing.write(&piece)?;
        for shard in known {
            if let Err(error) = save_shard(store, shard, &mut writing) {
                shard.state.lock().index.abort_saving();
                return Err(error);
            }
        }
        let bytes = writing.finish(self.checkpoint + 1)?;
        self.checkpoint += 1;
        if turned_over {
            store.snapshots.remove_old()?;
        }
        Ok(bytes)
    }

    /// Copies the live snapshots to a new file, so that the old files can be removed. Costs as much as the live snapshots
    /// have bytes. It runs at most once for each [`MAX_DEAD_BYTES`] of replaced ones.
    ///
    /// # Errors
    /// Those of the disk. The old files stay, so nothing is lost.
    fn copy_snapshots(&mut self, store: &Inner, shards: &[Arc<Shard>]) -> io::Result<()> {
        let old = store.snapshots.rotate()?;
        let mut live = 0;
        for shard in shards {
            let of_shard: Vec<_> = shard.stored.read().iter().map(|(stream, stored)| (*stream, *stored)).collect();
            for (stream, stored) in of_shard.into_iter().filter(|(_, stored)| stored.file <= old) {
                let copy = store.snapshots.copy(stored);
                let mut stored = shard.stored.write();
                match copy {
                    Some(copy) => {
                        live += copy.length;
                        stored.insert(stream, copy);
                    }
                    None => {
                        stored.remove(&stream);
                    }
                }
            }
        }
        (self.live, self.dead) = (live, 0);
        Ok(())
    }
}

/// Writes a shard piece by piece. The lock is released between the pieces, so that its actors can append.
fn save_shard(store: &Inner, shard: &Shard, writing: &mut CheckpointWriter) -> io::Result<()> {
    let mut piece = Vec::new();
    {
        let mut state = shard.state.lock();
        state.index.commit(store.write_buffer.committed());
        let epoch = state.epoch;
        checkpoint::encode_shard(&mut piece, &shard.id, shard.shards, epoch, &mut state.index);
    }
    writing.write(&piece)?;
    loop {
        piece.clear();
        let more = shard.state.lock().index.save_next(&mut piece);
        writing.write(&piece)?;
        if !more {
            break;
        }
    }
    piece.clear();
    // Only this thread changes the map, so no other thread waits for this lock.
    checkpoint::encode_snapshots(&mut piece, &shard.stored.read());
    writing.write(&piece)
}

#[cfg(test)]
mod tests;
