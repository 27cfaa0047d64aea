//! Encodes records. The only allocation is the growth of the buffer.
//!
//! The caller reserves the [bound](turn_bound) before it encodes, so that a record is in one piece of memory.
//!
//! # The record of a turn
//! In this order; the parts in brackets are present if their flag is set:
//!
//! ```text
//! head: format, kind, number of the shard, epoch
//! flags: one byte
//! link to the previous turn of the stream, actor type, key, number, version
//! [time], position, id, [correlation], [trace context], mark
//! [reply codec and reply]
//! [link to the previous events, events]   [outbox]   [timers]   [headers and notes]
//! ```
//!
//! Numbers take as many bytes as they need. A link is a distance to an earlier record and not a location, so it is short for
//! the frequent case.

use super::envelope::{self, Given};
use super::layout::{
    CORRELATION, EVENTS, MARK_FROM, MARK_NONE, MARK_OUTSIDE, MARK_TIMER, NOTE_ATTEMPT, NOTE_DEAD_LETTER, NOTE_ENDED,
    NOTE_HEADERS, NOTE_OWN, NOTE_RESOLVED, NOTES, OUTBOX, REPLY, TIME_OF_ID, TIMER_CLEAR, TIMER_SET, TIMERS,
    TRACEPARENT,
};
use super::{FORMAT, KIND_ADVANCE, KIND_OPENED, KIND_SENT, KIND_TURN, Location, encode};
use whizbang_core::message::ShardId;
use whizbang_core::store::{DeadLetter, Epoch, Mark, Note, Source, SourceKind, TimerWrite, Turn, Watermark};

/// The location of a record and the data that only the store knows.
#[derive(Clone, Copy, Debug)]
pub struct RecordContext<'a> {
    /// The shard's number in this log.
    pub(crate) tag: u32,
    /// The epoch of the writer.
    pub(crate) epoch: Epoch,
    /// The location of the record.
    pub(crate) location: Location,
    /// The location of the stream's previous turn; 0 if this is the first.
    pub(crate) stream: Location,
    /// The position of the shard's last event before this turn.
    pub(crate) position: u64,
    /// The location of the shard's record with that event; 0 if there is none.
    pub(crate) events: Location,
    /// The assigned sequences, one for each outbox entry.
    pub(crate) sent: &'a [Sent],
}

/// The number and link that the store assigns to an outbox entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Its sequence.
    pub(crate) sequence: u64,
    /// The location of the record with the previous entry for the destination: this record, or 0 if it is the first.
    pub(crate) before: Location,
}

/// Returns an upper bound for the size of a turn's record. Cheap: it only adds up lengths.
///
/// The bound is not exact: numbers count with their greatest length.
pub fn turn_bound(turn: &Turn<'_>) -> usize {
    let texts = turn.actor.len() + turn.key.len() + turn.reply.len() + turn.traceparent.map_or(0, str::len);
    let mut bound = 256 + texts;
    bound += match turn.mark {
        Mark::None | Mark::Outside { .. } => 0,
        Mark::From { source, .. } => source_bound(source),
        Mark::Timer { name } => name.len(),
    };
    for event in turn.events {
        bound += 32 + event.name.len() + event.payload.len();
    }
    for entry in turn.outbox {
        bound += entry.to.domain.len() + envelope::bound(entry.envelope);
    }
    for timer in turn.timers {
        bound += match timer {
            TimerWrite::Set { name, payload, .. } => 64 + name.len() + payload.len(),
            TimerWrite::Clear { name } => 16 + name.len(),
        };
    }
    bound += turn.headers.iter().map(|(name, value)| 20 + name.len() + value.len()).sum::<usize>();
    for note in turn.notes {
        bound += 32
            + match note {
                Note::DeadLetter(letter) => {
                    letter.actor.len() + letter.key.len() + letter.error.len() + envelope::bound(&letter.envelope)
                }
                Note::Own(bytes) => bytes.len(),
                Note::Attempt { .. } | Note::Resolved { .. } | Note::Ended => 0,
            };
    }
    bound
}

/// Returns an upper bound for the bytes of a source.
fn source_bound(source: &Source) -> usize {
    let subscriber = match &source.kind {
        SourceKind::Direct => 0,
        SourceKind::Events { subscriber } => subscriber.len(),
    };
    32 + source.shard.domain.len() + subscriber
}

/// Appends the record of a turn.
///
/// Parts that are empty take no bytes. The time is left out if it is that of the id, which is the normal case.
pub fn write_turn(into: &mut Vec<u8>, turn: &Turn<'_>, place: &RecordContext<'_>) {
    let mut flags = 0;
    for (is, flag) in [
        (turn.correlation != turn.id, CORRELATION),
        (turn.traceparent.is_some(), TRACEPARENT),
        (!turn.reply.is_empty(), REPLY),
        (!turn.events.is_empty(), EVENTS),
        (!turn.outbox.is_empty(), OUTBOX),
        (!turn.timers.is_empty(), TIMERS),
        (!turn.notes.is_empty() || !turn.headers.is_empty(), NOTES),
        (turn.id.time() == Some(turn.time), TIME_OF_ID),
    ] {
        if is {
            flags |= flag;
        }
    }
    write_head(into, KIND_TURN, place.tag, place.epoch);
    into.push(flags);
    encode::link(into, place.location, place.stream);
    encode::text(into, turn.actor);
    encode::text(into, turn.key);
    encode::number(into, turn.number);
    encode::number(into, turn.version);
    if flags & TIME_OF_ID == 0 {
        encode::number(into, turn.time.as_millis());
    }
    encode::number(into, place.position);
    encode::id(into, turn.id);
    if flags & CORRELATION != 0 {
        encode::id(into, turn.correlation);
    }
    if let Some(traceparent) = turn.traceparent {
        encode::text(into, traceparent);
    }
    match &turn.mark {
        Mark::None => into.push(MARK_NONE),
        Mark::Outside { digest } => {
            into.push(MARK_OUTSIDE);
            into.extend_from_slice(&digest.to_le_bytes());
        }
        Mark::From { source, sequence, floor } => {
            into.push(MARK_FROM);
            encode_source(into, source);
            encode::number(into, *sequence);
            encode::number(into, *floor);
        }
        Mark::Timer { name } => {
            into.push(MARK_TIMER);
            encode::text(into, name);
        }
    }
    if flags & REPLY != 0 {
        into.push(turn.reply_codec.id());
        encode::bytes(into, turn.reply);
    }
    if flags & EVENTS != 0 {
        encode::link(into, place.location, place.events);
        encode::number(into, turn.events.len() as u64);
        for event in turn.events {
            encode::text(into, event.name);
            encode::number(into, u64::from(event.version));
            into.push(event.codec.id());
            encode::bytes(into, event.payload);
        }
    }
    if flags & OUTBOX != 0 {
        encode_outbox(into, turn, place);
    }
    if flags & TIMERS != 0 {
        encode_timers(into, turn.timers);
    }
    if flags & NOTES != 0 {
        encode_notes(into, turn);
    }
}

/// Appends the sent messages, each with the sequence and the link that the store has given it.
fn encode_outbox(into: &mut Vec<u8>, turn: &Turn<'_>, place: &RecordContext<'_>) {
    encode::number(into, turn.outbox.len() as u64);
    for (entry, sent) in turn.outbox.iter().zip(place.sent) {
        encode::text(into, &entry.to.domain);
        encode::number(into, u64::from(entry.to.shard));
        encode::number(into, sent.sequence);
        encode::link(into, place.location, sent.before);
        // The length allows rebuilding the index without decoding the envelope.
        write_length_prefixed(into, |into| {
            let given = Given { to: Some(entry.to), correlation: turn.correlation, key: Some(turn.key) };
            envelope::write(into, entry.envelope, given, None);
        });
    }
}

/// Appends the changes of timers.
fn encode_timers(into: &mut Vec<u8>, timers: &[TimerWrite<'_>]) {
    encode::number(into, timers.len() as u64);
    for timer in timers {
        match timer {
            TimerWrite::Set { name, due, version, codec, payload } => {
                into.push(TIMER_SET);
                encode::text(into, name);
                encode::number(into, due.as_millis());
                encode::number(into, u64::from(*version));
                into.push(codec.id());
                encode::bytes(into, payload);
            }
            TimerWrite::Clear { name } => {
                into.push(TIMER_CLEAR);
                encode::text(into, name);
            }
        }
    }
}

/// Appends the headers, if there are any, and the notes.
fn encode_notes(into: &mut Vec<u8>, turn: &Turn<'_>) {
    let headers = usize::from(!turn.headers.is_empty());
    encode::number(into, (headers + turn.notes.len()) as u64);
    if headers > 0 {
        into.push(NOTE_HEADERS);
        encode::number(into, turn.headers.len() as u64);
        for (name, value) in turn.headers {
            encode::text(into, name);
            encode::text(into, value);
        }
    }
    for note in turn.notes {
        match note {
            Note::Attempt { message, attempt } => {
                into.push(NOTE_ATTEMPT);
                encode::id(into, *message);
                encode::number(into, u64::from(*attempt));
            }
            Note::DeadLetter(letter) => {
                into.push(NOTE_DEAD_LETTER);
                encode_dead_letter(into, letter, turn);
            }
            Note::Resolved { message } => {
                into.push(NOTE_RESOLVED);
                encode::id(into, *message);
            }
            Note::Ended => into.push(NOTE_ENDED),
            Note::Own(bytes) => {
                into.push(NOTE_OWN);
                encode::bytes(into, bytes);
            }
        }
    }
}

/// Appends a dead letter with its complete message.
fn encode_dead_letter(into: &mut Vec<u8>, letter: &DeadLetter, turn: &Turn<'_>) {
    encode::text(into, &letter.actor);
    encode::text(into, &letter.key);
    into.push(letter.reason.id());
    encode::text(into, &letter.error);
    encode::number(into, u64::from(letter.attempts));
    encode::number(into, letter.time.as_millis());
    write_length_prefixed(into, |into| {
        let given = Given { to: None, correlation: turn.correlation, key: None };
        envelope::write(into, &letter.envelope, given, letter.envelope.origin.as_ref());
    });
}

/// Writes a value after its length in four bytes, which is filled in once it is known.
fn write_length_prefixed(into: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = into.len();
    into.extend_from_slice(&[0; 4]);
    write(into);
    let length = into.len() - start - 4;
    if let Some(slot) = into.get_mut(start..start + 4) {
        // A turn has at most `MAX_TURN_BYTES`, so the length fits.
        slot.copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    }
}

/// Appends a source of messages.
fn encode_source(into: &mut Vec<u8>, source: &Source) {
    encode::text(into, &source.shard.domain);
    encode::number(into, u64::from(source.shard.shard));
    // A name is never empty, so an empty text stands for the direct source, which has no subscriber.
    encode::text(
        into,
        match &source.kind {
            SourceKind::Direct => "",
            SourceKind::Events { subscriber } => subscriber,
        },
    );
}

/// Appends the record of a watermark.
///
/// It is written if a source advances without a turn, so that its messages are not delivered again after a restart.
pub fn write_advance(into: &mut Vec<u8>, watermark: &Watermark, tag: u32, epoch: Epoch) {
    write_head(into, KIND_ADVANCE, tag, epoch);
    encode_source(into, &watermark.source);
    encode::number(into, watermark.through);
}

/// Appends the record of a destination's progress.
///
/// After it, the entries up to `through` are no longer part of the outbox.
pub fn write_sent(into: &mut Vec<u8>, to: &ShardId, through: u64, tag: u32, epoch: Epoch) {
    write_head(into, KIND_SENT, tag, epoch);
    encode::text(into, &to.domain);
    encode::number(into, u64::from(to.shard));
    encode::number(into, through);
}

/// Appends the record that a new owner opened a shard. The first one defines the shard's number in this log.
pub fn write_opened(into: &mut Vec<u8>, shard: &ShardId, shards: u16, tag: u32, epoch: Epoch) {
    write_head(into, KIND_OPENED, tag, epoch);
    encode::text(into, &shard.domain);
    encode::number(into, u64::from(shard.shard));
    encode::number(into, u64::from(shards));
}

/// Appends the common head of a record: format, kind, number of the shard in the log, epoch.
fn write_head(into: &mut Vec<u8>, kind: u8, tag: u32, epoch: Epoch) {
    into.extend_from_slice(&[FORMAT, kind]);
    encode::number(into, u64::from(tag));
    encode::number(into, epoch);
}

#[cfg(test)]
mod tests;
