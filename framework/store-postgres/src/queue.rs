//! Appended rows that are not written yet, in groups.
//!
//! Called by the shards' writers, which add rows under a short lock, and by the [writer](crate::writer), which takes one group
//! at a time. Rows that come while a group is being written are the next group: there is no timer.
//!
//! A group is written as a whole or not at all, and groups are written in their order. So the rows of a shard reach the
//! database in the order of its locations, and a location is never missing before a committed one. The queue knows no
//! deadline: while the server is gone, rows wait until the limit in bytes rejects further ones.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio_postgres::types::{ToSql, Type};
use whizbang_core::message::ShardId;
use whizbang_core::store::{Epoch, StoreError, Ticket, Turn, Watermark};

use crate::columns::{Column, key_text};
use crate::shard::Shard;
use crate::tickets::Tickets;

/// A group has at most so many rows. More in one statement gain little throughput and cost latency.
const GROUP_ROWS: usize = 1024;

/// A group ends once its rows have so many bytes.
const GROUP_BYTES: usize = 4 * 1024 * 1024;

/// The rows of one shard in a group.
#[derive(Debug)]
pub(crate) struct Part {
    /// The shard in the opening that appended the rows.
    pub(crate) shard: Arc<Shard>,
    /// The last location in the group.
    pub(crate) last: u64,
    /// The last location of a turn, if there is any.
    pub(crate) last_turn: Option<u64>,
    /// The listener that is notified of the outcome.
    pub(crate) tickets: Arc<Tickets>,
    /// The last ticket of the rows.
    pub(crate) ticket: Ticket,
}

/// Rows that are committed together. A shard has one epoch in a group: the statement selects the rows of a shard by its row, so
/// an older opening of the same process would be committed with a newer one.
#[derive(Debug)]
pub(crate) struct Group {
    /// The shards with rows in the group: ids and epochs.
    shards: Column,
    /// The epoch under which each of these shards appended. The statement writes nothing for a shard with another one.
    epochs: Column,
    /// The columns of the table `turns`, in the order of the statement.
    turns: [Column; 12],
    /// The columns of the table `event_data`.
    events: [Column; 7],
    /// The columns of the table `progress`.
    progress: [Column; 5],
    /// One part for each shard, in the order of their first rows.
    pub(crate) parts: Vec<Part>,
    /// The parts by the row of their shards, with the epoch: an append must not search all shards of the group.
    by_shard: HashMap<i32, (Epoch, usize)>,
    /// Turns and progress. Events are not counted.
    rows: usize,
    /// The bytes of the records and payloads, for the limits of the group and of the queue.
    bytes: usize,
    /// The rows of `progress`. A group without any uses a shorter statement.
    progress_rows: usize,
    /// The number of the last append.
    pub(crate) through: u64,
}

impl Group {
    /// Returns a group without rows. Its columns are allocated with the first row.
    fn new() -> Self {
        Self {
            shards: Column::int4(),
            epochs: Column::int8(),
            turns: [
                Column::int4(),
                Column::int8(),
                Column::text(),
                Column::text(),
                Column::int8(),
                Column::int8(),
                Column::int8(),
                Column::int4(),
                Column::timestamptz(),
                Column::uuid(),
                Column::uuid(),
                Column::bytea(),
            ],
            events: [
                Column::int4(),
                Column::int8(),
                Column::int8(),
                Column::text(),
                Column::int4(),
                Column::int2(),
                Column::bytea(),
            ],
            progress: [Column::int4(), Column::text(), Column::int8(), Column::int8(), Column::bytea()],
            parts: Vec::new(),
            by_shard: HashMap::new(),
            rows: 0,
            bytes: 0,
            progress_rows: 0,
            through: 0,
        }
    }

    /// Returns whether the group has progress, and so needs the longer statement.
    pub(crate) fn has_progress(&self) -> bool {
        self.progress_rows > 0
    }

    /// The columns of the statement, in the order of its parameters.
    pub(crate) fn columns(&self) -> Vec<&Column> {
        let heads = [&self.shards, &self.epochs];
        let columns = heads.into_iter().chain(&self.turns).chain(&self.events);
        if self.has_progress() { columns.chain(&self.progress).collect() } else { columns.collect() }
    }

    /// The columns with their types, for a statement that is not prepared.
    pub(crate) fn typed(&self) -> Vec<(&(dyn ToSql + Sync), Type)> {
        self.columns().into_iter().map(|column| (column as &(dyn ToSql + Sync), column.array_type())).collect()
    }

    /// The types of the parameters of a group's statement.
    pub(crate) fn types(has_progress: bool) -> Vec<Type> {
        let group = Self { progress_rows: usize::from(has_progress), ..Self::new() };
        group.columns().into_iter().map(Column::array_type).collect()
    }

    /// Returns whether the group has rows of another opening of a shard.
    fn has_other_epoch(&self, row: i32, epoch: Epoch) -> bool {
        self.by_shard.get(&row).is_some_and(|(other, _)| *other != epoch)
    }

    /// Returns the part of a shard, added if the group has none. Cost: one lookup, whatever the number of shards in the
    /// group.
    fn part(&mut self, shard: &Arc<Shard>, tickets: &Arc<Tickets>) -> &mut Part {
        let next = self.parts.len();
        let (_, number) = *self.by_shard.entry(shard.row).or_insert((shard.epoch, next));
        if number == next {
            self.shards.push_i32(shard.row);
            self.epochs.push_u64(shard.epoch);
            let (shard, tickets) = (Arc::clone(shard), Arc::clone(tickets));
            self.parts.push(Part { shard, last: 0, last_turn: None, tickets, ticket: 0 });
        }
        #[expect(clippy::indexing_slicing, reason = "the number was found or added just before")]
        &mut self.parts[number]
    }

    /// Adds the row of a turn and the rows of its events. `position` is that of the last event before it.
    fn push_turn(&mut self, shard: i32, location: u64, position: u64, turn: &Turn<'_>, record: &[u8]) {
        let [shards, locations, actors, keys, numbers, versions, positions, events, times, ids, correlations, records] =
            &mut self.turns;
        shards.push_i32(shard);
        locations.push_u64(location);
        actors.push_text(turn.actor);
        keys.push_text(&key_text(turn.key));
        numbers.push_u64(turn.number);
        versions.push_u64(turn.version);
        positions.push_u64(position);
        // A turn has at most 2 MiB.
        events.push_i32(turn.events.len() as i32);
        times.push_time(turn.time);
        ids.push_uuid(turn.id.as_u128());
        correlations.push_uuid(turn.correlation.as_u128());
        records.push_bytes(record);
        let [shards, positions, locations, names, versions, codecs, payloads] = &mut self.events;
        for (event, position) in turn.events.iter().zip(position + 1..) {
            shards.push_i32(shard);
            positions.push_u64(position);
            locations.push_u64(location);
            names.push_text(event.name);
            // Versions above 2^31 are shown as negative numbers; the record keeps the true one.
            versions.push_i32(event.version as i32);
            codecs.push_i16(i16::from(event.codec.id()));
            payloads.push_bytes(event.payload);
        }
    }

    /// Adds a row of progress. Several of one source are reduced to the last one by the statement.
    fn push_progress(&mut self, shard: i32, location: u64, progress: &Progress<'_>, record: &[u8]) {
        let (source, through) = progress.text();
        let [shards, sources, locations, throughs, records] = &mut self.progress;
        shards.push_i32(shard);
        sources.push_text(&source);
        locations.push_u64(location);
        throughs.push_u64(through);
        records.push_bytes(record);
        self.progress_rows += 1;
    }
}

/// A number that only rises, and is not part of a turn.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Progress<'a> {
    /// The watermark of a source.
    Received(&'a Watermark),
    /// The outbox sequence up to which a destination has committed.
    Sent(&'a ShardId, u64),
}

impl Progress<'_> {
    /// The name of the row, and the number.
    fn text(&self) -> (String, u64) {
        use whizbang_core::store::SourceKind;
        match self {
            Self::Received(watermark) => {
                let source = match &watermark.source.kind {
                    SourceKind::Direct => format!("direct from {}", watermark.source.shard),
                    SourceKind::Events { subscriber } => {
                        format!("events from {} to {subscriber}", watermark.source.shard)
                    }
                };
                (source, watermark.through)
            }
            Self::Sent(to, through) => (format!("sent to {to}"), *through),
        }
    }
}

/// A row that is added.
pub(crate) enum Row<'a> {
    /// A turn, and the position of the shard's last event before it.
    Turn(&'a Turn<'a>, u64),
    /// A watermark, or the confirmation of a destination.
    Progress(Progress<'a>),
}

/// The two states of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Appends are accepted.
    Open,
    /// Appends are rejected for good; what is there is still written.
    Closed,
}

/// The groups of one writer.
#[derive(Debug)]
pub(crate) struct Queue {
    /// Closed by the end of the store.
    state: State,
    /// The group that rows are added to.
    open: Group,
    /// Groups before it, oldest first, that are not being written yet.
    full: VecDeque<Group>,
    /// The bytes in all groups, the one that is being written included.
    bytes: usize,
    /// At most so many bytes wait.
    limit: usize,
    /// The number of the last append, and of the last that was written.
    appended: u64,
    /// The number of the last append whose group was written or dropped.
    written: u64,
    /// Callers that wait until the append with a number is written.
    waiters: Vec<(u64, oneshot::Sender<Result<(), StoreError>>)>,
    /// True while the writing thread waits for work.
    pub(crate) idle: bool,
    /// Set when an actor's thread has left a group unfinished, or when snapshots wait.
    pub(crate) unfinished: bool,
    /// The reason for which appends are rejected, while they are.
    pub(crate) refused: Option<StoreError>,
}

impl Queue {
    /// Returns an empty queue in which at most `limit` bytes wait.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            state: State::Open,
            open: Group::new(),
            full: VecDeque::new(),
            bytes: 0,
            limit,
            appended: 0,
            written: 0,
            waiters: Vec::new(),
            idle: false,
            unfinished: false,
            refused: None,
        }
    }

    /// Returns an error if nothing of about `bytes` bytes can be appended now.
    ///
    /// # Errors
    /// [`StoreError::Closed`] after the end, [`StoreError::Full`] beyond the limit, and the error of a server that has no
    /// space left. The caller rejects the turn, and its message is retried.
    pub(crate) fn accept(&self, bytes: usize) -> Result<(), StoreError> {
        if self.state == State::Closed {
            return Err(StoreError::Closed);
        }
        if let Some(error) = &self.refused {
            return Err(error.clone());
        }
        // A single turn always fits, whatever the limit.
        if self.bytes > 0 && self.bytes + bytes > self.limit {
            return Err(StoreError::Full { at: "the queue of commits that wait for PostgreSQL".to_owned() });
        }
        Ok(())
    }

    /// Adds a row and returns its ticket. The caller has checked with [`accept`](Self::accept) that it fits. Cost: the size
    /// of the row, whatever else waits.
    pub(crate) fn push(
        &mut self,
        shard: &Arc<Shard>,
        tickets: &Arc<Tickets>,
        location: u64,
        row: &Row<'_>,
        record: &[u8],
    ) -> Ticket {
        if self.open.rows >= GROUP_ROWS
            || self.open.bytes >= GROUP_BYTES
            || self.open.has_other_epoch(shard.row, shard.epoch)
        {
            self.full.push_back(std::mem::replace(&mut self.open, Group::new()));
        }
        let group = &mut self.open;
        // Under the queue's lock, so that tickets rise in the order in which rows are written.
        let ticket = tickets.next();
        let before = group.bytes;
        let part = group.part(shard, tickets);
        (part.last, part.ticket) = (location, ticket);
        match row {
            Row::Turn(turn, position) => {
                part.last_turn = Some(location);
                group.push_turn(shard.row, location, *position, turn, record);
                group.bytes += turn.events.iter().map(|event| event.payload.len()).sum::<usize>();
            }
            Row::Progress(progress) => group.push_progress(shard.row, location, progress, record),
        }
        group.rows += 1;
        group.bytes += record.len() + 128;
        self.bytes += group.bytes - before;
        self.appended += 1;
        group.through = self.appended;
        ticket
    }

    /// Returns whether no group waits. One may be on its way to the server.
    pub(crate) fn is_empty(&self) -> bool {
        self.open.rows == 0 && self.full.is_empty()
    }

    /// Takes the next group. The caller holds the lock of the line, so that groups are written in the order in which they are
    /// taken.
    pub(crate) fn take(&mut self) -> Option<Group> {
        self.full.pop_front().or_else(|| (self.open.rows > 0).then(|| std::mem::replace(&mut self.open, Group::new())))
    }

    /// Marks a group as written, and returns the waiters that this completes.
    pub(crate) fn written(&mut self, group: &Group) -> Vec<oneshot::Sender<Result<(), StoreError>>> {
        self.bytes = self.bytes.saturating_sub(group.bytes);
        self.written = group.through;
        let written = self.written;
        self.waiters.extract_if(.., |(through, _)| *through <= written).map(|(_, waiter)| waiter).collect()
    }

    /// Drops everything that was appended and is not written; returns all waiters. Called after the shards were failed, so
    /// nothing is appended behind it.
    pub(crate) fn fail(&mut self) -> Vec<oneshot::Sender<Result<(), StoreError>>> {
        (self.open, self.bytes, self.written) = (Group::new(), 0, self.appended);
        self.full.clear();
        std::mem::take(&mut self.waiters).into_iter().map(|(_, waiter)| waiter).collect()
    }

    /// Resolves once everything that was appended so far is written. The receiver gets the error if the rows are dropped
    /// instead. Waiting for it does not make the writer write earlier.
    pub(crate) fn flushed(&mut self) -> oneshot::Receiver<Result<(), StoreError>> {
        let (sender, receiver) = oneshot::channel();
        if self.written == self.appended {
            // The receiver still exists.
            let _ = sender.send(Ok(()));
        } else {
            self.waiters.push((self.appended, sender));
        }
        receiver
    }

    /// Rejects further appends.
    pub(crate) fn close(&mut self) {
        self.state = State::Closed;
    }

    /// Returns whether appends are rejected for good.
    pub(crate) fn is_closed(&self) -> bool {
        self.state == State::Closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openings_of_one_shard_are_in_different_groups() {
        let mut group = Group::new();
        assert!(!group.has_other_epoch(1, 3), "an empty group");
        group.by_shard.insert(1, (3, 0));
        assert!(!group.has_other_epoch(1, 3) && !group.has_other_epoch(2, 4));
        assert!(group.has_other_epoch(1, 4) && group.has_other_epoch(1, 2));
    }
}
