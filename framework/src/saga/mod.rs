//! What users write for sagas (known elsewhere as process managers), and what the derive fills in.
//!
//! Called by the [actor](crate::actor) that runs a saga. Calls user code.
//! A saga is rebuilt from its own events; a rebuild sends nothing.

use crate::actor::{Effects, Plan, Stateful};
use crate::message::Document;

/// An event-sourced actor that reacts to events by sending commands. Derived with `#[derive(Saga)]`.
pub trait Saga: Stateful {}

/// Takes a timer that rang.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not take the timer `{T}`",
    label = "listed in `timers(…)`, but not taken",
    note = "write `impl Wake<{T}> for {Self} {{ fn wake(&self, timer: {T}, effects: &mut Effects<Self>) {{ … }} }}`"
)]
pub trait Wake<T: Document>: Stateful {
    /// Takes the timer: records events, sends commands, sets timers through `effects`.
    fn wake(&self, timer: T, effects: &mut Effects<Self>);
}

impl<A: Stateful> Plan<A> {
    /// Lists a timer that wakes the actor.
    pub fn timers<T: Document>(&mut self)
    where
        A: Wake<T>,
    {
        self.add_timer::<T>(Box::new(|user, envelope, effects| {
            user.wake(T::decode(envelope.version, envelope.codec, &envelope.payload)?, effects);
            Ok(())
        }));
    }
}
