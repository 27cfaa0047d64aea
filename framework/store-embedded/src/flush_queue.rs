//! The queue of work for the [flusher](super::flusher), and the counters that make its work due.
//!
//! Filled by the shards' writers, the log writer and the store, from any thread: they only add work and never wait for it. It
//! holds at most a bounded number of snapshots; views are bounded by their projections, which wait for each save.
//!
//! A snapshot that finds the queue full is dropped. The next one of its stream comes after some turns, and an activation
//! reads the turns in between.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::reserved_bytes::SnapshotMemory;
use super::shard::Shard;
use whizbang_core::clock::Timestamp;
use whizbang_core::message::Name;
use whizbang_core::store::{Epoch, StoreError, View};
use whizbang_log::index::Stream;

/// The number of snapshots that may be queued; further ones are dropped.
const MAX_QUEUED_SNAPSHOTS: usize = 1024;

/// The number of ids held in memory, at 30 to 60 bytes each, before they are written to a file.
const IDS_IN_MEMORY: u64 = 256 * 1024;

/// The work that waits for the flusher.
pub(super) struct FlushQueue {
    /// The work, under a lock that is held only to add or take one piece.
    waiting: Mutex<Waiting>,
    /// The flusher waits here for work.
    wake: Condvar,
    /// The growth of the log since the last checkpoint, in bytes.
    grown_bytes: AtomicU64,
    /// The growth at which the next checkpoint is written, in bytes.
    checkpoint_threshold: AtomicU64,
    /// The number of ids added to the indexes since the last run.
    ids: AtomicU64,
    /// The memory of snapshots that are not in a file yet.
    pub(super) memory: SnapshotMemory,
}

/// The work that waits, in its kinds.
#[derive(Default)]
struct Waiting {
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
    /// The store ends. Further views and snapshots are refused.
    stop: bool,
}

/// A piece of work.
pub(super) enum Job {
    /// Write the snapshot that waits in a shard.
    Snapshot(Arc<Shard>, Stream),
    /// Save a view, and report the result: projections wait for it.
    View(Name, Epoch, View, oneshot::Sender<Result<(), StoreError>>),
    /// Maintain the files of ids, and write a checkpoint.
    Maintain {
        /// Write the ids in memory to a run.
        write_ids: bool,
        /// Drop the ids of turns before this time.
        forget: Option<Timestamp>,
        /// Write a checkpoint.
        checkpoint: bool,
    },
}

impl Waiting {
    /// Returns true if there is nothing to do.
    fn is_empty(&self) -> bool {
        self.jobs.is_empty() && !self.checkpoint && !self.ids && self.forget.is_none()
    }
}

impl FlushQueue {
    /// Returns an empty queue of a store whose log has grown by `grown` bytes since its last checkpoint. The next one is due at
    /// `threshold` bytes.
    pub(super) fn new(grown: u64, threshold: u64) -> Self {
        Self {
            waiting: Mutex::default(),
            wake: Condvar::new(),
            grown_bytes: AtomicU64::new(grown),
            checkpoint_threshold: AtomicU64::new(threshold),
            ids: AtomicU64::new(0),
            memory: SnapshotMemory::default(),
        }
    }

    /// Enqueues a snapshot whose turn is committed. Returns `false` if the queue is full.
    pub(super) fn enqueue_snapshot(&self, shard: &Arc<Shard>, stream: Stream) -> bool {
        let mut waiting = self.waiting.lock();
        if waiting.snapshots >= MAX_QUEUED_SNAPSHOTS || waiting.stop {
            return false;
        }
        waiting.snapshots += 1;
        waiting.jobs.push_back(Job::Snapshot(Arc::clone(shard), stream));
        drop(waiting);
        self.wake.notify_one();
        true
    }

    /// Enqueues a view. The receiver resolves when it is durable.
    pub(super) fn enqueue_view(
        &self,
        projection: &Name,
        epoch: Epoch,
        view: View,
    ) -> oneshot::Receiver<Result<(), StoreError>> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting.lock();
        if waiting.stop {
            let _ = sender.send(Err(StoreError::Closed));
        } else {
            waiting.jobs.push_back(Job::View(projection.clone(), epoch, view, sender));
        }
        drop(waiting);
        self.wake.notify_one();
        receiver
    }

    /// Requests a checkpoint.
    pub(super) fn request_checkpoint(&self) {
        self.waiting.lock().checkpoint = true;
        self.wake.notify_one();
    }

    /// Adds to the growth of the log and requests a checkpoint when the threshold is reached.
    pub(super) fn add_growth(&self, bytes: u64) {
        let grown = self.grown_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if grown >= self.checkpoint_threshold.load(Ordering::Relaxed)
            && grown - bytes < self.checkpoint_threshold.load(Ordering::Relaxed)
        {
            self.request_checkpoint();
        }
    }

    /// Returns the growth of the log since the last checkpoint, in bytes.
    pub(super) fn growth(&self) -> u64 {
        self.grown_bytes.load(Ordering::Relaxed)
    }

    /// Returns the growth and sets it to 0: a checkpoint begins.
    pub(super) fn take_growth(&self) -> u64 {
        self.grown_bytes.swap(0, Ordering::Relaxed)
    }

    /// Gives growth back after a checkpoint that failed, so that the next attempt is due earlier. Requests nothing.
    pub(super) fn return_growth(&self, bytes: u64) {
        self.grown_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Sets the growth at which the next checkpoint is written, in bytes.
    pub(super) fn set_threshold(&self, bytes: u64) {
        self.checkpoint_threshold.store(bytes, Ordering::Relaxed);
    }

    /// Counts an id that was added in memory and requests a run when there are enough.
    pub(super) fn count_id(&self) {
        let held = self.ids.fetch_add(1, Ordering::Relaxed) + 1;
        if held.is_multiple_of(IDS_IN_MEMORY) {
            self.waiting.lock().ids = true;
            self.wake.notify_one();
        }
    }

    /// Starts the count of ids again: those in memory are being written to a run.
    pub(super) fn reset_ids(&self) {
        self.ids.store(0, Ordering::Relaxed);
    }

    /// Enqueues dropping the ids of turns before `before`.
    pub(super) fn forget_ids(&self, before: Timestamp) {
        self.waiting.lock().forget = Some(before);
        self.wake.notify_one();
    }

    /// Accepts no further views and snapshots; queued work is still done.
    pub(super) fn stop(&self) {
        self.waiting.lock().stop = true;
        self.wake.notify_one();
    }

    /// Blocks until there is work. Returns `false` once the queue is stopped and empty.
    pub(super) fn wait(&self) -> bool {
        let mut waiting = self.waiting.lock();
        while waiting.is_empty() && !waiting.stop {
            self.wake.wait(&mut waiting);
        }
        !waiting.is_empty()
    }

    /// Takes the next piece of work, without waiting. Maintenance comes when no snapshot or view waits.
    pub(super) fn take(&self) -> Option<Job> {
        let mut waiting = self.waiting.lock();
        if let Some(job) = waiting.jobs.pop_front() {
            waiting.snapshots -= usize::from(matches!(job, Job::Snapshot(..)));
            return Some(job);
        }
        if waiting.is_empty() {
            return None;
        }
        let write_ids = std::mem::take(&mut waiting.ids);
        let checkpoint = std::mem::take(&mut waiting.checkpoint);
        Some(Job::Maintain { write_ids, forget: waiting.forget.take(), checkpoint })
    }
}

#[cfg(test)]
mod tests;
