//! A thread context, opened shards and messages for the tests of this module.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;

use super::owned_shard::OwnedShard;
use super::thread::{ThreadContext, ThreadSettings};
use whizbang_core::clock::{Clock, ManualClock, Timestamp};
use whizbang_core::message::{Envelope, IdSource, Kind, MessageId, Name, ShardId};
use whizbang_core::store::{Store as _, StoreError};
use whizbang_log::memory::MemoryStore;

/// The time at which manual clocks start.
pub(super) const START: Timestamp = Timestamp::from_millis(1_000_000_000);
/// The time for which ids are remembered.
pub(super) const REMEMBER: Duration = Duration::from_secs(1);

pub(super) fn settings() -> ThreadSettings {
    ThreadSettings {
        in_flight: 10,
        in_flight_per_key: 10,
        retry: Default::default(),
        jobs: 1,
        job_limit: Duration::from_secs(1),
        live_actors: 10,
        remember: REMEMBER,
        issues: Arc::default(),
        failure_log: Arc::default(),
        shapes: Arc::default(),
        suspect_permits: Arc::new(tokio::sync::Semaphore::new(1)),
        propagated: Arc::default(),
        layers: Arc::default(),
        digest_key: 0,
    }
}

pub(super) fn context() -> Rc<ThreadContext> {
    context_of(settings())
}

pub(super) fn context_of(settings: ThreadSettings) -> Rc<ThreadContext> {
    ThreadContext::new(IdSource::seeded(Clock::system(), 1), settings, Arc::default())
}

/// A context with a clock that the test sets.
pub(super) fn context_at_start() -> (Rc<ThreadContext>, ManualClock) {
    let (clock, hand) = Clock::manual(START);
    (ThreadContext::new(IdSource::seeded(clock, 1), settings(), Arc::default()), hand)
}

pub(super) fn bank(number: u16) -> ShardId {
    ShardId::new(Name::from_static("bank").unwrap(), number)
}

/// Opens a shard of a new store.
pub(super) fn open(context: &Rc<ThreadContext>, number: u16) -> Rc<OwnedShard> {
    open_in(&MemoryStore::new(), context, number)
}

pub(super) fn open_in(store: &MemoryStore, context: &Rc<ThreadContext>, number: u16) -> Rc<OwnedShard> {
    let handle = store.open(&bank(number), 2, Arc::clone(&context.commits) as _).now_or_never().unwrap().unwrap();
    let shard = OwnedShard::new(bank(number), handle, false);
    context.shards.borrow_mut().insert(bank(number), Rc::clone(&shard));
    shard
}

/// A command without payload.
pub(super) fn command(id: u128, time: Timestamp) -> Envelope {
    let (domain, name) = (Name::from_static("bank").unwrap(), Name::from_static("Deposit").unwrap());
    Envelope::new(MessageId::from_u128(id), Kind::Command, domain, name, time)
}

/// A failure of the store that concerns all shards.
pub(super) fn broken() -> StoreError {
    StoreError::io("flushing", std::io::Error::other("planned"))
}

/// Runs a test with local tasks, on a clock that advances only while everything waits.
pub(super) fn on_paused_time(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(tokio::task::LocalSet::new().run_until(test));
}

/// Runs the tasks that are ready.
pub(super) async fn run_ready() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}
