//! Timer task: fires due timers.
//!
//! Started by the thread's runtime; notified by turns that set a timer. Reads one page at a time from the store, by
//! actor type, behind a cursor: fired but unsettled timers, and timers of types that are not hosted, cost nothing.
//! Uses the node's [monotonic time](whizbang_core::clock::MonotonicTime), which ignores jumps of the wall clock.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use tokio::time::Instant;

use crate::actor::{OwnedShard, TIMER_NAME, ThreadContext, own_timer_name, timer_parts};
use crate::node::thread::ThreadRuntime;
use crate::router::{Action, Outcome};
use whizbang_core::clock::{Timestamp, instant};
use whizbang_core::message::{Envelope, Kind, MessageId, Name, ShardId};
use whizbang_core::store::{Timer, TimerCursor};
use whizbang_core::telemetry::TARGET;

/// Most fired, unsettled timers of a thread, not counting long-running ones. More stay in the store, so that messages
/// are handled in between however many are due.
const IN_FLIGHT: usize = 256;
/// Time after which an unsettled timer is long-running: its key is stuck, and others must not wait for it.
const LONG_RUNNING: Duration = Duration::from_secs(1);
/// Time after which an undelivered timer is fired again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Interval at which every shard is checked and the timers of unknown types are counted.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// Fires the timers of a thread's shards.
pub(in crate::node) async fn fire(runtime: Weak<ThreadRuntime>) {
    let Some(mut queues) = runtime.upgrade().map(|runtime| TimerQueues::of(&runtime)) else { return };
    let mut look = instant();
    loop {
        let Some(runtime) = runtime.upgrade() else { return };
        let context = Rc::clone(&runtime.context);
        if queues.generation != context.generation.get() {
            // The shards were reopened: cursors are invalid, and all fired timers have an outcome.
            queues = TimerQueues::of(&runtime);
            look = instant();
        }
        if queues.openings != context.openings.get() {
            queues.follow_openings(&runtime);
            look = instant();
        }
        if instant() >= look {
            look = instant() + CHECK_INTERVAL;
            queues.check_all(&runtime);
        }
        let wait = queues.fire(&runtime);
        drop(runtime);
        let until = earlier(wait.map(|wait| instant() + wait.max(Duration::from_millis(1))), look);
        tokio::select! {
            biased;
            () = context.timers.notified() => {}
            () = tokio::time::sleep_until(until) => {}
        }
    }
}

fn earlier(one: Option<Instant>, other: Instant) -> Instant {
    one.map_or(other, |one| one.min(other))
}

/// Timers of one opened shard.
struct ShardTimers {
    cell: Rc<OwnedShard>,
    /// Hosted actor types, each with the cursor up to which its timers were fired.
    actors: Vec<(Name, TimerCursor)>,
}

/// Timers of a thread, for one generation of its shards.
struct TimerQueues {
    generation: u64,
    /// The openings and closings that are known here.
    openings: u64,
    /// By the number of the opening.
    queues: BTreeMap<Opening, ShardTimers>,
    fired: Rc<FiredTimers>,
    /// Number of the next opening.
    next: Opening,
    /// The shard that was read first last time: the next one follows, so that none starves.
    first: Opening,
}

/// Number of an opened shard. A shard that is opened again has another one, so a timer fired before is not mistaken for
/// one of now.
type Opening = u64;

/// Identifies a timer: the opened shard, index of the actor type, cursor.
type TimerId = (Opening, usize, TimerCursor);

/// Timers that were fired and are not settled.
#[derive(Default)]
struct FiredTimers {
    open: RefCell<HashSet<TimerId, FixedState>>,
    /// Undelivered timers, to be fired again.
    again: RefCell<Vec<TimerId>>,
    /// Number of unsettled timers that are not long-running.
    recent: Cell<usize>,
    /// More timers are due than the bound allows.
    is_full: Cell<bool>,
    batches: RefCell<VecDeque<(Instant, Rc<Batch>)>>,
}

/// Timers that were fired together.
#[derive(Default)]
struct Batch {
    open: Cell<usize>,
    /// Long-running: no longer counted against the bound.
    late: Cell<bool>,
}

impl FiredTimers {
    /// Stops counting long-running batches; returns when the next batch becomes one.
    fn expire_batches(&self) -> Option<Duration> {
        let now = instant();
        let mut batches = self.batches.borrow_mut();
        while let Some((fired, batch)) = batches.front() {
            let age = now.saturating_duration_since(*fired);
            if age < LONG_RUNNING && batch.open.get() > 0 {
                return Some(LONG_RUNNING.saturating_sub(age));
            }
            self.recent.set(self.recent.get().saturating_sub(batch.open.get()));
            batch.late.set(true);
            batches.pop_front();
        }
        None
    }

    fn settled(&self, at: TimerId, batch: &Batch, context: &ThreadContext) {
        self.open.borrow_mut().remove(&at);
        batch.open.set(batch.open.get().saturating_sub(1));
        if !batch.late.get() {
            self.recent.set(self.recent.get().saturating_sub(1));
        }
        // Waits until half of the bound is free: a page is not read for each timer.
        if self.is_full.get() && self.recent.get() <= IN_FLIGHT.min(context.settings.in_flight) / 2 {
            self.is_full.set(false);
            context.timers.notify_one();
        }
    }
}

impl TimerQueues {
    fn of(runtime: &Rc<ThreadRuntime>) -> Self {
        let generation = runtime.context.generation.get();
        let mut timers =
            Self { generation, openings: 0, queues: BTreeMap::new(), fired: Rc::default(), next: 0, first: 0 };
        timers.follow_openings(runtime);
        timers
    }

    /// Drops the timers of closed shards and adds those of opened ones.
    fn follow_openings(&mut self, runtime: &ThreadRuntime) {
        self.openings = runtime.context.openings.get();
        self.queues.retain(|_, queue| runtime.is_current(&queue.cell));
        for cell in runtime.shards() {
            if self.queues.values().any(|queue| Rc::ptr_eq(&queue.cell, &cell)) {
                continue;
            }
            let hosted = runtime.definition.actors.iter().filter(|hosted| hosted.domain == cell.id.domain);
            let actors = hosted.map(|hosted| (hosted.actor.clone(), TimerCursor::default())).collect();
            self.queues.insert(self.next, ShardTimers { cell, actors });
            self.next += 1;
        }
    }

    /// Makes every shard report its next timer, and reports timers without a hosted actor type.
    fn check_all(&self, runtime: &ThreadRuntime) {
        let mut unknown = BTreeMap::<(Name, Name), usize>::new();
        for queue in self.queues.values() {
            queue.cell.next_timer.set(Some(Timestamp::default()));
            for (actor, count) in queue.cell.reader().timer_counts() {
                let orphans = unknown.entry((queue.cell.id.domain.clone(), actor.clone())).or_default();
                if queue.actors.iter().all(|(hosted, _)| *hosted != actor) {
                    *orphans += count;
                }
            }
        }
        for ((domain, actor), count) in unknown {
            let what = format!("timers of {domain}/{actor} on thread {}", runtime.index);
            if count == 0 {
                runtime.definition.issues.clear_note(&what);
                continue;
            }
            let why = format!(
                "{count} timers of unknown actor type `{actor}` in domain `{domain}` on thread {}: they never \
                 fire; host the type again, or ignore them",
                runtime.index,
            );
            if runtime.definition.issues.note(&what, why) {
                tracing::warn!(target: TARGET, %domain, %actor, count, "timers of an actor type that is not hosted: they never fire");
            }
        }
    }

    /// Fires due timers within the bound; returns the time until the next.
    fn fire(&mut self, runtime: &Rc<ThreadRuntime>) -> Option<Duration> {
        let now = runtime.context.monotonic.now();
        self.rewind();
        let expires = self.fired.expire_batches();
        let batch = Rc::new(Batch::default());
        let limit = runtime.context.settings.in_flight;
        let (after, before): (Vec<_>, Vec<_>) = self.queues.keys().partition(|number| **number > self.first);
        let order: Vec<Opening> = after.into_iter().chain(before).copied().collect();
        self.first = order.first().copied().unwrap_or(0);
        let mut is_full = false;
        for number in order {
            let Some(queue) = self.queues.get_mut(&number) else { continue };
            // The timers of a shard that is handed over fire at its next owner.
            if !queue.cell.is_open() || queue.cell.next_timer.get().is_none_or(|next| next > now) {
                continue;
            }
            let reader = queue.cell.reader();
            let mut next: Option<Timestamp> = None;
            for (nth, (actor, place)) in queue.actors.iter_mut().enumerate() {
                let open = self.fired.open.borrow().len();
                let room = IN_FLIGHT.saturating_sub(self.fired.recent.get()).min(limit.saturating_sub(open));
                let page = reader.timers_of(actor, *place, now, room);
                is_full |= page.next.is_some_and(|next| next <= now);
                next = next.into_iter().chain(page.next).min();
                for (at, timer) in page.due {
                    *place = at;
                    let at = (number, nth, at);
                    if self.fired.open.borrow_mut().insert(at) {
                        batch.open.set(batch.open.get() + 1);
                        self.fired.recent.set(self.fired.recent.get() + 1);
                        deliver(runtime, &queue.cell.id, timer, at, &self.fired, &batch);
                    }
                }
            }
            queue.cell.next_timer.set(next);
        }
        if batch.open.get() > 0 {
            self.fired.batches.borrow_mut().push_back((instant(), batch));
        }
        self.fired.is_full.set(is_full);
        if is_full {
            // The bound is reached: settled timers notify this task, and long-running ones stop counting.
            return Some(expires.unwrap_or(LONG_RUNNING));
        }
        let open = self.queues.values().filter(|queue| queue.cell.is_open());
        open.filter_map(|queue| queue.cell.next_timer.get()).min().map(|next| next.since(now))
    }

    /// Moves cursors back to timers that were set behind them, and to undelivered ones.
    fn rewind(&mut self) {
        for queue in self.queues.values_mut() {
            if let Some(due) = queue.cell.earliest_set_timer.take() {
                let before = TimerCursor { due, number: 0 };
                queue.actors.iter_mut().for_each(|(_, place)| *place = (*place).min(before));
            }
        }
        for (queue, actor, place) in self.fired.again.borrow_mut().drain(..) {
            let Some(queue) = self.queues.get_mut(&queue) else { continue };
            if let Some((_, reached)) = queue.actors.get_mut(actor) {
                *reached = (*reached).min(TimerCursor { number: place.number.saturating_sub(1), ..place });
            }
            let next = queue.cell.next_timer.get();
            queue.cell.next_timer.set(next.into_iter().chain([place.due]).min());
        }
    }
}

/// Delivers a timer to its actor.
fn deliver(
    runtime: &Rc<ThreadRuntime>,
    id: &ShardId,
    timer: Timer,
    at: TimerId,
    fired: &Rc<FiredTimers>,
    batch: &Rc<Batch>,
) {
    let label = format!("timer/{}/{}/{}/{}", timer.actor, timer.key, timer.name, timer.turn);
    // A document of another domain is stored under both names.
    let (document, own_name) = own_timer_name(&timer.name);
    let (domain, name) = timer_parts(document);
    let domain = domain.map_or_else(|| Ok(id.domain.clone()), Name::new);
    let (Ok(domain), Ok(name)) = (domain, Name::new(name)) else {
        tracing::error!(target: TARGET, timer = %label, "timer has an invalid name: it never fires");
        return fired.settled(at, batch, &runtime.context);
    };
    let message = MessageId::of_timer(&id.domain, &label);
    let headers = own_name.map(|own| (TIMER_NAME.to_owned(), own.to_owned())).into_iter().collect();
    let envelope = Envelope {
        headers,
        version: timer.version,
        to: Some(id.clone()),
        key: timer.key,
        actor: Some(timer.actor.clone()),
        correlation: timer.correlation,
        codec: timer.codec,
        payload: timer.payload,
        ..Envelope::new(message, Kind::Document, domain, name, timer.due)
    };
    let (fired, batch, context) = (Rc::clone(fired), Rc::clone(batch), Rc::clone(&runtime.context));
    let settle = Box::new(move |outcome| match outcome {
        // The turn has cleared it. If it is still set, another node has taken over the shard and set it: it fires
        // there.
        Outcome::Done(..) | Outcome::DeadLetter(_) => fired.settled(at, &batch, &context),
        // The shard is being reopened, or the node is shutting down.
        _ => whizbang_core::spawn::detached(&Arc::clone(&context.user_code), "retry a timer", async move {
            tokio::time::sleep(RETRY_AFTER).await;
            fired.settled(at, &batch, &context);
            fired.again.borrow_mut().push(at);
            context.timers.notify_one();
        }),
    });
    runtime.deliver_internal(&timer.actor, Action::Timer { turn: timer.turn }, envelope, settle);
}
