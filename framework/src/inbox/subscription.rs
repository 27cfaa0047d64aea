//! The events of one source shard, in order and without gaps, for everyone on this thread who takes them.
//!
//! Live events come from the bridge; whatever is missing, and the whole history of a late subscriber, is read from the owner's
//! log. Both are one path: an event is dispatched when it is the next one.

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::reorder_buffer::ReorderBuffer;
use super::{Done, HealthIssues, IdleNotifier, RecentIds};
use crate::clock::instant;
use crate::message::{Envelope, IdSource, Name, ShardId};
use crate::retry::Retry;
use crate::spawn::{self, Overseer, Task};
use crate::store::Source;
use crate::telemetry::{TARGET, passes};

/// How many events are read from a log at a time.
const PAGE: usize = 256;
/// How many events are dispatched and not settled, at most.
const IN_FLIGHT: usize = 1024;
/// How many bytes of payload they have at most; one event may have more.
const BYTES: usize = 16 << 20;
/// How often an owner is asked at most whether its log is still the one that was taken from.
pub(super) const DOUBT: Duration = Duration::from_secs(1);

/// Takes the events of one source shard, once each and in order.
pub(crate) trait Subscriber {
    /// The position up to which it has everything; the greatest number there is if nothing is for it.
    fn floor(&self) -> u64;
    /// Whether it takes events of this name.
    fn takes(&self, event: &Name) -> bool;
    /// Takes the event. `done` is called once it needs no more looking after.
    fn handle(&self, event: &Envelope, done: Done);
    /// Floors that the store should be told: the shard that has taken, the source, the floor.
    fn unstored(&self) -> Vec<(ShardId, Source, u64)> {
        Vec::new()
    }
}

/// Reads events of a shard above a position from its owner's log: the events, and the position of the log's last one.
pub(crate) type Pages =
    Rc<dyn Fn(ShardId, u64, usize) -> LocalBoxFuture<'static, Result<(Vec<Envelope>, u64), String>>>;

/// The events of one source shard on one thread.
pub(crate) struct Subscription {
    pub(crate) source: ShardId,
    subscribers: RefCell<Vec<Box<dyn Subscriber>>>,
    /// The last position dispatched.
    pub(crate) last: Rc<Cell<u64>>,
    /// A position that is known to exist.
    pub(super) known: Cell<u64>,
    /// Live events that came while something before them is missing. More are dropped: the log has them.
    pub(super) held: RefCell<ReorderBuffer<Done>>,
    filling: Cell<bool>,
    paused: Cell<bool>,
    /// Dispatched and not settled. Closing begins a new count: what was under way settles later and counts down the old one.
    in_flight: RefCell<Rc<InFlight>>,
    landed: Rc<Notify>,
    /// Something was heard of the source while nothing is taken from it.
    pub(super) news: Notify,
    /// It takes nothing any more.
    shut: Cell<bool>,
    /// The owner's log is another one than was taken from: nothing is taken until the owner says otherwise.
    pub(super) stopped: Cell<bool>,
    pub(super) pages: Pages,
    pub(super) overseer: Overseer,
    pub(super) idle: Rc<IdleNotifier>,
    pub(super) issues: Arc<HealthIssues>,
    pub(super) recent_ids: RefCell<RecentIds>,
    /// Something came that may not be what was taken at its position; the owner is to be asked.
    pub(super) doubt: Cell<bool>,
    /// A position under which another event came than was taken. Until the owner has said what stands there, only its log is
    /// taken from: what comes live may be of the other log.
    pub(super) suspect: Cell<Option<u64>>,
    /// When there was doubt last.
    pub(super) doubted: Cell<Option<Instant>>,
    /// When the owner was last asked though nothing was missing.
    asked: Cell<Option<Instant>>,
    /// When the owner last said that its log does not reach as far as was claimed.
    pub(super) disproved: Cell<Option<Instant>>,
    task: RefCell<Option<Task>>,
}

/// What is dispatched and not settled.
#[derive(Default)]
struct InFlight {
    events: Cell<usize>,
    bytes: Cell<usize>,
}

impl Subscription {
    pub(crate) fn new(
        source: ShardId,
        pages: Pages,
        overseer: Overseer,
        quiet: Rc<IdleNotifier>,
        standing: Arc<HealthIssues>,
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
            landed: Rc::default(),
            news: Notify::new(),
            shut: Cell::new(false),
            stopped: Cell::new(false),
            pages,
            overseer,
            idle: quiet,
            issues: standing,
            recent_ids: RefCell::default(),
            doubt: Cell::new(false),
            doubted: Cell::new(None),
            suspect: Cell::new(None),
            asked: Cell::new(None),
            disproved: Cell::new(None),
            task: RefCell::default(),
        })
    }

    /// Sets who takes the events; the feed goes on from where the last of them is.
    pub(crate) fn takers(&self, takers: Vec<Box<dyn Subscriber>>) {
        let floor = takers.iter().map(|taker| taker.floor()).min().unwrap_or(u64::MAX);
        if floor == u64::MAX {
            // None of the shards that could take anything is of this thread: it need not read what is for nobody.
            return self.shut();
        }
        self.last.set(floor);
        *self.subscribers.borrow_mut() = takers;
        let held = self.held.borrow_mut().take();
        drop(held);
    }

    /// Dispatches nothing more; what is dispatched may finish. What is held back behind a gap is let go: the log has it.
    pub(crate) fn pause(&self) {
        self.paused.set(true);
        let task = self.task.borrow_mut().take();
        drop(task);
        let held = self.held.borrow_mut().take();
        held.for_each(|(_, done)| done());
    }

    /// Ends what runs in the background and forgets what is held: the thread's share of the node ends or starts anew.
    pub(crate) fn close(&self) {
        let task = self.task.borrow_mut().take();
        drop(task);
        self.filling.set(false);
        self.in_flight.take();
        let takers = std::mem::take(&mut *self.subscribers.borrow_mut());
        let held = self.held.borrow_mut().take();
        drop((takers, held));
    }

    /// Takes nothing any more: who took from it stands still. What comes is settled at once; the log keeps it.
    pub(crate) fn shut(&self) {
        self.shut.set(true);
        self.close();
        self.idle.look();
    }

    /// It takes again, once it has takers.
    pub(crate) fn reopen(&self) {
        self.shut.set(false);
    }

    /// Returns whether it takes nothing now: it is shut, or its owner's log is another one.
    pub(crate) fn is_shut(&self) -> bool {
        self.shut.get() || self.stopped.get()
    }

    /// Whether everything that is known to exist has been taken.
    pub(crate) fn is_at_rest(&self) -> bool {
        let caught_up = !self.filling.get() && self.last.get() >= self.known.get() && self.held.borrow().is_empty();
        let takes = !self.shut.get() && !self.paused.get() && !self.stopped.get();
        !takes || (caught_up && self.in_flight.borrow().events.get() == 0)
    }

    /// An event that came live. `done` is called once it is settled here.
    pub(crate) fn event(self: &Rc<Self>, event: Envelope, done: Done) {
        let Some(position) = event.origin.as_ref().map(|origin| origin.sequence) else { return done() };
        if self.stopped.get() {
            self.news.notify_one();
        }
        if self.paused.get() || self.shut.get() || self.stopped.get() {
            // It is in its log, and read from there when the node, or who stands still, starts again.
            return done();
        }
        self.known.set(self.known.get().max(position));
        let last = self.last.get();
        if position <= last {
            self.overseer.counts.duplicates.one();
            let known = self.recent_ids.borrow().knows(position, event.id);
            match known {
                Some(true) => {}
                Some(false) => self.suspects(position),
                None => self.doubts(),
            }
            return done();
        }
        // Also while the log is read, or an owner is waited for that could be asked: what is next is next wherever it comes
        // from, and the reading leaves out what it finds taken.
        if position == last + 1 && self.has_room() && self.suspect.get().is_none() {
            self.dispatch(&event, position, done);
            self.drain();
            return;
        }
        let unkept = self.held.borrow_mut().keep(position, event, done);
        if let Some(done) = unkept {
            done();
        }
        if position > last + 1 && !self.filling.get() {
            self.overseer.counts.gaps.one();
            tracing::debug!(target: TARGET, source = %self.source, last, position, "a gap: reading the owner's log");
        }
        self.fill();
    }

    /// The owner's log is known to reach up to `position`.
    pub(crate) fn head(self: &Rc<Self>, position: u64) {
        if self.stopped.get() {
            return self.news.notify_one();
        }
        self.known.set(self.known.get().max(position));
        match position.cmp(&self.last.get()) {
            Ordering::Greater => self.fill(),
            Ordering::Equal => {}
            // Told late, or by an owner whose log is an older copy.
            Ordering::Less => self.doubts(),
        }
    }

    fn dispatch(&self, event: &Envelope, position: u64, done: Done) {
        passes!("inbox", event.name, event.id, event.correlation);
        self.last.set(position);
        self.recent_ids.borrow_mut().passed(position, event.id);
        let in_flight = Rc::clone(&self.in_flight.borrow());
        let (landed, quiet) = (Rc::clone(&self.landed), Rc::clone(&self.idle));
        let bytes = event.payload.len();
        in_flight.events.set(in_flight.events.get() + 1);
        in_flight.bytes.set(in_flight.bytes.get() + bytes);
        // One event, several takers: it is settled when the last of them is done.
        let rest = Rc::new(Cell::new(1usize));
        let done = Rc::new(Cell::new(Some(done)));
        let finished = move |rest: &Cell<usize>| {
            rest.set(rest.get() - 1);
            if rest.get() == 0 {
                in_flight.events.set(in_flight.events.get() - 1);
                in_flight.bytes.set(in_flight.bytes.get() - bytes);
                landed.notify_one();
                quiet.look();
                if let Some(done) = done.take() {
                    done();
                }
            }
        };
        for taker in self.subscribers.borrow().iter().filter(|taker| taker.takes(&event.name)) {
            rest.set(rest.get() + 1);
            let (rest, finished) = (Rc::clone(&rest), finished.clone());
            taker.handle(event, Box::new(move || finished(&rest)));
        }
        finished(&rest);
    }

    /// Dispatches what was held back and is next now.
    fn drain(&self) {
        while self.has_room() && self.suspect.get().is_none() {
            let last = self.last.get();
            let next = self.held.borrow_mut().first_up_to(last + 1);
            let Some((position, event, done)) = next else { break };
            if position <= last {
                // What the log has brought meanwhile is settled.
                done();
            } else {
                self.dispatch(&event, position, done);
            }
        }
    }

    /// Reads what is missing from the owner's log, in the background, until nothing is.
    pub(crate) fn fill(self: &Rc<Self>) {
        let closed = self.paused.get() || self.shut.get();
        if closed || self.filling.replace(true) {
            return;
        }
        let feed = Rc::clone(self);
        let task = spawn::local(async move {
            let filling = Rc::clone(&feed);
            let name = format!("feed of {}", feed.source);
            spawn::until_done(Overseer::clone(&feed.overseer), name, move || Rc::clone(&filling).fill_gaps()).await;
            feed.filling.set(false);
            // Nothing is awaited between the last look and this, so nothing can have come in between.
            feed.idle.look();
        });
        *self.task.borrow_mut() = Some(task);
    }

    async fn fill_gaps(self: Rc<Self>) {
        let ids = IdSource::seeded(crate::clock::Clock::system(), self.last.get());
        let retry = Retry { attempts: u32::MAX, ..Retry::default() };
        let mut failures = 0;
        loop {
            if self.doubt.get() && self.last.get() >= self.known.get() {
                // Nothing is missing: however many contradictions come, the owner is asked at a bounded rate.
                if let Some(before) = self.asked.get() {
                    tokio::time::sleep_until(before + DOUBT).await;
                }
                // After the wait: a time noted before it would let the next question go at once.
                self.asked.set(Some(instant()));
            }
            if let Some(before) = self.disproved.take() {
                // However many positions are claimed that do not exist, the owner is asked at a bounded rate.
                tokio::time::sleep_until(before + DOUBT).await;
            }
            let as_taken = self.is_as_taken().await;
            let (after, known, mark) = (self.last.get(), self.known.get(), self.held.borrow().mark());
            let page = match as_taken {
                Ok(true) => (self.pages)(self.source.clone(), after, PAGE).await,
                Ok(false) => {
                    self.wait_for_another_log(after).await;
                    continue;
                }
                Err(reason) => {
                    self.doubt.set(true);
                    Err(reason)
                }
            };
            match page {
                Ok((_, head)) if head < after => self.wait_for_another_log(after).await,
                Ok((events, head)) => {
                    failures = 0;
                    self.confirmed();
                    self.ends_at(head, known, mark);
                    let full = events.len() >= PAGE;
                    for event in events {
                        self.landing().await;
                        let position = event.origin.as_ref().map_or(0, |origin| origin.sequence);
                        self.displaces(position, &event);
                        // Another page, or a live event, may have been quicker.
                        if position == self.last.get() + 1 {
                            self.dispatch(&event, position, Box::new(|| {}));
                        }
                    }
                    self.landing().await;
                    self.drain();
                    let missing = self.known.get() > self.last.get() || !self.held.borrow().is_empty();
                    let moved = self.last.get() > after;
                    // What became known while the page was read may not be in it: nobody else comes to look for it.
                    let risen = self.known.get() > known.max(head);
                    let more = full || self.doubt.get() || (missing && (moved || risen));
                    if !more {
                        break;
                    }
                }
                Err(reason) => {
                    failures += 1;
                    tracing::debug!(target: TARGET, source = %self.source, reason, "the owner's log cannot be read");
                    tokio::time::sleep(retry.wait(failures, &ids)).await;
                }
            }
        }
    }

    /// Waits until there is room for one more event in flight.
    async fn landing(&self) {
        while !self.has_room() {
            self.landed.notified().await;
        }
    }

    fn has_room(&self) -> bool {
        let in_flight = self.in_flight.borrow();
        in_flight.events.get() < IN_FLIGHT && in_flight.bytes.get() < BYTES
    }

    /// Floors that the store should be told.
    pub(crate) fn unstored(&self) -> Vec<(ShardId, Source, u64)> {
        self.subscribers.borrow().iter().flat_map(|taker| taker.unstored()).collect()
    }
}

#[cfg(test)]
mod tests;
