//! Reads what is committed in a shard.
//!
//! Called by actors, the relay and projections, on any thread. Requests that must be answered at once are read from the
//! index in memory; the rest is one statement each. Rows are checked against the index: a row that is missing is an error, never an answer.
//!
//! # Damage
//! The rows of a stream, the positions of a shard and the sequences for a destination have no gaps. A missing row is
//! therefore always damage, for example by a partial restore, and fails the read with [`StoreError::Corrupt`]. No read
//! returns a part of what was asked for as if it was all.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{MessageId, Name, ShardId};
use whizbang_core::store::{
    DeadLetter, OutboxEntry, ShardReader, Snapshot, Source, StoreError, StoredEvent, StoredTurn, StreamPages,
    StreamState, Timer, TimerCursor, TimerPage, Watermark,
};
use whizbang_log::shard_log::{self, Damage, OutboxRecords, TurnRow};

use crate::columns::key_text;
use crate::pool::{Parameters, Pool, bytes, payloads};
use crate::shard::Shard;
use crate::sql::Sql;

/// A page of a stream has at most so many turns.
const PAGE_TURNS: i64 = 256;

/// The operation that errors name when a stream is read.
const LOADING: &str = "loading a stream from PostgreSQL";
/// The operation that errors name when events, entries or dead letters are read.
const READING: &str = "reading the log from PostgreSQL";

/// A handle on one shard. It answers from what is committed, also while later turns wait for their commit.
pub(crate) struct Reader {
    /// The shared connections for reading.
    pool: Arc<Pool>,
    /// The statements with the name of the schema.
    sql: Arc<Sql>,
    /// The index, which decides what exists. The rows only have the content.
    shard: Arc<Shard>,
}

/// Converts a count or location for a parameter. None is beyond `i64`.
fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Reads a turn and the payloads of its events, in three columns from `location` on.
fn turn_row(row: &Row, location: usize) -> TurnRow {
    let at = row.get::<_, i64>(location).unsigned_abs();
    TurnRow::new(at, bytes(row, location + 1), payloads(row, location + 2))
}

impl Reader {
    /// Returns a reader. Readers share the pool and the index, so they cost nothing.
    pub(crate) fn new(pool: Arc<Pool>, sql: Arc<Sql>, shard: Arc<Shard>) -> Self {
        Self { pool, sql, shard }
    }

    /// Returns the error for a row that contradicts the index. The file in it is the table.
    fn damaged(&self, location: u64, reason: Damage) -> StoreError {
        let file = PathBuf::from(format!("{}, shard {}", self.sql.table("turns"), self.shard.id));
        StoreError::Corrupt { file, offset: location, reason: reason.to_owned() }
    }

    /// Runs a statement on any connection of the pool.
    async fn query(&self, doing: &str, sql: &str, parameters: &Parameters<'_>) -> Result<Vec<Row>, StoreError> {
        self.pool.query(doing, sql, parameters).await
    }

    /// The newest committed turn of a stream and the snapshot that is not in the table yet.
    fn head(&self, actor: &Name, key: &str) -> Option<(u64, Option<Snapshot>)> {
        self.shard.look(|state| {
            let head = state.log.head(actor, key)?;
            Some((head.number, state.fresh(actor, key, head.number)))
        })
    }

    /// Decodes the turns of a stream and checks that none is missing between them.
    fn turns(&self, rows: &[Row], actor: &str, key: &str, floor: u64) -> Result<Vec<StoredTurn>, StoreError> {
        let mut turns = Vec::with_capacity(rows.len());
        for (row, expected) in rows.iter().zip(floor + 1..) {
            let location = row.get::<_, i64>(0).unsigned_abs();
            let turn = turn_row(row, 0).to_turn(actor, key).map_err(|reason| self.damaged(location, reason))?;
            if turn.number != expected {
                return Err(self.damaged(location, "a turn of the stream before it is missing"));
            }
            turns.push(turn);
        }
        Ok(turns)
    }

    /// The turns after `floor` up to `last`, at most `limit`.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if one of them is missing. The store reports it in its health.
    async fn range(
        &self,
        actor: &str,
        key: &str,
        floor: u64,
        last: u64,
        limit: i64,
    ) -> Result<Vec<StoredTurn>, StoreError> {
        let text = key_text(key);
        let (from, to) = (number(floor), number(last));
        let parameters: &Parameters<'_> = &[
            (&self.shard.row, Type::INT4),
            (&actor, Type::TEXT),
            (&text, Type::TEXT),
            (&from, Type::INT8),
            (&to, Type::INT8),
            (&limit, Type::INT8),
        ];
        let rows = self.query(LOADING, &self.sql.turns, parameters).await?;
        let turns = self.turns(&rows, actor, key, floor)?;
        let whole = last.saturating_sub(floor).min(limit.unsigned_abs());
        if turns.len() as u64 != whole {
            return Err(self.damaged(0, "a turn of a stream is missing"));
        }
        Ok(turns)
    }

    /// Loads the state of a stream in one request. A snapshot that waits to be written is newer than the one in the table.
    /// One request reads both, so the snapshot and the turns are of one moment.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if a turn between the snapshot and the head is missing.
    async fn load_now(&self, actor: &Name, key: &str) -> Result<StreamState, StoreError> {
        let Some((last, fresh)) = self.head(actor, key) else { return Ok(StreamState::default()) };
        if let Some(snapshot) = fresh {
            let turns = self.range(actor, key, snapshot.turn, last, i64::MAX).await?;
            return Ok(StreamState { snapshot: Some(snapshot), turns });
        }
        let text = key_text(key);
        let to = number(last);
        let parameters: &Parameters<'_> =
            &[(&self.shard.row, Type::INT4), (&actor.as_str(), Type::TEXT), (&text, Type::TEXT), (&to, Type::INT8)];
        let rows = self.query(LOADING, &self.sql.load, parameters).await?;
        let snapshot = rows.first().filter(|row| row.get::<_, i64>(0) == 0).map(|row| snapshot(row, 1));
        let mut floor = snapshot.as_ref().map_or(0, |snapshot| snapshot.turn);
        let mut turns = Vec::with_capacity(rows.len());
        for row in rows.iter().skip(usize::from(snapshot.is_some())) {
            let location = row.get::<_, i64>(1).unsigned_abs();
            let record = TurnRow::new(location, bytes(row, 4), payloads(row, 5));
            let turn = record.to_turn(actor, key).map_err(|reason| self.damaged(location, reason))?;
            floor += 1;
            if turn.number != floor {
                return Err(self.damaged(location, "a turn of the stream before it is missing"));
            }
            turns.push(turn);
        }
        if floor != last {
            return Err(self.damaged(0, "the last turn of a stream is missing"));
        }
        Ok(StreamState { snapshot, turns })
    }

    /// Begins to read a stream page by page, for histories that should not be in memory as a whole.
    async fn pages_now(&self, actor: &Name, key: &str, use_snapshot: bool) -> Result<Pages, StoreError> {
        let found = self.head(actor, key);
        let (last, fresh) = found.unwrap_or_default();
        let mut pages = Pages {
            reader: Self::new(Arc::clone(&self.pool), Arc::clone(&self.sql), Arc::clone(&self.shard)),
            actor: actor.clone(),
            key: key.to_owned(),
            snapshot: fresh.filter(|_| use_snapshot),
            floor: 0,
            last,
        };
        if use_snapshot && pages.snapshot.is_none() && last > 0 {
            let text = key_text(key);
            let to = number(last);
            let parameters: &Parameters<'_> =
                &[(&self.shard.row, Type::INT4), (&actor.as_str(), Type::TEXT), (&text, Type::TEXT), (&to, Type::INT8)];
            let rows = self.query(LOADING, &self.sql.snapshot, parameters).await?;
            pages.snapshot = rows.first().map(|row| snapshot(row, 0));
        }
        pages.floor = pages.snapshot.as_ref().map_or(0, |snapshot| snapshot.turn);
        Ok(pages)
    }

    /// Finds the turn that handled a message. The index has candidates by a part of the id; the rows decide.
    async fn find_now(&self, actor: &Name, key: &str, id: MessageId) -> Result<Option<StoredTurn>, StoreError> {
        let locations = self.shard.look(|state| state.log.turns_of(actor, key, id));
        if locations.is_empty() {
            return Ok(None);
        }
        let rows = self.at(&self.sql.at, &locations).await?;
        for row in rows.iter().rev() {
            let location = row.get::<_, i64>(0).unsigned_abs();
            let found = turn_row(row, 0).handled(actor, key, id).map_err(|reason| self.damaged(location, reason))?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The rows at some locations, in their order.
    async fn at(&self, sql: &str, locations: &[u64]) -> Result<Vec<Row>, StoreError> {
        let mut wanted: Vec<i64> = locations.iter().map(|location| number(*location)).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let rows = self.query(READING, sql, &[(&self.shard.row, Type::INT4), (&wanted, Type::INT8_ARRAY)]).await?;
        match rows.len() == wanted.len() {
            true => Ok(rows),
            false => Err(self.damaged(0, "a turn is missing")),
        }
    }

    /// Reads events above a position. A gap is damage, because the positions of a shard have none.
    async fn events_now(&self, after: u64, limit: usize) -> Result<Vec<StoredEvent>, StoreError> {
        let last = after.saturating_add(limit as u64).min(self.shard.look(|state| state.log.position()));
        if last <= after {
            return Ok(Vec::new());
        }
        let (from, to) = (number(after), number(last));
        let parameters: &Parameters<'_> = &[(&self.shard.row, Type::INT4), (&from, Type::INT8), (&to, Type::INT8)];
        let rows = self.query(READING, &self.sql.events, parameters).await?;
        let mut events = Vec::new();
        for row in &rows {
            let location = row.get::<_, i64>(0).unsigned_abs();
            events.extend(turn_row(row, 0).events().map_err(|reason| self.damaged(location, reason))?);
        }
        events.retain(|event| event.position > after && event.position <= last);
        let is_whole = events.iter().map(|event| event.position).eq(after + 1..=last);
        if is_whole { Ok(events) } else { Err(self.damaged(0, "the positions of the shard have a gap")) }
    }

    /// Reads the outbox entries for a destination above a sequence.
    async fn outbox_now(&self, to: &ShardId, after: u64, limit: usize) -> Result<Vec<OutboxEntry>, StoreError> {
        let found = self.shard.look(|state| {
            let (last, _) = state.log.destination(to, 0)?;
            let last = after.saturating_add(limit as u64).min(last);
            let from = state.log.destination(to, last).map_or(0, |(_, from)| from);
            Some((last, from, state.waiting(to, after + 1, last)))
        });
        let Some((last, from, waiting)) = found.filter(|(last, ..)| *last > after) else { return Ok(Vec::new()) };
        let mut entries = match waiting {
            Some(locations) => self.entries_at(to, &locations).await?,
            None => self.older_entries(to, from, after).await?,
        };
        entries.retain(|entry| entry.sequence > after && entry.sequence <= last);
        let is_whole = entries.iter().map(|entry| entry.sequence).eq(after + 1..=last);
        if is_whole { Ok(entries) } else { Err(self.damaged(from, "the sequences for a destination have a gap")) }
    }

    /// Reads the entries for a destination in the records at some locations.
    async fn entries_at(&self, to: &ShardId, locations: &[u64]) -> Result<Vec<OutboxEntry>, StoreError> {
        let mut entries = Vec::new();
        for row in self.at(&self.sql.records, locations).await? {
            let (location, record) = (row.get::<_, i64>(0).unsigned_abs(), bytes(&row, 1));
            entries.extend(self.entries(to, location, &record)?.entries);
        }
        Ok(entries)
    }

    /// Decodes the entries of one record, and the location of the record before it.
    fn entries(&self, to: &ShardId, location: u64, record: &Bytes) -> Result<OutboxRecords, StoreError> {
        let read = OutboxRecords::read(location, record, &self.shard.id, to);
        read.map_err(|reason| self.damaged(location, reason))
    }

    /// Entries that the destination has confirmed once: it was restored from an older backup. Follows the links from one
    /// record to the one before it, a request for each. Rare, so the number of requests does not matter. The number of
    /// entries is bounded by the caller's limit.
    async fn older_entries(&self, to: &ShardId, from: u64, after: u64) -> Result<Vec<OutboxEntry>, StoreError> {
        let (mut location, mut found) = (from, Vec::new());
        while location != 0 {
            let rows = self.at(&self.sql.records, &[location]).await?;
            let Some(row) = rows.first() else { break };
            let read = self.entries(to, location, &bytes(row, 1))?;
            let first = read.entries.first().map_or(0, |entry| entry.sequence);
            location = if first <= after + 1 { 0 } else { read.before };
            found.push(read.entries);
        }
        Ok(found.into_iter().rev().flatten().collect())
    }

    /// Reads dead letters in the order of their ids, behind `after`.
    async fn dead_letters_now(&self, after: Option<MessageId>, limit: usize) -> Result<Vec<DeadLetter>, StoreError> {
        let places = self.shard.look(|state| state.log.dead_letters(after, limit));
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let locations: Vec<u64> = places.iter().map(|(_, location)| *location).collect();
        let rows = self.at(&self.sql.records, &locations).await?;
        let mut letters = Vec::with_capacity(places.len());
        for (id, location) in places {
            // The rows are sorted by their location.
            let row = rows.binary_search_by_key(&number(location), |row| row.get::<_, i64>(0));
            let row = row.ok().and_then(|row| rows.get(row)).ok_or_else(|| self.damaged(location, "it is missing"))?;
            let letter = shard_log::dead_letter(location, &bytes(row, 1), id);
            letters.push(letter.map_err(|reason| self.damaged(location, reason))?);
        }
        Ok(letters)
    }

    /// Lists the streams of a shard: each has a turn with the number 1. Costs the number of streams.
    async fn streams_now(&self) -> Result<Vec<(Name, String)>, StoreError> {
        let before = number(self.shard.committed());
        let parameters: &Parameters<'_> = &[(&self.shard.row, Type::INT4), (&before, Type::INT8)];
        let mut streams = Vec::new();
        for row in self.query(READING, &self.sql.streams, parameters).await? {
            let (location, record) = (row.get::<_, i64>(0).unsigned_abs(), bytes(&row, 1));
            streams.push(shard_log::stream(location, &record).map_err(|reason| self.damaged(location, reason))?);
        }
        Ok(streams)
    }
}

/// A snapshot in the columns from `first` on.
fn snapshot(row: &Row, first: usize) -> Snapshot {
    let number = |column: usize| row.get::<_, i64>(first + column).unsigned_abs();
    Snapshot {
        turn: number(0),
        version: number(1),
        schema: u32::try_from(number(2)).unwrap_or(u32::MAX),
        bytes: bytes(row, first + 3),
    }
}

impl ShardReader for Reader {
    fn position(&self) -> u64 {
        self.shard.look(|state| state.log.position())
    }

    fn load<'a>(&'a self, actor: &'a Name, key: &'a str) -> BoxFuture<'a, Result<StreamState, StoreError>> {
        self.load_now(actor, key).boxed()
    }

    fn pages<'a>(
        &'a self,
        actor: &'a Name,
        key: &'a str,
        snapshot: bool,
    ) -> BoxFuture<'a, Result<Box<dyn StreamPages>, StoreError>> {
        async move { Ok(Box::new(self.pages_now(actor, key, snapshot).await?) as Box<dyn StreamPages>) }.boxed()
    }

    fn history<'a>(&'a self, actor: &'a Name, key: &'a str) -> BoxFuture<'a, Result<Vec<StoredTurn>, StoreError>> {
        async move {
            match self.head(actor, key) {
                Some((last, _)) => self.range(actor, key, 0, last, i64::MAX).await,
                None => Ok(Vec::new()),
            }
        }
        .boxed()
    }

    fn find_turn<'a>(
        &'a self,
        actor: &'a Name,
        key: &'a str,
        id: MessageId,
    ) -> BoxFuture<'a, Result<Option<StoredTurn>, StoreError>> {
        self.find_now(actor, key, id).boxed()
    }

    fn events(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<StoredEvent>, StoreError>> {
        self.events_now(after, limit).boxed()
    }

    fn outbox<'a>(
        &'a self,
        to: &'a ShardId,
        after: u64,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<OutboxEntry>, StoreError>> {
        self.outbox_now(to, after, limit).boxed()
    }

    fn outbox_heads(&self) -> Vec<(ShardId, u64, u64)> {
        self.shard.look(|state| state.log.destinations())
    }

    fn watermarks(&self) -> Vec<Watermark> {
        self.shard.look(|state| state.log.watermarks())
    }

    fn watermark(&self, source: &Source) -> u64 {
        self.shard.look(|state| state.log.watermark(source))
    }

    fn timers_due(&self, now: Timestamp, limit: usize) -> Vec<Timer> {
        self.shard.look(|state| state.log.timers_due(now, limit))
    }

    fn next_timer(&self) -> Option<Timestamp> {
        self.shard.look(|state| state.log.next_timer())
    }

    fn timers_of(&self, actor: &Name, after: TimerCursor, now: Timestamp, limit: usize) -> TimerPage {
        self.shard.look(|state| state.log.timers_of(actor, after, now, limit))
    }

    fn timer_counts(&self) -> Vec<(Name, usize)> {
        self.shard.look(|state| state.log.timer_counts())
    }

    fn dead_letters(
        &self,
        after: Option<MessageId>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<DeadLetter>, StoreError>> {
        self.dead_letters_now(after, limit).boxed()
    }

    fn dead_letter_count(&self) -> u64 {
        self.shard.look(|state| state.log.dead_letter_count())
    }

    fn streams(&self) -> BoxFuture<'_, Result<Vec<(Name, String)>, StoreError>> {
        self.streams_now().boxed()
    }
}

/// A stream that is read page by page, a request for each.
struct Pages {
    /// A reader of its own, so that the pages may outlive the one that they came from.
    reader: Reader,
    /// The actor type of the stream.
    actor: Name,
    /// The key of the stream.
    key: String,
    /// The snapshot before the first page, if one was asked for and exists.
    snapshot: Option<Snapshot>,
    /// The last turn that was read, and the last one to be read.
    floor: u64,
    /// The last turn that was committed when the reading began. Later turns are not part of it.
    last: u64,
}

impl StreamPages for Pages {
    fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref()
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Vec<StoredTurn>, StoreError>> {
        async move {
            if self.floor >= self.last {
                return Ok(Vec::new());
            }
            let page = self.reader.range(&self.actor, &self.key, self.floor, self.last, PAGE_TURNS).await?;
            self.floor += page.len() as u64;
            Ok(page)
        }
        .boxed()
    }
}
