//! The one writer of a shard: appends to its index and to the log, in this order and under the lock of the shard.
//!
//! Called by actors, on their thread, through the trait `ShardWriter`. An append never waits for the disk, except for a turn that
//! no other turn is in flight with, and for the next segment of the log.
//!
//! Writing to the index and to the buffer under one lock gives both the same order. An append that the buffer rejects has not
//! changed the index, so the caller may repeat it.

use std::sync::Arc;

use super::inner::Inner;
use super::shard::Shard;
use super::snapshots::NamedSnapshot;
use super::write_buffer::{AppendRefused, WriteMode};
use whizbang_core::message::{Name, ShardId};
use whizbang_core::store::{
    Appended, CommitListener, Epoch, MAX_TURN_BYTES, Mark, ShardWriter, Snapshot, StoreError, Turn, Watermark,
};
use whizbang_log::index::append::{AppendContext, AppendNumbers};
use whizbang_log::index::{Index, OutOfTurn};
use whizbang_log::record::turn_bound;
use whizbang_log::traverse::Located;

/// An upper bound for records other than turns.
const SMALL_RECORD_BYTES: usize = 512;

/// The writer of a shard under one epoch. An append under an older epoch than that of the shard is rejected.
pub(super) struct EmbeddedWriter {
    /// The store, for its write buffer and its queues.
    store: Arc<Inner>,
    /// The shard that is appended to.
    shard: Arc<Shard>,
    /// The epoch of this opening.
    epoch: Epoch,
    /// The number of the listener in the write buffer.
    listener: usize,
    /// Kept alive here: the write buffer reports to it only while it exists.
    _listener: Arc<dyn CommitListener>,
}

impl EmbeddedWriter {
    /// Returns the writer of one opening and registers its listener.
    pub(super) fn new(store: Arc<Inner>, shard: Arc<Shard>, epoch: Epoch, listener: Arc<dyn CommitListener>) -> Self {
        let row = store.write_buffer.register_listener(&listener);
        Self { store, shard, epoch, listener: row, _listener: listener }
    }

    /// Appends a record of at most `bound` bytes that `write` adds to the index and encodes. Repeats it after a wait if the
    /// segment is full, so `write` may be called several times; only the last call has an effect.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] under an older epoch, [`StoreError::OutOfTurn`] for a wrong number of a turn,
    /// [`StoreError::Full`] without space for another segment. Nothing was appended.
    fn append_record(
        &self,
        bound: usize,
        mode: WriteMode,
        write: impl Fn(&mut Index, AppendContext, &mut Vec<u8>) -> Result<AppendNumbers, OutOfTurn>,
    ) -> Result<Appended, StoreError> {
        loop {
            let mut state = self.shard.state.lock();
            if state.epoch != self.epoch {
                let (shard, current) = (self.shard.id.clone(), state.epoch);
                return Err(StoreError::Fenced { shard, mine: self.epoch, current });
            }
            state.index.commit(self.store.write_buffer.committed());
            if state.has_uncommitted() {
                self.store.enqueue_snapshots(&self.shard, &mut state);
            }
            let (tag, epoch) = (self.shard.tag, self.epoch);
            // The shard's lock is held during the append, so that index and log have the turns in the same order.
            let appended = self.store.write_buffer.append(bound, Some(self.listener), mode, |location, into| {
                let numbers = write(&mut state.index, AppendContext { tag, epoch, location, committed: false }, into)?;
                Ok((location, numbers))
            });
            // Never wait for a flush with the shard's lock held, because readers need it.
            drop(state);
            match appended {
                Ok((ticket, (location, AppendNumbers { position, stream }))) => {
                    let committed = mode == WriteMode::Inline && self.store.write_inline(location);
                    return Ok(Appended { ticket, position, committed, stream });
                }
                Err(AppendRefused::OutOfTurn(OutOfTurn { expected })) => {
                    return Err(StoreError::OutOfTurn { shard: self.shard.id.clone(), expected });
                }
                Err(refused) => self.store.wait_for_segment(refused)?,
            }
        }
    }

    /// Checks the size of a turn and appends it.
    ///
    /// # Errors
    /// [`StoreError::Oversize`] beyond the size of a segment, and those of [`append_record`](Self::append_record).
    fn append_turn(&self, turn: &Turn<'_>, mode: WriteMode) -> Result<Appended, StoreError> {
        let (bytes, limit) = (turn_bound(turn), self.store.largest_turn().min(MAX_TURN_BYTES));
        if bytes > limit {
            return Err(StoreError::Oversize { bytes, limit });
        }
        let appended = self.append_record(bytes, mode, |index, at, into| index.append_turn(turn, at, into));
        if matches!(turn.mark, Mark::Outside { .. }) && appended.is_ok() {
            self.store.flush_queue.count_id();
        }
        appended
    }
}

impl ShardWriter for EmbeddedWriter {
    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn append(&mut self, turn: &Turn<'_>) -> Result<Appended, StoreError> {
        self.append_turn(turn, WriteMode::Thread)
    }

    fn append_alone(&mut self, turn: &Turn<'_>) -> Result<Appended, StoreError> {
        self.append_turn(turn, self.store.write_mode())
    }

    fn advance(&mut self, watermark: &Watermark) -> Result<Appended, StoreError> {
        self.append_record(SMALL_RECORD_BYTES, WriteMode::Thread, |index, at, into| {
            Ok(index.append_advance(watermark, at, into))
        })
    }

    fn sent(&mut self, to: &ShardId, through: u64) -> Result<Appended, StoreError> {
        self.append_record(SMALL_RECORD_BYTES, WriteMode::Thread, |index, at, into| {
            Ok(index.append_sent(to, through, at, into))
        })
    }

    fn save_snapshot(&mut self, actor: &Name, key: &str, snapshot: Snapshot) {
        let Some(held) = self.store.flush_queue.memory.reserve(snapshot.bytes.len()) else { return };
        let mut state = self.shard.state.lock();
        if state.epoch != self.epoch || state.is_full() {
            return;
        }
        let stream = state.index.stream(actor, key);
        // The log does not have this turn: the snapshot is invalid.
        let Some(head) = state.index.newest(stream).filter(|head| head.number >= snapshot.turn) else { return };
        let location = if head.number == snapshot.turn { head.location } else { 0 };
        let located = Located { location, snapshot };
        let named = NamedSnapshot { tag: self.shard.tag, actor: actor.to_string(), key: key.to_owned(), located };
        state.add_pending(stream, head.location, named, held);
        state.index.commit(self.store.write_buffer.committed());
        self.store.enqueue_snapshots(&self.shard, &mut state);
    }
}

#[cfg(test)]
mod tests;
