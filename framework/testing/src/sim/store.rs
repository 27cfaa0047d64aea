//! A simulated store whose commits take time. After a crash, pending appends are lost or committed without notice.
//!
//! Called by simulated nodes as their [`Store`]. Appends go to the [backend](super::backend) at once and are committed later,
//! together with those that arrive until then. A crash closes all handles.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::backend::{Backend, Catalog};
use super::crash_points::{CrashPoint, CrashPoints};
use super::fault_counts::{FaultCounts, FaultEvent};
use super::owned_turn::OwnedTurn;
use super::pending_appends::{PendingAppend, PendingAppends};
use super::reader::{ReadLatency, SlowReader, UnreadableKeys};
use super::step_log::StepLog;
use super::trace::Trace;
use whizbang_core::message::{IdSource, Name, ShardId, StoreIdentity};
use whizbang_core::store::{
    Appended, CommitListener, Epoch, ShardHandle, ShardReader, ShardWriter, Snapshot, Store, StoreError, Ticket, Turn,
    View, Watermark,
};

/// Called after each commit.
pub(super) type CommitWatcher = Arc<dyn Fn() + Send + Sync>;

/// A node's handle to the store of its service. Revoked when that node is killed.
#[derive(Clone)]
pub(super) struct SimStore(Arc<Shared>, Arc<AtomicBool>);

struct Shared {
    service: String,
    backend: Backend,
    /// Appends that were being written when the power failed. Their fate is known after reopening.
    uncertain: Mutex<Vec<PendingAppend>>,
    state: Mutex<StoreState>,
    rng: Mutex<IdSource>,
    /// Maximum duration of a commit in milliseconds.
    max_commit_millis: Mutex<u16>,
    read_latency: ReadLatency,
    trace: Trace,
    step_log: StepLog,
    fault_counts: FaultCounts,
    crash_points: CrashPoints,
    commit_watcher: Mutex<Option<CommitWatcher>>,
    readers: Mutex<BTreeMap<ShardId, Arc<dyn ShardReader>>>,
}

/// The users of the store since it was opened.
#[derive(Default)]
struct StoreState {
    is_open: bool,
    flushing: bool,
    incarnations: Vec<Arc<Incarnation>>,
}

/// One listener of the store, which belongs to one incarnation of a node.
struct Incarnation {
    shared: Weak<Shared>,
    listener: Arc<dyn CommitListener>,
    /// Added to tickets, so that the tickets of a listener keep rising when the store is reopened.
    first_ticket: Ticket,
    pending_appends: Mutex<PendingAppends>,
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
        let read_latency = ReadLatency::new(rng.fork(), UnreadableKeys::new(step_log.clone(), fault_counts.clone()));
        let shared = Shared {
            service: service.to_owned(),
            backend,
            uncertain: Mutex::default(),
            state: Mutex::default(),
            rng: Mutex::new(rng),
            max_commit_millis: Mutex::new(0),
            read_latency,
            trace,
            step_log,
            fault_counts,
            crash_points,
            commit_watcher: Mutex::new(None),
            readers: Mutex::default(),
        };
        Self(Arc::new(shared), Arc::new(AtomicBool::new(true)))
    }

    /// Returns a handle for another node.
    pub(super) fn new_handle(&self) -> Self {
        Self(Arc::clone(&self.0), Arc::new(AtomicBool::new(true)))
    }

    /// Revokes this handle: the killed node can no longer open anything.
    pub(super) fn revoke(&self) {
        self.1.store(false, Ordering::Relaxed);
    }

    fn check_alive(&self) -> Result<(), StoreError> {
        if self.1.load(Ordering::Relaxed) { Ok(()) } else { Err(StoreError::Closed) }
    }

    /// Opens the store if it is closed. Needed in every method, because a node without shards only uses views.
    fn open_if_closed(&self) -> Result<(), StoreError> {
        self.check_alive()?;
        self.0.ensure_open(&mut self.0.state.lock())
    }

    /// Returns the open backend.
    fn backend(&self) -> Result<&Backend, StoreError> {
        self.open_if_closed()?;
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

    /// Crashes the store. Some of the pending appends survive.
    pub(super) fn crash(&self) {
        if !self.is_idle() {
            self.0.fault_counts.one(FaultEvent::CrashDuringCommit);
        }
        self.0.close_all();
    }

    /// Fails all pending appends, as a crash would, and notifies the node.
    pub(super) fn fail(&self) {
        for incarnation in self.0.close_all() {
            self.0.fault_counts.one(FaultEvent::StoreFailed);
            incarnation.listener.failed(StoreError::io("flushing", std::io::Error::other("simulated disk failure")));
        }
    }
}

impl StoreState {
    fn pending(&self) -> usize {
        self.incarnations.iter().map(|incarnation| incarnation.pending_appends.lock().pending.len()).sum()
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
            state.incarnations.clone()
        };
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
        self.fault_counts.add(FaultEvent::AppendSurvivedCrash, survivors as u64);
        self.fault_counts.add(FaultEvent::AppendLostInCrash, (pending.len() - survivors) as u64);
        for pending in pending.iter().take(survivors) {
            self.record_committed(pending, pending.position);
        }
        incarnations
    }

    /// Records a committed append in the trace and in the step log.
    fn record_committed(&self, pending: &PendingAppend, position: u64) {
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

    async fn flush(self: Arc<Self>) {
        loop {
            let count = {
                let mut state = self.state.lock();
                let count = state.pending();
                if count == 0 {
                    state.flushing = false;
                    return;
                }
                count
            };
            let max_commit_millis = u64::from(*self.max_commit_millis.lock());
            let micros = self.rng.lock().below(max_commit_millis * 1000 + 1);
            if micros > 0 {
                tokio::time::sleep(Duration::from_micros(micros)).await;
            } else {
                tokio::task::yield_now().await;
            }
            // A crash removes pending appends; newer ones wait their own time.
            let count = count.min(self.state.lock().pending());
            self.backend.commit(count);
        }
    }

    /// Reopens the store if it is closed.
    fn ensure_open(&self, state: &mut StoreState) -> Result<(), StoreError> {
        if !state.is_open {
            self.backend.reopen()?;
            state.incarnations.clear();
            state.is_open = true;
        }
        Ok(())
    }

    /// Returns the incarnation of a listener, or creates one. Reopens the store if it is closed.
    fn incarnation_of(self: &Arc<Self>, listener: Arc<dyn CommitListener>) -> Result<Arc<Incarnation>, StoreError> {
        let mut state = self.state.lock();
        let known = state.incarnations.iter().find(|incarnation| incarnation.belongs_to(&listener)).cloned();
        let is_open = state.is_open;
        self.ensure_open(&mut state)?;
        if let Some(known) = known.as_ref().filter(|_| is_open) {
            return Ok(Arc::clone(known));
        }
        let first_ticket = known.map_or(0, |known| known.pending_appends.lock().last);
        let incarnation = Incarnation::new(Arc::downgrade(self), listener, first_ticket);
        state.incarnations.push(Arc::clone(&incarnation));
        Ok(incarnation)
    }
}

impl Incarnation {
    fn new(shared: Weak<Shared>, listener: Arc<dyn CommitListener>, first_ticket: Ticket) -> Arc<Self> {
        let pending_appends = PendingAppends { last: first_ticket, ..PendingAppends::default() };
        Arc::new(Self { shared, listener, first_ticket, pending_appends: Mutex::new(pending_appends) })
    }

    fn belongs_to(&self, listener: &Arc<dyn CommitListener>) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.listener), Arc::as_ptr(listener))
    }
}

impl CommitListener for Incarnation {
    fn committed(&self, through: Ticket) {
        let through = self.first_ticket + through;
        let taken = self.pending_appends.lock().take_committed(through);
        let (Some(shared), Some(taken)) = (self.shared.upgrade(), taken) else { return };
        for pending in taken {
            shared.record_committed(&pending, pending.position);
        }
        self.listener.committed(through);
        let commit_watcher = shared.commit_watcher.lock().clone();
        if let Some(commit_watcher) = commit_watcher {
            commit_watcher();
        }
    }

    fn failed(&self, error: StoreError) {
        if !self.pending_appends.lock().closed {
            self.listener.failed(error);
        }
    }
}

impl Store for SimStore {
    fn open<'a>(
        &'a self,
        id: &'a ShardId,
        shards: u16,
        listener: Arc<dyn CommitListener>,
    ) -> BoxFuture<'a, Result<ShardHandle, StoreError>> {
        Box::pin(async move {
            let shared = &self.0;
            // Yields, so that a node may be killed between any two shards that it opens.
            tokio::task::yield_now().await;
            self.check_alive()?;
            let incarnation = shared.incarnation_of(listener)?;
            let handle = shared.backend.open(id, shards, Arc::clone(&incarnation) as _).await?;
            shared.resolve_uncertain(id, &handle.reader).await;
            shared.readers.lock().insert(id.clone(), Arc::clone(&handle.reader));
            let writer = SimWriter { shared: Arc::clone(shared), incarnation, id: id.clone(), inner: handle.writer };
            let reader = SlowReader::new(id.clone(), handle.reader, shared.read_latency.clone());
            Ok(ShardHandle { writer: Box::new(writer), reader: Arc::new(reader) })
        })
    }

    fn read<'a>(&'a self, shard: &'a ShardId) -> BoxFuture<'a, Result<Option<Arc<dyn ShardReader>>, StoreError>> {
        Box::pin(async move { self.backend()?.read(shard).await })
    }

    fn view<'a>(&'a self, projection: &'a Name) -> BoxFuture<'a, Result<Option<View>, StoreError>> {
        Box::pin(async move { self.backend()?.view(projection).await })
    }

    fn claim_view<'a>(&'a self, projection: &'a Name) -> BoxFuture<'a, Result<Epoch, StoreError>> {
        Box::pin(async move { self.backend()?.claim_view(projection).await })
    }

    fn save_view<'a>(&'a self, name: &'a Name, epoch: Epoch, view: View) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move { self.backend()?.save_view(name, epoch, view).await })
    }

    fn catalog(&self) -> BoxFuture<'_, Result<Option<Catalog>, StoreError>> {
        Box::pin(async move { self.backend()?.catalog().await })
    }

    fn replace_catalog(&self, old: Option<Catalog>, new: Catalog) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(async move { self.backend()?.replace_catalog(old, new).await })
    }

    fn identity(&self) -> BoxFuture<'_, Result<Option<StoreIdentity>, StoreError>> {
        Box::pin(async move { self.backend()?.identity().await })
    }

    fn replace_identity(&self, old: StoreIdentity, new: StoreIdentity) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(async move { self.backend()?.replace_identity(old, new).await })
    }

    fn durability(&self) -> &'static str {
        "simulated: committed data survives a crash"
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            while !self.is_idle() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let mut state = self.0.state.lock();
            state.is_open = false;
            for incarnation in &state.incarnations {
                incarnation.pending_appends.lock().closed = true;
            }
            Ok(())
        })
    }
}

/// The writer of one incarnation.
struct SimWriter {
    shared: Arc<Shared>,
    incarnation: Arc<Incarnation>,
    id: ShardId,
    inner: Box<dyn ShardWriter>,
}

impl SimWriter {
    fn append_with(
        &mut self,
        turn: Option<Box<OwnedTurn>>,
        append: impl FnOnce(&mut dyn ShardWriter) -> Result<Appended, StoreError>,
    ) -> Result<Appended, StoreError> {
        if self.incarnation.pending_appends.lock().closed {
            return Err(StoreError::Closed);
        }
        let appended = append(self.inner.as_mut()).inspect_err(|error| {
            if matches!(error, StoreError::Fenced { .. }) {
                self.shared.fault_counts.one(FaultEvent::ZombieFenced);
                self.shared.trace.add(format_args!("an old node of {} is fenced: {error}", self.shared.service));
            }
        })?;
        if turn.is_some() {
            self.shared.crash_points.reach(CrashPoint::Commit);
        }
        let ticket = self.incarnation.first_ticket + appended.ticket;
        let mut pending_appends = self.incarnation.pending_appends.lock();
        pending_appends.last = pending_appends.last.max(ticket);
        let shard = self.id.clone();
        pending_appends.pending.push_back(PendingAppend { ticket, shard, turn, position: appended.position });
        drop(pending_appends);
        if !std::mem::replace(&mut self.shared.state.lock().flushing, true) {
            whizbang_core::spawn::alone("simulated disk", Arc::clone(&self.shared).flush());
        }
        Ok(Appended { ticket, ..appended })
    }
}

impl ShardWriter for SimWriter {
    fn epoch(&self) -> Epoch {
        self.inner.epoch()
    }

    fn append(&mut self, turn: &Turn<'_>) -> Result<Appended, StoreError> {
        let owned = OwnedTurn::of(turn);
        self.shared.step_log.appended(&owned);
        self.append_with(Some(Box::new(owned)), |inner| inner.append(turn))
    }

    fn advance(&mut self, watermark: &Watermark) -> Result<Appended, StoreError> {
        self.append_with(None, |inner| inner.advance(watermark))
    }

    fn sent(&mut self, to: &ShardId, through: u64) -> Result<Appended, StoreError> {
        self.append_with(None, |inner| inner.sent(to, through))
    }

    fn save_snapshot(&mut self, actor: &Name, key: &str, snapshot: Snapshot) {
        self.inner.save_snapshot(actor, key, snapshot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use whizbang_conformance::store::Fixture;
    use whizbang_core::clock::{Clock, Timestamp};

    struct Simulated(SimStore);

    impl Simulated {
        fn with_backend(backend: impl FnOnce(&IdSource) -> Backend) -> Self {
            let rng = IdSource::seeded(Clock::manual(Timestamp::from_millis(0)).0, 1);
            let backend = backend(&rng);
            let (trace, log, counts) = (Trace::new(), StepLog::new(), FaultCounts::default());
            let store = SimStore::new("suite", rng, trace, log, counts, CrashPoints::default(), backend);
            store.set_max_delays(2, 2);
            Self(store)
        }
    }

    impl Fixture for Simulated {
        fn store(&self) -> BoxFuture<'_, Arc<dyn Store>> {
            Box::pin(std::future::ready(Arc::new(self.0.clone()) as Arc<dyn Store>))
        }
    }

    mod in_memory {
        use super::*;
        whizbang_conformance::store_suite!(
            Simulated::with_backend(|_| Backend::memory()),
            without { shards_on_many_threads_are_independent: "a simulated cluster runs on one thread" }
        );
    }

    #[cfg(feature = "embedded")]
    mod on_disk {
        use super::*;
        whizbang_conformance::store_suite!(
            Simulated::with_backend(Backend::on_disk),
            without {
                largest_payload_is_stored: "a simulated disk has small segments, so that segment ends are reached often",
                shards_on_many_threads_are_independent: "a simulated cluster runs on one thread"
            }
        );
    }
}
