//! The handle of one simulated node to the [store](super::shared_store) of its service.
//!
//! Used by the simulation, which crashes and cuts it; the node uses it [as its store](super::store_calls). After a crash, pending
//! appends are lost or committed without notice. A crash closes all handles; in a store that several nodes share by
//! [leases](super::sim_leases), only those of the node that has crashed.

use std::sync::Arc;

use super::LinkDirection;
use super::backend::Backend;
use super::crash_points::CrashPoints;
use super::fault_counts::{FaultCounts, FaultEvent};
use super::incarnation::Incarnation;
use super::ownership_rules::OwnershipRules;
use super::reader::{SlowReader, UnreadableKeys};
use super::shared_store::SharedStore;
use super::step_log::StepLog;
use super::store_handle::StoreHandle;
use super::store_recorder::{CommitWatcher, StoreRecorder};
use super::trace::Trace;
use super::writer::SimWriter;
use whizbang_core::message::{IdSource, MessageId, ShardId};
use whizbang_core::store::{CommitListener, ShardHandle, ShardReader, StoreError};

/// A node's handle to the store of its service. Revoked when that node is killed.
#[derive(Clone)]
pub(super) struct SimStore(pub(super) Arc<SharedStore>, pub(super) Arc<StoreHandle>);

impl SimStore {
    /// Creates the store of a service, and the handle of its first node.
    pub(super) fn new(
        service: &str,
        rng: IdSource,
        trace: Trace,
        step_log: StepLog,
        fault_counts: FaultCounts,
        crash_points: CrashPoints,
        backend: Backend,
    ) -> Self {
        let recorder = StoreRecorder::new(service, trace, step_log, fault_counts, crash_points);
        Self(Arc::new(SharedStore::new(recorder, rng, backend)), Arc::default())
    }

    /// Returns a handle for another node.
    pub(super) fn new_handle(&self) -> Self {
        Self(Arc::clone(&self.0), Arc::default())
    }

    /// Returns this node's connection.
    pub(super) fn handle(&self) -> &Arc<StoreHandle> {
        &self.1
    }

    /// Returns the rules of leased shards.
    pub(super) fn ownership(&self) -> &OwnershipRules {
        &self.0.recorder.ownership
    }

    /// Opens the store if it is closed. Needed in every method, because a node without shards only uses views.
    pub(super) fn check_open(&self) -> Result<(), StoreError> {
        self.1.check_alive()?;
        self.0.ensure_open(&mut self.0.state.lock())
    }

    /// Runs a request of the node, which waits while the connection is cut.
    pub(super) async fn exchange<T>(
        &self,
        request: impl AsyncFnOnce(&Backend) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
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

    /// Returns the keys that cannot be read at the moment.
    pub(super) fn unreadable_keys(&self) -> &UnreadableKeys {
        &self.0.read_latency.unreadable_keys
    }

    /// Sets the function that is called after each commit, for the rules that always hold.
    pub(super) fn on_commit(&self, commit_watcher: CommitWatcher) {
        *self.0.recorder.commit_watcher.lock() = Some(commit_watcher);
    }

    /// Returns readers of all shards that were ever opened. They read committed data.
    pub(super) fn readers(&self) -> Vec<(ShardId, Arc<dyn ShardReader>)> {
        self.0.readers.lock().iter().map(|(id, reader)| (id.clone(), Arc::clone(reader))).collect()
    }

    /// Returns true if no append is pending.
    pub(super) fn is_idle(&self) -> bool {
        self.0.state.lock().pending() == 0
    }

    /// Crashes the node of this handle, and with it the store, unless other nodes share it. Some of the pending appends survive.
    pub(super) fn crash(&self) {
        if self.0.backend.is_shared() {
            return self.crash_alone();
        }
        if !self.is_idle() {
            self.0.recorder.fault_counts.one(FaultEvent::CrashDuringCommit);
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
        let is_commit = asked.is_some_and(|(id, to)| self.0.recorder.step_log.has_settled_call(&to.domain, *id));
        if let Some(member) = self.1.member().filter(|_| !is_commit) {
            if let Some((_, shard)) = asked {
                self.0.recorder.ownership.answered_for(member, shard, what);
            }
            self.0.recorder.ownership.answered(member, what);
        }
    }

    /// Fails all pending appends, as a crash of the store would, and notifies the nodes.
    pub(super) fn fail(&self) {
        for incarnation in self.0.close_all() {
            self.0.recorder.fault_counts.one(FaultEvent::StoreFailed);
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

#[cfg(test)]
mod tests;
