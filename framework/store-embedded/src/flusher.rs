//! Writes the caches, that is snapshots, checkpoints, views and id runs, on a thread of its own.
//!
//! Called by the shards' writers and the log writer, which only enqueue work. Appends never wait for it.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::checkpoint::{self, CheckpointWriter};
use super::inner::Inner;
use super::segment::BatchLocation;
use super::shard::Shard;
use super::views;
use whizbang_core::clock::Timestamp;
use whizbang_core::message::Name;
use whizbang_core::store::{Epoch, StoreError, View};
use whizbang_core::telemetry::error_chain;
use whizbang_log::index::Stream;

/// The number of snapshots that may be queued; further ones are dropped.
const MAX_QUEUED_SNAPSHOTS: usize = 1024;

/// The bytes of unwritten snapshots held in memory over all shards; further snapshots are dropped. A single snapshot
/// may be larger.
const MAX_RESERVED_BYTES: usize = 64 * 1024 * 1024;

/// The snapshot file is compacted when replaced snapshots exceed this size and the size of the live ones.
const MAX_DEAD_BYTES: u64 = 64 * 1024 * 1024;

/// A checkpoint is written when the log has grown by this multiple of the last checkpoint's size, so that checkpoints
/// remain a small part of all writes.
const CHECKPOINT_GROWTH: u64 = 4;

/// The number of ids held in memory, at 30 to 60 bytes each, before they are written to a file.
const IDS_IN_MEMORY: u64 = 256 * 1024;

/// The thread that writes caches. None of its failures affects a commit.
pub(super) struct Flusher {
    queue: Mutex<Queue>,
    wake: Condvar,
    /// The growth of the log since the last checkpoint in bytes, and the growth at which the next one is written.
    grown_bytes: AtomicU64,
    checkpoint_threshold: AtomicU64,
    /// The number of ids added to the indexes since the last run.
    ids: AtomicU64,
    /// The bytes of snapshots that are not in a file yet.
    reserved: Arc<AtomicUsize>,
    state: Mutex<FlusherState>,
    /// The epochs of the views' owners.
    views: Mutex<HashMap<Name, Epoch>>,
}

#[derive(Default)]
struct Queue {
    /// In the order of the requests.
    jobs: VecDeque<Job>,
    /// The number of snapshots among them, which is limited.
    snapshots: usize,
    /// A checkpoint is requested.
    checkpoint: bool,
    /// Write the ids in memory to a run.
    ids: bool,
    /// Drop the ids of turns before this time.
    forget: Option<Timestamp>,
    stop: bool,
}

/// State of the flusher's own work, locked for as long as a piece of work takes.
struct FlusherState {
    /// The number of the newest checkpoint.
    checkpoint: u64,
    live: u64,
    dead: u64,
}

/// Reserved memory, released on drop.
#[derive(Debug)]
pub(super) struct ReservedBytes(Arc<AtomicUsize>, usize);

impl Drop for ReservedBytes {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

enum Job {
    /// Write the snapshot that waits in a shard.
    Snapshot(Arc<Shard>, Stream),
    /// Save a view, and report the result: projections wait for it.
    View(Name, Epoch, View, oneshot::Sender<Result<(), StoreError>>),
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.jobs.is_empty() && !self.checkpoint && !self.ids && self.forget.is_none()
    }
}

impl Flusher {
    pub(super) fn new(checkpoint: u64, since: u64, enough: u64, live: u64) -> Self {
        Self {
            queue: Mutex::default(),
            wake: Condvar::new(),
            grown_bytes: AtomicU64::new(since),
            checkpoint_threshold: AtomicU64::new(enough),
            ids: AtomicU64::new(0),
            reserved: Arc::default(),
            state: Mutex::new(FlusherState { checkpoint, live, dead: 0 }),
            views: Mutex::default(),
        }
    }

    /// Reserves memory for a snapshot until it is written. Returns `None` if the limit is reached.
    pub(super) fn reserve(&self, bytes: usize) -> Option<ReservedBytes> {
        let before = self.reserved.fetch_add(bytes, Ordering::Relaxed);
        let held = ReservedBytes(Arc::clone(&self.reserved), bytes);
        (before == 0 || before.saturating_add(bytes) <= MAX_RESERVED_BYTES).then_some(held)
    }

    /// Enqueues a snapshot whose turn is committed. Returns `false` if the queue is full.
    pub(super) fn enqueue_snapshot(&self, shard: &Arc<Shard>, stream: Stream) -> bool {
        let mut queue = self.queue.lock();
        if queue.snapshots >= MAX_QUEUED_SNAPSHOTS || queue.stop {
            return false;
        }
        queue.snapshots += 1;
        queue.jobs.push_back(Job::Snapshot(Arc::clone(shard), stream));
        drop(queue);
        self.wake.notify_one();
        true
    }

    /// Gives a view a new owner and returns the new epoch.
    pub(super) fn claim_view(&self, projection: &Name) -> Epoch {
        let mut views = self.views.lock();
        let epoch = views.entry(projection.clone()).or_default();
        *epoch += 1;
        *epoch
    }

    /// Enqueues a view. The receiver resolves when it is durable.
    pub(super) fn enqueue_view(
        &self,
        projection: &Name,
        epoch: Epoch,
        view: View,
    ) -> oneshot::Receiver<Result<(), StoreError>> {
        let (sender, receiver) = oneshot::channel();
        let mut queue = self.queue.lock();
        if queue.stop {
            let _ = sender.send(Err(StoreError::Closed));
        } else {
            queue.jobs.push_back(Job::View(projection.clone(), epoch, view, sender));
        }
        drop(queue);
        self.wake.notify_one();
        receiver
    }

    /// Adds to the growth of the log and requests a checkpoint when the threshold is reached.
    pub(super) fn add_growth(&self, bytes: u64) {
        let grown = self.grown_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if grown >= self.checkpoint_threshold.load(Ordering::Relaxed)
            && grown - bytes < self.checkpoint_threshold.load(Ordering::Relaxed)
        {
            self.queue.lock().checkpoint = true;
            self.wake.notify_one();
        }
    }

    /// Counts an id that was added in memory and requests a run when there are enough.
    pub(super) fn count_id(&self) {
        let held = self.ids.fetch_add(1, Ordering::Relaxed) + 1;
        if held.is_multiple_of(IDS_IN_MEMORY) {
            self.queue.lock().ids = true;
            self.wake.notify_one();
        }
    }

    /// Enqueues dropping the ids of turns before `before`.
    pub(super) fn forget_ids(&self, before: Timestamp) {
        self.queue.lock().forget = Some(before);
        self.wake.notify_one();
    }

    /// Accepts no further views and snapshots; queued work is still done.
    pub(super) fn stop(&self) {
        self.queue.lock().stop = true;
        self.wake.notify_one();
    }

    /// Runs until it is stopped.
    pub(super) fn run(&self, store: &Inner) {
        loop {
            let mut queue = self.queue.lock();
            while queue.is_empty() && !queue.stop {
                self.wake.wait(&mut queue);
            }
            let stop = queue.stop && queue.is_empty();
            drop(queue);
            if stop {
                return;
            }
            self.step(store);
        }
    }

    /// Does all queued work.
    pub(super) fn step(&self, store: &Inner) {
        loop {
            let mut queue = self.queue.lock();
            let job = queue.jobs.pop_front();
            if matches!(job, Some(Job::Snapshot(..))) {
                queue.snapshots -= 1;
            }
            let idle = job.is_none();
            let checkpoint = idle && std::mem::take(&mut queue.checkpoint);
            let ids = idle && std::mem::take(&mut queue.ids);
            let forget = if idle { queue.forget.take() } else { None };
            drop(queue);
            match job {
                Some(Job::Snapshot(shard, stream)) => self.write_snapshot(store, &shard, stream),
                Some(Job::View(projection, epoch, view, sender)) => {
                    let _ = sender.send(self.save_view(store, &projection, epoch, &view));
                }
                None if checkpoint || ids || forget.is_some() => {
                    self.maintain_ids(store, ids, forget);
                    if checkpoint {
                        self.checkpoint(store);
                    }
                }
                None => return,
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

    /// Moves the ids in memory to a run. The caller holds the lock of the state.
    fn write_ids(&self, store: &Inner) -> io::Result<()> {
        let through = store.write_buffer.committed();
        self.ids.store(0, Ordering::Relaxed);
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

    /// Writes a snapshot whose turn is committed. One that has been replaced by a newer one is skipped.
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
                    self.queue.lock().checkpoint = true;
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

    /// Writes a checkpoint. It is a cache: a failure is only logged.
    pub(super) fn checkpoint(&self, store: &Inner) {
        let grown = self.grown_bytes.swap(0, Ordering::Relaxed);
        let mut work = self.state.lock();
        // Write the ids first: an opening reads no records before the checkpoint, so their ids would be lost.
        let last = store.write_buffer.last();
        match self.write_ids(store).and_then(|()| work.save_checkpoint(store, last)) {
            Ok(bytes) => {
                let enough = (bytes * CHECKPOINT_GROWTH).max(store.config.checkpoint_bytes);
                self.checkpoint_threshold.store(enough, Ordering::Relaxed);
            }
            Err(error) => {
                tracing::warn!(
                    target: whizbang_core::telemetry::TARGET, error = %error_chain(&error),
                    "failed to write a checkpoint",
                );
                checkpoint::remove_unfinished(&store.disk);
                self.grown_bytes.fetch_add(grown / 2, Ordering::Relaxed);
            }
        }
    }

    /// Returns whether the log has grown so much that a checkpoint speeds up the next opening.
    pub(super) fn should_checkpoint(&self, store: &Inner) -> bool {
        self.grown_bytes.load(Ordering::Relaxed) >= store.config.checkpoint_bytes / 16
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

    /// Copies the live snapshots to a new file, so that the old files can be removed.
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
mod tests {
    use super::*;

    #[test]
    fn queued_snapshots_are_bounded_in_bytes() {
        let flusher = Flusher::new(0, 0, 0, 0);
        let alone = flusher.reserve(2 * MAX_RESERVED_BYTES).expect("one alone may be larger");
        assert!(flusher.reserve(1).is_none());
        drop(alone);
        let many: Vec<_> = (0..64).map(|_| flusher.reserve(MAX_RESERVED_BYTES / 64).expect("there is room")).collect();
        assert!(flusher.reserve(1).is_none());
        drop(many);
        assert_eq!(flusher.reserved.load(Ordering::Relaxed), 0);
    }
}
