//! Inline turns: a command of the same thread runs without mailbox and envelope.
//!
//! Called by the [dispatcher](super::dispatcher) if nothing is queued before the command, and by the
//! [mailbox](super::mailbox) otherwise. Inline turns are for new commands to a live actor that has nothing to recover
//! from. All other commands become envelopes and are handled by [`ActorInstance::handle`].
//!
//! Why this is safe: one thread owns the actor, and the actor is mutably borrowed for the whole turn. A nested command
//! finds it borrowed, or finds [`ThreadContext::inline_running`] set, and is queued. Order is kept because an inline
//! turn requires an empty mailbox, no back-off and no parked message. The reply waits for the commit like every other
//! reply.

use std::rc::Rc;

use bytes::Bytes;

use super::live_actor::{ActorInstance, Ctx, Delivered, Dispatcher, TypedDelivery};
use super::requested::TurnFacts;
use super::thread::{ACTOR_TASK, ThreadContext};
use super::turn::DedupMark;
use super::turn_error::TurnError;
use super::typed_command::{InlineOutcome, TypedCommand, UncommittedTurn, delivery_of};
use crate::layer::{Call, Refusal};
use crate::router::{CommandMeta, SendError};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{CodecError, Digest, Envelope, Kind, MessageFacts, MessageId, Name, Rejection, expiry};
use whizbang_core::telemetry::TARGET;
use whizbang_core::user_code::{Label, user_code};

impl ActorInstance {
    /// Returns whether a command may run inline: its id is new, it does not expire, and the actor is loaded, in order and not stopped.
    pub(crate) fn may_run_inline(&self, meta: Option<&CommandMeta>) -> bool {
        meta.is_none_or(|meta| meta.id.is_none() && expiry(&meta.headers).is_none())
            && self.holds == 0
            && self.back_off.is_none()
            && self.load_error.is_none()
            && self.state.rare.parked.is_empty()
            && self.shard.is_open()
            && !self.is_stopped()
    }

    /// Runs the turn of a command that [may run inline](Self::may_run_inline).
    pub(super) fn run_inline(
        &mut self,
        command: &mut dyn TypedCommand,
        meta: Option<Box<CommandMeta>>,
        label: Label,
    ) -> InlineOutcome {
        let context = Rc::clone(&self.dispatcher.context);
        let (payload, outcome) = match self.dispatcher.encode_command(command, context.scratch.take()) {
            Ok(payload) => {
                let outcome = self.run_encoded(command, &payload, meta, label);
                (payload, outcome)
            }
            Err((error, scratch)) => (scratch, InlineOutcome::Done(Err(SendError::Encode(error)))),
        };
        context.scratch.replace(payload);
        outcome
    }

    /// Runs the turn of a command whose value was decoded from `payload`.
    fn run_encoded(
        &mut self,
        command: &mut dyn TypedCommand,
        payload: &[u8],
        meta: Option<Box<CommandMeta>>,
        label: Label,
    ) -> InlineOutcome {
        let context = Rc::clone(&self.dispatcher.context);
        let now = context.ids.clock().now();
        let id = context.ids.message_id_at(now);
        let outcome = user_code(|| self.turn_of_command(command, payload, meta, label, (id, now)));
        outcome.unwrap_or_else(|panicked| {
            let source = context.report_panic(ACTOR_TASK, panicked.text());
            self.load_error = Some(Box::new(source.clone()));
            InlineOutcome::Done(Err(SendError::Unknown { id, source }))
        })
    }

    /// Runs the turn and stores its reply. Called with panics caught: a panic outside of user code leaves the outcome unknown.
    fn turn_of_command(
        &mut self,
        command: &mut dyn TypedCommand,
        payload: &[u8],
        meta: Option<Box<CommandMeta>>,
        label: Label,
        (id, now): (MessageId, Timestamp),
    ) -> InlineOutcome {
        let context = Rc::clone(&self.dispatcher.context);
        let facts = TurnFacts {
            id,
            correlation: meta.as_ref().and_then(|meta| meta.correlation).unwrap_or(id),
            traceparent: meta.as_ref().and_then(|meta| meta.traceparent.clone()),
            headers: meta.as_ref().map_or_else(Vec::new, |meta| meta.headers.clone()),
            time: now,
            key: Rc::clone(&self.key),
        };
        let MessageFacts { domain, name, version, codec, .. } = command.facts();
        let _span = tracing::debug_span!(target: TARGET, "turn", kind = "actor", message = name, %id, correlation = %facts.correlation).entered();
        let digest = Digest::new(context.settings.digest_key, name, version, codec, payload);
        let mark = DedupMark::MessageId { digest: digest.value() };
        let (code, dispatcher) = (&context.user_code, Rc::clone(&self.dispatcher));
        let layers = dispatcher.layers();
        let headers = if layers.is_some() { facts.headers.clone() } else { Vec::new() };
        let (handler, key) = (dispatcher.handlers.facts.name, Rc::clone(&self.key));
        let call = Call {
            handler,
            domain,
            name,
            kind: Kind::Command,
            key: &key,
            id,
            version,
            codec,
            payload,
            headers: &headers,
            time: now,
        };
        let turned = self.run_turn(facts, &mark, Vec::new(), false, |state, user, effects| {
            code.relabel(label);
            let passed = layers.map_or(Ok(()), |layers| layers.before(&call));
            match passed {
                Ok(()) => command.handle(user.get()?, effects)?,
                Err(Refusal::Reject(rejection)) => {
                    command.clear();
                    command.reject(rejection);
                    command.store_reply(effects.requested());
                    return Ok(());
                }
                Err(Refusal::Busy { after }) => return Err(TurnError::Busy(after)),
            }
            let requested = effects.requested();
            if !command.is_rejected() && dispatcher.is_too_late(state, None, requested) {
                command.reject(Rejection::saga_ended());
            }
            command.store_reply(requested);
            if let Some(layers) = layers {
                dispatcher.observe(layers, &call, requested);
            }
            Ok(())
        });
        match turned {
            Ok(turned) => {
                let appended = UncommittedTurn { ticket: turned.appended.ticket, id };
                if ThreadContext::is_committed(&turned.appended) {
                    InlineOutcome::Done(appended.result(Ok(())))
                } else {
                    InlineOutcome::Pending(appended)
                }
            }
            Err(failure) => InlineOutcome::Failed(Box::new((
                self.envelope_of(command.facts(), id, meta, now, payload.to_vec()),
                failure,
            ))),
        }
    }

    /// Handles a command from the mailbox.
    pub(super) fn handle_typed(&mut self, mail: TypedDelivery, ctx: &mut Ctx) {
        let TypedDelivery { mut command, payload, meta, label, permit } = mail;
        let context = Rc::clone(&self.dispatcher.context);
        if self.may_run_inline(meta.as_deref()) {
            match self.run_encoded(&mut *command, &payload, meta, label) {
                InlineOutcome::Done(result) => {
                    drop(permit);
                    command.complete(result);
                }
                InlineOutcome::Pending(appended) => {
                    self.dispatcher.context.after_ticket(&self.shard, appended.ticket, move |committed| {
                        drop(permit);
                        command.complete(appended.result(committed));
                    })
                }
                InlineOutcome::Failed(failed) => {
                    let (envelope, failure) = *failed;
                    context.clear_command(label, &mut *command);
                    self.handle_failure(delivery_of(envelope, command), permit, failure, ctx);
                }
            }
            return;
        }
        let now = context.ids.clock().now();
        let given = meta.as_ref().and_then(|meta| meta.id);
        let id = given.unwrap_or_else(|| context.ids.message_id_at(now));
        let envelope = self.envelope_of(command.facts(), id, meta, now, payload);
        context.clear_command(label, &mut *command);
        self.handle(Delivered { delivery: delivery_of(envelope, command), permit }, ctx);
    }

    /// Returns the envelope that the command would have had on the wire, for a retry or a dead letter.
    fn envelope_of(
        &self,
        command: MessageFacts,
        id: MessageId,
        meta: Option<Box<CommandMeta>>,
        now: Timestamp,
        payload: impl Into<Bytes>,
    ) -> Envelope {
        let meta = *meta.unwrap_or_default();
        let name = Name::from_static(command.name).unwrap_or_else(|_| self.dispatcher.actor.clone());
        Envelope {
            version: command.version,
            to: Some(self.shard.id.clone()),
            key: self.key.to_string(),
            correlation: meta.correlation.unwrap_or(id),
            traceparent: meta.traceparent.map(String::from),
            headers: meta.headers,
            codec: command.codec,
            payload: payload.into(),
            ..Envelope::new(id, Kind::Command, self.dispatcher.domain.clone(), name, now)
        }
    }
}

impl ThreadContext {
    /// Drops the command and the handler's result: values of the user. A panic is counted and has no other effect.
    pub(super) fn clear_command(&self, label: Label, command: &mut dyn TypedCommand) {
        let _ = self.user_code.call(label, || command.clear());
    }
}

impl Dispatcher {
    /// Replaces the command with the value decoded from its bytes, so the handler receives the same value as on another
    /// thread or node. Returns the bytes in `buffer`: they are needed for the digest, and for a dead letter.
    ///
    /// # Errors
    /// The error and the buffer, if the command cannot be encoded or decoded.
    pub(super) fn encode_command(
        &self,
        command: &mut dyn TypedCommand,
        mut buffer: Vec<u8>,
    ) -> Result<Vec<u8>, (CodecError, Vec<u8>)> {
        buffer.clear();
        let encoded = self.context.user_code.call(self.label, || command.round_trip(&mut buffer));
        match encoded.unwrap_or_else(|panicked| Err(CodecError::Encode { reason: panicked.to_string() })) {
            Ok(()) => Ok(buffer),
            Err(error) => Err((error, buffer)),
        }
    }
}

#[cfg(test)]
mod tests;
