//! The traits of aggregates, and the lists that their derive fills.
//!
//! Implemented by users and called by the [actor](crate::actor). Calls user code. A handler decides on `&self`: it can
//! neither change state nor await.

mod publisher;
#[cfg(feature = "schedules")]
mod schedule;
mod scheduler;

pub(crate) use publisher::{Publisher, publish};
#[cfg(feature = "schedules")]
pub(crate) use schedule::Schedule;
pub(crate) use scheduler::Scheduler;

use crate::actor::{CommandCall, CommandDispatcher, Effects, EventContext, Plan, Stateful, typed, typed_state};
use whizbang_core::message::{CodecError, Coded, Command, Event, Of, Rejection};

/// An event-sourced actor that guards one consistency boundary. Derived with `#[derive(Aggregate)]`.
///
/// One actor exists per key, and it handles one message at a time. Its state is the fold of its events.
///
/// ```
/// # use bank_fixture as bank;
/// use bank::{Account, Deposit};
/// use whizbang::prelude::*;
///
/// # #[whizbang::main]
/// # async fn main() -> Result<(), whizbang::Error> {
/// let node = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().start().await?;
/// let balance = node.client().send(Deposit { account: "ada".into(), cents: 500 }).await?;
/// assert_eq!(balance, 500);
/// # node.stop().await
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an aggregate",
    note = "derive it: `#[derive(Aggregate, Default)] #[aggregate(domain = …, handles(…), applies(…))]`",
    note = "a saga is hosted with `NodeBuilder::saga`"
)]
pub trait Aggregate: Stateful {}

/// Decides on a command.
///
/// ```
/// # use bank_fixture as bank;
/// use bank::{Bank, Deposited};
/// use whizbang::prelude::*;
///
/// #[derive(Command, Serialize, Deserialize)]
/// #[command(domain = Bank, reply = u64)]
/// struct Open {
///     #[key]
///     account: String,
///     cents: u64,
/// }
///
/// #[derive(Aggregate, Default)]
/// #[aggregate(domain = Bank, handles(Open), applies(Deposited))]
/// struct Account {
///     cents: u64,
/// }
///
/// impl Handle<Open> for Account {
///     fn handle(&self, open: Open, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
///         if self.cents > 0 {
///             return Err(Rejection::new("bank.already-open", "the account is open"));
///         }
///         effects.record(Deposited { cents: open.cents });
///         Ok(open.cents)
///     }
/// }
/// # impl Apply<Deposited> for Account {
/// #     fn apply(&mut self, deposited: &Deposited) {
/// #         self.cents += deposited.cents;
/// #     }
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not handle `{C}`",
    label = "listed in `handles(…)`, but not handled",
    note = "write `impl Handle<{C}> for {Self} {{ fn handle(&self, command: {C}, effects: &mut Effects<Self>) -> Result<…, Rejection> {{ … }} }}`"
)]
pub trait Handle<C: Command>: Stateful {
    /// Decides on `command`: records events and sends commands through `effects`, then replies or rejects.
    ///
    /// No requested effect has happened when this returns. A rejection discards all of them. A panic counts as a failed
    /// delivery.
    ///
    /// # Errors
    /// A [`Rejection`] is a final business refusal. It is stored as the command's reply and never retried.
    fn handle(&self, command: C, effects: &mut Effects<Self>) -> Result<C::Reply, Rejection>;
}

/// Changes the state by a recorded event. Runs once when the event is recorded, and again in every rebuild.
///
/// ```
/// # use bank_fixture as bank;
/// use bank::{Bank, Deposit, Deposited};
/// use whizbang::prelude::*;
///
/// #[derive(Aggregate, Default)]
/// #[aggregate(domain = Bank, handles(Deposit), applies(Deposited))]
/// struct Account {
///     cents: u64,
/// }
///
/// impl Apply<Deposited> for Account {
///     fn apply(&mut self, deposited: &Deposited) {
///         self.cents += deposited.cents;
///     }
/// }
/// # impl Handle<Deposit> for Account {
/// #     fn handle(&self, deposit: Deposit, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
/// #         effects.record(Deposited { cents: deposit.cents });
/// #         Ok(self.cents + deposit.cents)
/// #     }
/// # }
///
/// let mut account = Account::default();
/// account.apply(&Deposited { cents: 500 });
/// assert_eq!(account.cents, 500);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not apply `{E}`",
    label = "listed in `applies(…)`, but not applied",
    note = "write `impl Apply<{E}> for {Self} {{ fn apply(&mut self, event: &{E}) {{ … }} }}`"
)]
pub trait Apply<E: Event>: Stateful {
    /// Changes the state. Must not fail, and must produce the same state from the same events.
    fn apply(&mut self, event: &E);
}

/// Marks an event that an actor lists in `applies(…)` or `records(…)`; the derives implement it.
#[doc(hidden)]
pub trait Applies<E: Event>: Apply<E> {}

/// An event that the actor `A` may record, because `A` lists it in `applies(…)` or `records(…)`. The derives implement
/// it.
///
/// It is a property of the event and not of the actor. The compiler checks the actor before it knows the event, and
/// could not name the event in the error.
///
/// Code that is generic over the actor requires it:
///
/// ```
/// use whizbang::aggregate::RecordedBy;
/// use whizbang::prelude::*;
/// # #[derive(Domain)]
/// # struct Bank;
///
/// #[derive(Event, Serialize, Deserialize)]
/// #[event(domain = Bank)]
/// struct Audited {
///     by: String,
/// }
///
/// /// Works for every aggregate that lists `Audited`.
/// fn audit<A: Aggregate>(by: &str, effects: &mut Effects<A>)
/// where
///     Audited: RecordedBy<A>,
/// {
///     effects.record(Audited { by: by.to_owned() });
/// }
/// # let _ = Audited { by: String::new() }.by;
/// ```
#[diagnostic::on_unimplemented(
    message = "`{A}` cannot record `{Self}`",
    label = "not listed in `applies(…)` of `{A}`",
    note = "add `{Self}` to `applies(…)` and write `impl Apply<{Self}> for {A}`; or to `records(…)`, if it changes nothing in `{A}`",
    note = "if `{A}` is a type parameter, add `where {Self}: whizbang::aggregate::RecordedBy<{A}>`"
)]
pub trait RecordedBy<A>: Event {
    /// Changes the state of the actor.
    #[doc(hidden)]
    fn apply_to(&self, state: &mut A);
}

#[diagnostic::do_not_recommend]
impl<A: Applies<E>, E: Event> RecordedBy<A> for E {
    fn apply_to(&self, state: &mut A) {
        state.apply(self);
    }
}

/// Reacts to an event of any domain, including its own. Sagas orchestrate with it; aggregates may take part in a
/// choreography.
///
/// ```
/// # use bank_fixture as bank;
/// use bank::{Bank, Deposit, Deposited};
/// use whizbang::prelude::*;
///
/// /// Adds a bonus to large deposits.
/// #[derive(Saga, Default)]
/// #[saga(domain = Bank, reacts(Deposited))]
/// struct Bonus {}
///
/// impl React<Deposited> for Bonus {
///     fn react(&self, deposited: Deposited, effects: &mut Effects<Self>) {
///         if deposited.cents >= 100_000 {
///             let account = effects.key().to_owned();
///             effects.send(Deposit { account, cents: 500 });
///         }
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not react to `{E}`",
    label = "listed in `reacts(…)`, but not handled",
    note = "write `impl React<{E}> for {Self} {{ fn react(&self, event: {E}, effects: &mut Effects<Self>) {{ … }} }}`"
)]
pub trait React<E: Event>: Stateful {
    /// Returns the key of the actor that handles the event; `None` if none does. The default is the key of the stream
    /// in which it was recorded.
    fn key(event: &E, context: &EventContext) -> Option<String> {
        let _ = event;
        Some(context.key.clone())
    }

    /// Reacts: records events, sends commands, sets timers through `effects`. A panic counts as a failed delivery.
    ///
    /// [`Effects::event_context`] returns the key, position and time of the event.
    fn react(&self, event: E, effects: &mut Effects<Self>);
}

/// Handles the reply to a command that this actor sent.
///
/// ```
/// # use bank_fixture as bank;
/// use bank::{Bank, Deposit, Deposited};
/// use whizbang::prelude::*;
///
/// #[derive(Saga, Default)]
/// #[saga(domain = Bank, reacts(Deposited), replies(Deposit))]
/// struct Bonus {}
///
/// impl OnReply<Deposit> for Bonus {
///     fn on_reply(&self, reply: Result<u64, Rejection>, effects: &mut Effects<Self>) {
///         match reply {
///             Ok(_balance) => effects.complete(),
///             Err(_rejection) => {
///                 effects.compensate();
///             }
///         }
///     }
/// }
/// # impl React<Deposited> for Bonus {
/// #     fn react(&self, _: Deposited, effects: &mut Effects<Self>) {
/// #         let account = effects.key().to_owned();
/// #         effects.send(Deposit { account, cents: 500 });
/// #     }
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not handle replies to `{C}`",
    label = "listed in `replies(…)`, but not handled",
    note = "write `impl OnReply<{C}> for {Self} {{ fn on_reply(&self, reply: Result<…, Rejection>, effects: &mut Effects<Self>) {{ … }} }}`"
)]
pub trait OnReply<C: Command>: Stateful {
    /// Handles the reply: records events, sends commands, sets timers through `effects`.
    ///
    /// [`Effects::replied_command`] returns the answered command if several were sent.
    fn on_reply(&self, reply: Result<C::Reply, Rejection>, effects: &mut Effects<Self>);
}

impl<A: Stateful> Plan<A> {
    /// Lists a command that the actor handles.
    pub fn handles<C: Command + Of<A::Domain>>(&mut self)
    where
        A: Handle<C>,
    {
        self.add_command::<C>(
            |state, envelope, effects| {
                let command = C::decode(envelope.version, envelope.codec, &envelope.payload)?;
                CommandCall::<A, C>::decoded(command, <A as Handle<C>>::handle).decide(state, effects)
            },
            |dispatcher, routes| CommandDispatcher::<A, C>::register(dispatcher, <A as Handle<C>>::handle, routes),
        );
    }

    /// Lists an event that changes the actor's state.
    pub fn applies<E: Event + Of<A::Domain>>(&mut self)
    where
        A: Applies<E>,
    {
        self.add_apply::<E>(|state, version, codec, bytes| {
            let state: &mut A = typed_state(state)?;
            E::decode_each(version, codec, bytes, &mut |event| state.apply(&event))
        });
    }

    /// Lists an event that the actor records without a change of its state.
    pub fn records<E: Event + Of<A::Domain>>(&mut self)
    where
        A: Applies<E>,
    {
        self.add_apply::<E>(|_, _, _, _| Ok(()));
    }

    /// Lists an event that the actor reacts to.
    pub fn reacts<E: Event>(&mut self)
    where
        A: React<E>,
    {
        self.add_react::<E>(
            |envelope| {
                let (context, mut keys) = (EventContext::of(envelope), Vec::new());
                E::decode_each(envelope.version, envelope.codec, &envelope.payload, &mut |event| {
                    keys.push(<A as React<E>>::key(&event, &context));
                })?;
                single_key(keys)
            },
            |state, envelope, effects| {
                let (state, effects) = typed::<A>(state, effects)?;
                effects.requested.event_context = Some(EventContext::of(envelope));
                E::decode_each(envelope.version, envelope.codec, &envelope.payload, &mut |event| {
                    state.react(event, effects);
                })
            },
        );
    }

    /// Lists a command whose replies the actor handles.
    pub fn replies<C: Command>(&mut self)
    where
        A: OnReply<C>,
    {
        self.add_reply::<C>(|state, envelope, effects| {
            let (state, effects) = typed::<A>(state, effects)?;
            let reply = C::Reply::read_reply(envelope.codec, &envelope.payload)?;
            effects.requested.replied_command = envelope.causation;
            state.on_reply(reply, effects);
            Ok(())
        });
    }
}

/// Returns the one key of the events that a stored event was split into: one stored event is one delivery.
fn single_key(mut keys: Vec<Option<String>>) -> Result<Option<String>, CodecError> {
    let key = keys.pop().flatten();
    match keys.iter().all(|other| *other == key) {
        true => Ok(key),
        false => Err(CodecError::Decode { reason: "was split into events for several keys".to_owned() }),
    }
}

impl<A: Stateful> Effects<A> {
    /// Records an event. It changes the state, is stored, and is published after the turn is committed.
    ///
    /// An event that cannot be encoded, or is larger than 512 KiB, fails the whole turn: the message becomes a dead
    /// letter.
    pub fn record<E: RecordedBy<A>>(&mut self, event: E) {
        self.record_with(event, E::apply_to);
    }
}
