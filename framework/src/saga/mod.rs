//! What users write for sagas (known elsewhere as process managers), and what the derive fills in.
//!
//! Called by the [actor](crate::actor) that runs a saga. Calls user code.
//! A saga is rebuilt from its own events; a rebuild sends nothing.

use std::time::Duration;

use crate::actor::{Compensating, Effects, Plan, Sent, Stateful, TimerSlot, stored_timer, timer_name};
use crate::message::{Command, Document, Domain};

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
    /// Sets a timer: the actor wakes with `timer` once `after` has passed, even if the node was stopped in between. There is one
    /// timer of a type; setting it again replaces it.
    ///
    /// As long as the node runs, `after` is measured by the monotonic clock: jumps of the wall clock change nothing, and the time
    /// a machine is suspended does not count. A timer that is set when the node ends is due, after the next start, at the moment
    /// of the wall clock at which it would have been due: there, a jump of the wall clock between the two starts counts.
    pub fn set_timer<T: Document>(&mut self, timer: &T, after: Duration)
    where
        A: Wake<T>,
    {
        let codec = <T::Domain as Domain>::CODEC;
        let payload = self.put(codec, timer);
        let due = self.steady.now().after(after);
        self.clear_former::<T>();
        self.timers.push(TimerSlot::Set { name: timer_name::<A, T>(), due, version: T::VERSION, codec, payload });
    }

    /// Takes a timer back. No error if it is not set; it will not ring after this turn is committed.
    pub fn clear_timer<T: Document>(&mut self)
    where
        A: Wake<T>,
    {
        self.clear_former::<T>();
        self.timers.push(TimerSlot::Clear { name: timer_name::<A, T>() });
    }

    /// Takes back what was set while the timer had other names: there is one timer of a type.
    fn clear_former<T: Document>(&mut self) {
        let stored = |name: &'static str| stored_timer(A::Domain::NAME, T::Domain::NAME, name);
        self.timers.extend(T::FORMERLY.iter().map(|name| TimerSlot::Clear { name: stored(name) }));
    }
}

impl<A: Saga> Effects<A> {
    /// Ends the saga. What comes later does nothing; its timers are cleared.
    pub fn complete(&mut self) {
        self.ended = true;
    }

    /// Undoes the steps that were sent with [`undo_with`](Sent::undo_with), in reverse: each once, the next when the one
    /// before has replied, and only those that were done. Then the saga ends. Meanwhile events and timers do nothing.
    ///
    /// An undoing command that is rejected becomes a dead letter of this saga: a person must look.
    pub fn compensate(&mut self) -> Compensating<'_, A> {
        self.begin_undo()
    }
}

impl<A: Saga> Sent<'_, A> {
    /// Names the command that undoes this one, in case the saga [compensates](Effects::compensate).
    pub fn undo_with<C: Command>(self, undo: C) -> Self {
        self.take_undo(undo)
    }
}
