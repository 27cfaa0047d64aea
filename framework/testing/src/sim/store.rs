//! A simulated store whose commits take time. After a crash, pending appends are lost or committed without notice.
//!
//! Called by simulated nodes as their [`Store`]. Appends go to the [backend](super::backend) at once and are committed later,
//! together with those that arrive until then. A crash closes all handles; in a store that several nodes share by
//! [leases](super::sim_leases), only those of the node that has crashed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::LinkDirection;
use super::backend::{Backend, Catalog};
use super::crash_points::CrashPoints;
use super::fault_counts::{FaultCounts, FaultEvent};
use super::incarnation::Incarnation;
use super::node_tasks::spawn_outside;
use super::ownership_rules::OwnershipRules;
use super::pending_appends::PendingAppend;
use super::reader::{ReadLatency, SlowReader, UnreadableKeys};
use super::sim_leases::SimLeases;
use super::step_log::StepLog;
use super::store_handle::{Reply, Statements, StoreHandle};
use super::trace::Trace;
use super::writer::SimWriter;
use whizbang_core::message::{IdSource, MessageId, Name, ShardId, StoreIdentity};
use whizbang_core::store::{CommitListener, Epoch, ShardHandle, ShardLeases, ShardReader, Store, StoreError, View};

/// Called after each commit.
pub(super) type CommitWatcher = Arc<dyn Fn() + Send + Sync>;

/// A node's handle to the store of its service. Revoked when that node is killed.
#[derive(Clone)]
pub(super) struct SimStore(Arc<Shared>, Arc<StoreHandle>);

pub(super) struct Shared {
    pub(super) service: String,
    backend: Backend,
    /// Appends that were being written when the power failed. Their fate is known after reopening.
    uncertain: Mutex<Vec<PendingAppend>>,
    state: Mutex<StoreState>,
    rng: Mutex<IdSource>,
    /// Maximum duration of a commit in milliseconds.
    max_commit_millis: Mutex<u16>,
    read_latency: ReadLatency,
    pub(super) trace: Trace,
    pub(super) step_log: StepLog,
    pub(super) fault_counts: FaultCounts,
    pub(super) crash_points: CrashPoints,
    commit_watcher: Mutex<Option<CommitWatcher>>,
    readers: Mutex<BTreeMap<ShardId, Arc<dyn ShardReader>>>,
    pub(super) ownership: OwnershipRules,
}

/// The users of the store since it was opened.
#[derive(Default)]
struct StoreState {
    is_open: bool,
    flushing: bool,
    incarnations: Vec<Arc<Incarnation>>,
}

impl SimStore {
    pub(super) fn new(
        service: &str,
        rng: IdSource,
        trace: Trace,
        step_log: StepLog,
        fault_counts: FaultCounts,
        crash_points: CrashPoints,
        backend: Backend,
    ) -> Self {
        let shared = Shared {
            service: service.to_owned(),
            read_latency: ReadLatency::new(rng.fork(), UnreadableKeys::new(step_log.clone(), fault_counts.clone())),
            ownership: OwnershipRules::new(service, step_log.clone(), fault_counts.clone()),
            backend,
            uncertain: Mutex::default(),
            state: Mutex::default(),
            rng: Mutex::new(rng),
            max_commit_millis: Mutex::new(0),
            trace,
            step_log,
            fault_counts,
            crash_points,
            commit_watcher: Mutex::new(None),
            readers: Mutex::default(),
        };
        Self(Arc::new(shared), Arc::default())
    }

    /// Returns a handle for another node.
    pub(super) fn new_handle(&self) -> Self {
        Self(Arc::clone(&self.0), Arc::default())
    }

    /// Returns this node's connection.
    pub(super) fn handle(&self) -> &Arc<StoreHandle> {
        &self.1
    }

    pub(super) fn ownership(&self) -> &OwnershipRules {
        &self.0.ownership
    }

    /// Opens the store if it is closed. Needed in every method, because a node without shards only uses views.
    pub(super) fn check_open(&self) -> Result<(), StoreError> {
        self.1.check_alive()?;
        self.0.ensure_open(&mut self.0.state.lock())
    }

    /// Runs a request of the node, which waits while the connection is cut.
    async fn exchange<T>(&self, request: impl AsyncFnOnce(&Backend) -> Result<T, StoreError>) -> Result<T, StoreError> {
        if self.1.is_cut() {
            self.1.request().await?;
        }
        let result = request(self.backend()?).await;
        if self.1.is_cut() {
            self.1.reply().await?;
        }
        result
    }

    /// Returns the open backend.
    fn backend(&self) -> Result<&Backend, StoreError> {
        self.check_open()?;
        Ok(&self.0.backend)
    }

    /// Sets the maximum duration of a commit and of a read, in milliseconds.
    pub(super) fn set_max_delays(&self, commit: u16, read: u16) {
        *self.0.max_commit_millis.lock() = commit;
        self.0.read_latency.set(read);
    }

    pub(super) fn unreadable_keys(&self) -> &UnreadableKeys {
        &self.0.read_latency.unreadable_keys
    }

    pub(super) fn on_commit(&self, commit_watcher: CommitWatcher) {
        *self.0.commit_watcher.lock() = Some(commit_watcher);
    }

    /// Returns readers of all shards that were ever opened. They read committed data.
    pub(super) fn readers(&self) -> Vec<(ShardId, Arc<dyn ShardReader>)> {
        self.0.readers.lock().iter().map(|(id, reader)| (id.clone(), Arc::clone(reader))).collect()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.0.state.lock().pending() == 0
    }

    /// Crashes the node of this handle, and with it the store, unless other nodes share it. Some of the pending appends survive.
    pub(super) fn crash(&self) {
        if self.0.backend.is_shared() {
            return self.crash_alone();
        }
        if !self.is_idle() {
            self.0.fault_counts.one(FaultEvent::CrashDuringCommit);
        }
        self.0.close_all();
    }

    /// Ends the incarnations of this handle.
    fn crash_alone(&self) {
        self.1.revoke();
        for incarnation in self.0.incarnations_of(&self.1) {
            self.0.end_incarnation(&incarnation);
        }
    }

    /// Restores the connection of this handle: what has waited is committed and reported now.
    pub(super) fn restore(&self, direction: LinkDirection) {
        self.1.restore(direction);
        for incarnation in self.0.incarnations_of(&self.1) {
            incarnation.deliver_reports();
        }
        self.0.start_flush();
    }

    /// Checks that the node of this handle may answer, see [`OwnershipRules::answered`]. It may always report a commit.
    pub(super) fn check_answer(&self, what: &str, asked: Option<&(MessageId, ShardId)>) {
        let is_commit = asked.is_some_and(|(id, to)| self.0.step_log.has_settled_call(&to.domain, *id));
        if let Some(member) = self.1.member().filter(|_| !is_commit) {
            if let Some((_, shard)) = asked {
                self.0.ownership.answered_for(member, shard, what);
            }
            self.0.ownership.answered(member, what);
        }
    }

    /// Fails all pending appends, as a crash of the store would, and notifies the nodes.
    pub(super) fn fail(&self) {
        for incarnation in self.0.close_all() {
            self.0.fault_counts.one(FaultEvent::StoreFailed);
            incarnation.fail(StoreError::io("flushing", std::io::Error::other("simulated disk failure")));
        }
    }

    /// Returns the incarnation of a listener, or creates one. Reopens the store if it is closed.
    pub(super) fn incarnation_of(&self, listener: Arc<dyn CommitListener>) -> Result<Arc<Incarnation>, StoreError> {
        self.1.check_alive()?;
        self.0.incarnation_of(&self.1, listener)
    }

    /// Returns the handle of a shard that the backend has opened, with delays and checks.
    pub(super) fn wrap(&self, id: &ShardId, handle: ShardHandle, incarnation: Arc<Incarnation>) -> ShardHandle {
        let shared = &self.0;
        shared.readers.lock().insert(id.clone(), Arc::clone(&handle.reader));
        let writer = SimWriter { shared: Arc::clone(shared), incarnation, id: id.clone(), inner: handle.writer };
        let reader = SlowReader::new(id.clone(), handle.reader, shared.read_latency.clone(), Arc::clone(&self.1));
        ShardHandle { writer: Box::new(writer), reader: Arc::new(reader) }
    }
}

impl StoreState {
    fn pending(&self) -> usize {
        self.incarnations.iter().map(|incarnation| incarnation.pending_appends.lock().pending.len()).sum()
    }

    /// Returns the incarnations with appends that have reached the store, and their number.
    fn arrived(&self) -> Vec<(Arc<Incarnation>, usize)> {
        let arrived = self.incarnations.iter().map(|incarnation| (Arc::clone(incarnation), incarnation.arrived()));
        arrived.filter(|(_, count)| *count > 0).collect()
    }
}

impl Shared {
    /// Closes the store: pending appends are not reported. Returns the listeners that were open.
    fn close_all(&self) -> Vec<Arc<Incarnation>> {
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
                self.trace.add(format_args!("{} lost power while writing {count} appends", self.service));
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
            self.trace.add(format_args!("{} had {count} uncommitted appends, {survivors} survive", self.service));
        }
        self.backend.fail(survivors, 0);
        self.record_survivors(&pending, survivors);
        incarnations
    }

    /// Ends one incarnation of a shared store. Some of its pending appends that have reached the store survive.
    fn end_incarnation(&self, incarnation: &Arc<Incarnation>) {
        let arrived = incarnation.arrived();
        let pending: Vec<PendingAppend> = {
            let mut pending_appends = incarnation.pending_appends.lock();
            pending_appends.closed = true;
            pending_appends.pending.drain(..).collect()
        };
        if !pending.is_empty() {
            self.fault_counts.one(FaultEvent::CrashDuringCommit);
        }
        let survivors = usize::try_from(self.rng.lock().below(arrived as u64 + 1)).unwrap_or(0);
        self.backend.lose(&incarnation.as_listener(), survivors);
        self.record_survivors(&pending, survivors);
    }

    /// Records the outcome of appends that were pending in a crash: the first `survivors` are committed.
    fn record_survivors(&self, pending: &[PendingAppend], survivors: usize) {
        self.fault_counts.add(FaultEvent::AppendSurvivedCrash, survivors as u64);
        self.fault_counts.add(FaultEvent::AppendLostInCrash, (pending.len() - survivors) as u64);
        for pending in pending.iter().take(survivors) {
            self.record_committed(pending, pending.position);
        }
    }

    fn incarnations_of(&self, handle: &Arc<StoreHandle>) -> Vec<Arc<Incarnation>> {
        let state = self.state.lock();
        state.incarnations.iter().filter(|incarnation| Arc::ptr_eq(&incarnation.handle, handle)).cloned().collect()
    }

    pub(super) fn notify_commit_watcher(&self) {
        let commit_watcher = self.commit_watcher.lock().clone();
        if let Some(commit_watcher) = commit_watcher {
            commit_watcher();
        }
    }

    /// Counts an append that was refused because a newer owner has the shard.
    pub(super) fn report_fenced(&self, error: &StoreError) {
        self.fault_counts.one(FaultEvent::ZombieFenced);
        self.trace.add(format_args!("an old node of {} is fenced: {error}", self.service));
    }

    /// Records a committed append in the trace and in the step log.
    pub(super) fn record_committed(&self, pending: &PendingAppend, position: u64) {
        self.ownership.committed(&pending.shard, pending.epoch);
        if let Some(turn) = &pending.turn {
            turn.trace(&self.trace, &self.service, &pending.shard);
            self.step_log.committed(&pending.shard, turn, position);
        }
    }

    /// Finds out which of the turns survived that were being written when the power failed.
    async fn resolve_uncertain(&self, shard: &ShardId, reader: &Arc<dyn ShardReader>) {
        let uncertain = std::mem::take(&mut *self.uncertain.lock());
        let (own, others): (Vec<_>, Vec<_>) = uncertain.into_iter().partition(|pending| pending.shard == *shard);
        self.uncertain.lock().extend(others);
        for pending in own {
            let Some(turn) = &pending.turn else { continue };
            let Ok(history) = reader.history(&turn.actor, &turn.key).await else { continue };
            if history.iter().any(|stored| stored.number == turn.number && stored.id == turn.id) {
                self.record_committed(&pending, pending.position);
                self.fault_counts.one(FaultEvent::AppendSurvivedCrash);
            } else {
                self.fault_counts.one(FaultEvent::AppendLostInCrash);
            }
        }
    }

    /// Starts to commit what is pending, unless that is in progress.
    pub(super) fn start_flush(self: &Arc<Self>) {
        if !std::mem::replace(&mut self.state.lock().flushing, true) {
            spawn_outside("simulated disk", Arc::clone(self).flush());
        }
    }

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
    fn ensure_open(&self, state: &mut StoreState) -> Result<(), StoreError> {
        if !state.is_open {
            self.backend.reopen()?;
            // The tickets of each listener keep rising, and several nodes open a shared store again one after the other.
            if !self.backend.is_shared() {
                state.incarnations.clear();
            }
            state.is_open = true;
        }
        Ok(())
    }

    /// Returns the incarnation of a listener, or creates one. Reopens the store if it is closed.
    fn incarnation_of(
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
        let incarnation = Incarnation::new(Arc::downgrade(self), Arc::clone(handle), listener, first_ticket);
        state.incarnations.push(Arc::clone(&incarnation));
        Ok(incarnation)
    }
}

impl Store for SimStore {
    fn open<'a>(&'a self, id: &'a ShardId, shards: u16, listener: Arc<dyn CommitListener>) -> Reply<'a, ShardHandle> {
        Box::pin(async move {
            // Yields, so that a node may be killed between any two shards that it opens.
            tokio::task::yield_now().await;
            let incarnation = self.incarnation_of(listener)?;
            let handle = self.0.backend.open(id, shards, incarnation.as_listener()).await?;
            self.0.resolve_uncertain(id, &handle.reader).await;
            Ok(self.wrap(id, handle, incarnation))
        })
    }

    fn read<'a>(&'a self, shard: &'a ShardId) -> BoxFuture<'a, Result<Option<Arc<dyn ShardReader>>, StoreError>> {
        Box::pin(self.exchange(async move |backend| backend.read(shard).await))
    }

    fn view<'a>(&'a self, projection: &'a Name) -> Reply<'a, Option<View>> {
        Box::pin(self.exchange(async move |backend| backend.view(projection).await))
    }

    fn claim_view<'a>(&'a self, projection: &'a Name) -> BoxFuture<'a, Result<Epoch, StoreError>> {
        Box::pin(self.exchange(async move |backend| backend.claim_view(projection).await))
    }

    fn save_view<'a>(&'a self, name: &'a Name, epoch: Epoch, view: View) -> Reply<'a, ()> {
        Box::pin(self.exchange(async move |backend| backend.save_view(name, epoch, view).await))
    }

    /// Statements are accepted and not run: a simulated cluster has no tables.
    fn save_view_with<'a>(&'a self, n: &'a Name, epoch: Epoch, view: View, _: Statements<'a>) -> Reply<'a, ()> {
        self.save_view(n, epoch, view)
    }

    fn runs_statements(&self) -> bool {
        true
    }

    fn catalog(&self) -> BoxFuture<'_, Result<Option<Catalog>, StoreError>> {
        Box::pin(self.exchange(async move |backend| backend.catalog().await))
    }

    fn replace_catalog(&self, old: Option<Catalog>, new: Catalog) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(self.exchange(async move |backend| backend.replace_catalog(old, new).await))
    }

    fn identity(&self) -> BoxFuture<'_, Result<Option<StoreIdentity>, StoreError>> {
        Box::pin(self.exchange(async move |backend| backend.identity().await))
    }

    fn replace_identity(&self, old: StoreIdentity, new: StoreIdentity) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(self.exchange(async move |backend| backend.replace_identity(old, new).await))
    }

    fn durability(&self) -> &'static str {
        "simulated: committed data survives a crash"
    }

    fn leases(&self) -> Option<Arc<dyn ShardLeases>> {
        let inner = self.0.backend.leases()?;
        Some(Arc::new(SimLeases { store: self.clone(), inner }))
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let is_shared = self.0.backend.is_shared();
            let mine =
                || if is_shared { self.0.incarnations_of(&self.1) } else { self.0.state.lock().incarnations.clone() };
            while mine().iter().any(|incarnation| !incarnation.pending_appends.lock().pending.is_empty()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            if is_shared {
                // The store stays open for the other nodes.
                self.1.revoke();
            } else {
                self.0.state.lock().is_open = false;
            }
            for incarnation in mine() {
                incarnation.pending_appends.lock().closed = true;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests;
