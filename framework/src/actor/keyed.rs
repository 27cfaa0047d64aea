//! One live actor: takes one message after the other, in order, and is rebuilt when it must be.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Message, WrapFuture};
use send_wrapper::SendWrapper;
use tokio::sync::oneshot;

use super::door::{Permit, Run, TypeDoor};
use super::host::ShardCell;
use super::plan::Stateful;
use super::state::KeyState;
use super::turn::{Marked, panic_text};
use crate::inbox::Admission;
use crate::message::{
    Codec, CodecError, Coded, Command, Domain, Envelope, Kind, MessageId, Name, digest, digest_of, name_digest,
};
use crate::router::{Arrival, AskMeta, Delivery, Outcome, SendError, TypedReply, Work};
use crate::store::{StoreError, StreamState, Ticket};
use crate::telemetry::TARGET;

/// One live actor of a key. Its mailbox is actix's; while it loads, waits for a retry or looks something up, `Context::wait`
/// holds the mailbox back, so that the order of its messages never changes.
pub(crate) struct KeyActor<A: Stateful> {
    pub(crate) door: Rc<TypeDoor<A>>,
    pub(crate) shard: Rc<ShardCell>,
    pub(crate) key: Rc<str>,
    pub(crate) state: KeyState<A>,
    pub(crate) generation: u64,
    /// The last append that is not known to be durable.
    pub(crate) last: Cell<Option<Ticket>>,
    /// Why it could not be loaded; it answers with that and is forgotten by its door.
    pub(crate) broken: Option<Box<StoreError>>,
    /// While parked messages are redriven: the parked timers behind the one whose turn it is.
    pub(crate) parked_timers: Vec<(MessageId, Name)>,
}

/// A command on its way inside one thread.
pub(crate) struct TypedTurn<A: Stateful, C: Command> {
    pub(crate) command: C,
    pub(crate) meta: Option<Box<AskMeta>>,
    pub(crate) run: Run<A, C>,
    pub(crate) reply: oneshot::Sender<TypedReply<C>>,
    pub(crate) permit: Permit,
}

/// A message that never leaves its thread. actix wants every message to be `Send`, because an address is; the wrapper checks
/// at run time what the doors make sure of, and holds the only unsafe code that needs.
pub(crate) struct Here<T>(pub(crate) SendWrapper<T>);

impl<T> Here<T> {
    pub(crate) fn new(message: T) -> Self {
        Self(SendWrapper::new(message))
    }
}

impl<T> Message for Here<T> {
    type Result = ();
}

/// A message on its way as an envelope.
pub(crate) struct Delivered {
    pub(crate) delivery: Delivery,
    pub(crate) permit: Permit,
}

impl<A: Stateful> KeyActor<A> {
    pub(crate) fn new(door: Rc<TypeDoor<A>>, shard: Rc<ShardCell>, key: Rc<str>) -> Self {
        let generation = door.host.generation.get();
        Self {
            door,
            shard,
            key,
            state: KeyState::default(),
            generation,
            last: Cell::new(None),
            broken: None,
            parked_timers: Vec::new(),
        }
    }

    /// Holds the mailbox back, waits until what was appended is durable, reads the stream and rebuilds the state; then goes on.
    pub(crate) fn load(&mut self, ctx: &mut Context<Self>, then: impl FnOnce(&mut Self, &mut Context<Self>) + 'static) {
        let committed = self.committed();
        let reader = self.shard.reader();
        let (actor, key) = (self.door.actor.clone(), Rc::clone(&self.key));
        let loading = async move {
            committed.await?;
            reader.load(&actor, &key).await
        };
        ctx.wait(loading.into_actor(self).map(|loaded, this, ctx| this.loaded(loaded, ctx, then)));
    }

    fn loaded(
        &mut self,
        loaded: Result<StreamState, StoreError>,
        ctx: &mut Context<Self>,
        then: impl FnOnce(&mut Self, &mut Context<Self>) + 'static,
    ) {
        let stored = match loaded {
            Ok(stored) => stored,
            Err(error) => return self.fail_to_load(error, ctx, then),
        };
        match self.rebuild(&stored) {
            Ok(()) => then(self, ctx),
            Err(_) if stored.snapshot.is_some() => {
                // A snapshot is a cache: without it the log says everything.
                tracing::warn!(target: TARGET, actor = %self.door.actor, "a snapshot cannot be used, reading the whole stream");
                let reader = self.shard.reader();
                let (actor, key) = (self.door.actor.clone(), Rc::clone(&self.key));
                let reading = async move { reader.history(&actor, &key).await };
                ctx.wait(reading.into_actor(self).map(|turns, this, ctx| {
                    let turns = turns.map(|turns| StreamState { snapshot: None, turns });
                    match turns.and_then(|stored| this.rebuild(&stored)) {
                        Ok(()) => then(this, ctx),
                        Err(error) => this.fail_to_load(error, ctx, then),
                    }
                }));
            }
            Err(error) => self.fail_to_load(error, ctx, then),
        }
    }

    fn rebuild(&mut self, stored: &StreamState) -> Result<(), StoreError> {
        // A panic in a user's `apply` while the stream is read must not take the thread with it.
        let rebuilt = catch_unwind(AssertUnwindSafe(|| KeyState::rebuild(&self.door.plan, stored)));
        match rebuilt {
            Ok(state) => self.state = state?,
            Err(panic) => {
                self.door.host.counts.panics.one();
                return Err(CodecError::Decode {
                    reason: format!("applying the stream's events panicked: {}", panic_text(&panic)),
                }
                .into());
            }
        }
        self.broken = None;
        Ok(())
    }

    /// Remembers the error; the next message tries again.
    fn fail_to_load(
        &mut self,
        error: StoreError,
        ctx: &mut Context<Self>,
        then: impl FnOnce(&mut Self, &mut Context<Self>),
    ) {
        tracing::error!(target: TARGET, actor = %self.door.actor, %error, "an actor cannot be rebuilt");
        self.broken = Some(Box::new(error));
        then(self, ctx);
    }

    /// Ends once everything this actor has appended is durable.
    pub(crate) fn committed(&self) -> impl Future<Output = Result<(), StoreError>> + 'static {
        let receiver = self.last.get().map(|ticket| {
            let (sender, receiver) = oneshot::channel();
            self.door.host.after_ticket(ticket, move |result| {
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
        self.generation != self.door.host.generation.get() || self.door.host.stopped.get()
    }

    /// Why no turn can be taken now, if none can.
    pub(crate) fn unfit(&self) -> Option<StoreError> {
        if self.is_stopped() { Some(StoreError::Closed) } else { self.broken.as_deref().cloned() }
    }

    /// Tries to rebuild the state before it takes a message that came while it could not be rebuilt.
    fn take_after_load(&mut self, delivered: Delivered, ctx: &mut Context<Self>) {
        self.broken = None;
        self.load(ctx, move |this, ctx| match this.broken.as_deref().cloned() {
            None => this.take(delivered, ctx),
            Some(error) => match delivered.delivery.arrival {
                Arrival::Outside => (delivered.delivery.settle)(Outcome::Refused(error)),
                // What came from an actor or a log is known by its place, and what comes behind it would hide it: it must be
                // taken before anything else of this key, however long that takes.
                Arrival::From { .. } | Arrival::Inside => this.take_later(delivered, ctx),
            },
        });
    }

    /// Holds the mailbox back for a while, then takes the message.
    pub(crate) fn take_later(&mut self, delivered: Delivered, ctx: &mut Context<Self>) {
        let host = &self.door.host;
        let wait = tokio::time::sleep(host.settings.retry.all.wait(3, &host.ids));
        ctx.wait(wait.into_actor(self).map(move |(), this, ctx| this.take(delivered, ctx)));
    }

    /// Takes a message: settles duplicates, parks what waits behind a dead letter, and gives the rest to its turn.
    pub(crate) fn take(&mut self, delivered: Delivered, ctx: &mut Context<Self>) {
        if self.is_stopped() {
            (delivered.delivery.settle)(Outcome::Stopped);
            return;
        }
        if self.broken.is_some() {
            return self.take_after_load(delivered, ctx);
        }
        let Delivered { delivery, permit } = delivered;
        let host = Rc::clone(&self.door.host);
        match &delivery.arrival {
            Arrival::From { source, sequence, floor } => {
                if !self.state.seen.admit_place(source, *sequence) {
                    floor.appended(*sequence);
                    host.counts.duplicates.one();
                    return self.settle_after_commit(
                        delivery,
                        permit,
                        Outcome::Done(bytes::Bytes::new(), Codec::Bincode),
                    );
                }
            }
            Arrival::Outside => {
                let (id, digest) = (delivery.envelope.id, digest(&delivery.envelope.name, &delivery.envelope.payload));
                match self.state.seen.admit_id(id, digest) {
                    Admission::New => {
                        if let Some(outcome) = self.too_late(&delivery.envelope) {
                            (delivery.settle)(outcome);
                            return;
                        }
                    }
                    Admission::Duplicate(reply, codec) => {
                        host.counts.duplicates.one();
                        return self.settle_after_commit(delivery, permit, replied_before(reply, codec));
                    }
                    Admission::Conflict => return (delivery.settle)(Outcome::Conflict),
                    Admission::LookUp => return self.look_up(delivery, permit, digest, ctx),
                }
            }
            Arrival::Inside => {}
        }
        self.begin(delivery, permit, ctx);
    }

    /// Runs a message that is known to be new.
    pub(crate) fn begin(&mut self, delivery: Delivery, permit: Permit, ctx: &mut Context<Self>) {
        match &delivery.work {
            Work::Redrive => return self.redrive(delivery, permit, ctx),
            Work::Discard { message } => {
                let message = *message;
                return self.discard(message, delivery, permit);
            }
            Work::Wake { turn } => {
                if self.state.rest.timers.get(delivery.envelope.name.as_str()) != Some(turn) {
                    // Set again or cleared since: a late timer does nothing.
                    return self.settle_after_commit(
                        delivery,
                        permit,
                        Outcome::Done(bytes::Bytes::new(), Codec::Bincode),
                    );
                }
            }
            Work::Handle | Work::React | Work::Refuse(_) | Work::Reply => {}
        }
        if self.state.rest.parked.is_empty() {
            self.attempt(delivery, permit, ctx);
        } else {
            self.park(delivery, permit, ctx);
        }
    }

    fn too_late(&self, envelope: &Envelope) -> Option<Outcome> {
        let now = self.door.host.ids.clock().now();
        if envelope.id.time().is_some_and(|made| now.since(made) > self.door.host.settings.remember) {
            return Some(Outcome::Expired);
        }
        envelope.deadline.is_some_and(|deadline| now > deadline).then_some(Outcome::Late)
    }

    /// Looks into the whole log of the key for an id that memory has forgotten.
    fn look_up(&mut self, delivery: Delivery, permit: Permit, digest: u64, ctx: &mut Context<Self>) {
        let committed = self.committed();
        let reader = self.shard.reader();
        let (actor, key) = (self.door.actor.clone(), Rc::clone(&self.key));
        let id = delivery.envelope.id;
        let looking = async move {
            committed.await?;
            let turns = reader.history(&actor, &key).await?;
            Ok(turns.into_iter().rev().find(|turn| turn.id == id && turn.digest.is_some()))
        };
        ctx.wait(looking.into_actor(self).map(move |found: Result<_, StoreError>, this, ctx| match found {
            Ok(Some(turn)) if turn.digest == Some(digest) => {
                this.door.host.counts.duplicates.one();
                (delivery.settle)(replied_before(turn.reply, turn.reply_codec));
            }
            Ok(Some(_)) => (delivery.settle)(Outcome::Conflict),
            Ok(None) => {
                this.state.seen.looked_up();
                match this.too_late(&delivery.envelope) {
                    Some(outcome) => (delivery.settle)(outcome),
                    None => this.begin(delivery, permit, ctx),
                }
            }
            Err(error) => (delivery.settle)(Outcome::Refused(error)),
        }));
    }

    /// Settles once everything this actor has appended is durable: the first delivery may still be on its way to the disk.
    pub(crate) fn settle_after_commit(&self, delivery: Delivery, permit: Permit, outcome: Outcome) {
        let settle = delivery.settle;
        let then = move |committed: Result<(), StoreError>| {
            // Held until now: an actor with a permit out is not put to rest, and one that is rebuilt finds what it has written.
            drop(permit);
            match committed {
                Ok(()) => settle(outcome),
                Err(error) => settle(Outcome::Unknown(error)),
            }
        };
        match self.last.get() {
            Some(ticket) => self.door.host.after_ticket(ticket, then),
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

impl<A: Stateful> Actor for KeyActor<A> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.load(ctx, |_, _| {});
    }
}

impl<A: Stateful> Handler<Here<Delivered>> for KeyActor<A> {
    type Result = ();

    fn handle(&mut self, delivered: Here<Delivered>, ctx: &mut Self::Context) {
        self.take(delivered.0.take(), ctx);
    }
}

impl<A: Stateful, C: Command> Handler<Here<TypedTurn<A, C>>> for KeyActor<A> {
    type Result = ();

    fn handle(&mut self, typed: Here<TypedTurn<A, C>>, ctx: &mut Self::Context) {
        let TypedTurn { command, meta, run, reply, permit } = typed.0.take();
        let host = Rc::clone(&self.door.host);
        let now = host.ids.clock().now();
        let given = meta.as_ref().and_then(|meta| meta.id);
        let id = given.unwrap_or_else(|| host.ids.message_id_at(now));

        // The payload's bytes are needed for the digest, and for the dead letter if it comes to that.
        let mut payload = host.scratch.take();
        payload.clear();
        // It is the user's code: a panic must cost this one command and not the actor.
        let encoded = catch_unwind(AssertUnwindSafe(|| command.encode(<C::Domain as Domain>::CODEC, &mut payload)));
        let encoded = encoded.unwrap_or_else(|panic| {
            host.counts.panics.one();
            Err(CodecError::Encode { reason: format!("panicked: {}", panic_text(&panic)) })
        });
        if let Err(error) = encoded {
            host.scratch.replace(payload);
            let _ = reply.send(Err(SendError::Encode(error)));
            return;
        }

        // The straight way: a live, unparked actor and an id nobody can have used before.
        if given.is_none() && self.state.rest.parked.is_empty() && self.broken.is_none() && !self.is_stopped() {
            let facts = super::effects::TurnFacts {
                id,
                correlation: meta.as_ref().and_then(|meta| meta.correlation).unwrap_or(id),
                traceparent: meta.as_ref().and_then(|meta| meta.traceparent.clone()),
                time: now,
                key: Rc::clone(&self.key),
            };
            let _span = tracing::debug_span!(target: TARGET, "turn", room = "actor", message = C::NAME, %id, correlation = %facts.correlation).entered();
            let marked = Marked::Outside { digest: digest_of(const { name_digest(C::NAME) }, &payload) };
            let mut outcome = None;
            let turned = self.turn(facts, &marked, Vec::new(), false, |state, effects| {
                let reply = run(&state.user, command, effects);
                effects.replied::<C>(&reply);
                outcome = Some(reply);
                Ok(())
            });
            match (turned, outcome) {
                (Ok(turned), Some(outcome)) => {
                    host.scratch.replace(payload);
                    host.after(turned.appended, move |committed| {
                        drop(permit);
                        drop(reply.send(match committed {
                            Ok(()) => outcome.map_err(SendError::Rejected),
                            Err(source) => Err(SendError::Unknown { id, source }),
                        }));
                    });
                }
                (Err(failure), _) => {
                    let envelope = self.enveloped::<C>(id, meta, now, &payload);
                    host.scratch.replace(payload);
                    self.failed(delivery::<C>(envelope, reply), permit, failure, ctx);
                }
                (Ok(_), None) => host.scratch.replace(payload).clear(),
            }
            return;
        }
        let envelope = self.enveloped::<C>(id, meta, now, &payload);
        host.scratch.replace(payload);
        self.take(Delivered { delivery: delivery::<C>(envelope, reply), permit }, ctx);
    }
}

impl<A: Stateful> KeyActor<A> {
    fn enveloped<C: Command>(
        &self,
        id: MessageId,
        meta: Option<Box<AskMeta>>,
        now: crate::clock::Timestamp,
        payload: &[u8],
    ) -> Envelope {
        let meta = *meta.unwrap_or_default();
        let name = Name::from_static(C::NAME).unwrap_or_else(|_| self.door.actor.clone());
        Envelope {
            version: C::VERSION,
            to: Some(self.shard.id.clone()),
            key: self.key.to_string(),
            correlation: meta.correlation.unwrap_or(id),
            traceparent: meta.traceparent.map(String::from),
            codec: <C::Domain as Domain>::CODEC,
            payload: bytes::Bytes::copy_from_slice(payload),
            ..Envelope::new(id, Kind::Command, self.door.domain.clone(), name, now)
        }
    }
}

/// A typed command as a delivery, for the ways on which its bytes are needed.
fn delivery<C: Command>(envelope: Envelope, reply: oneshot::Sender<TypedReply<C>>) -> Delivery {
    let id = envelope.id;
    Delivery {
        work: Work::Handle,
        envelope,
        arrival: Arrival::Outside,
        settle: Box::new(move |outcome| {
            let _ = reply.send(typed_reply::<C>(id, outcome));
        }),
    }
}

/// What the sender of a command is told about an outcome.
pub(crate) fn typed_reply<C: Command>(id: MessageId, outcome: Outcome) -> TypedReply<C> {
    match SendError::of(outcome, C::Domain::NAME, C::NAME, id) {
        Ok((bytes, codec)) => match C::Reply::read_reply(codec, &bytes) {
            Ok(reply) => reply.map_err(SendError::Rejected),
            Err(error) => Err(SendError::Reply(error)),
        },
        Err(error) => Err(error),
    }
}
