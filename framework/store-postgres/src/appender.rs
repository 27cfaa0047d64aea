//! Appends of one shard: the change of its index, and the row in the queue of its writer.
//!
//! Called by actors, on their thread. An append changes the index of the [shard](crate::shard) and adds a row to the
//! [queue](crate::queue). It never waits for the server, except for a turn that nothing else is in flight with.
//!
//! Locks are taken in the order shard, queue. The thread that commits takes the lock of a shard only when it holds no other,
//! so an append never waits for the network.

use std::sync::Arc;

use whizbang_core::message::{Name, ShardId};
use whizbang_core::store::{
    Appended, Epoch, MAX_TURN_BYTES, ShardWriter, Snapshot, StoreError, StreamHint, Turn, Watermark,
};
use whizbang_log::shard_log::{Given, turn_bound};

use crate::queue::{Progress, Row};
use crate::shard::Shard;
use crate::tickets::Tickets;
use crate::writer::Writer;

/// An upper bound for the row of a watermark or of a confirmation, in bytes.
const PROGRESS_BYTES: usize = 256;

/// The one writer of a shard.
///
/// It belongs to the thread that opened the shard: its listener has the tickets.
pub(crate) struct Appender {
    /// The shard in the opening that this appender belongs to. A later opening fences it.
    shard: Arc<Shard>,
    /// The source of tickets. A ticket is given with the queue locked, so tickets rise in the order of the rows.
    tickets: Arc<Tickets>,
    /// The writer of the listener. All shards of one listener have the same, so that tickets are committed in their order.
    writer: Arc<Writer>,
}

impl Appender {
    /// Returns the appender of one opening. The caller passes the writer that it has noted for the listener of `tickets`.
    pub(crate) fn new(shard: Arc<Shard>, tickets: Arc<Tickets>, writer: Arc<Writer>) -> Self {
        Self { shard, tickets, writer }
    }

    /// Adds a turn to the index and to the queue, in this order and under both locks, so that locations and tickets rise
    /// together.
    ///
    /// # Errors
    /// Nothing was changed then. The caller reads the stream again after [`StoreError::OutOfTurn`]. [`StoreError::Full`]
    /// while too many bytes wait for the server, [`StoreError::Oversize`] for a turn above [`MAX_TURN_BYTES`]. The caller
    /// rejects the turn, and its message is retried.
    fn append_turn(&self, turn: &Turn<'_>, wake: bool) -> Result<(Appended, u64), StoreError> {
        let bytes = turn_bound(turn);
        if bytes > MAX_TURN_BYTES {
            return Err(StoreError::Oversize { bytes, limit: MAX_TURN_BYTES });
        }
        let shard = &self.shard;
        let writer = &self.writer;
        let mut guard = shard.lock();
        let state = &mut *guard;
        shard.accept(state)?;
        state.log.commit(shard.committed());
        let mut queue = writer.queue();
        queue.accept(bytes)?;
        let (location, mut record) = (state.next, std::mem::take(&mut state.record));
        record.clear();
        let appended =
            state.log.append_turn_without_payloads(turn, shard.row.unsigned_abs(), shard.epoch, location, &mut record);
        let Given { position, stream } = match appended {
            Ok(given) => given,
            Err(expected) => {
                state.record = record;
                return Err(StoreError::OutOfTurn { shard: shard.id.clone(), expected });
            }
        };
        state.next += 1;
        if !turn.outbox.is_empty() {
            // The record was encoded by this program, so it decodes.
            let noted = state.add_outbox(location, &record, |_, _| true);
            debug_assert_eq!(noted, Ok(()));
        }
        let before = position - turn.events.len() as u64;
        let ticket = queue.push(shard, &self.tickets, location, &Row::Turn(turn, before), &record);
        state.record = record;
        if wake {
            writer.wake(queue);
        }
        Ok((Appended { ticket, position, committed: false, stream }, location))
    }

    /// Adds a watermark, or the confirmation of a destination. Both are single numbers that only rise, so they are rows of
    /// their own and not turns. If a group contains several of one source, the statement keeps the last one.
    ///
    /// # Errors
    /// As for a turn. The number is reported again with the next message or after the next opening, so the caller need not
    /// retry.
    fn append_progress(&self, progress: Progress<'_>) -> Result<Appended, StoreError> {
        let shard = &self.shard;
        let writer = &self.writer;
        let mut guard = shard.lock();
        let state = &mut *guard;
        shard.accept(state)?;
        state.log.commit(shard.committed());
        let mut queue = writer.queue();
        queue.accept(PROGRESS_BYTES)?;
        let (location, mut record) = (state.next, std::mem::take(&mut state.record));
        record.clear();
        let (tag, epoch) = (shard.row.unsigned_abs(), shard.epoch);
        let position = match progress {
            Progress::Received(watermark) => state.log.append_advance(watermark, tag, epoch, location, &mut record),
            Progress::Sent(to, through) => {
                state.confirm_outbox(to, through);
                state.log.append_sent(to, through, tag, epoch, location, &mut record)
            }
        };
        state.next += 1;
        let ticket = queue.push(shard, &self.tickets, location, &Row::Progress(progress), &record);
        state.record = record;
        writer.wake(queue);
        Ok(Appended { ticket, position, committed: false, stream: StreamHint::default() })
    }
}

impl ShardWriter for Appender {
    fn epoch(&self) -> Epoch {
        self.shard.epoch
    }

    fn append(&mut self, turn: &Turn<'_>) -> Result<Appended, StoreError> {
        Ok(self.append_turn(turn, true)?.0)
    }

    fn append_alone(&mut self, turn: &Turn<'_>) -> Result<Appended, StoreError> {
        let writer = &self.writer;
        if writer.is_slow() {
            return self.append(turn);
        }
        let (mut appended, location) = self.append_turn(turn, false)?;
        writer.write_here();
        appended.committed = self.shard.committed() > location;
        Ok(appended)
    }

    fn advance(&mut self, watermark: &Watermark) -> Result<Appended, StoreError> {
        self.append_progress(Progress::Received(watermark))
    }

    fn sent(&mut self, to: &ShardId, through: u64) -> Result<Appended, StoreError> {
        self.append_progress(Progress::Sent(to, through))
    }

    fn save_snapshot(&mut self, actor: &Name, key: &str, snapshot: Snapshot) {
        let mut state = self.shard.lock();
        let must_enqueue = self.shard.accept(&state).is_ok() && state.add_fresh(actor, key, snapshot);
        drop(state);
        if must_enqueue {
            self.writer.add_snapshot(Arc::clone(&self.shard), actor.clone(), key.to_owned());
        }
    }
}
