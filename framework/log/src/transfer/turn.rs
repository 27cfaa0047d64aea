//! A committed turn as it is appended to another store.
//!
//! The appends of the other store assign the same positions and sequences again, because both count from 1 without gaps.
//! Other records are not copied: openings belong to a store, and progress is copied as it is at the end.

use bytes::Bytes;

use crate::record::{Malformed, MarkRecord, Names, Record, RecordContext, Sent, TurnRecord, write_turn};
use crate::shard_log::Damage;
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Codec, Name, ShardId};
use whizbang_core::store::{
    EventWrite, Mark, OutboxEntry, OutboxWrite, Source, StoredTurn, StreamHint, TimerWrite, Turn,
};

/// A turn with everything that was written in it.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub struct CopiedTurn {
    /// The parts that readers see as well.
    turn: StoredTurn,
    /// The actor type of the stream.
    actor: Name,
    /// The key of the stream.
    key: String,
    /// The trace context of the turn.
    traceparent: Option<String>,
    /// The headers of its events.
    headers: Vec<(String, String)>,
    /// The mark of the handled message.
    mark: CopiedMark,
    /// The timers that it sets or clears, in order.
    timers: Vec<CopiedTimer>,
    /// The messages with their destinations.
    outbox: Vec<(ShardId, OutboxEntry)>,
    /// The position of the shard's last event, including this turn's events.
    position: u64,
    /// The size of its record with the payloads.
    bytes: usize,
}

/// The mark that a message was handled.
#[derive(Clone, Debug)]
enum CopiedMark {
    None,
    Outside(u64),
    From { source: Source, sequence: u64, floor: u64 },
    Timer(String),
}

/// A timer that is set, or cleared if it has no content.
#[derive(Clone, Debug)]
struct CopiedTimer {
    name: String,
    content: Option<(Timestamp, u32, Codec, Bytes)>,
}

impl CopiedTurn {
    /// Reads the record at `location` of a log. `payloads` are those of its events, one each, if the record was written without
    /// them; `None` if the record contains them.
    /// `shard` returns the shard with a number. Returns `None` for a record that is not a turn.
    ///
    /// # Errors
    /// If the record is damaged, its shard is unknown, or a payload is missing.
    pub fn read(
        location: u64,
        bytes: &Bytes,
        payloads: Option<&[Bytes]>,
        names: &mut Names,
        shard: impl FnOnce(u32) -> Option<ShardId>,
    ) -> Result<Option<(ShardId, Self)>, Damage> {
        let (tag, _, record) = Record::read(bytes, location).map_err(|malformed| malformed.0)?;
        let Record::Turn(turn) = record else { return Ok(None) };
        let shard = shard(tag).ok_or("unknown shard")?;
        let copied = Self::of(&turn, &shard, bytes, payloads, names).map_err(|malformed| malformed.0)?;
        Ok(Some((shard, copied)))
    }

    fn of(
        record: &TurnRecord<'_>,
        shard: &ShardId,
        bytes: &Bytes,
        payloads: Option<&[Bytes]>,
        names: &mut Names,
    ) -> Result<Self, Malformed> {
        let mut turn = record.to_turn(bytes, names)?;
        if payloads.is_some_and(|payloads| payloads.len() != turn.events.len()) {
            return Err(Malformed("the turn has another number of events"));
        }
        let payloads = payloads.unwrap_or_default();
        for (event, payload) in turn.events.iter_mut().zip(payloads) {
            event.payload.clone_from(payload);
        }
        let mark = match record.mark {
            MarkRecord::None => CopiedMark::None,
            MarkRecord::Outside { digest } => CopiedMark::Outside(digest),
            MarkRecord::From { source, sequence, floor } => {
                CopiedMark::From { source: source.to_source(names)?, sequence, floor }
            }
            MarkRecord::Timer { name } => CopiedMark::Timer(name.to_owned()),
        };
        let timers = record.timers().map(|timer| match timer {
            TimerWrite::Set { name, due, version, codec, payload } => CopiedTimer {
                name: name.to_owned(),
                content: Some((due, version, codec, Bytes::copy_from_slice(payload))),
            },
            TimerWrite::Clear { name } => CopiedTimer { name: name.to_owned(), content: None },
        });
        let timers = timers.collect();
        let mut outbox = Vec::with_capacity(record.outbox_count());
        for entry in record.outbox() {
            let to = ShardId::new(names.get(entry.domain)?, entry.shard);
            let mut entry = record.to_outbox_entry(entry, shard, bytes, names)?;
            // As it was appended at first: an origin counts for the size of the turn.
            entry.envelope.origin = entry.envelope.origin.filter(|origin| origin.key != record.key);
            outbox.push((to, entry));
        }
        Ok(Self {
            position: record.position + record.events_count() as u64,
            bytes: bytes.len() + payloads.iter().map(Bytes::len).sum::<usize>(),
            actor: names.get(record.actor)?,
            key: record.key.to_owned(),
            traceparent: record.traceparent.map(str::to_owned),
            headers: record.headers(),
            mark,
            timers,
            outbox,
            turn,
        })
    }

    /// Returns the position that the shard has after the turn.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Returns about how many bytes the turn has in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the number of its events.
    pub fn events(&self) -> usize {
        self.turn.events.len()
    }

    /// Returns the destinations and sequences of the messages that the turn has sent.
    pub fn sent(&self) -> impl Iterator<Item = (&ShardId, u64)> {
        self.outbox.iter().map(|(to, entry)| (to, entry.sequence))
    }

    /// Calls `write` with the turn as it is appended.
    pub fn write<T>(&self, write: impl FnOnce(&Turn<'_>) -> T) -> T {
        let turn = &self.turn;
        let events: Vec<EventWrite<'_>> = turn
            .events
            .iter()
            .map(|event| EventWrite {
                name: &event.name,
                version: event.version,
                codec: event.codec,
                payload: &event.payload,
            })
            .collect();
        let outbox: Vec<OutboxWrite<'_>> =
            self.outbox.iter().map(|(to, entry)| OutboxWrite { to, envelope: &entry.envelope }).collect();
        let timers = self.timers.iter().map(|timer| match &timer.content {
            Some((due, version, codec, payload)) => {
                TimerWrite::Set { name: &timer.name, due: *due, version: *version, codec: *codec, payload }
            }
            None => TimerWrite::Clear { name: &timer.name },
        });
        let timers: Vec<TimerWrite<'_>> = timers.collect();
        write(&Turn {
            actor: &self.actor,
            key: &self.key,
            stream: StreamHint::default(),
            number: turn.number,
            version: turn.version,
            time: turn.time,
            id: turn.id,
            correlation: turn.correlation,
            traceparent: self.traceparent.as_deref(),
            headers: &self.headers,
            mark: match &self.mark {
                CopiedMark::None => Mark::None,
                CopiedMark::Outside(digest) => Mark::Outside { digest: *digest },
                CopiedMark::From { source, sequence, floor } => {
                    Mark::From { source, sequence: *sequence, floor: *floor }
                }
                CopiedMark::Timer(name) => Mark::Timer { name },
            },
            reply: &turn.reply,
            reply_codec: turn.reply_codec,
            events: &events,
            outbox: &outbox,
            timers: &timers,
            notes: &turn.notes,
        })
    }

    /// Appends a form of the turn that is the same in every store.
    pub(super) fn write_canonical(&self, into: &mut Vec<u8>) {
        let sent: Vec<Sent> = self.sent().map(|(_, sequence)| Sent { sequence, before: 0 }).collect();
        let position = self.position;
        let place = RecordContext { tag: 0, epoch: 0, location: 1, stream: 0, position, events: 0, sent: &sent };
        self.write(|turn| write_turn(into, turn, &place));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use whizbang_conformance::store::TurnBuilder;

    /// Returns the record of a turn with two events at the positions 41 and 42.
    fn record(payloads: [&str; 2]) -> Bytes {
        let draft = TurnBuilder::new("Account", "ada", 1).at(3, 5).header("tenant", "acme").outside(7);
        let draft = draft.event("A", payloads[0]).event("B", payloads[1]).set("pay", 9).clear("ship").rang("pay");
        let place = RecordContext { tag: 2, epoch: 1, location: 50, stream: 40, position: 40, events: 40, sent: &[] };
        let mut bytes = Vec::new();
        draft.write(|turn| write_turn(&mut bytes, turn, &place));
        bytes.into()
    }

    fn copied(record: &Bytes, payloads: Option<&[Bytes]>) -> CopiedTurn {
        let shard = ShardId::new(Name::from_static("bank").unwrap(), 3);
        CopiedTurn::read(50, record, payloads, &mut Names::default(), |tag| (tag == 2).then_some(shard))
            .unwrap()
            .unwrap()
            .1
    }

    #[test]
    fn payloads_are_added_to_a_turn_without_them() {
        let (whole, without) = (record(["one", "second"]), record(["", ""]));
        let payloads = [Bytes::from_static(b"one"), Bytes::from_static(b"second")];
        let (whole, filled) = (copied(&whole, None), copied(&without, Some(&payloads)));
        for turn in [&whole, &filled] {
            assert_eq!((turn.position(), turn.events(), turn.sent().count()), (42, 2, 0));
            let read: Vec<_> = turn.write(|turn| turn.events.iter().map(|event| event.payload.to_vec()).collect());
            assert_eq!(read, payloads);
        }
        assert_eq!(filled.bytes(), without.len() + 9, "the record and the payloads");
        let canonical = |turn: &CopiedTurn| {
            let mut bytes = Vec::new();
            turn.write_canonical(&mut bytes);
            bytes
        };
        assert_eq!(canonical(&whole), canonical(&filled), "the form is the same in every store");
        assert_ne!(canonical(&whole), canonical(&copied(&without, None)));
    }

    #[test]
    fn record_that_is_not_a_turn_is_skipped() {
        let mut bytes = Vec::new();
        let shard = ShardId::new(Name::from_static("bank").unwrap(), 3);
        crate::record::write_sent(&mut bytes, &shard, 1, 2, 1);
        let read = CopiedTurn::read(50, &bytes.into(), None, &mut Names::default(), |_| None);
        assert!(matches!(read, Ok(None)), "{read:?}");
    }
}
