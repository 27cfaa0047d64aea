//! One open shard: its index in memory, the phase of its ownership, and the snapshots that wait to be written.
//!
//! Changed by the [appender](crate::appender) of the shard on the thread of its actors, and by the writer's thread, which reports
//! commits. Knows neither the queue nor the server.
//!
//! Two states of one shard exist at any time. The appended one contains turns that are on their way to the server: the next
//! append builds on it. The committed one is everything before `committed`: readers see only that. If a commit fails for
//! good, the shard is never used again, and the next opening reads the rows.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Name, ShardId};
use whizbang_core::store::{Epoch, Snapshot, StoreError};
use whizbang_log::shard_log::{self, ShardLog};

/// The maximum number of snapshots of a shard that wait to be written. More are dropped: the next snapshot of the stream follows.
const MAX_FRESH_SNAPSHOTS: usize = 256;

/// The maximum size of these snapshots together, in bytes.
const MAX_FRESH_BYTES: usize = 16 * 1024 * 1024;

/// A shard that was opened, with one epoch.
pub(crate) struct Shard {
    /// The domain and the number of the shard.
    pub(crate) id: ShardId,
    /// The shard's id in the table of shards.
    pub(crate) row: i32,
    /// The epoch of this opening. A statement that finds another one in the database writes nothing.
    pub(crate) epoch: Epoch,
    /// Every record before this location is committed.
    committed: AtomicU64,
    /// The location of the last committed turn.
    committed_turn: AtomicU64,
    /// Every record before this location is in the last checkpoint.
    checkpoint: AtomicU64,
    /// The next checkpoint is due at this location.
    due: AtomicU64,
    /// A checkpoint is being saved.
    saves: AtomicBool,
    /// The index and all that appends change.
    state: Mutex<State>,
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard").field("id", &self.id).field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// The phase of a shard's ownership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The owner may append.
    Open,
    /// It is about to be opened again in this process.
    HandedOver,
    /// A younger owner has the shard.
    Fenced(Epoch),
    /// Commits have failed: nothing is appended until the shard is opened again.
    Failed,
}

/// The part of a shard that appends change, under one lock.
pub(crate) struct State {
    /// The index: heads of streams, positions, watermarks, timers, dead letters and ids. It contains appended turns that are not
    /// committed yet, but answers from the committed ones.
    pub(crate) log: ShardLog,
    /// Decides whether the owner may append.
    phase: Phase,
    /// The location of the next record. Locations of a shard rise by one with each record.
    pub(crate) next: u64,
    /// For each destination the entries that it has not committed: sequence and location.
    outbox: HashMap<ShardId, VecDeque<(u64, u64)>>,
    /// Snapshots that are not in the table yet.
    fresh: HashMap<(Name, String), Snapshot>,
    /// The bytes of the waiting snapshots.
    fresh_bytes: usize,
    /// Ids of turns before this time may be forgotten.
    pub(crate) forgotten: Timestamp,
    /// The buffer of the encoded record, kept between appends so that it need not be allocated again.
    pub(crate) record: Vec<u8>,
}

impl State {
    /// Returns the state of a shard whose index is `log`. Records that follow are noted by
    /// [`note_record`](Self::note_record).
    pub(crate) fn new(log: ShardLog) -> Self {
        Self {
            log,
            phase: Phase::Open,
            next: 1,
            outbox: HashMap::new(),
            fresh: HashMap::new(),
            fresh_bytes: 0,
            forgotten: Timestamp::default(),
            record: Vec::new(),
        }
    }

    /// Drops the entries that a destination has committed.
    pub(crate) fn confirm_outbox(&mut self, to: &ShardId, through: u64) {
        if let Some(entries) = self.outbox.get_mut(to) {
            while entries.pop_front_if(|(sequence, _)| *sequence <= through).is_some() {}
        }
    }

    /// Notes the outbox entries of a record. `is_open` returns whether an entry still waits for its destination.
    pub(crate) fn add_outbox(
        &mut self,
        location: u64,
        record: &[u8],
        is_open: impl Fn(&ShardId, u64) -> bool,
    ) -> Result<(), shard_log::Damage> {
        for (to, sequence) in shard_log::sent_by(location, record)? {
            if is_open(&to, sequence) {
                self.outbox.entry(to).or_default().push_back((sequence, location));
            }
        }
        Ok(())
    }

    /// The entries that wait for their destinations.
    pub(crate) fn outbox(&self) -> &HashMap<ShardId, VecDeque<(u64, u64)>> {
        &self.outbox
    }

    /// Adds an entry from a checkpoint. They come in the order of their sequences.
    pub(crate) fn restore_outbox(&mut self, to: ShardId, sequence: u64, location: u64) {
        self.outbox.entry(to).or_default().push_back((sequence, location));
    }

    /// Records that `location` is used: the next record comes behind it.
    pub(crate) fn note_record(&mut self, location: u64) {
        self.next = self.next.max(location + 1);
    }

    /// The locations of the entries for `to` with the sequences `from` to `last`, if all of them still wait. `None` if some
    /// of them were confirmed before: the caller then follows the links in the records.
    pub(crate) fn waiting(&self, to: &ShardId, from: u64, last: u64) -> Option<Vec<u64>> {
        let entries = self.outbox.get(to)?;
        let (first, _) = entries.front()?;
        let skip = usize::try_from(from.checked_sub(*first)?).ok()?;
        let found = entries.iter().skip(skip).take_while(|(sequence, _)| *sequence <= last);
        let mut locations: Vec<u64> = found.map(|(_, location)| *location).collect();
        // Entries of one turn share its record.
        locations.dedup();
        Some(locations)
    }

    /// Keeps a snapshot until it is written. Returns true if the caller has to enqueue the stream for the writer, false if the
    /// stream is in the list already or the snapshot was dropped, because too many wait or the log has not reached its turn.
    pub(crate) fn add_fresh(&mut self, actor: &Name, key: &str, snapshot: Snapshot) -> bool {
        let bytes = snapshot.bytes.len();
        let is_full = self.fresh.len() >= MAX_FRESH_SNAPSHOTS || self.fresh_bytes + bytes > MAX_FRESH_BYTES;
        // One that is newer than the log cannot be true.
        let is_known = self.log.newest(actor, key).is_some_and(|head| head.number >= snapshot.turn);
        if !is_known || is_full {
            return false;
        }
        self.fresh_bytes += bytes;
        let replaced = self.fresh.insert((actor.clone(), key.to_owned()), snapshot);
        self.fresh_bytes -= replaced.as_ref().map_or(0, |snapshot| snapshot.bytes.len());
        replaced.is_none()
    }

    /// The snapshot of a stream that is not in the table yet, up to turn `number`.
    pub(crate) fn fresh(&self, actor: &Name, key: &str, number: u64) -> Option<Snapshot> {
        let snapshot = self.fresh.get(&(actor.clone(), key.to_owned()))?;
        (snapshot.turn <= number).then(|| snapshot.clone())
    }

    /// The snapshot of a stream that may be written: its turn is committed, so it never is one of a turn that gets lost.
    /// `None` while the turn is on its way, and for a shard that is not open.
    pub(crate) fn due_snapshot(&self, actor: &Name, key: &str) -> Option<Snapshot> {
        let head = self.log.head(actor, key)?;
        self.fresh(actor, key, head.number).filter(|_| self.phase == Phase::Open)
    }

    /// Returns whether a snapshot of the stream waits, and may be written at some time.
    pub(crate) fn has_fresh(&self, actor: &Name, key: &str) -> bool {
        self.phase == Phase::Open && self.fresh.contains_key(&(actor.clone(), key.to_owned()))
    }

    /// The snapshot of a stream up to `turn` is written, or given up.
    pub(crate) fn forget_fresh(&mut self, actor: &Name, key: &str, turn: u64) {
        let stream = (actor.clone(), key.to_owned());
        if self.fresh.get(&stream).is_some_and(|snapshot| snapshot.turn <= turn) {
            self.fresh_bytes -= self.fresh.remove(&stream).map_or(0, |snapshot| snapshot.bytes.len());
        }
    }
}

impl Shard {
    /// Creates an open shard. The records in its state are committed.
    pub(crate) fn new(id: ShardId, row: i32, epoch: Epoch, state: State) -> Self {
        let (committed, last_turn) = (AtomicU64::new(state.next), AtomicU64::new(0));
        let (checkpoint, due, saves) = (AtomicU64::new(0), AtomicU64::new(u64::MAX), AtomicBool::new(false));
        Self { id, row, epoch, committed, committed_turn: last_turn, checkpoint, due, saves, state: Mutex::new(state) }
    }

    /// Locks the state as it is. The appender holds the lock while it adds a record, so that locations and tickets rise together.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The state, brought up to what is committed. The closure runs with the lock held: it must not block.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        state.log.commit(self.committed.load(Ordering::Acquire));
        look(&mut state)
    }

    /// Every record before this location is committed.
    pub(crate) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    /// Everything up to the record at `last` is committed. Called by the writer before it notifies the listener, so that a
    /// reader that follows the report finds the turns.
    pub(crate) fn commit(&self, last: u64, last_turn: Option<u64>) {
        if let Some(turn) = last_turn {
            self.set_last_turn(turn);
        }
        self.committed.fetch_max(last + 1, Ordering::AcqRel);
    }

    /// The location of the last committed turn; a database without it is an older copy.
    pub(crate) fn last_turn(&self) -> u64 {
        self.committed_turn.load(Ordering::Acquire)
    }

    /// Records the location of a committed turn. A lower one changes nothing.
    pub(crate) fn set_last_turn(&self, location: u64) {
        self.committed_turn.fetch_max(location, Ordering::AcqRel);
    }

    /// Records that a checkpoint has everything before this location.
    pub(crate) fn set_checkpoint(&self, through: u64) {
        self.checkpoint.fetch_max(through, Ordering::AcqRel);
    }

    /// The number of committed records that are not in the last checkpoint.
    pub(crate) fn since_checkpoint(&self) -> u64 {
        self.committed().saturating_sub(self.checkpoint.load(Ordering::Acquire).max(1))
    }

    /// Returns whether a checkpoint is due.
    pub(crate) fn is_due(&self) -> bool {
        self.committed() >= self.due.load(Ordering::Relaxed) && !self.saves.load(Ordering::Relaxed)
    }

    /// Returns whether the caller saves the next checkpoint. Returns false while another save of the shard is under way.
    pub(crate) fn begin_checkpoint(&self) -> bool {
        !self.saves.swap(true, Ordering::AcqRel)
    }

    /// The checkpoint is saved, or given up. The next one is due at this location.
    pub(crate) fn end_checkpoint(&self, due: u64) {
        self.due.store(due, Ordering::Relaxed);
        self.saves.store(false, Ordering::Release);
    }

    /// The shard is about to be opened again in this process: appends are rejected, and what is appended is still written.
    pub(crate) fn hand_over(&self) {
        let mut state = self.state.lock();
        if state.phase == Phase::Open {
            state.phase = Phase::HandedOver;
        }
    }

    /// The shard was not opened again: its owner continues.
    pub(crate) fn resume(&self) {
        let mut state = self.state.lock();
        if state.phase == Phase::HandedOver {
            state.phase = Phase::Open;
        }
    }

    /// A younger owner, with this epoch, has the shard. Appends are rejected with [`StoreError::Fenced`], and the node closes
    /// its actors of the shard.
    pub(crate) fn fence(&self, current: Epoch) {
        self.state.lock().phase = Phase::Fenced(current);
    }

    /// Commits have failed, so further appends are rejected.
    pub(crate) fn fail(&self) {
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::Open | Phase::HandedOver) {
            state.phase = Phase::Failed;
        }
    }

    /// Returns whether the owner may append.
    pub(crate) fn is_open(&self) -> bool {
        self.state.lock().phase == Phase::Open
    }

    /// Checks that the owner may append.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if a younger owner has the shard, [`StoreError::Closed`] after failed commits and while the shard
    /// is handed over.
    pub(crate) fn accept(&self, state: &State) -> Result<(), StoreError> {
        match state.phase {
            Phase::Open => Ok(()),
            Phase::Failed | Phase::HandedOver => Err(StoreError::Closed),
            Phase::Fenced(current) => Err(StoreError::Fenced { shard: self.id.clone(), mine: self.epoch, current }),
        }
    }
}
