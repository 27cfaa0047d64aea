//! Readers with latency and with keys that cannot be read.
//!
//! Used by the [store](super::store). The data read may be as old as the latency.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use send_wrapper::SendWrapper;

use super::fault_counts::{FaultCounts, FaultEvent};
use super::step_log::StepLog;
use super::store_handle::StoreHandle;
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{IdSource, MessageId, Name, ShardId};
use whizbang_core::store::{
    DeadLetter, OutboxEntry, ShardReader, StoreError, StoredEvent, StoredTurn, StreamPages, StreamState, Timer,
    TimerCursor, TimerPage, Watermark,
};
use whizbang_runtime::actor::{Count, ReplayChecker};

/// The latency of reads. Clones share it.
#[derive(Clone)]
pub(super) struct ReadLatency {
    /// The longest latency in milliseconds, and the source of the random part.
    max_millis: Arc<(AtomicU16, Mutex<IdSource>)>,
    /// The keys that cannot be read at the moment.
    pub(super) unreadable_keys: UnreadableKeys,
}

impl ReadLatency {
    /// Creates readers without latency.
    pub(super) fn new(rng: IdSource, unreadable_keys: UnreadableKeys) -> Self {
        Self { max_millis: Arc::new((AtomicU16::new(0), Mutex::new(rng))), unreadable_keys }
    }

    /// Sets the maximum in milliseconds.
    pub(super) fn set(&self, max_millis: u16) {
        self.max_millis.0.store(max_millis, Ordering::Relaxed);
    }

    /// Draws the latency before and after a read.
    fn draw(&self) -> Option<(Duration, Duration)> {
        let max_millis = u64::from(self.max_millis.0.load(Ordering::Relaxed));
        if max_millis == 0 || ReplayChecker::is_reading() {
            return None;
        }
        let rng = self.max_millis.1.lock();
        let total = rng.below(max_millis * 1000 + 1);
        let before = rng.below(total + 1);
        Some((Duration::from_micros(before), Duration::from_micros(total - before)))
    }
}

/// Keys that cannot be read. Clones share them.
#[derive(Clone)]
pub(super) struct UnreadableKeys(Arc<Mutex<State>>, StepLog, FaultCounts);

/// The blocked keys of a store.
#[derive(Default)]
struct State {
    /// The number of the last fault.
    last: u64,
    /// The unreadable keys by the number of the block; `None` until a key is loaded.
    keys: BTreeMap<u64, Option<(ShardId, Name, String)>>,
    /// The counter of each fault: it has fired once a key of it was read.
    counts: BTreeMap<u64, SendWrapper<Count>>,
    /// All keys that were unreadable at some time.
    ever_blocked: BTreeSet<(ShardId, Name, String)>,
}

impl UnreadableKeys {
    /// Creates a set without keys.
    pub(super) fn new(step_log: StepLog, fault_counts: FaultCounts) -> Self {
        Self(Arc::default(), step_log, fault_counts)
    }

    /// Blocks the next key that is loaded. Returns the number for [`unblock`](Self::unblock).
    pub(super) fn block_next(&self, count: &Count) -> u64 {
        let mut state = self.0.lock();
        state.last += 1;
        let number = state.last;
        state.keys.insert(number, None);
        state.counts.insert(number, SendWrapper::new(Rc::clone(count)));
        number
    }

    /// Ends a fault: its keys can be read again.
    pub(super) fn unblock(&self, number: u64) {
        let mut state = self.0.lock();
        state.keys.remove(&number);
        state.counts.remove(&number);
    }

    /// Returns whether a key was unreadable at some time.
    pub(super) fn was_blocked(&self, shard: &ShardId, actor: &Name, key: &str) -> bool {
        self.0.lock().ever_blocked.contains(&(shard.clone(), actor.clone(), key.to_owned()))
    }

    /// Returns an error if a key is unreadable. Blocks the key if a block is pending.
    fn check(&self, shard: &ShardId, actor: &Name, key: &str) -> Result<(), StoreError> {
        if ReplayChecker::is_reading() || actor.as_str() == whizbang_runtime::actor::DEFERRED {
            return Ok(());
        }
        let state = &mut *self.0.lock();
        let is_blocked = |(of, name, blocked): &(ShardId, Name, String)| of == shard && name == actor && blocked == key;
        if state.keys.values().flatten().any(is_blocked) {
            return Err(unreadable());
        }
        let Some((number, slot)) = state.keys.iter_mut().find(|(_, key)| key.is_none()) else { return Ok(()) };
        *slot = Some((shard.clone(), actor.clone(), key.to_owned()));
        if let Some(count) = state.counts.get(number) {
            count.set(count.get() + 1);
        }
        state.ever_blocked.extend(slot.clone());
        self.1.key_stuck(shard, actor, key);
        self.2.one(FaultEvent::KeyBlocked);
        Err(unreadable())
    }
}

/// Returns the error of a key that cannot be read.
fn unreadable() -> StoreError {
    StoreError::io("reading a key", std::io::Error::other("simulated unreadable sector"))
}

/// A reader with latency. The data is as of some moment during the read.
pub(super) struct SlowReader {
    /// The shard.
    shard: ShardId,
    /// The reader of the backend.
    inner: Arc<dyn ShardReader>,
    /// The latency of the store.
    latency: ReadLatency,
    /// The connection of the node, through which it reads.
    handle: Arc<StoreHandle>,
}

impl SlowReader {
    /// Creates the reader of a node.
    pub(super) fn new(
        shard: ShardId,
        inner: Arc<dyn ShardReader>,
        latency: ReadLatency,
        handle: Arc<StoreHandle>,
    ) -> Self {
        Self { shard, inner, latency, handle }
    }

    /// Runs a read after the latency. A read waits while the connection is cut.
    fn delayed<'a, T: Send + 'a>(&self, read: impl FnOnce() -> BoxFuture<'a, T> + Send + 'a) -> BoxFuture<'a, T> {
        if self.handle.is_cut() && !ReplayChecker::is_reading() {
            let handle = Arc::clone(&self.handle);
            return Box::pin(async move {
                handle.round_trip().await;
                read().await
            });
        }
        match self.latency.draw() {
            None => read(),
            Some((before, after)) => Box::pin(async move {
                tokio::time::sleep(before).await;
                let read = read().await;
                tokio::time::sleep(after).await;
                read
            }),
        }
    }
}

impl ShardReader for SlowReader {
    fn position(&self) -> u64 {
        self.inner.position()
    }

    fn load<'a>(&'a self, actor: &'a Name, key: &'a str) -> BoxFuture<'a, Result<StreamState, StoreError>> {
        self.delayed(move || self.inner.load(actor, key))
    }

    fn pages<'a>(
        &'a self,
        actor: &'a Name,
        key: &'a str,
        snapshot: bool,
    ) -> BoxFuture<'a, Result<Box<dyn StreamPages>, StoreError>> {
        match self.latency.unreadable_keys.check(&self.shard, actor, key) {
            Ok(()) => self.delayed(move || self.inner.pages(actor, key, snapshot)),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn find_turn<'a>(
        &'a self,
        actor: &'a Name,
        key: &'a str,
        id: MessageId,
    ) -> BoxFuture<'a, Result<Option<StoredTurn>, StoreError>> {
        self.delayed(move || self.inner.find_turn(actor, key, id))
    }

    fn history<'a>(&'a self, actor: &'a Name, key: &'a str) -> BoxFuture<'a, Result<Vec<StoredTurn>, StoreError>> {
        self.delayed(move || self.inner.history(actor, key))
    }

    fn events(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<StoredEvent>, StoreError>> {
        self.delayed(move || self.inner.events(after, limit))
    }

    fn outbox<'a>(
        &'a self,
        to: &'a ShardId,
        after: u64,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<OutboxEntry>, StoreError>> {
        self.delayed(move || self.inner.outbox(to, after, limit))
    }

    fn outbox_heads(&self) -> Vec<(ShardId, u64, u64)> {
        self.inner.outbox_heads()
    }

    fn watermarks(&self) -> Vec<Watermark> {
        self.inner.watermarks()
    }

    fn timers_due(&self, now: Timestamp, limit: usize) -> Vec<Timer> {
        self.inner.timers_due(now, limit)
    }

    fn next_timer(&self) -> Option<Timestamp> {
        self.inner.next_timer()
    }

    fn timers_of(&self, actor: &Name, after: TimerCursor, now: Timestamp, limit: usize) -> TimerPage {
        self.inner.timers_of(actor, after, now, limit)
    }

    fn timer_counts(&self) -> Vec<(Name, usize)> {
        self.inner.timer_counts()
    }

    fn dead_letters(
        &self,
        after: Option<MessageId>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<DeadLetter>, StoreError>> {
        self.delayed(move || self.inner.dead_letters(after, limit))
    }

    fn dead_letter_count(&self) -> u64 {
        self.inner.dead_letter_count()
    }

    fn streams(&self) -> BoxFuture<'_, Result<Vec<(Name, String)>, StoreError>> {
        self.delayed(move || self.inner.streams())
    }
}
