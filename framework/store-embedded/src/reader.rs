//! The reads of a shard: streams, events, outbox entries, and the state of its index.
//!
//! Called by actors, the relay and operators, through the trait `ShardReader`. The index answers from memory. Records are read on
//! the calling thread, except for the pages of a stream that has more than one.
//!
//! A read begins with the state of the index at one moment. Records that are appended later are not part of it, and records
//! before it never change, so no lock is held while the log is read.
//!
//! A damaged record fails only the read that finds it. The damage is remembered and shown in the health of the store, with the place of
//! the record.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};

use super::log::LogReader;
use super::log_source::LogSource;
use super::pages::{Pages, run_on_reader};
use super::shard::{Shard, ShardState};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{MessageId, Name, ShardId};
use whizbang_core::store::{
    DeadLetter, OnePage, OutboxEntry, ShardReader, StoreError, StoredEvent, StoredTurn, StreamPages, StreamState,
    Timer, TimerCursor, TimerPage, Watermark,
};
use whizbang_log::index::{Head, Walk};
use whizbang_log::traverse::{self, Located};

/// The reads of one shard, from any thread. Each sees what was committed when it began.
pub(super) struct EmbeddedReader {
    /// The records behind the index.
    store: Arc<dyn LogSource>,
    /// The index, in which readers see what is committed.
    shard: Arc<Shard>,
}

impl EmbeddedReader {
    /// Returns a reader, which costs nothing until it reads.
    pub(super) fn new(store: Arc<dyn LogSource>, shard: Arc<Shard>) -> Self {
        Self { store, shard }
    }

    /// Accesses the state, updated to what is committed.
    fn with_state<T>(&self, use_state: impl FnOnce(&mut ShardState) -> T) -> T {
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

    /// Returns a new traversal of the log, whose records have memory of their own.
    fn log(&self) -> LogReader<'_> {
        LogReader::new(self.store.segments())
    }

    /// Returns a stream's head and its newest snapshot. A snapshot that waits for its file is preferred to a stored one,
    /// because it is newer.
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

    /// Reads a stream on the calling thread. Without `use_snapshot` from its first turn.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if a record cannot be read.
    fn load_now(&self, actor: &str, key: &str, use_snapshot: bool) -> Result<StreamState, StoreError> {
        let (head, snapshot) = self.stream(actor, key, use_snapshot);
        traverse::load(&LogReader::sharing_memory(self.store.segments()), head, actor, key, snapshot)
    }

    /// Reads a stream of one page on the calling thread and a longer one page by page on the store's reading thread.
    async fn pages_of(&self, actor: &str, key: &str, snapshot: bool) -> Result<Box<dyn StreamPages>, StoreError> {
        let (head, snapshot) = self.stream(actor, key, snapshot);
        let log = LogReader::sharing_memory(self.store.segments());
        let short = traverse::load_short(&log, head, actor, key, snapshot.clone())?;
        drop(log);
        let head = match (short, head) {
            (None, Some(head)) => head,
            (short, _) => return Ok(Box::new(OnePage(short.unwrap_or_default()))),
        };
        // Bounds the memory of concurrent long reads.
        let permit = match self.store.long_reads() {
            Some(long_reads) => long_reads.acquire_owned().await.ok(),
            None => None,
        };
        let (actor, key): (Arc<str>, Arc<str>) = (actor.into(), key.into());
        let (store, names) = (Arc::clone(&self.store), (Arc::clone(&actor), Arc::clone(&key)));
        let find_page_ends =
            move || traverse::page_ends(&LogReader::new(store.segments()), head, &names.0, &names.1, snapshot);
        let (snapshot, ends) = run_on_reader(&self.store, find_page_ends).await?;
        let floor = snapshot.as_ref().map_or(0, |snapshot| snapshot.turn);
        Ok(Box::new(Pages { store: Arc::clone(&self.store), actor, key, snapshot, ends, floor, _permit: permit }))
    }

    /// Reads a page of events on the calling thread. It begins at a record that the page before it has passed.
    fn events_now(&self, after: u64, limit: usize) -> Result<Vec<StoredEvent>, StoreError> {
        let (to, from) = self.with_state(|state| {
            let to = after.saturating_add(limit as u64).min(state.index.position());
            (to, state.index.events_from(to))
        });
        if to <= after {
            return Ok(Vec::new());
        }
        let mut walk = Walk::default();
        let events = traverse::events(&self.log(), from, after, to, &mut walk);
        // Kept, so that the next page begins at a record that this one has passed.
        self.with_state(|state| state.index.keep_walk(walk));
        events
    }

    /// Reads a page of entries for a destination on the calling thread.
    fn outbox_now(&self, to: &ShardId, after: u64, limit: usize) -> Result<Vec<OutboxEntry>, StoreError> {
        let found = self.with_state(|state| {
            let destination = state.index.destination(to)?;
            let last = after.saturating_add(limit as u64).min(destination.last());
            Some((last, destination.from(last)))
        });
        let Some((last, from)) = found.filter(|(last, _)| *last > after) else { return Ok(Vec::new()) };
        let mut walk = Walk::default();
        let entries = traverse::outbox(&self.log(), &self.shard.id, to, from, after + 1..=last, &mut walk);
        self.with_state(|state| state.index.keep_walk_to(to, walk));
        entries
    }

    /// Finds the turn that handled a message: in the index, then in the runs of ids, then by reading the stream. The last
    /// step is needed only if a run is missing or damaged.
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

#[cfg(test)]
mod tests;
