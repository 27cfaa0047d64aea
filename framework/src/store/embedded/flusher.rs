//! Keeps the caches: snapshots, checkpoints, views. On a thread of its own, behind the log and never in its way.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::super::index::Stream;
use super::checkpoint::{self, CheckpointWriter};
use super::inner::Inner;
use super::scan::BatchLocation;
use super::shard::Shard;
use super::views;
use crate::clock::Timestamp;
use crate::message::Name;
use crate::store::{Epoch, StoreError, View};

/// So many snapshots wait to be written; more are not kept.
const MAX_QUEUED_SNAPSHOTS: usize = 1024;

/// How many bytes of snapshots are held in memory until they are written, over all shards; more are not kept. One alone may have more.
const MAX_RESERVED_BYTES: usize = 64 * 1024 * 1024;

/// When so many bytes of the snapshots' file are of snapshots that were replaced, and they are the larger part, it is copied.
const MAX_DEAD_BYTES: u64 = 64 * 1024 * 1024;

/// A checkpoint is written when the log has grown by so many times what the last one had, so that it stays a small part of
/// what is written.
const CHECKPOINT_GROWTH: u64 = 4;

/// So many ids are held in memory, 30 to 60 bytes each, before they are written to a file.
const IDS_IN_MEMORY: u64 = 256 * 1024;

pub(super) struct Flusher {
    queue: Mutex<Queue>,
    wake: Condvar,
    /// How many bytes the log has grown since the last checkpoint, and how many make another one worth its while.
    grown_bytes: AtomicU64,
    checkpoint_threshold: AtomicU64,
    /// How many ids the indexes have taken in since the last run.
    ids: AtomicU64,
    /// How many bytes the snapshots have that are in no file yet.
    reserved: Arc<AtomicUsize>,
    state: Mutex<FlusherState>,
    /// The epochs of the views' owners.
    views: Mutex<HashMap<Name, Epoch>>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    snapshots: usize,
    checkpoint: bool,
    /// Ids are to be written to a run.
    ids: bool,
    /// The ids of turns before this are to be dropped.
    forget: Option<Timestamp>,
    stop: bool,
}

/// What only the one who works knows.
struct FlusherState {
    /// The number of the newest checkpoint.
    checkpoint: u64,
    live: u64,
    dead: u64,
}

/// Room that is taken until this is dropped.
#[derive(Debug)]
pub(super) struct ReservedBytes(Arc<AtomicUsize>, usize);

impl Drop for ReservedBytes {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

enum Job {
    Snapshot(Arc<Shard>, Stream),
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

    /// Room in memory for a snapshot of so many bytes until it is written; none if there is not enough.
    pub(super) fn reserve(&self, bytes: usize) -> Option<ReservedBytes> {
        let before = self.reserved.fetch_add(bytes, Ordering::Relaxed);
        let held = ReservedBytes(Arc::clone(&self.reserved), bytes);
        (before == 0 || before.saturating_add(bytes) <= MAX_RESERVED_BYTES).then_some(held)
    }

    /// Has a snapshot written whose turn is committed.
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

    /// Gives a view a new owner: the epoch.
    pub(super) fn claim_view(&self, projection: &Name) -> Epoch {
        let mut views = self.views.lock();
        let epoch = views.entry(projection.clone()).or_default();
        *epoch += 1;
        *epoch
    }

    /// Has a view saved.
    pub(super) fn enqueue_view(
        &self,
        projection: &Name,
        epoch: Epoch,
        view: View,
    ) -> oneshot::Receiver<Result<(), StoreError>> {
        let (tell, told) = oneshot::channel();
        let mut queue = self.queue.lock();
        if queue.stop {
            let _ = tell.send(Err(StoreError::Closed));
        } else {
            queue.jobs.push_back(Job::View(projection.clone(), epoch, view, tell));
        }
        drop(queue);
        self.wake.notify_one();
        told
    }

    /// The log has grown.
    pub(super) fn add_growth(&self, bytes: u64) {
        let grown = self.grown_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if grown >= self.checkpoint_threshold.load(Ordering::Relaxed)
            && grown - bytes < self.checkpoint_threshold.load(Ordering::Relaxed)
        {
            self.queue.lock().checkpoint = true;
            self.wake.notify_one();
        }
    }

    /// A message from outside was handled: its id is held in memory until it is in a run.
    pub(super) fn count_id(&self) {
        let held = self.ids.fetch_add(1, Ordering::Relaxed) + 1;
        if held.is_multiple_of(IDS_IN_MEMORY) {
            self.queue.lock().ids = true;
            self.wake.notify_one();
        }
    }

    /// Has the ids of turns before `before` dropped.
    pub(super) fn forget_ids(&self, before: Timestamp) {
        self.queue.lock().forget = Some(before);
        self.wake.notify_one();
    }

    /// Takes nothing in any more; what is there is still done.
    pub(super) fn stop(&self) {
        self.queue.lock().stop = true;
        self.wake.notify_one();
    }

    /// Works until it is stopped.
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

    /// Does what is to be done now.
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
                Some(Job::View(projection, epoch, view, tell)) => {
                    let _ = tell.send(self.save_view(store, &projection, epoch, &view));
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

    /// Writes ids to a run, and drops those that have expired. That it fails is logged: the ids stay where they are.
    fn maintain_ids(&self, store: &Inner, write: bool, forget: Option<Timestamp>) {
        let _work = self.state.lock();
        let written = if write { self.write_ids(store) } else { Ok(()) };
        let tended = written.and_then(|()| forget.map_or(Ok(()), |before| store.ids.forget(before)));
        if let Err(error) = tended {
            tracing::warn!(target: crate::telemetry::TARGET, %error, "the index of ids was not written");
        }
    }

    /// Moves the ids that the indexes hold in memory to a run. The caller holds the lock of the work.
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
        // Held while it is written: whoever takes the view finds what this leaves, and nobody overwrites it afterwards.
        let mut views = self.views.lock();
        // If nobody has taken it since the store was opened, it is still whose it was before.
        let current = *views.entry(projection.clone()).or_insert(mine);
        if current != mine {
            return Err(StoreError::ViewTaken { projection: projection.to_string(), mine, current });
        }
        views::save(&store.disk, projection, view)
    }

    fn write_snapshot(&self, store: &Inner, shard: &Arc<Shard>, stream: Stream) {
        let mut work = self.state.lock();
        // Not with the shard's lock held: its actors need it.
        let named = shard.state.lock().pending.get(&stream).map(|fresh| fresh.next.clone());
        let Some(named) = named else { return };
        let written = store.snapshots.write(&named);
        let mut state = shard.state.lock();
        state.finish_snapshot(stream);
        let old = written.as_ref().ok().and_then(|stored| shard.stored.write().insert(stream, *stored));
        // The one behind it may be ripe as well.
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
                tracing::warn!(target: crate::telemetry::TARGET, %error, "a snapshot was not kept");
            }
        }
    }

    /// Writes a checkpoint. A cache: if it cannot be written, that is said and nothing else happens.
    pub(super) fn checkpoint(&self, store: &Inner) {
        let grown = self.grown_bytes.swap(0, Ordering::Relaxed);
        let mut work = self.state.lock();
        // First the ids: an opening reads no records before the checkpoint.
        let last = store.write_buffer.last();
        match self.write_ids(store).and_then(|()| work.save_checkpoint(store, last)) {
            Ok(bytes) => {
                let enough = (bytes * CHECKPOINT_GROWTH).max(store.config.checkpoint_bytes);
                self.checkpoint_threshold.store(enough, Ordering::Relaxed);
            }
            Err(error) => {
                tracing::warn!(target: crate::telemetry::TARGET, %error, "a checkpoint was not kept");
                checkpoint::remove_unfinished(&store.disk);
                self.grown_bytes.fetch_add(grown / 2, Ordering::Relaxed);
            }
        }
    }

    /// Whether the log has grown so much that a checkpoint shortens the next opening.
    pub(super) fn should_checkpoint(&self, store: &Inner) -> bool {
        self.grown_bytes.load(Ordering::Relaxed) >= store.config.checkpoint_bytes / 16
    }
}

impl FlusherState {
    /// First `last` was asked for, then come the shards: whatever they know is then at least up to it.
    fn save_checkpoint(&mut self, store: &Inner, last: Option<BatchLocation>) -> io::Result<u64> {
        let committed = store.write_buffer.committed();
        let shards = store.shards();
        let turned_over = self.dead > self.live.max(MAX_DEAD_BYTES);
        if turned_over {
            self.copy_snapshots(store, &shards)?;
        }
        store.snapshots.sync()?;
        let snapshots = store.snapshots.end();
        // A shard whose opening is not durable yet may never have been opened.
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

    /// Copies what is still of use to a new file, so that the old ones can go.
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

/// Writes one shard, piece by piece: its actors append in between.
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
    // Only this thread changes them, so nothing waits for this lock.
    checkpoint::encode_snapshots(&mut piece, &shard.stored.read());
    writing.write(&piece)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queued_snapshots_are_bounded_in_bytes() {
        let keeper = Flusher::new(0, 0, 0, 0);
        let alone = keeper.reserve(2 * MAX_RESERVED_BYTES).expect("one alone may be larger");
        assert!(keeper.reserve(1).is_none());
        drop(alone);
        let many: Vec<_> = (0..64).map(|_| keeper.reserve(MAX_RESERVED_BYTES / 64).expect("there is room")).collect();
        assert!(keeper.reserve(1).is_none());
        drop(many);
        assert_eq!(keeper.reserved.load(Ordering::Relaxed), 0);
    }
}
