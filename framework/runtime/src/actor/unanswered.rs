//! The reason why a query has no answer.
//!
//! Returned by the functions that answer from the state of an actor or of a projection.

use crate::router::Outcome;
use whizbang_core::message::CodecError;

/// Reason why a query has no answer.
pub(crate) enum Unanswered {
    /// The query cannot be decoded.
    Undecodable(CodecError),
    /// The answer cannot be encoded.
    Unwritable(CodecError),
}

impl Unanswered {
    /// Returns the outcome for the caller.
    pub(crate) fn outcome(self) -> Outcome {
        match self {
            Self::Undecodable(error) => Outcome::Undecodable(error.to_string()),
            Self::Unwritable(error) => Outcome::Unanswered(format!("failed to encode answer: {error}")),
        }
    }
}
