//! The errors of bridges.

use std::sync::Arc;
use std::time::Duration;

use crate::message::{Name, StoreId};

/// An error of a bridge.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BridgeError {
    /// The broker is unreachable. Entries of the outbox are kept and sent after the reconnection.
    #[error("failed to reach {broker}: {reason}")]
    Unreachable {
        /// The broker's address, without credentials.
        broker: String,
        /// The reason that the connection reported.
        reason: String,
    },
    /// The broker refused the credentials, the certificate or a request. Nothing was sent. Fix the configuration.
    #[error("{broker} refused this node: {reason}")]
    Refused {
        /// The broker's address, without credentials.
        broker: String,
        /// The reason that the broker reported.
        reason: String,
    },
    /// A stream or consumer of the needed name exists with other settings. Nothing was changed.
    #[error("{what} exists with {setting} = {found}, expected {wanted}")]
    Mismatch {
        /// The stream or consumer.
        what: String,
        /// The setting that differs.
        setting: String,
        /// The existing value.
        found: String,
        /// The needed value.
        wanted: String,
    },
    /// Another store holds the claim on a domain of this node. Nothing was sent or handled. Follow `remedy`.
    #[error(transparent)]
    Claimed(Box<RivalClaim>),
    /// No node owns the domain now. Nothing was handled. Retry later.
    #[error("no node owns domain `{domain}`")]
    NoOwner {
        /// The domain.
        domain: String,
    },
    /// No response arrived in time. The request may or may not have been handled. Retry with the same id.
    #[error("no response from domain `{domain}` within {deadline:?}")]
    NoResponse {
        /// The requested domain.
        domain: String,
        /// The time waited.
        deadline: Duration,
    },
    /// The message is larger than the broker accepts. It was not sent.
    #[error("envelope of {bytes} bytes exceeds the broker's limit of {limit}")]
    Oversize {
        /// The size in bytes.
        bytes: usize,
        /// The maximum size in bytes.
        limit: usize,
    },
    /// The queue of outgoing messages is full. The message was not sent. Retry later.
    #[error("{waiting} messages are waiting to be sent")]
    Busy {
        /// The number of waiting messages.
        waiting: usize,
    },
    /// The received data is not a whizbang message. It was moved to the refused stream.
    #[error("invalid message: {reason}")]
    Malformed {
        /// The defect.
        reason: String,
    },
    /// No handler exists here for the received message. It was moved to the refused stream.
    #[error("unhandled message: {reason}")]
    Unhandled {
        /// The reason for which the message is not handled.
        reason: String,
    },
    /// The response is invalid: the responder runs another version. The request may have been handled. Retry with the same id once
    /// both versions are compatible.
    #[error("invalid response from domain `{domain}`: {reason}")]
    InvalidResponse {
        /// The requested domain.
        domain: String,
        /// The defect.
        reason: String,
    },
    /// The bridge is not attached, or was detached. Nothing was sent.
    #[error("bridge is closed")]
    Closed,
    /// The client library of the broker failed. The message may have been sent.
    #[error("failed to {doing}")]
    Broker {
        /// The failed operation, as a verb phrase.
        doing: String,
        /// The error of the library.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
}

/// The claim of another store on a domain of this node.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "domain `{domain}` is claimed by service `{service}` with store {store} (start {epoch}), but this node's store is {mine}: {remedy}"
)]
#[non_exhaustive]
pub struct RivalClaim {
    /// The domain.
    pub domain: String,
    /// The service that holds the claim.
    pub service: String,
    /// The store that holds the claim.
    pub store: StoreId,
    /// The number of the start that made the claim.
    pub epoch: u64,
    /// The store of this node.
    pub mine: StoreId,
    /// The action that the operator should take.
    pub remedy: &'static str,
}

impl BridgeError {
    /// Returns the error of decoding a response of `domain`. The error of decoding the request is another one: the request was sent.
    pub fn in_response(self, domain: &Name) -> Self {
        Self::InvalidResponse { domain: domain.to_string(), reason: self.to_string() }
    }

    /// Returns true if the same call may succeed later without a change of configuration.
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
