//! Pages of the log of a shard, as streams of events read them through a client.
//!
//! Returned by the [transports](super::Remote) of clients.

use whizbang_core::bridge::BridgeError;
use whizbang_core::message::{Envelope, StoreId};
use whizbang_core::telemetry::error_chain;

/// A part of the log of a shard.
#[derive(Debug)]
pub struct LogPage {
    /// Events, in the order of their positions.
    pub events: Vec<Envelope>,
    /// The position of the last event of the log.
    pub last: u64,
    /// The store that holds the log, if it is known.
    pub store: Option<StoreId>,
}

/// A page that was not read.
#[derive(Debug)]
pub enum ReadError {
    /// Another attempt may succeed. Holds the reason.
    Later(String),
    /// The node or the connection of the client has ended.
    Stopped,
    /// The node does not own the domain and has no bridge.
    NoBridge,
    /// The broker refuses the request.
    Bridge(BridgeError),
}

impl From<BridgeError> for ReadError {
    fn from(error: BridgeError) -> Self {
        match error {
            BridgeError::Closed => Self::Stopped,
            // The owner may run another version during an upgrade.
            BridgeError::InvalidResponse { .. } => Self::Later(error.to_string()),
            error if error.is_transient() => Self::Later(error_chain(&error).to_string()),
            error => Self::Bridge(error),
        }
    }
}

impl std::fmt::Display for ReadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Later(reason) => f.write_str(reason),
            Self::Stopped => f.write_str("the node has ended"),
            Self::NoBridge => f.write_str("the node has no bridge"),
            Self::Bridge(error) => error_chain(error).fmt(f),
        }
    }
}
