//! One thread's share of a node: its shards, what waits for a commit, how much is in flight.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use crate::clock::{MonotonicTime, Timestamp};
use crate::inbox::{HealthIssues, IdleNotifier};
use crate::message::{Digest, Envelope, IdSource, Kind, MessageId, ShardId};
use crate::retry::Retries;
use crate::router::{DedupKey, Delivery, Outcome, PeerShapes};
use crate::store::{Appended, CommitListener, ShardHandle, ShardReader, ShardWriter, StoreError, Ticket};
use crate::telemetry::{Counts, TARGET};
use crate::user_code::{UserCode, caught};

/// How far the clock of a caller may be ahead of the owner's: the ids it makes hold its time.
const FUTURE: Duration = Duration::from_secs(5 * 60);

/// What a host is told at start.
#[derive(Clone, Debug)]
pub(crate) struct ThreadSettings {
    /// Turns in flight at most, queued or waiting for their commit.
    pub(crate) in_flight: usize,
    /// The same for one key.
    pub(crate) in_flight_per_key: u32,
    /// How failed deliveries are tried again.
    pub(crate) retry: Retries,
    /// How many jobs of one worker run at once.
    pub(crate) jobs: usize,
    /// How long one of them may take.
    pub(crate) job_limit: Duration,
    /// How many actors of one type are live unless more are busy.
    pub(crate) live_actors: usize,
    /// How long the ids of callers from outside are kept.
    pub(crate) remember: Duration,
    /// Where it is said what has stopped.
    pub(crate) issues: Arc<HealthIssues>,
    /// The known shapes of other services.
    pub(crate) shapes: Arc<PeerShapes>,
    /// One permit for the whole node; see [`ThreadContext::suspect_permits`].
    pub(crate) suspect_permits: Arc<Semaphore>,
    /// With what the store's digests of messages are keyed.
    pub(crate) digest_key: u128,
}

/// One thread's share of a node.
pub(crate) struct ThreadContext {
    pub(crate) ids: IdSource,
    /// By which timers are due.
    pub(crate) monotonic: MonotonicTime,
    /// When it began. What was sent before may have been begun before.
    started: Timestamp,
    /// Held by the delivery of a message that was under way when the process ended before. One at a time on the whole node.
    pub(crate) suspect_permits: Arc<Semaphore>,
    pub(crate) settings: ThreadSettings,
    pub(crate) counts: Arc<Counts>,
    /// How user code is called on this thread.
    pub(crate) user_code: Arc<UserCode>,
    pub(crate) commits: Arc<CommitNotifier>,
    /// Rises when commits have failed: what an older actor still has queued is answered, not handled.
    pub(crate) generation: Cell<u64>,
    /// Counts the sweeps, as the clock of idleness.
    pub(crate) sweeps: Cell<u64>,
    /// Counts the uses of all actors, as the clock of what was used last.
    pub(super) uses: Cell<u64>,
    pub(crate) stopped: Cell<bool>,
    /// Nothing new is taken in any more.
    pub(crate) draining: Cell<bool>,
    /// What the relay is to look at.
    dirty: RefCell<Vec<Rc<OwnedShard>>>,
    /// Woken when draining begins.
    pub(crate) drains: Notify,
    /// Looked at when nothing is in flight any more.
    pub(crate) idle: Rc<IdleNotifier>,
    /// Woken when something was committed that somebody may have to be told of.
    pub(crate) relay: Rc<Notify>,
    /// Woken when a timer was set.
    pub(crate) timers: Rc<Notify>,
    pub(crate) in_flight: Cell<usize>,
    /// Jobs of workers that run, or wait in memory.
    pub(crate) jobs: Cell<usize>,
    /// A turn is being taken that did not go through a mailbox.
    pub(super) inline_allowed: Cell<bool>,
    /// The store has refused a turn, and has taken none since.
    refusing: Cell<bool>,
    waiting: RefCell<VecDeque<(Ticket, Release)>>,
    pub(crate) scratch: RefCell<Vec<u8>>,
}

/// The name under which the node's health says that its store takes nothing.
const STORE: &str = "store";

type Release = Box<dyn FnOnce(Result<(), StoreError>)>;

impl ThreadContext {
    pub(crate) fn new(ids: IdSource, settings: ThreadSettings, code: Arc<UserCode>) -> Rc<Self> {
        Rc::new(Self {
            monotonic: MonotonicTime::of(ids.clock()),
            started: ids.clock().now(),
            suspect_permits: Arc::clone(&settings.suspect_permits),
            ids,
            settings,
            counts: Arc::clone(&code.counts),
            user_code: code,
            commits: Arc::default(),
            generation: Cell::new(0),
            sweeps: Cell::new(0),
            uses: Cell::new(0),
            stopped: Cell::new(false),
            draining: Cell::new(false),
            dirty: RefCell::default(),
            drains: Notify::new(),
            idle: Rc::default(),
            relay: Rc::default(),
            timers: Rc::default(),
            in_flight: Cell::new(0),
            jobs: Cell::new(0),
            inline_allowed: Cell::new(false),
            refusing: Cell::new(false),
            waiting: RefCell::default(),
            scratch: RefCell::default(),
        })
    }

    /// Asks the store for something on behalf of one key. A panic in there is reported and becomes an error: it must not end what
    /// waits for the answer.
    pub(crate) async fn guarded<T>(
        &self,
        task: &str,
        asking: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        match caught(asking).await {
            Ok(answer) => {
                self.user_code.goes_on(task);
                answer
            }
            Err(panicked) => {
                self.user_code.failed(task, panicked.text());
                Err(StoreError::io("asking the store", std::io::Error::other(panicked.to_string())))
            }
        }
    }

    /// Whether a message may have been begun before the node ended last, and be the reason that it ended: it was sent before
    /// this start, it comes again by itself, and it is among the first from its source. A caller that waits for a reply asks
    /// again by itself or not at all.
    ///
    /// Answers by times of two clocks, which may differ. A sender whose clock is behind makes its first messages cost a second
    /// commit; one whose clock is ahead has them counted from a later start on. Nothing else depends on it.
    pub(crate) fn may_have_begun(&self, delivery: &Delivery) -> bool {
        let (envelope, arrival) = (&delivery.envelope, &delivery.dedup_key);
        self.may_have_been(envelope, arrival)
    }

    /// Returns whether a message was sent before this start.
    pub(crate) fn is_older(&self, envelope: &Envelope) -> bool {
        envelope.time < self.started
    }

    /// The same of a message without its delivery.
    pub(crate) fn may_have_been(&self, envelope: &Envelope, arrival: &DedupKey) -> bool {
        self.is_older(envelope)
            && match arrival {
                DedupKey::Sequence { sequence, tracker: floor, .. } => floor.is_near_start(*sequence),
                DedupKey::MessageId => envelope.deadline.is_none(),
                DedupKey::Internal => envelope.kind == Kind::Document,
            }
    }

    /// The digest of a message from outside.
    pub(crate) fn digest<'a>(&self, envelope: &'a Envelope) -> Digest<'a> {
        Digest::of(self.settings.digest_key, envelope)
    }

    /// Turns before this moment are no longer found by the ids of their messages.
    pub(crate) fn oldest(&self) -> Timestamp {
        self.ids.clock().now().before(self.settings.remember)
    }

    /// Refuses the id of a message from outside that is older than ids are remembered, handled or not.
    pub(crate) fn id_expired(&self, id: MessageId) -> Option<Outcome> {
        let (made, now) = (id.time()?, self.ids.clock().now());
        (now.since(made) > self.settings.remember).then_some(Outcome::Expired)
    }

    /// Why a message from outside whose id is new is not handled, if it is not. One that was handled is answered even if this
    /// node's clock has been set back since.
    pub(crate) fn new_refused(&self, envelope: &Envelope) -> Option<Outcome> {
        let now = self.ids.clock().now();
        if envelope.id.time().is_some_and(|made| made.since(now) > FUTURE) {
            return Some(Outcome::IdInFuture);
        }
        envelope.deadline.is_some_and(|deadline| now > deadline).then_some(Outcome::Late)
    }

    /// Counts one more in flight, until the flight is dropped.
    pub(crate) fn track_in_flight(self: &Rc<Self>) -> InFlightGuard {
        let in_flight = self.in_flight.get() + 1;
        self.in_flight.set(in_flight);
        self.counts.in_flight.set(in_flight as u64);
        InFlightGuard { host: Rc::clone(self), job: false }
    }

    /// Counts one more job, until the flight is dropped. Jobs have a bound of their own: those that wait for something slow
    /// outside take no room from turns.
    pub(crate) fn job(self: &Rc<Self>) -> InFlightGuard {
        self.jobs.set(self.jobs.get() + 1);
        self.counts.jobs.set(self.jobs.get() as u64);
        InFlightGuard { host: Rc::clone(self), job: true }
    }

    /// Returns whether nothing is under way: no turn and no job.
    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight.get() == 0 && self.jobs.get() == 0
    }

    /// Waits, but not longer than until the node stops.
    pub(crate) async fn pause(self: Rc<Self>, wait: Duration) {
        let drains = self.drains.notified();
        if !self.draining.get() && !self.stopped.get() {
            tokio::select! {
                biased;
                () = drains => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Whether the turn that is being taken is all there is in flight here. What was ready to run before it has run, so what
    /// came together with it would be in flight as well.
    pub(crate) fn is_alone(&self) -> bool {
        self.in_flight.get() == 1 && self.waiting.borrow().is_empty()
    }

    /// Whether nothing need be waited for after this append.
    pub(crate) fn is_settled(appended: &Appended) -> bool {
        appended.committed
    }

    /// Calls `then` once the append is durable: at once if it is.
    pub(crate) fn after_commit(&self, appended: Appended, then: impl FnOnce(Result<(), StoreError>) + 'static) {
        if Self::is_settled(&appended) {
            self.accepted();
            then(Ok(()));
        } else {
            self.after_ticket(appended.ticket, then);
        }
    }

    /// Calls `then` once everything up to `ticket` is durable.
    pub(crate) fn after_ticket(&self, ticket: Ticket, then: impl FnOnce(Result<(), StoreError>) + 'static) {
        if ticket <= self.commits.through.load(Ordering::Acquire) {
            then(Ok(()));
        } else {
            self.waiting.borrow_mut().push_back((ticket, Box::new(then)));
        }
    }

    /// Releases what the store has made durable since; runs for as long as the host lives.
    ///
    /// Returns the error when commits have failed; what waited has been told.
    pub(crate) async fn release(&self) -> StoreError {
        loop {
            self.commits.changed.notified().await;
            self.release_now();
            if let Some(error) = self.commits.failed.lock().clone() {
                self.give_up(&error);
                return error;
            }
        }
    }

    /// Tells all that wait for a commit that nobody will hear of it any more: it may have been written or not.
    pub(crate) fn give_up(&self, error: &StoreError) {
        self.generation.set(self.generation.get() + 1);
        let lost = std::mem::take(&mut *self.waiting.borrow_mut());
        for (_, release) in lost {
            release(Err(error.clone()));
        }
    }

    /// An append was refused. If that is because a younger owner has the shard, the node must not go on; if the disk is full or
    /// broken, the node's health says so until a commit succeeds.
    pub(crate) fn refused(&self, error: &StoreError) {
        match error {
            StoreError::Fenced { .. } => self.commits.failed(error.clone()),
            error if error.is_transient() => {
                self.refusing.set(true);
                if self.settings.issues.raise(STORE, format!("failed to commit: {error}")) {
                    tracing::error!(target: TARGET, %error, "failed to commit; turns are refused until the store takes them");
                }
            }
            _ => {}
        }
    }

    /// A turn is committed: if the store refused any before, it does so no longer.
    pub(super) fn accepted(&self) {
        if self.refusing.replace(false) && self.settings.issues.resolve(STORE) {
            tracing::info!(target: TARGET, "the store takes turns again");
        }
    }

    /// Whether the relay has looked at everything.
    pub(crate) fn is_clean(&self) -> bool {
        self.dirty.borrow().is_empty()
    }

    /// Takes what the relay is to look at.
    pub(crate) fn take_dirty(&self) -> Vec<Rc<OwnedShard>> {
        let dirty = std::mem::take(&mut *self.dirty.borrow_mut());
        for cell in &dirty {
            cell.dirty.set(false);
        }
        dirty
    }

    fn release_now(&self) {
        let through = self.commits.through.load(Ordering::Acquire);
        loop {
            // One at a time, with the borrow ended: a release may append, and so come back here.
            let next = {
                let mut waiting = self.waiting.borrow_mut();
                match waiting.front() {
                    Some((ticket, _)) if *ticket <= through => waiting.pop_front(),
                    _ => None,
                }
            };
            let Some((_, release)) = next else { break };
            self.accepted();
            release(Ok(()));
        }
    }
}

/// One thing in flight. It ends when the message is settled, whatever happens to it.
pub(crate) struct InFlightGuard {
    host: Rc<ThreadContext>,
    job: bool,
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        let host = &self.host;
        if self.job {
            host.jobs.set(host.jobs.get() - 1);
            host.counts.jobs.set(host.jobs.get() as u64);
        } else {
            let in_flight = host.in_flight.get() - 1;
            host.in_flight.set(in_flight);
            host.counts.in_flight.set(in_flight as u64);
        }
        if host.is_idle() {
            host.idle.look();
        }
    }
}

/// Hears of commits on the store's thread and wakes the host's.
#[derive(Default)]
pub(crate) struct CommitNotifier {
    through: AtomicU64,
    failed: Mutex<Option<StoreError>>,
    changed: Notify,
}

impl CommitNotifier {
    /// Forgets a failure, after the shards were opened again. What was appended before counts as settled.
    pub(crate) fn recovered(&self) {
        *self.failed.lock() = None;
    }
}

impl CommitListener for CommitNotifier {
    fn committed(&self, through: Ticket) {
        self.through.fetch_max(through, Ordering::Release);
        self.changed.notify_one();
    }

    fn failed(&self, error: StoreError) {
        self.failed.lock().get_or_insert(error);
        self.changed.notify_one();
    }
}

/// One shard on its thread.
pub(crate) struct OwnedShard {
    pub(crate) id: ShardId,
    pub(crate) writer: RefCell<Box<dyn ShardWriter>>,
    pub(crate) reader: RefCell<Arc<dyn ShardReader>>,
    /// Whether anybody but the stream's own actor takes the shard's events.
    pub(crate) relays_events: bool,
    /// The relay is to look at it, and knows.
    dirty: Cell<bool>,
    /// When the next timer is due that is known to the task that fires them.
    pub(crate) next_timer: Cell<Option<Timestamp>>,
    /// The earliest of the timers that were set since that task last looked, and are due before `next_timer`.
    pub(crate) timer_set: Cell<Option<Timestamp>>,
}

impl OwnedShard {
    pub(crate) fn new(id: ShardId, handle: ShardHandle, relays_events: bool) -> Rc<Self> {
        Rc::new(Self {
            id,
            writer: RefCell::new(handle.writer),
            reader: RefCell::new(handle.reader),
            relays_events,
            dirty: Cell::new(false),
            next_timer: Cell::new(None),
            timer_set: Cell::new(None),
        })
    }

    /// A timer was set and committed. The task that fires timers is woken only if it would come too late by itself, so most
    /// turns that set a timer wake nothing.
    pub(crate) fn timer_is_set(&self, due: Timestamp, timers: &Notify) {
        if self.next_timer.get().is_none_or(|next| due < next) {
            self.next_timer.set(Some(due));
            self.timer_set.set(Some(self.timer_set.get().map_or(due, |earliest| earliest.min(due))));
            timers.notify_one();
        }
    }

    /// Lets the relay look at the shard.
    pub(crate) fn mark_dirty(self: &Rc<Self>, host: &ThreadContext) {
        if !self.dirty.replace(true) {
            host.dirty.borrow_mut().push(Rc::clone(self));
        }
        host.relay.notify_one();
    }

    pub(crate) fn reader(&self) -> Arc<dyn ShardReader> {
        Arc::clone(&self.reader.borrow())
    }
}
