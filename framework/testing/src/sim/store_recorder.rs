//! The record of one simulated store: its commits in the trace and in the step log, and the rules of ownership.
//!
//! Called by the [writers](super::writer) of the store on appends and by its [incarnations](super::incarnation) on commits. It
//! knows neither the data nor the nodes of the store.

use std::sync::Arc;

use parking_lot::Mutex;

use super::crash_points::CrashPoints;
use super::fault_counts::{FaultCounts, FaultEvent};
use super::ownership_rules::OwnershipRules;
use super::pending_appends::PendingAppend;
use super::step_log::StepLog;
use super::trace::Trace;
use whizbang_core::store::StoreError;

/// Called after each commit.
pub(super) type CommitWatcher = Arc<dyn Fn() + Send + Sync>;

/// The record of the store of one service.
pub(super) struct StoreRecorder {
    /// The name of the service, for the trace.
    pub(super) service: String,
    /// The trace of the run.
    pub(super) trace: Trace,
    /// The step log of the run.
    pub(super) step_log: StepLog,
    /// The counters of faults that took effect.
    pub(super) fault_counts: FaultCounts,
    /// The crash points that commits reach.
    pub(super) crash_points: CrashPoints,
    /// The rules of leased shards.
    pub(super) ownership: OwnershipRules,
    /// Set after the store was created, because it checks the rules of the whole cluster.
    pub(super) commit_watcher: Mutex<Option<CommitWatcher>>,
}

impl StoreRecorder {
    /// Creates the record of a store without commits.
    pub(super) fn new(
        service: &str,
        trace: Trace,
        step_log: StepLog,
        fault_counts: FaultCounts,
        crash_points: CrashPoints,
    ) -> Self {
        let ownership = OwnershipRules::new(service, step_log.clone(), fault_counts.clone());
        let (service, commit_watcher) = (service.to_owned(), Mutex::new(None));
        Self { service, trace, step_log, fault_counts, crash_points, ownership, commit_watcher }
    }

    /// Calls the watcher. Called after each commit, when the node has been notified.
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
}
