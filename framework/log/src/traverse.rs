//! Traverses a shard's log along its links, from the newest record of a stream, of the events or of a destination to
//! the older ones.
//!
//! Called by the readers of stores that keep a log, which provide access to records through [`Log`]. Each record is
//! checked against the link that led to it. A record of another stream or with another number is reported as damage and
//! never returned.

use std::cell::Cell;
use std::ops::RangeInclusive;

use bytes::Bytes;

use crate::index::{Head, Walk};
use crate::record::{Location, Malformed, MarkRecord, Names, NoteRecord, Record, TurnRecord};
use whizbang_core::message::{MessageId, Name, ShardId};
use whizbang_core::store::{DeadLetter, OutboxEntry, Snapshot, StoreError, StoredEvent, StoredTurn, StreamState};

/// Access to the records of a log.
pub trait Log {
    /// Returns the bytes of the record at `location`.
    fn read(&self, location: Location) -> Result<Bytes, StoreError>;

    /// Returns the error for invalid bytes at `location`.
    fn damaged(&self, location: Location, reason: Malformed) -> StoreError;
}

/// A snapshot with the location of the last turn it includes; 0 if the location is not known.
#[derive(Clone, Debug)]
pub struct Located {
    /// The location of the turn of the snapshot; 0 if it is not known.
    pub location: Location,
    /// The snapshot.
    pub snapshot: Snapshot,
}

/// The number of turns of a stream for which memory is reserved at once. For more turns it grows as records are read.
const MAX_RESERVED_TURNS: usize = 4096;

/// A hash collision or a damaged link.
const OTHER_STREAM: Malformed = Malformed("a stream's link leads to another stream");
/// The damage of a link that leads to a watermark, an opening, or the progress of a destination.
const NO_TURN: Malformed = Malformed("a link leads to a record that is not a turn");
/// The damage of a stream in which a turn is missing.
const NUMBERS: Malformed = Malformed("the numbers or versions of a stream's turns have a gap");

/// Reads a record that must be a turn.
fn turn<'a>(log: &impl Log, bytes: &'a Bytes, location: Location) -> Result<TurnRecord<'a>, StoreError> {
    match Record::read(bytes, location) {
        Ok((_, _, Record::Turn(turn))) => Ok(turn),
        Ok(_) => Err(log.damaged(location, NO_TURN)),
        Err(malformed) => Err(log.damaged(location, malformed)),
    }
}

/// The most turns in a page of a stream.
pub const PAGE_TURNS: u64 = 256;

/// The size of records after which a page of a stream ends.
const PAGE_BYTES: usize = 1024 * 1024;

/// Returns the snapshot of a stream if it is usable with the log up to `head`.
fn usable(head: Head, snapshot: Option<Located>) -> Option<Located> {
    snapshot.filter(|located| located.snapshot.turn <= head.number)
}

/// Returns whether the snapshot is of this turn.
fn is_at(snapshot: Option<&Located>, location: Location, number: u64) -> bool {
    snapshot.is_some_and(|located| {
        located.snapshot.turn == number && (located.location == location || located.location == 0)
    })
}

/// Visits the records of a stream from `head` back to the turn after the snapshot, or to the turn after `floor`.
/// Returns whether it reached the snapshot.
fn walk_back(
    log: &impl Log,
    head: Head,
    floor: u64,
    actor: &str,
    key: &str,
    snapshot: Option<&Located>,
    mut each: impl FnMut(&TurnRecord<'_>, &Bytes, Location) -> Result<(), StoreError>,
) -> Result<bool, StoreError> {
    let (mut location, mut number) = (head.location, head.number);
    let mut version = None;
    while number > floor {
        if is_at(snapshot, location, number) {
            return Ok(true);
        }
        let bytes = log.read(location)?;
        let record = turn(log, &bytes, location)?;
        if record.actor != actor || record.key != key {
            return Err(log.damaged(location, OTHER_STREAM));
        }
        let after = record.version + record.events_count() as u64;
        if record.number != number
            || version.is_some_and(|version| version != after)
            || (record.stream == 0) != (number == 1)
        {
            return Err(log.damaged(location, NUMBERS));
        }
        each(&record, &bytes, location)?;
        version = Some(record.version);
        (location, number) = (record.stream, number - 1);
    }
    Ok(false)
}

/// Loads a stream up to `head`: from the snapshot if it matches, otherwise from the first turn.
pub fn load(
    log: &impl Log,
    head: Option<Head>,
    actor: &str,
    key: &str,
    snapshot: Option<Located>,
) -> Result<StreamState, StoreError> {
    let mut state = StreamState::default();
    let Some(head) = head else { return Ok(state) };
    let snapshot = usable(head, snapshot);
    let known = snapshot.as_ref().map_or(0, |located| located.snapshot.turn);
    state
        .turns
        .reserve(usize::try_from(head.number.saturating_sub(known)).unwrap_or(usize::MAX).min(MAX_RESERVED_TURNS));
    let mut names = Names::default();
    let met = walk_back(log, head, 0, actor, key, snapshot.as_ref(), |record, bytes, location| {
        let stored = record.to_turn(bytes, &mut names).map_err(|reason| log.damaged(location, reason))?;
        state.turns.push(stored);
        Ok(())
    })?;
    state.snapshot = snapshot.filter(|_| met).map(|located| located.snapshot);
    state.turns.reverse();
    Ok(state)
}

/// Loads a stream as [`load`] does if it fits into one page; `None` if it has more turns or more bytes. One turn always fits.
/// Reads at most a page and one record.
pub fn load_short(
    log: &impl Log,
    head: Option<Head>,
    actor: &str,
    key: &str,
    snapshot: Option<Located>,
) -> Result<Option<StreamState>, StoreError> {
    let known = snapshot.as_ref().map_or(0, |located| located.snapshot.turn);
    if head.is_some_and(|head| head.number.saturating_sub(known) > PAGE_TURNS) {
        return Ok(None);
    }
    let limited = Limited { log, read: Cell::new(0), has_stopped: Cell::new(false) };
    match load(&limited, head, actor, key, snapshot) {
        Err(_) if limited.has_stopped.get() => Ok(None),
        loaded => loaded.map(Some),
    }
}

/// A log that returns an error once more than a page was read.
struct Limited<'a, L> {
    log: &'a L,
    read: Cell<usize>,
    has_stopped: Cell<bool>,
}

impl<L: Log> Log for Limited<'_, L> {
    fn read(&self, location: Location) -> Result<Bytes, StoreError> {
        if self.read.get() >= PAGE_BYTES {
            self.has_stopped.set(true);
            return Err(StoreError::Closed);
        }
        let bytes = self.log.read(location)?;
        self.read.set(self.read.get() + bytes.len());
        Ok(bytes)
    }

    fn damaged(&self, location: Location, reason: Malformed) -> StoreError {
        self.log.damaged(location, reason)
    }
}

/// Returns the ends of the pages of a stream, newest first, and the snapshot before them. Reads all records but keeps
/// only 16 bytes per page, so memory does not grow with the length of the stream.
pub fn page_ends(
    log: &impl Log,
    head: Head,
    actor: &str,
    key: &str,
    snapshot: Option<Located>,
) -> Result<(Option<Snapshot>, Vec<Head>), StoreError> {
    let snapshot = usable(head, snapshot);
    let (mut pages, mut turns, mut bytes): (Vec<Head>, _, _) = (Vec::new(), 0, 0);
    let met = walk_back(log, head, 0, actor, key, snapshot.as_ref(), |record, read, location| {
        if turns == 0 || turns >= PAGE_TURNS || bytes >= PAGE_BYTES {
            pages.push(Head { location, number: record.number });
            (turns, bytes) = (0, 0);
        }
        turns += 1;
        bytes += read.len();
        Ok(())
    })?;
    Ok((snapshot.filter(|_| met).map(|located| located.snapshot), pages))
}

/// Returns the turns of the page that ends with `end`, from the turn after `floor`, oldest first.
pub fn page(log: &impl Log, end: Head, floor: u64, actor: &str, key: &str) -> Result<Vec<StoredTurn>, StoreError> {
    let (mut names, mut turns) = (Names::default(), Vec::new());
    walk_back(log, end, floor, actor, key, None, |record, bytes, location| {
        turns.push(record.to_turn(bytes, &mut names).map_err(|reason| log.damaged(location, reason))?);
        Ok(())
    })?;
    turns.reverse();
    Ok(turns)
}

/// Returns the turn at the first of `places` that belongs to the stream and handled the message `id` from outside.
///
/// The locations come from a hash index; one that leads to another stream or message is skipped.
pub fn find_turn(
    log: &impl Log,
    places: impl IntoIterator<Item = Location>,
    actor: &str,
    key: &str,
    id: MessageId,
) -> Result<Option<StoredTurn>, StoreError> {
    for location in places {
        let bytes = log.read(location)?;
        let record = turn(log, &bytes, location)?;
        let is_outside = matches!(record.mark, MarkRecord::Outside { .. });
        if record.actor == actor && record.key == key && record.id == id && is_outside {
            let stored = record.to_turn(&bytes, &mut Names::default());
            return stored.map(Some).map_err(|reason| log.damaged(location, reason));
        }
    }
    Ok(None)
}

/// Returns the events with positions above `after` up to and including `to`, following the links from the record at
/// `from`. The records of later events on the way are added to `walk`: the next page begins at one of them.
pub fn events(
    log: &impl Log,
    from: Location,
    after: u64,
    to: u64,
    walk: &mut Walk,
) -> Result<Vec<StoredEvent>, StoreError> {
    let mut found: Vec<(Location, Bytes)> = Vec::new();
    let mut location = from;
    while location != 0 {
        let bytes = log.read(location)?;
        let record = turn(log, &bytes, location)?;
        let (before, first) = (record.events_before, record.position);
        let last = first + record.events_count() as u64;
        if last > to {
            walk.pass(last, location);
        }
        if first < to {
            found.push((location, bytes));
        }
        if first <= after {
            break;
        }
        location = before;
    }
    let mut names = Names::default();
    let mut events = Vec::new();
    for (location, bytes) in found.iter().rev() {
        let record = turn(log, bytes, *location)?;
        record.push_events(bytes, &mut names, &mut events).map_err(|reason| log.damaged(*location, reason))?;
    }
    events.retain(|event| event.position > after && event.position <= to);
    let whole = events.iter().zip(after + 1..).all(|(event, position)| event.position == position);
    if !whole || events.len() as u64 != to.saturating_sub(after) {
        return Err(log.damaged(from, Malformed("the positions of the shard have a gap")));
    }
    Ok(events)
}

/// Returns the outbox entries of `shard` for `to` with sequences in `wanted`, following the links from the record at
/// `from`. The records of later entries on the way are added to `walk`: the next page begins at one of them.
pub fn outbox(
    log: &impl Log,
    shard: &ShardId,
    to: &ShardId,
    from: Location,
    wanted: RangeInclusive<u64>,
    walk: &mut Walk,
) -> Result<Vec<OutboxEntry>, StoreError> {
    let (wanted_first, last) = wanted.into_inner();
    let mut found: Vec<(Location, Bytes)> = Vec::new();
    let mut location = from;
    let is_to = |domain: &str, number: u16| domain == to.domain.as_str() && number == to.shard;
    while location != 0 {
        let bytes = log.read(location)?;
        let record = turn(log, &bytes, location)?;
        let mut entries = record.outbox().filter(|entry| is_to(entry.domain, entry.shard));
        let Some(first) = entries.next() else {
            return Err(log.damaged(location, Malformed("a link does not lead to an entry for the destination")));
        };
        let end = entries.last().map_or(first.sequence, |entry| entry.sequence);
        let (sequence, before) = (first.sequence, first.before);
        if end > last {
            walk.pass(end, location);
        }
        if sequence <= last {
            found.push((location, bytes));
        }
        if sequence <= wanted_first {
            break;
        }
        location = before;
    }
    let mut names = Names::default();
    let mut entries = Vec::new();
    for (location, bytes) in found.iter().rev() {
        let record = turn(log, bytes, *location)?;
        for entry in record.outbox().filter(|entry| is_to(entry.domain, entry.shard)) {
            if entry.sequence >= wanted_first && entry.sequence <= last {
                let entry = record.to_outbox_entry(entry, shard, bytes, &mut names);
                entries.push(entry.map_err(|reason| log.damaged(*location, reason))?);
            }
        }
    }
    let whole = entries.iter().zip(wanted_first..).all(|(entry, sequence)| entry.sequence == sequence);
    if !whole || entries.len() as u64 != (last + 1).saturating_sub(wanted_first) {
        return Err(log.damaged(from, Malformed("the sequences for a destination have a gap")));
    }
    Ok(entries)
}

/// Returns the dead letters at these locations.
pub fn dead_letters(log: &impl Log, places: &[(MessageId, Location)]) -> Result<Vec<DeadLetter>, StoreError> {
    let mut names = Names::default();
    let mut letters = Vec::new();
    for (id, location) in places {
        let bytes = log.read(*location)?;
        let record = turn(log, &bytes, *location)?;
        let letter = record.notes().find_map(|note| match note {
            NoteRecord::DeadLetter(letter) if letter.id == *id => Some(letter),
            _ => None,
        });
        let letter =
            letter.ok_or_else(|| log.damaged(*location, Malformed("a dead letter is missing from its record")))?;
        letters
            .push(record.to_dead_letter(letter, &bytes, &mut names).map_err(|reason| log.damaged(*location, reason))?);
    }
    Ok(letters)
}

/// Returns actor type and key of the streams whose newest turns are at these locations.
pub fn streams(log: &impl Log, heads: &[Location]) -> Result<Vec<(Name, String)>, StoreError> {
    let mut names = Names::default();
    let mut streams = Vec::with_capacity(heads.len());
    for location in heads {
        let bytes = log.read(*location)?;
        let record = turn(log, &bytes, *location)?;
        let actor = names.get(record.actor).map_err(|reason| log.damaged(*location, reason))?;
        streams.push((actor, record.key.to_owned()));
    }
    Ok(streams)
}

#[cfg(test)]
mod tests;
