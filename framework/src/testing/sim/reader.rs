//! Readings that take their time, and may be as old as that.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use crate::actor::Mirror;
use crate::clock::Timestamp;
use crate::message::{IdSource, MessageId, Name, ShardId};
use crate::store::{
    DeadLetter, OutboxEntry, ShardReader, StoreError, StoredEvent, StoredTurn, StreamPages, StreamState, Timer,
    TimerPage, TimerPlace, Watermark,
};

/// How long readings take. Clones are the same.
#[derive(Clone)]
pub(super) struct Pace(Arc<(AtomicU16, Mutex<IdSource>)>);

impl Pace {
    pub(super) fn new(dice: IdSource) -> Self {
        Self(Arc::new((AtomicU16::new(0), Mutex::new(dice))))
    }

    /// Sets the longest time, in milliseconds.
    pub(super) fn set(&self, slowest: u16) {
        self.0.0.store(slowest, Ordering::Relaxed);
    }

    /// The time before something is read and the time after.
    fn throw(&self) -> Option<(Duration, Duration)> {
        let slowest = u64::from(self.0.0.load(Ordering::Relaxed));
        if slowest == 0 || Mirror::is_reading() {
            return None;
        }
        let dice = self.0.1.lock();
        let whole = dice.below(slowest * 1000 + 1);
        let before = dice.below(whole + 1);
        Some((Duration::from_micros(before), Duration::from_micros(whole - before)))
    }
}

/// Reads from another reader in its own time: what is read was so at some moment of that time.
pub(super) struct SlowReader {
    inner: Arc<dyn ShardReader>,
    pace: Pace,
}

impl SlowReader {
    pub(super) fn new(inner: Arc<dyn ShardReader>, pace: Pace) -> Self {
        Self { inner, pace }
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
        self.slow(move || self.inner.pages(actor, key, snapshot))
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

    fn timers_of(&self, actor: &Name, after: TimerPlace, now: Timestamp, limit: usize) -> TimerPage {
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
