//! Listens to a store's writer.

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::store::{CommitListener, StoreError, Ticket};

/// A listener that remembers what it heard and lets tests wait for it.
#[derive(Debug, Default)]
pub struct RecordingListener {
    heard: Mutex<Heard>,
    news: Notify,
}

#[derive(Clone, Debug, Default)]
struct Heard {
    reports: Vec<Ticket>,
    error: Option<StoreError>,
}

impl CommitListener for RecordingListener {
    fn committed(&self, through: Ticket) {
        self.heard.lock().reports.push(through);
        self.news.notify_waiters();
    }

    fn failed(&self, error: StoreError) {
        self.heard.lock().error = Some(error);
        self.news.notify_waiters();
    }
}

impl RecordingListener {
    /// Every report so far, in its order.
    pub fn reports(&self) -> Vec<Ticket> {
        self.heard.lock().reports.clone()
    }

    /// The last ticket that was reported; 0 before the first report.
    pub fn through(&self) -> Ticket {
        self.heard.lock().reports.last().copied().unwrap_or(0)
    }

    /// The error with which the store has failed.
    pub fn error(&self) -> Option<StoreError> {
        self.heard.lock().error.clone()
    }

    /// Waits until `ticket` is reported.
    ///
    /// # Errors
    /// That with which the store fails before it.
    pub async fn until(&self, ticket: Ticket) -> Result<(), StoreError> {
        loop {
            let news = self.news.notified();
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
