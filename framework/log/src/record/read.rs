//! Reads records without copying. A returned record has been validated completely: every length, text and number.

use super::decode::Decoder;
use super::envelope;
use super::layout::{
    CORRELATION, EVENTS, MARK_FROM, MARK_NONE, MARK_OUTSIDE, MARK_TIMER, NOTE_ATTEMPT, NOTE_DEAD_LETTER, NOTE_ENDED,
    NOTE_HEADERS, NOTE_OWN, NOTE_RESOLVED, NOTES, OUTBOX, REPLY, TIME_OF_ID, TIMER_CLEAR, TIMER_SET, TIMERS,
    TRACEPARENT,
};
use super::{FORMAT, KIND_ADVANCE, KIND_OPENED, KIND_SENT, KIND_TURN, Location, Malformed};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Codec, MessageId};
use whizbang_core::store::{DeadLetterReason, Epoch, TimerWrite};

/// The content of a record.
#[derive(Clone, Debug)]
#[allow(dead_code, reason = "only a log on disk holds openings")]
#[allow(clippy::large_enum_variant, reason = "nearly every record is a turn, and it is never kept")]
pub enum Record<'a> {
    /// One message through one actor.
    Turn(TurnRecord<'a>),
    /// The watermark of a source.
    Advance {
        /// The source.
        source: SourceRecord<'a>,
        /// The watermark.
        through: u64,
    },
    /// The progress of a destination.
    Sent {
        /// The destination's domain.
        domain: &'a str,
        /// The destination's number in it.
        shard: u16,
        /// The sequence up to which the destination has committed.
        through: u64,
    },
    /// A new owner opened a shard.
    Opened {
        /// The shard's domain.
        domain: &'a str,
        /// The shard's number in it.
        shard: u16,
        /// The domain's number of shards.
        shards: u16,
    },
}

/// A source of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceRecord<'a> {
    /// The domain of the source.
    pub(crate) domain: &'a str,
    /// The number of its shard.
    pub(crate) shard: u16,
    /// Empty for [`SourceKind::Direct`](whizbang_core::store::SourceKind::Direct).
    pub(crate) subscriber: &'a str,
}

/// A turn in the log.
#[derive(Clone, Debug)]
pub struct TurnRecord<'a> {
    /// The actor type of the stream.
    pub(crate) actor: &'a str,
    /// The key of the stream.
    pub(crate) key: &'a str,
    /// The number of the turn in its stream, from 1.
    pub(crate) number: u64,
    /// The number of events of the stream before this turn.
    pub(crate) version: u64,
    /// The time of the turn, by the clock of its node.
    pub(crate) time: Timestamp,
    /// The id of the handled message.
    pub(crate) id: MessageId,
    /// The id of the message that began the conversation.
    pub(crate) correlation: MessageId,
    /// The trace context of the handled message.
    pub(crate) traceparent: Option<&'a str>,
    /// The mark that makes a repetition of the message a duplicate.
    pub(crate) mark: MarkRecord<'a>,
    /// The codec of the reply.
    pub(crate) reply_codec: Codec,
    /// The reply or rejection; empty if there is none.
    pub(crate) reply: &'a [u8],
    /// The location of the stream's previous turn; 0 if this is the first.
    pub(crate) stream: Location,
    /// The position of the shard's last event before this turn.
    pub(crate) position: u64,
    /// The location of the shard's record with that event; 0 if there is none, or if this turn has no events.
    pub(crate) events_before: Location,
    /// The events in the order of their positions.
    events: Items<'a>,
    /// The messages that the turn sent.
    outbox: Items<'a>,
    /// The timers that the turn set or cleared.
    timers: Items<'a>,
    /// The notes, of which the first may be the headers.
    notes: Items<'a>,
    /// The location of this record, which links are relative to.
    location: Location,
}

/// The mark that a message was handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkRecord<'a> {
    /// No mark: the turn handled no message that could be repeated.
    None,
    /// A message from outside, found by its id. The digest detects the same id with another payload.
    Outside { digest: u64 },
    /// A message with a sequence, or an event with a position. Everything of the source up to `floor` was handled before.
    From { source: SourceRecord<'a>, sequence: u64, floor: u64 },
    /// A timer with this stored name.
    Timer { name: &'a str },
}

/// An event in a turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EventRecord<'a> {
    /// The name of the event.
    pub(crate) name: &'a str,
    /// The version of its schema.
    pub(crate) version: u32,
    /// The codec of its payload.
    pub(crate) codec: Codec,
    /// The payload. Empty in a store that keeps payloads elsewhere.
    pub(crate) payload: &'a [u8],
}

/// An outbox entry in a turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutboxRecord<'a> {
    /// The domain of the destination.
    pub(crate) domain: &'a str,
    /// The number of the destination's shard.
    pub(crate) shard: u16,
    /// The sequence for this destination.
    pub(crate) sequence: u64,
    /// The location of the record with the previous entry for the destination; 0 if it is this record, or if there is
    /// none.
    pub(crate) before: Location,
    /// The encoded envelope, without the fields that the record has.
    pub(crate) envelope: &'a [u8],
}

/// A note in a turn.
#[derive(Clone, Copy, Debug)]
pub enum NoteRecord<'a> {
    /// The number of an attempt of a message, recorded before or after it.
    Attempt { message: MessageId, attempt: u32 },
    /// A message that was given up.
    DeadLetter(DeadLetterRecord<'a>),
    /// A dead letter that was redriven or discarded.
    Resolved { message: MessageId },
    /// The end of a saga. Its state is kept no longer.
    Ended,
    /// A note of the framework's actor code.
    Own(&'a [u8]),
    /// The headers of the turn.
    Headers(HeaderRecords<'a>),
}

/// The headers of a turn.
#[derive(Clone, Copy, Debug)]
pub struct HeaderRecords<'a>(Items<'a>);

impl<'a> HeaderRecords<'a> {
    /// Returns the headers, each with name and value.
    pub(crate) fn iter(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.iter(decode_header)
    }
}

/// A dead letter in a turn.
#[derive(Clone, Copy, Debug)]
pub struct DeadLetterRecord<'a> {
    /// The id of the message.
    pub(crate) id: MessageId,
    /// The actor type that failed.
    pub(crate) actor: &'a str,
    /// The key that is parked.
    pub(crate) key: &'a str,
    /// The kind of failure.
    pub(crate) reason: DeadLetterReason,
    /// The error of the last attempt, shortened.
    pub(crate) error: &'a str,
    /// The number of attempts.
    pub(crate) attempts: u32,
    /// The time at which it was given up.
    pub(crate) time: Timestamp,
    /// The encoded message, complete so that it can be redriven.
    pub(crate) envelope: &'a [u8],
}

/// Items that were parsed once for validation, so that parsing them again cannot fail.
#[derive(Clone, Copy, Debug)]
struct Items<'a> {
    /// The number of items.
    count: usize,
    /// Their bytes, validated.
    bytes: Decoder<'a>,
}

impl<'a> Items<'a> {
    /// No items.
    const NONE: Self = Self { count: 0, bytes: Decoder(&[]) };

    /// Reads a count and as many items with `one`, and keeps only their bytes.
    fn parse<T>(
        decoder: &mut Decoder<'a>,
        one: impl Fn(&mut Decoder<'a>) -> Result<T, Malformed>,
    ) -> Result<Self, Malformed> {
        let count = decoder.count()?;
        let before = *decoder;
        for _ in 0..count {
            one(decoder)?;
        }
        Ok(Self { count, bytes: Decoder(decoder.since(before)) })
    }

    /// Parses the items again, one at a time, without allocating.
    fn iter<T>(self, one: impl Fn(&mut Decoder<'a>) -> Result<T, Malformed>) -> impl Iterator<Item = T> {
        let mut bytes = self.bytes;
        // Cannot fail: the same bytes were parsed by the same function before.
        (0..self.count).map_while(move |_| one(&mut bytes).ok())
    }
}

impl<'a> TurnRecord<'a> {
    /// Returns the number of events, without parsing them.
    pub(crate) fn events_count(&self) -> usize {
        self.events.count
    }

    /// Returns the events in the order of their positions.
    pub(crate) fn events(&self) -> impl Iterator<Item = EventRecord<'a>> + use<'a> {
        self.events.iter(decode_event)
    }

    /// Returns the number of sent messages, without parsing them.
    pub(crate) fn outbox_count(&self) -> usize {
        self.outbox.count
    }

    /// Returns the sent messages in the order of the turn.
    pub(crate) fn outbox(&self) -> impl Iterator<Item = OutboxRecord<'a>> + use<'a> {
        let location = self.location;
        self.outbox.iter(move |decoder| decode_outbox(decoder, location))
    }

    /// Returns the changes of timers in the order of the turn.
    pub(crate) fn timers(&self) -> impl Iterator<Item = TimerWrite<'a>> + use<'a> {
        self.timers.iter(decode_timer)
    }

    /// Returns the notes in the order of the turn, the headers first.
    pub(crate) fn notes(&self) -> impl Iterator<Item = NoteRecord<'a>> + use<'a> {
        self.notes.iter(decode_note)
    }

    /// Returns the headers of the turn's events.
    pub(crate) fn headers(&self) -> Vec<(String, String)> {
        // They are the first note.
        match self.notes().next() {
            Some(NoteRecord::Headers(headers)) => {
                headers.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
            }
            _ => Vec::new(),
        }
    }
}

impl<'a> Record<'a> {
    /// Reads a record from all of `bytes`, which were stored at `location`. Returns the shard's number in the log, the
    /// epoch and the content.
    ///
    /// # Errors
    /// The reason why the bytes are not a record of a known format. Nothing of a damaged record is used.
    pub fn read(bytes: &'a [u8], location: Location) -> Result<(u32, Epoch, Self), Malformed> {
        let decoder = &mut Decoder(bytes);
        if decoder.byte()? != FORMAT {
            return Err(Malformed("unknown record format"));
        }
        let kind = decoder.byte()?;
        let tag = decoder.small()?;
        let epoch = decoder.number()?;
        let record = match kind {
            KIND_TURN => Self::Turn(decode_turn(decoder, location)?),
            KIND_ADVANCE => Self::Advance { source: decode_source(decoder)?, through: decoder.number()? },
            KIND_SENT => Self::Sent { domain: decoder.text()?, shard: decoder.shard()?, through: decoder.number()? },
            KIND_OPENED => Self::Opened { domain: decoder.text()?, shard: decoder.shard()?, shards: decoder.shard()? },
            _ => return Err(Malformed("unknown kind of record")),
        };
        if decoder.is_empty() { Ok((tag, epoch, record)) } else { Err(Malformed("trailing bytes after a record")) }
    }
}

/// Reads the content of a turn behind the common head. `location` is that of its record.
fn decode_turn<'a>(decoder: &mut Decoder<'a>, location: Location) -> Result<TurnRecord<'a>, Malformed> {
    let flags = decoder.byte()?;
    let has = |flag: u8| flags & flag != 0;
    let stream = decoder.link(location)?;
    let actor = decoder.text()?;
    let key = decoder.text()?;
    let number = decoder.number()?;
    let version = decoder.number()?;
    let time = if has(TIME_OF_ID) { None } else { Some(Timestamp::from_millis(decoder.number()?)) };
    let position = decoder.number()?;
    let id = decoder.id()?;
    let time = time.or_else(|| id.time()).ok_or(Malformed("its time is missing: its id contains none"))?;
    let correlation = if has(CORRELATION) { decoder.id()? } else { id };
    let traceparent = if has(TRACEPARENT) { Some(decoder.text()?) } else { None };
    let mark = match decoder.byte()? {
        MARK_NONE => MarkRecord::None,
        MARK_OUTSIDE => MarkRecord::Outside { digest: u64::from_le_bytes(decoder.array()?) },
        MARK_FROM => {
            MarkRecord::From { source: decode_source(decoder)?, sequence: decoder.number()?, floor: decoder.number()? }
        }
        MARK_TIMER => MarkRecord::Timer { name: decoder.text()? },
        _ => return Err(Malformed("unknown kind of mark")),
    };
    let (reply_codec, reply) =
        if has(REPLY) { (decoder.codec()?, decoder.bytes()?) } else { (Codec::Bincode, &[][..]) };
    let (events_before, events) =
        if has(EVENTS) { (decoder.link(location)?, Items::parse(decoder, decode_event)?) } else { (0, Items::NONE) };
    let last = (events.count as u64).checked_add(position).and_then(|last| last.checked_add(version));
    if last.is_none() {
        return Err(Malformed("a position is too large"));
    }
    let outbox =
        if has(OUTBOX) { Items::parse(decoder, |decoder| decode_outbox(decoder, location))? } else { Items::NONE };
    let timers = if has(TIMERS) { Items::parse(decoder, decode_timer)? } else { Items::NONE };
    let notes = if has(NOTES) { Items::parse(decoder, decode_note)? } else { Items::NONE };
    Ok(TurnRecord {
        actor,
        key,
        number,
        version,
        time,
        id,
        correlation,
        traceparent,
        mark,
        reply_codec,
        reply,
        stream,
        position,
        events_before,
        events,
        outbox,
        timers,
        notes,
        location,
    })
}

/// Reads a source of messages.
fn decode_source<'a>(decoder: &mut Decoder<'a>) -> Result<SourceRecord<'a>, Malformed> {
    Ok(SourceRecord { domain: decoder.text()?, shard: decoder.shard()?, subscriber: decoder.text()? })
}

/// Reads one event.
fn decode_event<'a>(decoder: &mut Decoder<'a>) -> Result<EventRecord<'a>, Malformed> {
    Ok(EventRecord {
        name: decoder.text()?,
        version: decoder.small()?,
        codec: decoder.codec()?,
        payload: decoder.bytes()?,
    })
}

/// Reads one sent message with its link.
fn decode_outbox<'a>(decoder: &mut Decoder<'a>, location: Location) -> Result<OutboxRecord<'a>, Malformed> {
    Ok(OutboxRecord {
        domain: decoder.text()?,
        shard: decoder.shard()?,
        sequence: decoder.number()?,
        before: decoder.link(location)?,
        envelope: decode_length_prefixed(decoder)?,
    })
}

/// Reads an envelope, whose length is written in four bytes so that it can be filled in afterwards.
fn decode_length_prefixed<'a>(decoder: &mut Decoder<'a>) -> Result<&'a [u8], Malformed> {
    let length = u32::from_le_bytes(decoder.array()?);
    decoder.exactly(usize::try_from(length).map_err(|_| Malformed("a length is too large"))?)
}

/// Reads one change of a timer.
fn decode_timer<'a>(decoder: &mut Decoder<'a>) -> Result<TimerWrite<'a>, Malformed> {
    match decoder.byte()? {
        TIMER_SET => Ok(TimerWrite::Set {
            name: decoder.text()?,
            due: Timestamp::from_millis(decoder.number()?),
            version: decoder.small()?,
            codec: decoder.codec()?,
            payload: decoder.bytes()?,
        }),
        TIMER_CLEAR => Ok(TimerWrite::Clear { name: decoder.text()? }),
        _ => Err(Malformed("unknown timer operation")),
    }
}

/// Reads one header.
fn decode_header<'a>(decoder: &mut Decoder<'a>) -> Result<(&'a str, &'a str), Malformed> {
    Ok((decoder.text()?, decoder.text()?))
}

/// Reads one note. An unknown kind makes the record unreadable.
fn decode_note<'a>(decoder: &mut Decoder<'a>) -> Result<NoteRecord<'a>, Malformed> {
    match decoder.byte()? {
        NOTE_ATTEMPT => Ok(NoteRecord::Attempt { message: decoder.id()?, attempt: decoder.small()? }),
        NOTE_DEAD_LETTER => Ok(NoteRecord::DeadLetter(decode_dead_letter(decoder)?)),
        NOTE_RESOLVED => Ok(NoteRecord::Resolved { message: decoder.id()? }),
        NOTE_ENDED => Ok(NoteRecord::Ended),
        NOTE_OWN => Ok(NoteRecord::Own(decoder.bytes()?)),
        NOTE_HEADERS => Ok(NoteRecord::Headers(HeaderRecords(Items::parse(decoder, decode_header)?))),
        _ => Err(Malformed("unknown kind of note")),
    }
}

/// Reads one dead letter.
fn decode_dead_letter<'a>(decoder: &mut Decoder<'a>) -> Result<DeadLetterRecord<'a>, Malformed> {
    let actor = decoder.text()?;
    let key = decoder.text()?;
    let reason = DeadLetterReason::from_id(decoder.byte()?).ok_or(Malformed("unknown reason of a dead letter"))?;
    let error = decoder.text()?;
    let attempts = decoder.small()?;
    let time = Timestamp::from_millis(decoder.number()?);
    let envelope = decode_length_prefixed(decoder)?;
    Ok(DeadLetterRecord { id: envelope::read_id(envelope)?, actor, key, reason, error, attempts, time, envelope })
}
