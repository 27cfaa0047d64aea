//! The traits of sagas (known elsewhere as process managers), and the effects that only sagas have.
//!
//! Implemented by users and called by the [actor](crate::actor). Calls user code. A saga is rebuilt from its own
//! events; a rebuild sends nothing.

use std::time::Duration;

use crate::actor::{CompensationScope, Effects, Plan, Sent, Stateful, typed};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Command, Document, Domain, MessageFacts};

/// An event-sourced actor that reacts to events by sending commands. Derived with `#[derive(Saga)]`.
///
/// A saga leads a flow through several services and undoes it if a step is rejected:
///
/// ```
/// # use bank_fixture as bank;
/// use bank::{Bank, Deposit, Deposited};
/// use whizbang::prelude::*;
///
/// #[derive(Command, Serialize, Deserialize)]
/// #[command(domain = Bank)]
/// struct Withdraw {
///     #[key]
///     account: String,
///     cents: u64,
/// }
///
/// #[derive(Saga, Default)]
/// #[saga(domain = Bank, reacts(Deposited))]
/// struct Bonus {}
///
/// impl React<Deposited> for Bonus {
///     fn react(&self, _deposited: Deposited, effects: &mut Effects<Self>) {
///         let account = effects.key().to_owned();
///         let undo = Withdraw { account: account.clone(), cents: 500 };
///         effects.send(Deposit { account, cents: 500 }).compensate_with(undo);
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a saga",
    note = "derive it: `#[derive(Saga, Default)] #[saga(domain = …, reacts(…), applies(…))]`",
    note = "an aggregate is hosted with `NodeBuilder::aggregate`"
)]
pub trait Saga: Stateful {}

/// Handles a timer that fired.
///
/// ```
/// use std::time::Duration;
///
/// # use bank_fixture as bank;
/// use bank::{Bank, Deposited};
/// use whizbang::prelude::*;
///
/// #[derive(Document, Serialize, Deserialize)]
/// #[document(domain = Bank)]
/// struct ReviewDue {}
///
/// #[derive(Saga, Default)]
/// #[saga(domain = Bank, reacts(Deposited), timers(ReviewDue))]
/// struct Review {}
///
/// impl React<Deposited> for Review {
///     fn react(&self, _deposited: Deposited, effects: &mut Effects<Self>) {
///         effects.set_timer(&ReviewDue {}, Duration::from_secs(30 * 24 * 60 * 60));
///     }
/// }
///
/// impl OnTimer<ReviewDue> for Review {
///     fn on_timer(&self, _timer: ReviewDue, effects: &mut Effects<Self>) {
///         effects.complete();
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not handle the timer `{T}`",
    label = "listed in `timers(…)`, but not handled",
    note = "write `impl OnTimer<{T}> for {Self} {{ fn on_timer(&self, timer: {T}, effects: &mut Effects<Self>) {{ … }} }}`"
)]
pub trait OnTimer<T: Document>: Stateful {
    /// Handles the timer: records events, sends commands, sets timers through `effects`.
    fn on_timer(&self, timer: T, effects: &mut Effects<Self>);
}

impl<A: Stateful> Plan<A> {
    /// Lists a timer that the actor handles.
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
    /// Sets a timer: [`OnTimer`] runs with `timer` once `after` has passed, even if the node was stopped in between.
    /// There is one timer per type; setting it again replaces it.
    ///
    /// While the node runs, `after` is measured by the monotonic clock: jumps of the wall clock have no effect, and the
    /// time a machine is suspended does not count. If the node ends first, the timer is due after the next start at the
    /// wall-clock time at which it would have been due. A jump of the wall clock between the two starts therefore
    /// counts.
    pub fn set_timer<T: Document>(&mut self, timer: &T, after: Duration)
    where
        A: OnTimer<T>,
    {
        self.start_timer(None, timer, self.requested.after(after));
    }

    /// Sets a timer for a time of the wall clock, or for now if it has passed, as [`set_timer`](Self::set_timer). It fires
    /// when the time until then has passed on the monotonic clock.
    pub fn set_timer_at<T: Document>(&mut self, timer: &T, due: Timestamp)
    where
        A: OnTimer<T>,
    {
        self.start_timer(None, timer, self.requested.after_wall_time(due));
    }

    /// Sets one of several timers of a type, as [`set_timer`](Self::set_timer): setting it again under the same name
    /// replaces it. [`timer_name`](Self::timer_name) returns the name when it fires.
    ///
    /// A name has 1 to 128 bytes, no control characters and no surrounding spaces; any other fails the whole turn. Each
    /// timer that is set is kept in memory while its actor is live. An older version of the framework does not fire named
    /// timers, and logs each.
    ///
    /// ```
    /// use std::time::Duration;
    /// # use bank_fixture as bank;
    /// use bank::{Bank, Deposited};
    /// use whizbang::prelude::*;
    ///
    /// #[derive(Document, Serialize, Deserialize)]
    /// #[document(domain = Bank)]
    /// struct Reminder {}
    ///
    /// #[derive(Saga, Default)]
    /// #[saga(domain = Bank, reacts(Deposited), timers(Reminder))]
    /// struct Reminders {}
    ///
    /// impl React<Deposited> for Reminders {
    ///     fn react(&self, _deposited: Deposited, effects: &mut Effects<Self>) {
    ///         for days in [1, 7, 30] {
    ///             let after = Duration::from_secs(days * 24 * 60 * 60);
    ///             effects.set_named_timer(&format!("after {days} days"), &Reminder {}, after);
    ///         }
    ///     }
    /// }
    ///
    /// impl OnTimer<Reminder> for Reminders {
    ///     fn on_timer(&self, _timer: Reminder, effects: &mut Effects<Self>) {
    ///         let days = effects.timer_name().unwrap_or_default();
    ///         println!("{}: {days}", effects.key());
    ///     }
    /// }
    /// ```
    pub fn set_named_timer<T: Document>(&mut self, name: &str, timer: &T, after: Duration)
    where
        A: OnTimer<T>,
    {
        self.start_timer(Some(name), timer, self.requested.after(after));
    }

    /// Like [`set_named_timer`](Self::set_named_timer), for a time of the wall clock as [`set_timer_at`](Self::set_timer_at).
    pub fn set_named_timer_at<T: Document>(&mut self, name: &str, timer: &T, due: Timestamp)
    where
        A: OnTimer<T>,
    {
        self.start_timer(Some(name), timer, self.requested.after_wall_time(due));
    }

    fn start_timer<T: Document>(&mut self, name: Option<&str>, timer: &T, due: Timestamp) {
        let payload = self.encode(<T::Domain as Domain>::CODEC, timer);
        self.requested.set_timer(&MessageFacts::of::<T>(), name, due, payload);
    }

    /// Clears a timer: it does not fire after this turn is committed. No effect if it is not set.
    ///
    /// Timers of the type that have a name stay set: see [`clear_named_timer`](Self::clear_named_timer).
    pub fn clear_timer<T: Document>(&mut self)
    where
        A: OnTimer<T>,
    {
        self.requested.clear_timer(&MessageFacts::of::<T>(), None);
    }

    /// Clears a timer that was set [with a name](Self::set_named_timer). No effect if it is not set.
    ///
    /// Timers of the same type with other names, and the one without a name, stay set.
    pub fn clear_named_timer<T: Document>(&mut self, name: &str)
    where
        A: OnTimer<T>,
    {
        self.requested.clear_timer(&MessageFacts::of::<T>(), Some(name));
    }
}

impl<A: Saga> Effects<A> {
    /// Ends the saga and clears its timers. Later events, replies and timers have no effect.
    ///
    /// A later command still gets its reply if its handler requests nothing else. A command that requests anything else
    /// (records an event, sends, sets a timer) is rejected with
    /// [`Rejection::SAGA_ENDED`](crate::Rejection::SAGA_ENDED), because it could not be undone: a key is used once. Two
    /// commands are exempt: one that [restarts](Self::restart) the saga, and one that the saga has sent to itself with
    /// [`then`](CompensationScope::then), which may only record events.
    ///
    /// While a saga [compensates](Self::compensate), and in the turn in which it begins to, this has no effect:
    /// compensation ends the saga after everything is undone, regardless of the order of the two calls.
    pub fn complete(&mut self) {
        self.requested.ended = true;
    }

    /// Lets this command start the saga again if it has ended, with an empty compensation log and without timers. Steps
    /// sent from now on can be undone, timers fire, and replies are handled. For keys that are used again, such as an
    /// order that is placed again after a failed attempt.
    ///
    /// The saga's own state remains as its events have made it; record an event that resets it. Replies to commands of
    /// an earlier run are ignored. No effect while the saga has not ended, and outside a command's handler.
    pub fn restart(&mut self) {
        self.requested.restarts = true;
    }

    /// Undoes the steps that were sent with [`compensate_with`](Sent::compensate_with), in reverse order: each once,
    /// the next after the previous one has replied, and only those that were done. Then the saga ends. Until then
    /// events and timers have no effect, and neither has [`complete`](Self::complete).
    ///
    /// A rejected compensating command becomes a dead letter of this saga. An operator redrives it, which sends the
    /// command again, or discards it. A discarded step stays done, which is logged and counted in
    /// [`Metrics::given_up`](crate::Metrics::given_up), and the remaining steps are undone.
    pub fn compensate(&mut self) -> CompensationScope<'_, A> {
        self.begin_compensation()
    }
}

impl<A: Saga> Sent<'_, A> {
    /// Registers the command that undoes this one if the saga [compensates](Effects::compensate).
    ///
    /// It is sent only if this command was done, not if it was rejected. Write its handler so that it cannot reject: a
    /// rejection needs an operator, see [`Effects::compensate`].
    pub fn compensate_with<C: Command>(self, undo: C) -> Self {
        self.plan_compensation(undo)
    }
}
