//! Messages that their key cannot take now, kept in the receiving shard's own log until it can.
//!
//! A message that is neither appended nor durable here keeps its source from moving on: the floor stops in front of it, and with
//! it the sender's window and what is read again after a restart. So a message that has to wait is written down, which settles
//! it: for a key in back-off, and for one whose stream cannot be loaded. What comes for that key meanwhile is written down behind
//! it. All of it stands in a stream of the framework's own, one for each actor type in a shard, because the key's stream may be
//! unreadable. The message leaves it when the turn that handles it is committed; the key's own record of places drops it if a
//! crash comes in between.
//!
//! Called by the [actor](super::super::instance). Calls the door of its type with one message of a key at a time, in order. Never holds more
//! than [`MOST`] messages: then the mailbox waits, and in the end the sender.

mod queues;
mod record;
mod unloadable;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;

use super::thread::{OwnedShard, ThreadContext};
use crate::message::{Codec, Coded as _, Envelope, Kind, MessageId, Name, Rejection};
use crate::router::{Action, DedupKey, Delivery, Outcome, SequenceTracker};
use crate::store::{Appended, Mark, Note, OutboxWrite, StoreError, Ticket};
use crate::telemetry::TARGET;
use queues::{Entry, Head, Queue, State};

/// The actor type under whose name a shard keeps its deferred messages. No hosted type may have it.
pub(crate) const DEFERRED: &str = "whizbang-deferred";

/// The most messages one actor type defers in a shard. In memory each takes about 50 bytes.
const MOST: usize = 65_536;
/// How many bytes of deferred messages one actor type keeps in memory for a shard; the rest is read from the log.
const IN_MEMORY: usize = 1 << 20;
/// The shortest wait before anything is tried again, whatever [`Retry`](crate::Retry) says: without it a policy of no waits would
/// be a loop.
pub(crate) const MIN_WAIT: Duration = Duration::from_millis(10);
/// How often a key is loaded again at most once its attempts are used up, and a message that cannot be read.
const SLOW: Duration = Duration::from_secs(1);
/// How many keys are started at once after a restart.
const STARTED_AT_ONCE: usize = 64;

/// The task that reads a message that waits.
const READ: &str = "read a message that waits";

/// Hands a message to the actors' door.
pub(crate) type Deliver = Rc<dyn Fn(Delivery)>;

/// The deferred messages of one actor type in one shard.
pub(crate) struct Backlog {
    host: Rc<ThreadContext>,
    shard: Rc<OwnedShard>,
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

impl Backlog {
    pub(crate) fn new(host: &Rc<ThreadContext>, shard: &Rc<OwnedShard>, actor: &Name, deliver: &Deliver) -> Rc<Self> {
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

    /// Returns whether it is known what waits. Until then nothing may overtake it.
    pub(crate) fn is_known(&self) -> bool {
        self.state.borrow().known
    }

    /// Returns whether something waits for a key. What comes for it must wait behind that.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.keys.get() > 0 && self.state.borrow().keys.contains_key(key)
    }

    /// Begins to deliver what waits, a few keys at a time: they are not all to be activated in one moment.
    pub(crate) fn resume(self: &Rc<Self>) {
        let keys: Vec<_> = self.state.borrow().keys.keys().cloned().collect();
        if keys.is_empty() {
            return;
        }
        let me = Rc::downgrade(self);
        crate::spawn::detached(&self.host.user_code, "deliver what waits", async move {
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
            self.host.settings.issues.loads(&self.name(key));
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
    #[allow(clippy::result_large_err, reason = "the message goes back to its caller, which keeps it on its stack")]
    pub(crate) fn add<P: 'static>(
        self: &Rc<Self>,
        key: &Rc<str>,
        delivery: Delivery,
        permit: P,
    ) -> Result<(), (Delivery, P)> {
        let DedupKey::Sequence { source, sequence, tracker: floor } = &delivery.dedup_key else {
            return Err((delivery, permit));
        };
        if self.state.borrow().keys.get(key).is_some_and(|queue| queue.knows(source, *sequence)) {
            floor.mark_known(*sequence);
            self.host.counts.duplicates.one();
            let settle = delivery.completion;
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
        let Delivery { action: work, envelope, dedup_key: arrival, completion: settle } = delivery;
        self.push((key, envelope.id), &arrival, &appended, Some(Box::new((work, envelope))));
        self.host.after_commit(appended, move |committed| {
            drop(permit);
            settle(settled(committed));
        });
        self.pump(key);
        Ok(())
    }

    /// Writes down a message that its actor goes on to try: it is settled, and the delivery returned stands for it from now on. If
    /// it cannot be written down, or is already, it is returned as it is.
    pub(crate) fn keep(self: &Rc<Self>, key: &Rc<str>, delivery: Delivery) -> Delivery {
        let fresh = matches!(&delivery.dedup_key, DedupKey::Sequence { tracker, .. } if !tracker.is_deferred());
        if !fresh || self.has(key) {
            return delivery;
        }
        let Ok(appended) = self.write_message(key, &delivery) else { return delivery };
        let Delivery { action: work, envelope, dedup_key: arrival, completion: settle } = delivery;
        self.push((key, envelope.id), &arrival, &appended, None);
        self.set_head(key, Head::Out);
        self.host.after_commit(appended, move |committed| settle(settled(committed)));
        self.delivery_of(key, work, envelope, arrival)
    }

    /// Reads a message that waits; `None` if it does not.
    pub(crate) fn waits(
        self: &Rc<Self>,
        key: &Rc<str>,
        message: MessageId,
    ) -> Option<impl Future<Output = Result<Option<(Action, Envelope)>, StoreError>> + 'static> {
        let state = self.state.borrow();
        let entry = state.keys.get(key)?.entries.iter().find(|entry| entry.id == message)?;
        let (me, key, ticket) = (Rc::clone(self), Rc::clone(key), entry.ticket);
        Some(async move { me.read(&key, message, ticket).await })
    }

    /// Deletes a message that waits, and rejects it to the actor that sent it if that wants to know; `None` if it does not wait. It
    /// cannot be deleted while its actor has it.
    pub(crate) fn discard(
        self: &Rc<Self>,
        key: &Rc<str>,
        message: MessageId,
        envelope: Option<&Envelope>,
    ) -> Option<Result<Appended, Outcome>> {
        let (at, out) = {
            let state = self.state.borrow();
            let queue = state.keys.get(key)?;
            let at = queue.entries.iter().position(|entry| entry.id == message)?;
            (at, at == 0 && queue.head == Head::Out)
        };
        if out {
            return Some(Err(Outcome::Busy));
        }
        let rejection = envelope.filter(|envelope| envelope.kind == Kind::Command).and_then(|envelope| {
            let mut bytes = Vec::new();
            <()>::write_reply(&Err(Rejection::discarded()), envelope.codec, &mut bytes).ok()?;
            envelope.reply(&self.shard.id.domain, true, self.host.ids.clock().now(), envelope.codec, &bytes)
        });
        let outbox: Vec<_> = rejection.iter().map(|(to, envelope)| OutboxWrite { to, envelope }).collect();
        let appended = match self.write((message, message), Mark::None, &[Note::Resolved { message }], &outbox) {
            Ok(appended) => appended,
            Err(error) => return Some(Err(Outcome::Refused(error))),
        };
        if !outbox.is_empty() {
            let (shard, host) = (Rc::clone(&self.shard), Rc::clone(&self.host));
            self.host.after_commit(appended, move |_| shard.mark_dirty(&host));
        }
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
            (id, DedupKey::Sequence { source, sequence, tracker: Rc::new(place) }, message, ticket, life)
        };
        // It counts as in flight: a wait for quiet includes it.
        let (me, key, flight) = (Rc::clone(self), Rc::clone(key), self.host.track_in_flight());
        crate::spawn::detached(&self.host.user_code, "deliver a message that waits", async move {
            let message = match message {
                Some(message) => Ok(Some(*message)),
                None => me.host.guarded(READ, me.read(&key, id, ticket)).await,
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

    /// Returns whether nothing is to be delivered but what waits for a person or for a retry.
    pub(crate) fn is_idle(&self) -> bool {
        let moves = |queue: &Queue| matches!(queue.head, Head::Idle | Head::Out);
        self.keys.get() == 0 || self.host.draining.get() || !self.state.borrow().keys.values().any(moves)
    }

    /// Takes down how much waits now.
    fn noted(&self, state: &State) {
        self.keys.set(state.keys.len());
        let (count, before) = (&self.host.counts.deferred, self.reported.replace(state.waiting));
        if before >= MOST && state.waiting < MOST {
            self.host.settings.issues.resolve(&self.name(""));
        }
        count.set((count.get() + state.waiting as u64).saturating_sub(before as u64));
    }

    fn life(&self) -> u64 {
        self.state.borrow().life
    }

    fn name(&self, key: &str) -> String {
        format!("{}/{}/{key}", self.shard.id, self.actor)
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
        arrival: &DedupKey,
        appended: &Appended,
        message: Option<Box<(Action, Envelope)>>,
    ) {
        let DedupKey::Sequence { source, sequence, tracker: floor } = arrival else { return };
        let mut state = self.state.borrow_mut();
        let ticket = (!appended.committed).then_some(appended.ticket);
        let entry = Entry { id, source: Rc::clone(source), sequence: *sequence, ticket, parked: false, message: None };
        state.push(key, entry);
        state.put_back(key, id, message);
        self.noted(&state);
        drop(state);
        // Only now: a floor above a message that is not in the log would lose it.
        floor.mark_appended(*sequence);
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
        let flight = in_flight.then(|| self.host.track_in_flight());
        crate::spawn::detached(&self.host.user_code, "deliver a message again", async move {
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
    fn delivery_of(self: &Rc<Self>, key: &Rc<str>, work: Action, envelope: Envelope, arrival: DedupKey) -> Delivery {
        let (id, life) = (envelope.id, self.life());
        let arrival = match arrival {
            DedupKey::Sequence { source, sequence, .. } => {
                let place = Place { backlog: Rc::clone(self), key: Rc::clone(key), id, life };
                DedupKey::Sequence { source, sequence, tracker: Rc::new(place) }
            }
            other => other,
        };
        let (me, key) = (Rc::clone(self), Rc::clone(key));
        let settle = Box::new(move |outcome: Outcome| me.ended(&key, id, life, &outcome));
        Delivery { action: work, envelope, dedup_key: arrival, completion: settle }
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

/// The place of a deferred message. Its source's floor is past it; only the backlog has to know what becomes of it.
struct Place {
    backlog: Rc<Backlog>,
    key: Rc<str>,
    id: MessageId,
    life: u64,
}

impl SequenceTracker for Place {
    fn watermark_after(&self, _sequence: u64) -> u64 {
        0
    }

    fn mark_appended(&self, _sequence: u64) {
        self.backlog.passed(&self.key, self.id, self.life);
    }

    fn mark_known(&self, _sequence: u64) {
        self.backlog.passed(&self.key, self.id, self.life);
    }

    fn is_deferred(&self) -> bool {
        true
    }

    /// It waited here, so it was tried before.
    fn is_near_start(&self, _sequence: u64) -> bool {
        true
    }
}

/// The backlogs of one actor type on one thread, by the number of the shard.
pub(crate) struct Backlogs(Vec<Option<Rc<Backlog>>>);

impl Backlogs {
    pub(super) fn new(
        host: &Rc<ThreadContext>,
        shards: &[Option<Rc<OwnedShard>>],
        actor: &Name,
        deliver: &Deliver,
    ) -> Self {
        Self(shards.iter().map(|shard| Some(Backlog::new(host, shard.as_ref()?, actor, deliver))).collect())
    }

    pub(super) fn get(&self, shard: u16) -> Option<&Rc<Backlog>> {
        self.0.get(usize::from(shard))?.as_ref()
    }

    pub(super) fn each(&self) -> impl Iterator<Item = &Rc<Backlog>> {
        self.0.iter().flatten()
    }

    /// [Recalls](Backlog::recall) all of them.
    pub(super) fn recall(&self) -> LocalBoxFuture<'static, Result<(), StoreError>> {
        let all: Vec<_> = self.each().cloned().collect();
        Box::pin(async move {
            for backlog in all {
                backlog.recall().await?;
            }
            Ok(())
        })
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
