//! Reasons why a job is not done.
//!
//! Made by the path of a [job](super::job), which retries it or makes a dead letter of its message.

use whizbang_core::store::DeadLetterReason;

/// Reason why a job is not done.
pub(super) enum Failure {
    Undecodable(String),
    Unhandled,
    Retry(String),
    Fail(String),
}

impl Failure {
    /// The process ended during each of this many deliveries.
    pub(super) fn ended(deliveries: u32) -> Self {
        Self::Fail(format!("the process ended during each of its last {deliveries} deliveries"))
    }

    /// Returns whether another delivery may succeed.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self, Self::Retry(_))
    }

    pub(super) fn text(&self) -> &str {
        match self {
            Self::Undecodable(text) | Self::Retry(text) | Self::Fail(text) => text,
            Self::Unhandled => "no handler for this message",
        }
    }

    pub(super) fn reason(&self) -> DeadLetterReason {
        match self {
            Self::Undecodable(_) => DeadLetterReason::Undecodable,
            Self::Unhandled => DeadLetterReason::Unhandled,
            Self::Retry(_) | Self::Fail(_) => DeadLetterReason::Attempts,
        }
    }
}
