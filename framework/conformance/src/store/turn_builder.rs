//! A builder of turns for tests.

use bytes::Bytes;

use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Codec, Envelope, Kind, MessageId, Name, ReplyMode, ShardId};
use whizbang_core::store::{
    DeadLetter, DeadLetterReason, EventWrite, Mark, Note, OutboxWrite, Source, StreamHint, TimerWrite, Turn,
};

/// An owned turn, initially with an actor, a key and an id only.
///
/// ```
/// use whizbang::testing::store::TurnBuilder;
///
/// let turn = TurnBuilder::new("Account", "ada", 1).event("Deposited", "12").reply("ok");
/// assert_eq!(turn.events_count(), 1);
/// turn.write(|turn| assert_eq!(turn.number, 1));
/// ```
#[derive(Clone, Debug)]
pub struct TurnBuilder {
    /// The actor type of the stream.
    pub(super) actor: Name,
    /// The key of the stream.
    pub(super) key: String,
    /// The number of the turn in its stream, from 1.
    pub(super) number: u64,
    /// The version of the stream before the turn.
    pub(super) version: u64,
    /// The id of the handled message, and so the causation of everything that the turn sends.
    pub(super) id: MessageId,
    /// The encoded reply; empty without one.
    pub(super) reply: Vec<u8>,
    /// The headers of the handled message.
    headers: Vec<(String, String)>,
    /// Names and payloads.
    events: Vec<(&'static str, Vec<u8>)>,
    /// Destinations and messages.
    outbox: Vec<(ShardId, Envelope)>,
    /// The changes of timers, in order.
    timers: Vec<TimerDraft>,
    /// The notes that are stored with the turn, such as dead letters.
    notes: Vec<Note>,
    /// The way in which the handled message is marked.
    mark: MarkDraft,
}

/// The owned form of a [`Mark`](whizbang_core::store::Mark).
#[derive(Clone, Debug)]
enum MarkDraft {
    /// The turn finishes no message.
    None,
    /// A message from outside, with the digest of its content.
    Outside(u64),
    /// A message of a source, with its sequence and the watermark.
    From(Source, u64, u64),
    /// A fired timer.
    Timer(&'static str),
}

/// The owned form of a change of a timer.
#[derive(Clone, Debug)]
enum TimerDraft {
    /// Its name and due time in milliseconds.
    Set(&'static str, u64),
    /// The name of a timer that is removed.
    Clear(&'static str),
}

/// Creates a valid name.
pub(super) fn name(text: &str) -> Name {
    Name::new(text).expect("a valid name")
}

/// Returns the id with this number.
pub(super) fn id(number: u64) -> MessageId {
    MessageId::from_u128(u128::from(number) << 32 | 0x5EED)
}

/// Returns a shard of the domain `domain`.
pub(super) fn shard(domain: &str, number: u16) -> ShardId {
    ShardId::new(name(domain), number)
}

/// Creates a command that is identified by `number`.
pub(super) fn command(to: &ShardId, number: u64) -> Envelope {
    Envelope {
        id: id(number),
        kind: Kind::Command,
        name: name("Do"),
        version: 2,
        shape: None,
        domain: to.domain.clone(),
        to: Some(to.clone()),
        key: format!("key-{number}"),
        actor: None,
        origin: None,
        correlation: id(number + 1),
        causation: Some(id(number + 2)),
        time: Timestamp::from_millis(1_700_000_000_000 + number),
        deadline: None,
        wants: ReplyMode::Reply,
        traceparent: Some(format!("00-{number:032x}-{number:016x}-01")),
        headers: vec![("tenant".to_owned(), format!("t{number}"))],
        codec: Codec::Json,
        payload: Bytes::from(number.to_string()),
    }
}

/// Creates a note with the dead letter of the message `number` at one actor.
pub(super) fn dead_letter_note(actor: &str, key: &str, number: u64) -> Note {
    Note::DeadLetter(Box::new(DeadLetter {
        actor: name(actor),
        key: key.to_owned(),
        reason: DeadLetterReason::Attempts,
        error: format!("error {number}: caused by another"),
        attempts: 5,
        time: Timestamp::from_millis(number),
        envelope: command(&shard("bank", 0), number),
    }))
}

impl TurnBuilder {
    /// Creates a turn of `actor` and `key` that handles the message `number`.
    ///
    /// It is turn 1 of its stream, without events, messages or mark, and with an empty reply.
    ///
    /// # Panics
    /// If `actor` is not a valid name.
    pub fn new(actor: &str, key: &str, number: u64) -> Self {
        Self {
            actor: name(actor),
            key: key.to_owned(),
            number: 1,
            version: 0,
            id: id(number),
            reply: Vec::new(),
            headers: Vec::new(),
            events: Vec::new(),
            outbox: Vec::new(),
            timers: Vec::new(),
            notes: Vec::new(),
            mark: MarkDraft::None,
        }
    }

    /// Returns the key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns the number of recorded events.
    pub fn events_count(&self) -> usize {
        self.events.len()
    }

    /// Sets the turn's number in its stream and the stream's version before it.
    ///
    /// Turns are numbered from 1. The version is the number of events before the turn, so the first turn has version 0.
    pub fn at(mut self, number: u64, version: u64) -> Self {
        (self.number, self.version) = (number, version);
        self
    }

    /// Records an event.
    ///
    /// Its schema version is 3 and its codec JSON, to notice a store that does not keep them.
    pub fn event(mut self, name: &'static str, payload: impl Into<Vec<u8>>) -> Self {
        self.events.push((name, payload.into()));
        self
    }

    /// Adds a header of the turn.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the encoded reply.
    pub fn reply(mut self, reply: impl Into<Vec<u8>>) -> Self {
        self.reply = reply.into();
        self
    }

    /// Sends the command `number`.
    ///
    /// The content of the command follows from `number` and the shard, so that a test can compare it.
    pub fn send(mut self, to: &ShardId, number: u64) -> Self {
        self.outbox.push((to.clone(), command(to, number)));
        self
    }

    /// Sends an envelope.
    pub fn send_envelope(mut self, to: &ShardId, envelope: Envelope) -> Self {
        self.outbox.push((to.clone(), envelope));
        self
    }

    /// Sets a timer that is due at `due`, in milliseconds since 1970.
    pub fn set(mut self, name: &'static str, due: u64) -> Self {
        self.timers.push(TimerDraft::Set(name, due));
        self
    }

    /// Clears a timer.
    pub fn clear(mut self, name: &'static str) -> Self {
        self.timers.push(TimerDraft::Clear(name));
        self
    }

    /// Adds a note.
    pub fn note(mut self, note: Note) -> Self {
        self.notes.push(note);
        self
    }

    /// Makes the message `number` a dead letter of the actor.
    ///
    /// Its reason is a number of failed attempts, 5, and its error is a text that contains `number`.
    pub fn dead(self, number: u64) -> Self {
        let letter = dead_letter_note(self.actor.as_str(), &self.key, number);
        self.note(letter)
    }

    /// Marks the turn as the handling of a message from outside.
    ///
    /// The store must find such a turn by the id of its message. The digest distinguishes another command with the same
    /// id.
    pub fn outside(mut self, digest: u64) -> Self {
        self.mark = MarkDraft::Outside(digest);
        self
    }

    /// Marks the turn as the handling of a message from a source.
    ///
    /// `sequence` is the number of the message at its source. All messages up to `floor` are handled: it becomes the
    /// watermark of the source.
    pub fn from(mut self, source: &Source, sequence: u64, floor: u64) -> Self {
        self.mark = MarkDraft::From(source.clone(), sequence, floor);
        self
    }

    /// Marks the turn as the handling of a fired timer.
    ///
    /// The store removes the timer, unless the turn sets it again.
    pub fn rang(mut self, name: &'static str) -> Self {
        self.mark = MarkDraft::Timer(name);
        self
    }

    /// Passes the turn to `write`.
    ///
    /// May be called several times; each call passes the same turn.
    pub fn write<T>(&self, write: impl FnOnce(&Turn<'_>) -> T) -> T {
        let events: Vec<_> = self.events.iter().map(|(name, payload)| event(name, payload)).collect();
        let outbox: Vec<_> = self.outbox.iter().map(|(to, envelope)| OutboxWrite { to, envelope }).collect();
        let timers: Vec<_> = self.timers.iter().map(TimerDraft::write).collect();
        let trace = format!("00-{:032x}-0000000000000001-01", self.id.as_u128());
        write(&Turn {
            actor: &self.actor,
            key: &self.key,
            stream: StreamHint::default(),
            number: self.number,
            version: self.version,
            time: Timestamp::from_millis(1_700_000_000_000u64.wrapping_add(self.number)),
            id: self.id,
            correlation: id(99),
            traceparent: Some(&trace),
            headers: &self.headers,
            mark: match &self.mark {
                MarkDraft::None => Mark::None,
                MarkDraft::Outside(digest) => Mark::Outside { digest: *digest },
                MarkDraft::From(source, sequence, floor) => Mark::From { source, sequence: *sequence, floor: *floor },
                MarkDraft::Timer(name) => Mark::Timer { name },
            },
            reply: &self.reply,
            reply_codec: Codec::Json,
            events: &events,
            outbox: &outbox,
            timers: &timers,
            notes: &self.notes,
        })
    }
}

/// Returns an event as the trait has it.
fn event<'a>(name: &'a str, payload: &'a [u8]) -> EventWrite<'a> {
    EventWrite { name, version: 3, codec: Codec::Json, payload }
}

impl TimerDraft {
    /// Returns the borrowed form that a store takes.
    fn write(&self) -> TimerWrite<'_> {
        match self {
            Self::Set(name, due) => TimerWrite::Set {
                name,
                due: Timestamp::from_millis(*due),
                version: 4,
                codec: Codec::Json,
                payload: b"\"wake\"",
            },
            Self::Clear(name) => TimerWrite::Clear { name },
        }
    }
}
