//! The straight way of a command inside one thread: from its sender into the turn, without an envelope.
//!
//! Called by the [door](super::dispatcher), if nothing is before the command, and else by the [mailbox](super::mailbox). It is for
//! a new command to a live actor that has nothing to mend. All others become envelopes, and go the way of [`ActorInstance::take`].

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;

use super::handler_table::UserState;
use super::instance::ActorInstance;
use super::mailbox::{Ctx, Delivered, TypedMail};
use super::requested::{AnyEffects, RequestedEffects, TurnFacts};
use super::thread::ThreadContext;
use super::turn::{Failure, Marked};
use crate::clock::Timestamp;
use crate::message::{CodecError, Digest, Envelope, Key, Kind, MessageFacts, MessageId, Name, Rejection};
use crate::router::{Action, CommandMeta, DedupKey, Delivery, Outcome, SendError};
use crate::store::{StoreError, Ticket};
use crate::telemetry::TARGET;
use crate::user_code::Label;

/// A command on its way inside one thread, and its sender: what of the way depends on the command's type. The way itself is
/// compiled once.
pub(super) trait TypedCommand {
    fn facts(&self) -> MessageFacts;

    fn key(&self) -> Key<'_>;

    /// Appends the command's bytes to `into`; from now on it is the command as it reads from them. User code.
    ///
    /// # Errors
    /// It cannot be written and read back.
    fn settle(&mut self, into: &mut Vec<u8>) -> Result<(), CodecError>;

    /// Lets the handler decide. User code.
    ///
    /// # Errors
    /// State or effects are of another actor type.
    fn handle(&mut self, state: &dyn UserState, effects: &mut dyn AnyEffects) -> Result<(), CodecError>;

    /// Returns whether the handler has rejected it.
    fn is_rejected(&self) -> bool;

    /// Rejects the command, whatever its handler has said.
    fn reject(&mut self, rejection: Rejection);

    /// Notes what the handler has said in the turn. User code.
    fn reply(&mut self, requested: &mut RequestedEffects);

    /// Drops the command and what its handler has said: from now on only the sender is needed.
    fn forget(&mut self);

    /// Tells the sender: what the handler has said, or the error.
    fn tell(self: Box<Self>, told: Result<(), SendError>);

    /// Tells the sender what has become of the command's envelope.
    fn tell_outcome(self: Box<Self>, id: MessageId, outcome: Outcome);
}

/// While it lives no other turn is taken outside the mailboxes.
pub(super) struct InlineGuard<'a>(&'a Cell<bool>);

impl<'a> InlineGuard<'a> {
    pub(super) fn close(straight: &'a Cell<bool>) -> Self {
        straight.set(true);
        Self(straight)
    }
}

impl Drop for InlineGuard<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// What has become of a command on the straight way.
pub(super) enum InlineOutcome {
    /// The sender can be told.
    Told(Result<(), SendError>),
    /// The sender can be told once it is committed.
    Appended(Appended),
    /// The turn has failed: something has to be done about it.
    Failed(Box<(Envelope, Failure)>),
}

/// A turn that is appended and not yet committed.
pub(super) struct Appended {
    pub(super) ticket: Ticket,
    id: MessageId,
}

impl Appended {
    /// What the sender is told.
    pub(super) fn told(&self, committed: Result<(), StoreError>) -> Result<(), SendError> {
        committed.map_err(|source| SendError::Unknown { id: self.id, source })
    }
}

impl ActorInstance {
    /// Whether a command may go straight into its turn: nobody can have used its id before, and the actor is live and well.
    pub(crate) fn may_run_inline(&self, meta: Option<&CommandMeta>) -> bool {
        meta.is_none_or(|meta| meta.id.is_none())
            && self.held == 0
            && self.waiting.is_none()
            && self.broken.is_none()
            && self.state.rest.parked.is_empty()
            && !self.is_stopped()
    }

    /// Takes the turn of a command for which the way [is straight](Self::may_run_inline).
    pub(super) fn run_inline(
        &mut self,
        command: &mut dyn TypedCommand,
        meta: Option<Box<CommandMeta>>,
        label: Label,
    ) -> InlineOutcome {
        let payload = match self.written(command) {
            Ok(payload) => payload,
            Err(error) => return InlineOutcome::Told(Err(SendError::Encode(error))),
        };
        let host = Rc::clone(&self.dispatcher.context);
        let now = host.ids.clock().now();
        let id = host.ids.message_id_at(now);
        let facts = TurnFacts {
            id,
            correlation: meta.as_ref().and_then(|meta| meta.correlation).unwrap_or(id),
            traceparent: meta.as_ref().and_then(|meta| meta.traceparent.clone()),
            time: now,
            key: Rc::clone(&self.key),
        };
        let MessageFacts { name, version, codec, .. } = command.facts();
        let _span = tracing::debug_span!(target: TARGET, "turn", room = "actor", message = name, %id, correlation = %facts.correlation).entered();
        let digest = Digest::new(host.settings.digest_key, name, version, codec, &payload);
        let marked = Marked::Outside { digest: digest.value() };
        let (code, door) = (&host.user_code, Rc::clone(&self.dispatcher));
        let turned = self.turn(facts, &marked, Vec::new(), false, |state, user, effects| {
            code.relabel(label);
            command.handle(user.get()?, effects)?;
            let requested = effects.requested();
            if !command.is_rejected() && door.is_too_late(state, None, requested) {
                command.reject(Rejection::saga_ended());
            }
            command.reply(requested);
            Ok(())
        });
        let taken = match turned {
            Ok(turned) => {
                let appended = Appended { ticket: turned.appended.ticket, id };
                if ThreadContext::is_settled(&turned.appended) {
                    InlineOutcome::Told(appended.told(Ok(())))
                } else {
                    InlineOutcome::Appended(appended)
                }
            }
            Err(failure) => {
                InlineOutcome::Failed(Box::new((self.enveloped(command.facts(), id, meta, now, &payload), failure)))
            }
        };
        host.scratch.replace(payload);
        taken
    }

    /// Takes a command out of the mailbox.
    pub(super) fn take_typed(&mut self, mail: TypedMail, ctx: &mut Ctx) {
        let TypedMail { mut command, meta, label, permit } = mail;
        if self.may_run_inline(meta.as_deref()) {
            match self.run_inline(&mut *command, meta, label) {
                InlineOutcome::Told(told) => {
                    drop(permit);
                    command.tell(told);
                }
                InlineOutcome::Appended(appended) => {
                    self.dispatcher.context.after_ticket(appended.ticket, move |committed| {
                        drop(permit);
                        command.tell(appended.told(committed));
                    })
                }
                InlineOutcome::Failed(failed) => {
                    let (envelope, failure) = *failed;
                    command.forget();
                    self.failed(delivery(envelope, command), permit, failure, ctx);
                }
            }
            return;
        }
        let payload = match self.written(&mut *command) {
            Ok(payload) => payload,
            Err(error) => {
                drop(permit);
                return command.tell(Err(SendError::Encode(error)));
            }
        };
        let host = Rc::clone(&self.dispatcher.context);
        let now = host.ids.clock().now();
        let given = meta.as_ref().and_then(|meta| meta.id);
        let id = given.unwrap_or_else(|| host.ids.message_id_at(now));
        let envelope = self.enveloped(command.facts(), id, meta, now, &payload);
        host.scratch.replace(payload);
        command.forget();
        self.take(Delivered { delivery: delivery(envelope, command), permit }, ctx);
    }

    /// Lets the command be as it reads from its bytes. Returns those in a buffer to be given back: they are needed for the
    /// digest, and for the dead letter if it comes to that. The handler gets what it would get from another thread or node.
    fn written(&self, command: &mut dyn TypedCommand) -> Result<Vec<u8>, CodecError> {
        let host = &self.dispatcher.context;
        let mut payload = host.scratch.take();
        payload.clear();
        let encoded = host.user_code.call(self.dispatcher.label, || command.settle(&mut payload));
        let encoded = encoded.unwrap_or_else(|panicked| Err(CodecError::Encode { reason: panicked.to_string() }));
        match encoded {
            Ok(()) => Ok(payload),
            Err(error) => {
                host.scratch.replace(payload);
                Err(error)
            }
        }
    }

    fn enveloped(
        &self,
        command: MessageFacts,
        id: MessageId,
        meta: Option<Box<CommandMeta>>,
        now: Timestamp,
        payload: &[u8],
    ) -> Envelope {
        let meta = *meta.unwrap_or_default();
        let name = Name::from_static(command.name).unwrap_or_else(|_| self.dispatcher.actor.clone());
        Envelope {
            version: command.version,
            to: Some(self.shard.id.clone()),
            key: self.key.to_string(),
            correlation: meta.correlation.unwrap_or(id),
            traceparent: meta.traceparent.map(String::from),
            codec: command.codec,
            payload: Bytes::copy_from_slice(payload),
            ..Envelope::new(id, Kind::Command, self.dispatcher.domain.clone(), name, now)
        }
    }
}

/// A typed command as a delivery, for the ways on which its bytes are needed.
pub(super) fn delivery(envelope: Envelope, command: Box<dyn TypedCommand>) -> Delivery {
    let id = envelope.id;
    Delivery {
        action: Action::Handle,
        envelope,
        dedup_key: DedupKey::MessageId,
        completion: Box::new(move |outcome| command.tell_outcome(id, outcome)),
    }
}
