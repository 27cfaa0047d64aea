//! The condition of an attached bridge: open issues and counters that its loops write and its health reads.
//!
//! Shared by the loops of the bridge and by the session of the bridge. It survives the restart of a loop and ends with the
//! session. Nothing here decides anything: the loops continue whether or not an issue is open.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::denied_inboxes::DeniedInboxes;
use super::log_limits::LogLimits;
use super::sum::Sum;
use whizbang_core::telemetry::Issues;

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
    /// The messages that wait at the server.
    pub(super) lag: Sum,
    /// The inboxes that the server does not permit this node to respond to.
    pub(super) denied_inboxes: Arc<DeniedInboxes>,
    /// The limits of log lines that a stranger can cause.
    pub(super) log_limits: Arc<LogLimits>,
}
