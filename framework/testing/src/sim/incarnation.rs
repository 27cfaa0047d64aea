//! One listener of a simulated store: it belongs to one incarnation of a node, and holds its pending appends.
//!
//! Used by the [store](super::store). Reports of the store wait while the node's connection is cut.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::pending_appends::PendingAppends;
use super::store_handle::StoreHandle;
use super::store_recorder::StoreRecorder;
use whizbang_core::store::{CommitListener, StoreError, Ticket};

/// One listener of the store.
pub(super) struct Incarnation {
    /// Gone with the store: later commits are recorded nowhere.
    recorder: Weak<StoreRecorder>,
    /// The connection of the node.
    pub(super) handle: Arc<StoreHandle>,
    /// The listener of the node, which gets the reports.
    listener: Arc<dyn CommitListener>,
    /// Added to tickets, so that the tickets of a listener keep rising when the store is reopened.
    pub(super) first_ticket: Ticket,
    /// The appends that are not committed yet.
    pub(super) pending_appends: Mutex<PendingAppends>,
    /// The reports that the node has not received yet.
    reports: Mutex<VecDeque<Report>>,
}

/// A report of the store to the node.
enum Report {
    /// Everything up to this ticket is durable.
    Committed(Ticket),
    /// The store has failed.
    Failed(StoreError),
}

impl Incarnation {
    /// Creates the incarnation of a listener that the store sees for the first time.
    pub(super) fn new(
        recorder: Weak<StoreRecorder>,
        handle: Arc<StoreHandle>,
        listener: Arc<dyn CommitListener>,
        first_ticket: Ticket,
    ) -> Arc<Self> {
        let pending_appends = Mutex::new(PendingAppends { last: first_ticket, ..PendingAppends::default() });
        Arc::new(Self { recorder, handle, listener, first_ticket, pending_appends, reports: Mutex::default() })
    }

    /// Returns true if the incarnation is that of this listener.
    pub(super) fn belongs_to(&self, listener: &Arc<dyn CommitListener>) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.listener), Arc::as_ptr(listener))
    }

    /// Returns this as the listener of the backend.
    pub(super) fn as_listener(self: &Arc<Self>) -> Arc<dyn CommitListener> {
        Arc::clone(self) as _
    }

    /// Returns true if nothing more can be appended, because the node or its store has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.pending_appends.lock().closed
    }

    /// Returns the number of pending appends that have reached the store.
    pub(super) fn arrived(&self) -> usize {
        if self.handle.is_outbound_cut() { 0 } else { self.pending_appends.lock().pending.len() }
    }

    /// Delivers the reports that have waited for the connection.
    pub(super) fn deliver_reports(&self) {
        while !self.handle.is_inbound_cut() {
            let Some(report) = self.reports.lock().pop_front() else { return };
            self.deliver(report);
        }
    }

    /// Reports a failure to the node, whose appends are closed.
    pub(super) fn fail(&self, error: StoreError) {
        self.report(Report::Failed(error));
    }

    /// Reports now, or later if the connection is cut in that direction.
    fn report(&self, report: Report) {
        if self.handle.is_inbound_cut() {
            self.reports.lock().push_back(report);
        } else {
            self.deliver(report);
        }
    }

    /// Passes a report to the node. Reports keep their order.
    fn deliver(&self, report: Report) {
        match report {
            Report::Committed(through) => self.listener.committed(through),
            Report::Failed(error) => self.listener.failed(error),
        }
    }
}

impl CommitListener for Incarnation {
    fn committed(&self, through: Ticket) {
        let through = self.first_ticket + through;
        let taken = self.pending_appends.lock().take_committed(through);
        let (Some(recorder), Some(taken)) = (self.recorder.upgrade(), taken) else { return };
        for pending in taken {
            recorder.record_committed(&pending, pending.position);
        }
        self.report(Report::Committed(through));
        recorder.notify_commit_watcher();
    }

    fn failed(&self, error: StoreError) {
        let mut pending_appends = self.pending_appends.lock();
        if pending_appends.closed {
            return;
        }
        if let StoreError::Fenced { shard, mine, .. } = &error {
            // Never committed: the tickets of later appends to other shards must not cover them.
            let before = pending_appends.pending.len();
            pending_appends.pending.retain(|pending| pending.shard != *shard || pending.epoch > *mine);
            if pending_appends.pending.len() < before
                && let Some(recorder) = self.recorder.upgrade()
            {
                recorder.report_fenced(&error);
            }
        }
        drop(pending_appends);
        self.report(Report::Failed(error));
    }
}
