//! One thread's part of a node: its shards, the commits it waits for, and how much is in flight.
//!
//! Called by the dispatchers, the actors, the workers and the background loops of a node. Calls the
//! [store](whizbang_core::store). It never runs user code.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use super::failure_log::FailureLog;
use super::owned_shard::OwnedShard;
use super::pending_commits::{CommitNotifier, PendingCommits};
use crate::inbox::{HealthIssues, IdleNotifier, QueuedBytes, QueuedKind};
use crate::layer::Layers;
use crate::router::{DedupKey, Delivery, NodeId, Outcome, PeerShapes, Remote};
use whizbang_core::clock::{MonotonicTime, Timestamp, instant};
use whizbang_core::message::{Digest, Envelope, IdSource, Kind, MessageId, ShardId};
use whizbang_core::retry::Retries;
use whizbang_core::store::{CommitListener as _, StoreError};
use whizbang_core::telemetry::error_chain;
use whizbang_core::telemetry::{Counts, TARGET};
use whizbang_core::user_code::{UserCode, caught};

/// The most by which a caller's clock may be ahead of the owner's. The ids that a caller makes contain its time.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);

/// The settings of one thread, fixed at start.
#[derive(Clone, Debug)]
pub struct ThreadSettings {
    /// The most turns in flight, queued or waiting for their commit.
    pub in_flight: usize,
    /// The most turns in flight for one key.
    pub in_flight_per_key: u32,
    /// The retry policies for failed deliveries.
    pub retry: Retries,
    /// The most jobs of one worker that run at once.
    pub jobs: usize,
    /// The time after which a job is ended.
    pub job_limit: Duration,
    /// The number of live actors of one type above which idle ones are passivated.
    pub live_actors: usize,
    /// The time for which message ids of external callers are remembered.
    pub remember: Duration,
    /// The health issues of the node.
    pub issues: Arc<HealthIssues>,
    /// The limits of the log lines about failed messages.
    pub failure_log: Arc<FailureLog>,
    /// The known message shapes of other services.
    pub shapes: Arc<PeerShapes>,
    /// One permit for the whole node; see `ThreadContext::suspect_permits`.
    pub suspect_permits: Arc<Semaphore>,
    /// The names of the headers that are passed on from a handled message to everything that it causes.
    pub propagated: Arc<[String]>,
    /// The layers around the handlers.
    pub layers: Arc<Layers>,
    /// The key of the store's message digests.
    pub digest_key: u128,
}

/// One thread's part of a node. It is shared by everything on that thread and never leaves it.
pub struct ThreadContext {
    /// Ids and the wall clock of the node.
    pub(crate) ids: IdSource,
    /// The clock by which timers are due.
    pub(crate) monotonic: MonotonicTime,
    /// The time of the start. A message sent before it may have been started by the previous process.
    started: Timestamp,
    /// Held while a suspect is delivered, so that one is delivered at a time on the whole node. A suspect is a message
    /// whose attempt was recorded and did not finish.
    pub(crate) suspect_permits: Arc<Semaphore>,
    pub(crate) settings: ThreadSettings,
    pub(crate) counts: Arc<Counts>,
    /// The wrapper through which user code is called on this thread.
    pub(crate) user_code: Arc<UserCode>,
    #[doc(hidden)]
    pub commits: Arc<CommitNotifier>,
    /// The open shards of this thread.
    pub(crate) shards: RefCell<BTreeMap<ShardId, Rc<OwnedShard>>>,
    /// Incremented when a shard is opened or closed.
    pub(crate) openings: Cell<u64>,
    /// Incremented when the commits of all shards have failed.
    pub(crate) generation: Cell<u64>,
    /// The number of passivation sweeps so far; the clock of idleness.
    pub(crate) sweeps: Cell<u64>,
    /// The number of uses of all actors so far; the clock of the LRU order.
    pub(super) uses: Cell<u64>,
    /// The thread handles nothing further.
    pub(crate) stopped: Cell<bool>,
    /// Set when draining begins; new messages are refused.
    pub(crate) draining: Cell<bool>,
    /// The shards that the relay has to read.
    pub(super) dirty: RefCell<Vec<Rc<OwnedShard>>>,
    /// Notified when draining begins, on the whole thread or of one shard.
    pub(crate) drain_started: Notify,
    /// Notified when nothing is in flight.
    pub(crate) idle: Rc<IdleNotifier>,
    /// Notified when a turn with outbox entries or relayed events was committed.
    pub(crate) relay: Rc<Notify>,
    /// Notified when a timer was set.
    pub(crate) timers: Rc<Notify>,
    /// The turns in flight, queued or waiting for their commit.
    pub(crate) in_flight: Cell<usize>,
    /// The number of panics since the shards were last reopened; see `report_panic`.
    pub(crate) panics: Cell<u32>,
    /// The payload bytes of what is in flight.
    pub(crate) queued: Rc<QueuedBytes>,
    /// The jobs of workers that run or wait in memory.
    pub(crate) jobs: Cell<usize>,
    /// Set while a turn runs outside a mailbox; a nested command is queued instead.
    pub(super) inline_running: Cell<bool>,
    /// The time of the last failed append, until the next commit.
    store_failed_at: Cell<Option<Instant>>,
    /// Set while a task waits to end the report of a failed append.
    store_watched: Cell<bool>,
    /// Set while the shards are reopened after failed commits.
    pub(crate) reopening: Cell<bool>,
    /// The callbacks that wait for commits.
    pub(super) pending_commits: PendingCommits,
    /// The buffer into which inline commands are encoded.
    pub(crate) scratch: RefCell<Vec<u8>>,
    /// The node's transport for the queries of jobs; unset without a node.
    pub(crate) remote: OnceCell<(NodeId, Arc<dyn Remote>)>,
}

impl std::fmt::Debug for ThreadContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ThreadContext")
            .field("in_flight", &self.in_flight.get())
            .field("jobs", &self.jobs.get())
            .finish_non_exhaustive()
    }
}

/// The names under which panics outside of user code are reported.
pub(super) const APPEND_TASK: &str = "append a turn";
pub(super) const ACTOR_TASK: &str = "live actor";
/// The name of the health issue for a store that rejects appends.
const STORE_ISSUE: &str = "store";
/// The time after which health no longer reports a store that has rejected an append and got none since. A node that is not
/// ready gets no commands, so no commit would ever end the report.
const STORE_ISSUE_FOR: Duration = Duration::from_secs(10);

impl ThreadContext {
    #[doc(hidden)]
    pub fn new(ids: IdSource, settings: ThreadSettings, code: Arc<UserCode>) -> Rc<Self> {
        Rc::new(Self {
            monotonic: MonotonicTime::of(ids.clock()),
            started: ids.clock().now(),
            suspect_permits: Arc::clone(&settings.suspect_permits),
            ids,
            settings,
            counts: Arc::clone(&code.counts),
            user_code: code,
            commits: Arc::default(),
            shards: RefCell::default(),
            openings: Cell::new(0),
            generation: Cell::new(0),
            sweeps: Cell::new(0),
            uses: Cell::new(0),
            stopped: Cell::new(false),
            draining: Cell::new(false),
            dirty: RefCell::default(),
            drain_started: Notify::new(),
            idle: Rc::default(),
            relay: Rc::default(),
            timers: Rc::default(),
            in_flight: Cell::new(0),
            panics: Cell::new(0),
            queued: Rc::default(),
            jobs: Cell::new(0),
            inline_running: Cell::new(false),
            store_failed_at: Cell::new(None),
            store_watched: Cell::new(false),
            reopening: Cell::new(false),
            pending_commits: PendingCommits::default(),
            scratch: RefCell::default(),
            remote: OnceCell::new(),
        })
    }

    /// Queues a shard for the relay.
    pub(crate) fn mark_dirty(&self, shard: &Rc<OwnedShard>) {
        if !shard.dirty.replace(true) {
            self.dirty.borrow_mut().push(Rc::clone(shard));
        }
        self.relay.notify_one();
    }

    /// Awaits a store operation on behalf of one key. A panic inside it is reported and becomes an error, so the task
    /// that awaits it survives.
    pub(crate) async fn call_store<T>(
        &self,
        task: &str,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        match caught(call).await {
            Ok(answer) => {
                self.user_code.task_recovered(task);
                answer
            }
            Err(panicked) => {
                self.user_code.failed(task, panicked.text());
                Err(StoreError::io("calling the store", std::io::Error::other(panicked.to_string())))
            }
        }
    }

    /// Reports a panic that left the state of an actor or of a shard's writer unknown, and returns it as an error. The shards of
    /// the thread are reopened: their log decides what was done, and the senders send what is missing again.
    pub(crate) fn report_panic(&self, task: &str, panicked: &str) -> StoreError {
        self.user_code.failed(task, &format!("{panicked}; reopening the shards"));
        let error = StoreError::io("running an actor", std::io::Error::other(panicked.to_owned()));
        self.panics.set(self.panics.get().saturating_add(1));
        self.commits.panicked(error.clone());
        error
    }

    /// Records that the shards were reopened after [panics](Self::report_panic).
    pub(crate) fn panics_handled(&self) {
        [APPEND_TASK, ACTOR_TASK].iter().for_each(|task| self.user_code.task_recovered(task));
    }

    /// Returns whether the previous process may have begun a message and may have ended because of it. Such a message
    /// was sent before this start, is redelivered without a new request, and is among the first of its source. A
    /// command of a caller that waits is not among them: the caller repeats it itself, or not at all.
    ///
    /// The comparison uses the clocks of two machines, which may differ. If the sender's clock is behind, its first
    /// messages cost a second commit; if it is ahead, their crashes are counted from a later start. Nothing else
    /// depends on it.
    pub(crate) fn may_have_begun(&self, delivery: &Delivery) -> bool {
        let (envelope, dedup_key) = (&delivery.envelope, &delivery.dedup_key);
        self.envelope_may_have_begun(envelope, dedup_key)
    }

    /// Returns whether a message was sent before this start.
    pub(crate) fn predates_start(&self, envelope: &Envelope) -> bool {
        envelope.time < self.started
    }

    /// Like [`may_have_begun`](Self::may_have_begun), for a message without its delivery.
    pub(crate) fn envelope_may_have_begun(&self, envelope: &Envelope, dedup_key: &DedupKey) -> bool {
        self.predates_start(envelope)
            && match dedup_key {
                DedupKey::Sequence { sequence, tracker, .. } => tracker.is_near_start(*sequence),
                DedupKey::MessageId => envelope.deadline.is_none(),
                DedupKey::Internal => envelope.kind == Kind::Document,
            }
    }

    /// Returns the digest of a message from an external caller.
    pub(crate) fn digest<'a>(&self, envelope: &'a Envelope) -> Digest<'a> {
        Digest::of(self.settings.digest_key, envelope)
    }

    /// Returns the time before which turns are no longer found by message id.
    pub(crate) fn dedup_horizon(&self) -> Timestamp {
        self.ids.clock().now().before(self.settings.remember)
    }

    /// Refuses a message id from an external caller that is older than ids are remembered, handled or not.
    pub(crate) fn refuse_expired_id(&self, id: MessageId) -> Option<Outcome> {
        let (made, now) = (id.time()?, self.ids.clock().now());
        (now.since(made) > self.settings.remember).then_some(Outcome::Expired)
    }

    /// Returns the outcome with which a new message from an external caller is refused, if it is. Duplicates are
    /// answered first, even if this node's clock was set back.
    pub(crate) fn refuse_new(&self, envelope: &Envelope) -> Option<Outcome> {
        let now = self.ids.clock().now();
        if envelope.id.time().is_some_and(|made| made.since(now) > MAX_CLOCK_SKEW) {
            return Some(Outcome::IdInFuture);
        }
        envelope.deadline.is_some_and(|deadline| now > deadline).then_some(Outcome::Late)
    }

    /// Counts one more turn of a shard in flight until the guard is dropped.
    pub(crate) fn track_in_flight(self: &Rc<Self>, shard: &Rc<OwnedShard>) -> InFlightGuard {
        let in_flight = self.in_flight.get() + 1;
        self.in_flight.set(in_flight);
        self.counts.in_flight.set(in_flight as u64);
        InFlightGuard::new(self, shard, false)
    }

    /// Counts one more job of a shard until the guard is dropped. Jobs have their own limit, so jobs that wait for slow I/O do not
    /// reduce the capacity for turns.
    pub(crate) fn track_job(self: &Rc<Self>, shard: &Rc<OwnedShard>) -> InFlightGuard {
        self.jobs.set(self.jobs.get() + 1);
        self.counts.jobs.set(self.jobs.get() as u64);
        InFlightGuard::new(self, shard, true)
    }

    /// Returns whether no turn and no job is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight.get() == 0 && self.jobs.get() == 0
    }

    /// Returns whether work of a shard that has not begun must not begin: the node is draining or has stopped, or the
    /// shard is handed over or lost.
    pub(crate) fn is_closing(&self, shard: &OwnedShard) -> bool {
        self.draining.get() || self.stopped.get() || shard.is_leaving()
    }

    /// Sleeps for `wait`, or until the [shard closes](Self::is_closing).
    pub(crate) async fn sleep_unless_closing(self: Rc<Self>, shard: Rc<OwnedShard>, wait: Duration) {
        let mut sleep = std::pin::pin!(tokio::time::sleep(wait));
        loop {
            let drains = self.drain_started.notified();
            if self.is_closing(&shard) {
                return;
            }
            tokio::select! {
                biased;
                () = drains => {}
                () = &mut sleep => return,
            }
        }
    }

    /// Returns once the [shard closes](Self::is_closing).
    pub(crate) async fn closes(&self, shard: &OwnedShard) {
        loop {
            let drains = self.drain_started.notified();
            if self.is_closing(shard) {
                return;
            }
            drains.await;
        }
    }

    /// Returns whether the running turn is the only one in flight on this thread. Everything that was ready has run
    /// before, so a message that arrived with it would be in flight as well.
    pub(crate) fn is_alone(&self) -> bool {
        self.in_flight.get() == 1 && self.pending_commits.is_empty()
    }

    /// Reports a failed append. A fenced shard belongs to a newer owner, so it is closed here. If the disk is full or
    /// broken, the node's health shows an issue until a commit succeeds, or none was tried for a while.
    pub(crate) fn report_append_error(self: &Rc<Self>, error: &StoreError) {
        match error {
            StoreError::Fenced { .. } => {
                self.commits.failed(error.clone());
                self.see_fences();
            }
            error if error.is_transient() => {
                if self.store_failed_at.replace(Some(instant())).is_none() {
                    self.settings.issues.count_failing_stores(1);
                }
                self.end_store_issue_later();
                if self.settings.issues.raise(STORE_ISSUE, format!("failed to commit: {}", error_chain(&error))) {
                    tracing::error!(
                        target: TARGET, error = %error_chain(&error),
                        "failed to commit; turns are refused until the store accepts them",
                    );
                }
            }
            _ => {}
        }
    }

    /// Reports a commit and resolves the health issue of earlier failures, unless shards of this thread are still closed.
    pub(super) fn report_commit(&self) {
        if self.store_failed_at.get().is_some() && !self.reopening.get() {
            self.end_store_issue("store accepts turns again");
        }
    }

    /// Resolves the health issue of failed appends, unless another thread has it.
    fn end_store_issue(&self, why: &str) {
        self.store_failed_at.set(None);
        if self.settings.issues.count_failing_stores(-1) == 0 && self.settings.issues.resolve(STORE_ISSUE) {
            tracing::info!(target: TARGET, "{why}");
        }
    }

    /// Resolves the health issue of failed appends once none has failed for a while.
    fn end_store_issue_later(self: &Rc<Self>) {
        if self.store_watched.replace(true) {
            return;
        }
        let me = Rc::downgrade(self);
        whizbang_core::spawn::detached(&self.user_code, "end the report of a failed store", async move {
            while let Some(context) = me.upgrade() {
                let Some(last) = context.store_failed_at.get() else {
                    context.store_watched.set(false);
                    return;
                };
                let end = last + STORE_ISSUE_FOR;
                if end > instant() {
                    drop(context);
                    tokio::time::sleep_until(end).await;
                } else if context.reopening.get() {
                    context.store_failed_at.set(Some(instant()));
                } else {
                    context.end_store_issue("store has rejected no turn for a while: ready again");
                }
            }
        });
    }

    /// Returns whether the relay has read every dirty shard.
    pub(crate) fn is_clean(&self) -> bool {
        self.dirty.borrow().is_empty()
    }

    /// Takes the shards that the relay has to read.
    pub(crate) fn take_dirty(&self) -> Vec<Rc<OwnedShard>> {
        let dirty = std::mem::take(&mut *self.dirty.borrow_mut());
        for cell in &dirty {
            cell.dirty.set(false);
        }
        dirty
    }
}

/// One turn or job in flight, until it is dropped or waits for the store.
#[derive(Debug)]
pub struct InFlightGuard {
    context: Rc<ThreadContext>,
    shard: Rc<OwnedShard>,
    is_job: bool,
    /// False once it waits for the store.
    is_counted: bool,
    /// The payload bytes that it holds, and their kind.
    held: Option<(QueuedKind, usize)>,
}

impl InFlightGuard {
    /// Counts one more for the shard; the caller has counted it for the thread.
    fn new(context: &Rc<ThreadContext>, shard: &Rc<OwnedShard>, is_job: bool) -> Self {
        shard.in_flight.set(shard.in_flight.get() + 1);
        Self { context: Rc::clone(context), shard: Rc::clone(shard), is_job, is_counted: true, held: None }
    }

    /// Counts the payload of the message in flight until the guard is dropped.
    pub(crate) fn holding(mut self, kind: QueuedKind, bytes: usize) -> Self {
        self.context.queued.add(kind, bytes);
        self.held = Some((kind, bytes));
        self
    }
}

impl InFlightGuard {
    /// Ends the time in flight of a message that the store refuses to record. Its payload still occupies memory.
    pub(crate) fn wait_unrecorded(&mut self) {
        if !std::mem::replace(&mut self.is_counted, false) {
            return;
        }
        if let Some((kind, bytes)) = &mut self.held {
            self.context.queued.remove(*kind, *bytes);
            *kind = QueuedKind::Unrecorded;
            self.context.queued.add(*kind, *bytes);
        }
        self.uncount();
    }

    fn uncount(&self) {
        let context = &self.context;
        if self.is_job {
            context.jobs.set(context.jobs.get() - 1);
            context.counts.jobs.set(context.jobs.get() as u64);
        } else {
            let in_flight = context.in_flight.get() - 1;
            context.in_flight.set(in_flight);
            context.counts.in_flight.set(in_flight as u64);
        }
        self.shard.in_flight.set(self.shard.in_flight.get() - 1);
        if context.is_idle() || (self.shard.is_leaving() && self.shard.is_drained()) {
            context.idle.notify();
        }
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        if let Some((kind, bytes)) = self.held {
            self.context.queued.remove(kind, bytes);
        }
        if self.is_counted {
            self.uncount();
        }
    }
}

#[cfg(test)]
mod tests;
