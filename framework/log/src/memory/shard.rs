//! A shard in memory: records, index and snapshots behind one lock that is rarely contended.
//!
//! A loss removes records from the end and rebuilds the index from the rest, as the recovery of a store on disk would.
//! Readers that began before the loss get an error for their next page.

use std::cmp::Ordering::{Equal, Greater, Less};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use parking_lot::Mutex;

use super::arena::Arena;
use super::{MemoryStore, RegisteredListener};
use crate::index::append::{AppendContext, AppendNumbers};
use crate::index::{Head, Index, OutOfTurn, Stream, StreamHasher, Walk};
use crate::record::turn_bound;
use crate::traverse;
use crate::traverse::Located;
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{MessageId, Name, ShardId};
use whizbang_core::store::MAX_TURN_BYTES;
use whizbang_core::store::{
    Appended, DeadLetter, Epoch, OnePage, OutboxEntry, ShardReader, ShardWriter, Snapshot, Source, StoreError,
    StoredEvent, StoredTurn, StreamPages, StreamState, Timer, TimerCursor, TimerPage, Turn, Watermark,
};

/// An upper bound for records other than turns.
const SMALL_RECORD_BYTES: usize = 512;

/// One shard. It exists from its first opening to the end of the store.
pub(super) struct MemoryShard {
    /// The domain and the number of the shard.
    pub(super) id: ShardId,
    /// Records, index and snapshots. Held for the time of one append or one read.
    state: Mutex<ShardState>,
}

/// The content of a shard.
pub(super) struct ShardState {
    /// The epoch of the present owner.
    epoch: Epoch,
    /// `true` while the owner may append: not before an opening, nor after a failure or after closing.
    pub(super) accepting: bool,
    /// The records.
    pub(super) arena: Arena,
    /// The index of the records. Readers see the committed ones.
    pub(super) index: Index,
    /// The newest snapshot of each stream.
    snapshots: HashMap<Stream, Located, foldhash::fast::FixedState>,
    /// The number of times that records were lost. Locations read before a loss are invalid.
    losses: u64,
}

impl MemoryShard {
    /// Returns a shard without records, which has to be claimed before it accepts any.
    pub(super) fn new(id: ShardId) -> Self {
        let state = ShardState {
            epoch: 0,
            accepting: false,
            arena: Arena::default(),
            index: Index::new(hasher()),
            snapshots: HashMap::default(),
            losses: 0,
        };
        Self { id, state: Mutex::new(state) }
    }

    /// Takes ownership and returns the new epoch.
    pub(super) fn claim(&self) -> Epoch {
        let mut state = self.state.lock();
        state.epoch += 1;
        state.accepting = true;
        state.epoch
    }

    /// Drops the ids of turns before `before`.
    pub(super) fn forget_ids(&self, before: Timestamp, span: u64) {
        self.state.lock().index.ids.expire(before, span);
    }

    /// Rejects appends until the shard is reopened.
    pub(super) fn stop_accepting(&self) {
        self.state.lock().accepting = false;
    }

    /// Locks the shard.
    pub(super) fn state(&self) -> parking_lot::MutexGuard<'_, ShardState> {
        self.state.lock()
    }
}

/// Returns the hasher of all stores in memory.
fn hasher() -> StreamHasher {
    // The hashes of a store in memory are not stored, so the seed need not stay secret beyond the process. A fixed seed
    // makes every run the same.
    StreamHasher::new(0x5EED)
}

impl ShardState {
    /// Checks that the owner under the epoch `mine` may append.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] for an earlier owner, [`StoreError::Closed`] after a failure until the shard is opened again.
    fn check_owner(&self, shard: &ShardId, mine: Epoch) -> Result<(), StoreError> {
        if self.epoch != mine {
            return Err(StoreError::Fenced { shard: shard.clone(), mine, current: self.epoch });
        }
        if self.accepting { Ok(()) } else { Err(StoreError::Closed) }
    }

    /// Drops all records from `location` on, as a crash would.
    pub(super) fn lose_from(&mut self, location: crate::record::Location) {
        use crate::record::{Names, Record};
        self.accepting = false;
        self.losses += 1;
        self.arena.cut(location);
        let mut index = Index::new(hasher());
        let mut names = Names::default();
        for (location, bytes) in self.arena.records() {
            if let Ok((_, _, record)) = Record::read(&bytes, location) {
                // Records written by this process can be read.
                let applied = index.apply(&record, location, &mut names);
                debug_assert_eq!(applied, Ok(()));
            }
        }
        self.index = index;
        let ShardState { index, snapshots, .. } = self;
        snapshots
            .retain(|stream, located| index.head(*stream).is_some_and(|head| head.number >= located.snapshot.turn));
    }
}

/// The writer of one opening of a shard.
pub(super) struct MemoryWriter {
    /// The handle of the node that has opened the shard.
    store: MemoryStore,
    /// The shard that is appended to.
    shard: Arc<MemoryShard>,
    /// The epoch of this opening.
    epoch: Epoch,
    /// The listener of the thread that has opened the shard, with its tickets.
    registered: Arc<RegisteredListener>,
}

impl MemoryWriter {
    /// Returns the writer of the opening with this epoch.
    pub(super) fn new(
        store: MemoryStore,
        shard: Arc<MemoryShard>,
        epoch: Epoch,
        registered: Arc<RegisteredListener>,
    ) -> Self {
        Self { store, shard, epoch, registered }
    }

    /// Appends a record of at most `bound` bytes that `write` adds to the index and encodes. It is committed at once, unless
    /// a [`CommitControl`](super::CommitControl) holds commits.
    ///
    /// # Errors
    /// [`StoreError::Fenced`], [`StoreError::Closed`] and [`StoreError::OutOfTurn`], and the error of a planned refusal.
    /// Nothing was appended.
    fn append_record(
        &self,
        bound: usize,
        write: impl FnOnce(&mut Index, AppendContext, &mut Vec<u8>) -> Result<AppendNumbers, OutOfTurn>,
    ) -> Result<Appended, StoreError> {
        self.store.check_open()?;
        let mut state = self.shard.state.lock();
        state.check_owner(&self.shard.id, self.epoch)?;
        let committed = self.store.shared.held_commits.admit_append()?;
        let ShardState { arena, index, .. } = &mut *state;
        let (location, into) = arena.begin(bound);
        let at = AppendContext { tag: 0, epoch: self.epoch, location, committed };
        let AppendNumbers { position, stream } = match write(index, at, into) {
            Ok(numbers) => numbers,
            Err(OutOfTurn { expected }) => {
                arena.cut(location);
                return Err(StoreError::OutOfTurn { shard: self.shard.id.clone(), expected });
            }
        };
        arena.finish(location);
        // Assigned under the shard's lock, so that a shard's tickets are in the order of its log.
        let ticket = self.registered.tickets.fetch_add(1, Ordering::Relaxed) + 1;
        if !committed {
            self.store.shared.held_commits.hold_back(&self.shard, self.epoch, location, &self.registered, ticket);
        }
        Ok(Appended { ticket, position, committed, stream })
    }
}

impl ShardWriter for MemoryWriter {
    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn commits_at_once(&self) -> bool {
        true
    }

    fn append(&mut self, turn: &Turn<'_>) -> Result<Appended, StoreError> {
        let bytes = turn_bound(turn);
        if bytes > MAX_TURN_BYTES {
            return Err(StoreError::Oversize { bytes, limit: MAX_TURN_BYTES });
        }
        self.append_record(bytes, |index, at, into| index.append_turn(turn, at, into))
    }

    fn advance(&mut self, watermark: &Watermark) -> Result<Appended, StoreError> {
        self.append_record(SMALL_RECORD_BYTES, |index, at, into| Ok(index.append_advance(watermark, at, into)))
    }

    fn sent(&mut self, to: &ShardId, through: u64) -> Result<Appended, StoreError> {
        self.append_record(SMALL_RECORD_BYTES, |index, at, into| Ok(index.append_sent(to, through, at, into)))
    }

    fn save_snapshot(&mut self, actor: &Name, key: &str, snapshot: Snapshot) {
        let mut state = self.shard.state.lock();
        let stream = state.index.stream(actor, key);
        let newest = state.index.newest(stream).map(|head| (snapshot.turn.cmp(&head.number), head.location));
        let location = match newest {
            Some((Equal, location)) => location,
            Some((Less, _)) => 0,
            // The log does not have this turn: the snapshot is invalid.
            Some((Greater, _)) | None => return,
        };
        if state.epoch == self.epoch && state.accepting {
            state.snapshots.insert(stream, Located { location, snapshot });
        }
    }
}

/// The reads of one shard. They are answered from memory, so their futures are ready at once.
pub(super) struct MemoryReader {
    /// The shard that is read.
    shard: Arc<MemoryShard>,
}

impl MemoryReader {
    /// Returns a reader of a shard.
    pub(super) fn new(shard: Arc<MemoryShard>) -> Self {
        Self { shard }
    }

    /// Reads with the shard locked, and returns the result as a ready future.
    fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut ShardState) -> Result<T, StoreError>,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        ready(read(&mut self.shard.state.lock())).boxed()
    }
}

impl ShardReader for MemoryReader {
    fn position(&self) -> u64 {
        self.shard.state.lock().index.position()
    }

    fn load<'a>(&'a self, actor: &'a Name, key: &'a str) -> BoxFuture<'a, Result<StreamState, StoreError>> {
        self.read(|state| {
            let stream = state.index.stream(actor, key);
            let snapshot = state.snapshots.get(&stream).cloned();
            traverse::load(&state.arena, state.index.head(stream), actor, key, snapshot)
        })
    }

    fn pages<'a>(
        &'a self,
        actor: &'a Name,
        key: &'a str,
        snapshot: bool,
    ) -> BoxFuture<'a, Result<Box<dyn StreamPages>, StoreError>> {
        self.read(|state| {
            let stream = state.index.stream(actor, key);
            let snapshot = state.snapshots.get(&stream).filter(|_| snapshot).cloned();
            let head = state.index.head(stream);
            let short = traverse::load_short(&state.arena, head, actor, key, snapshot.clone())?;
            let head = match (short, head) {
                (None, Some(head)) => head,
                (short, _) => return Ok(Box::new(OnePage(short.unwrap_or_default())) as Box<dyn StreamPages>),
            };
            let (snapshot, ends) = traverse::page_ends(&state.arena, head, actor, key, snapshot)?;
            let floor = snapshot.as_ref().map_or(0, |snapshot| snapshot.turn);
            let shard = Arc::clone(&self.shard);
            Ok(Box::new(Pages {
                shard,
                losses: state.losses,
                actor: actor.clone(),
                key: key.into(),
                snapshot,
                ends,
                floor,
            }))
        })
    }

    fn history<'a>(&'a self, actor: &'a Name, key: &'a str) -> BoxFuture<'a, Result<Vec<StoredTurn>, StoreError>> {
        self.read(|state| {
            let head = state.index.head(state.index.stream(actor, key));
            Ok(traverse::load(&state.arena, head, actor, key, None)?.turns)
        })
    }

    fn find_turn<'a>(
        &'a self,
        actor: &'a Name,
        key: &'a str,
        id: MessageId,
    ) -> BoxFuture<'a, Result<Option<StoredTurn>, StoreError>> {
        self.read(|state| {
            let hash = state.index.id(state.index.stream(actor, key), id);
            traverse::find_turn(&state.arena, state.index.turns_with_id(hash), actor, key, id)
        })
    }

    fn events(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<StoredEvent>, StoreError>> {
        self.read(|state| {
            let to = after.saturating_add(limit as u64).min(state.index.position());
            if to <= after {
                return Ok(Vec::new());
            }
            let mut walk = Walk::default();
            let events = traverse::events(&state.arena, state.index.events_from(to), after, to, &mut walk);
            state.index.keep_walk(walk);
            events
        })
    }

    fn outbox<'a>(
        &'a self,
        to: &'a ShardId,
        after: u64,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<OutboxEntry>, StoreError>> {
        self.read(|state| {
            let Some(destination) = state.index.destination(to) else { return Ok(Vec::new()) };
            let last = after.saturating_add(limit as u64).min(destination.last());
            if last <= after {
                return Ok(Vec::new());
            }
            let from = destination.from(last);
            let mut walk = Walk::default();
            let entries = traverse::outbox(&state.arena, &self.shard.id, to, from, after + 1..=last, &mut walk);
            state.index.keep_walk_to(to, walk);
            entries
        })
    }

    fn outbox_heads(&self) -> Vec<(ShardId, u64, u64)> {
        self.shard.state.lock().index.destinations()
    }

    fn watermarks(&self) -> Vec<Watermark> {
        self.shard.state.lock().index.watermarks()
    }

    fn watermark(&self, source: &Source) -> u64 {
        self.shard.state.lock().index.watermark(source)
    }

    fn timers_due(&self, now: Timestamp, limit: usize) -> Vec<Timer> {
        self.shard.state.lock().index.timers_due(now, limit)
    }

    fn next_timer(&self) -> Option<Timestamp> {
        self.shard.state.lock().index.next_timer()
    }

    fn timers_of(&self, actor: &Name, after: TimerCursor, now: Timestamp, limit: usize) -> TimerPage {
        self.shard.state.lock().index.timers_of(actor, after, now, limit)
    }

    fn timer_counts(&self) -> Vec<(Name, usize)> {
        self.shard.state.lock().index.timer_counts()
    }

    fn dead_letters(
        &self,
        after: Option<MessageId>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<DeadLetter>, StoreError>> {
        self.read(|state| traverse::dead_letters(&state.arena, &state.index.dead_letters(after, limit)))
    }

    fn dead_letter_count(&self) -> u64 {
        self.shard.state.lock().index.dead_letter_count()
    }

    fn streams(&self) -> BoxFuture<'_, Result<Vec<(Name, String)>, StoreError>> {
        self.read(|state| traverse::streams(&state.arena, &state.index.heads()))
    }
}

/// A long stream that is read page by page.
struct Pages {
    /// The shard that is read.
    shard: Arc<MemoryShard>,
    /// The number of losses at the beginning. After another loss the rest of the stream may not exist.
    losses: u64,
    /// The actor type of the stream.
    actor: Name,
    /// The key of the stream.
    key: Box<str>,
    /// The snapshot before the first page, if one is used.
    snapshot: Option<Snapshot>,
    /// The ends of the unread pages, newest first.
    ends: Vec<Head>,
    /// The last turn that was read.
    floor: u64,
}

impl StreamPages for Pages {
    fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref()
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Vec<StoredTurn>, StoreError>> {
        let Some(end) = self.ends.pop() else { return ready(Ok(Vec::new())).boxed() };
        let floor = std::mem::replace(&mut self.floor, end.number);
        let state = self.shard.state.lock();
        let page = match state.losses == self.losses {
            true => traverse::page(&state.arena, end, floor, &self.actor, &self.key),
            false => Err(StoreError::Closed),
        };
        drop(state);
        ready(page).boxed()
    }
}
