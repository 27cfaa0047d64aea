//! Readings that take their time, and may be as old as that.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use send_wrapper::SendWrapper;

use super::fault_counts::{FaultCounts, FaultEvent};
use super::step_log::ObservedDeliveries;
use crate::actor::{Count, ReplayChecker};
use crate::clock::Timestamp;
use crate::message::{IdSource, MessageId, Name, ShardId};
use crate::store::{
    DeadLetter, OutboxEntry, ShardReader, StoreError, StoredEvent, StoredTurn, StreamPages, StreamState, Timer,
    TimerCursor, TimerPage, Watermark,
};

/// How long readings take. Clones are the same.
#[derive(Clone)]
pub(super) struct Pace {
    slowest: Arc<(AtomicU16, Mutex<IdSource>)>,
    pub(super) jams: Jams,
}

impl Pace {
    pub(super) fn new(dice: IdSource, jams: Jams) -> Self {
        Self { slowest: Arc::new((AtomicU16::new(0), Mutex::new(dice))), jams }
    }

    /// Sets the longest time, in milliseconds.
    pub(super) fn set(&self, slowest: u16) {
        self.slowest.0.store(slowest, Ordering::Relaxed);
    }

    /// The time before something is read and the time after.
    fn throw(&self) -> Option<(Duration, Duration)> {
        let slowest = u64::from(self.slowest.0.load(Ordering::Relaxed));
        if slowest == 0 || ReplayChecker::is_reading() {
            return None;
        }
        let dice = self.slowest.1.lock();
        let whole = dice.below(slowest * 1000 + 1);
        let before = dice.below(whole + 1);
        Some((Duration::from_micros(before), Duration::from_micros(whole - before)))
    }
}

/// Keys that cannot be read. Clones are the same.
#[derive(Clone)]
pub(super) struct Jams(Arc<Mutex<Jammed>>, ObservedDeliveries, FaultCounts);

#[derive(Default)]
struct Jammed {
    last: u64,
    /// The keys that cannot be read, by the number of the jam; those that are to be found are `None`.
    keys: BTreeMap<u64, Option<(ShardId, Name, String)>>,
    struck: BTreeMap<u64, SendWrapper<Count>>,
    /// All keys that could not be read at some time.
    ever: BTreeSet<(ShardId, Name, String)>,
}

impl Jams {
    pub(super) fn new(seen: ObservedDeliveries, tally: FaultCounts) -> Self {
        Self(Arc::default(), seen, tally)
    }

    /// The next key that is loaded cannot be read from then on. Returns the number to end it with.
    pub(super) fn next(&self, count: &Count) -> u64 {
        let mut jammed = self.0.lock();
        jammed.last += 1;
        let number = jammed.last;
        jammed.keys.insert(number, None);
        jammed.struck.insert(number, SendWrapper::new(Rc::clone(count)));
        number
    }

    pub(super) fn end(&self, number: u64) {
        let mut jammed = self.0.lock();
        jammed.keys.remove(&number);
        jammed.struck.remove(&number);
    }

    /// Whether a key could not be read at some time.
    pub(super) fn has_stuck(&self, shard: &ShardId, actor: &Name, key: &str) -> bool {
        self.0.lock().ever.contains(&(shard.clone(), actor.clone(), key.to_owned()))
    }

    /// Whether a key that is loaded can be read.
    fn check(&self, shard: &ShardId, actor: &Name, key: &str) -> Result<(), StoreError> {
        if ReplayChecker::is_reading() || actor.as_str() == crate::actor::DEFERRED {
            return Ok(());
        }
        let jammed = &mut *self.0.lock();
        let is_this = |(of, name, stuck): &(ShardId, Name, String)| of == shard && name == actor && stuck == key;
        if jammed.keys.values().flatten().any(is_this) {
            return Err(unreadable());
        }
        let Some((number, open)) = jammed.keys.iter_mut().find(|(_, key)| key.is_none()) else { return Ok(()) };
        *open = Some((shard.clone(), actor.clone(), key.to_owned()));
        if let Some(count) = jammed.struck.get(number) {
            count.set(count.get() + 1);
        }
        jammed.ever.extend(open.clone());
        self.1.sticks(shard, actor, key);
        self.2.one(FaultEvent::KeyStuck);
        Err(unreadable())
    }
}

fn unreadable() -> StoreError {
    StoreError::io("reading a key", std::io::Error::other("a simulated sector cannot be read"))
}

/// Reads from another reader in its own time: what is read was so at some moment of that time.
pub(super) struct SlowReader {
    shard: ShardId,
    inner: Arc<dyn ShardReader>,
    pace: Pace,
}

impl SlowReader {
    pub(super) fn new(shard: ShardId, inner: Arc<dyn ShardReader>, pace: Pace) -> Self {
        Self { shard, inner, pace }
    }

    fn slow<'a, T: Send + 'a>(&self, read: impl FnOnce() -> BoxFuture<'a, T> + Send + 'a) -> BoxFuture<'a, T> {
        match self.pace.throw() {
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
        self.slow(move || self.inner.load(actor, key))
    }

    fn pages<'a>(
        &'a self,
        actor: &'a Name,
        key: &'a str,
        snapshot: bool,
    ) -> BoxFuture<'a, Result<Box<dyn StreamPages>, StoreError>> {
        match self.pace.jams.check(&self.shard, actor, key) {
            Ok(()) => self.slow(move || self.inner.pages(actor, key, snapshot)),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn find_turn<'a>(
        &'a self,
        actor: &'a Name,
        key: &'a str,
        id: MessageId,
    ) -> BoxFuture<'a, Result<Option<StoredTurn>, StoreError>> {
        self.slow(move || self.inner.find_turn(actor, key, id))
    }

    fn history<'a>(&'a self, actor: &'a Name, key: &'a str) -> BoxFuture<'a, Result<Vec<StoredTurn>, StoreError>> {
        self.slow(move || self.inner.history(actor, key))
    }

    fn events(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<StoredEvent>, StoreError>> {
        self.slow(move || self.inner.events(after, limit))
    }

    fn outbox<'a>(
        &'a self,
        to: &'a ShardId,
        after: u64,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<OutboxEntry>, StoreError>> {
        self.slow(move || self.inner.outbox(to, after, limit))
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
        self.slow(move || self.inner.dead_letters(after, limit))
    }

    fn dead_letter_count(&self) -> u64 {
        self.inner.dead_letter_count()
    }

    fn streams(&self) -> BoxFuture<'_, Result<Vec<(Name, String)>, StoreError>> {
        self.slow(move || self.inner.streams())
    }
}
