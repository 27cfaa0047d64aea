//! One live actor: handles one message after the other, in order, and is rebuilt after a failure.
//!
//! Called by the [mailbox](super::mailbox). Calls the [turn](super::turn), [retries](super::retry), [dead
//! letters](super::dead_letters) and [backlog](super::backlog). [Loading](super::loading) rebuilds its state.
//!
//! Why the order holds: a load or a lookup [holds](ActorInstance::hold) the mailbox. A back-off may last minutes, so the
//! mailbox stays open. Messages with a sequence then go to the durable backlog, and the others wait in [`BackOffQueue`](super::back_off::BackOffQueue). A
//! later sequence handled first would make the waiting message a duplicate.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use actix::AsyncContext;
use actix::fut::{ActorFutureExt, wrap_future};
use tokio::sync::oneshot;

use super::backlog::{Backlog, MIN_WAIT, is_fresh};
use super::live_actor::{ActorInstance, Ctx, Delivered, Mailbox, Permit};
use super::timer_name::timer_in;
use crate::inbox::Admission;
use crate::router::{Action, DedupKey, Delivery, Outcome};
use whizbang_core::message::{Codec, MessageId};
use whizbang_core::store::{Appended, StoreError};

impl ActorInstance {
    /// Returns the backlog of this key's shard, unless the shard was closed.
    pub(super) fn backlog(&self) -> Option<Rc<Backlog>> {
        self.dispatcher.backlogs.get(self.shard.id.shard).filter(|backlog| Rc::ptr_eq(&backlog.shard, &self.shard))
    }

    /// Holds the mailbox until `work` is done, then calls `then` with its result.
    pub(super) fn hold<T: 'static>(
        &mut self,
        ctx: &mut Ctx,
        work: impl Future<Output = T> + 'static,
        then: impl FnOnce(&mut Self, T, &mut Ctx) + 'static,
    ) {
        self.holds += 1;
        ctx.wait(wrap_future::<_, Mailbox>(work).map(move |done, mailbox, ctx| {
            let mut actor = mailbox.actor();
            actor.holds -= 1;
            then(&mut actor, done, ctx);
            actor.drain_back_off(ctx);
        }));
    }

    /// Retries a message after a back-off, during which the mailbox stays open. Messages with a sequence are written to the
    /// backlog, so they block no sender; the others wait here. The message itself is written to the backlog as well, unless a
    /// caller waits for it.
    pub(super) fn retry_after(&mut self, delivered: Delivered, wait: Duration, ctx: &mut Ctx) {
        let Delivered { delivery, permit } = delivered;
        let delivery = match self.backlog() {
            Some(backlog) => {
                let (delivery, deferred) = backlog.defer_current(&self.key, delivery);
                match deferred {
                    Ok(()) => self.deferral_accepted(),
                    Err(error) => self.count_refused_deferral(&error),
                }
                delivery
            }
            None => delivery,
        };
        let waiting = self.back_off.get_or_insert_default();
        (waiting.is_active, waiting.is_unrecorded) = (true, is_fresh(&delivery));
        let waits =
            Rc::clone(&self.dispatcher.context).sleep_unless_closing(Rc::clone(&self.shard), wait.max(MIN_WAIT));
        let again = wrap_future::<_, Mailbox>(waits).map(move |(), mailbox, ctx| {
            let mut actor = mailbox.actor();
            if let Some(waiting) = &mut actor.back_off {
                waiting.is_active = false;
            }
            if actor.dispatcher.context.is_closing(&actor.shard) {
                // It is in the log, or its caller learns that nothing was done.
                actor.give_up(Delivered { delivery, permit });
            } else {
                actor.handle_in_order(Delivered { delivery, permit }, true, ctx);
            }
            actor.drain_back_off(ctx);
        });
        ctx.spawn(again);
    }

    /// Handles the messages that arrived during a back-off, in order, until one of them holds the mailbox.
    fn drain_back_off(&mut self, ctx: &mut Ctx) {
        while self.holds == 0
            && let Some(waiting) = self.back_off.as_mut().filter(|waiting| !waiting.is_active)
        {
            if let Some(delivered) = waiting.next_unrecorded() {
                self.handle_in_order(delivered, true, ctx);
                continue;
            }
            match waiting.next() {
                Some(delivered) => self.handle(delivered, ctx),
                // The timer continues, or the shard closes.
                None if waiting.blocks_sequences() => return,
                None => {
                    self.back_off = None;
                    if let Some(backlog) = self.backlog() {
                        backlog.deliver_next(&self.key);
                    }
                }
            }
        }
    }

    /// Completes once every append of this actor is durable.
    pub(crate) fn all_committed(&self) -> impl Future<Output = Result<(), StoreError>> + 'static {
        let receiver = self.last_append.get().map(|ticket| {
            let (sender, receiver) = oneshot::channel();
            self.dispatcher.context.after_ticket(&self.shard, ticket, move |result| {
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

    /// Returns whether this actor must not handle anything: the node stops, the shard is reopened after a failure, or lost.
    pub(crate) fn is_stopped(&self) -> bool {
        self.generation != self.shard.generation.get() || self.dispatcher.context.stopped.get()
    }

    /// Returns why no turn can run, if none can.
    pub(crate) fn unavailable(&self) -> Option<StoreError> {
        if self.is_stopped() { Some(StoreError::Closed) } else { self.load_error.as_deref().cloned() }
    }

    /// Holds the mailbox for a while, then handles the message: the shard is being reopened.
    pub(crate) fn handle_later(&mut self, delivered: Delivered, ctx: &mut Ctx) {
        let context = &self.dispatcher.context;
        if context.is_closing(&self.shard) {
            return self.give_up(delivered);
        }
        let wait = context.settings.retry.all.wait(3, &context.ids).max(MIN_WAIT);
        let waits = Rc::clone(context).sleep_unless_closing(Rc::clone(&self.shard), wait);
        self.hold(ctx, waits, move |this, (), ctx| this.handle_in_order(delivered, true, ctx));
    }

    /// Keeps a message that the backlog does not accept in memory, before all later ones of this key, and tries again after a while.
    /// The mailbox stays open: the messages before it arrive there, or are retried by a task of the actor.
    fn keep_unrecorded(&mut self, mut delivered: Delivered, ctx: &mut Ctx) {
        let context = Rc::clone(&self.dispatcher.context);
        if context.is_closing(&self.shard) {
            return self.give_up(delivered);
        }
        // It uses no capacity for turns while it waits, and a node that stops does not wait for it.
        delivered.permit.wait_unrecorded();
        let waiting = self.back_off.get_or_insert_default();
        waiting.return_unrecorded(delivered);
        if waiting.is_retrying {
            return;
        }
        waiting.is_retrying = true;
        let wait = context.settings.retry.all.wait(3, &context.ids).max(MIN_WAIT);
        let waits = context.sleep_unless_closing(Rc::clone(&self.shard), wait);
        ctx.spawn(wrap_future::<_, Mailbox>(waits).map(|(), mailbox, ctx| {
            let mut actor = mailbox.actor();
            if let Some(waiting) = &mut actor.back_off {
                waiting.is_retrying = false;
            }
            actor.drain_back_off(ctx);
        }));
    }

    /// Gives a message back to its sender, because the shard closes. If it is not in the log, later messages with a sequence
    /// are given back as well.
    fn give_up(&mut self, delivered: Delivered) {
        let is_fresh = is_fresh(&delivered.delivery);
        let mut returned = VecDeque::from([delivered]);
        if is_fresh {
            let waiting = self.back_off.get_or_insert_default();
            waiting.has_given_up = true;
            returned.append(&mut waiting.take_unrecorded());
        }
        for Delivered { delivery, permit } in returned {
            drop(permit);
            (delivery.completion)(self.shard.stopped_outcome());
        }
    }

    /// Takes the messages that wait in memory for the store: the actor ends.
    pub(super) fn take_waiting(&mut self) -> VecDeque<Delivered> {
        self.back_off.as_mut().map_or_else(VecDeque::new, |back_off| back_off.take_unrecorded())
    }

    /// Returns whether a message must wait in memory, because one before it is not in the log.
    fn must_wait(&self, delivery: &Delivery) -> bool {
        self.back_off.as_ref().is_some_and(|waiting| waiting.blocks_sequences()) && is_fresh(delivery)
    }

    /// Returns whether a message must be deferred behind others, because it would overtake them.
    fn must_defer(&self, delivery: &Delivery) -> bool {
        let fresh = is_fresh(delivery);
        let in_back_off = || self.back_off.as_ref().is_some_and(|waiting| waiting.is_active);
        fresh && (in_back_off() || self.backlog().is_some_and(|backlog| backlog.has(&self.key)))
    }

    /// Writes a message to the backlog. It is delivered after those before it.
    pub(super) fn defer(&mut self, delivered: Delivered, ctx: &mut Ctx) {
        let Delivered { delivery, permit } = delivered;
        let deferred = match self.backlog() {
            Some(backlog) => backlog.defer(&self.key, delivery, permit),
            None => Err((delivery, permit, StoreError::Closed)),
        };
        self.settle_deferral(deferred, ctx);
    }

    /// Keeps a message in memory that could not be written to the backlog.
    pub(super) fn settle_deferral(&mut self, deferred: Result<(), (Delivery, Permit, StoreError)>, ctx: &mut Ctx) {
        match deferred {
            Ok(()) => self.deferral_accepted(),
            Err((delivery, permit, error)) => {
                self.count_refused_deferral(&error);
                self.keep_unrecorded(Delivered { delivery, permit }, ctx);
            }
        }
    }

    /// Ends the series of refused deferrals. It does not end that of refused turns: the store may refuse the key's own stream alone.
    fn deferral_accepted(&mut self) {
        if let Some(waiting) = &mut self.back_off {
            waiting.unrecordable.served();
        }
    }

    /// Counts a refused deferral for this key. Its turns do not end the series, because records of attempts may be accepted.
    fn count_refused_deferral(&mut self, error: &StoreError) {
        let Self { dispatcher, shard, key, back_off, .. } = self;
        let (actor, shard) = (&dispatcher.actor, &shard.id);
        back_off.get_or_insert_default().unrecordable.refused(
            &dispatcher.context,
            error,
            || format!("{shard}/{actor}/{key} deferred"),
            || format!("deferred messages of key `{}` of `{actor}` in {shard}", key.escape_debug()),
        );
    }

    /// Counts a refused turn for this key.
    pub(super) fn count_refused_turn(&mut self, error: &StoreError) {
        let Self { dispatcher, shard, key, stuck, .. } = self;
        let (actor, shard) = (&dispatcher.actor, &shard.id);
        stuck.refused(
            &dispatcher.context,
            error,
            || format!("{shard}/{actor}/{key}"),
            || format!("turns of key `{}` of `{actor}` in {shard}", key.escape_debug()),
        );
    }

    /// Handles a message: answers duplicates, parks messages behind a dead letter, and runs the turns of the others.
    pub(crate) fn handle(&mut self, delivered: Delivered, ctx: &mut Ctx) {
        self.handle_in_order(delivered, false, ctx);
    }

    /// Handles a message. `is_first` if it precedes all that wait in memory.
    pub(super) fn handle_in_order(&mut self, mut delivered: Delivered, is_first: bool, ctx: &mut Ctx) {
        if self.is_stopped() {
            return (delivered.delivery.completion)(self.shard.stopped_outcome());
        }
        if delivered.delivery.action == Action::Answer {
            return self.answer(delivered, ctx);
        }
        if !is_first && self.must_wait(&delivered.delivery) {
            if self.dispatcher.context.is_closing(&self.shard) {
                return self.give_up(delivered);
            }
            delivered.permit.wait_unrecorded();
            return self.back_off.get_or_insert_default().push_unrecorded(delivered);
        }
        if self.backlog().is_some_and(|backlog| !backlog.is_loaded()) {
            // The shard is being reopened.
            return self.handle_later(delivered, ctx);
        }
        if self.must_defer(&delivered.delivery) {
            return self.defer(delivered, ctx);
        }
        if let Some(waiting) = self.back_off.as_mut().filter(|waiting| waiting.is_active) {
            return waiting.push(delivered);
        }
        if let Action::Discard { message } = delivered.delivery.action
            && let Some(reading) = self.backlog().and_then(|backlog| backlog.find(&self.key, message))
        {
            return self.hold(ctx, reading, move |this, found, ctx| {
                this.discard_deferred(message, found, delivered, ctx);
            });
        }
        if let Some(error) = self.load_error.as_deref() {
            let waits = matches!(delivered.delivery.action, Action::Timer { .. });
            if waits && self.backlog().is_some_and(|backlog| backlog.rests(&self.key)) {
                return self.handle_unloadable(delivered, error.clone(), ctx);
            }
            return self.handle_after_load(delivered, ctx);
        }
        let Delivered { delivery, permit } = delivered;
        let context = Rc::clone(&self.dispatcher.context);
        match &delivery.dedup_key {
            DedupKey::Sequence { source, sequence, tracker } => {
                if !self.state.dedup.admit_sequence(source, *sequence) {
                    tracker.mark_known(*sequence);
                    context.counts.duplicates.one();
                    return self.complete_after_commit(
                        delivery,
                        permit,
                        Outcome::Done(bytes::Bytes::new(), Codec::Bincode),
                    );
                }
            }
            DedupKey::MessageId => {
                let id = delivery.envelope.id;
                if let Some(outcome) = context.refuse_expired_id(id) {
                    return (delivery.completion)(outcome);
                }
                match self.state.dedup.admit_id(id, &context.digest(&delivery.envelope), context.dedup_horizon()) {
                    Admission::New => {
                        if let Some(outcome) = context.refuse_new(&delivery.envelope) {
                            (delivery.completion)(outcome);
                            return;
                        }
                    }
                    Admission::Duplicate(reply, codec) => {
                        context.counts.duplicates.one();
                        return self.complete_after_commit(delivery, permit, duplicate_outcome(reply, codec));
                    }
                    Admission::Conflict => return (delivery.completion)(Outcome::Conflict),
                    Admission::LookUp => return self.look_up(delivery, permit, ctx),
                }
            }
            DedupKey::Internal => {}
        }
        self.run(delivery, permit, ctx);
    }

    /// Runs a message that is known to be new.
    pub(crate) fn run(&mut self, delivery: Delivery, permit: Permit, ctx: &mut Ctx) {
        match &delivery.action {
            Action::Redrive => return self.redrive(delivery, permit, ctx),
            Action::Discard { message } => {
                let message = *message;
                return self.discard(message, delivery, permit, ctx);
            }
            Action::Timer { turn } => {
                if self.state.rare.timers.get(&*timer_in(self.dispatcher.handlers.facts.domain, &delivery.envelope))
                    != Some(turn)
                {
                    // Set again or cleared since: a late timer does nothing.
                    return self.complete_after_commit(
                        delivery,
                        permit,
                        Outcome::Done(bytes::Bytes::new(), Codec::Bincode),
                    );
                }
            }
            Action::Handle | Action::Answer | Action::React | Action::DeadLetter(_) | Action::Reply => {}
        }
        if !self.state.rare.parked.is_empty() {
            self.park(delivery, permit, ctx);
        } else if self.dispatcher.context.may_have_begun(&delivery) {
            self.attempt_recorded(delivery, permit, ctx);
        } else {
            self.attempt(delivery, permit, ctx);
        }
    }

    /// Remembers an id without a time until its turn is durable.
    pub(super) fn keep_uncommitted(&mut self, id: MessageId, appended: Appended) {
        self.drop_committed_ids();
        if !appended.committed {
            self.uncommitted_ids.get_or_insert_default().push_back((appended.ticket, id));
        }
    }

    fn drop_committed_ids(&mut self) {
        let Some(ids) = &mut self.uncommitted_ids else { return };
        let (through, _) = self.dispatcher.context.commits.committed_so_far();
        while ids.pop_front_if(|(ticket, _)| *ticket <= through).is_some() {}
        if ids.is_empty() {
            self.uncommitted_ids = None;
        }
    }

    /// Returns whether the turn that handled an id may be appended and not durable. The store does not find it then. Of ids with a
    /// time only those are known that are in memory: few are looked up.
    fn may_be_uncommitted(&mut self, id: MessageId) -> bool {
        self.drop_committed_ids();
        id.time().is_some() || self.uncommitted_ids.iter().flat_map(|ids| ids.iter()).any(|(_, known)| *known == id)
    }

    /// Looks up an id in the store that is not in memory. It waits for the commits of the key only if one of them may be of this
    /// id: a key whose callers use idempotency keys would have one turn per flush otherwise.
    fn look_up(&mut self, delivery: Delivery, permit: Permit, ctx: &mut Ctx) {
        let committed = self.may_be_uncommitted(delivery.envelope.id).then(|| self.all_committed());
        let reader = self.shard.reader();
        let (actor, key) = (self.dispatcher.actor.clone(), Rc::clone(&self.key));
        let (id, context) = (delivery.envelope.id, Rc::clone(&self.dispatcher.context));
        let looking = async move {
            if let Some(committed) = committed {
                committed.await?;
            }
            let found = context.call_store("look up an id", async { reader.find_turn(&actor, &key, id).await }).await?;
            // The store may find older turns than are remembered.
            Ok(found.filter(|turn| id.time().is_some() || turn.time >= context.dedup_horizon()))
        };
        self.hold(ctx, looking, move |this, found: Result<_, StoreError>, ctx| match found {
            Ok(Some(turn)) => {
                let digest = this.dispatcher.context.digest(&delivery.envelope);
                if turn.digest.is_some_and(|known| digest.matches(known)) {
                    this.dispatcher.context.counts.duplicates.one();
                    (delivery.completion)(duplicate_outcome(turn.reply, turn.reply_codec));
                } else {
                    (delivery.completion)(Outcome::Conflict);
                }
            }
            Ok(None) => {
                this.state.dedup.grow();
                match this.dispatcher.context.refuse_new(&delivery.envelope) {
                    Some(outcome) => (delivery.completion)(outcome),
                    None => this.run(delivery, permit, ctx),
                }
            }
            Err(error) => (delivery.completion)(Outcome::Refused(error)),
        });
    }

    /// Completes a delivery once every append of this actor is durable, which may include that of its first delivery.
    pub(crate) fn complete_after_commit(&self, delivery: Delivery, permit: Permit, outcome: Outcome) {
        let completion = delivery.completion;
        let then = move |committed: Result<(), StoreError>| {
            // Held until now: an actor with a permit is not passivated, so a rebuilt one finds its own appends.
            drop(permit);
            match committed {
                Ok(()) => completion(outcome),
                Err(error) => completion(Outcome::Unknown(error)),
            }
        };
        match self.last_append.get() {
            Some(ticket) => self.dispatcher.context.after_ticket(&self.shard, ticket, then),
            None => then(Ok(())),
        }
    }
}

/// Returns the outcome of a duplicate. A dead letter has no reply yet.
pub(crate) fn duplicate_outcome(reply: bytes::Bytes, codec: Codec) -> Outcome {
    if reply.is_empty() {
        Outcome::DeadLetter("an earlier delivery became a dead letter".to_owned())
    } else {
        Outcome::Done(reply, codec)
    }
}
