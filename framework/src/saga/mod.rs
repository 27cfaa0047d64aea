//! What users write for sagas (known elsewhere as process managers), and what the derive fills in.
//!
//! Called by the [actor](crate::actor) that runs a saga. Calls user code.
//! A saga is rebuilt from its own events; a rebuild sends nothing.

use std::time::Duration;

use crate::actor::{CompensationScope, Effects, Plan, Sent, Stateful, TimerSlot, stored_timer, timer_name, typed};
use crate::message::{Command, Document, Domain};

/// An event-sourced actor that reacts to events by sending commands. Derived with `#[derive(Saga)]`.
pub trait Saga: Stateful {}

/// Takes a timer that rang.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not take the timer `{T}`",
    label = "listed in `timers(…)`, but not taken",
    note = "write `impl OnTimer<{T}> for {Self} {{ fn on_timer(&self, timer: {T}, effects: &mut Effects<Self>) {{ … }} }}`"
)]
pub trait OnTimer<T: Document>: Stateful {
    /// Takes the timer: records events, sends commands, sets timers through `effects`.
    fn on_timer(&self, timer: T, effects: &mut Effects<Self>);
}

impl<A: Stateful> Plan<A> {
    /// Lists a timer that wakes the actor.
    pub fn timers<T: Document>(&mut self)
    where
        A: OnTimer<T>,
    {
        self.add_timer::<T>(|state, envelope, effects| {
            let (state, effects) = typed::<A>(state, effects)?;
            state.on_timer(T::decode(envelope.version, envelope.codec, &envelope.payload)?, effects);
            Ok(())
        });
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
        A: OnTimer<T>,
    {
        let codec = <T::Domain as Domain>::CODEC;
        let payload = self.put(codec, timer);
        let due = self.requested.steady.now().after(after);
        self.clear_former::<T>();
        self.requested.timers.push(TimerSlot::Set {
            name: timer_name::<A, T>(),
            due,
            version: T::VERSION,
            codec,
            payload,
        });
    }

    /// Takes a timer back. No error if it is not set; it will not ring after this turn is committed.
    pub fn clear_timer<T: Document>(&mut self)
    where
        A: OnTimer<T>,
    {
        self.clear_former::<T>();
        self.requested.timers.push(TimerSlot::Clear { name: timer_name::<A, T>() });
    }

    /// Takes back what was set while the timer had other names: there is one timer of a type.
    fn clear_former<T: Document>(&mut self) {
        let stored = |name: &'static str| stored_timer(A::Domain::NAME, T::Domain::NAME, name);
        self.requested.timers.extend(T::FORMERLY.iter().map(|name| TimerSlot::Clear { name: stored(name) }));
    }
}

impl<A: Saga> Effects<A> {
    /// Ends the saga and clears its timers. Later events, replies and timers do nothing.
    ///
    /// A later command still gets its reply if that is all its handler asks for. A command that asks for anything else (records
    /// an event, sends, sets a timer) is rejected with [`Rejection::SAGA_ENDED`](crate::Rejection::SAGA_ENDED), because nothing
    /// of it could be undone: a key is used once. Two commands are exempt: one that [restarts](Self::restart) the saga, and one
    /// that the saga has sent to itself with [`then`](CompensationScope::then), which may record events and nothing else.
    ///
    /// While a saga [compensates](Self::compensate), and in the turn in which it begins to, this does nothing: compensation
    /// ends the saga once all is undone, whichever of the two is called first.
    pub fn complete(&mut self) {
        self.requested.ended = true;
    }

    /// Lets this command start the saga again if it has ended, with an empty compensation log and without timers: steps sent from
    /// now on can be undone, timers ring, and replies are taken. For keys that are used again, such as an order that is placed
    /// anew after a failed attempt.
    ///
    /// The saga's own state stays as its events have made it; record an event that resets it. Replies to commands of an earlier
    /// run are ignored. Does nothing while the saga has not ended, and outside a command's handler.
    pub fn restart(&mut self) {
        self.requested.restarts = true;
    }

    /// Undoes the steps that were sent with [`compensate_with`](Sent::compensate_with), in reverse: each once, the next when the one
    /// before has replied, and only those that were done. Then the saga ends. Until then events and timers do nothing, and
    /// neither does [`complete`](Self::complete).
    ///
    /// A rejection of an undoing command becomes a dead letter of this saga. An operator redrives it, which sends the command
    /// again, or discards it: then that step stays done, which is logged and counted in
    /// [`Metrics::given_up`](crate::Metrics::given_up), and the remaining steps are undone.
    pub fn compensate(&mut self) -> CompensationScope<'_, A> {
        self.begin_undo()
    }
}

impl<A: Saga> Sent<'_, A> {
    /// Names the command that undoes this one, in case the saga [compensates](Effects::compensate).
    pub fn compensate_with<C: Command>(self, undo: C) -> Self {
        self.take_undo(undo)
    }
}
