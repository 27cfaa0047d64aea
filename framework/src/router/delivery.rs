//! One message on its way to one actor, and what has become of it.

use std::rc::Rc;

use bytes::Bytes;

use crate::message::{Codec, Envelope, MessageId};
use crate::store::{Source, StoreError};
use crate::telemetry::passes;

/// What an actor is to do with a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Handle a command.
    Handle,
    /// React to an event.
    React,
    /// Make a dead letter of an event of which nobody knows whose it is: the text says why.
    DeadLetter(String),
    /// Take the reply to a command it sent.
    Reply,
    /// Wake by a timer, if it is still the one set in that turn.
    Timer {
        /// The turn that set the timer.
        turn: u64,
    },
    /// Handle its parked messages again, oldest first.
    Redrive,
    /// Throw a dead letter away.
    Discard {
        /// The dead letter's message.
        message: MessageId,
    },
}

/// By what a repeated message is known.
#[derive(Clone)]
pub enum DedupKey {
    /// By its id: it came from outside.
    MessageId,
    /// By its place in a source.
    Sequence {
        /// The source.
        source: Rc<Source>,
        /// The place.
        sequence: u64,
        /// Who counts what has been taken.
        tracker: Rc<dyn SequenceTracker>,
    },
    /// By the actor itself: a timer, a redrive.
    Internal,
}

/// Counts, for one source of one shard, what has been appended.
pub trait SequenceTracker {
    /// Up to where is everything from the source appended, once the message at `sequence` is?
    fn watermark_after(&self, sequence: u64) -> u64;

    /// The message at `sequence` is appended, with the floor that this gives.
    fn mark_appended(&self, sequence: u64);

    /// Whether the message is written down in the receiving shard: it waits there, and its source's floor has passed it.
    fn is_deferred(&self) -> bool {
        false
    }

    /// The message at `sequence` was appended before: nothing is written for it now, so the store does not know of a floor that rises.
    fn mark_known(&self, sequence: u64);

    /// Whether `sequence` is so near to the first one counted here that it may have been under way when the node ended last.
    fn is_near_start(&self, sequence: u64) -> bool {
        let _ = sequence;
        false
    }
}

/// One message on its way to one actor.
pub struct Delivery {
    /// What the actor is to do.
    pub action: Action,
    /// The message.
    pub envelope: Envelope,
    /// By what it is known.
    pub dedup_key: DedupKey,
    /// Whom to tell once it is settled.
    pub completion: Completion,
}

impl Delivery {
    /// One message on its way to one actor.
    pub fn new(work: Action, envelope: Envelope, arrival: DedupKey, settle: Completion) -> Self {
        passes!("router", envelope.name, envelope.id, envelope.correlation);
        Self { action: work, envelope, dedup_key: arrival, completion: settle }
    }
}

/// Called once with what has become of a message, after the commit.
pub type Completion = Box<dyn FnOnce(Outcome)>;

/// What has become of a message.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Its effect is committed, now or by an earlier delivery; here is its reply, `Result<Reply, Rejection>` encoded.
    Done(Bytes, Codec),
    /// It is a dead letter, or parked behind one.
    DeadLetter(String),
    /// A command from outside that failed in every attempt, or asked for what cannot be written; nothing was done. The text says
    /// why.
    Failed(String),
    /// The actor takes no more at present; nothing was done.
    Busy,
    /// Nobody handles such a message; nothing was done.
    Unhandled,
    /// The same id came with another payload; nothing was done.
    Conflict,
    /// The id is older than the time for which ids are kept; nothing was done now.
    Expired,
    /// The time in the id is too far ahead; nothing was done.
    IdInFuture,
    /// The deadline had passed; nothing was done.
    Late,
    /// It cannot be read; nothing was done.
    Undecodable(String),
    /// A query whose answer failed: the view's code panicked, or the answer cannot be written.
    Unanswered(String),
    /// The store refused it before anything was written.
    Refused(StoreError),
    /// The turn ran and its commit failed: whether it is stored is unknown until the shard is opened again.
    Unknown(StoreError),
    /// The node stops; nothing was done.
    Stopped,
}

/// What a courier is told of a message that it brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AckOutcome {
    /// Its effect is committed, or it is a duplicate, or it is a dead letter: forget it.
    Ack,
    /// It was not taken: bring it again after a while.
    Retry,
    /// Nobody here can ever take it, for this reason, and nobody waits to hear so: put it aside where a person finds it.
    Reject(String),
}
