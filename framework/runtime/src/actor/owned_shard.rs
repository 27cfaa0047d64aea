//! One opened shard on its thread, from its opening to its closing.
//!
//! Created by the node when it opens a shard, and held by everything that works for that shard: actors, backlogs,
//! jobs, timers. Opened again, a shard is a new [`OwnedShard`], so whatever still holds the old one can change nothing.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use crate::router::Outcome;
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Name, ShardId};
use whizbang_core::store::{
    Appended, Epoch, ShardHandle, ShardReader, ShardWriter, Snapshot, StoreError, Ticket, Turn, Watermark,
};

/// The progress of an opened shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ShardPhase {
    /// Accepts messages.
    Open,
    /// Is handed over: accepts nothing new, and finishes what it has accepted.
    Moving,
    /// Belongs to another owner: nothing more is committed or reported as committed.
    Lost,
}

/// One shard on its thread.
pub struct OwnedShard {
    pub(crate) id: ShardId,
    #[doc(hidden)]
    pub writer: RefCell<Box<dyn ShardWriter>>,
    pub(crate) reader: RefCell<Arc<dyn ShardReader>>,
    /// The epoch of the writer.
    epoch: Cell<Epoch>,
    /// True if any subscriber besides the stream's own actor receives the shard's events.
    relays_events: bool,
    /// True while clients of the node read events of its domains.
    watched: OnceCell<Arc<AtomicBool>>,
    /// The position of the log when the shard was opened. Events behind it are announced as they are committed.
    pub(crate) opened_at: u64,
    /// The position up to which the events are announced to the subscribers of this node.
    pub(crate) announced: Cell<u64>,
    phase: Cell<ShardPhase>,
    /// Commits have failed, and the shard is not reopened yet.
    reopening: Cell<bool>,
    /// Incremented when commits of the shard have failed. Messages queued for an actor of an older generation are
    /// refused and not handled.
    pub(crate) generation: Cell<u64>,
    /// The turns and jobs in flight.
    pub(super) in_flight: Cell<usize>,
    /// The singletons that run here, or may run.
    pub(crate) singletons: Cell<usize>,
    /// The last stored watermark that is not known to be durable.
    pub(crate) last_watermark: Cell<Option<Ticket>>,
    /// The callbacks that wait for commits.
    pub(super) pending_commits: Cell<usize>,
    /// True if the shard is in the list of dirty shards.
    pub(super) dirty: Cell<bool>,
    /// The due time of the earliest timer that the timer loop knows.
    pub(crate) next_timer: Cell<Option<Timestamp>>,
    /// The earliest due time set since the timer loop last looked, if it is before `next_timer`.
    pub(crate) earliest_set_timer: Cell<Option<Timestamp>>,
}

impl std::fmt::Debug for OwnedShard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnedShard").field("id", &self.id).finish_non_exhaustive()
    }
}

impl OwnedShard {
    #[doc(hidden)]
    pub fn new(id: ShardId, handle: ShardHandle, relays_events: bool) -> Rc<Self> {
        let opened_at = handle.reader.position();
        Rc::new(Self {
            id,
            epoch: Cell::new(handle.writer.epoch()),
            writer: RefCell::new(handle.writer),
            reader: RefCell::new(handle.reader),
            relays_events,
            watched: OnceCell::new(),
            opened_at,
            announced: Cell::new(opened_at),
            phase: Cell::new(ShardPhase::Open),
            reopening: Cell::new(false),
            generation: Cell::new(0),
            in_flight: Cell::new(0),
            singletons: Cell::new(0),
            last_watermark: Cell::new(None),
            pending_commits: Cell::new(0),
            dirty: Cell::new(false),
            next_timer: Cell::new(None),
            earliest_set_timer: Cell::new(None),
        })
    }

    /// Sets the flag of the node that is true while its clients read events.
    pub(crate) fn watched_by(&self, flag: Arc<AtomicBool>) {
        // Set once, when the shard is opened.
        drop(self.watched.set(flag));
    }

    /// Returns whether the commit of an event must be announced.
    pub(crate) fn relays_events(&self) -> bool {
        self.relays_events || self.watched.get().is_some_and(|watched| watched.load(Ordering::Relaxed))
    }

    /// Returns whether the shard accepts messages.
    pub(crate) fn is_open(&self) -> bool {
        !self.is_leaving() && !self.reopening.get()
    }

    /// Returns whether the shard is handed over, or belongs to another owner.
    pub(crate) fn is_leaving(&self) -> bool {
        self.phase.get() != ShardPhase::Open
    }

    /// Returns whether the shard waits until it is [reopened](Self::reopen).
    pub(crate) fn is_reopening(&self) -> bool {
        self.reopening.get()
    }

    /// Accepts nothing until the shard is [reopened](Self::reopen). Its writer is dropped, because the store refuses its appends as
    /// those of an earlier owner from the moment at which it opens the shard again.
    pub(crate) fn begin_reopening(&self) {
        self.reopening.set(true);
        self.drop_writer();
    }

    /// Returns whether the shard belongs to another owner.
    pub(crate) fn is_lost(&self) -> bool {
        self.phase.get() == ShardPhase::Lost
    }

    /// Returns the outcome of a message that was not handled because the node stops or the shard closes.
    pub(crate) fn stopped_outcome(&self) -> Outcome {
        if self.is_leaving() { Outcome::Moved } else { Outcome::Stopped }
    }

    /// Returns the outcome of a job that was ended: unknown, if an attempt had begun.
    pub(crate) fn unfinished_outcome(&self, has_begun: bool) -> Outcome {
        if has_begun { Outcome::Unknown(StoreError::Closed) } else { self.stopped_outcome() }
    }

    /// Returns whether nothing is in flight, every append is durable, and no singleton runs.
    pub(crate) fn is_drained(&self) -> bool {
        self.in_flight.get() == 0 && self.pending_commits.get() == 0 && self.singletons.get() == 0
    }

    /// Stops accepting messages. Turns and jobs in flight continue.
    pub(crate) fn begin_moving(&self) {
        if !self.is_leaving() {
            self.phase.set(ShardPhase::Moving);
        }
    }

    /// Ends the ownership: nothing more is handled or reported as committed.
    pub(crate) fn lose(&self) {
        if self.phase.replace(ShardPhase::Lost) != ShardPhase::Lost {
            self.generation.set(self.generation.get() + 1);
        }
    }

    /// Drops the writer, which a late reference to this shard can then no longer use.
    pub(crate) fn drop_writer(&self) {
        drop(self.writer.replace(Box::new(ClosedWriter(self.epoch()))));
    }

    /// Returns the epoch of the writer.
    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch.get()
    }

    /// Replaces writer and reader after the shard was reopened.
    pub(crate) fn reopen(&self, handle: ShardHandle) {
        self.epoch.set(handle.writer.epoch());
        let earlier = (self.writer.replace(handle.writer), self.reader.replace(handle.reader));
        self.reopening.set(false);
        drop(earlier);
    }

    /// Records a committed timer. The timer loop is woken only if the timer is due before the next one it knows, so
    /// most turns that set a timer wake nothing.
    pub(crate) fn schedule_timer(&self, due: Timestamp, timers: &Notify) {
        if self.next_timer.get().is_none_or(|next| due < next) {
            self.next_timer.set(Some(due));
            self.earliest_set_timer.set(Some(self.earliest_set_timer.get().map_or(due, |earliest| earliest.min(due))));
            timers.notify_one();
        }
    }

    #[doc(hidden)]
    pub fn reader(&self) -> Arc<dyn ShardReader> {
        Arc::clone(&self.reader.borrow())
    }
}

/// The writer of a shard that is closed here.
struct ClosedWriter(Epoch);

impl ShardWriter for ClosedWriter {
    fn epoch(&self) -> Epoch {
        self.0
    }

    fn append(&mut self, _turn: &Turn<'_>) -> Result<Appended, StoreError> {
        Err(StoreError::Closed)
    }

    fn advance(&mut self, _watermark: &Watermark) -> Result<Appended, StoreError> {
        Err(StoreError::Closed)
    }

    fn sent(&mut self, _to: &ShardId, _through: u64) -> Result<Appended, StoreError> {
        Err(StoreError::Closed)
    }

    fn save_snapshot(&mut self, _actor: &Name, _key: &str, _snapshot: Snapshot) {}
}

#[cfg(test)]
mod tests;
