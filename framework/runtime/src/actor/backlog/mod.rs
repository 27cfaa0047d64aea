//! Messages that wait for their key, stored in the receiving shard's own log.
//!
//! A message that is neither appended nor durable here blocks its source: the watermark stops before it, and with it the
//! sender's window. So a message that has to wait is written to the log, which completes its delivery. That happens for a key
//! in back-off, and for one whose stream cannot be loaded. Later messages of that key are written behind it. The backlog has a
//! stream of its own, one for each actor type in a shard, because the key's stream may be unreadable. A message leaves it when
//! the turn that handles it is committed. If the process ends in between, the key's own dedup state drops it.
//!
//! Called by the [actor](super::instance). Calls the dispatcher of its type with one message of a key at a time, in
//! order. Keeps at most [`MAX_DEFERRED`](queues::MAX_DEFERRED) messages in memory; more of a key are [only in the log](over_limit).
//!
//! Why the generation: a read or a back-off may outlive a failed commit. It must not change the queues that were loaded again.

mod open;
mod over_limit;
mod queues;
mod record;
mod unloadable;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::owned_shard::OwnedShard;
use super::thread::ThreadContext;
use crate::router::{Action, DedupKey, Delivery, Outcome, SequenceTracker};
pub(crate) use open::Backlogs;
use queues::{BacklogState, Deferred, HeadState, Queue, Written};
use whizbang_core::message::{Codec, Coded as _, Envelope, Kind, MessageId, Name, Rejection};
use whizbang_core::store::{Appended, Mark, Note, OutboxWrite, StoreError, Ticket};

/// The reserved actor type under whose name a shard stores its deferred messages. No hosted type may have it.
pub const DEFERRED: &str = "whizbang-deferred";

/// The most keys of one actor type in a shard that have deferred messages.
const MAX_KEYS: usize = 65_536;
/// The minimum wait before any retry, regardless of [`Retry`](whizbang_core::retry::Retry): a policy without waits would be a busy loop.
pub const MIN_WAIT: Duration = Duration::from_millis(10);
/// The minimum wait before a key without attempts is loaded again, and before an unreadable message is read again.
const SLOW_RETRY: Duration = Duration::from_secs(1);
/// The number of keys that are started together after a restart.
const STARTED_AT_ONCE: usize = 64;

/// The name of the task that reads a deferred message.
const READ_TASK: &str = "read a deferred message";

/// Delivers a message to the dispatcher of its actor type.
pub(crate) type Deliver = Rc<dyn Fn(Delivery)>;

/// The deferred messages of one actor type in one shard.
pub(crate) struct Backlog {
    context: Rc<ThreadContext>,
    pub(super) shard: Rc<OwnedShard>,
    actor: Name,
    deferred: Name,
    deliver: Deliver,
    /// The number of keys with deferred messages. No lookup is needed while it is zero.
    waiting_keys: Cell<usize>,
    /// The number of keys that cannot be loaded, for the same reason.
    unloadable_keys: Cell<usize>,
    /// The number of deferred messages last reported to the metrics.
    reported: Cell<usize>,
    state: RefCell<BacklogState>,
}

impl Backlog {
    pub(super) fn new(
        context: &Rc<ThreadContext>,
        shard: &Rc<OwnedShard>,
        actor: &Name,
        deliver: &Deliver,
    ) -> Rc<Self> {
        Rc::new(Self {
            context: Rc::clone(context),
            shard: Rc::clone(shard),
            actor: actor.clone(),
            // The name is valid; a test asserts it.
            deferred: Name::from_static(DEFERRED).unwrap_or_else(|_| actor.clone()),
            deliver: Rc::clone(deliver),
            waiting_keys: Cell::new(0),
            unloadable_keys: Cell::new(0),
            reported: Cell::new(0),
            state: RefCell::default(),
        })
    }

    /// Returns whether the deferred messages are loaded. Until then no message may overtake them.
    pub(crate) fn is_loaded(&self) -> bool {
        self.state.borrow().loaded
    }

    /// Returns whether messages are deferred for a key. Later messages must wait behind them.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.waiting_keys.get() > 0 && self.state.borrow().queues.contains_key(key)
    }

    /// Begins to deliver deferred messages, a few keys at a time, so that not all are activated at once.
    pub(crate) fn deliver_deferred(self: &Rc<Self>) {
        let keys: Vec<_> = self.state.borrow().queues.keys().cloned().collect();
        if keys.is_empty() {
            return;
        }
        let this = Rc::downgrade(self);
        whizbang_core::spawn::detached(&self.context.user_code, "deliver deferred messages", async move {
            for keys in keys.chunks(STARTED_AT_ONCE) {
                let Some(this) = this.upgrade() else { return };
                this.wait_for_capacity().await;
                keys.iter().for_each(|key| this.deliver_next(key));
                drop(this);
                tokio::time::sleep(MIN_WAIT).await;
            }
        });
    }

    /// Clears everything: the shard is reopened or closed, or the node ends.
    pub(crate) fn reset(&self) {
        let mut state = self.state.borrow_mut();
        for key in state.unloadable.keys() {
            self.context.settings.issues.loads(&self.issue_name(key));
        }
        self.count_unloadable(state.unloadable.len(), 0);
        *state = BacklogState { generation: state.generation + 1, ..BacklogState::default() };
        self.update_counts(&state);
        self.unloadable_keys.set(0);
    }

    /// Defers a message that must wait behind others or for the end of a back-off. `permit` is held until that is committed.
    ///
    /// # Errors
    /// The message unchanged and the reason, if it cannot be written now.
    #[allow(clippy::result_large_err, reason = "the message goes back to its caller, which keeps it on its stack")]
    pub(crate) fn defer<P: 'static>(
        self: &Rc<Self>,
        key: &Rc<str>,
        delivery: Delivery,
        permit: P,
    ) -> Result<(), (Delivery, P, StoreError)> {
        let DedupKey::Sequence { source, sequence, tracker } = &delivery.dedup_key else {
            return Err((delivery, permit, StoreError::Closed));
        };
        if self.state.borrow().queues.get(key).is_some_and(|queue| queue.has_sequence(source, *sequence)) {
            tracker.mark_known(*sequence);
            self.context.counts.duplicates.one();
            let completion = delivery.completion;
            let last = self.state.borrow().last;
            self.after(last, move |committed| {
                drop(permit);
                completion(outcome_of(committed));
            });
            return Ok(());
        }
        let written = match self.write_message(key, &delivery) {
            Ok(written) => written,
            Err(error) => return Err((delivery, permit, error)),
        };
        let Delivery { action, envelope, dedup_key, completion } = delivery;
        self.push((key, envelope.id), &dedup_key, &written, Some(Box::new((action, envelope))));
        self.context.after_commit(&self.shard, written.appended, move |committed| {
            drop(permit);
            completion(outcome_of(committed));
        });
        self.deliver_next(key);
        Ok(())
    }

    /// Defers a message that its actor retries. Its delivery is completed, and the returned one replaces it. Returns the
    /// delivery unchanged if it was deferred before, or cannot be written, and then with the reason.
    pub(crate) fn defer_current(
        self: &Rc<Self>,
        key: &Rc<str>,
        delivery: Delivery,
    ) -> (Delivery, Result<(), StoreError>) {
        let fresh = is_fresh(&delivery);
        if !fresh || self.has(key) {
            return (delivery, Ok(()));
        }
        let written = match self.write_message(key, &delivery) {
            Ok(written) => written,
            Err(error) => return (delivery, Err(error)),
        };
        let Delivery { action, envelope, dedup_key, completion } = delivery;
        self.push((key, envelope.id), &dedup_key, &written, None);
        self.set_head(key, HeadState::Delivered);
        self.context.after_commit(&self.shard, written.appended, move |committed| completion(outcome_of(committed)));
        (self.delivery(key, action, envelope, dedup_key), Ok(()))
    }

    /// Reads a deferred message; `None` if it is not deferred.
    pub(crate) fn find(
        self: &Rc<Self>,
        key: &Rc<str>,
        message: MessageId,
    ) -> Option<impl Future<Output = Result<Option<(Action, Envelope)>, StoreError>> + use<>> {
        let state = self.state.borrow();
        let entry = state.queues.get(key)?.entries.iter().find(|entry| entry.id == message)?;
        let (this, key, ticket) = (Rc::clone(self), Rc::clone(key), entry.ticket);
        Some(async move { this.read(&key, message, ticket).await })
    }

    /// Discards a deferred message and rejects it to its sender, if that expects a reply; `None` if it is not deferred. A
    /// message that its actor is handling cannot be discarded.
    pub(crate) fn discard(
        self: &Rc<Self>,
        key: &Rc<str>,
        message: MessageId,
        envelope: Option<&Envelope>,
    ) -> Option<Result<Appended, Outcome>> {
        let (at, out) = {
            let state = self.state.borrow();
            let queue = state.queues.get(key)?;
            let at = queue.entries.iter().position(|entry| entry.id == message)?;
            (at, at == 0 && queue.head == HeadState::Delivered)
        };
        if out {
            return Some(Err(Outcome::Busy));
        }
        let rejection = envelope.filter(|envelope| envelope.kind == Kind::Command).and_then(|envelope| {
            let mut bytes = Vec::new();
            <()>::write_reply(&Err(Rejection::discarded()), envelope.codec, &mut bytes).ok()?;
            envelope.reply(&self.shard.id.domain, true, self.context.ids.clock().now(), envelope.codec, &bytes)
        });
        let outbox: Vec<_> = rejection.iter().map(|(to, envelope)| OutboxWrite { to, envelope }).collect();
        let appended = match self.write((message, message), Mark::None, &[Note::Resolved { message }], &outbox) {
            Ok(appended) => appended,
            Err(error) => return Some(Err(Outcome::Refused(error))),
        };
        if !outbox.is_empty() {
            let (shard, context) = (Rc::clone(&self.shard), Rc::clone(&self.context));
            self.context.after_commit(&self.shard, appended, move |_| context.mark_dirty(&shard));
        }
        let mut state = self.state.borrow_mut();
        state.remove(key, at);
        if let Some(queue) = state.queues.get_mut(key).filter(|_| at == 0) {
            (queue.head, queue.failures) = (HeadState::Idle, 0);
        }
        self.update_counts(&state);
        drop(state);
        self.deliver_next(key);
        Some(Ok(appended))
    }

    /// Delivers the first message of a key, if it is idle.
    pub(crate) fn deliver_next(self: &Rc<Self>, key: &Rc<str>) {
        if self.context.is_closing(&self.shard) {
            return;
        }
        let (id, dedup_key, message, ticket, generation) = {
            let mut state = self.state.borrow_mut();
            let generation = state.generation;
            let Some(queue) = state.queues.get_mut(key).filter(|queue| queue.head == HeadState::Idle) else { return };
            let Some(entry) = queue.entries.front_mut() else {
                queue.head = HeadState::Delivered;
                drop(state);
                return self.deliver_spilled(key);
            };
            let (id, message, ticket) = (entry.id, entry.message.take(), entry.ticket);
            let tracker = DeferredTracker { backlog: Rc::clone(self), key: Rc::clone(key), id, generation };
            let (source, sequence) = (Rc::clone(&entry.source), entry.sequence);
            queue.head = HeadState::Delivered;
            if let Some(message) = &message {
                state.cached_bytes = state.cached_bytes.saturating_sub(message.1.payload.len());
            }
            (id, DedupKey::Sequence { source, sequence, tracker: Rc::new(tracker) }, message, ticket, generation)
        };
        // It counts as in flight, so waiting for an idle node includes it.
        let (this, key, flight) = (Rc::clone(self), Rc::clone(key), self.context.track_in_flight(&self.shard));
        whizbang_core::spawn::detached(&self.context.user_code, "deliver a deferred message", async move {
            let message = match message {
                Some(message) => Ok(Some(*message)),
                None => {
                    this.wait_for_capacity().await;
                    this.context.call_store(READ_TASK, this.read(&key, id, ticket)).await
                }
            };
            if this.generation() != generation {
                return;
            }
            match message {
                Ok(Some((action, envelope))) => {
                    this.message_read(&key);
                    (this.deliver)(this.delivery(&key, action, envelope, dedup_key));
                }
                // Released before; only the queue did not know.
                Ok(None) => this.skip_released(&key, id),
                Err(error) => {
                    this.failed_to_read(&key, &error);
                    this.retry_after(&key, SLOW_RETRY, false);
                }
            }
            drop(flight);
        });
    }

    /// Waits until the messages that wait on this thread leave capacity for those of the log.
    async fn wait_for_capacity(&self) {
        while !self.context.queued.has_capacity_for_recorded() && !self.context.is_closing(&self.shard) {
            tokio::time::sleep(MIN_WAIT).await;
        }
    }

    /// Returns whether nothing is to be delivered except messages that wait for an operator or for a retry.
    pub(crate) fn is_idle(&self) -> bool {
        let moves = |queue: &Queue| matches!(queue.head, HeadState::Idle | HeadState::Delivered);
        self.waiting_keys.get() == 0
            || self.context.is_closing(&self.shard)
            || !self.state.borrow().queues.values().any(moves)
    }

    /// Updates the counters of deferred messages.
    fn update_counts(&self, state: &BacklogState) {
        let keys = self.waiting_keys.replace(state.queues.len());
        let (count, before) = (&self.context.counts.deferred, self.reported.replace(state.waiting));
        if keys >= MAX_KEYS && state.queues.len() < MAX_KEYS {
            self.context.settings.issues.resolve(&self.issue_name(""));
        }
        count.set((count.get() + state.waiting as u64).saturating_sub(before as u64));
    }

    pub(super) fn generation(&self) -> u64 {
        self.state.borrow().generation
    }

    fn issue_name(&self, key: &str) -> String {
        format!("{}/{}/{key}", self.shard.id, self.actor)
    }

    fn after(&self, ticket: Option<Ticket>, then: impl FnOnce(Result<(), StoreError>) + 'static) {
        match ticket {
            Some(ticket) => self.context.after_ticket(&self.shard, ticket, then),
            None => then(Ok(())),
        }
    }

    fn push(
        &self,
        (key, id): (&Rc<str>, MessageId),
        dedup_key: &DedupKey,
        written: &Written,
        message: Option<Box<(Action, Envelope)>>,
    ) {
        let DedupKey::Sequence { source, sequence, tracker } = dedup_key else { return };
        let mut state = self.state.borrow_mut();
        if let Some(turn) = written.spilled {
            state.spill(key, source, *sequence, turn);
        } else {
            state.push(key, Deferred::new(id, source, *sequence, &written.appended));
            state.cache(key, id, message);
        }
        self.update_counts(&state);
        drop(state);
        // Not before the append: a watermark above a message that is not in the log would lose it.
        tracker.mark_appended(*sequence);
    }

    fn set_head(&self, key: &str, head: HeadState) {
        if let Some(queue) = self.state.borrow_mut().queues.get_mut(key) {
            queue.head = head;
        }
    }

    /// Delivers the first message of a key again after a back-off. `in_flight`: whether it counts as in flight in between.
    fn retry_after(self: &Rc<Self>, key: &Rc<str>, wait: Duration, in_flight: bool) {
        self.set_head(key, HeadState::BackOff);
        let (this, key, generation) = (Rc::clone(self), Rc::clone(key), self.generation());
        let flight = in_flight.then(|| self.context.track_in_flight(&self.shard));
        whizbang_core::spawn::detached(&self.context.user_code, "retry a deferred message", async move {
            Rc::clone(&this.context).sleep_unless_closing(Rc::clone(&this.shard), wait).await;
            drop(flight);
            let waits = {
                let mut state = this.state.borrow_mut();
                let same = state.generation == generation;
                let queue = state.queues.get_mut(&key).filter(|queue| same && queue.head == HeadState::BackOff);
                queue.map(|queue| queue.head = HeadState::Idle).is_some()
            };
            if waits {
                this.deliver_next(&key);
            }
        });
    }

    /// Removes a message that was released before.
    fn skip_released(self: &Rc<Self>, key: &Rc<str>, id: MessageId) {
        let mut state = self.state.borrow_mut();
        let Some(queue) = state.queues.get_mut(key) else { return };
        queue.head = HeadState::Idle;
        if queue.entries.front().is_some_and(|entry| entry.id == id) {
            state.remove(key, 0);
        }
        self.update_counts(&state);
        drop(state);
        self.deliver_next(key);
    }

    /// Creates the delivery of a deferred message.
    fn delivery(self: &Rc<Self>, key: &Rc<str>, action: Action, envelope: Envelope, dedup_key: DedupKey) -> Delivery {
        let (id, generation) = (envelope.id, self.generation());
        let dedup_key = match dedup_key {
            DedupKey::Sequence { source, sequence, .. } => {
                let tracker = DeferredTracker { backlog: Rc::clone(self), key: Rc::clone(key), id, generation };
                DedupKey::Sequence { source, sequence, tracker: Rc::new(tracker) }
            }
            other => other,
        };
        let (this, key) = (Rc::clone(self), Rc::clone(key));
        let completion = Box::new(move |outcome: Outcome| this.on_outcome(&key, id, generation, &outcome));
        Delivery { action, envelope, dedup_key, completion }
    }

    /// Handles the append of the turn of a key's first message, now or before: the next one is delivered.
    fn on_appended(self: &Rc<Self>, key: &Rc<str>, id: MessageId, generation: u64) {
        let mut state = self.state.borrow_mut();
        let is_first = |queue: &Queue| queue.entries.front().is_some_and(|entry| entry.id == id);
        if state.generation != generation || !state.queues.get(key).is_some_and(is_first) {
            return;
        }
        if let Some(queue) = state.queues.get_mut(key) {
            (queue.head, queue.failures) = (HeadState::Idle, 0);
        }
        if let Some(entry) = state.remove(key, 0) {
            state.committing.insert(id, (Rc::clone(key), entry));
        }
        self.update_counts(&state);
        drop(state);
        self.deliver_next(key);
    }

    /// Handles the outcome of a message that was delivered from here.
    fn on_outcome(self: &Rc<Self>, key: &Rc<str>, id: MessageId, generation: u64, outcome: &Outcome) {
        if self.generation() != generation {
            return;
        }
        let passing = self.state.borrow_mut().committing.remove(&id);
        match (outcome, passing) {
            (Outcome::Done(..) | Outcome::DeadLetter(_), Some(passed)) => {
                if self.write_release(id).is_err() {
                    // It is released after the next start: the key's dedup state has it.
                    self.state.borrow_mut().committing.insert(id, passed);
                }
            }
            (_, Some(passed)) => {
                self.state.borrow_mut().committing.insert(id, passed);
            }
            // Not handled: the node stops, or there was no capacity.
            (_, None) => self.retry_after(key, SLOW_RETRY, false),
        }
    }
}

/// Returns the outcome for the deliverer of a message that was deferred.
fn outcome_of(committed: Result<(), StoreError>) -> Outcome {
    match committed {
        Ok(()) => Outcome::Done(Bytes::new(), Codec::Bincode),
        Err(error) => Outcome::Unknown(error),
    }
}

/// The tracker of a deferred message. Its source's watermark is past it; only the backlog needs to know its progress.
struct DeferredTracker {
    backlog: Rc<Backlog>,
    key: Rc<str>,
    id: MessageId,
    generation: u64,
}

impl SequenceTracker for DeferredTracker {
    fn watermark_after(&self, _sequence: u64) -> u64 {
        0
    }

    fn mark_appended(&self, _sequence: u64) {
        self.backlog.on_appended(&self.key, self.id, self.generation);
    }

    fn mark_known(&self, _sequence: u64) {
        self.backlog.on_appended(&self.key, self.id, self.generation);
    }

    fn is_deferred(&self) -> bool {
        true
    }

    /// It was deferred, so it was tried before.
    fn is_near_start(&self, _sequence: u64) -> bool {
        true
    }
}

/// Returns whether a message has a sequence and is not in the log of this shard.
pub(super) fn is_fresh(delivery: &Delivery) -> bool {
    matches!(&delivery.dedup_key, DedupKey::Sequence { tracker, .. } if !tracker.is_deferred())
}

#[cfg(test)]
mod tests;
