//! The reasons why a turn fails.
//!
//! Returned by the [turn](super::turn). The [retries](super::retry) decide what happens to its message.

use std::time::Duration;

use whizbang_core::message::Rejection;
use whizbang_core::store::StoreError;
use whizbang_core::user_code::Panicked;

/// The reason why a turn failed. Nothing of it is stored, unless it is [`Lost`](Self::Lost).
#[derive(Debug)]
pub(crate) enum TurnError {
    /// User code panicked.
    Panic(String),
    /// The message cannot be decoded.
    Undecodable(String),
    /// The requested effects cannot be encoded.
    Effects(String),
    /// No handler exists.
    Unhandled,
    /// A compensating command was rejected.
    Compensation(String),
    /// A layer has rejected a message that has no reply.
    Refused(Rejection),
    /// A layer has refused the message for this time.
    Busy(Duration),
    /// The process ended during each of this many deliveries.
    Crashed(u32),
    /// The store rejected the append.
    Store(StoreError),
    /// The store panicked during the append: whether the turn is stored is unknown. The shards are reopened.
    Lost(StoreError),
}

impl From<Panicked> for TurnError {
    fn from(panicked: Panicked) -> Self {
        Self::Panic(panicked.text().to_owned())
    }
}
