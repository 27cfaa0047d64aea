//! Which of the user's functions takes a message, and what the framework adds to it.

use super::compensation::CompensationChange;
use super::dispatcher::Dispatcher;
use super::handler_table::UserSlot;
use super::plan::Role;
use super::requested::{AnyEffects, Outgoing, RequestedEffects};
use super::state::KeyState;
use super::turn::Failure;
use crate::message::{CodecError, Envelope, Kind, MessageId, Rejection, rejection_in};
use crate::router::Action;
use crate::telemetry::TARGET;

impl From<CodecError> for Failure {
    fn from(error: CodecError) -> Self {
        Self::Undecodable(error.to_string())
    }
}

/// What an envelope asks an actor to do, when all that is left is the envelope.
pub(crate) fn work_of(envelope: &Envelope) -> Action {
    match envelope.kind {
        Kind::Event => Action::React,
        Kind::Reply => Action::Reply,
        Kind::Document => Action::Timer { turn: 0 },
        Kind::Command | Kind::Query => Action::Handle,
    }
}

impl Dispatcher {
    /// Lets the user's code decide on a message.
    pub(crate) fn decide(
        &self,
        state: &KeyState,
        user: &dyn UserSlot,
        work: &Action,
        envelope: &Envelope,
        effects: &mut dyn AnyEffects,
        redriven: bool,
    ) -> Result<(), Failure> {
        #[cfg(feature = "testing")]
        super::Failpoints::trip(self.handlers.facts.domain, envelope);
        let code = &self.context.user_code;
        code.relabel(code.label(self.handlers.facts.name, &envelope.name));
        // An ended saga, and one that undoes, takes note of what comes and does nothing.
        let deaf = state.rest.ended || state.rest.undo.is_undoing();
        if let (Action::Handle | Action::React, Some(error)) = (work, self.context.settings.shapes.refusal(envelope)) {
            return Err(error.into());
        }
        match work {
            Action::Handle => {
                let decide = self.handlers.commands.get(envelope.name.as_str()).ok_or(Failure::Unhandled)?;
                decide(user.get()?, envelope, effects)?;
                let requested = effects.requested();
                if self.is_too_late(state, Some(envelope), requested) {
                    requested.reject(Rejection::saga_ended());
                }
                self.reply_to(envelope, requested);
            }
            Action::React if !deaf => {
                let name = (envelope.domain.as_str(), envelope.name.as_str());
                let (_, decide) = self.handlers.reacts.get(&name).ok_or(Failure::Unhandled)?;
                decide(user.get()?, envelope, effects)?;
            }
            Action::Timer { .. } if !deaf => {
                let decide = self.handlers.timer(&envelope.domain, &envelope.name).ok_or(Failure::Unhandled)?;
                decide(user.get()?, envelope, effects)?;
            }
            Action::DeadLetter(reason) => return Err(Failure::Undecodable(reason.clone())),
            Action::Reply => self.decide_reply(state, user, envelope, effects, redriven)?,
            Action::React | Action::Timer { .. } | Action::Redrive | Action::Discard { .. } => {}
        }
        Ok(())
    }

    /// Whether a command asks an ended saga for more than it can still do; begins the next run of a saga that restarts.
    ///
    /// A reply alone is given for ever. A command that the saga has sent to itself with
    /// [`then`](super::CompensationScope::then) comes after the end by design, and may record how it ended. All else would have timers
    /// that never ring, replies that are never taken and steps that cannot be undone.
    pub(crate) fn is_too_late(
        &self,
        state: &KeyState,
        envelope: Option<&Envelope>,
        effects: &mut RequestedEffects,
    ) -> bool {
        if !state.rest.ended || effects.rejected || effects.only_replies() {
            return false;
        }
        if effects.restarts {
            effects.undo.insert(0, CompensationChange::Restarted);
            return false;
        }
        let origin = envelope.and_then(|envelope| envelope.origin.as_ref());
        let own = origin.is_some_and(|origin| {
            origin.shard.domain == self.domain && origin.actor == self.actor && *origin.key == *effects.turn.key
        });
        !(own && effects.only_records())
    }

    /// Sends what was replied to the actor that sent the command, if it wants to know.
    fn reply_to(&self, envelope: &Envelope, effects: &mut RequestedEffects) {
        let (time, codec) = (effects.turn.time, self.handlers.facts.codec);
        if let Some((to, envelope)) = envelope.reply(&self.domain, effects.rejected, time, codec, &effects.reply) {
            effects.outgoing.push(Outgoing { to, envelope });
        }
    }

    /// Brings a dead letter that is discarded to its end without the user's code: the sender of a command is told, and a saga
    /// goes on without the reply. Nothing waits for a message that will never be handled.
    pub(crate) fn give_up(
        &self,
        state: &KeyState,
        envelope: &Envelope,
        effects: &mut RequestedEffects,
    ) -> Result<(), Failure> {
        match envelope.kind {
            Kind::Command => {
                effects.reject(Rejection::discarded());
                self.reply_to(envelope, effects);
            }
            Kind::Reply => {
                let command = envelope.causation.unwrap_or(MessageId::from_u128(0));
                let was_done = matches!(rejection_in(envelope.codec, &envelope.payload), Ok(None));
                let undo = &state.rest.undo;
                if undo.is_waiting_for(command) {
                    if !was_done {
                        self.context.counts.given_up.one();
                        tracing::error!(
                            target: TARGET, actor = %self.actor, command = %envelope.name, id = %command,
                            "a step of a saga stays done: the dead letter of the command that undoes it was discarded",
                        );
                    }
                    let undone = if was_done {
                        CompensationChange::Undone { command }
                    } else {
                        CompensationChange::GivenUp { command }
                    };
                    effects.undo.push(undone);
                } else if undo.is_step(command) {
                    // A reply that cannot be read leaves open whether the step was done: then it is undone with the others.
                    match rejection_in(envelope.codec, &envelope.payload) {
                        Ok(Some(_)) => self.refused_step(state, command, envelope, effects),
                        Ok(None) | Err(_) => effects.undo.push(CompensationChange::Done { command }),
                    }
                }
            }
            Kind::Event | Kind::Query | Kind::Document => {}
        }
        Ok(())
    }

    fn refused_step(&self, state: &KeyState, command: MessageId, envelope: &Envelope, effects: &mut RequestedEffects) {
        effects.undo.push(CompensationChange::Refused { command });
        let handled = self.handlers.replies.contains_key(&(envelope.domain.as_str(), envelope.name.as_str()));
        if !handled && !state.rest.ended && !state.rest.undo.is_undoing() {
            effects.begin_undo();
        }
    }

    /// Lets an actor take the reply to a command it sent: first its own steps, then the user's code.
    fn decide_reply(
        &self,
        state: &KeyState,
        user: &dyn UserSlot,
        envelope: &Envelope,
        effects: &mut dyn AnyEffects,
        redriven: bool,
    ) -> Result<(), Failure> {
        let command = envelope.causation.unwrap_or(MessageId::from_u128(0));
        let rejection = rejection_in(envelope.codec, &envelope.payload)?;
        let undo = &state.rest.undo;
        if undo.is_waiting_for(command) {
            match rejection {
                None => effects.requested().undo.push(CompensationChange::Undone { command }),
                Some(_) if redriven => effects.requested().undo.push(CompensationChange::Again { command }),
                Some(rejection) => {
                    return Err(Failure::Compensation(format!(
                        "`{}.{}` was to undo a step and was rejected: {rejection}",
                        envelope.domain, envelope.name
                    )));
                }
            }
            return Ok(());
        }
        if undo.is_step(command) {
            effects.requested().undo.push(match rejection {
                None => CompensationChange::Done { command },
                Some(_) => CompensationChange::Refused { command },
            });
        }
        if undo.is_undoing() || state.rest.ended {
            return Ok(());
        }
        if undo.is_restarted() && !state.rest.asked.contains(&command) {
            // The reply to a command of an earlier run says nothing about this one.
            return Ok(());
        }
        match self.handlers.replies.get(&(envelope.domain.as_str(), envelope.name.as_str())) {
            Some(decide) => decide(user.get()?, envelope, effects)?,
            None if rejection.is_some() && self.handlers.facts.role == Role::Saga => effects.requested().begin_undo(),
            None => {}
        }
        Ok(())
    }
}
