//! The acknowledgement of a message that a bridge delivered.

/// Acknowledgment of a message received from the bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AckOutcome {
    /// Acknowledge: its effect is committed, or it is a duplicate or a dead letter.
    Ack,
    /// Redeliver later: it was not handled.
    Retry,
    /// No handler exists and no caller is waiting: move it to the refused stream. Holds the reason.
    Reject(String),
}
