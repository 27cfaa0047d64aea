//! Fault injection for the store in memory: commits that are delayed, batched or lost, and appends that are rejected.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::shard::MemoryShard;
use super::{MemoryStore, RegisteredListener};
use crate::record::Location;
use whizbang_core::message::ShardId;
use whizbang_core::store::{CommitListener, Epoch, StoreError, Ticket};

/// Controls the commits of a [`MemoryStore`] and makes it fail. Created by [`MemoryStore::faulty`] and
/// [`MemoryStore::commit_control`].
///
/// ```
/// # use whizbang::store::memory::MemoryStore;
/// let (store, faults) = MemoryStore::faulty();
/// faults.hold();
/// // … turns are appended and not committed …
/// assert_eq!(faults.waiting(), 0);
/// faults.commit(usize::MAX);
/// # drop(store);
/// ```
#[derive(Debug)]
pub struct CommitControl(MemoryStore);

impl Clone for CommitControl {
    fn clone(&self) -> Self {
        Self(self.0.same_handle())
    }
}

/// The uncommitted appends of a store in memory.
#[derive(Default)]
pub(super) struct HeldCommits {
    /// Set once a control exists. Read on every append, so it needs no lock.
    active: AtomicBool,
    /// The appends that wait, and what is to be rejected.
    state: Mutex<HeldCommitsState>,
    /// Serializes reports, so that they arrive in order.
    reporting: Mutex<()>,
}

/// The state behind the lock.
#[derive(Default)]
struct HeldCommitsState {
    /// Appends are not committed until they are released.
    holding: bool,
    /// The uncommitted appends of all shards, oldest first.
    waiting: VecDeque<HeldCommit>,
    /// The errors of the next appends, one for each.
    refusals: VecDeque<StoreError>,
}

/// An append that is in the log and not committed.
struct HeldCommit {
    /// The shard that it was appended to.
    shard: Arc<MemoryShard>,
    /// The epoch of the owner that appended it.
    epoch: Epoch,
    /// The location of its record. Losing it loses all later records of the shard as well.
    location: Location,
    /// The listener that is notified of the commit.
    registered: Arc<RegisteredListener>,
    /// The ticket of the append.
    ticket: Ticket,
}

impl HeldCommits {
    /// Returns whether the next append is committed immediately, or the error with which it is rejected.
    pub(super) fn admit_append(&self) -> Result<bool, StoreError> {
        if !self.active.load(Ordering::Acquire) {
            return Ok(true);
        }
        let mut state = self.state.lock();
        match state.refusals.pop_front() {
            Some(error) => Err(error),
            None => Ok(!state.holding && state.waiting.is_empty()),
        }
    }

    /// Adds an append that is not committed yet. Called with the lock of its shard held, so the order is that of the log.
    pub(super) fn hold_back(
        &self,
        shard: &Arc<MemoryShard>,
        epoch: Epoch,
        location: Location,
        registered: &Arc<RegisteredListener>,
        ticket: Ticket,
    ) {
        let (shard, registered) = (Arc::clone(shard), Arc::clone(registered));
        self.state.lock().waiting.push_back(HeldCommit { shard, epoch, location, registered, ticket });
    }

    /// Loses the uncommitted appends of a shard's earlier owners, whose listeners are notified. Called before the owner under
    /// the epoch `current` reads or appends. Without this, a record of an earlier owner could be committed behind the back of
    /// the present one.
    pub(super) fn fence(&self, shard: &ShardId, current: Epoch) {
        let reporting = self.reporting.lock();
        let mut lost = Vec::new();
        let mut state = self.state.lock();
        for waiting in std::mem::take(&mut state.waiting) {
            let is_stale = waiting.shard.id == *shard && waiting.epoch < current;
            if is_stale { lost.push(waiting) } else { state.waiting.push_back(waiting) }
        }
        drop(state);
        if let Some(first) = lost.first() {
            let mut held = first.shard.state();
            held.lose_from(first.location);
            held.accepting = true;
        }
        lost.dedup_by(|one, other| Arc::ptr_eq(&one.registered, &other.registered));
        for waiting in lost {
            let error = StoreError::Fenced { shard: shard.clone(), mine: waiting.epoch, current };
            waiting.registered.listener.failed(error);
        }
        drop(reporting);
    }

    /// Commits everything and stops holding commits.
    pub(super) fn release(&self) {
        self.state.lock().holding = false;
        self.commit(usize::MAX);
    }

    /// Commits the oldest appends and notifies each listener once. Returns their number. Reports of two callers never
    /// overtake each other.
    fn commit(&self, appends: usize) -> usize {
        let reporting = self.reporting.lock();
        let mut taken = self.take(appends);
        for waiting in &taken {
            waiting.shard.state().index.commit(waiting.location + 1);
        }
        let committed = taken.len();
        // One report per listener, with the last ticket.
        while let Some(last) = taken.pop() {
            last.registered.listener.committed(last.ticket);
            taken.retain(|waiting| !Arc::ptr_eq(&waiting.registered, &last.registered));
        }
        drop(reporting);
        committed
    }

    /// Takes up to `appends` of the oldest appends, without committing them.
    fn take(&self, appends: usize) -> Vec<HeldCommit> {
        let mut state = self.state.lock();
        let appends = appends.min(state.waiting.len());
        state.waiting.drain(..appends).collect()
    }

    /// Takes the oldest commits of one listener.
    fn take_of(&self, listener: &Arc<dyn CommitListener>, appends: usize) -> Vec<HeldCommit> {
        let mut state = self.state.lock();
        let (mut taken, mut kept) = (Vec::new(), VecDeque::new());
        for waiting in std::mem::take(&mut state.waiting) {
            let is_theirs = std::ptr::addr_eq(Arc::as_ptr(&waiting.registered.listener), Arc::as_ptr(listener));
            if is_theirs && taken.len() < appends { taken.push(waiting) } else { kept.push_back(waiting) }
        }
        state.waiting = kept;
        taken
    }
}

impl CommitControl {
    /// Returns a control of a store. From now on each append asks it.
    pub(super) fn new(store: &MemoryStore) -> Self {
        store.shared.held_commits.active.store(true, Ordering::Release);
        Self(store.same_handle())
    }

    /// Returns the uncommitted appends of the store.
    fn held(&self) -> &HeldCommits {
        &self.0.shared.held_commits
    }

    /// Holds all further commits until [`commit`](Self::commit) is called.
    pub fn hold(&self) {
        self.held().state.lock().holding = true;
    }

    /// Returns the number of uncommitted appends in all shards.
    pub fn waiting(&self) -> usize {
        self.held().state.lock().waiting.len()
    }

    /// Commits up to `appends` uncommitted appends, oldest first, and reports them as one batch. Returns their number.
    pub fn commit(&self, appends: usize) -> usize {
        self.held().commit(appends)
    }

    /// Commits all held appends and stops holding commits.
    pub fn resume(&self) {
        self.held().release();
    }

    /// Commits up to `appends` uncommitted appends of one owner, oldest first, and reports them as one batch: of the shards
    /// that it has opened with `listener`. Returns their number.
    pub fn commit_of(&self, listener: &Arc<dyn CommitListener>, appends: usize) -> usize {
        let held = self.held();
        let reporting = held.reporting.lock();
        let taken = held.take_of(listener, appends);
        for waiting in &taken {
            waiting.shard.state().index.commit(waiting.location + 1);
        }
        if let Some(last) = taken.last() {
            last.registered.listener.committed(last.ticket);
        }
        drop(reporting);
        taken.len()
    }

    /// Ends one owner, as a crash of its node does: the first `kept` of its uncommitted appends are in the log, the others
    /// are lost. The listener with which it has opened its shards is not notified. Other owners are not affected.
    pub fn lose(&self, listener: &Arc<dyn CommitListener>, kept: usize) {
        let held = self.held();
        for waiting in held.take_of(listener, kept) {
            waiting.shard.state().index.commit(waiting.location + 1);
        }
        let mut lost = held.take_of(listener, usize::MAX);
        lost.reverse();
        for waiting in lost {
            waiting.shard.state().lose_from(waiting.location);
        }
    }

    /// Breaks the store. The first `kept` uncommitted appends are in the log but were not reported; the others are
    /// lost. Listeners are notified of the failure. Appends fail as closed until their shard is reopened.
    ///
    /// Appends after a reopening are committed immediately, unless [`hold`](Self::hold) is called again.
    pub fn fail(&self, kept: usize, error: StoreError) {
        let store = &self.0.shared;
        let shards: Vec<Arc<MemoryShard>> = store.shards.lock().values().cloned().collect();
        for shard in &shards {
            shard.stop_accepting();
        }
        let held = self.held();
        held.state.lock().holding = false;
        for waiting in held.take(kept) {
            waiting.shard.state().index.commit(waiting.location + 1);
        }
        // Losing a record of a shard loses all later ones too.
        let mut lost: Vec<HeldCommit> = held.take(usize::MAX);
        lost.reverse();
        for waiting in lost {
            waiting.shard.state().lose_from(waiting.location);
        }
        let listeners: Vec<Arc<RegisteredListener>> = store.listeners.lock().clone();
        for registered in listeners {
            registered.listener.failed(error.clone());
        }
    }

    /// Rejects the next `appends` appends with `error`; nothing of them is in the log.
    pub fn refuse(&self, appends: usize, error: StoreError) {
        self.held().state.lock().refusals.extend(std::iter::repeat_n(error, appends));
    }
}
