//! Errors of commands and queries without a reply.

use std::time::Duration;

use bytes::Bytes;

use super::Outcome;
use whizbang_core::bridge::BridgeError;
use whizbang_core::message::{Codec, CodecError, HeaderError, MessageId, Rejection, TypedRejection};
use whizbang_core::store::StoreError;

/// A command or query without the expected reply. [`may_have_happened`](Self::may_have_happened) tells whether the
/// command may have been handled nevertheless.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The domain rejected the command, or a [layer](crate::layer::Layer) of this client did, and then nothing was sent. Final: the
    /// domain answers the same command id always with the same rejection.
    #[error("rejected: {0}")]
    Rejected(Rejection),
    /// The owner has reached its bound of turns in flight, or a [layer](crate::layer::Layer) is busy, in every attempt until the
    /// deadline. Nothing was done: send again after a while.
    #[error("domain `{domain}` is busy")]
    Busy {
        /// The domain.
        domain: String,
    },
    /// The key is empty or longer than 256 bytes. Nothing was done.
    #[error("invalid key of {bytes} bytes: expected 1 to 256")]
    Key {
        /// Length of the key in bytes.
        bytes: usize,
    },
    /// The message cannot be encoded, or is too large. Nothing was sent.
    #[error("failed to encode message")]
    Encode(#[source] CodecError),
    /// The owner cannot decode the message. Nothing was done: sender and owner use different versions of it.
    #[error("domain `{domain}` failed to decode the message: {reason}")]
    Undecodable {
        /// The domain.
        domain: String,
        /// The owner's reason.
        reason: String,
    },
    /// The type of the message, or of its reply, differs at the owner of the domain although the version is equal:
    /// one side would decode the other's bytes to a different value. Nothing was done. Raise the version of the
    /// message where its type was changed, or restore the type.
    #[error("message refused by domain `{domain}`: {reason}")]
    Shape {
        /// The domain.
        domain: String,
        /// The type, the first difference and the remedy.
        reason: String,
    },
    /// No handler for this message exists in the domain. Nothing was done.
    #[error("no handler for `{name}` in domain `{domain}`")]
    Unhandled {
        /// The domain.
        domain: String,
        /// Name of the message.
        name: String,
    },
    /// This node does not own the domain, and no owner could be reached in any attempt until the deadline. Nothing was
    /// done.
    #[error("no owner of domain `{domain}` can be reached: {reason}")]
    NoOwner {
        /// The domain.
        domain: String,
        /// The cause.
        reason: String,
    },
    /// This node does not own the domain and has no bridge to other nodes. Nothing was done: host the owner in this
    /// node, or give the node a bridge.
    #[error("domain `{domain}` is not owned by this node, which has no bridge")]
    NoBridge {
        /// The domain.
        domain: String,
    },
    /// The bridge or its broker refused the message: it is not permitted, a stream is full. Nothing was done: see
    /// the error of the bridge.
    #[error("failed to send message to domain `{domain}`")]
    Bridge {
        /// The domain.
        domain: String,
        /// The error of the bridge.
        source: Box<BridgeError>,
    },
    /// No reply arrived before the deadline. The command may or may not have been handled: send it again with the
    /// same id; a duplicate is answered with the first reply.
    #[error("no reply from domain `{domain}` within {deadline:?} to {id} (attempts: {attempts})")]
    NoReply {
        /// The domain.
        domain: String,
        /// Length of the wait.
        deadline: Duration,
        /// Id of the command.
        id: MessageId,
        /// Number of attempts.
        attempts: u32,
        /// The error of the last attempt, if it was another one. An earlier attempt may have been handled.
        source: Option<Box<SendError>>,
    },
    /// The deadline passed before the command's turn began. Nothing was done; send again if it still matters.
    #[error("deadline passed before the turn began")]
    Late,
    /// The command could not be handled and is now a dead letter of the owner; its key is parked. It is handled when
    /// an operator redrives it: do not send it again with another id.
    #[error("command is a dead letter: {reason}")]
    DeadLetter {
        /// The error of the last delivery.
        reason: String,
    },
    /// The command failed and nothing was done: its handler or a layer panicked in every attempt, or it requested effects that
    /// cannot be written (an event or reply above 512 KiB, a command to an empty key). No other caller is affected.
    /// Sent again with the same id, it is tried again and most likely fails again: fix the command or its handler.
    #[error("command failed: {reason}")]
    Failed {
        /// The error of the last attempt.
        reason: String,
    },
    /// The id or idempotency key was used before for the same aggregate with another message; name, schema version,
    /// codec and payload are compared. Nothing was done.
    #[error("id already used with another payload")]
    Conflict,
    /// The id is older than ids are kept, so it is unknown whether the command was handled. Nothing was done now.
    #[error("id expired")]
    Expired,
    /// The time in the id is more than 5 minutes ahead of the owner's clock. Nothing was done: correct the clock of
    /// the machine that created the id, or use an idempotency key.
    #[error("id is from the future")]
    IdInFuture,
    /// The idempotency key is empty. Nothing was sent.
    #[error("idempotency key is empty")]
    EmptyIdempotencyKey,
    /// A header is invalid. Nothing was sent.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The store refused the turn before anything was written. Nothing was done.
    #[error("turn refused by the store")]
    Refused(#[source] StoreError),
    /// The turn ran and its commit failed. The command may or may not have been handled: send it again with the same
    /// id.
    #[error("failed to commit {id}")]
    Unknown {
        /// Id of the command.
        id: MessageId,
        /// The failure of the store.
        source: StoreError,
    },
    /// Queries only: the view's code panicked, or its answer cannot be encoded. A query has no effect.
    #[error("`{name}` of domain `{domain}` was not answered: {reason}")]
    Unanswered {
        /// The domain.
        domain: String,
        /// Name of the query.
        name: String,
        /// The reason given by the view's node.
        reason: String,
    },
    /// The node is shutting down. Nothing was done.
    #[error("node is shutting down")]
    Stopped,
    /// The key's shard is moving to another node of the service, or has moved. Nothing was done: send again with the
    /// same id. The client repeats the command itself where it can; this error reaches a caller whose deadline passed
    /// before the move was complete, or whose command waited in this node when its shard was lost.
    #[error("domain `{domain}` is moving the shard of the key to another node")]
    Moved {
        /// The domain.
        domain: String,
    },
    /// The command was handled, but the reply cannot be decoded: sender and owner use different versions of it.
    #[error("failed to decode reply")]
    Reply(#[source] CodecError),
}

impl SendError {
    /// Returns whether the command may have been handled although there is no reply.
    ///
    /// If the error is also [transient](Self::is_transient), send the command again with the same id or idempotency key
    /// to learn its outcome: it is handled once.
    pub fn may_have_happened(&self) -> bool {
        matches!(
            self,
            Self::NoReply { .. } | Self::Unknown { .. } | Self::DeadLetter { .. } | Self::Reply(_) | Self::Expired
        )
    }

    /// Returns whether sending again with the same id may succeed without intervention. This is the only retry oracle.
    /// The client has retried such an error until the deadline, except [`IdInFuture`](Self::IdInFuture) and
    /// [`Stopped`](Self::Stopped) of its own node.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Busy { .. }
            | Self::NoOwner { .. }
            | Self::Late
            | Self::IdInFuture
            | Self::Unknown { .. }
            | Self::Stopped
            | Self::Moved { .. } => true,
            Self::NoReply { source, .. } => source.as_ref().is_none_or(|last| last.is_transient()),
            Self::Refused(error) => error.is_transient(),
            Self::Bridge { source, .. } => source.is_transient(),
            _ => false,
        }
    }

    /// Returns the rejection, if the domain rejected the command.
    pub fn rejection(&self) -> Option<&Rejection> {
        match self {
            Self::Rejected(rejection) => Some(rejection),
            _ => None,
        }
    }

    /// Returns the rejection as a variant of an enum that derives `Rejection`; `None` if the command was not rejected,
    /// or with a code that is not one of `E`.
    ///
    /// ```
    /// # use whizbang::prelude::*;
    /// # #[derive(Domain)]
    /// # struct Bank;
    /// use whizbang::SendError;
    ///
    /// #[derive(Rejection, Debug, PartialEq)]
    /// #[rejection(domain = Bank)]
    /// enum WithdrawError {
    ///     #[rejection(text = "the account holds {cents} cents")]
    ///     InsufficientFunds { cents: u64 },
    /// }
    ///
    /// let error = SendError::Rejected(WithdrawError::InsufficientFunds { cents: 3 }.into());
    /// match error.rejection_as() {
    ///     Some(WithdrawError::InsufficientFunds { cents }) => assert_eq!(cents, 3),
    ///     None => println!("{error}"),
    /// }
    /// ```
    pub fn rejection_as<E: TypedRejection>(&self) -> Option<E> {
        self.rejection()?.typed()
    }
}

impl SendError {
    /// Creates the error of one attempt without a reply.
    pub(crate) fn no_reply(domain: impl Into<String>, deadline: Duration, id: MessageId) -> Self {
        Self::NoReply { domain: domain.into(), deadline, id, attempts: 1, source: None }
    }

    /// Converts an outcome for the sender: the encoded reply, or the error.
    ///
    /// # Errors
    /// Every outcome except a reply.
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
            Outcome::Moved => Self::Moved { domain: domain.to_owned() },
        })
    }
}
