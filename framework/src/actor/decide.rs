//! Which of the user's functions takes a message, and what the framework adds to it.

use super::door::TypeDoor;
use super::effects::{Effects, Outgoing};
use super::plan::{Role, Stateful};
use super::state::KeyState;
use super::turn::Failure;
use super::undo::UndoChange;
use crate::message::{CodecError, Domain, Envelope, Kind, MessageId, rejection_in};
use crate::router::Work;

impl From<CodecError> for Failure {
    fn from(error: CodecError) -> Self {
        Self::Undecodable(error.to_string())
    }
}

/// What an envelope asks an actor to do, when all that is left is the envelope.
pub(crate) fn work_of(envelope: &Envelope) -> Work {
    match envelope.kind {
        Kind::Event => Work::React,
        Kind::Reply => Work::Reply,
        Kind::Document => Work::Wake { turn: 0 },
        Kind::Command | Kind::Query => Work::Handle,
    }
}

impl<A: Stateful> TypeDoor<A> {
    /// Lets the user's code decide on a message.
    pub(crate) fn decide(
        &self,
        state: &KeyState<A>,
        work: &Work,
        envelope: &Envelope,
        effects: &mut Effects<A>,
        redriven: bool,
    ) -> Result<(), Failure> {
        #[cfg(feature = "testing")]
        super::Trips::trip(A::Domain::NAME, envelope.id);
        let code = &self.host.code;
        code.relabel(code.label(A::NAME, &envelope.name));
        // An ended saga, and one that undoes, takes note of what comes and does nothing.
        let deaf = state.rest.ended || state.rest.undo.is_undoing();
        match work {
            Work::Handle => {
                let decide = self.plan.commands.get(envelope.name.as_str()).ok_or(Failure::Unhandled)?;
                decide(state.user()?, envelope, effects)?;
                let (time, codec) = (effects.turn.time, A::Domain::CODEC);
                if let Some((to, envelope)) =
                    envelope.reply(&self.domain, effects.rejected, time, codec, &effects.reply)
                {
                    effects.outgoing.push(Outgoing { to, envelope });
                }
            }
            Work::React if !deaf => {
                let name = (envelope.domain.as_str(), envelope.name.as_str());
                let (_, decide) = self.plan.reacts.get(&name).ok_or(Failure::Unhandled)?;
                decide(state.user()?, envelope, effects)?;
            }
            Work::Wake { .. } if !deaf => {
                let decide = self.plan.timer(&envelope.domain, &envelope.name).ok_or(Failure::Unhandled)?;
                decide(state.user()?, envelope, effects)?;
            }
            Work::Refuse(reason) => return Err(Failure::Undecodable(reason.clone())),
            Work::Reply => self.decide_reply(state, envelope, effects, redriven)?,
            Work::React | Work::Wake { .. } | Work::Redrive | Work::Discard { .. } => {}
        }
        Ok(())
    }

    /// Lets an actor take the reply to a command it sent: first its own steps, then the user's code.
    fn decide_reply(
        &self,
        state: &KeyState<A>,
        envelope: &Envelope,
        effects: &mut Effects<A>,
        redriven: bool,
    ) -> Result<(), Failure> {
        let command = envelope.causation.unwrap_or(MessageId::from_u128(0));
        let rejection = rejection_in(envelope.codec, &envelope.payload)?;
        let undo = &state.rest.undo;
        if undo.is_waiting_for(command) {
            match rejection {
                None => effects.undo.push(UndoChange::Undone { command }),
                Some(_) if redriven => effects.undo.push(UndoChange::Again { command }),
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
            effects.undo.push(match rejection {
                None => UndoChange::Done { command },
                Some(_) => UndoChange::Refused { command },
            });
        }
        if undo.is_undoing() || state.rest.ended {
            return Ok(());
        }
        match self.plan.replies.get(&(envelope.domain.as_str(), envelope.name.as_str())) {
            Some(decide) => decide(state.user()?, envelope, effects)?,
            None if rejection.is_some() && A::ROLE == Role::Saga => drop(effects.begin_undo()),
            None => {}
        }
        Ok(())
    }
}
