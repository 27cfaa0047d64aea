//! Deliveries: one message on its way to one actor, and its outcome.

use std::rc::Rc;

use bytes::Bytes;

use whizbang_core::message::{Codec, Envelope, Kind, MessageId};
use whizbang_core::store::{Source, StoreError};
use whizbang_core::telemetry::passes;

/// Action that an actor performs for a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Handle a command.
    Handle,
    /// Answer a query from the committed state of the key.
    Answer,
    /// React to an event.
    React,
    /// Dead-letter an event whose target key could not be determined. Holds the reason.
    DeadLetter(String),
    /// Handle the reply to a command that it sent.
    Reply,
    /// Fire a timer, if it is still the one set in that turn.
    Timer {
        /// The turn that set the timer.
        turn: u64,
    },
    /// Handle the parked messages of the key again, oldest first.
    Redrive,
    /// Discard a dead letter.
    Discard {
        /// Id of the dead letter's message.
        message: MessageId,
    },
}

impl Action {
    /// Returns the action of a message of which only the envelope is left.
    pub(crate) fn of(envelope: &Envelope) -> Self {
        match envelope.kind {
            Kind::Event => Self::React,
            Kind::Reply => Self::Reply,
            Kind::Document => Self::Timer { turn: 0 },
            Kind::Command | Kind::Query => Self::Handle,
        }
    }
}

/// Identity by which duplicates of a message are detected.
#[derive(Clone)]
pub enum DedupKey {
    /// Its id: the message came from outside.
    MessageId,
    /// Its sequence in a source.
    Sequence {
        /// The source.
        source: Rc<Source>,
        /// The sequence.
        sequence: u64,
        /// Tracks which sequences are appended.
        tracker: Rc<dyn SequenceTracker>,
    },
    /// Checked by the actor itself: a timer, a redrive.
    Internal,
}

impl std::fmt::Debug for DedupKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::MessageId => f.write_str("MessageId"),
            Self::Sequence { source, sequence, .. } => {
                f.debug_struct("Sequence").field("source", source).field("sequence", sequence).finish_non_exhaustive()
            }
            Self::Internal => f.write_str("Internal"),
        }
    }
}

/// Tracks, for one source of one shard, which messages are appended.
pub trait SequenceTracker {
    /// Returns the sequence up to which everything is appended once the message at `sequence` is.
    fn watermark_after(&self, sequence: u64) -> u64;

    /// Records that the message at `sequence` is appended, together with the resulting watermark.
    fn mark_appended(&self, sequence: u64);

    /// Returns whether the message is deferred: recorded in the receiving shard, with its source's watermark beyond it.
    fn is_deferred(&self) -> bool {
        false
    }

    /// Records that the message at `sequence` was appended before. Nothing is written now, so the store does not
    /// learn of a risen watermark.
    fn mark_known(&self, sequence: u64);

    /// Returns whether `sequence` is so close to the first tracked one that it may have been in flight when the node
    /// last ended.
    fn is_near_start(&self, sequence: u64) -> bool {
        let _ = sequence;
        false
    }
}

/// One message on its way to one actor.
pub struct Delivery {
    /// Action of the actor.
    pub action: Action,
    /// The message.
    pub envelope: Envelope,
    /// Identity for deduplication.
    pub dedup_key: DedupKey,
    /// Called with the outcome.
    pub completion: Completion,
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delivery")
            .field("action", &self.action)
            .field("id", &self.envelope.id)
            .field("dedup_key", &self.dedup_key)
            .finish_non_exhaustive()
    }
}

impl Delivery {
    /// Creates a delivery.
    pub fn new(work: Action, envelope: Envelope, arrival: DedupKey, settle: Completion) -> Self {
        passes!("router", envelope.name, envelope.id, envelope.correlation);
        Self { action: work, envelope, dedup_key: arrival, completion: settle }
    }
}

/// Callback, called once with the outcome of a message, after its commit.
pub type Completion = Box<dyn FnOnce(Outcome)>;

/// Outcome of a message.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Its effect is committed, now or by an earlier delivery. Holds its reply, an encoded `Result<Reply, Rejection>`.
    Done(Bytes, Codec),
    /// It is a dead letter, or parked behind one. Holds the reason.
    DeadLetter(String),
    /// A command from outside failed in every attempt, or requested effects that cannot be written; nothing was done.
    /// Holds the reason.
    Failed(String),
    /// A bound on turns in flight is reached; nothing was done.
    Busy,
    /// No handler exists; nothing was done.
    Unhandled,
    /// The id was used with another payload; nothing was done.
    Conflict,
    /// The id is older than ids are kept; nothing was done now.
    Expired,
    /// The time in the id is too far ahead; nothing was done.
    IdInFuture,
    /// The deadline had passed; nothing was done.
    Late,
    /// It cannot be decoded; nothing was done. Holds the reason.
    Undecodable(String),
    /// A query failed: the view's code panicked, or the answer cannot be encoded. Holds the reason.
    Unanswered(String),
    /// The store refused the turn before anything was written; nothing was done.
    Refused(StoreError),
    /// The turn ran and its commit failed: whether it is stored is unknown until the shard is reopened.
    Unknown(StoreError),
    /// The node is shutting down; nothing was done.
    Stopped,
    /// The shard is not open on this node, or is being handed over; nothing was done.
    Moved,
}
