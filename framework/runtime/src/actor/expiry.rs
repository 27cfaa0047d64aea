//! Commands that have expired: rejected without a call of their handler, in a turn like any other.
//!
//! Called by the [routing](super::routing) before the decision, by the [dead letters](super::dead_letters) for commands that have
//! waited behind one, and by the [effects](super::effects) for the commands that an actor sends. The rejection is recorded with the message, so a repeated delivery has the same answer, whatever the clock
//! shows by then.

use std::time::Duration;

use super::live_actor::Dispatcher;
use super::requested::RequestedEffects;
use crate::router::Action;
use whizbang_core::message::{Envelope, MessageId, Rejection, expiry, set_expiry};
use whizbang_core::telemetry::TARGET;

impl Dispatcher {
    /// Rejects a command that has expired. Returns whether it has.
    pub(super) fn reject_expired(
        &self,
        action: &Action,
        envelope: &Envelope,
        requested: &mut RequestedEffects,
    ) -> bool {
        let is_over = *action == Action::Handle && expiry(&envelope.headers).is_some_and(|at| requested.turn.time > at);
        if is_over {
            tracing::debug!(
                target: TARGET, actor = %self.actor, message = %envelope.name, id = %envelope.id, "expired command rejected",
            );
            requested.reject(Rejection::expired());
            requested.expired = true;
            self.send_reply(envelope, requested);
        }
        is_over
    }
}

impl RequestedEffects {
    /// Limits the time until the command that was sent last is handled.
    pub(super) fn expire_last(&mut self, command: MessageId, life: Duration) {
        let expiry = self.turn.time.after(life);
        // A command that cannot be encoded is not the last one; its error fails the turn.
        let last = self.outgoing.last_mut().filter(|sent| sent.envelope.id == command);
        if let Some(Err(error)) = last.map(|sent| set_expiry(&mut sent.envelope.headers, expiry)) {
            self.refuse_header(&error);
        }
    }
}
