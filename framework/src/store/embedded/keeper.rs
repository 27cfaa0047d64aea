//! Keeps the caches: snapshots, checkpoints, views. On a thread of its own, behind the log and never in its way.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::super::index::Stream;
use super::checkpoint::{self, Writing};
use super::inner::Inner;
use super::shard::Shard;
use super::views;
use crate::message::Name;
use crate::store::{Epoch, StoreError, View};

/// So many snapshots wait to be written; more are not kept.
const SNAPSHOTS: usize = 1024;

/// When so many bytes of the snapshots' file are of snapshots that were replaced, and they are the larger part, it is copied.
const DEAD_BYTES: u64 = 64 * 1024 * 1024;

/// A checkpoint is written when the log has grown by so many times what the last one had, so that it stays a small part of
/// what is written.
const GROWTH: u64 = 4;

pub(super) struct Keeper {
    queue: Mutex<Queue>,
    wake: Condvar,
    /// How many bytes the log has grown since the last checkpoint, and how many make another one worth its while.
    grown: AtomicU64,
    enough: AtomicU64,
    work: Mutex<Work>,
    /// The epochs of the views' owners.
    views: Mutex<HashMap<Name, Epoch>>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    snapshots: usize,
    checkpoint: bool,
    stop: bool,
}

/// What only the one who works knows.
struct Work {
    /// The number of the newest checkpoint.
    checkpoint: u64,
    live: u64,
    dead: u64,
}

enum Job {
    Snapshot(Arc<Shard>, Stream),
    View(Name, Epoch, View, oneshot::Sender<Result<(), StoreError>>),
}

impl Keeper {
    pub(super) fn new(checkpoint: u64, since: u64, enough: u64, live: u64) -> Self {
        Self {
            queue: Mutex::default(),
            wake: Condvar::new(),
            grown: AtomicU64::new(since),
            enough: AtomicU64::new(enough),
            work: Mutex::new(Work { checkpoint, live, dead: 0 }),
            views: Mutex::default(),
        }
    }

    /// Has a snapshot written whose turn is committed.
    pub(super) fn snapshot(&self, shard: &Arc<Shard>, stream: Stream) -> bool {
        let mut queue = self.queue.lock();
        if queue.snapshots >= SNAPSHOTS || queue.stop {
            return false;
        }
        queue.snapshots += 1;
        queue.jobs.push_back(Job::Snapshot(Arc::clone(shard), stream));
        drop(queue);
        self.wake.notify_one();
        true
    }

    /// Gives a view a new owner: the epoch.
    pub(super) fn take_view(&self, projection: &Name) -> Epoch {
        let mut views = self.views.lock();
        let epoch = views.entry(projection.clone()).or_default();
        *epoch += 1;
        *epoch
    }

    /// Has a view saved.
    pub(super) fn view(
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
    pub(super) fn grown(&self, bytes: u64) {
        let grown = self.grown.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if grown >= self.enough.load(Ordering::Relaxed) && grown - bytes < self.enough.load(Ordering::Relaxed) {
            self.queue.lock().checkpoint = true;
            self.wake.notify_one();
        }
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
            while queue.jobs.is_empty() && !queue.checkpoint && !queue.stop {
                self.wake.wait(&mut queue);
            }
            let stop = queue.stop && queue.jobs.is_empty() && !queue.checkpoint;
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
            let checkpoint = job.is_none() && std::mem::take(&mut queue.checkpoint);
            drop(queue);
            match job {
                Some(Job::Snapshot(shard, stream)) => self.write_snapshot(store, &shard, stream),
                Some(Job::View(projection, epoch, view, tell)) => {
                    let _ = tell.send(self.save_view(store, &projection, epoch, &view));
                }
                None if checkpoint => self.checkpoint(store),
                None => return,
            }
        }
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
        let mut work = self.work.lock();
        // Not with the shard's lock held: its actors need it.
        let named = shard.state.lock().fresh.get(&stream).map(|fresh| fresh.next.clone());
        let Some(named) = named else { return };
        let written = store.snapshots.write(&named);
        let mut state = shard.state.lock();
        state.done(stream);
        let old = written.as_ref().ok().and_then(|stored| state.stored.insert(stream, *stored));
        // The one behind it may be ripe as well.
        state.index.commit(store.journal.committed());
        store.keep(shard, &mut state);
        drop(state);
        match written {
            Ok(stored) => {
                work.live += stored.length;
                if let Some(old) = old {
                    work.live = work.live.saturating_sub(old.length);
                    work.dead += old.length;
                }
                if work.dead > work.live.max(DEAD_BYTES) {
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
        let grown = self.grown.swap(0, Ordering::Relaxed);
        let mut work = self.work.lock();
        match work.save(store) {
            Ok(bytes) => {
                let enough = (bytes * GROWTH).max(store.config.checkpoint_bytes);
                self.enough.store(enough, Ordering::Relaxed);
            }
            Err(error) => {
                tracing::warn!(target: crate::telemetry::TARGET, %error, "a checkpoint was not kept");
                checkpoint::remove_unfinished(&store.disk);
                self.grown.fetch_add(grown / 2, Ordering::Relaxed);
            }
        }
    }

    /// Whether the log has grown so much that a checkpoint shortens the next opening.
    pub(super) fn is_worth_it(&self, store: &Inner) -> bool {
        self.grown.load(Ordering::Relaxed) >= store.config.checkpoint_bytes / 16
    }
}

impl Work {
    fn save(&mut self, store: &Inner) -> io::Result<u64> {
        // First the place, then the shards: whatever they know is then at least up to it.
        let last = store.journal.last();
        let committed = store.journal.committed();
        let shards = store.shards();
        let turned_over = self.dead > self.live.max(DEAD_BYTES);
        if turned_over {
            self.copy_snapshots(store, &shards)?;
        }
        store.snapshots.sync()?;
        let snapshots = store.snapshots.place();
        // A shard whose opening is not durable yet may never have been opened.
        let known: Vec<_> = shards.iter().take_while(|shard| shard.born < committed).collect();
        let mut writing = Writing::begin(&store.disk)?;
        let mut piece = Vec::new();
        checkpoint::put_head(&mut piece, &store.hasher, last, snapshots, known.len());
        writing.put(&piece)?;
        for shard in known {
            piece.clear();
            let mut state = shard.state.lock();
            state.index.commit(store.journal.committed());
            let state = &mut *state;
            let stored = state.stored.iter().map(|(stream, stored)| (*stream, stored));
            checkpoint::put_shard(&mut piece, &shard.id, shard.shards, state.epoch, &mut state.index, stored);
            writing.put(&piece)?;
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
        let old = store.snapshots.turn_over()?;
        let mut live = 0;
        for shard in shards {
            let of_shard: Vec<_> = {
                let state = shard.state.lock();
                state.stored.iter().map(|(stream, stored)| (*stream, *stored)).collect()
            };
            for (stream, stored) in of_shard.into_iter().filter(|(_, stored)| stored.file <= old) {
                let copy = store.snapshots.copy(stored);
                let mut state = shard.state.lock();
                match copy {
                    Some(copy) => {
                        live += copy.length;
                        state.stored.insert(stream, copy);
                    }
                    None => {
                        state.stored.remove(&stream);
                    }
                }
            }
        }
        (self.live, self.dead) = (live, 0);
        Ok(())
    }
}
