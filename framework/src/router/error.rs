//! What the sender of a command is told when there is no reply.

use std::time::Duration;

use bytes::Bytes;

use super::Outcome;
use crate::message::{Codec, CodecError, MessageId, Rejection};
use crate::store::StoreError;

/// A command (or query) without the reply that was hoped for. [`may_have_happened`](Self::may_have_happened) says whether it
/// may have been handled all the same.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The domain said no. Final: the same command id will always be told the same.
    #[error("rejected: {0}")]
    Rejected(#[source] Rejection),
    /// The node has no room for more turns. Nothing was done: send again after a while.
    #[error("domain `{domain}` is busy")]
    Busy {
        /// The domain.
        domain: String,
    },
    /// The key is empty or longer than 256 bytes. Nothing was done.
    #[error("a key has 1 to 256 bytes, this one has {bytes}")]
    Key {
        /// How many bytes it has.
        bytes: usize,
    },
    /// The message cannot be written, or is too large. Nothing was done.
    #[error("the message {0}")]
    Encode(#[source] CodecError),
    /// The owner cannot read the message. Nothing was done: sender and owner have different versions of it.
    #[error("domain `{domain}` cannot read the message: {reason}")]
    Undecodable {
        /// The domain.
        domain: String,
        /// What the owner says.
        reason: String,
    },
    /// The type of the message, or of its reply, is another one at the owner of the domain, though the version is the same: what one
    /// writes the other would read as another value. Nothing was done. Raise the version of the message where its type was
    /// changed, or restore the type.
    #[error("domain `{domain}` refuses the message: {reason}")]
    Shape {
        /// The domain.
        domain: String,
        /// The type, the first difference and the remedy.
        reason: String,
    },
    /// Nobody in the domain handles this message. Nothing was done.
    #[error("nobody in domain `{domain}` handles `{name}`")]
    Unhandled {
        /// The domain.
        domain: String,
        /// The message's name.
        name: String,
    },
    /// This node does not own the domain, and reaches nobody who does. Nothing was done.
    #[error("no owner of domain `{domain}` can be reached: {reason}")]
    NoOwner {
        /// The domain.
        domain: String,
        /// Why.
        reason: String,
    },
    /// The reply did not come before the deadline. The command may or may not have been handled: send again with the same
    /// id, a duplicate is answered with the first reply.
    #[error("no reply from domain `{domain}` within {deadline:?} to {id}")]
    NoReply {
        /// The domain.
        domain: String,
        /// How long was waited.
        deadline: Duration,
        /// The command's id.
        id: MessageId,
    },
    /// The deadline had passed before the command's turn began. Nothing was done; send again if it still matters.
    #[error("the deadline had passed before the turn began")]
    Late,
    /// The command could not be handled and is a dead letter of the owner now; its key is parked. It will be handled when
    /// somebody redrives it: do not send it again with another id.
    #[error("the command is a dead letter: {reason}")]
    DeadLetter {
        /// The error of the last delivery.
        reason: String,
    },
    /// The command failed and nothing was done: its handler panicked in every attempt, or asked for what cannot be written (an
    /// event or reply above 512 KiB, a command to an empty key). No other caller is affected. Sent again with the same id it is
    /// tried again, and most likely fails again: repair the command or its handler.
    #[error("the command failed: {reason}")]
    Failed {
        /// The error of the last attempt.
        reason: String,
    },
    /// The same id or idempotency key was used before for the same aggregate, with another message: name, schema version, codec
    /// and payload count. Nothing was done.
    #[error("the id was used before with another payload")]
    Conflict,
    /// The id is older than the time for which ids are kept, so nobody knows whether it was handled. Nothing was done now.
    #[error("the id has expired")]
    Expired,
    /// The time in the id is more than 5 minutes ahead of the owner's clock. Nothing was done: set the clock of the machine that
    /// made the id, or use an idempotency key.
    #[error("the id is from the future")]
    IdInFuture,
    /// The idempotency key is empty. Nothing was sent.
    #[error("an idempotency key must not be empty")]
    EmptyIdempotencyKey,
    /// The store refused the turn before anything was written. Nothing was done.
    #[error("the store refused the turn: {0}")]
    Refused(#[source] StoreError),
    /// The turn ran and its commit failed. The command may or may not have been handled: send again with the same id.
    #[error("the commit of {id} failed: {source}")]
    Unknown {
        /// The command's id.
        id: MessageId,
        /// What failed.
        source: StoreError,
    },
    /// A query only: the view's code panicked, or its answer cannot be written. A query has no effect.
    #[error("`{name}` of domain `{domain}` was not answered: {reason}")]
    Unanswered {
        /// The domain.
        domain: String,
        /// The query's name.
        name: String,
        /// What the view's node says.
        reason: String,
    },
    /// The node stops. Nothing was done.
    #[error("the node stops")]
    Stopped,
    /// The command was handled, but the reply cannot be read: sender and owner have different versions of it.
    #[error("the reply {0}")]
    Reply(#[source] CodecError),
}

impl SendError {
    /// Whether the command may have been handled although there is no reply.
    pub fn may_have_happened(&self) -> bool {
        matches!(
            self,
            Self::NoReply { .. } | Self::Unknown { .. } | Self::DeadLetter { .. } | Self::Reply(_) | Self::Expired
        )
    }

    /// Whether sending again, with the same id, may succeed without anybody's help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Busy { .. }
            | Self::NoOwner { .. }
            | Self::NoReply { .. }
            | Self::Late
            | Self::IdInFuture
            | Self::Unknown { .. }
            | Self::Stopped => true,
            Self::Refused(error) => error.is_transient(),
            _ => false,
        }
    }

    /// The rejection, if that is what it is.
    pub fn rejection(&self) -> Option<&Rejection> {
        match self {
            Self::Rejected(rejection) => Some(rejection),
            _ => None,
        }
    }
}

impl SendError {
    /// What a sender is told about an outcome: the encoded reply, or the error.
    ///
    /// # Errors
    /// Every outcome but a reply.
    pub fn of(outcome: Outcome, domain: &str, name: &str, id: MessageId) -> Result<(Bytes, Codec), Self> {
        Err(match outcome {
            Outcome::Done(reply, codec) => return Ok((reply, codec)),
            Outcome::DeadLetter(reason) => Self::DeadLetter { reason },
            Outcome::Failed(reason) => Self::Failed { reason },
            Outcome::Busy => Self::Busy { domain: domain.to_owned() },
            Outcome::Unhandled => Self::Unhandled { domain: domain.to_owned(), name: name.to_owned() },
            Outcome::Conflict => Self::Conflict,
            Outcome::Expired => Self::Expired,
            Outcome::IdInFuture => Self::IdInFuture,
            Outcome::Late => Self::Late,
            Outcome::Undecodable(reason) => Self::Undecodable { domain: domain.to_owned(), reason },
            Outcome::Unanswered(reason) => {
                Self::Unanswered { domain: domain.to_owned(), name: name.to_owned(), reason }
            }
            Outcome::Refused(error) => Self::Refused(error),
            Outcome::Unknown(source) => Self::Unknown { id, source },
            Outcome::Stopped => Self::Stopped,
        })
    }
}
