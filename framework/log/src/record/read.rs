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
    pub(crate) domain: &'a str,
    pub(crate) shard: u16,
    /// Empty for [`SourceKind::Direct`](whizbang_core::store::SourceKind::Direct).
    pub(crate) subscriber: &'a str,
}

/// A turn in the log.
#[derive(Clone, Debug)]
pub struct TurnRecord<'a> {
    pub(crate) actor: &'a str,
    pub(crate) key: &'a str,
    pub(crate) number: u64,
    pub(crate) version: u64,
    pub(crate) time: Timestamp,
    pub(crate) id: MessageId,
    pub(crate) correlation: MessageId,
    pub(crate) traceparent: Option<&'a str>,
    pub(crate) mark: MarkRecord<'a>,
    pub(crate) reply_codec: Codec,
    pub(crate) reply: &'a [u8],
    /// The location of the stream's previous turn; 0 if this is the first.
    pub(crate) stream: Location,
    /// The position of the shard's last event before this turn.
    pub(crate) position: u64,
    /// The location of the shard's record with that event; 0 if there is none, or if this turn has no events.
    pub(crate) events_before: Location,
    events: Items<'a>,
    outbox: Items<'a>,
    timers: Items<'a>,
    notes: Items<'a>,
    location: Location,
}

/// The mark that a message was handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkRecord<'a> {
    None,
    Outside { digest: u64 },
    From { source: SourceRecord<'a>, sequence: u64, floor: u64 },
    Timer { name: &'a str },
}

/// An event in a turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EventRecord<'a> {
    pub(crate) name: &'a str,
    pub(crate) version: u32,
    pub(crate) codec: Codec,
    pub(crate) payload: &'a [u8],
}

/// An outbox entry in a turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutboxRecord<'a> {
    pub(crate) domain: &'a str,
    pub(crate) shard: u16,
    pub(crate) sequence: u64,
    /// The location of the record with the previous entry for the destination; 0 if it is this record, or if there is
    /// none.
    pub(crate) before: Location,
    pub(crate) envelope: &'a [u8],
}

/// A note in a turn.
#[derive(Clone, Copy, Debug)]
pub enum NoteRecord<'a> {
    Attempt {
        message: MessageId,
        attempt: u32,
    },
    DeadLetter(DeadLetterRecord<'a>),
    Resolved {
        message: MessageId,
    },
    Ended,
    Own(&'a [u8]),
    /// The headers of the turn.
    Headers(HeaderRecords<'a>),
}

/// The headers of a turn.
#[derive(Clone, Copy, Debug)]
pub struct HeaderRecords<'a>(Items<'a>);

impl<'a> HeaderRecords<'a> {
    pub(crate) fn iter(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.iter(decode_header)
    }
}

/// A dead letter in a turn.
#[derive(Clone, Copy, Debug)]
pub struct DeadLetterRecord<'a> {
    pub(crate) id: MessageId,
    pub(crate) actor: &'a str,
    pub(crate) key: &'a str,
    pub(crate) reason: DeadLetterReason,
    pub(crate) error: &'a str,
    pub(crate) attempts: u32,
    pub(crate) time: Timestamp,
    pub(crate) envelope: &'a [u8],
}

/// Items that were parsed once for validation, so that parsing them again cannot fail.
#[derive(Clone, Copy, Debug)]
struct Items<'a> {
    count: usize,
    bytes: Decoder<'a>,
}

impl<'a> Items<'a> {
    const NONE: Self = Self { count: 0, bytes: Decoder(&[]) };

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

    fn iter<T>(self, one: impl Fn(&mut Decoder<'a>) -> Result<T, Malformed>) -> impl Iterator<Item = T> {
        let mut bytes = self.bytes;
        // Cannot fail: the same bytes were parsed by the same function before.
        (0..self.count).map_while(move |_| one(&mut bytes).ok())
    }
}

impl<'a> TurnRecord<'a> {
    pub(crate) fn events_count(&self) -> usize {
        self.events.count
    }

    pub(crate) fn events(&self) -> impl Iterator<Item = EventRecord<'a>> + use<'a> {
        self.events.iter(decode_event)
    }

    pub(crate) fn outbox_count(&self) -> usize {
        self.outbox.count
    }

    pub(crate) fn outbox(&self) -> impl Iterator<Item = OutboxRecord<'a>> + use<'a> {
        let location = self.location;
        self.outbox.iter(move |decoder| decode_outbox(decoder, location))
    }

    pub(crate) fn timers(&self) -> impl Iterator<Item = TimerWrite<'a>> + use<'a> {
        self.timers.iter(decode_timer)
    }

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

fn decode_source<'a>(decoder: &mut Decoder<'a>) -> Result<SourceRecord<'a>, Malformed> {
    Ok(SourceRecord { domain: decoder.text()?, shard: decoder.shard()?, subscriber: decoder.text()? })
}

fn decode_event<'a>(decoder: &mut Decoder<'a>) -> Result<EventRecord<'a>, Malformed> {
    Ok(EventRecord {
        name: decoder.text()?,
        version: decoder.small()?,
        codec: decoder.codec()?,
        payload: decoder.bytes()?,
    })
}

fn decode_outbox<'a>(decoder: &mut Decoder<'a>, location: Location) -> Result<OutboxRecord<'a>, Malformed> {
    Ok(OutboxRecord {
        domain: decoder.text()?,
        shard: decoder.shard()?,
        sequence: decoder.number()?,
        before: decoder.link(location)?,
        envelope: decode_length_prefixed(decoder)?,
    })
}

fn decode_length_prefixed<'a>(decoder: &mut Decoder<'a>) -> Result<&'a [u8], Malformed> {
    let length = u32::from_le_bytes(decoder.array()?);
    decoder.exactly(usize::try_from(length).map_err(|_| Malformed("a length is too large"))?)
}

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

fn decode_header<'a>(decoder: &mut Decoder<'a>) -> Result<(&'a str, &'a str), Malformed> {
    Ok((decoder.text()?, decoder.text()?))
}

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
