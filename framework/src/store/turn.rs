//! What is written in one turn, and what is read back.

use bytes::Bytes;

use super::StreamHint;
use crate::clock::Timestamp;
use crate::message::{Codec, Envelope, Kind, MessageId, Name, ReplyMode, ShardId};

/// One message through one actor, as it is written: all of it or nothing.
#[derive(Clone, Debug)]
pub struct Turn<'a> {
    /// The actor's type.
    pub actor: &'a Name,
    /// The actor's key.
    pub key: &'a str,
    /// What the writer said of the stream with the turn before, if it is known: it spares a search.
    pub stream: StreamHint,
    /// Which turn of its stream this is, from 1: one more than the last.
    pub number: u64,
    /// The stream's version before it: the count of its events.
    pub version: u64,
    /// When, for people.
    pub time: Timestamp,
    /// The message that was handled.
    pub id: MessageId,
    /// Its correlation id.
    pub correlation: MessageId,
    /// The W3C trace context it was handled in.
    pub traceparent: Option<&'a str>,
    /// The mark that the message was handled.
    pub mark: Mark<'a>,
    /// The encoded `Result<Reply, Rejection>`; empty if the turn has no reply.
    pub reply: &'a [u8],
    /// How the reply is written.
    pub reply_codec: Codec,
    /// The events recorded.
    pub events: &'a [EventWrite<'a>],
    /// The commands and replies sent.
    pub outbox: &'a [OutboxWrite<'a>],
    /// The timers set or cleared.
    pub timers: &'a [TimerWrite<'a>],
    /// What else the actor must remember.
    pub notes: &'a [Note],
}

/// The mark that a message was handled; it stands in the same commit as the message's effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark<'a> {
    /// The turn handled no message that could come again, or did not finish it.
    None,
    /// A message from outside, known by its id.
    Outside {
        /// A hash of the payload, so that the same id with another payload is seen.
        digest: u64,
    },
    /// A message from an actor or a log, known by its place.
    From {
        /// The source.
        source: &'a Source,
        /// Its place there.
        sequence: u64,
        /// Up to where the shard has taken everything from the source, this turn included.
        floor: u64,
    },
    /// A timer that rang.
    Timer {
        /// The timer's name.
        name: &'a str,
    },
}

/// Where messages come from that are known by their place.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source {
    /// The sending shard.
    pub shard: ShardId,
    /// Which of its numbers count.
    pub kind: SourceKind,
}

/// Which numbers of a source count.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SourceKind {
    /// Commands and replies sent to this shard: contiguous sequences.
    Direct,
    /// Its events, as taken by one actor type of this shard: positions, those that concern other keys left out.
    Events {
        /// The actor type that takes them.
        subscriber: Name,
    },
}

/// How far a shard has taken from a source: all up to and including `through`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watermark {
    /// The source.
    pub source: Source,
    /// The last number of which all effects are committed.
    pub through: u64,
}

/// An event as it is written.
#[derive(Clone, Copy, Debug)]
pub struct EventWrite<'a> {
    /// Its name in the shard's domain.
    pub name: &'a str,
    /// Its schema version.
    pub version: u32,
    /// How it is written.
    pub codec: Codec,
    /// Its bytes.
    pub payload: &'a [u8],
}

/// An outbox entry as it is written; the store gives it the next sequence for its destination.
#[derive(Clone, Copy, Debug)]
pub struct OutboxWrite<'a> {
    /// The destination.
    pub to: &'a ShardId,
    /// The message with its ids and headers. Its origin is filled in when it is read.
    pub envelope: &'a Envelope,
}

/// A timer set or cleared. An actor has at most one timer of a name: setting it again replaces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TimerWrite<'a> {
    /// Wakes the actor once `due` has come.
    Set {
        /// The timer's name.
        name: &'a str,
        /// When.
        due: Timestamp,
        /// The schema version of its content.
        version: u32,
        /// How its content is written.
        codec: Codec,
        /// Its content.
        payload: &'a [u8],
    },
    /// Takes it back.
    Clear {
        /// The timer's name.
        name: &'a str,
    },
}

/// A timer that is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timer {
    /// The actor type it wakes.
    pub actor: Name,
    /// The key it wakes.
    pub key: String,
    /// Its name.
    pub name: String,
    /// The turn that set it: a timer set again is another one.
    pub turn: u64,
    /// When it is due.
    pub due: Timestamp,
    /// The schema version of its content.
    pub version: u32,
    /// How its content is written.
    pub codec: Codec,
    /// Its content.
    pub payload: Bytes,
    /// The correlation id of the turn that set it.
    pub correlation: MessageId,
}

/// The place of a timer among those of its actor type in a shard: by the moment it is due, and of two due at once the one set
/// first. The default stands before all. Valid until the shard is opened again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimerCursor {
    /// When it is due.
    pub due: Timestamp,
    /// A number of the setting, from 1, given by the store.
    pub number: u64,
}

/// Some timers of one actor type, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TimerPage {
    /// Those that are due.
    pub due: Vec<(TimerCursor, Timer)>,
    /// When the next one behind them is due; `None` if there is none.
    pub next: Option<Timestamp>,
}

/// What an actor must remember besides events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A delivery failed: `attempt` deliveries of the message have been tried.
    Attempt {
        /// The message.
        message: MessageId,
        /// How many deliveries have failed.
        attempt: u32,
    },
    /// The message could not be handled and is a dead letter now; its key is parked.
    DeadLetter(Box<DeadLetter>),
    /// A dead letter has been handled, or discarded, by this turn.
    Resolved {
        /// The dead letter's message.
        message: MessageId,
    },
    /// The saga has ended; what comes later does nothing.
    Ended,
    /// Bytes that only the actor's own room understands.
    Own(Bytes),
}

/// Why a message is a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeadLetterReason {
    /// Its last delivery failed, too.
    Attempts,
    /// It cannot be read.
    Undecodable,
    /// Nobody here handles it.
    Unhandled,
    /// It waits in order behind a dead letter of its key.
    Behind,
    /// A saga cannot undo what it has done.
    Compensation,
    /// It is no dead letter: it waits for its key, or for its worker, and is delivered without a person.
    Deferred,
    /// Its key cannot be loaded.
    Unloadable,
}

impl DeadLetterReason {
    /// The reason's stable code.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Attempts => "attempts",
            Self::Undecodable => "undecodable",
            Self::Unhandled => "unhandled",
            Self::Behind => "behind",
            Self::Compensation => "compensation",
            Self::Deferred => "deferred",
            Self::Unloadable => "unloadable",
        }
    }

    /// The number that stands for it in the store.
    pub const fn id(self) -> u8 {
        match self {
            Self::Attempts => 1,
            Self::Undecodable => 2,
            Self::Unhandled => 3,
            Self::Behind => 4,
            Self::Compensation => 5,
            Self::Deferred => 6,
            Self::Unloadable => 7,
        }
    }

    /// The reason with that number.
    pub const fn from_id(id: u8) -> Option<Self> {
        match id {
            1 => Some(Self::Attempts),
            2 => Some(Self::Undecodable),
            3 => Some(Self::Unhandled),
            4 => Some(Self::Behind),
            5 => Some(Self::Compensation),
            6 => Some(Self::Deferred),
            7 => Some(Self::Unloadable),
            _ => None,
        }
    }
}

/// A message taken out after its last delivery, or waiting behind one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The actor type that should have taken it.
    pub actor: Name,
    /// The key that is parked.
    pub key: String,
    /// Why.
    pub reason: DeadLetterReason,
    /// The chain of errors, outermost first.
    pub error: String,
    /// How many deliveries were tried.
    pub attempts: u32,
    /// When it was taken out.
    pub time: Timestamp,
    /// The message with its ids, headers and payload.
    pub envelope: Envelope,
}

/// A committed event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its place in the shard's log.
    pub position: u64,
    /// The actor type that recorded it.
    pub actor: Name,
    /// The key of its stream.
    pub key: String,
    /// Its version in the stream, from 1.
    pub stream_version: u64,
    /// Its name in the shard's domain.
    pub name: Name,
    /// Its schema version.
    pub version: u32,
    /// How it is written.
    pub codec: Codec,
    /// Its bytes.
    pub payload: Bytes,
    /// When it was recorded.
    pub time: Timestamp,
    /// The message it came of.
    pub cause: MessageId,
    /// That message's correlation id.
    pub correlation: MessageId,
    /// The trace context it was recorded in.
    pub traceparent: Option<String>,
}

/// An outbox entry that its destination has not yet committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxEntry {
    /// Its number among what this shard has sent to its destination: 1, 2, 3 …
    pub sequence: u64,
    /// The message, with its [origin](crate::message::Origin).
    pub envelope: Envelope,
}

/// A committed turn, as its actor reads it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTurn {
    /// Which turn of its stream it is.
    pub number: u64,
    /// The stream's version before it.
    pub version: u64,
    /// When.
    pub time: Timestamp,
    /// The message that was handled.
    pub id: MessageId,
    /// Its correlation id.
    pub correlation: MessageId,
    /// The source and the place there, if the message came from an actor or a log.
    pub from: Option<(Source, u64)>,
    /// The hash of the payload, if the message came from outside.
    pub digest: Option<u64>,
    /// The name of the timer, if one rang.
    pub timer: Option<String>,
    /// The encoded reply; empty if there is none.
    pub reply: Bytes,
    /// How the reply is written.
    pub reply_codec: Codec,
    /// The events recorded.
    pub events: Vec<StoredEvent>,
    /// The names of the timers set (`true`) or cleared (`false`).
    pub timers: Vec<(String, bool)>,
    /// What was sent.
    pub sent: Vec<SentMessage>,
    /// What else the actor must remember.
    pub notes: Vec<Note>,
}

/// A message that a turn has sent. The whole of it stands in the outbox until its receiver has committed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentMessage {
    /// Its id.
    pub id: MessageId,
    /// A command, or the reply to one.
    pub kind: Kind,
    /// The command's name, also if it is the reply.
    pub name: Name,
    /// Which reply is wanted.
    pub wants: ReplyMode,
}

/// What an actor is rebuilt from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamState {
    /// The newest usable snapshot.
    pub snapshot: Option<Snapshot>,
    /// The turns after it, oldest first.
    pub turns: Vec<StoredTurn>,
}

/// A stored state of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The number of the last turn it contains.
    pub turn: u64,
    /// The stream's version at that turn.
    pub version: u64,
    /// The schema of the bytes; a snapshot of another schema is not used.
    pub schema: u32,
    /// The state.
    pub bytes: Bytes,
}

/// A projection's view with its checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The schema of the bytes; a view of another schema is rebuilt.
    pub schema: u32,
    /// For each source shard, the position up to which the view contains it.
    pub checkpoint: Vec<(ShardId, u64)>,
    /// The view.
    pub bytes: Bytes,
}
