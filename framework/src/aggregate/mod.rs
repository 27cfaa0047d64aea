//! What users write for aggregates, and what the derive fills in.
//!
//! Called by the [actor](crate::actor) that runs an aggregate. Calls user code.
//! A handler decides on `&self`: it can neither change state nor wait.

use crate::actor::{Asking, CommandDispatcher, Effects, EventContext, Plan, Stateful, typed, typed_state};
use crate::message::{CodecError, Coded, Command, Event, Of, Rejection};

/// An event-sourced actor that guards one consistency boundary. Derived with `#[derive(Aggregate)]`.
pub trait Aggregate: Stateful {}

/// Decides on a command.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not handle `{C}`",
    label = "listed in `handles(…)`, but not handled",
    note = "write `impl Handle<{C}> for {Self} {{ fn handle(&self, command: {C}, effects: &mut Effects<Self>) -> Result<…, Rejection> {{ … }} }}`"
)]
pub trait Handle<C: Command>: Stateful {
    /// Decides on `command`: records events and sends commands through `effects`, then replies; or rejects.
    ///
    /// Nothing of what `effects` was asked for has happened when this returns. A rejection throws it all away.
    /// A panic counts as a failed delivery.
    ///
    /// # Errors
    /// A [`Rejection`] is the domain's final "no"; it is stored as the command's reply and never retried.
    fn handle(&self, command: C, effects: &mut Effects<Self>) -> Result<C::Reply, Rejection>;
}

/// Changes the state by a recorded event. Runs once when the event is recorded and again at every rebuild.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not apply `{E}`",
    label = "listed in `applies(…)`, but not applied",
    note = "write `impl Apply<{E}> for {Self} {{ fn apply(&mut self, event: &{E}) {{ … }} }}`"
)]
pub trait Apply<E: Event>: Stateful {
    /// Changes the state. Must not fail, and must give the same state from the same events.
    fn apply(&mut self, event: &E);
}

/// Says that an actor lists `E` in `applies(…)`; the derives implement it.
#[doc(hidden)]
pub trait Applies<E: Event>: Apply<E> {}

/// An event that the actor `A` may record, because it is listed in `applies(…)` or `records(…)` of `A`. The derives implement it.
///
/// It is a property of the event and not of the actor: the compiler looks for what is wrong with an actor before it knows the
/// event, and could not name it.
///
/// Code that is generic over the actor asks for it:
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
/// /// For every aggregate that lists `Audited`.
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

/// Reacts to an event of any domain, its own included. Sagas orchestrate with it; aggregates may take part in a choreography.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not react to `{E}`",
    label = "listed in `reacts(…)`, but there is no reaction",
    note = "write `impl React<{E}> for {Self} {{ fn react(&self, event: {E}, effects: &mut Effects<Self>) {{ … }} }}`"
)]
pub trait React<E: Event>: Stateful {
    /// The key of the actor that takes the event; `None` if none does. By default the key of the stream it was recorded in.
    fn key(event: &E, about: &EventContext) -> Option<String> {
        let _ = event;
        Some(about.key.clone())
    }

    /// Reacts: records events, sends commands, sets timers through `effects`. A panic counts as a failed delivery.
    ///
    /// Who recorded the event, where and when says [`Effects::event_context`].
    fn react(&self, event: E, effects: &mut Effects<Self>);
}

/// Takes the reply to a command that this actor sent.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not take replies to `{C}`",
    label = "listed in `replies(…)`, but not taken",
    note = "write `impl OnReply<{C}> for {Self} {{ fn on_reply(&self, reply: Result<…, Rejection>, effects: &mut Effects<Self>) {{ … }} }}`"
)]
pub trait OnReply<C: Command>: Stateful {
    /// Takes the reply: records events, sends commands, sets timers through `effects`.
    ///
    /// Which one is answered, if several were sent, says [`Effects::replied_command`].
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
                Asking::<A, C>::read(command, <A as Handle<C>>::handle).decide(state, effects)
            },
            |door, routes| CommandDispatcher::<A, C>::hang_in(door, <A as Handle<C>>::handle, routes),
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

    /// Lists an event that the actor records and that changes nothing in its state.
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
                let (about, mut keys) = (EventContext::of(envelope), Vec::new());
                E::decode_each(envelope.version, envelope.codec, &envelope.payload, &mut |event| {
                    keys.push(<A as React<E>>::key(&event, &about));
                })?;
                only_key(keys)
            },
            |state, envelope, effects| {
                let (state, effects) = typed::<A>(state, effects)?;
                effects.requested.about = Some(EventContext::of(envelope));
                E::decode_each(envelope.version, envelope.codec, &envelope.payload, &mut |event| {
                    state.react(event, effects);
                })
            },
        );
    }

    /// Lists a command whose replies the actor takes.
    pub fn replies<C: Command>(&mut self)
    where
        A: OnReply<C>,
    {
        self.add_reply::<C>(|state, envelope, effects| {
            let (state, effects) = typed::<A>(state, effects)?;
            let reply = C::Reply::read_reply(envelope.codec, &envelope.payload)?;
            effects.requested.answered = envelope.causation;
            state.on_reply(reply, effects);
            Ok(())
        });
    }
}

/// The key of the actor that takes all that one stored event has become: one stored event is one delivery.
fn only_key(mut keys: Vec<Option<String>>) -> Result<Option<String>, CodecError> {
    let key = keys.pop().flatten();
    match keys.iter().all(|other| *other == key) {
        true => Ok(key),
        false => Err(CodecError::Decode { reason: "it was split into events for several keys".to_owned() }),
    }
}

impl<A: Stateful> Effects<A> {
    /// Records an event. It changes the state, is stored, and is published once the turn is committed.
    ///
    /// An event that cannot be encoded, or is larger than 512 KiB, makes the whole turn fail: the message becomes a dead letter.
    pub fn record<E: RecordedBy<A>>(&mut self, event: E) {
        self.take_down(event, E::apply_to);
    }
}
