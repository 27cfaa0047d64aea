//! The straight way of a command inside one thread: from its sender into the turn, without an envelope.
//!
//! Called by the [door](super::door), if nothing is before the command, and else by the [mailbox](super::mailbox). It is for
//! a new command to a live actor that has nothing to mend. All others become envelopes, and go the way of [`KeyActor::take`].

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::door::Run;
use super::effects::TurnFacts;
use super::host::Host;
use super::keyed::KeyActor;
use super::mailbox::{Ctx, Delivered, TypedTurn};
use super::plan::Stateful;
use super::turn::{Failure, Marked};
use crate::clock::Timestamp;
use crate::message::{
    CodecError, Coded as _, Command, Digest, Domain, Envelope, Kind, MessageId, Name, Rejection, settle_command,
};
use crate::router::{Arrival, AskMeta, Delivery, Outcome, SendError, TypedReply, Work};
use crate::store::{StoreError, Ticket};
use crate::telemetry::TARGET;
use crate::user_code::Label;

/// While it lives no other turn is taken outside the mailboxes.
pub(super) struct Straight<'a>(&'a Cell<bool>);

impl<'a> Straight<'a> {
    pub(super) fn close(straight: &'a Cell<bool>) -> Self {
        straight.set(true);
        Self(straight)
    }
}

impl Drop for Straight<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// What has become of a command on the straight way.
pub(crate) enum Taken<C: Command> {
    /// The sender can be told.
    Told(TypedReply<C>),
    /// The sender can be told once it is committed.
    Appended(Appended<C>),
    /// The turn has failed: something has to be done about it.
    Failed(Box<(Envelope, Failure)>),
}

/// A command whose turn is appended and not yet committed.
pub(crate) struct Appended<C: Command> {
    pub(crate) ticket: Ticket,
    id: MessageId,
    reply: Result<C::Reply, Rejection>,
}

impl<C: Command> Appended<C> {
    /// What the sender is told.
    pub(crate) fn told(self, committed: Result<(), StoreError>) -> TypedReply<C> {
        match committed {
            Ok(()) => self.reply.map_err(SendError::Rejected),
            Err(source) => Err(SendError::Unknown { id: self.id, source }),
        }
    }
}

impl<A: Stateful> KeyActor<A> {
    /// Whether a command may go straight into its turn: nobody can have used its id before, and the actor is live and well.
    pub(crate) fn is_straight(&self, meta: Option<&AskMeta>) -> bool {
        meta.is_none_or(|meta| meta.id.is_none())
            && self.held == 0
            && self.waiting.is_none()
            && self.broken.is_none()
            && self.state.rest.parked.is_empty()
            && !self.is_stopped()
    }

    /// Takes the turn of a command for which the way [is straight](Self::is_straight).
    pub(crate) fn straight<C: Command>(
        &mut self,
        command: C,
        meta: Option<Box<AskMeta>>,
        run: Run<A, C>,
        label: Label,
    ) -> Taken<C> {
        let (command, payload) = match self.written(command) {
            Ok(written) => written,
            Err(error) => return Taken::Told(Err(SendError::Encode(error))),
        };
        let host = Rc::clone(&self.door.host);
        let now = host.ids.clock().now();
        let id = host.ids.message_id_at(now);
        let facts = TurnFacts {
            id,
            correlation: meta.as_ref().and_then(|meta| meta.correlation).unwrap_or(id),
            traceparent: meta.as_ref().and_then(|meta| meta.traceparent.clone()),
            time: now,
            key: Rc::clone(&self.key),
        };
        let _span = tracing::debug_span!(target: TARGET, "turn", room = "actor", message = C::NAME, %id, correlation = %facts.correlation).entered();
        let key = host.settings.digest_key;
        let digest = Digest::new(key, C::NAME, C::VERSION, <C::Domain as Domain>::CODEC, &payload);
        let marked = Marked::Outside { digest: digest.value() };
        let mut reply = None;
        let (code, door) = (&host.code, Rc::clone(&self.door));
        let turned = self.turn(facts, &marked, Vec::new(), false, |state, effects| {
            code.relabel(label);
            let mut decided = run(state.user()?, command, effects);
            if decided.is_ok() && door.is_too_late(state, None, effects) {
                decided = Err(Rejection::saga_ended());
            }
            reply = effects.replied::<C>(decided);
            Ok(())
        });
        let taken = match (turned, reply) {
            (Ok(turned), Some(reply)) => {
                let appended = Appended { ticket: turned.appended.ticket, id, reply };
                if Host::is_settled(&turned.appended) {
                    Taken::Told(appended.told(Ok(())))
                } else {
                    Taken::Appended(appended)
                }
            }
            (Ok(_), None) => Taken::Told(Err(SendError::Stopped)),
            (Err(failure), _) => Taken::Failed(Box::new((self.enveloped::<C>(id, meta, now, &payload), failure))),
        };
        host.scratch.replace(payload);
        taken
    }

    /// Takes a command out of the mailbox.
    pub(crate) fn take_typed<C: Command>(&mut self, turn: TypedTurn<A, C>, ctx: &mut Ctx<A>) {
        let TypedTurn { command, meta, run, label, reply, permit } = turn;
        if self.is_straight(meta.as_deref()) {
            match self.straight(command, meta, run, label) {
                Taken::Told(told) => {
                    drop(permit);
                    let _ = reply.send(told);
                }
                Taken::Appended(appended) => self.door.host.after_ticket(appended.ticket, move |committed| {
                    drop(permit);
                    let _ = reply.send(appended.told(committed));
                }),
                Taken::Failed(failed) => {
                    let (envelope, failure) = *failed;
                    self.failed(delivery::<C>(envelope, reply), permit, failure, ctx);
                }
            }
            return;
        }
        let payload = match self.written(command) {
            Ok((_, payload)) => payload,
            Err(error) => {
                drop(permit);
                let _ = reply.send(Err(SendError::Encode(error)));
                return;
            }
        };
        let host = Rc::clone(&self.door.host);
        let now = host.ids.clock().now();
        let given = meta.as_ref().and_then(|meta| meta.id);
        let id = given.unwrap_or_else(|| host.ids.message_id_at(now));
        let envelope = self.enveloped::<C>(id, meta, now, &payload);
        host.scratch.replace(payload);
        self.take(Delivered { delivery: delivery::<C>(envelope, reply), permit }, ctx);
    }

    /// The command as it reads from its bytes, and those bytes in a buffer to be given back: they are needed for the digest, and
    /// for the dead letter if it comes to that. The handler gets what it would get from another thread or node.
    fn written<C: Command>(&self, command: C) -> Result<(C, Vec<u8>), CodecError> {
        let host = &self.door.host;
        let mut payload = host.scratch.take();
        payload.clear();
        let encoded =
            host.code.call(self.door.label, || settle_command(&command, <C::Domain as Domain>::CODEC, &mut payload));
        let encoded = encoded.unwrap_or_else(|panicked| Err(CodecError::Encode { reason: panicked.to_string() }));
        match encoded {
            Ok(read) => Ok((read.unwrap_or(command), payload)),
            Err(error) => {
                host.scratch.replace(payload);
                Err(error)
            }
        }
    }

    fn enveloped<C: Command>(
        &self,
        id: MessageId,
        meta: Option<Box<AskMeta>>,
        now: Timestamp,
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
            payload: Bytes::copy_from_slice(payload),
            ..Envelope::new(id, Kind::Command, self.door.domain.clone(), name, now)
        }
    }
}

/// A typed command as a delivery, for the ways on which its bytes are needed.
pub(super) fn delivery<C: Command>(envelope: Envelope, reply: oneshot::Sender<TypedReply<C>>) -> Delivery {
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
fn typed_reply<C: Command>(id: MessageId, outcome: Outcome) -> TypedReply<C> {
    match SendError::of(outcome, C::Domain::NAME, C::NAME, id) {
        Ok((bytes, codec)) => match C::Reply::read_reply(codec, &bytes) {
            Ok(reply) => reply.map_err(SendError::Rejected),
            Err(error) => Err(SendError::Reply(error)),
        },
        Err(error) => Err(error),
    }
}
