//! Subscription: the events of one source shard, in order and without gaps, for all subscribers on this thread.
//!
//! Called by the node's thread with live events and log heads, and by projections. Live events arrive from the
//! bridge; missing ones, and the history for a late subscriber, are read from the owner's log. Both use one path: an
//! event is dispatched when it is the next one, wherever it came from.

mod in_flight;

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::reorder_buffer::ReorderBuffer;
use super::{Done, HealthIssues, IdleNotifier, QueuedBytes, RecentIds};
use in_flight::{DispatchedEvent, InFlight};
use whizbang_core::clock::instant;
use whizbang_core::message::{Envelope, IdSource, Name, ShardId};
use whizbang_core::retry::Retry;
use whizbang_core::spawn;
use whizbang_core::spawn::{Task, TaskMonitor};
use whizbang_core::store::Source;
use whizbang_core::telemetry::{TARGET, passes};

/// Number of events read from a log at a time.
const PAGE: usize = 256;
/// Most events dispatched and not settled.
const IN_FLIGHT: usize = 1024;
/// Most payload bytes dispatched and not settled; a single event may exceed them.
const MAX_BYTES: usize = 16 << 20;
/// Shortest interval between checks whether an owner's log still matches.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Handles the events of one source shard, once each and in order.
pub(crate) trait Subscriber {
    /// Returns the position up to which it has everything; `u64::MAX` if no event is for it.
    fn watermark(&self) -> u64;
    /// Returns whether it handles events of this name.
    fn takes(&self, event: &Name) -> bool;
    /// Handles an event. Calls `done` once the event is settled.
    fn handle(&self, event: &Envelope, done: Done);
    /// Begins to handle events for a shard that was opened, if it is one of the subscriber's domain. `watermark` is the
    /// stored watermark of a source. Returns the position up to which the shard has everything.
    fn open_shard(&self, shard: &ShardId, watermark: &dyn Fn(&Source) -> u64) -> Option<u64> {
        let _ = (shard, watermark);
        None
    }
    /// Drops the events for a shard that was closed.
    fn close_shard(&self, shard: &ShardId) {
        let _ = shard;
    }
    /// Records that every event up to `position` was dispatched: when the subscription goes back for another shard, they
    /// are not handled again.
    fn mark_dispatched(&self, position: u64) {
        let _ = position;
    }
    /// Returns watermarks to be stored: the subscribing shard, the source, the watermark.
    fn unstored(&self) -> Vec<(ShardId, Source, u64)> {
        Vec::new()
    }
}

/// Reads events of a shard above a position from its owner's log. Returns the events, and the position of the log's
/// last one.
pub(crate) type ReadEvents =
    Rc<dyn Fn(ShardId, u64, usize) -> LocalBoxFuture<'static, Result<(Vec<Envelope>, u64), String>>>;

/// Events of one source shard on one thread.
///
/// All subscribers of a source on one thread share it, so each event is read and decoded once. Live events are an acceleration
/// only: what does not arrive, arrives late or does not fit is read from the owner's log.
pub(crate) struct Subscription {
    /// The shard whose events are followed.
    pub(crate) source: ShardId,
    /// Actor types, projections and workers of this thread.
    subscribers: RefCell<Vec<Box<dyn Subscriber>>>,
    /// Last position dispatched.
    pub(crate) last: Rc<Cell<u64>>,
    /// Highest position known to exist.
    pub(super) known: Cell<u64>,
    /// Live events that arrived early. Those beyond the bound are dropped: the log contains them.
    pub(super) held: RefCell<ReorderBuffer<Done>>,
    /// A task reads the log.
    filling: Cell<bool>,
    /// The node stops: nothing further is dispatched.
    paused: Cell<bool>,
    /// Dispatched and unsettled events. Closing starts a new counter: older events settle later and decrement the old
    /// one.
    in_flight: RefCell<Rc<InFlight>>,
    /// Notified when an event is settled, which may make room for the next one.
    settled: Rc<Notify>,
    /// Notified of activity of the source while its log is diverged.
    pub(super) activity: Notify,
    /// Suspended: dispatches nothing until it is reopened.
    suspended: Cell<bool>,
    /// The log could not be read for so long that health lists it.
    pub(super) is_unread: Cell<bool>,
    /// The owner's log has diverged: nothing is dispatched until it matches again.
    pub(super) diverged: Cell<bool>,
    /// Reads a page of the owner's log: here, or over the bridge.
    pub(super) pages: ReadEvents,
    /// Reports and counts failures of the reading task.
    pub(super) monitor: TaskMonitor,
    pub(super) idle: Rc<IdleNotifier>,
    pub(super) issues: Arc<HealthIssues>,
    /// The memory that waiting messages of the thread occupy.
    queued: Rc<QueuedBytes>,
    /// The ids of the last dispatched events.
    pub(super) recent_ids: RefCell<RecentIds>,
    /// The owner must be asked whether its log still matches.
    pub(super) needs_check: Cell<bool>,
    /// Position that arrived with two ids. Until the owner has answered which one its log contains, only the log is
    /// read: live events may be of a diverged log.
    pub(super) suspect: Cell<Option<u64>>,
    /// Time of the last request for a check.
    pub(super) last_check_request: Cell<Option<Instant>>,
    /// Time of the last check while nothing was missing.
    last_idle_check: Cell<Option<Instant>>,
    /// Time at which the owner last refuted a claimed position.
    pub(super) last_disproof: Cell<Option<Instant>>,
    /// The task that reads the log. Dropping it ends it.
    task: RefCell<Option<Task>>,
}

impl Subscription {
    /// Creates a subscription without subscribers, which dispatches nothing.
    pub(crate) fn new(
        source: ShardId,
        pages: ReadEvents,
        monitor: TaskMonitor,
        idle: Rc<IdleNotifier>,
        issues: Arc<HealthIssues>,
        queued: Rc<QueuedBytes>,
    ) -> Rc<Self> {
        Rc::new(Self {
            source,
            subscribers: RefCell::default(),
            last: Rc::default(),
            known: Cell::new(0),
            held: RefCell::default(),
            filling: Cell::new(false),
            paused: Cell::new(false),
            in_flight: RefCell::default(),
            settled: Rc::default(),
            activity: Notify::new(),
            suspended: Cell::new(false),
            is_unread: Cell::new(false),
            diverged: Cell::new(false),
            pages,
            monitor,
            idle,
            issues,
            queued,
            recent_ids: RefCell::default(),
            needs_check: Cell::new(false),
            last_check_request: Cell::new(None),
            suspect: Cell::new(None),
            last_idle_check: Cell::new(None),
            last_disproof: Cell::new(None),
            task: RefCell::default(),
        })
    }

    /// Sets the subscribers; the subscription continues from the lowest of their watermarks.
    pub(crate) fn set_subscribers(&self, subscribers: Vec<Box<dyn Subscriber>>) {
        let watermark = subscribers.iter().map(|subscriber| subscriber.watermark()).min().unwrap_or(u64::MAX);
        if watermark == u64::MAX {
            self.suspend();
        } else {
            self.last.set(watermark);
            let held = self.held.borrow_mut().take();
            drop(held);
        }
        *self.subscribers.borrow_mut() = subscribers;
    }

    /// Begins to handle events for a shard that was opened. If it lacks events that were dispatched to others, the
    /// subscription goes back to the first of them, which the others skip.
    pub(crate) fn open_shard(self: &Rc<Self>, shard: &ShardId, watermark: &dyn Fn(&Source) -> u64) {
        let subscribers = self.subscribers.borrow();
        let was_waiting = subscribers.iter().all(|subscriber| subscriber.watermark() == u64::MAX);
        let last = self.last.get();
        if !was_waiting {
            subscribers.iter().for_each(|subscriber| subscriber.mark_dispatched(last));
        }
        let opened = subscribers.iter().filter_map(|subscriber| subscriber.open_shard(shard, watermark)).min();
        drop(subscribers);
        let Some(opened) = opened else { return };
        if was_waiting {
            self.suspended.set(false);
            self.last.set(opened);
        } else if opened < last {
            self.last.set(opened);
        }
        self.start_filling();
    }

    /// Drops the events for a shard that was closed. Without any other shard nothing is dispatched.
    pub(crate) fn close_shard(&self, shard: &ShardId) {
        let subscribers = self.subscribers.borrow();
        subscribers.iter().for_each(|subscriber| subscriber.close_shard(shard));
        let is_waiting = subscribers.iter().all(|subscriber| subscriber.watermark() == u64::MAX);
        drop(subscribers);
        if is_waiting {
            self.suspend_without_shards();
        }
    }

    /// Stops dispatching; dispatched events may finish. Held events are settled: the log contains them.
    pub(crate) fn pause(&self) {
        self.paused.set(true);
        let task = self.task.borrow_mut().take();
        drop(task);
        let held = self.held.borrow_mut().take();
        held.for_each(|(_, done)| done());
    }

    /// Ends background work and discards held events, because the thread ends or recovers.
    pub(crate) fn close(&self) {
        let task = self.task.borrow_mut().take();
        drop(task);
        self.filling.set(false);
        self.unlist();
        self.in_flight.take();
        let subscribers = std::mem::take(&mut *self.subscribers.borrow_mut());
        let held = self.held.borrow_mut().take();
        drop((subscribers, held));
    }

    /// Dispatches nothing while no subscribing shard is on this thread: reading the log would be wasted.
    fn suspend_without_shards(&self) {
        self.suspended.set(true);
        let task = self.task.borrow_mut().take();
        drop(task);
        self.filling.set(false);
        self.unlist();
        let held = self.held.borrow_mut().take();
        held.for_each(|(_, done)| done());
        self.idle.notify();
    }

    /// Suspends the subscription: its subscriber has halted. Arriving events are settled at once; the log keeps them.
    pub(crate) fn suspend(&self) {
        self.suspended.set(true);
        self.close();
        self.idle.notify();
    }

    /// Ends the suspension; dispatching begins once subscribers are set.
    pub(crate) fn reopen(&self) {
        self.suspended.set(false);
    }

    /// Returns whether nothing is dispatched now: it is suspended, or the owner's log has diverged.
    pub(crate) fn is_suspended(&self) -> bool {
        self.suspended.get() || self.diverged.get()
    }

    /// Returns whether every event known to exist has been dispatched and settled.
    pub(crate) fn is_idle(&self) -> bool {
        let caught_up = !self.filling.get() && self.last.get() >= self.known.get() && self.held.borrow().is_empty();
        let takes = !self.suspended.get() && !self.paused.get() && !self.diverged.get();
        !takes || (caught_up && self.in_flight.borrow().events.get() == 0)
    }

    /// Delivers a live event. `done` is called once it is settled here.
    pub(crate) fn event(self: &Rc<Self>, event: Envelope, done: Done) {
        let Some(position) = event.origin.as_ref().map(|origin| origin.sequence) else { return done() };
        if self.diverged.get() {
            self.activity.notify_one();
        }
        if self.paused.get() || self.suspended.get() || self.diverged.get() {
            // The log keeps it, to be read when the node restarts or the subscriber resumes.
            return done();
        }
        self.known.set(self.known.get().max(position));
        let last = self.last.get();
        if position <= last {
            self.monitor.counts.duplicates.one();
            let known = self.recent_ids.borrow().matches(position, event.id);
            // Acknowledged although its first delivery may not be committed. Nothing is lost: the owner's log keeps each event, and
            // a subscription that starts again reads it from its stored watermark on. Holding the acknowledgement back would
            // gain nothing, as the broker may forget events anyway.
            match known {
                Some(true) => {}
                Some(false) => self.reject_conflicting(position),
                None => self.request_check(),
            }
            return done();
        }
        // Also while the log is read or an unreachable owner is waited for: the next event is the next one wherever
        // it comes from, and the reader skips what was dispatched.
        if position == last + 1 && self.has_capacity() && self.suspect.get().is_none() {
            self.dispatch(&event, position, done);
            self.drain();
            return;
        }
        let unkept = self.held.borrow_mut().keep(position, event, done);
        if let Some(done) = unkept {
            done();
        }
        if position > last + 1 && !self.filling.get() {
            self.monitor.counts.gaps.one();
            tracing::debug!(target: TARGET, source = %self.source, last, position, "gap detected: reading the owner's log");
        }
        self.start_filling();
    }

    /// Records that the owner's log reaches up to `position`.
    pub(crate) fn advance_head(self: &Rc<Self>, position: u64) {
        if self.diverged.get() {
            return self.activity.notify_one();
        }
        self.known.set(self.known.get().max(position));
        match position.cmp(&self.last.get()) {
            Ordering::Greater => self.start_filling(),
            Ordering::Equal => {}
            // A late announcement, or an owner whose log is an older copy.
            Ordering::Less => self.request_check(),
        }
    }

    /// Passes an event to each subscriber that handles its name. It is settled when the last of them is done.
    fn dispatch(&self, event: &Envelope, position: u64, done: Done) {
        passes!("inbox", event.name, event.id, event.correlation);
        self.last.set(position);
        self.recent_ids.borrow_mut().record(position, event.id);
        let in_flight = Rc::clone(&self.in_flight.borrow());
        let bytes = event.payload.len();
        in_flight.events.set(in_flight.events.get() + 1);
        in_flight.bytes.set(in_flight.bytes.get() + bytes);
        let dispatched = Rc::new(DispatchedEvent {
            open: Cell::new(1),
            done: Cell::new(Some(done)),
            bytes,
            in_flight,
            settled: Rc::clone(&self.settled),
            idle: Rc::clone(&self.idle),
        });
        for subscriber in self.subscribers.borrow().iter().filter(|subscriber| subscriber.takes(&event.name)) {
            dispatched.open.set(dispatched.open.get() + 1);
            let dispatched = Rc::clone(&dispatched);
            subscriber.handle(event, Box::new(move || dispatched.settle()));
        }
        dispatched.settle();
    }

    /// Dispatches held events that are next.
    fn drain(&self) {
        while self.has_capacity() && self.suspect.get().is_none() {
            let last = self.last.get();
            let next = self.held.borrow_mut().pop_through(last + 1);
            let Some((position, event, done)) = next else { break };
            if position <= last {
                // The log has delivered it already.
                done();
            } else {
                self.dispatch(&event, position, done);
            }
        }
    }

    /// Reads missing events from the owner's log, in the background, until none are missing.
    pub(crate) fn start_filling(self: &Rc<Self>) {
        let closed = self.paused.get() || self.suspended.get();
        if closed || self.filling.replace(true) {
            return;
        }
        let subscription = Rc::clone(self);
        let task = spawn::local(async move {
            let filling = Rc::clone(&subscription);
            let name = format!("subscription to {}", subscription.source);
            spawn::restart_until_done(TaskMonitor::clone(&subscription.monitor), name, move || {
                Rc::clone(&filling).fill_gaps()
            })
            .await;
            subscription.filling.set(false);
            // No await between the last check and this line, so no event can have arrived in between.
            subscription.idle.notify();
        });
        *self.task.borrow_mut() = Some(task);
    }

    /// Reads the owner's log until nothing is missing. Failures are repeated with growing pauses, for as long as the subscription
    /// exists.
    async fn fill_gaps(self: Rc<Self>) {
        let ids = IdSource::seeded(whizbang_core::clock::Clock::system(), self.last.get());
        let retry = Retry { attempts: u32::MAX, ..Retry::default() };
        let (mut failures, mut begun) = (0, instant());
        loop {
            if self.needs_check.get() && self.last.get() >= self.known.get() {
                // Nothing is missing: however many conflicting events arrive, the owner is asked at a bounded rate.
                if let Some(before) = self.last_idle_check.get() {
                    tokio::time::sleep_until(before + CHECK_INTERVAL).await;
                }
                // Set after the wait: a time noted before it would let the next request go at once.
                self.last_idle_check.set(Some(instant()));
            }
            if let Some(before) = self.last_disproof.take() {
                // However many nonexistent positions are claimed, the owner is asked at a bounded rate.
                tokio::time::sleep_until(before + CHECK_INTERVAL).await;
            }
            let matches = self.log_matches().await;
            let (after, known, mark) = (self.last.get(), self.known.get(), self.held.borrow().mark());
            let page = match matches {
                Ok(true) => (self.pages)(self.source.clone(), after, PAGE).await,
                Ok(false) => {
                    self.wait_while_diverged(after).await;
                    continue;
                }
                Err(reason) => {
                    self.needs_check.set(true);
                    Err(reason)
                }
            };
            match page {
                Ok((_, head)) if head < after => self.wait_while_diverged(after).await,
                Ok((events, head)) => {
                    failures = 0;
                    self.confirmed();
                    self.apply_log_end(head, known, mark);
                    let full = events.len() >= PAGE;
                    for event in events {
                        self.wait_for_capacity().await;
                        let position = event.origin.as_ref().map_or(0, |origin| origin.sequence);
                        self.drop_conflicting(position, &event);
                        // Another page, or a live event, may have been faster.
                        if position == self.last.get() + 1 {
                            self.dispatch(&event, position, Box::new(|| {}));
                        }
                    }
                    self.wait_for_capacity().await;
                    self.drain();
                    let missing = self.known.get() > self.last.get() || !self.held.borrow().is_empty();
                    // It goes back when a shard is opened that lacks earlier events.
                    let moved = self.last.get() != after;
                    // A head that became known while the page was read may not be in it, and no other task fetches it.
                    let risen = self.known.get() > known.max(head);
                    // An event that arrived while the page was read: the page does not tell whether the log contains it.
                    let arrived = self.held.borrow().mark() > mark;
                    let more = full || self.needs_check.get() || (missing && (moved || risen || arrived));
                    if !more {
                        break;
                    }
                }
                Err(reason) => {
                    if failures == 0 {
                        begun = instant();
                    }
                    failures += 1;
                    self.report_unread(begun.elapsed(), &reason);
                    tokio::time::sleep(retry.wait(failures, &ids)).await;
                }
            }
        }
    }

    /// Waits until one more event may be in flight.
    async fn wait_for_capacity(&self) {
        while !self.has_capacity() {
            self.settled.notified().await;
        }
    }

    /// Returns whether one more event may be dispatched; the rest stays in the log. A subscription without events in flight
    /// may always dispatch one: only its own events wake it up again.
    fn has_capacity(&self) -> bool {
        let in_flight = self.in_flight.borrow();
        let is_first = in_flight.events.get() == 0;
        in_flight.events.get() < IN_FLIGHT
            && in_flight.bytes.get() < MAX_BYTES
            && (is_first || self.queued.has_capacity())
    }

    /// Returns watermarks to be stored.
    pub(crate) fn unstored(&self) -> Vec<(ShardId, Source, u64)> {
        self.subscribers.borrow().iter().flat_map(|subscriber| subscriber.unstored()).collect()
    }
}

#[cfg(test)]
mod tests;
