//! The permission violations that a server reports to one of its clients.

use std::future::{Ready, ready};
use std::time::Duration;

use async_nats::{Event, ServerError};
use tokio::sync::mpsc;

/// The time limit for the report of a violation.
const PATIENCE: Duration = Duration::from_secs(10);

/// The permission violations of one client, in the order in which the server reported them.
#[derive(Debug)]
pub struct Violations {
    reports: mpsc::UnboundedReceiver<String>,
    count: usize,
}

impl Violations {
    /// Returns a callback for `ConnectOptions::event_callback`, and the violations that it receives.
    pub fn watch() -> (impl Fn(Event) -> Ready<()> + Send + Sync + 'static, Self) {
        let (sender, reports) = mpsc::unbounded_channel();
        let callback = move |event| {
            if let Event::ServerError(ServerError::Other(text)) = event
                && text.to_lowercase().contains("permissions violation")
            {
                // The test may have ended.
                sender.send(text).ok();
            }
            ready(())
        };
        (callback, Self { reports, count: 0 })
    }

    /// Waits for the violation that `operation` causes. The server reports one for each denied operation.
    ///
    /// # Panics
    ///
    /// Panics if the server reports nothing within ten seconds.
    pub async fn expect(&mut self, client: &async_nats::Client, operation: &str) {
        client.flush().await.expect("flushes");
        let report = tokio::time::timeout(PATIENCE, self.reports.recv()).await;
        assert!(matches!(report, Ok(Some(_))), "{operation} was not denied");
        self.count += 1;
    }

    /// Asserts that the server has reported no other violation than the expected ones, and returns their number.
    ///
    /// # Panics
    ///
    /// Panics if there is another one.
    pub fn assert_no_more(&mut self) -> usize {
        let more = self.reports.try_recv().ok();
        assert_eq!(more, None, "after {} expected violations", self.count);
        self.count
    }
}
