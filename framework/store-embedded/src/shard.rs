//! A shard on disk: its index and pending snapshots in memory. Its records are in the log.
//!
//! Changed by its [appender](super::appender) under the lock of its state, and by the flusher, which writes pending snapshots.
//! The lock is never held while a file is read or written.

use std::collections::{HashMap, VecDeque};

use parking_lot::{Mutex, RwLock};

use super::recovered::RecoveredShard;
use super::reserved_bytes::ReservedBytes;
use super::snapshots::{NamedSnapshot, SnapshotLocation};
use whizbang_core::message::ShardId;
use whizbang_core::store::Epoch;
use whizbang_log::index::{Index, Stream};
use whizbang_log::record::Location;

/// The number of snapshots per shard that may wait for the commit of their turn; further ones are dropped.
const MAX_PENDING_SNAPSHOTS: usize = 256;

/// One shard of the log. It exists from its first opening to the end of the store.
pub(super) struct Shard {
    /// The domain and the number of the shard.
    pub(super) id: ShardId,
    /// The number of shards of the domain.
    pub(super) shards: u16,
    /// Its number in the log.
    pub(super) tag: u32,
    /// The location of the record of its first opening.
    pub(super) opened_at: Location,
    /// All that appends change. Held for the time of one append.
    pub(super) state: Mutex<ShardState>,
    /// The newest snapshots in the snapshot files. Only the flusher changes it. Lock order: the state first.
    pub(super) stored: RwLock<HashMap<Stream, SnapshotLocation>>,
}

/// The changing part of a shard.
pub(super) struct ShardState {
    /// The epoch of the present owner. An append under an older one is rejected.
    pub(super) epoch: Epoch,
    /// The index of the appended records, of which readers see the committed ones.
    pub(super) index: Index,
    /// Snapshots that are not in a file yet.
    pub(super) pending: HashMap<Stream, PendingSnapshots>,
    /// The streams of those whose turn is not committed yet, with the location of the turn.
    uncommitted: VecDeque<(Location, Stream)>,
}

/// The snapshots of a stream that are not in a file yet.
pub(super) struct PendingSnapshots {
    /// The snapshot to write next. A newer one does not replace it: otherwise a stream that saves snapshots
    /// continuously would never have one written.
    pub(super) next: NamedSnapshot,
    /// The newest snapshot after it, and the location of its turn.
    newest: Option<(Location, NamedSnapshot, ReservedBytes)>,
    /// The memory of `next`, released with it.
    _held: ReservedBytes,
}

impl Shard {
    /// Creates a shard that was never opened before.
    pub(super) fn new(id: ShardId, shards: u16, tag: u32, born: Location, epoch: Epoch, index: Index) -> Self {
        let state = ShardState { epoch, index, pending: HashMap::new(), uncommitted: VecDeque::new() };
        Self { id, shards, tag, opened_at: born, state: Mutex::new(state), stored: RwLock::default() }
    }

    /// Returns a shard with the index that an opening has rebuilt. `tag` is its number in the log.
    pub(super) fn recovered(log: RecoveredShard, tag: u32) -> Self {
        let shard = Self::new(log.id, log.shards, tag, 0, log.epoch, log.index);
        *shard.stored.write() = log.snapshots;
        shard
    }
}

impl ShardState {
    /// Returns true if a snapshot waits for the commit of its turn.
    pub(super) fn has_uncommitted(&self) -> bool {
        !self.uncommitted.is_empty()
    }

    /// Returns true if no further snapshot may wait for the commit of its turn.
    pub(super) fn is_full(&self) -> bool {
        self.uncommitted.len() >= MAX_PENDING_SNAPSHOTS
    }

    /// Takes the streams whose snapshots may be written because their turns are committed.
    pub(super) fn take_committed(&mut self) -> Vec<Stream> {
        let committed = self.index.committed();
        // If the turn were lost, its snapshot would be taken for one of the turn that replaces it.
        let is_committed = |location: Location| location < committed;
        let mut streams = Vec::new();
        while let Some((_, stream)) = self.uncommitted.pop_front_if(|(location, _)| is_committed(*location)) {
            streams.push(stream);
        }
        streams
    }

    /// Stores a snapshot until it can be written. `location` is that of the stream's last turn.
    pub(super) fn add_pending(
        &mut self,
        stream: Stream,
        location: Location,
        named: NamedSnapshot,
        held: ReservedBytes,
    ) {
        match self.pending.get_mut(&stream) {
            Some(fresh) => fresh.newest = Some((location, named, held)),
            None => {
                self.pending.insert(stream, PendingSnapshots { next: named, newest: None, _held: held });
                self.uncommitted.push_back((location, stream));
            }
        }
    }

    /// Completes the stream's next snapshot, whether it was written or failed, and promotes the newest one.
    pub(super) fn finish_snapshot(&mut self, stream: Stream) {
        if let Some(PendingSnapshots { newest: Some((location, next, held)), .. }) = self.pending.remove(&stream) {
            self.add_pending(stream, location, next, held);
        }
    }

    /// Returns the newest snapshot of a stream that is in no file yet, up to turn `number`.
    pub(super) fn fresh(&self, stream: Stream, number: u64) -> Option<&NamedSnapshot> {
        let PendingSnapshots { next, newest, .. } = self.pending.get(&stream)?;
        let newest = newest.as_ref().map(|(_, named, _)| named);
        newest.into_iter().chain([next]).find(|named| named.located.snapshot.turn <= number)
    }
}

#[cfg(test)]
mod tests;
