//! A commit listener for tests.

use parking_lot::Mutex;
use tokio::sync::Notify;

use whizbang_core::store::{CommitListener, StoreError, Ticket};

/// A listener that records reports and lets tests wait for them.
#[derive(Debug, Default)]
pub struct RecordingListener {
    recorded: Mutex<Recorded>,
    changed: Notify,
}

#[derive(Clone, Debug, Default)]
struct Recorded {
    reports: Vec<Ticket>,
    error: Option<StoreError>,
}

impl CommitListener for RecordingListener {
    fn committed(&self, through: Ticket) {
        self.recorded.lock().reports.push(through);
        self.changed.notify_waiters();
    }

    fn failed(&self, error: StoreError) {
        self.recorded.lock().error = Some(error);
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

    /// Returns the error with which the store has failed, if any.
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
