//! The store of one simulated service: commits that take time, and crashes that lose some of them.
//!
//! Used by the [handles](super::store) of the nodes and by the [writers](super::writer) of their shards. Appends go to the
//! [backend](super::backend) at once and are committed later, together with those that arrive until then.
//!
//! # Commits and crashes
//! An append is pending until a commit. It takes a random time up to a maximum, and covers all appends that have arrived at
//! its beginning. A crash ends the commit in between: a random prefix of the pending appends survives, in the order of their
//! tickets, and the rest is lost. Neither is reported to the node. With the store on disk the simulated disk decides, so the
//! outcome is known first when the shard is opened again.
//!
//! In a store that nodes share by leases, a crash of one node concerns its own pending appends. Those that a cut connection
//! holds back have not arrived and are lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::backend::Backend;
use super::fault_counts::FaultEvent;
use super::incarnation::Incarnation;
use super::node_tasks::spawn_outside;
use super::pending_appends::PendingAppend;
use super::reader::{ReadLatency, UnreadableKeys};
use super::store_handle::StoreHandle;
use super::store_recorder::StoreRecorder;
use whizbang_core::message::{IdSource, ShardId};
use whizbang_core::store::{CommitListener, ShardReader, StoreError};

/// The store of one service, which the handles of its nodes share.
pub(super) struct SharedStore {
    /// The trace, the step log and the rules.
    pub(super) recorder: Arc<StoreRecorder>,
    /// The data.
    pub(super) backend: Backend,
    /// Appends that were being written when the power failed. Their fate is known after reopening.
    pub(super) uncertain: Mutex<Vec<PendingAppend>>,
    /// The state of the commits.
    pub(super) state: Mutex<StoreState>,
    /// The source of the decisions about commits.
    pub(super) rng: Mutex<IdSource>,
    /// Maximum duration of a commit in milliseconds.
    pub(super) max_commit_millis: Mutex<u16>,
    /// The latency of reads, and the keys that cannot be read.
    pub(super) read_latency: ReadLatency,
    /// The reader of each shard that was opened.
    pub(super) readers: Mutex<BTreeMap<ShardId, Arc<dyn ShardReader>>>,
}

/// The users of the store since it was opened.
#[derive(Default)]
pub(super) struct StoreState {
    /// False after a crash, until the next opening.
    pub(super) is_open: bool,
    /// A task commits the pending appends.
    pub(super) flushing: bool,
    /// The incarnations with their pending appends, oldest first.
    pub(super) incarnations: Vec<Arc<Incarnation>>,
}

impl StoreState {
    /// Returns the number of appends that are not committed.
    pub(super) fn pending(&self) -> usize {
        self.incarnations.iter().map(|incarnation| incarnation.pending_appends.lock().pending.len()).sum()
    }

    /// Returns the incarnations with appends that have reached the store, and their number.
    fn arrived(&self) -> Vec<(Arc<Incarnation>, usize)> {
        let arrived = self.incarnations.iter().map(|incarnation| (Arc::clone(incarnation), incarnation.arrived()));
        arrived.filter(|(_, count)| *count > 0).collect()
    }
}

impl SharedStore {
    /// Creates the store of a service. It opens with its first use.
    pub(super) fn new(recorder: StoreRecorder, rng: IdSource, backend: Backend) -> Self {
        let unreadable_keys = UnreadableKeys::new(recorder.step_log.clone(), recorder.fault_counts.clone());
        Self {
            read_latency: ReadLatency::new(rng.fork(), unreadable_keys),
            recorder: Arc::new(recorder),
            backend,
            uncertain: Mutex::default(),
            state: Mutex::default(),
            rng: Mutex::new(rng),
            max_commit_millis: Mutex::new(0),
            readers: Mutex::default(),
        }
    }

    /// Closes the store: pending appends are not reported. Returns the listeners that were open.
    pub(super) fn close_all(&self) -> Vec<Arc<Incarnation>> {
        let incarnations = {
            let mut state = self.state.lock();
            if !std::mem::replace(&mut state.is_open, false) {
                return Vec::new();
            }
            state.incarnations.iter().filter(|incarnation| !incarnation.is_closed()).cloned().collect::<Vec<_>>()
        };
        if self.backend.is_shared() {
            incarnations.iter().for_each(|incarnation| self.end_incarnation(incarnation));
            self.backend.fail(0, 0);
            return incarnations;
        }
        let mut pending = Vec::new();
        for incarnation in &incarnations {
            let mut pending_appends = incarnation.pending_appends.lock();
            pending_appends.closed = true;
            pending.extend(pending_appends.pending.drain(..));
        }
        if self.backend.is_on_disk() {
            if !pending.is_empty() {
                let count = pending.len();
                self.recorder
                    .trace
                    .add(format_args!("{} lost power while writing {count} appends", self.recorder.service));
            }
            let changes = self.rng.lock().below(6);
            self.backend.fail(usize::MAX, changes);
            self.uncertain.lock().extend(pending);
            return incarnations;
        }
        let survivors = self.rng.lock().below(pending.len() as u64 + 1);
        let survivors = usize::try_from(survivors).unwrap_or(0);
        if !pending.is_empty() {
            let count = pending.len();
            self.recorder
                .trace
                .add(format_args!("{} had {count} uncommitted appends, {survivors} survive", self.recorder.service));
        }
        self.backend.fail(survivors, 0);
        self.record_survivors(&pending, survivors);
        incarnations
    }

    /// Ends one incarnation of a shared store. Some of its pending appends that have reached the store survive.
    pub(super) fn end_incarnation(&self, incarnation: &Arc<Incarnation>) {
        let arrived = incarnation.arrived();
        let pending: Vec<PendingAppend> = {
            let mut pending_appends = incarnation.pending_appends.lock();
            pending_appends.closed = true;
            pending_appends.pending.drain(..).collect()
        };
        if !pending.is_empty() {
            self.recorder.fault_counts.one(FaultEvent::CrashDuringCommit);
        }
        let survivors = usize::try_from(self.rng.lock().below(arrived as u64 + 1)).unwrap_or(0);
        self.backend.lose(&incarnation.as_listener(), survivors);
        self.record_survivors(&pending, survivors);
    }

    /// Records the outcome of appends that were pending in a crash: the first `survivors` are committed.
    fn record_survivors(&self, pending: &[PendingAppend], survivors: usize) {
        self.recorder.fault_counts.add(FaultEvent::AppendSurvivedCrash, survivors as u64);
        self.recorder.fault_counts.add(FaultEvent::AppendLostInCrash, (pending.len() - survivors) as u64);
        for pending in pending.iter().take(survivors) {
            self.recorder.record_committed(pending, pending.position);
        }
    }

    /// Returns the incarnations of the node with a handle.
    pub(super) fn incarnations_of(&self, handle: &Arc<StoreHandle>) -> Vec<Arc<Incarnation>> {
        let state = self.state.lock();
        state.incarnations.iter().filter(|incarnation| Arc::ptr_eq(&incarnation.handle, handle)).cloned().collect()
    }

    /// Finds out which of the turns survived that were being written when the power failed.
    pub(super) async fn resolve_uncertain(&self, shard: &ShardId, reader: &Arc<dyn ShardReader>) {
        let uncertain = std::mem::take(&mut *self.uncertain.lock());
        let (own, others): (Vec<_>, Vec<_>) = uncertain.into_iter().partition(|pending| pending.shard == *shard);
        self.uncertain.lock().extend(others);
        for pending in own {
            let Some(turn) = &pending.turn else { continue };
            let Ok(history) = reader.history(&turn.actor, &turn.key).await else { continue };
            if history.iter().any(|stored| stored.number == turn.number && stored.id == turn.id) {
                self.recorder.record_committed(&pending, pending.position);
                self.recorder.fault_counts.one(FaultEvent::AppendSurvivedCrash);
            } else {
                self.recorder.fault_counts.one(FaultEvent::AppendLostInCrash);
            }
        }
    }

    /// Starts to commit what is pending, unless that is in progress.
    pub(super) fn start_flush(self: &Arc<Self>) {
        if !std::mem::replace(&mut self.state.lock().flushing, true) {
            spawn_outside("simulated disk", Arc::clone(self).flush());
        }
    }

    /// Commits pending appends until there are none. Each commit takes the drawn time and covers everything that has arrived
    /// before.
    async fn flush(self: Arc<Self>) {
        loop {
            let arrived = {
                let mut state = self.state.lock();
                let arrived = state.arrived();
                if arrived.is_empty() {
                    state.flushing = false;
                    return;
                }
                arrived
            };
            let max_commit_millis = u64::from(*self.max_commit_millis.lock());
            let micros = self.rng.lock().below(max_commit_millis * 1000 + 1);
            if micros > 0 {
                tokio::time::sleep(Duration::from_micros(micros)).await;
            } else {
                tokio::task::yield_now().await;
            }
            // A crash removes pending appends; newer ones wait their own time.
            if self.backend.is_shared() {
                for (incarnation, count) in arrived {
                    self.backend.commit_of(&incarnation.as_listener(), count.min(incarnation.arrived()));
                }
            } else {
                let count: usize = arrived.iter().map(|(_, count)| count).sum();
                let count = count.min(self.state.lock().pending());
                self.backend.commit(count);
            }
        }
    }

    /// Reopens the store if it is closed.
    pub(super) fn ensure_open(&self, state: &mut StoreState) -> Result<(), StoreError> {
        if !state.is_open {
            self.backend.reopen()?;
            // Ended incarnations stay until their listener opens a shard: its tickets must keep rising, whatever opens the store.
            state.is_open = true;
        }
        Ok(())
    }

    /// Returns the incarnation of a listener, or creates one. Reopens the store if it is closed.
    pub(super) fn incarnation_of(
        self: &Arc<Self>,
        handle: &Arc<StoreHandle>,
        listener: Arc<dyn CommitListener>,
    ) -> Result<Arc<Incarnation>, StoreError> {
        let mut state = self.state.lock();
        let known = state.incarnations.iter().rfind(|incarnation| incarnation.belongs_to(&listener)).cloned();
        let is_open = state.is_open;
        self.ensure_open(&mut state)?;
        if let Some(known) = known.as_ref().filter(|known| is_open && !known.is_closed()) {
            return Ok(Arc::clone(known));
        }
        let first_ticket = known.map_or(0, |known| known.pending_appends.lock().last);
        let ended = |other: &Incarnation| other.belongs_to(&listener) || other.handle.check_alive().is_err();
        state.incarnations.retain(|other| !other.is_closed() || !ended(other));
        let incarnation = Incarnation::new(Arc::downgrade(&self.recorder), Arc::clone(handle), listener, first_ticket);
        state.incarnations.push(Arc::clone(&incarnation));
        Ok(incarnation)
    }
}
