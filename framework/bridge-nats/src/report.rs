//! The condition of an attached bridge: open issues and counters that its loops write and its health reads.
//!
//! Shared by the loops of the bridge and by the session of the bridge. It survives the restart of a loop and ends with the
//! session. Nothing here decides anything: the loops continue whether or not an issue is open.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::denied_inboxes::DeniedInboxes;
use super::log_limits::LogLimits;
use super::sum::Sum;
use whizbang_core::telemetry::Issues;

/// The time for which the health names a consumer that was created again.
const RECREATION_NOTED_FOR: Duration = Duration::from_secs(60);

/// The beginning of the keys of issues about streams and consumers.
pub(super) const STREAM_ISSUE: &str = "stream ";

/// The condition that the loops report.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Open issues by key. Each loop resolves those that it has raised.
    pub(super) issues: Issues,
    /// Open issues that stop no valid message, by key.
    pub(super) notes: Issues,
    /// The number of messages moved to the refused stream since the start.
    pub(super) refused: AtomicU64,
    /// The number of refused messages that were discarded, because their sender had too many.
    pub(super) discarded: AtomicU64,
    /// The number of requests, notifications and forged deliveries that were refused or dropped since the start.
    pub(super) refused_requests: AtomicU64,
    /// The number of consumers that had stalled and were created again since the start.
    pub(super) recreated_consumers: AtomicU64,
    /// The last consumer that was created again, and when.
    pub(super) last_recreated: Mutex<Option<(String, Instant)>>,
    /// The messages that wait at the server.
    pub(super) lag: Sum,
    /// The inboxes that the server does not permit this node to respond to.
    pub(super) denied_inboxes: Arc<DeniedInboxes>,
    /// The limits of log lines that any client can cause.
    pub(super) log_limits: Arc<LogLimits>,
}

impl Report {
    /// Returns the note about a consumer that was created again in the last minute.
    pub(super) fn recreation_note(&self, now: Instant) -> Option<String> {
        let last = self.last_recreated.lock();
        let (label, at) = last.as_ref()?;
        let ago = now.saturating_duration_since(*at);
        let text = || {
            format!(
                "{label} stalled and was created again {} s ago: if this repeats, check the server, and clients that read from \
                 the consumer",
                ago.as_secs()
            )
        };
        (ago < RECREATION_NOTED_FOR).then(text)
    }
}

/// An issue or note of one consumer. Dropping it closes the entry, so that no entry outlives the consumer.
pub(super) struct OpenIssue {
    report: Arc<Report>,
    list: fn(&Report) -> &Issues,
    key: String,
}

impl OpenIssue {
    /// Opens an entry in one of the lists of the report.
    pub(super) fn new(report: &Arc<Report>, list: fn(&Report) -> &Issues, key: String, text: String) -> Self {
        list(report).open(&key, || text);
        Self { report: Arc::clone(report), list, key }
    }
}

impl Drop for OpenIssue {
    fn drop(&mut self) {
        (self.list)(&self.report).close(&self.key);
    }
}
