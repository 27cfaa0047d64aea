//! Makes a store in memory fail on purpose: commits that come late, in batches or never, and appends that are refused.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::super::record::Location;
use super::shard::MemoryShard;
use super::{MemoryStore, RegisteredListener};
use crate::store::{StoreError, Ticket};

/// The hand that makes a [`MemoryStore`] fail. Get it from [`MemoryStore::faulty`].
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
#[derive(Clone, Debug)]
pub struct CommitControl(MemoryStore);

/// What a store in memory holds back.
#[derive(Default)]
pub(super) struct HeldCommits {
    /// Whether there is anything to look at: the way of every append, so no lock.
    active: AtomicBool,
    state: Mutex<HeldCommitsState>,
    /// Reports leave one after the other, in order.
    reporting: Mutex<()>,
}

#[derive(Default)]
struct HeldCommitsState {
    holding: bool,
    waiting: VecDeque<HeldCommit>,
    refusals: VecDeque<StoreError>,
}

struct HeldCommit {
    shard: Arc<MemoryShard>,
    location: Location,
    listening: Arc<RegisteredListener>,
    ticket: Ticket,
}

impl HeldCommits {
    /// Whether the next append is committed at once, or the error with which it is refused.
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

    pub(super) fn hold_back(
        &self,
        shard: &Arc<MemoryShard>,
        location: Location,
        listening: &Arc<RegisteredListener>,
        ticket: Ticket,
    ) {
        let (shard, listening) = (Arc::clone(shard), Arc::clone(listening));
        self.state.lock().waiting.push_back(HeldCommit { shard, location, listening, ticket });
    }

    /// Commits everything and holds nothing back any more.
    pub(super) fn release(&self) {
        self.state.lock().holding = false;
        self.commit(usize::MAX);
    }

    fn commit(&self, appends: usize) -> usize {
        let reporting = self.reporting.lock();
        let mut taken = self.take(appends);
        for waiting in &taken {
            waiting.shard.state().index.commit(waiting.location + 1);
        }
        let committed = taken.len();
        // One report per listener, the last ticket.
        while let Some(last) = taken.pop() {
            last.listening.listener.committed(last.ticket);
            taken.retain(|waiting| !Arc::ptr_eq(&waiting.listening, &last.listening));
        }
        drop(reporting);
        committed
    }

    fn take(&self, appends: usize) -> Vec<HeldCommit> {
        let mut state = self.state.lock();
        let appends = appends.min(state.waiting.len());
        state.waiting.drain(..appends).collect()
    }
}

impl CommitControl {
    pub(super) fn new(store: &MemoryStore) -> Self {
        store.0.held_commits.active.store(true, Ordering::Release);
        Self(store.clone())
    }

    fn held(&self) -> &HeldCommits {
        &self.0.0.held_commits
    }

    /// From now on nothing is committed before [`commit`](Self::commit) says so.
    pub fn hold(&self) {
        self.held().state.lock().holding = true;
    }

    /// How many appends wait for their commit, in all shards.
    pub fn waiting(&self) -> usize {
        self.held().state.lock().waiting.len()
    }

    /// Commits up to `appends` of the waiting, oldest first, and reports them as one batch; how many there were.
    pub fn commit(&self, appends: usize) -> usize {
        self.held().commit(appends)
    }

    /// Commits what waits, and from now on everything at once again.
    pub fn go_on(&self) {
        self.held().release();
    }

    /// Breaks the store: of the waiting appends the first `kept` are in the log without having been reported, the others are
    /// lost. Listeners hear that it failed; appends are refused as closed until their shard is opened again.
    ///
    /// What is appended after an opening is committed at once, unless [`hold`](Self::hold) is said again.
    pub fn fail(&self, kept: usize, error: StoreError) {
        let store = &self.0.0;
        let shards: Vec<Arc<MemoryShard>> = store.shards.lock().values().cloned().collect();
        for shard in &shards {
            shard.stop_accepting();
        }
        let held = self.held();
        held.state.lock().holding = false;
        for waiting in held.take(kept) {
            waiting.shard.state().index.commit(waiting.location + 1);
        }
        // The first lost record of a shard takes all behind it along.
        let mut lost: Vec<HeldCommit> = held.take(usize::MAX);
        lost.reverse();
        for waiting in lost {
            waiting.shard.state().lose_from(waiting.location);
        }
        let listeners: Vec<Arc<RegisteredListener>> =
            store.listeners.lock().iter().filter_map(std::sync::Weak::upgrade).collect();
        for listening in listeners {
            listening.listener.failed(error.clone());
        }
    }

    /// Refuses the next `appends` appends with `error`; nothing of them is in the log.
    pub fn refuse(&self, appends: usize, error: StoreError) {
        self.held().state.lock().refusals.extend(std::iter::repeat_n(error, appends));
    }
}
