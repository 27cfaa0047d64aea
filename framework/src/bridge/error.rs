//! What can go wrong with a bridge.

use std::sync::Arc;
use std::time::Duration;

use crate::message::{Name, StoreId};

/// A bridge that could not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BridgeError {
    /// The broker cannot be reached. What stands in an outbox stays there and is sent once it can.
    #[error("{broker} cannot be reached: {reason}")]
    Unreachable {
        /// The broker's address, without credentials.
        broker: String,
        /// What the connection said.
        reason: String,
    },
    /// The broker refuses the credentials or the certificate. Nothing was sent; mend the configuration.
    #[error("{broker} refuses this node: {reason}")]
    Refused {
        /// The broker's address, without credentials.
        broker: String,
        /// What it said.
        reason: String,
    },
    /// Something with the needed name exists and is configured otherwise. Nothing was changed.
    #[error("{what} exists with {setting} = {found}, needed is {wanted}")]
    Mismatch {
        /// The stream or consumer.
        what: String,
        /// The setting that differs.
        setting: String,
        /// Its value there.
        found: String,
        /// The value needed.
        wanted: String,
    },
    /// Another store is claimed to own a domain of this node. Nothing was sent or handled; `remedy` says what to do.
    #[error(transparent)]
    Claimed(Box<RivalClaim>),
    /// No node owns the domain at present. Nothing was handled.
    #[error("nobody owns domain `{domain}` at present")]
    NoOwner {
        /// The domain.
        domain: String,
    },
    /// No answer came in time. The question may or may not have been handled: ask again with the same id.
    #[error("no answer from domain `{domain}` within {deadline:?}")]
    NoResponse {
        /// The domain asked.
        domain: String,
        /// How long was waited.
        deadline: Duration,
    },
    /// The message is larger than the broker takes. It was not sent.
    #[error("the envelope has {bytes} bytes, more than the {limit} the broker takes")]
    Oversize {
        /// How many bytes it has.
        bytes: usize,
        /// How many it may have.
        limit: usize,
    },
    /// As many messages are under way as the bridge holds. It was not sent; try again later.
    #[error("{waiting} messages wait to be sent")]
    Busy {
        /// How many.
        waiting: usize,
    },
    /// What came in is no message of whizbang. It was put aside.
    #[error("not a message: {reason}")]
    Malformed {
        /// What is wrong with it.
        reason: String,
    },
    /// What came in is a message that nobody here can take. It was put aside.
    #[error("not taken: {reason}")]
    Unhandled {
        /// Why nobody can.
        reason: String,
    },
    /// An answer came and cannot be read: who answered runs another version. What was asked may have been done: ask again with
    /// the same id once both understand each other.
    #[error("the answer of domain `{domain}` cannot be read: {reason}")]
    InvalidResponse {
        /// The domain asked.
        domain: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The bridge is not attached, or detached again.
    #[error("the bridge is closed")]
    Closed,
    /// The broker's client library failed.
    #[error("{doing} failed: {source}")]
    Broker {
        /// What the bridge was doing.
        doing: String,
        /// What the library said.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
}

/// The claim of another store on a domain that this node was about to own.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "domain `{domain}` is claimed by service `{service}` with store {store} (start {epoch}), and the store here is {mine}: {remedy}"
)]
#[non_exhaustive]
pub struct RivalClaim {
    /// The domain.
    pub domain: String,
    /// The service that holds the claim.
    pub service: String,
    /// The store that is claimed to own the domain.
    pub store: StoreId,
    /// The number of the start that made the claim.
    pub epoch: u64,
    /// The store of this node.
    pub mine: StoreId,
    /// What the operator does about it.
    pub remedy: &'static str,
}

impl BridgeError {
    /// What is wrong with an answer of `domain`. Not what was wrong with the question: that has been sent.
    pub(crate) fn in_response(self, domain: &Name) -> Self {
        Self::InvalidResponse { domain: domain.to_string(), reason: self.to_string() }
    }

    /// Whether the same call may succeed later without anybody's help.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Busy { .. }
                | Self::NoOwner { .. }
                | Self::NoResponse { .. }
                | Self::Broker { .. }
        )
    }
}
