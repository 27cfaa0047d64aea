//! Reads records without copying. What it returns has been checked as a whole: every length, every text, every number.

use super::decode::Decoder;
use super::envelope;
use super::write::{
    CORRELATION, EVENTS, MARK_FROM, MARK_NONE, MARK_OUTSIDE, MARK_TIMER, NOTE_ATTEMPT, NOTE_DEAD_LETTER, NOTE_ENDED,
    NOTE_OWN, NOTE_RESOLVED, NOTES, OUTBOX, REPLY, TIME_OF_ID, TIMER_CLEAR, TIMER_SET, TIMERS, TRACEPARENT,
};
use super::{FORMAT, KIND_ADVANCE, KIND_OPENED, KIND_SENT, KIND_TURN, Location, Malformed};
use crate::clock::Timestamp;
use crate::message::{Codec, MessageId};
use crate::store::{DeadLetterReason, Epoch, TimerWrite};

/// What a record says.
#[derive(Clone, Debug)]
#[allow(dead_code, reason = "only a log on disk holds openings")]
#[allow(clippy::large_enum_variant, reason = "nearly every record is a turn, and it is never kept")]
pub(crate) enum Record<'a> {
    /// One message through one actor.
    Turn(TurnRecord<'a>),
    /// How far a shard has taken from a source.
    Advance {
        /// The source.
        source: SourceRecord<'a>,
        /// How far.
        through: u64,
    },
    /// How far a destination has committed.
    Sent {
        /// The destination's domain.
        domain: &'a str,
        /// The destination's number in it.
        shard: u16,
        /// How far.
        through: u64,
    },
    /// A shard was taken by a new owner.
    Opened {
        /// The shard's domain.
        domain: &'a str,
        /// The shard's number in it.
        shard: u16,
        /// How many shards the domain has.
        shards: u16,
    },
}

/// Where messages come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SourceRecord<'a> {
    pub(crate) domain: &'a str,
    pub(crate) shard: u16,
    /// Empty for the direct lane.
    pub(crate) subscriber: &'a str,
}

/// A turn as it stands in the log.
#[derive(Clone, Debug)]
pub(crate) struct TurnRecord<'a> {
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
    /// Where the stream's turn before this one is; 0 if it is the first.
    pub(crate) stream: Location,
    /// The position of the shard's last event before this turn.
    pub(crate) position: u64,
    /// Where the shard's record with that event is; 0 if there is none, or if this turn has no events.
    pub(crate) events_before: Location,
    events: Items<'a>,
    outbox: Items<'a>,
    timers: Items<'a>,
    notes: Items<'a>,
    location: Location,
}

/// The mark that a message was handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MarkRecord<'a> {
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
    /// Where the record with the entry before it is; 0 if it is the same record, or if there is none.
    pub(crate) before: Location,
    pub(crate) envelope: &'a [u8],
}

/// A note in a turn.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NoteRecord<'a> {
    Attempt { message: MessageId, attempt: u32 },
    DeadLetter(DeadLetterRecord<'a>),
    Resolved { message: MessageId },
    Ended,
    Own(&'a [u8]),
}

/// A dead letter in a turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeadLetterRecord<'a> {
    pub(crate) id: MessageId,
    pub(crate) actor: &'a str,
    pub(crate) key: &'a str,
    pub(crate) reason: DeadLetterReason,
    pub(crate) error: &'a str,
    pub(crate) attempts: u32,
    pub(crate) time: Timestamp,
    pub(crate) envelope: &'a [u8],
}

/// A row of things that has been walked once, so that walking it again meets no surprise.
#[derive(Clone, Copy, Debug)]
struct Items<'a> {
    count: usize,
    bytes: Decoder<'a>,
}

impl<'a> Items<'a> {
    const NONE: Self = Self { count: 0, bytes: Decoder(&[]) };

    fn parse<T>(
        take: &mut Decoder<'a>,
        one: impl Fn(&mut Decoder<'a>) -> Result<T, Malformed>,
    ) -> Result<Self, Malformed> {
        let count = take.count()?;
        let before = *take;
        for _ in 0..count {
            one(take)?;
        }
        Ok(Self { count, bytes: Decoder(take.since(before)) })
    }

    fn iter<T>(self, one: impl Fn(&mut Decoder<'a>) -> Result<T, Malformed>) -> impl Iterator<Item = T> {
        let mut bytes = self.bytes;
        // The error cannot happen any more: the same bytes were read by the same function.
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
        self.outbox.iter(move |take| decode_outbox(take, location))
    }

    pub(crate) fn timers(&self) -> impl Iterator<Item = TimerWrite<'a>> + use<'a> {
        self.timers.iter(decode_timer)
    }

    pub(crate) fn notes(&self) -> impl Iterator<Item = NoteRecord<'a>> + use<'a> {
        self.notes.iter(decode_note)
    }
}

impl<'a> Record<'a> {
    /// Reads all of `bytes`, which stood at `location`: the shard's number in the log, the epoch, and what the record says.
    pub(crate) fn read(bytes: &'a [u8], location: Location) -> Result<(u32, Epoch, Self), Malformed> {
        let take = &mut Decoder(bytes);
        if take.byte()? != FORMAT {
            return Err(Malformed("its format is unknown"));
        }
        let kind = take.byte()?;
        let tag = take.small()?;
        let epoch = take.number()?;
        let record = match kind {
            KIND_TURN => Self::Turn(decode_turn(take, location)?),
            KIND_ADVANCE => Self::Advance { source: decode_source(take)?, through: take.number()? },
            KIND_SENT => Self::Sent { domain: take.text()?, shard: take.shard()?, through: take.number()? },
            KIND_OPENED => Self::Opened { domain: take.text()?, shard: take.shard()?, shards: take.shard()? },
            _ => return Err(Malformed("its kind is unknown")),
        };
        if take.is_empty() { Ok((tag, epoch, record)) } else { Err(Malformed("bytes are left over behind it")) }
    }
}

fn decode_turn<'a>(take: &mut Decoder<'a>, location: Location) -> Result<TurnRecord<'a>, Malformed> {
    let flags = take.byte()?;
    let has = |flag: u8| flags & flag != 0;
    let stream = take.link(location)?;
    let actor = take.text()?;
    let key = take.text()?;
    let number = take.number()?;
    let version = take.number()?;
    let time = if has(TIME_OF_ID) { None } else { Some(Timestamp::from_millis(take.number()?)) };
    let position = take.number()?;
    let id = take.id()?;
    let time = time.or_else(|| id.time()).ok_or(Malformed("its time is that of an id that has none"))?;
    let correlation = if has(CORRELATION) { take.id()? } else { id };
    let traceparent = if has(TRACEPARENT) { Some(take.text()?) } else { None };
    let mark = match take.byte()? {
        MARK_NONE => MarkRecord::None,
        MARK_OUTSIDE => MarkRecord::Outside { digest: u64::from_le_bytes(take.array()?) },
        MARK_FROM => MarkRecord::From { source: decode_source(take)?, sequence: take.number()?, floor: take.number()? },
        MARK_TIMER => MarkRecord::Timer { name: take.text()? },
        _ => return Err(Malformed("its mark is unknown")),
    };
    let (reply_codec, reply) = if has(REPLY) { (take.codec()?, take.bytes()?) } else { (Codec::Bincode, &[][..]) };
    let (events_before, events) =
        if has(EVENTS) { (take.link(location)?, Items::parse(take, decode_event)?) } else { (0, Items::NONE) };
    let last = (events.count as u64).checked_add(position).and_then(|last| last.checked_add(version));
    if last.is_none() {
        return Err(Malformed("a position is too large"));
    }
    let outbox = if has(OUTBOX) { Items::parse(take, |take| decode_outbox(take, location))? } else { Items::NONE };
    let timers = if has(TIMERS) { Items::parse(take, decode_timer)? } else { Items::NONE };
    let notes = if has(NOTES) { Items::parse(take, decode_note)? } else { Items::NONE };
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

fn decode_source<'a>(take: &mut Decoder<'a>) -> Result<SourceRecord<'a>, Malformed> {
    Ok(SourceRecord { domain: take.text()?, shard: take.shard()?, subscriber: take.text()? })
}

fn decode_event<'a>(take: &mut Decoder<'a>) -> Result<EventRecord<'a>, Malformed> {
    Ok(EventRecord { name: take.text()?, version: take.small()?, codec: take.codec()?, payload: take.bytes()? })
}

fn decode_outbox<'a>(take: &mut Decoder<'a>, location: Location) -> Result<OutboxRecord<'a>, Malformed> {
    Ok(OutboxRecord {
        domain: take.text()?,
        shard: take.shard()?,
        sequence: take.number()?,
        before: take.link(location)?,
        envelope: decode_length_prefixed(take)?,
    })
}

fn decode_length_prefixed<'a>(take: &mut Decoder<'a>) -> Result<&'a [u8], Malformed> {
    let length = u32::from_le_bytes(take.array()?);
    take.exactly(usize::try_from(length).map_err(|_| Malformed("a length is too large"))?)
}

fn decode_timer<'a>(take: &mut Decoder<'a>) -> Result<TimerWrite<'a>, Malformed> {
    match take.byte()? {
        TIMER_SET => Ok(TimerWrite::Set {
            name: take.text()?,
            due: Timestamp::from_millis(take.number()?),
            version: take.small()?,
            codec: take.codec()?,
            payload: take.bytes()?,
        }),
        TIMER_CLEAR => Ok(TimerWrite::Clear { name: take.text()? }),
        _ => Err(Malformed("what it does to a timer is unknown")),
    }
}

fn decode_note<'a>(take: &mut Decoder<'a>) -> Result<NoteRecord<'a>, Malformed> {
    match take.byte()? {
        NOTE_ATTEMPT => Ok(NoteRecord::Attempt { message: take.id()?, attempt: take.small()? }),
        NOTE_DEAD_LETTER => Ok(NoteRecord::DeadLetter(decode_dead_letter(take)?)),
        NOTE_RESOLVED => Ok(NoteRecord::Resolved { message: take.id()? }),
        NOTE_ENDED => Ok(NoteRecord::Ended),
        NOTE_OWN => Ok(NoteRecord::Own(take.bytes()?)),
        _ => Err(Malformed("a note is unknown")),
    }
}

fn decode_dead_letter<'a>(take: &mut Decoder<'a>) -> Result<DeadLetterRecord<'a>, Malformed> {
    let actor = take.text()?;
    let key = take.text()?;
    let reason = DeadLetterReason::from_id(take.byte()?).ok_or(Malformed("a dead letter's reason is unknown"))?;
    let error = take.text()?;
    let attempts = take.small()?;
    let time = Timestamp::from_millis(take.number()?);
    let envelope = decode_length_prefixed(take)?;
    Ok(DeadLetterRecord { id: envelope::read_id(envelope)?, actor, key, reason, error, attempts, time, envelope })
}
