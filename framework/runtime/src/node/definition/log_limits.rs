//! The limits of the log lines that another service, or any client of the broker, can cause.
//!
//! Used by the folders that handle messages of others. A background task writes the summaries.

use tokio::time::Instant;
use whizbang_core::telemetry::LogLimit;

/// One limit for each kind of line.
pub(in crate::node) struct LogLimits {
    /// Failed requests. The caller gets an id whose reason only the log has, so many lines are admitted.
    pub(in crate::node) failed_requests: LogLimit,
    /// Pages of the log that cannot be read for a remote reader.
    pub(in crate::node) unread_pages: LogLimit,
    /// Pages and watermarks of others that cannot be true.
    pub(in crate::node) untrue_answers: LogLimit,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self {
            failed_requests: LogLimit::new("remote request failed", 100),
            unread_pages: LogLimit::new("failed to read a page of the log for a remote reader", 3),
            untrue_answers: LogLimit::new("untrue page or watermark", 3),
        }
    }
}

impl LogLimits {
    /// Writes the summaries that are due.
    pub(in crate::node) fn flush(&self, now: Instant) {
        let Self { failed_requests, unread_pages, untrue_answers } = self;
        for limit in [failed_requests, unread_pages, untrue_answers] {
            limit.flush(now);
        }
    }
}
