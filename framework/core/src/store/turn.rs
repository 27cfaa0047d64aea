//! The types that are written in one turn and read back.
//!
//! Types named `…Write`, and [`Turn`] itself, borrow from the actor that writes them. [`StoredTurn`], [`StoredEvent`], [`OutboxEntry`]
//! and [`Timer`] are owned and contain the numbers that the store has assigned.

use bytes::Bytes;

use super::StreamHint;
use crate::clock::Timestamp;
use crate::message::{Codec, Envelope, Kind, MessageId, Name, ReplyMode, ShardId};

/// The largest size of one turn in a store: 2 MiB. Events, outbox entries, timers, notes and reply count together.
pub const MAX_TURN_BYTES: usize = 2 * 1024 * 1024;

/// The effects of handling one message in one actor, written atomically.
#[derive(Clone, Debug)]
pub struct Turn<'a> {
    /// The actor's type.
    pub actor: &'a Name,
    /// The actor's key.
    pub key: &'a str,
    /// The hint returned by the append of the stream's previous turn; the default if there is none. It saves a lookup.
    pub stream: StreamHint,
    /// The number of this turn in its stream, from 1.
    pub number: u64,
    /// The stream's version before this turn: the number of its events.
    pub version: u64,
    /// The time of the turn. Informational.
    pub time: Timestamp,
    /// The id of the handled message.
    pub id: MessageId,
    /// Its correlation id.
    pub correlation: MessageId,
    /// The W3C trace context of the turn.
    pub traceparent: Option<&'a str>,
    /// The headers of the events recorded, the same for all of them.
    pub headers: &'a [(String, String)],
    /// The mark that the message was handled.
    pub mark: Mark<'a>,
    /// The encoded `Result<Reply, Rejection>`; empty if the turn has no reply.
    pub reply: &'a [u8],
    /// The codec of the reply.
    pub reply_codec: Codec,
    /// The events recorded.
    pub events: &'a [EventWrite<'a>],
    /// The commands and replies sent.
    pub outbox: &'a [OutboxWrite<'a>],
    /// The timers set or cleared.
    pub timers: &'a [TimerWrite<'a>],
    /// Other state that the actor must remember.
    pub notes: &'a [Note],
}

/// The mark that a message was handled. It is in the same commit as the effects of the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark<'a> {
    /// The turn handled no message that could be delivered again, or did not finish it.
    None,
    /// A message from outside, identified by its id.
    Outside {
        /// A hash of the payload, to detect the same id with another payload.
        digest: u64,
    },
    /// A message from an actor or a log, identified by its number at the source.
    From {
        /// The source.
        source: &'a Source,
        /// The message's sequence or position at the source.
        sequence: u64,
        /// The number up to which the shard has handled everything from the source, including this turn.
        floor: u64,
    },
    /// A timer that fired.
    Timer {
        /// The timer's name.
        name: &'a str,
    },
}

/// A source whose messages are identified by their number.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source {
    /// The sending shard.
    pub shard: ShardId,
    /// The kind of numbers that identify its messages.
    pub kind: SourceKind,
}

/// The kind of numbers that identify the messages of a source.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SourceKind {
    /// Commands and replies sent to this shard, with contiguous sequences.
    Direct,
    /// The source's events as handled by one actor type of this shard, with positions. Events of other keys are
    /// skipped.
    Events {
        /// The subscribed actor type.
        subscriber: Name,
    },
}

/// The progress of a shard in a source: everything up to and including `through` is handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watermark {
    /// The source.
    pub source: Source,
    /// The last number whose effects, and those of all before it, are committed.
    pub through: u64,
}

/// An event to be written.
#[derive(Clone, Copy, Debug)]
pub struct EventWrite<'a> {
    /// The event's name in the shard's domain.
    pub name: &'a str,
    /// Its schema version.
    pub version: u32,
    /// The codec of the payload.
    pub codec: Codec,
    /// The encoded event.
    pub payload: &'a [u8],
}

/// An outbox entry to be written. The store assigns the next sequence for its destination.
#[derive(Clone, Copy, Debug)]
pub struct OutboxWrite<'a> {
    /// The destination.
    pub to: &'a ShardId,
    /// The message with its ids and headers. Its origin is added when it is read; of an origin that is given only the
    /// key is kept, if it differs from the key of the turn.
    pub envelope: &'a Envelope,
}

/// A timer to be set or cleared. An actor has at most one timer with a name: setting it again replaces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TimerWrite<'a> {
    /// Fires the timer at `due`.
    Set {
        /// The timer's name.
        name: &'a str,
        /// The time at which the timer is due.
        due: Timestamp,
        /// The schema version of the content.
        version: u32,
        /// The codec of the content.
        codec: Codec,
        /// The encoded content.
        payload: &'a [u8],
    },
    /// Clears the timer.
    Clear {
        /// The timer's name.
        name: &'a str,
    },
}

/// A timer that is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timer {
    /// The actor type.
    pub actor: Name,
    /// The actor's key.
    pub key: String,
    /// The timer's name.
    pub name: String,
    /// The turn that set it. A timer that is set again has another turn.
    pub turn: u64,
    /// The time at which it is due.
    pub due: Timestamp,
    /// The schema version of the content.
    pub version: u32,
    /// The codec of the content.
    pub codec: Codec,
    /// The encoded content.
    pub payload: Bytes,
    /// The correlation id of the turn that set it.
    pub correlation: MessageId,
}

/// The order of a timer among those of its actor type in a shard: by due time, then by the order in which they were
/// set. The default is before all timers. Valid until the shard is reopened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimerCursor {
    /// The time at which the timer is due.
    pub due: Timestamp,
    /// The number of the setting, from 1, assigned by the store.
    pub number: u64,
}

/// A page of timers of one actor type, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TimerPage {
    /// The timers that are due.
    pub due: Vec<(TimerCursor, Timer)>,
    /// The time at which the next timer is due; `None` if there is none.
    pub next: Option<Timestamp>,
}

/// State that an actor must remember besides its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A delivery failed: `attempt` deliveries of the message have been tried.
    Attempt {
        /// The message.
        message: MessageId,
        /// The number of failed deliveries.
        attempt: u32,
    },
    /// The message could not be handled and is now a dead letter; its key is parked.
    DeadLetter(Box<DeadLetter>),
    /// A dead letter was handled or discarded by this turn.
    Resolved {
        /// The dead letter's message.
        message: MessageId,
    },
    /// The saga has ended; later messages have no effect.
    Ended,
    /// Bytes that only the actor's own module interprets.
    Own(Bytes),
}

/// The reason for which a message is stored as a dead letter.
///
/// Messages that only wait ([`Deferred`](Self::Deferred), [`Waiting`](Self::Waiting)) are stored in the same form, and are not counted as
/// dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeadLetterReason {
    /// Its last delivery failed.
    Attempts,
    /// It cannot be decoded.
    Undecodable,
    /// No handler exists for it.
    Unhandled,
    /// It waits behind a dead letter of its key, to keep the order.
    Behind,
    /// A saga cannot compensate its effects.
    Compensation,
    /// A message that is not a dead letter: it waits for its key or its worker and is delivered without an operator.
    Deferred,
    /// The stream of its key cannot be loaded.
    Unloadable,
    /// Not a dead letter: the message waits behind deferred ones of its key, and is not listed. Its actor finds it in the
    /// stream.
    Waiting,
}

impl DeadLetterReason {
    /// Returns the stable code of the reason.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Attempts => "attempts",
            Self::Undecodable => "undecodable",
            Self::Unhandled => "unhandled",
            Self::Behind => "behind",
            Self::Compensation => "compensation",
            Self::Deferred => "deferred",
            Self::Unloadable => "unloadable",
            Self::Waiting => "waiting",
        }
    }

    /// Returns the number of the reason in the store.
    pub const fn id(self) -> u8 {
        match self {
            Self::Attempts => 1,
            Self::Undecodable => 2,
            Self::Unhandled => 3,
            Self::Behind => 4,
            Self::Compensation => 5,
            Self::Deferred => 6,
            Self::Unloadable => 7,
            Self::Waiting => 8,
        }
    }

    /// Returns the reason with that number.
    pub const fn from_id(id: u8) -> Option<Self> {
        match id {
            1 => Some(Self::Attempts),
            2 => Some(Self::Undecodable),
            3 => Some(Self::Unhandled),
            4 => Some(Self::Behind),
            5 => Some(Self::Compensation),
            6 => Some(Self::Deferred),
            7 => Some(Self::Unloadable),
            8 => Some(Self::Waiting),
            _ => None,
        }
    }
}

/// A message that failed in its last delivery, or that waits behind such a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The actor type of the handler.
    pub actor: Name,
    /// The parked key.
    pub key: String,
    /// The reason.
    pub reason: DeadLetterReason,
    /// The chain of errors, outermost first.
    pub error: String,
    /// The number of deliveries that were tried.
    pub attempts: u32,
    /// The time at which it became a dead letter.
    pub time: Timestamp,
    /// The message with its ids, headers and payload.
    pub envelope: Envelope,
}

/// A committed event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its position in the shard's log.
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
    /// The codec of the payload.
    pub codec: Codec,
    /// The encoded event.
    pub payload: Bytes,
    /// The time at which it was recorded.
    pub time: Timestamp,
    /// The id of the message that caused it.
    pub cause: MessageId,
    /// The correlation id of that message.
    pub correlation: MessageId,
    /// The trace context of the turn that recorded it.
    pub traceparent: Option<String>,
    /// The headers of the turn that recorded it.
    pub headers: Vec<(String, String)>,
}

/// An outbox entry that its destination has not yet committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxEntry {
    /// Its sequence among the messages of this shard to its destination: 1, 2, 3 …
    pub sequence: u64,
    /// The message, with its [origin](crate::message::Origin).
    pub envelope: Envelope,
}

/// A committed turn, as read by its actor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTurn {
    /// The number of the turn in its stream.
    pub number: u64,
    /// The stream's version before it.
    pub version: u64,
    /// The time of the turn.
    pub time: Timestamp,
    /// The id of the handled message.
    pub id: MessageId,
    /// Its correlation id.
    pub correlation: MessageId,
    /// The source and the message's number there, if the message came from an actor or a log.
    pub from: Option<(Source, u64)>,
    /// The hash of the payload, if the message came from outside.
    pub digest: Option<u64>,
    /// The name of the timer that fired, if any.
    pub timer: Option<String>,
    /// The encoded reply; empty if there is none.
    pub reply: Bytes,
    /// The codec of the reply.
    pub reply_codec: Codec,
    /// The events recorded.
    pub events: Vec<StoredEvent>,
    /// The names of the timers set (`true`) or cleared (`false`).
    pub timers: Vec<(String, bool)>,
    /// The messages that were sent.
    pub sent: Vec<SentMessage>,
    /// Other state that the actor must remember.
    pub notes: Vec<Note>,
}

/// A message that a turn has sent. The outbox holds the whole message until its receiver has committed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentMessage {
    /// The message id.
    pub id: MessageId,
    /// Command or reply.
    pub kind: Kind,
    /// The name of the command; also for a reply.
    pub name: Name,
    /// The requested reply.
    pub wants: ReplyMode,
}

/// The state from which an actor is rebuilt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamState {
    /// The newest usable snapshot.
    pub snapshot: Option<Snapshot>,
    /// The turns after it, oldest first.
    pub turns: Vec<StoredTurn>,
}

/// The stored state of a stream at one turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The number of the last turn it includes.
    pub turn: u64,
    /// The stream's version at that turn.
    pub version: u64,
    /// The schema of the bytes; a snapshot with another schema is not used.
    pub schema: u32,
    /// The encoded state.
    pub bytes: Bytes,
}

/// A projection's view with its checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The schema of the bytes; a view with another schema is rebuilt.
    pub schema: u32,
    /// The position up to which the view includes each source shard.
    pub checkpoint: Vec<(ShardId, u64)>,
    /// The encoded view.
    pub bytes: Bytes,
}
