//! The records and the index of one shard, for stores in crates of their own.
//!
//! Called by the PostgreSQL store, which keeps the records in rows: a location is the number of a row. Hidden from the
//! documentation: the interface follows the stores of this repository and may change with any version.
//! It never reads or writes storage.
//!
//! A store with another medium needs only this: it stores records under the locations that it was given, and passes them to
//! [`apply`](ShardLog::apply) in the same order at the next opening.

mod save;

use bytes::Bytes;

pub use self::save::SavedIds;

use crate::index::append::{AppendContext, AppendNumbers};
use crate::index::{Index, OutOfTurn, StreamHasher};
use crate::record;
use crate::record::{MarkRecord, Names, NoteRecord, Record, TurnRecord};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{MessageId, Name, ShardId};
use whizbang_core::store::{
    DeadLetter, Epoch, EventWrite, OutboxEntry, Source, StoredEvent, StoredTurn, StreamHint, Timer, TimerCursor,
    TimerPage, Turn, Watermark,
};

/// The reason why bytes are not the record they should be.
pub type Damage = &'static str;

/// An upper bound for the size of a turn's record, in bytes. Looks at lengths only.
pub fn turn_bound(turn: &Turn<'_>) -> usize {
    record::turn_bound(turn)
}

/// The newest turn of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The location of its record.
    pub location: u64,
    /// Its number.
    pub number: u64,
}

/// The numbers that an appended turn has been given.
#[derive(Clone, Debug)]
pub struct Given {
    /// The position of the shard's last event.
    pub position: u64,
    /// The hint for the stream's next turn.
    pub stream: StreamHint,
}

/// The index of one shard: the newest turn of each stream, outbox, watermarks, timers, dead letters, ids.
///
/// Memory grows with the number of streams, timers, dead letters, and ids not yet forgotten.
#[derive(Debug)]
pub struct ShardLog {
    /// The derived data. It never contains payloads of events.
    index: Index,
    /// Names that records repeat, so that each is in memory once.
    names: Names,
    /// The hasher of the index; a checkpoint is read with the same one.
    hasher: StreamHasher,
}

impl ShardLog {
    /// The index of an empty shard. `seed` makes the hashes of streams hard to guess for callers that choose keys.
    pub fn new(seed: u64) -> Self {
        let hasher = StreamHasher::new(seed);
        Self { index: Index::new(hasher.clone()), names: Names::default(), hasher }
    }

    /// Adds a committed record. Records are added in the order of their locations, each once.
    ///
    /// # Errors
    /// If the record is damaged or does not follow the earlier ones.
    pub fn apply(&mut self, location: u64, bytes: &[u8]) -> Result<(), Damage> {
        let (_, _, record) = Record::read(bytes, location).map_err(|malformed| malformed.0)?;
        self.index.apply(&record, location, &mut self.names).map_err(|malformed| malformed.0)
    }

    /// Appends a turn's record to `into` as the record at `location`. It is visible to readers after [`commit`](Self::commit).
    ///
    /// # Errors
    /// The number that the stream's next turn must have, if the turn has another one. Nothing has changed then.
    pub fn append_turn(
        &mut self,
        turn: &Turn<'_>,
        tag: u32,
        epoch: Epoch,
        location: u64,
        into: &mut Vec<u8>,
    ) -> Result<Given, u64> {
        let at = AppendContext { tag, epoch, location, committed: false };
        let AppendNumbers { position, stream } =
            self.index.append_turn(turn, at, into).map_err(|OutOfTurn { expected }| expected)?;
        Ok(Given { position, stream })
    }

    /// Like [`append_turn`](Self::append_turn), but the record holds the events without their payloads.
    ///
    /// # Errors
    /// Same as [`append_turn`](Self::append_turn).
    pub fn append_turn_without_payloads(
        &mut self,
        turn: &Turn<'_>,
        tag: u32,
        epoch: Epoch,
        location: u64,
        into: &mut Vec<u8>,
    ) -> Result<Given, u64> {
        if turn.events.iter().all(|event| event.payload.is_empty()) {
            return self.append_turn(turn, tag, epoch, location, into);
        }
        let events: Vec<_> = turn.events.iter().map(|event| EventWrite { payload: &[], ..*event }).collect();
        self.append_turn(&Turn { events: &events, ..turn.clone() }, tag, epoch, location, into)
    }

    /// Appends the record of a watermark.
    pub fn append_advance(
        &mut self,
        watermark: &Watermark,
        tag: u32,
        epoch: Epoch,
        location: u64,
        into: &mut Vec<u8>,
    ) -> u64 {
        let at = AppendContext { tag, epoch, location, committed: false };
        self.index.append_advance(watermark, at, into).position
    }

    /// Appends the record that `to` has committed all entries up to `through`.
    pub fn append_sent(
        &mut self,
        to: &ShardId,
        through: u64,
        tag: u32,
        epoch: Epoch,
        location: u64,
        into: &mut Vec<u8>,
    ) -> u64 {
        let at = AppendContext { tag, epoch, location, committed: false };
        self.index.append_sent(to, through, at, into).position
    }

    /// Makes every record before `location` visible to readers.
    pub fn commit(&mut self, location: u64) {
        self.index.commit(location);
    }

    /// The location before which every record is committed.
    pub fn committed(&self) -> u64 {
        self.index.committed()
    }

    /// The position of the last committed event.
    pub fn position(&self) -> u64 {
        self.index.position()
    }

    /// The newest committed turn of a stream.
    pub fn head(&self, actor: &str, key: &str) -> Option<Head> {
        let head = self.index.head(self.index.stream(actor, key))?;
        Some(Head { location: head.location, number: head.number })
    }

    /// The newest appended turn of a stream, committed or not.
    pub fn newest(&self, actor: &str, key: &str) -> Option<Head> {
        let head = self.index.newest(self.index.stream(actor, key))?;
        Some(Head { location: head.location, number: head.number })
    }

    /// The last committed outbox sequence for a destination, and the location from which
    /// [`Outbox::before`](OutboxRecords::before) leads back to `sequence`.
    pub fn destination(&mut self, to: &ShardId, sequence: u64) -> Option<(u64, u64)> {
        let destination = self.index.destination(to)?;
        Some((destination.last(), destination.from(sequence.min(destination.last()))))
    }

    /// For each destination: the sequence up to which it has committed, and the last sequence given out.
    pub fn destinations(&mut self) -> Vec<(ShardId, u64, u64)> {
        self.index.destinations()
    }

    /// The watermark of each source.
    pub fn watermarks(&self) -> Vec<Watermark> {
        self.index.watermarks()
    }

    /// The watermark of one source; 0 if there is none.
    pub fn watermark(&self, source: &Source) -> u64 {
        self.index.watermark(source)
    }

    /// Up to `limit` timers that are due at `now`, earliest first.
    pub fn timers_due(&self, now: Timestamp, limit: usize) -> Vec<Timer> {
        self.index.timers_due(now, limit)
    }

    /// Up to `limit` timers of an actor type that are due at `now`, after `after`.
    pub fn timers_of(&self, actor: &Name, after: TimerCursor, now: Timestamp, limit: usize) -> TimerPage {
        self.index.timers_of(actor, after, now, limit)
    }

    /// The number of timers of each actor type.
    pub fn timer_counts(&self) -> Vec<(Name, usize)> {
        self.index.timer_counts()
    }

    /// The time of the next timer.
    pub fn next_timer(&self) -> Option<Timestamp> {
        self.index.next_timer()
    }

    /// The number of dead letters.
    pub fn dead_letter_count(&self) -> u64 {
        self.index.dead_letter_count()
    }

    /// The locations of up to `limit` dead letters with ids above `after`. All dead letters of one id are returned together.
    pub fn dead_letters(&self, after: Option<MessageId>, limit: usize) -> Vec<(MessageId, u64)> {
        self.index.dead_letters(after, limit)
    }

    /// The locations of the turns that may have handled a message from outside, newest first. They are found by a hash.
    pub fn turns_of(&self, actor: &str, key: &str, id: MessageId) -> Vec<u64> {
        self.index.turns_with_id(self.index.id(self.index.stream(actor, key), id))
    }

    /// Forgets ids of turns before `before`, in steps of `span` milliseconds.
    pub fn forget_ids(&mut self, before: Timestamp, span: u64) {
        self.index.ids.expire(before, span);
    }
}

/// A turn's record that was read back, with the payloads of its events.
#[derive(Debug)]
pub struct TurnRow {
    /// The location of the row.
    location: u64,
    /// The record, without the payloads of events.
    record: Bytes,
    /// The payloads of its events, in their order.
    payloads: Vec<Bytes>,
}

impl TurnRow {
    /// The record at `location`, and the payloads of its events if the record was written without them.
    pub fn new(location: u64, record: Bytes, payloads: Vec<Bytes>) -> Self {
        Self { location, record, payloads }
    }

    /// Decodes the record.
    ///
    /// # Errors
    /// The row is not a turn, or has another number of payloads than events.
    fn turn(&self) -> Result<TurnRecord<'_>, Damage> {
        match Record::read(&self.record, self.location) {
            Ok((_, _, Record::Turn(turn))) if turn.events_count() == self.payloads.len() => Ok(turn),
            Ok((_, _, Record::Turn(_))) => Err("the turn has another number of events"),
            Ok(_) => Err("the record is not a turn"),
            Err(malformed) => Err(malformed.0),
        }
    }

    /// Puts the payloads into the events that were decoded from the record.
    fn fill(&self, events: &mut [StoredEvent]) {
        for (event, payload) in events.iter_mut().zip(&self.payloads) {
            event.payload.clone_from(payload);
        }
    }

    /// The turn of the stream.
    ///
    /// # Errors
    /// If the record is damaged, or belongs to another stream.
    pub fn to_turn(&self, actor: &str, key: &str) -> Result<StoredTurn, Damage> {
        let record = self.turn()?;
        if record.actor != actor || record.key != key {
            return Err("the turn belongs to another stream");
        }
        let mut turn = record.to_turn(&self.record, &mut Names::default()).map_err(|malformed| malformed.0)?;
        self.fill(&mut turn.events);
        Ok(turn)
    }

    /// The turn, if it belongs to the stream and handled the message `id` from outside.
    ///
    /// # Errors
    /// If the record is damaged.
    pub fn handled(&self, actor: &str, key: &str, id: MessageId) -> Result<Option<StoredTurn>, Damage> {
        let record = self.turn()?;
        let is_outside = matches!(record.mark, MarkRecord::Outside { .. });
        if record.actor == actor && record.key == key && record.id == id && is_outside {
            self.to_turn(actor, key).map(Some)
        } else {
            Ok(None)
        }
    }

    /// The events of the turn.
    ///
    /// # Errors
    /// If the record is damaged.
    pub fn events(&self) -> Result<Vec<StoredEvent>, Damage> {
        let mut events = Vec::with_capacity(self.payloads.len());
        let record = self.turn()?;
        record.push_events(&self.record, &mut Names::default(), &mut events).map_err(|malformed| malformed.0)?;
        self.fill(&mut events);
        Ok(events)
    }
}

/// The outbox entries for one destination in a turn's record.
#[derive(Debug)]
pub struct OutboxRecords {
    /// The entries, in the order of their sequences.
    pub entries: Vec<OutboxEntry>,
    /// The location of the record with the entry before the first one; 0 if there is none.
    pub before: u64,
}

impl OutboxRecords {
    /// Reads the entries for `to` in the record at `location` of the shard `from`.
    ///
    /// # Errors
    /// If the record is damaged or has no such entry.
    pub fn read(location: u64, record: &Bytes, from: &ShardId, to: &ShardId) -> Result<Self, Damage> {
        let turn = match Record::read(record, location) {
            Ok((_, _, Record::Turn(turn))) => turn,
            Ok(_) => return Err("the record is not a turn"),
            Err(malformed) => return Err(malformed.0),
        };
        let (mut entries, mut before, names) = (Vec::new(), None, &mut Names::default());
        for entry in turn.outbox().filter(|entry| entry.domain == to.domain.as_str() && entry.shard == to.shard) {
            before.get_or_insert(entry.before);
            entries.push(turn.to_outbox_entry(entry, from, record, names).map_err(|malformed| malformed.0)?);
        }
        Ok(Self { entries, before: before.ok_or("the record has no entry for the destination")? })
    }
}

/// The destinations and sequences of the outbox entries in a record.
///
/// # Errors
/// If the record is damaged.
pub fn sent_by(location: u64, record: &[u8]) -> Result<Vec<(ShardId, u64)>, Damage> {
    match Record::read(record, location) {
        Ok((_, _, Record::Turn(turn))) => {
            let names = &mut Names::default();
            let sent = turn.outbox().map(|entry| {
                let domain = names.get(entry.domain).map_err(|malformed| malformed.0)?;
                Ok((ShardId::new(domain, entry.shard), entry.sequence))
            });
            sent.collect()
        }
        Ok(_) => Ok(Vec::new()),
        Err(malformed) => Err(malformed.0),
    }
}

/// The actor type and key of the stream that a turn's record belongs to.
///
/// # Errors
/// If the record is damaged.
pub fn stream(location: u64, record: &[u8]) -> Result<(Name, String), Damage> {
    match Record::read(record, location) {
        Ok((_, _, Record::Turn(turn))) => {
            let actor = Names::default().get(turn.actor).map_err(|malformed| malformed.0)?;
            Ok((actor, turn.key.to_owned()))
        }
        Ok(_) => Err("the record is not a turn"),
        Err(malformed) => Err(malformed.0),
    }
}

/// The epoch of the writer of a record.
///
/// # Errors
/// If the record is damaged.
pub fn epoch(location: u64, record: &[u8]) -> Result<Epoch, Damage> {
    Record::read(record, location).map(|(_, epoch, _)| epoch).map_err(|malformed| malformed.0)
}

/// The dead letter of the message `id` in a record.
///
/// # Errors
/// If the record is damaged or has no such dead letter.
pub fn dead_letter(location: u64, record: &Bytes, id: MessageId) -> Result<DeadLetter, Damage> {
    let turn = match Record::read(record, location) {
        Ok((_, _, Record::Turn(turn))) => turn,
        Ok(_) => return Err("the record is not a turn"),
        Err(malformed) => return Err(malformed.0),
    };
    let letter = turn.notes().find_map(|note| match note {
        NoteRecord::DeadLetter(letter) if letter.id == id => Some(letter),
        _ => None,
    });
    let letter = letter.ok_or("the record has no such dead letter")?;
    turn.to_dead_letter(letter, record, &mut Names::default()).map_err(|malformed| malformed.0)
}

#[cfg(test)]
mod tests;
