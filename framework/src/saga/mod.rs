//! What users write for sagas (known elsewhere as process managers), and what the derive fills in.
//!
//! Called by the [actor](crate::actor) that runs a saga. Calls user code.
//! A saga is rebuilt from its own events; a rebuild sends nothing.

use std::time::Duration;

use crate::actor::{Effects, Plan, Stateful, TimerSlot};
use crate::message::{Document, Domain};

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

impl<A: Stateful> Effects<A> {
    /// Sets a timer: the actor wakes with `timer` once `after` has passed, even if the node was stopped meanwhile. There is
    /// one timer of a type; setting it again replaces it.
    pub fn set_timer<T: Document>(&mut self, timer: &T, after: Duration)
    where
        A: Wake<T>,
    {
        let codec = <T::Domain as Domain>::CODEC;
        let payload = self.put(codec, timer);
        let due = self.turn.time.after(after);
        self.timers.push(TimerSlot::Set { name: T::NAME, due, version: T::VERSION, codec, payload });
    }

    /// Takes a timer back. No error if it is not set; it will not ring after this turn is committed.
    pub fn clear_timer<T: Document>(&mut self)
    where
        A: Wake<T>,
    {
        self.timers.push(TimerSlot::Clear { name: T::NAME });
    }
}
