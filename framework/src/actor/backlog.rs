//! Messages that their key cannot take now, kept in the receiving shard's own log until it can.
//!
//! A message that is neither appended nor durable here keeps its source from moving on: the floor stops in front of it, and with
//! it the sender's window and what is read again after a restart. So a message that has to wait is written down, which settles
//! it: for a key in back-off, and for one whose stream cannot be loaded. What comes for that key meanwhile is written down behind
//! it. All of it stands in a stream of the framework's own, one for each actor type in a shard, because the key's stream may be
//! unreadable. The message leaves it when the turn that handles it is committed; the key's own record of places drops it if a
//! crash comes in between.
//!
//! Called by the [actor](super::keyed). Calls the door of its type with one message of a key at a time, in order. Never holds more
//! than [`MOST`] messages: then the mailbox waits, and in the end the sender.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use foldhash::fast::FixedState;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::decide::work_of;
use super::host::{Host, ShardCell};
use crate::clock::instant;
use crate::message::{Codec, Envelope, MessageId, Name, ShardId};
use crate::router::{Arrival, Delivery, Floor, Outcome, Work};
use crate::store::{
    Appended, DeadLetter, DeadLetterReason, Lane, Mark, Note, Snapshot, Source, StoreError, StreamHint, StreamState,
    Ticket, Turn,
};
use crate::telemetry::{TARGET, shortened};

/// The actor type under whose name a shard keeps its deferred messages. No hosted type may have it.
pub(crate) const DEFERRED: &str = "whizbang-deferred";

/// The most messages one actor type defers in a shard. In memory each takes about 50 bytes.
const MOST: usize = 65_536;
/// How many bytes of deferred messages one actor type keeps in memory for a shard; the rest is read from the log.
const IN_MEMORY: usize = 1 << 20;
/// The shortest wait before anything is tried again, whatever [`Retry`](crate::Retry) says: without it a policy of no waits would
/// be a loop.
pub(crate) const MIN_WAIT: Duration = Duration::from_millis(10);
/// How often a key is loaded again at most once its attempts are used up, and at least if the error may pass.
const SLOW: Duration = Duration::from_secs(1);
const SLOWEST: Duration = Duration::from_secs(60);
/// After how many turns a snapshot of what waits is kept, unless more wait than [`LARGEST_SNAPSHOT`].
const SNAPSHOT_EVERY: u64 = 1024;
const LARGEST_SNAPSHOT: usize = 4096;
const SCHEMA: u32 = 1;
/// How many keys are started at once after a restart.
const STARTED_AT_ONCE: usize = 64;

/// Hands a message to the actors' door.
pub(crate) type Deliver = Rc<dyn Fn(Delivery)>;

/// The deferred messages of one actor type in one shard.
pub(crate) struct Backlog {
    host: Rc<Host>,
    shard: Rc<ShardCell>,
    actor: Name,
    deferred: Name,
    deliver: Deliver,
    /// How many keys have something here. Looked at with each message, so that no search is needed while there are none.
    keys: Cell<usize>,
    /// How many keys cannot be loaded; for the same reason.
    broken: Cell<usize>,
    /// How many messages the metrics were told of.
    reported: Cell<usize>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// Read from the log.
    known: bool,
    /// Rises when commits have failed: what belongs to an earlier life changes nothing.
    life: u64,
    turns: u64,
    stream: StreamHint,
    last: Option<Ticket>,
    keys: HashMap<Rc<str>, Queue, FixedState>,
    /// Appended by their actors, and not yet committed.
    passing: BTreeMap<MessageId, (Rc<str>, Entry)>,
    waiting: usize,
    bytes: usize,
    unloadable: HashMap<Rc<str>, Unloadable, FixedState>,
}

/// What waits for one key, oldest first.
#[derive(Default)]
struct Queue {
    entries: VecDeque<Entry>,
    /// The last place of each source: what comes again is known by it.
    places: Vec<(Rc<Source>, u64)>,
    head: Head,
    /// How often the key could not be loaded for the first entry.
    failures: u32,
}

/// What is done about the first entry of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Head {
    /// Nothing yet.
    #[default]
    Idle,
    /// It is on its way to its actor, or there.
    Out,
    /// It is tried again after a while.
    Waits,
    /// It waits until the key can be loaded; no attempt is made without a cause.
    Parked,
}

struct Entry {
    id: MessageId,
    source: Rc<Source>,
    sequence: u64,
    ticket: Option<Ticket>,
    /// It stands in the log as the message for which the key could not be loaded.
    parked: bool,
    message: Option<Box<(Work, Envelope)>>,
}

/// A key that cannot be loaded.
struct Unloadable {
    failures: u32,
    /// Before this moment no timer makes it try again.
    next: Instant,
}

/// One waiting message in a snapshot: key, id, the source's domain and shard, whether it is an event, its place, whether it is
/// parked.
type Saved = (String, MessageId, String, u16, bool, u64, bool);

impl Backlog {
    pub(crate) fn new(host: &Rc<Host>, shard: &Rc<ShardCell>, actor: &Name, deliver: &Deliver) -> Rc<Self> {
        Rc::new(Self {
            host: Rc::clone(host),
            shard: Rc::clone(shard),
            actor: actor.clone(),
            // The name is valid; a test says so.
            deferred: Name::from_static(DEFERRED).unwrap_or_else(|_| actor.clone()),
            deliver: Rc::clone(deliver),
            keys: Cell::new(0),
            broken: Cell::new(0),
            reported: Cell::new(0),
            state: RefCell::default(),
        })
    }

    /// Whether it is known what waits. Until then nothing may overtake it.
    pub(crate) fn is_known(&self) -> bool {
        self.state.borrow().known
    }

    /// Whether something waits for a key. What comes for it must wait behind that.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.keys.get() > 0 && self.state.borrow().keys.contains_key(key)
    }

    /// Reads what waits from the log. Nothing may be delivered to the actors before.
    ///
    /// # Errors
    /// What reading can meet.
    pub(crate) async fn recall(self: Rc<Self>) -> Result<(), StoreError> {
        let reader = self.shard.reader();
        let key = self.actor.to_string();
        let mut stored = reader.load(&self.deferred, &key).await?;
        if stored.snapshot.as_ref().is_some_and(|snapshot| self.restore(snapshot).is_none()) {
            // A snapshot is a cache: without it the log says everything.
            stored = StreamState { snapshot: None, turns: reader.history(&self.deferred, &key).await? };
        }
        let mut turns = 0;
        let mut order = BTreeMap::new();
        let mut numbers = HashMap::new();
        if let Some(snapshot) = &stored.snapshot {
            turns = snapshot.turn;
            for (key, entry) in self.restore(snapshot).unwrap_or_default() {
                numbers.insert(entry.id, numbers.len());
                order.insert(numbers.len() - 1, (key, entry));
            }
        }
        let mut next = numbers.len();
        for turn in &stored.turns {
            turns = turn.number;
            for note in &turn.notes {
                match (note, &turn.from) {
                    (Note::DeadLetter(letter), Some((source, sequence))) => {
                        let entry = Entry {
                            id: letter.envelope.id,
                            source: Rc::new(source.clone()),
                            sequence: *sequence,
                            ticket: None,
                            parked: false,
                            message: None,
                        };
                        if let Some(before) = numbers.insert(entry.id, next) {
                            order.remove(&before);
                        }
                        order.insert(next, (Rc::from(letter.key.as_str()), entry));
                        next += 1;
                    }
                    (Note::DeadLetter(letter), None) => {
                        let known = numbers.get(&letter.envelope.id).and_then(|number| order.get_mut(number));
                        if let Some((_, entry)) = known {
                            entry.parked = true;
                        }
                    }
                    (Note::Resolved { message }, _) => {
                        if let Some(number) = numbers.remove(message) {
                            order.remove(&number);
                        }
                    }
                    _ => {}
                }
            }
        }
        let mut state = self.state.borrow_mut();
        state.turns = turns;
        for (key, entry) in order.into_values() {
            state.push(&key, entry);
        }
        state.known = true;
        self.noted(&state);
        Ok(())
    }

    /// Begins to deliver what waits, a few keys at a time: they are not all to be activated in one moment.
    pub(crate) fn resume(self: &Rc<Self>) {
        let keys: Vec<_> = self.state.borrow().keys.keys().cloned().collect();
        if keys.is_empty() {
            return;
        }
        let me = Rc::downgrade(self);
        crate::spawn::detached(async move {
            for keys in keys.chunks(STARTED_AT_ONCE) {
                let Some(me) = me.upgrade() else { return };
                keys.iter().for_each(|key| me.pump(key));
                drop(me);
                tokio::time::sleep(MIN_WAIT).await;
            }
        });
    }

    /// Forgets everything: the shard is opened again, or the node ends.
    pub(crate) fn reset(&self) {
        let mut state = self.state.borrow_mut();
        for key in state.unloadable.keys() {
            self.host.settings.standing.loads(&self.name(key));
        }
        self.count_unloadable(state.unloadable.len(), 0);
        *state = State { life: state.life + 1, ..State::default() };
        self.noted(&state);
        self.broken.set(0);
    }

    /// Writes down a message that must wait behind others of its key, or for the end of a back-off. `permit` is held until that is
    /// committed.
    ///
    /// # Errors
    /// The message again, if it cannot be written down now.
    pub(crate) fn add<P: 'static>(
        self: &Rc<Self>,
        key: &Rc<str>,
        delivery: Delivery,
        permit: P,
    ) -> Result<(), (Delivery, P)> {
        let Arrival::From { source, sequence, floor } = &delivery.arrival else { return Err((delivery, permit)) };
        if self.state.borrow().keys.get(key).is_some_and(|queue| queue.knows(source, *sequence)) {
            floor.known(*sequence);
            self.host.counts.duplicates.one();
            let settle = delivery.settle;
            let last = self.state.borrow().last;
            self.after(last, move |committed| {
                drop(permit);
                settle(settled(committed));
            });
            return Ok(());
        }
        let Ok(appended) = self.write_message(key, &delivery) else {
            return Err((delivery, permit));
        };
        let Delivery { work, envelope, arrival, settle } = delivery;
        self.push((key, envelope.id), &arrival, &appended, Some(Box::new((work, envelope))));
        self.host.after(appended, move |committed| {
            drop(permit);
            settle(settled(committed));
        });
        self.pump(key);
        Ok(())
    }

    /// Writes down a message that its actor goes on to try: it is settled, and the delivery returned stands for it from now on. If
    /// it cannot be written down, or is already, it is returned as it is.
    pub(crate) fn keep(self: &Rc<Self>, key: &Rc<str>, delivery: Delivery) -> Delivery {
        let fresh = matches!(&delivery.arrival, Arrival::From { floor, .. } if !floor.is_deferred());
        if !fresh || self.has(key) {
            return delivery;
        }
        let Ok(appended) = self.write_message(key, &delivery) else { return delivery };
        let Delivery { work, envelope, arrival, settle } = delivery;
        self.push((key, envelope.id), &arrival, &appended, None);
        self.set_head(key, Head::Out);
        self.host.after(appended, move |committed| settle(settled(committed)));
        self.delivery_of(key, work, envelope, arrival)
    }

    /// Keeps a message whose key could not be loaded, and has it tried again as [`Retry`](crate::Retry) says. After the last
    /// attempt it is parked: a person sees it among the dead letters.
    ///
    /// # Errors
    /// The message again, if it cannot be written down now.
    pub(crate) fn unloaded<P: 'static>(
        self: &Rc<Self>,
        key: &Rc<str>,
        delivery: Delivery,
        permit: P,
        error: &StoreError,
    ) -> Result<(), (Delivery, P)> {
        let fresh = matches!(&delivery.arrival, Arrival::From { floor, .. } if !floor.is_deferred());
        let failures = self.state.borrow().keys.get(key).map_or(0, |queue| queue.failures) + 1;
        let retry = self.host.settings.retry.all;
        let spent = failures >= retry.attempts.max(1);
        let letter = spent.then(|| {
            let (work, error) = (&delivery.work, error.to_string());
            self.letter(key, work, &delivery.envelope, DeadLetterReason::Unloadable, Some(error))
        });
        if fresh {
            let Ok(appended) = self.write_message(key, &delivery) else { return Err((delivery, permit)) };
            let Delivery { work, envelope, arrival, settle } = delivery;
            self.push((key, envelope.id), &arrival, &appended, Some(Box::new((work, envelope))));
            self.host.after(appended, move |committed| {
                drop(permit);
                settle(settled(committed));
            });
        } else {
            let Delivery { work, envelope, .. } = delivery;
            self.state.borrow_mut().put_back(key, envelope.id, Some(Box::new((work, envelope))));
            drop(permit);
        }
        if let Some(letter) = letter {
            self.park(key, letter);
        }
        if let Some(queue) = self.state.borrow_mut().keys.get_mut(key) {
            queue.failures = failures;
        }
        if !spent {
            self.try_again(key, retry.wait(failures, &self.host.ids).max(MIN_WAIT), true);
        } else if error.is_transient() {
            self.try_again(key, retry.wait(failures, &self.host.ids).clamp(SLOW, SLOWEST), false);
        } else {
            self.set_head(key, Head::Parked);
            self.host.quiet.look();
        }
        Ok(())
    }

    /// A key could not be loaded. Says so in logs, health and metrics, the more seldom the more often it has failed.
    pub(crate) fn failed_to_load(&self, key: &Rc<str>, error: &StoreError) {
        let mut state = self.state.borrow_mut();
        if state.unloadable.len() >= MOST && !state.unloadable.contains_key(key) {
            return;
        }
        let before = state.unloadable.len();
        let known =
            state.unloadable.entry(Rc::clone(key)).or_insert_with(|| Unloadable { failures: 0, next: instant() });
        known.failures += 1;
        let wait = self.host.settings.retry.all.wait(known.failures, &self.host.ids).clamp(SLOW, SLOWEST);
        known.next = instant() + wait;
        if known.failures.is_power_of_two() {
            tracing::error!(
                target: TARGET, actor = %self.actor, %key, failures = known.failures, %error,
                "failed to load a key; other keys are not affected",
            );
        }
        let after = state.unloadable.len();
        self.broken.set(after);
        drop(state);
        self.count_unloadable(before, after);
        self.host.settings.standing.does_not_load(&self.name(key), || {
            shortened(format!(
                "key `{}` of `{}` in {} cannot be loaded: {error}",
                key.escape_debug(),
                self.actor,
                self.shard.id
            ))
        });
    }

    /// Whether a key could not be loaded so recently that nothing but a caller or a person makes it try again.
    pub(crate) fn rests(&self, key: &str) -> bool {
        self.broken.get() > 0 && self.state.borrow().unloadable.get(key).is_some_and(|known| instant() < known.next)
    }

    /// A key is loaded: what waits for it is delivered, and nothing is said of it any longer.
    pub(crate) fn loaded(self: &Rc<Self>, key: &Rc<str>) {
        if self.broken.get() == 0 || self.state.borrow_mut().unloadable.remove(key).is_none() {
            return;
        }
        let left = self.state.borrow().unloadable.len();
        self.broken.set(left);
        self.count_unloadable(left + 1, left);
        self.host.settings.standing.loads(&self.name(key));
        tracing::info!(target: TARGET, actor = %self.actor, %key, "a key can be loaded again");
        let waits = {
            let mut state = self.state.borrow_mut();
            let queue = state.keys.get_mut(key).filter(|queue| matches!(queue.head, Head::Waits | Head::Parked));
            queue.map(|queue| queue.head = Head::Idle).is_some()
        };
        if waits {
            self.pump(key);
        }
    }

    /// Deletes a message that waits; `None` if it does not. It cannot be deleted while its actor has it.
    pub(crate) fn discard(self: &Rc<Self>, key: &Rc<str>, message: MessageId) -> Option<Result<Appended, Outcome>> {
        let (at, out) = {
            let state = self.state.borrow();
            let queue = state.keys.get(key)?;
            let at = queue.entries.iter().position(|entry| entry.id == message)?;
            (at, at == 0 && queue.head == Head::Out)
        };
        if out {
            return Some(Err(Outcome::Busy));
        }
        let appended = match self.write_release(message) {
            Ok(appended) => appended,
            Err(error) => return Some(Err(Outcome::Refused(error))),
        };
        let mut state = self.state.borrow_mut();
        state.take_out(key, at);
        if let Some(queue) = state.keys.get_mut(key).filter(|_| at == 0) {
            (queue.head, queue.failures) = (Head::Idle, 0);
        }
        self.noted(&state);
        drop(state);
        self.pump(key);
        Some(Ok(appended))
    }

    /// Gives the first message of a key to its actor, if nothing is done about it yet.
    pub(crate) fn pump(self: &Rc<Self>, key: &Rc<str>) {
        if self.host.draining.get() || self.host.stopped.get() {
            return;
        }
        let (id, arrival, message, ticket, life) = {
            let mut state = self.state.borrow_mut();
            let life = state.life;
            let Some(queue) = state.keys.get_mut(key).filter(|queue| queue.head == Head::Idle) else { return };
            let Some(entry) = queue.entries.front_mut() else { return };
            let (id, message, ticket) = (entry.id, entry.message.take(), entry.ticket);
            let place = Place { backlog: Rc::clone(self), key: Rc::clone(key), id, life };
            let (source, sequence) = (Rc::clone(&entry.source), entry.sequence);
            queue.head = Head::Out;
            if let Some(message) = &message {
                state.bytes = state.bytes.saturating_sub(message.1.payload.len());
            }
            (id, Arrival::From { source, sequence, floor: Rc::new(place) }, message, ticket, life)
        };
        // It counts as in flight: a wait for quiet includes it.
        let (me, key, flight) = (Rc::clone(self), Rc::clone(key), self.host.flight());
        crate::spawn::detached(async move {
            let message = match message {
                Some(message) => Ok(Some(*message)),
                None => me.read(&key, id, ticket).await,
            };
            if me.life() != life {
                return;
            }
            match message {
                Ok(Some((work, envelope))) => (me.deliver)(me.delivery_of(&key, work, envelope, arrival)),
                // Released before; only this did not know.
                Ok(None) => me.skip(&key, id),
                Err(error) => {
                    tracing::warn!(
                        target: TARGET, actor = %me.actor, %key, %error,
                        "failed to read a deferred message; it is read again",
                    );
                    me.try_again(&key, SLOW, false);
                }
            }
            drop(flight);
        });
    }

    /// Whether nothing is to be delivered but what waits for a person or for a retry.
    pub(crate) fn is_idle(&self) -> bool {
        let moves = |queue: &Queue| matches!(queue.head, Head::Idle | Head::Out);
        self.keys.get() == 0 || self.host.draining.get() || !self.state.borrow().keys.values().any(moves)
    }

    /// Takes down how much waits now.
    fn noted(&self, state: &State) {
        self.keys.set(state.keys.len());
        let (count, before) = (&self.host.counts.deferred, self.reported.replace(state.waiting));
        if before >= MOST && state.waiting < MOST {
            self.host.settings.standing.goes_on(&self.name(""));
        }
        count.set((count.get() + state.waiting as u64).saturating_sub(before as u64));
    }

    fn life(&self) -> u64 {
        self.state.borrow().life
    }

    fn name(&self, key: &str) -> String {
        format!("{}/{}/{key}", self.shard.id, self.actor)
    }

    fn count_unloadable(&self, before: usize, after: usize) {
        let count = &self.host.counts.unloadable;
        count.set((count.get() + after as u64).saturating_sub(before as u64));
    }

    fn after(&self, ticket: Option<Ticket>, then: impl FnOnce(Result<(), StoreError>) + 'static) {
        match ticket {
            Some(ticket) => self.host.after_ticket(ticket, then),
            None => then(Ok(())),
        }
    }

    fn push(
        &self,
        (key, id): (&Rc<str>, MessageId),
        arrival: &Arrival,
        appended: &Appended,
        message: Option<Box<(Work, Envelope)>>,
    ) {
        let Arrival::From { source, sequence, floor } = arrival else { return };
        let mut state = self.state.borrow_mut();
        let ticket = (!appended.committed).then_some(appended.ticket);
        let entry = Entry { id, source: Rc::clone(source), sequence: *sequence, ticket, parked: false, message: None };
        state.push(key, entry);
        state.put_back(key, id, message);
        self.noted(&state);
        drop(state);
        // Only now: a floor above a message that is not in the log would lose it.
        floor.appended(*sequence);
    }

    fn set_head(&self, key: &str, head: Head) {
        if let Some(queue) = self.state.borrow_mut().keys.get_mut(key) {
            queue.head = head;
        }
    }

    /// Delivers the first message of a key again after a while. `in_flight` says whether it counts as under way meanwhile.
    fn try_again(self: &Rc<Self>, key: &Rc<str>, wait: Duration, in_flight: bool) {
        self.set_head(key, Head::Waits);
        let (me, key, life) = (Rc::clone(self), Rc::clone(key), self.life());
        let flight = in_flight.then(|| self.host.flight());
        crate::spawn::detached(async move {
            Rc::clone(&me.host).pause(wait).await;
            drop(flight);
            let waits = {
                let mut state = me.state.borrow_mut();
                let same = state.life == life;
                let queue = state.keys.get_mut(&key).filter(|queue| same && queue.head == Head::Waits);
                queue.map(|queue| queue.head = Head::Idle).is_some()
            };
            if waits {
                me.pump(&key);
            }
        });
    }

    /// Marks the first message of a key as the one for which it could not be loaded: a person sees it as a dead letter.
    fn park(&self, key: &Rc<str>, letter: DeadLetter) {
        let is_parked = {
            let state = self.state.borrow();
            state.keys.get(key).and_then(|queue| queue.entries.front()).is_none_or(|entry| entry.parked)
        };
        if is_parked {
            return;
        }
        let about = (letter.envelope.id, letter.envelope.correlation);
        // If it cannot be written now, it is the next time.
        if self.write(about, Mark::None, &[Note::DeadLetter(Box::new(letter))]).is_ok() {
            self.host.counts.dead_letters.one();
            let mut state = self.state.borrow_mut();
            if let Some(entry) = state.keys.get_mut(key).and_then(|queue| queue.entries.front_mut()) {
                entry.parked = true;
            }
        }
    }

    fn letter(
        &self,
        key: &str,
        work: &Work,
        envelope: &Envelope,
        reason: DeadLetterReason,
        error: Option<String>,
    ) -> DeadLetter {
        let refused = match work {
            Work::Refuse(reason) => Some(reason.clone()),
            _ => None,
        };
        DeadLetter {
            actor: self.actor.clone(),
            key: key.to_owned(),
            reason,
            // How often it was tried is counted where it is tried. Here the number says whether it is to be tried at all.
            attempts: u32::from(refused.is_some()),
            error: error.or(refused).unwrap_or_else(|| "it waits for its key".to_owned()),
            time: self.host.ids.clock().now(),
            envelope: envelope.clone(),
        }
    }

    fn write_message(&self, key: &str, delivery: &Delivery) -> Result<Appended, StoreError> {
        let Arrival::From { source, sequence, floor } = &delivery.arrival else { return Err(StoreError::Closed) };
        if self.state.borrow().waiting >= MOST {
            let why =
                format!("{MOST} messages wait for keys of `{}` in {}: no more are taken", self.actor, self.shard.id);
            if self.host.settings.standing.stands(&self.name(""), why) {
                tracing::error!(
                    target: TARGET, actor = %self.actor, shard = %self.shard.id,
                    "too many messages wait for their keys: no more are taken",
                );
            }
            return Err(StoreError::Closed);
        }
        let envelope = &delivery.envelope;
        let letter = self.letter(key, &delivery.work, envelope, DeadLetterReason::Deferred, None);
        let notes = [Note::DeadLetter(Box::new(letter))];
        let mark = Mark::From { source, sequence: *sequence, floor: floor.once_appended(*sequence) };
        self.write((envelope.id, envelope.correlation), mark, &notes)
    }

    fn write_release(&self, message: MessageId) -> Result<Appended, StoreError> {
        self.write((message, message), Mark::None, &[Note::Resolved { message }])
    }

    fn write(
        &self,
        (id, correlation): (MessageId, MessageId),
        mark: Mark<'_>,
        notes: &[Note],
    ) -> Result<Appended, StoreError> {
        // What memory holds now is what the turns before this one have written.
        self.save();
        let mut state = self.state.borrow_mut();
        if !state.known {
            return Err(StoreError::Closed);
        }
        let turn = Turn {
            actor: &self.deferred,
            key: &self.actor,
            stream: state.stream,
            number: state.turns + 1,
            version: 0,
            time: self.host.ids.clock().now(),
            id,
            correlation,
            traceparent: None,
            mark,
            reply: &[],
            reply_codec: Codec::Bincode,
            events: &[],
            outbox: &[],
            timers: &[],
            notes,
        };
        let appended = self.shard.writer.borrow_mut().append(&turn).inspect_err(|error| self.host.refused(error))?;
        state.turns += 1;
        state.stream = appended.stream;
        state.last = (!appended.committed).then_some(appended.ticket);
        Ok(appended)
    }

    /// Keeps a snapshot of what waits, if one is due.
    fn save(&self) {
        let state = self.state.borrow();
        let count = state.waiting + state.passing.len();
        if state.turns == 0 || !state.turns.is_multiple_of(SNAPSHOT_EVERY) || count > LARGEST_SNAPSHOT {
            return;
        }
        let passing = state.passing.values().map(|(key, entry)| (key, entry));
        let waiting = state.keys.iter().flat_map(|(key, queue)| queue.entries.iter().map(move |entry| (key, entry)));
        let saved: Vec<Saved> = passing
            .chain(waiting)
            .map(|(key, entry)| {
                let Source { shard, lane } = &*entry.source;
                let (domain, shard, event) = (shard.domain.to_string(), shard.shard, *lane != Lane::Direct);
                (key.to_string(), entry.id, domain, shard, event, entry.sequence, entry.parked)
            })
            .collect();
        let turn = state.turns;
        drop(state);
        let mut bytes = Vec::new();
        if Codec::Bincode.encode(&saved, &mut bytes).is_ok() {
            let snapshot = Snapshot { turn, version: 0, schema: SCHEMA, bytes: Bytes::from(bytes) };
            self.shard.writer.borrow_mut().save_snapshot(&self.deferred, &self.actor, snapshot);
        }
    }

    /// What waited when a snapshot was kept; `None` if it cannot be used.
    fn restore(&self, snapshot: &Snapshot) -> Option<Vec<(Rc<str>, Entry)>> {
        if snapshot.schema != SCHEMA {
            return None;
        }
        let saved: Vec<Saved> = Codec::Bincode.decode(&snapshot.bytes).ok()?;
        let entries = saved.into_iter().map(|(key, id, domain, shard, event, sequence, parked)| {
            let lane = if event { Lane::Events { subscriber: self.actor.clone() } } else { Lane::Direct };
            let source = Rc::new(Source { shard: ShardId::new(Name::new(&domain).ok()?, shard), lane });
            Some((Rc::from(key), Entry { id, source, sequence, ticket: None, parked, message: None }))
        });
        entries.collect()
    }

    /// Reads a message that is not in memory; `None` if it waits no longer.
    async fn read(
        &self,
        key: &str,
        id: MessageId,
        ticket: Option<Ticket>,
    ) -> Result<Option<(Work, Envelope)>, StoreError> {
        if let Some(ticket) = ticket {
            let (tell, told) = oneshot::channel();
            self.host.after_ticket(ticket, move |committed| {
                let _ = tell.send(committed);
            });
            told.await.unwrap_or(Err(StoreError::Closed))?;
        }
        let before = id.as_u128().checked_sub(1).map(MessageId::from_u128);
        let letters = self.shard.reader().dead_letters(before, 1).await?;
        let found = letters.into_iter().find(|letter| {
            let waits = matches!(letter.reason, DeadLetterReason::Deferred | DeadLetterReason::Unloadable);
            waits && letter.envelope.id == id && letter.actor == self.actor && letter.key == key
        });
        Ok(found.map(|letter| {
            let work = if letter.attempts > 0 { Work::Refuse(letter.error) } else { work_of(&letter.envelope) };
            (work, Envelope { key: letter.key, ..letter.envelope })
        }))
    }

    /// Leaves out a message that was released before.
    fn skip(self: &Rc<Self>, key: &Rc<str>, id: MessageId) {
        let mut state = self.state.borrow_mut();
        let Some(queue) = state.keys.get_mut(key) else { return };
        queue.head = Head::Idle;
        if queue.entries.front().is_some_and(|entry| entry.id == id) {
            state.take_out(key, 0);
        }
        self.noted(&state);
        drop(state);
        self.pump(key);
    }

    /// The delivery of a message that stands here.
    fn delivery_of(self: &Rc<Self>, key: &Rc<str>, work: Work, envelope: Envelope, arrival: Arrival) -> Delivery {
        let (id, life) = (envelope.id, self.life());
        let arrival = match arrival {
            Arrival::From { source, sequence, .. } => {
                let place = Place { backlog: Rc::clone(self), key: Rc::clone(key), id, life };
                Arrival::From { source, sequence, floor: Rc::new(place) }
            }
            other => other,
        };
        let (me, key) = (Rc::clone(self), Rc::clone(key));
        let settle = Box::new(move |outcome: Outcome| me.ended(&key, id, life, &outcome));
        Delivery { work, envelope, arrival, settle }
    }

    /// The actor has appended the turn of the first message of a key, or had before: the next one is delivered.
    fn passed(self: &Rc<Self>, key: &Rc<str>, id: MessageId, life: u64) {
        let mut state = self.state.borrow_mut();
        let is_first = |queue: &Queue| queue.entries.front().is_some_and(|entry| entry.id == id);
        if state.life != life || !state.keys.get(key).is_some_and(is_first) {
            return;
        }
        if let Some(queue) = state.keys.get_mut(key) {
            (queue.head, queue.failures) = (Head::Idle, 0);
        }
        if let Some(entry) = state.take_out(key, 0) {
            state.passing.insert(id, (Rc::clone(key), entry));
        }
        self.noted(&state);
        drop(state);
        self.pump(key);
    }

    /// What has become of a message that was delivered from here.
    fn ended(self: &Rc<Self>, key: &Rc<str>, id: MessageId, life: u64, outcome: &Outcome) {
        if self.life() != life {
            return;
        }
        let passing = self.state.borrow_mut().passing.remove(&id);
        match (outcome, passing) {
            (Outcome::Done(..) | Outcome::DeadLetter(_), Some(passed)) => {
                if self.write_release(id).is_err() {
                    // It is released after the next start: the key knows that it has it.
                    self.state.borrow_mut().passing.insert(id, passed);
                }
            }
            (_, Some(passed)) => {
                self.state.borrow_mut().passing.insert(id, passed);
            }
            // Not taken: the node stops, or there was no room.
            (_, None) => self.try_again(key, SLOW, false),
        }
    }
}

/// What the deliverer of a message is told once it is written down here.
fn settled(committed: Result<(), StoreError>) -> Outcome {
    match committed {
        Ok(()) => Outcome::Done(Bytes::new(), Codec::Bincode),
        Err(error) => Outcome::Unknown(error),
    }
}

impl State {
    fn push(&mut self, key: &Rc<str>, entry: Entry) {
        let queue = self.keys.entry(Rc::clone(key)).or_default();
        match queue.places.iter_mut().find(|(source, _)| *source == entry.source) {
            Some((_, last)) => *last = (*last).max(entry.sequence),
            None => queue.places.push((Rc::clone(&entry.source), entry.sequence)),
        }
        queue.entries.push_back(entry);
        self.waiting += 1;
    }

    /// Keeps the bytes of a message in memory, if there is room.
    fn put_back(&mut self, key: &str, id: MessageId, message: Option<Box<(Work, Envelope)>>) {
        let Some(message) = message else { return };
        let bytes = message.1.payload.len();
        let entries = self.keys.get_mut(key).map(|queue| &mut queue.entries);
        let entry = entries.into_iter().flatten().rev().find(|entry| entry.id == id);
        if let Some(entry) = entry.filter(|entry| self.bytes + bytes <= IN_MEMORY && entry.message.is_none()) {
            entry.message = Some(message);
            self.bytes += bytes;
        }
    }

    fn take_out(&mut self, key: &str, at: usize) -> Option<Entry> {
        let queue = self.keys.get_mut(key)?;
        let mut entry = queue.entries.remove(at)?;
        if queue.entries.is_empty() {
            self.keys.remove(key);
        }
        self.waiting -= 1;
        if let Some(message) = entry.message.take() {
            self.bytes = self.bytes.saturating_sub(message.1.payload.len());
        }
        Some(entry)
    }
}

impl Queue {
    fn knows(&self, source: &Rc<Source>, sequence: u64) -> bool {
        self.places.iter().any(|(known, last)| known == source && sequence <= *last)
    }
}

/// The place of a deferred message. Its source's floor is past it; only the backlog has to know what becomes of it.
struct Place {
    backlog: Rc<Backlog>,
    key: Rc<str>,
    id: MessageId,
    life: u64,
}

impl Floor for Place {
    fn once_appended(&self, _sequence: u64) -> u64 {
        0
    }

    fn appended(&self, _sequence: u64) {
        self.backlog.passed(&self.key, self.id, self.life);
    }

    fn known(&self, _sequence: u64) {
        self.backlog.passed(&self.key, self.id, self.life);
    }

    fn is_deferred(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_actor_type_is_a_valid_name() {
        assert!(Name::from_static(DEFERRED).is_ok());
    }
}
