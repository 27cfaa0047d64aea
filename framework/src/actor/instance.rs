//! One live actor: takes one message after the other, in order, and is rebuilt when it must be.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use actix::AsyncContext;
use actix::fut::{ActorFutureExt, wrap_future};
use tokio::sync::oneshot;

use super::backlog::{Backlog, MIN_WAIT};
use super::dispatcher::{Dispatcher, Permit};
use super::handler_table::UserSlot;
use super::mailbox::{Ctx, Delivered, Mailbox};
use super::state::KeyState;
use super::thread::OwnedShard;
use super::timer_name::timer_in;
use crate::inbox::Admission;
use crate::message::{Codec, CodecError, MessageId};
use crate::router::{Action, DedupKey, Delivery, Outcome};
use crate::store::{Appended, StoreError, StreamHint, StreamPages, Ticket};
use crate::telemetry::TARGET;
use crate::user_code::Panicked;

/// One live actor of a key. While it loads, waits for a retry or looks something up, it [holds](Self::hold) its mailbox back,
/// so that the order of its messages never changes.
pub(crate) struct ActorInstance<U: ?Sized = dyn UserSlot> {
    pub(crate) dispatcher: Rc<Dispatcher>,
    pub(crate) shard: Rc<OwnedShard>,
    pub(crate) key: Rc<str>,
    pub(crate) state: KeyState,
    pub(crate) generation: u64,
    /// What the shard's writer has said of the stream.
    pub(super) stream: StreamHint,
    /// The last append that is not known to be durable.
    pub(crate) last: Cell<Option<Ticket>>,
    /// Why it could not be loaded; it answers with that and is forgotten by its door.
    pub(crate) broken: Option<Box<StoreError>>,
    /// What actors have sent and what has no room behind the dead letters of the key. Bounded by what a sender has under way.
    #[allow(clippy::box_collection, reason = "few actors have one, and every live actor pays for the field")]
    pub(super) crowd: Option<Box<VecDeque<Delivered>>>,
    /// The message whose attempt was recorded before it began.
    pub(super) begun: Option<MessageId>,
    /// How much its mailbox is held back for.
    pub(super) held: u32,
    /// While a message is in back-off: what has come meanwhile and is not written down.
    pub(super) waiting: Option<Box<Waiting>>,
    /// The user's state. In place and not behind a pointer, because each turn reads it.
    pub(super) user: U,
}

/// What has come for a key while one of its messages is in back-off: commands of callers and timers. Permits bound their number.
#[derive(Default)]
pub(crate) struct Waiting {
    in_back_off: bool,
    queue: VecDeque<Delivered>,
}

impl<U> ActorInstance<U> {
    pub(crate) fn new(door: Rc<Dispatcher>, shard: Rc<OwnedShard>, key: Rc<str>, user: U) -> Self {
        let generation = door.context.generation.get();
        Self {
            dispatcher: door,
            shard,
            key,
            state: KeyState::default(),
            generation,
            stream: StreamHint::default(),
            last: Cell::new(None),
            broken: None,
            crowd: None,
            begun: None,
            held: 0,
            waiting: None,
            user,
        }
    }
}

impl ActorInstance {
    /// The messages that wait for their keys in this key's shard.
    fn backlog(&self) -> Option<&Rc<Backlog>> {
        self.dispatcher.backlogs.get(self.shard.id.shard)
    }

    /// Holds the mailbox back until `work` is done, and goes on with what came of it.
    pub(super) fn hold<T: 'static>(
        &mut self,
        ctx: &mut Ctx,
        work: impl Future<Output = T> + 'static,
        then: impl FnOnce(&mut Self, T, &mut Ctx) + 'static,
    ) {
        self.held += 1;
        ctx.wait(wrap_future::<_, Mailbox>(work).map(move |done, mailbox, ctx| {
            let mut actor = mailbox.actor();
            actor.held -= 1;
            then(&mut actor, done, ctx);
            actor.take_waiting(ctx);
        }));
    }

    /// Tries a message again after a back-off. The mailbox is open meanwhile: what has come from an actor or a log is written down
    /// and so holds nothing up; the rest waits here. The message itself is written down as well, unless a caller waits for it.
    pub(super) fn wait_out(&mut self, delivered: Delivered, wait: Duration, ctx: &mut Ctx) {
        let Delivered { delivery, permit } = delivered;
        let delivery = match self.backlog() {
            Some(backlog) => Rc::clone(backlog).keep(&self.key, delivery),
            None => delivery,
        };
        self.waiting.get_or_insert_default().in_back_off = true;
        let waits = Rc::clone(&self.dispatcher.context).pause(wait.max(MIN_WAIT));
        let again = wrap_future::<_, Mailbox>(waits).map(move |(), mailbox, ctx| {
            let mut actor = mailbox.actor();
            if let Some(waiting) = &mut actor.waiting {
                waiting.in_back_off = false;
            }
            if actor.dispatcher.context.draining.get() {
                // It stands in the log, or its caller is told that nothing was done.
                drop(permit);
                (delivery.completion)(Outcome::Stopped);
            } else {
                actor.take(Delivered { delivery, permit }, ctx);
            }
            actor.take_waiting(ctx);
        });
        ctx.spawn(again);
    }

    /// Takes what has come during a back-off, in order, as far as it can be taken now.
    fn take_waiting(&mut self, ctx: &mut Ctx) {
        while self.held == 0
            && let Some(waiting) = self.waiting.as_mut().filter(|waiting| !waiting.in_back_off)
        {
            match waiting.queue.pop_front() {
                Some(delivered) => self.take(delivered, ctx),
                None => {
                    self.waiting = None;
                    if let Some(backlog) = self.backlog() {
                        backlog.pump(&self.key);
                    }
                }
            }
        }
    }

    /// Holds the mailbox back, waits until what was appended is durable, reads the stream and rebuilds the state; then goes on.
    pub(crate) fn load(&mut self, ctx: &mut Ctx, then: impl FnOnce(&mut Self, &mut Ctx) + 'static) {
        let committed = self.committed();
        let (reader, door, key) = (self.shard.reader(), Rc::clone(&self.dispatcher), Rc::clone(&self.key));
        let loading = async move {
            committed.await?;
            let pages = reader.pages(&door.actor, &key, true).await?;
            let has_snapshot = pages.snapshot().is_some();
            match rebuilt(&door, pages).await {
                Err(StoreError::Codec(_)) if has_snapshot => {
                    // A snapshot is a cache: without it the log says everything.
                    tracing::warn!(target: TARGET, actor = %door.actor, "a snapshot cannot be used, reading the whole stream");
                    rebuilt(&door, reader.pages(&door.actor, &key, false).await?).await
                }
                rebuilt => rebuilt,
            }
        };
        let host = Rc::clone(&self.dispatcher.context);
        let loading = async move { host.guarded("load a key", loading).await };
        self.hold(ctx, loading, |this, loaded, ctx| match loaded {
            Ok(mut state) => {
                let user = state.user.take();
                this.state = state;
                // The old one is dropped: user code.
                let _ = this.dispatcher.context.user_code.call(this.dispatcher.label, || this.user.put(user));
                this.broken = None;
                this.report_long_activation();
                if let Some(backlog) = this.backlog() {
                    backlog.loaded(&this.key);
                }
                then(this, ctx);
            }
            Err(error) => this.fail_to_load(error, ctx, then),
        });
    }

    /// Remembers the error; the next message tries again.
    fn fail_to_load(&mut self, error: StoreError, ctx: &mut Ctx, then: impl FnOnce(&mut Self, &mut Ctx)) {
        if let Some(backlog) = self.backlog().filter(|_| !self.is_stopped()) {
            backlog.failed_to_load(&self.key, &error);
        }
        self.broken = Some(Box::new(error));
        then(self, ctx);
    }

    /// Ends once everything this actor has appended is durable.
    pub(crate) fn committed(&self) -> impl Future<Output = Result<(), StoreError>> + 'static {
        let receiver = self.last.get().map(|ticket| {
            let (sender, receiver) = oneshot::channel();
            self.dispatcher.context.after_ticket(ticket, move |result| {
                let _ = sender.send(result);
            });
            receiver
        });
        async move {
            match receiver {
                Some(receiver) => receiver.await.unwrap_or(Err(StoreError::Closed)),
                None => Ok(()),
            }
        }
    }

    /// Whether this actor must not take anything any more: the node stops, or commits have failed and the shard is opened anew.
    pub(crate) fn is_stopped(&self) -> bool {
        self.generation != self.dispatcher.context.generation.get() || self.dispatcher.context.stopped.get()
    }

    /// Why no turn can be taken now, if none can.
    pub(crate) fn unfit(&self) -> Option<StoreError> {
        if self.is_stopped() { Some(StoreError::Closed) } else { self.broken.as_deref().cloned() }
    }

    /// Tries to rebuild the state before it takes a message that came while it could not be rebuilt.
    fn take_after_load(&mut self, delivered: Delivered, ctx: &mut Ctx) {
        self.broken = None;
        self.load(ctx, move |this, ctx| match this.broken.as_deref().cloned() {
            None => this.take(delivered, ctx),
            Some(error) => this.take_unloaded(delivered, error, ctx),
        });
    }

    /// Decides what becomes of a message whose key cannot be loaded.
    fn take_unloaded(&mut self, delivered: Delivered, error: StoreError, ctx: &mut Ctx) {
        let Delivered { delivery, permit } = delivered;
        if self.is_stopped() {
            drop(permit);
            return (delivery.completion)(Outcome::Stopped);
        }
        // What came from an actor or a log is known by its place, and what comes behind it would hide it: it must be taken before
        // anything else of this key, however long that takes. So it waits in the log. All others are told.
        let (DedupKey::Sequence { .. }, Some(backlog)) = (&delivery.dedup_key, self.backlog()) else {
            drop(permit);
            return (delivery.completion)(Outcome::Refused(error));
        };
        let kept = Rc::clone(backlog).unloaded(&self.key, delivery, permit, &error);
        if let Err((delivery, permit)) = kept {
            self.take_later(Delivered { delivery, permit }, ctx);
        }
    }

    /// Holds the mailbox back for a while, then takes the message: the store takes nothing, so nothing can be written down.
    pub(crate) fn take_later(&mut self, delivered: Delivered, ctx: &mut Ctx) {
        let host = &self.dispatcher.context;
        if host.draining.get() {
            let Delivered { delivery, permit } = delivered;
            drop(permit);
            return (delivery.completion)(Outcome::Stopped);
        }
        let wait = host.settings.retry.all.wait(3, &host.ids).max(MIN_WAIT);
        let waits = Rc::clone(host).pause(wait);
        self.hold(ctx, waits, move |this, (), ctx| this.take(delivered, ctx));
    }

    /// Returns whether a message must be written down behind others, because it would overtake them.
    fn is_behind(&self, delivery: &Delivery) -> bool {
        let fresh = matches!(&delivery.dedup_key, DedupKey::Sequence { tracker, .. } if !tracker.is_deferred());
        let in_back_off = || self.waiting.as_ref().is_some_and(|waiting| waiting.in_back_off);
        fresh && (in_back_off() || self.backlog().is_some_and(|backlog| backlog.has(&self.key)))
    }

    /// Writes a message down: it is delivered once those before it are done.
    fn defer(&mut self, delivered: Delivered, ctx: &mut Ctx) {
        let Delivered { delivery, permit } = delivered;
        let deferred = match self.backlog() {
            Some(backlog) => Rc::clone(backlog).add(&self.key, delivery, permit),
            None => Err((delivery, permit)),
        };
        if let Err((delivery, permit)) = deferred {
            self.take_later(Delivered { delivery, permit }, ctx);
        }
    }

    /// Takes a message: settles duplicates, parks what waits behind a dead letter, and gives the rest to its turn.
    pub(crate) fn take(&mut self, delivered: Delivered, ctx: &mut Ctx) {
        if self.is_stopped() {
            (delivered.delivery.completion)(Outcome::Stopped);
            return;
        }
        if self.backlog().is_some_and(|backlog| !backlog.is_known()) {
            // The shard is being opened again.
            return self.take_later(delivered, ctx);
        }
        if self.is_behind(&delivered.delivery) {
            return self.defer(delivered, ctx);
        }
        if let Some(waiting) = self.waiting.as_mut().filter(|waiting| waiting.in_back_off) {
            return waiting.queue.push_back(delivered);
        }
        if let Action::Discard { message } = delivered.delivery.action
            && let Some(reading) = self.backlog().and_then(|backlog| backlog.waits(&self.key, message))
        {
            return self.hold(ctx, reading, move |this, found, _| {
                let discarded = match found {
                    Ok(found) => this.backlog().and_then(|backlog| {
                        backlog.discard(&this.key, message, found.as_ref().map(|(_, envelope)| envelope))
                    }),
                    Err(error) => Some(Err(Outcome::Refused(error))),
                };
                this.discarded(delivered, discarded.unwrap_or(Err(Outcome::Unhandled)));
            });
        }
        if let Some(error) = self.broken.as_deref() {
            let waits = matches!(delivered.delivery.action, Action::Timer { .. });
            if waits && self.backlog().is_some_and(|backlog| backlog.rests(&self.key)) {
                return self.take_unloaded(delivered, error.clone(), ctx);
            }
            return self.take_after_load(delivered, ctx);
        }
        let Delivered { delivery, permit } = delivered;
        let host = Rc::clone(&self.dispatcher.context);
        match &delivery.dedup_key {
            DedupKey::Sequence { source, sequence, tracker: floor } => {
                if !self.state.seen.admit_place(source, *sequence) {
                    floor.mark_known(*sequence);
                    host.counts.duplicates.one();
                    return self.settle_after_commit(
                        delivery,
                        permit,
                        Outcome::Done(bytes::Bytes::new(), Codec::Bincode),
                    );
                }
            }
            DedupKey::MessageId => {
                let id = delivery.envelope.id;
                if let Some(outcome) = host.id_expired(id) {
                    return (delivery.completion)(outcome);
                }
                match self.state.seen.admit_id(id, &host.digest(&delivery.envelope), host.oldest()) {
                    Admission::New => {
                        if let Some(outcome) = host.new_refused(&delivery.envelope) {
                            (delivery.completion)(outcome);
                            return;
                        }
                    }
                    Admission::Duplicate(reply, codec) => {
                        host.counts.duplicates.one();
                        return self.settle_after_commit(delivery, permit, replied_before(reply, codec));
                    }
                    Admission::Conflict => return (delivery.completion)(Outcome::Conflict),
                    Admission::LookUp => return self.look_up(delivery, permit, ctx),
                }
            }
            DedupKey::Internal => {}
        }
        self.begin(delivery, permit, ctx);
    }

    /// Tells that a message was deleted which waited for the key, once that is committed.
    fn discarded(&self, errand: Delivered, discarded: Result<Appended, Outcome>) {
        let Delivered { delivery, permit } = errand;
        let settle = delivery.completion;
        match discarded {
            Ok(appended) => self.dispatcher.context.after_commit(appended, move |committed| {
                drop(permit);
                settle(match committed {
                    Ok(()) => Outcome::Done(bytes::Bytes::new(), Codec::Bincode),
                    Err(error) => Outcome::Unknown(error),
                });
            }),
            Err(outcome) => {
                drop(permit);
                settle(outcome);
            }
        }
    }

    /// Runs a message that is known to be new.
    pub(crate) fn begin(&mut self, delivery: Delivery, permit: Permit, ctx: &mut Ctx) {
        match &delivery.action {
            Action::Redrive => return self.redrive(delivery, permit, ctx),
            Action::Discard { message } => {
                let message = *message;
                return self.discard(message, delivery, permit, ctx);
            }
            Action::Timer { turn } => {
                if self.state.rest.timers.get(&*timer_in(self.dispatcher.handlers.facts.domain, &delivery.envelope))
                    != Some(turn)
                {
                    // Set again or cleared since: a late timer does nothing.
                    return self.settle_after_commit(
                        delivery,
                        permit,
                        Outcome::Done(bytes::Bytes::new(), Codec::Bincode),
                    );
                }
            }
            Action::Handle | Action::React | Action::DeadLetter(_) | Action::Reply => {}
        }
        if !self.state.rest.parked.is_empty() {
            self.park(delivery, permit, ctx);
        } else if self.dispatcher.context.may_have_begun(&delivery) {
            self.attempt_again(delivery, permit, ctx);
        } else {
            self.attempt(delivery, permit, ctx);
        }
    }

    /// Asks the store for an id that memory does not know.
    fn look_up(&mut self, delivery: Delivery, permit: Permit, ctx: &mut Ctx) {
        let committed = self.committed();
        let reader = self.shard.reader();
        let (actor, key) = (self.dispatcher.actor.clone(), Rc::clone(&self.key));
        let (id, host) = (delivery.envelope.id, Rc::clone(&self.dispatcher.context));
        let looking = async move {
            committed.await?;
            let found = host.guarded("look up an id", async { reader.find_turn(&actor, &key, id).await }).await?;
            // The store may find more than is remembered.
            Ok(found.filter(|turn| id.time().is_some() || turn.time >= host.oldest()))
        };
        self.hold(ctx, looking, move |this, found: Result<_, StoreError>, ctx| match found {
            Ok(Some(turn)) => {
                let digest = this.dispatcher.context.digest(&delivery.envelope);
                if turn.digest.is_some_and(|known| digest.matches(known)) {
                    this.dispatcher.context.counts.duplicates.one();
                    (delivery.completion)(replied_before(turn.reply, turn.reply_codec));
                } else {
                    (delivery.completion)(Outcome::Conflict);
                }
            }
            Ok(None) => {
                this.state.seen.looked_up();
                match this.dispatcher.context.new_refused(&delivery.envelope) {
                    Some(outcome) => (delivery.completion)(outcome),
                    None => this.begin(delivery, permit, ctx),
                }
            }
            Err(error) => (delivery.completion)(Outcome::Refused(error)),
        });
    }

    /// Settles once everything this actor has appended is durable: the first delivery may still be on its way to the disk.
    pub(crate) fn settle_after_commit(&self, delivery: Delivery, permit: Permit, outcome: Outcome) {
        let settle = delivery.completion;
        let then = move |committed: Result<(), StoreError>| {
            // Held until now: an actor with a permit out is not put to rest, and one that is rebuilt finds what it has written.
            drop(permit);
            match committed {
                Ok(()) => settle(outcome),
                Err(error) => settle(Outcome::Unknown(error)),
            }
        };
        match self.last.get() {
            Some(ticket) => self.dispatcher.context.after_ticket(ticket, then),
            None => then(Ok(())),
        }
    }
}

/// The outcome of a duplicate: a dead letter has no reply yet.
pub(crate) fn replied_before(reply: bytes::Bytes, codec: Codec) -> Outcome {
    if reply.is_empty() {
        Outcome::DeadLetter("an earlier delivery made it a dead letter".to_owned())
    } else {
        Outcome::Done(reply, codec)
    }
}

/// So many turns are applied before other actors of the thread get their turn.
const SLICE: usize = 64;

/// The state that the turns of a stream make, page by page.
async fn rebuilt(door: &Dispatcher, mut pages: Box<dyn StreamPages>) -> Result<KeyState, StoreError> {
    let (code, label) = (&door.context.user_code, door.label);
    let panicked = |panicked: Panicked| {
        StoreError::from(CodecError::Decode { reason: format!("rebuilding the state {panicked}") })
    };
    let mut state = code.call(label, || KeyState::begin(&door.handlers, pages.snapshot())).map_err(panicked)??;
    loop {
        let page = pages.next().await?;
        if page.is_empty() {
            return Ok(state);
        }
        for (nth, slice) in page.chunks(SLICE).enumerate() {
            if nth > 0 {
                tokio::task::yield_now().await;
            }
            let applied = code.call(label, || state.go_on(&door.handlers, slice)).map_err(panicked);
            if let Err(error) = applied.and_then(|applied| applied.map_err(StoreError::from)) {
                let _ = code.call(label, move || drop(state));
                return Err(error);
            }
        }
    }
}
