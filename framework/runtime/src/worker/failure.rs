//! Reasons why a job is not done.
//!
//! Made by the path of a [job](super::job), which retries it or makes a dead letter of its message.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use super::options::RetryDecision;
use whizbang_core::message::CodecError;
use whizbang_core::store::DeadLetterReason;

/// Reason why a handler has not done a job.
pub(crate) enum JobFailure {
    /// The message cannot be decoded; nothing was done.
    Undecodable(CodecError),
    /// Another attempt may succeed.
    Retry(Box<dyn Error + Send + Sync>),
    /// Permanent failure.
    Fail(String),
    /// A call for several jobs has failed, and this one may not be the cause.
    Batch(Arc<dyn Error + Send + Sync>),
}

/// Reason why an attempt has not done its job.
pub(super) enum Failure {
    Undecodable(String),
    Unhandled,
    /// Another attempt may succeed, after the default wait or this one.
    Retry(String, Option<Duration>),
    Fail(String),
}

impl Failure {
    /// The process ended during each of this many deliveries.
    pub(super) fn ended(deliveries: u32) -> Self {
        Self::Fail(format!("the process ended during each of its last {deliveries} deliveries"))
    }

    /// Creates the failure of an attempt that would be retried, as a rule of the worker has decided.
    pub(super) fn decided(decision: RetryDecision, text: String) -> Self {
        match decision {
            RetryDecision::Policy => Self::Retry(text, None),
            RetryDecision::After(wait) => Self::Retry(text, Some(wait)),
            RetryDecision::GiveUp => Self::Fail(text),
        }
    }

    /// Returns the wait that a rule of the worker asks for.
    pub(super) fn wait(&self) -> Option<Duration> {
        match self {
            Self::Retry(_, wait) => *wait,
            Self::Undecodable(_) | Self::Unhandled | Self::Fail(_) => None,
        }
    }

    /// Returns whether another delivery may succeed.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self, Self::Retry(..))
    }

    pub(super) fn text(&self) -> &str {
        match self {
            Self::Undecodable(text) | Self::Retry(text, _) | Self::Fail(text) => text,
            Self::Unhandled => "no handler for this message",
        }
    }

    pub(super) fn reason(&self) -> DeadLetterReason {
        match self {
            Self::Undecodable(_) => DeadLetterReason::Undecodable,
            Self::Unhandled => DeadLetterReason::Unhandled,
            Self::Retry(..) | Self::Fail(_) => DeadLetterReason::Attempts,
        }
    }
}
