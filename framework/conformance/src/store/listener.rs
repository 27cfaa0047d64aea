//! A commit listener for tests.
//!
//! Stores report from threads of their own. The listener keeps every report, so a case can check their order afterwards and
//! not only the last one.

use parking_lot::Mutex;
use tokio::sync::Notify;

use whizbang_core::message::ShardId;
use whizbang_core::store::{CommitListener, Epoch, StoreError, Ticket};

/// A listener that records reports and lets tests wait for them.
#[derive(Debug, Default)]
pub struct RecordingListener {
    /// The reports so far.
    recorded: Mutex<Recorded>,
    /// Notified with each report.
    changed: Notify,
}

/// The reports in their order, under one lock, so that a test reads a consistent state.
#[derive(Clone, Debug, Default)]
struct Recorded {
    /// Tickets in the order of the reports. They must not decrease.
    reports: Vec<Ticket>,
    /// The first failure.
    error: Option<StoreError>,
    /// The errors of single shards, with the last ticket reported before.
    fenced: Vec<(StoreError, Ticket)>,
}

impl CommitListener for RecordingListener {
    fn committed(&self, through: Ticket) {
        self.recorded.lock().reports.push(through);
        self.changed.notify_waiters();
    }

    fn failed(&self, error: StoreError) {
        let mut recorded = self.recorded.lock();
        match error {
            StoreError::Fenced { .. } => {
                let through = recorded.reports.last().copied().unwrap_or(0);
                recorded.fenced.push((error, through));
            }
            error => recorded.error = Some(error),
        }
        drop(recorded);
        self.changed.notify_waiters();
    }
}

impl RecordingListener {
    /// Returns all reports so far, in order.
    pub fn reports(&self) -> Vec<Ticket> {
        self.recorded.lock().reports.clone()
    }

    /// Returns the last reported ticket, or 0 before the first report.
    pub fn through(&self) -> Ticket {
        self.recorded.lock().reports.last().copied().unwrap_or(0)
    }

    /// Returns the reports that a shard was fenced, each with the last ticket that was reported before.
    pub fn fenced(&self) -> Vec<(StoreError, Ticket)> {
        self.recorded.lock().fenced.clone()
    }

    /// Waits until an append of `shard` under the epoch `mine` is reported.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if that epoch was fenced before the append was committed, and the error with which the store
    /// fails before that.
    pub async fn until_settled(&self, shard: &ShardId, mine: Epoch, ticket: Ticket) -> Result<(), StoreError> {
        loop {
            let news = self.changed.notified();
            let is_mine = |error: &StoreError| {
                let StoreError::Fenced { shard: fenced, mine: epoch, .. } = error else { return false };
                fenced == shard && *epoch == mine
            };
            // Later tickets of other shards may have been reported since.
            if let Some((error, _)) =
                self.fenced().into_iter().find(|(error, before)| is_mine(error) && *before < ticket)
            {
                return Err(error);
            }
            if self.through() >= ticket {
                return Ok(());
            }
            if let Some(error) = self.error() {
                return Err(error);
            }
            news.await;
        }
    }

    /// Returns the error with which the whole store has failed, if any.
    pub fn error(&self) -> Option<StoreError> {
        self.recorded.lock().error.clone()
    }

    /// Waits until `ticket` is reported.
    ///
    /// # Errors
    /// The error with which the store fails before that.
    pub async fn until(&self, ticket: Ticket) -> Result<(), StoreError> {
        loop {
            let news = self.changed.notified();
            if self.through() >= ticket {
                return Ok(());
            }
            if let Some(error) = self.error() {
                return Err(error);
            }
            news.await;
        }
    }
}
