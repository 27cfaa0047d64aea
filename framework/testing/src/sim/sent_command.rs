//! Commands that a run has sent, as the rules of a flow see them.
//!
//! Recorded by the [step log](super::step_log) and returned by [`World::sent`](super::World::sent).

use std::time::Duration;

/// A command sent by an actor or a client.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SentCommand<C> {
    /// The sending actor; `None` for a client.
    pub from: Option<Sender>,
    /// The command.
    pub command: C,
    /// The moment at which it was sent, in virtual time since the start of the cluster.
    pub at: Duration,
    /// The outcome so far.
    pub outcome: SentOutcome,
}

/// An actor that has sent a command.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sender {
    /// Its domain.
    pub domain: String,
    /// Its name in the domain.
    pub actor: String,
    /// Its key.
    pub key: String,
}

/// The outcome of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SentOutcome {
    /// Undecided, or a dead letter.
    Open,
    /// Accepted and committed.
    Accepted,
    /// Rejected with this code and committed.
    Rejected(String),
}
