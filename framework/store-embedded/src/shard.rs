//! A shard on disk: its index and pending snapshots in memory, its records in the log.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Semaphore;

use super::flusher::ReservedBytes;
use super::inner::Inner;
use super::log::LogReader;
use super::pages::{Pages, run_on_reader};
use super::recovered::RecoveredShard;
use super::segment::Segments;
use super::snapshots::{NamedSnapshot, SnapshotLocation};
use super::write_buffer::{AppendRefused, WriteMode};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{MessageId, Name, ShardId};
use whizbang_core::store::{
    Appended, CommitListener, DeadLetter, Epoch, MAX_TURN_BYTES, Mark, OnePage, OutboxEntry, ShardReader, ShardWriter,
    Snapshot, StoreError, StoredEvent, StoredTurn, StreamPages, StreamState, Timer, TimerCursor, TimerPage, Turn,
    Watermark,
};
use whizbang_log::index::append::{AppendContext, AppendNumbers};
use whizbang_log::index::{Head, IdHash, Index, OutOfTurn, Stream};
use whizbang_log::record::{Location, turn_bound};
use whizbang_log::traverse::{self, Located};

/// An upper bound for records other than turns.
const SMALL_RECORD_BYTES: usize = 512;

/// The number of snapshots per shard that may wait for the commit of their turn; further ones are dropped.
const MAX_PENDING_SNAPSHOTS: usize = 256;

pub(super) struct Shard {
    pub(super) id: ShardId,
    /// The number of shards of the domain.
    pub(super) shards: u16,
    /// Its number in the log.
    pub(super) tag: u32,
    /// The location of the record of its first opening.
    pub(super) opened_at: Location,
    pub(super) state: Mutex<ShardState>,
    /// The newest snapshots in the snapshot files. Only the flusher changes it. Lock order: the state first.
    pub(super) stored: RwLock<HashMap<Stream, SnapshotLocation>>,
}

pub(super) struct ShardState {
    pub(super) epoch: Epoch,
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
    _held: ReservedBytes,
}

impl Shard {
    /// Creates a shard that was never opened before.
    pub(super) fn new(id: ShardId, shards: u16, tag: u32, born: Location, epoch: Epoch, index: Index) -> Self {
        let state = ShardState { epoch, index, pending: HashMap::new(), uncommitted: VecDeque::new() };
        Self { id, shards, tag, opened_at: born, state: Mutex::new(state), stored: RwLock::default() }
    }

    pub(super) fn recovered(log: RecoveredShard, tag: u32) -> Self {
        let shard = Self::new(log.id, log.shards, tag, 0, log.epoch, log.index);
        *shard.stored.write() = log.snapshots;
        shard
    }
}

impl ShardState {
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
    fn add_pending(&mut self, stream: Stream, location: Location, named: NamedSnapshot, held: ReservedBytes) {
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
    fn fresh(&self, stream: Stream, number: u64) -> Option<&NamedSnapshot> {
        let PendingSnapshots { next, newest, .. } = self.pending.get(&stream)?;
        let newest = newest.as_ref().map(|(_, named, _)| named);
        newest.into_iter().chain([next]).find(|named| named.located.snapshot.turn <= number)
    }
}

pub(super) struct EmbeddedWriter {
    store: Arc<Inner>,
    shard: Arc<Shard>,
    epoch: Epoch,
    listener: usize,
    /// Kept alive here: the write buffer reports to it only while it exists.
    _listener: Arc<dyn CommitListener>,
}

impl EmbeddedWriter {
    pub(super) fn new(store: Arc<Inner>, shard: Arc<Shard>, epoch: Epoch, listener: Arc<dyn CommitListener>) -> Self {
        let row = store.write_buffer.register_listener(&listener);
        Self { store, shard, epoch, listener: row, _listener: listener }
    }

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
            if !state.uncommitted.is_empty() {
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

    fn append_turn(&self, turn: &Turn<'_>, mode: WriteMode) -> Result<Appended, StoreError> {
        let (bytes, limit) = (turn_bound(turn), self.store.largest_turn().min(MAX_TURN_BYTES));
        if bytes > limit {
            return Err(StoreError::Oversize { bytes, limit });
        }
        let appended = self.append_record(bytes, mode, |index, at, into| index.append_turn(turn, at, into));
        if matches!(turn.mark, Mark::Outside { .. }) && appended.is_ok() {
            self.store.flusher.count_id();
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
        let Some(held) = self.store.flusher.reserve(snapshot.bytes.len()) else { return };
        let mut state = self.shard.state.lock();
        if state.epoch != self.epoch || state.uncommitted.len() >= MAX_PENDING_SNAPSHOTS {
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

/// A job for the reading thread.
pub(super) type ReadJob = Box<dyn FnOnce() + Send>;

/// Access to the records behind an index.
pub(super) trait LogSource: Send + Sync {
    fn segments(&self) -> &Segments;
    /// Returns the location before which every record is committed.
    fn committed(&self) -> Location;
    /// Runs a job on the reading thread. Returns the job if there is no such thread.
    fn spawn_read(&self, job: ReadJob) -> Option<ReadJob>;
    /// Reports damage that was found.
    fn record_damage(&self, error: &StoreError);
    /// Returns the locations of turns with an id beyond the shard's index, newest first; `None` if unknown.
    fn older_turns(&self, id: IdHash) -> Option<Vec<Location>>;
    /// Reads a stored snapshot, or returns `None` if it cannot be used.
    fn snapshot(&self, stored: SnapshotLocation, actor: &str, key: &str) -> Option<Located>;
    /// Returns a semaphore with one permit for each long stream that may be read concurrently, if there is a limit.
    fn long_reads(&self) -> Option<Arc<Semaphore>> {
        None
    }
}

impl LogSource for Inner {
    fn segments(&self) -> &Segments {
        &self.segments
    }

    fn committed(&self) -> Location {
        self.write_buffer.committed()
    }

    fn spawn_read(&self, job: ReadJob) -> Option<ReadJob> {
        match &*self.reads.lock() {
            Some(reads) => reads.send(job).err().map(|unsent| unsent.0),
            None => Some(job),
        }
    }

    fn record_damage(&self, error: &StoreError) {
        Self::record_damage(self, error);
    }

    fn older_turns(&self, id: IdHash) -> Option<Vec<Location>> {
        match self.ids.find(id) {
            Ok(found) => Some(found).filter(|_| self.ids.from() == 0),
            Err(error) => {
                tracing::warn!(target: whizbang_core::telemetry::TARGET, error = %whizbang_core::telemetry::error_chain(&error), "failed to look up an id in the index: reading its stream instead");
                None
            }
        }
    }

    fn snapshot(&self, stored: SnapshotLocation, actor: &str, key: &str) -> Option<Located> {
        self.snapshots.read(stored, actor, key)
    }

    fn long_reads(&self) -> Option<Arc<Semaphore>> {
        Some(Arc::clone(&self.long_reads))
    }
}

pub(super) struct EmbeddedReader {
    store: Arc<dyn LogSource>,
    pub(super) shard: Arc<Shard>,
}

impl EmbeddedReader {
    pub(super) fn new(store: Arc<dyn LogSource>, shard: Arc<Shard>) -> Self {
        Self { store, shard }
    }

    /// Accesses the state, updated to what is committed.
    pub(super) fn with_state<T>(&self, use_state: impl FnOnce(&mut ShardState) -> T) -> T {
        let mut state = self.shard.state.lock();
        state.index.commit(self.store.committed());
        use_state(&mut state)
    }

    /// Returns the result of a read as a future and remembers damage.
    fn finish_read<T: Send + 'static>(&self, read: Result<T, StoreError>) -> BoxFuture<'static, Result<T, StoreError>> {
        if let Err(error) = &read {
            self.store.record_damage(error);
        }
        ready(read).boxed()
    }

    pub(super) fn log(&self) -> LogReader<'_> {
        LogReader::new(self.store.segments())
    }

    /// Returns a stream's head and its newest snapshot.
    fn stream(&self, actor: &str, key: &str, use_snapshot: bool) -> (Option<Head>, Option<Located>) {
        let (head, fresh, stream) = self.with_state(|state| {
            let stream = state.index.stream(actor, key);
            let head = state.index.head(stream);
            // Compare the names before using the snapshot, because hashes may collide.
            let fresh = head.and_then(|head| state.fresh(stream, head.number));
            let fresh = fresh.filter(|named| named.actor == actor && named.key == key);
            (head, fresh.map(|named| named.located.clone()), stream)
        });
        let snapshot = match (use_snapshot, fresh) {
            (false, _) => None,
            (true, Some(fresh)) => Some(fresh),
            (true, None) => {
                let stored = self.shard.stored.read().get(&stream).copied();
                stored.and_then(|stored| self.store.snapshot(stored, actor, key))
            }
        };
        (head, snapshot)
    }

    fn load_now(&self, actor: &str, key: &str, use_snapshot: bool) -> Result<StreamState, StoreError> {
        let (head, snapshot) = self.stream(actor, key, use_snapshot);
        traverse::load(&LogReader::sharing_memory(self.store.segments()), head, actor, key, snapshot)
    }

    /// Reads a short stream on the calling thread and a long one page by page on the store's reading thread.
    async fn pages_of(&self, actor: &str, key: &str, snapshot: bool) -> Result<Box<dyn StreamPages>, StoreError> {
        let (head, snapshot) = self.stream(actor, key, snapshot);
        let known = snapshot.as_ref().map_or(0, |located| located.snapshot.turn);
        let Some(head) = head.filter(|head| head.number.saturating_sub(known) > traverse::PAGE_TURNS) else {
            let state = traverse::load(&LogReader::sharing_memory(self.store.segments()), head, actor, key, snapshot);
            return state.map(|state| Box::new(OnePage(state)) as Box<dyn StreamPages>);
        };
        // Acquired before any part of the stream is in memory.
        let turn = match self.store.long_reads() {
            Some(long_reads) => long_reads.acquire_owned().await.ok(),
            None => None,
        };
        let (actor, key): (Arc<str>, Arc<str>) = (actor.into(), key.into());
        let (store, names) = (Arc::clone(&self.store), (Arc::clone(&actor), Arc::clone(&key)));
        let skim = move || traverse::page_ends(&LogReader::new(store.segments()), head, &names.0, &names.1, snapshot);
        let (snapshot, ends) = run_on_reader(&self.store, skim).await?;
        let floor = snapshot.as_ref().map_or(0, |snapshot| snapshot.turn);
        Ok(Box::new(Pages { store: Arc::clone(&self.store), actor, key, snapshot, ends, floor, _permit: turn }))
    }

    fn find_now(&self, actor: &str, key: &str, id: MessageId) -> Result<Option<StoredTurn>, StoreError> {
        let (hash, recent, is_empty) = self.with_state(|state| {
            let stream = state.index.stream(actor, key);
            let hash = state.index.id(stream, id);
            (hash, state.index.turns_with_id(hash), state.index.head(stream).is_none())
        });
        if is_empty {
            return Ok(None);
        }
        if let Some(turn) = traverse::find_turn(&self.log(), recent, actor, key, id)? {
            return Ok(Some(turn));
        }
        if let Some(older) = self.store.older_turns(hash) {
            return traverse::find_turn(&self.log(), older, actor, key, id);
        }
        let turns = self.load_now(actor, key, false)?.turns;
        Ok(turns.into_iter().rev().find(|turn| turn.id == id && turn.digest.is_some()))
    }
}

impl ShardReader for EmbeddedReader {
    fn position(&self) -> u64 {
        self.with_state(|state| state.index.position())
    }

    fn load<'a>(&'a self, actor: &'a Name, key: &'a str) -> BoxFuture<'a, Result<StreamState, StoreError>> {
        self.finish_read(self.load_now(actor, key, true))
    }

    fn pages<'a>(
        &'a self,
        actor: &'a Name,
        key: &'a str,
        snapshot: bool,
    ) -> BoxFuture<'a, Result<Box<dyn StreamPages>, StoreError>> {
        async move {
            let pages = self.pages_of(actor, key, snapshot).await;
            pages.inspect_err(|error| self.store.record_damage(error))
        }
        .boxed()
    }

    fn history<'a>(&'a self, actor: &'a Name, key: &'a str) -> BoxFuture<'a, Result<Vec<StoredTurn>, StoreError>> {
        self.finish_read(self.load_now(actor, key, false).map(|state| state.turns))
    }

    fn find_turn<'a>(
        &'a self,
        actor: &'a Name,
        key: &'a str,
        id: MessageId,
    ) -> BoxFuture<'a, Result<Option<StoredTurn>, StoreError>> {
        self.finish_read(self.find_now(actor, key, id))
    }

    fn events(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<StoredEvent>, StoreError>> {
        self.finish_read(self.events_now(after, limit))
    }

    fn outbox<'a>(
        &'a self,
        to: &'a ShardId,
        after: u64,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<OutboxEntry>, StoreError>> {
        self.finish_read(self.outbox_now(to, after, limit))
    }

    fn outbox_heads(&self) -> Vec<(ShardId, u64, u64)> {
        self.with_state(|state| state.index.destinations())
    }

    fn watermarks(&self) -> Vec<Watermark> {
        self.with_state(|state| state.index.watermarks())
    }

    fn watermark(&self, source: &whizbang_core::store::Source) -> u64 {
        self.with_state(|state| state.index.watermark(source))
    }

    fn timers_due(&self, now: Timestamp, limit: usize) -> Vec<Timer> {
        self.with_state(|state| state.index.timers_due(now, limit))
    }

    fn next_timer(&self) -> Option<Timestamp> {
        self.with_state(|state| state.index.next_timer())
    }

    fn timers_of(&self, actor: &Name, after: TimerCursor, now: Timestamp, limit: usize) -> TimerPage {
        self.with_state(|state| state.index.timers_of(actor, after, now, limit))
    }

    fn timer_counts(&self) -> Vec<(Name, usize)> {
        self.with_state(|state| state.index.timer_counts())
    }

    fn dead_letters(
        &self,
        after: Option<MessageId>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<DeadLetter>, StoreError>> {
        let places = self.with_state(|state| state.index.dead_letters(after, limit));
        self.finish_read(traverse::dead_letters(&self.log(), &places))
    }

    fn dead_letter_count(&self) -> u64 {
        self.with_state(|state| state.index.dead_letter_count())
    }

    fn streams(&self) -> BoxFuture<'_, Result<Vec<(Name, String)>, StoreError>> {
        let heads = self.with_state(|state| state.index.heads());
        self.finish_read(traverse::streams(&self.log(), &heads))
    }
}
