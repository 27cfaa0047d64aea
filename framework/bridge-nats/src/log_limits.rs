//! The limits of the log lines that any client can cause at the server.
//!
//! Shared by the connection and the consumer loop, which also writes the summaries. Each kind of line has its own limit, so a flood of
//! one kind hides no line of another.

use tokio::time::Instant;
use whizbang_core::telemetry::LogLimit;

/// The number of lines of one kind in an interval. The lines of a flood differ little.
const LINES: u32 = 3;

/// One limit for each kind of line.
#[derive(Debug)]
pub(super) struct LogLimits {
    /// Messages of streams, and live events, that cannot be handled here.
    pub(super) refused_messages: LogLimit,
    /// Messages of streams that could not be copied to the refused stream.
    pub(super) failed_copies: LogLimit,
    /// Requests that cannot be decoded.
    pub(super) refused_requests: LogLimit,
    /// Requests without an inbox.
    pub(super) missing_inboxes: LogLimit,
    /// Notifications that cannot be decoded.
    pub(super) notifications: LogLimit,
    /// Messages at an inbox of JetStream that it has not sent.
    pub(super) forged_deliveries: LogLimit,
    /// Responses that the client library or the server does not accept, such as one to an invalid inbox.
    pub(super) unwritten: LogLimit,
    /// Messages on the subject of a claim.
    pub(super) claims: LogLimit,
    /// Errors of the server, and denials.
    pub(super) server_errors: LogLimit,
    /// Messages that were dropped because this node reads too slowly.
    pub(super) dropped: LogLimit,
}

impl Default for LogLimits {
    fn default() -> Self {
        let limit = |cause| LogLimit::new(cause, LINES);
        Self {
            refused_messages: limit("refused a message"),
            failed_copies: limit("failed to copy a refused message"),
            refused_requests: limit("refused a request"),
            missing_inboxes: limit("dropped a request without an inbox"),
            notifications: limit("dropped a notification"),
            forged_deliveries: limit("dropped a message that JetStream did not deliver"),
            unwritten: limit("failed to write an acknowledgement or response"),
            claims: limit("the claim on a domain was replaced"),
            server_errors: limit("server error"),
            dropped: limit("slow consumer"),
        }
    }
}

impl LogLimits {
    /// Writes the summaries that are due, and returns when the next one is.
    pub(super) fn flush(&self, now: Instant) -> Option<Instant> {
        let Self {
            refused_messages,
            failed_copies,
            refused_requests,
            missing_inboxes,
            notifications,
            forged_deliveries,
            unwritten,
            claims,
            server_errors,
            dropped,
        } = self;
        let all = [
            refused_messages,
            failed_copies,
            refused_requests,
            missing_inboxes,
            notifications,
            forged_deliveries,
            unwritten,
            claims,
            server_errors,
            dropped,
        ];
        all.into_iter().filter_map(|limit| limit.flush(now)).min()
    }
}
