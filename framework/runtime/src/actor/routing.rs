//! The choice of the user function that handles a message, and the framework's own part of it.
//!
//! Called by the [retries](super::retry) and the [dead letters](super::dead_letters), from inside a
//! [turn](super::turn). Calls user code.

use super::compensation::CompensationChange;
use super::identity::Role;
use super::live_actor::Dispatcher;
use super::requested::{AnyEffects, Outgoing, RequestedEffects};
use super::state::KeyState;
use super::turn_error::TurnError;
use super::user_state::UserSlot;
use crate::router::Action;
use whizbang_core::message::{CodecError, Envelope, Kind, MessageId, Rejection, rejection_in};
use whizbang_core::telemetry::TARGET;

impl From<CodecError> for TurnError {
    fn from(error: CodecError) -> Self {
        Self::Undecodable(error.to_string())
    }
}

impl Dispatcher {
    /// Runs the user's decision on a message, inside the layers. A redriven dead letter is not rejected as expired.
    pub(crate) fn decide(
        &self,
        state: &KeyState,
        user: &dyn UserSlot,
        action: &Action,
        envelope: &Envelope,
        effects: &mut dyn AnyEffects,
        redriven: bool,
    ) -> Result<(), TurnError> {
        if !redriven && self.reject_expired(action, envelope, effects.requested()) {
            return Ok(());
        }
        #[cfg(feature = "testing")]
        super::Failpoints::hit(self.handlers.facts.domain, envelope);
        let code = &self.context.user_code;
        code.relabel(code.label(self.handlers.facts.name, &envelope.name));
        // A saga that has ended or compensates records the message as handled and does nothing.
        let ignores = state.rare.ended || state.rare.compensation.is_compensating();
        let decide = |effects: &mut dyn AnyEffects| self.decide_on(state, user, action, envelope, effects, redriven);
        match (self.layers(), action) {
            (Some(layers), Action::Handle) => self.decide_in_layers(layers, envelope, effects, decide),
            (Some(layers), Action::React) if !ignores => self.decide_in_layers(layers, envelope, effects, decide),
            _ => decide(effects),
        }
    }

    fn decide_on(
        &self,
        state: &KeyState,
        user: &dyn UserSlot,
        action: &Action,
        envelope: &Envelope,
        effects: &mut dyn AnyEffects,
        redriven: bool,
    ) -> Result<(), TurnError> {
        let ignores = state.rare.ended || state.rare.compensation.is_compensating();
        if let (Action::Handle | Action::React, Some(error)) = (action, self.context.settings.shapes.refusal(envelope))
        {
            return Err(error.into());
        }
        match action {
            Action::Handle => {
                let decide = self.handlers.commands.get(envelope.name.as_str()).ok_or(TurnError::Unhandled)?;
                decide(user.get()?, envelope, effects)?;
                let requested = effects.requested();
                if self.is_too_late(state, Some(envelope), requested) {
                    requested.reject(Rejection::saga_ended());
                }
                self.send_reply(envelope, requested);
            }
            Action::React if !ignores => {
                let name = (envelope.domain.as_str(), envelope.name.as_str());
                let (_, decide) = self.handlers.reacts.get(&name).ok_or(TurnError::Unhandled)?;
                decide(user.get()?, envelope, effects)?;
            }
            Action::Timer { .. } if !ignores => {
                let decide = self.handlers.timer(&envelope.domain, &envelope.name).ok_or(TurnError::Unhandled)?;
                decide(user.get()?, envelope, effects)?;
            }
            Action::DeadLetter(reason) => return Err(TurnError::Undecodable(reason.clone())),
            Action::Reply => self.decide_reply(state, user, envelope, effects, redriven)?,
            Action::Answer | Action::React | Action::Timer { .. } | Action::Redrive | Action::Discard { .. } => {}
        }
        Ok(())
    }

    /// Returns whether a command requests more of an ended saga than is possible; begins the next run of a saga that
    /// restarts.
    ///
    /// A reply alone is always given. A command that the saga has sent to itself with
    /// [`then`](super::CompensationScope::then) arrives after the end by design, and may record how it ended. Anything
    /// else would leave timers that never fire, replies that are never handled and steps that cannot be undone.
    pub(crate) fn is_too_late(
        &self,
        state: &KeyState,
        envelope: Option<&Envelope>,
        effects: &mut RequestedEffects,
    ) -> bool {
        if !state.rare.ended || effects.rejected || effects.is_reply_only() {
            return false;
        }
        if effects.restarts {
            effects.compensation.insert(0, CompensationChange::Restarted);
            return false;
        }
        let origin = envelope.and_then(|envelope| envelope.origin.as_ref());
        let own = origin.is_some_and(|origin| {
            origin.shard.domain == self.domain && origin.actor == self.actor && *origin.key == *effects.turn.key
        });
        !(own && effects.is_events_only())
    }

    /// Sends the reply to the actor that sent the command, if it expects one.
    pub(super) fn send_reply(&self, envelope: &Envelope, effects: &mut RequestedEffects) {
        let (time, codec) = (effects.turn.time, self.handlers.facts.codec);
        if let Some((to, envelope)) = envelope.reply(&self.domain, effects.rejected, time, codec, &effects.reply) {
            let envelope = Envelope { headers: effects.headers.clone(), ..envelope };
            effects.outgoing.push(Outgoing { to, envelope });
        }
    }

    /// Completes a discarded dead letter without user code: the sender of a command is notified, and a saga continues
    /// without the reply. Nothing waits for a message that will never be handled.
    pub(crate) fn discard_message(
        &self,
        state: &KeyState,
        envelope: &Envelope,
        effects: &mut RequestedEffects,
    ) -> Result<(), TurnError> {
        match envelope.kind {
            Kind::Command => {
                effects.reject(Rejection::discarded());
                self.send_reply(envelope, effects);
            }
            Kind::Reply => {
                let command = envelope.causation.unwrap_or(MessageId::from_u128(0));
                let was_done = matches!(rejection_in(envelope.codec, &envelope.payload), Ok(None));
                let undo = &state.rare.compensation;
                if undo.is_awaiting(command) {
                    if !was_done {
                        self.context.counts.given_up.one();
                        tracing::error!(
                            target: TARGET, actor = %self.actor, command = %envelope.name, id = %command,
                            "saga step stays done: the dead letter of its compensating command was discarded",
                        );
                    }
                    let undone = if was_done {
                        CompensationChange::Undone { command }
                    } else {
                        CompensationChange::GivenUp { command }
                    };
                    effects.compensation.push(undone);
                } else if undo.is_step(command) {
                    // An undecodable reply leaves open whether the step was done: then it is undone with the others.
                    match rejection_in(envelope.codec, &envelope.payload) {
                        Ok(Some(_)) => self.reject_step(state, command, envelope, effects),
                        Ok(None) | Err(_) => effects.compensation.push(CompensationChange::Done { command }),
                    }
                }
            }
            Kind::Event | Kind::Query | Kind::Document => {}
        }
        Ok(())
    }

    fn reject_step(&self, state: &KeyState, command: MessageId, envelope: &Envelope, effects: &mut RequestedEffects) {
        effects.compensation.push(CompensationChange::Rejected { command });
        let handled = self.handlers.replies.contains_key(&(envelope.domain.as_str(), envelope.name.as_str()));
        if !handled && !state.rare.ended && !state.rare.compensation.is_compensating() {
            effects.begin_compensation();
        }
    }

    /// Handles the reply to a command: first the saga's own steps, then user code.
    fn decide_reply(
        &self,
        state: &KeyState,
        user: &dyn UserSlot,
        envelope: &Envelope,
        effects: &mut dyn AnyEffects,
        redriven: bool,
    ) -> Result<(), TurnError> {
        let command = envelope.causation.unwrap_or(MessageId::from_u128(0));
        let rejection = rejection_in(envelope.codec, &envelope.payload)?;
        let undo = &state.rare.compensation;
        if undo.is_awaiting(command) {
            match rejection {
                None => effects.requested().compensation.push(CompensationChange::Undone { command }),
                Some(_) if redriven => effects.requested().compensation.push(CompensationChange::Retry { command }),
                Some(rejection) => {
                    return Err(TurnError::Compensation(format!(
                        "compensating command `{}.{}` was rejected: {rejection}",
                        envelope.domain, envelope.name
                    )));
                }
            }
            return Ok(());
        }
        if undo.is_step(command) {
            effects.requested().compensation.push(match rejection {
                None => CompensationChange::Done { command },
                Some(_) => CompensationChange::Rejected { command },
            });
        }
        if undo.is_compensating() || state.rare.ended {
            return Ok(());
        }
        if undo.is_restarted() && !state.rare.sent_commands.contains(&command) {
            // The reply to a command of an earlier run does not concern this one.
            return Ok(());
        }
        let listed = self.handlers.replies.get(&(envelope.domain.as_str(), envelope.name.as_str()));
        match listed.or(self.handlers.other_replies.as_ref()) {
            Some(decide) => decide(user.get()?, envelope, effects)?,
            None if rejection.is_some() && self.handlers.facts.role == Role::Saga => {
                effects.requested().begin_compensation()
            }
            None => {}
        }
        Ok(())
    }
}

impl std::fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dispatcher").field("domain", &self.domain).field("actor", &self.actor).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
