//! The layers around the decisions of an actor.
//!
//! Called by the [routing](super::routing) and by [inline turns](super::inline), inside the turn, and by the
//! [retries](super::retry) after a failed one. Calls the [layers](crate::layer), which are user code.

use std::rc::Rc;

use super::live_actor::Dispatcher;
use super::requested::{AnyEffects, RequestedEffects};
use super::turn_error::TurnError;
use crate::layer::{Call, CallOutcome, Layers, Refusal};
use crate::router::Action;
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Envelope, Kind, rejection_in};

/// The name of the actors that record events published without an aggregate.
pub(crate) const PUBLISHER: &str = "whizbang-publisher";

impl Dispatcher {
    /// Returns the layers around this actor's handlers, if there are any. The framework's own actors have none: their messages
    /// are parts of others, which pass the layers themselves.
    pub(super) fn layers(&self) -> Option<&Layers> {
        let layers = &*self.context.settings.layers;
        let is_of_user = |name: &str| name == PUBLISHER || !name.starts_with("whizbang-");
        (!layers.is_empty() && is_of_user(self.handlers.facts.name)).then_some(layers)
    }

    fn call<'a>(&'a self, envelope: &'a Envelope, key: &'a str, time: Timestamp) -> Call<'a> {
        Call { handler: self.handlers.facts.name, ..Call::of(envelope, key, time) }
    }

    /// Runs `decide` inside the layers. A rejection by a layer is the reply to a command.
    pub(super) fn decide_in_layers(
        &self,
        layers: &Layers,
        envelope: &Envelope,
        effects: &mut dyn AnyEffects,
        decide: impl FnOnce(&mut dyn AnyEffects) -> Result<(), TurnError>,
    ) -> Result<(), TurnError> {
        let turn = &effects.requested().turn;
        let (key, time) = (Rc::clone(&turn.key), turn.time);
        let call = self.call(envelope, &key, time);
        match layers.before(&call) {
            Ok(()) => decide(effects)?,
            Err(Refusal::Reject(rejection)) if envelope.kind == Kind::Command => {
                let requested = effects.requested();
                requested.reject(rejection);
                self.send_reply(envelope, requested);
                return Ok(());
            }
            Err(Refusal::Reject(rejection)) => return Err(TurnError::Refused(rejection)),
            Err(Refusal::Busy { after }) => return Err(TurnError::Busy(after)),
        }
        self.observe(layers, &call, effects.requested());
        Ok(())
    }

    /// Runs the layers after a handler.
    pub(super) fn observe(&self, layers: &Layers, call: &Call<'_>, requested: &RequestedEffects) {
        if !requested.rejected {
            return layers.after(call, CallOutcome::Done);
        }
        if let Ok(Some(rejection)) = rejection_in(self.handlers.facts.codec, &requested.reply) {
            layers.after(call, CallOutcome::Rejected(&rejection));
        }
    }

    /// Reports a failed turn to the layers. A panic in a layer is counted and has no other effect.
    pub(super) fn observe_failure(&self, action: &Action, envelope: &Envelope, key: &str, failure: &TurnError) {
        let (Some(layers), Action::Handle | Action::React) = (self.layers(), action) else { return };
        // The layers have seen a refusal already.
        let is_refused = matches!(failure, TurnError::Busy(_) | TurnError::Refused(_));
        if !is_refused {
            let call = self.call(envelope, key, self.context.ids.clock().now());
            let text = failure.text();
            let _ = self.context.user_code.call(self.label, || layers.after(&call, CallOutcome::Failed(&text)));
        }
    }
}
