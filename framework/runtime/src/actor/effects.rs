//! The effects that a handler requests. None of them has happened when the handler returns.
//!
//! Called by user code in handlers. A thin wrapper of [`RequestedEffects`](super::requested::RequestedEffects) that
//! knows the type of its actor: this code is compiled once for each actor type and message of the user's program, so it
//! is kept small.

use std::any::{Any, TypeId};
use std::marker::PhantomData;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use super::compensation::CompensationChange;
use super::event_context::EventContext;
use super::identity::ActorIdentity;
use super::plan::Stateful;
use super::requested::{AnyEffects, RecordedSlot, RequestedEffects};
use crate::router::PlannedCommand;
use whizbang_core::clock::{MonotonicTime, Timestamp};
use whizbang_core::message::{
    Codec, Command, Domain, Fingerprint, Message, MessageFacts, MessageId, encode_command_verified, encode_verified,
    header,
};

/// The effects that a handler requests: events to record, commands to send, timers to set.
///
/// No effect happens before the turn is committed; then all of them have happened. A rejection discards them. If the
/// process ends before the commit, none of them happens, and messages of actors and logs are delivered again.
///
/// A handler has no other access to the outside: time and ids come from here, so that a replay in a test gives the same
/// result.
///
/// ```
/// # use bank_fixture as bank;
/// use bank::Deposited;
/// use whizbang::prelude::*;
/// # #[derive(Command, Serialize, Deserialize)]
/// # #[command(domain = bank::Bank, reply = u64)]
/// # struct Open {
/// #     #[key]
/// #     account: String,
/// # }
///
/// #[derive(Aggregate, Default)]
/// #[aggregate(domain = bank::Bank, handles(Open), applies(Deposited))]
/// struct Gift {
///     cents: u64,
/// }
///
/// impl Handle<Open> for Gift {
///     fn handle(&self, _open: Open, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
///         effects.record(Deposited { cents: 100 });
///         // Recorded, but not applied yet.
///         Ok(self.cents)
///     }
/// }
///
/// impl Apply<Deposited> for Gift {
///     fn apply(&mut self, deposited: &Deposited) {
///         self.cents += deposited.cents;
///     }
/// }
/// ```
pub struct Effects<A: Stateful> {
    pub(crate) requested: RequestedEffects,
    actor: PhantomData<fn() -> A>,
}

impl<A: Stateful> std::fmt::Debug for Effects<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Effects").finish_non_exhaustive()
    }
}

impl<A: Stateful> AnyEffects for Effects<A> {
    fn requested(&mut self) -> &mut RequestedEffects {
        &mut self.requested
    }
}

struct RecordedEvent<A, M> {
    event: Option<M>,
    apply: fn(&M, &mut A),
}

impl<A: 'static, M: 'static> RecordedSlot for RecordedEvent<A, M> {
    fn apply(&mut self, state: &mut dyn Any) {
        if let (Some(event), Some(state)) = (self.event.take(), state.downcast_mut()) {
            (self.apply)(&event, state);
        }
    }

    fn clear(&mut self) {
        self.event = None;
    }
}

/// Records an event of the framework, which has no message type; its bytes begin at `start`. Its `apply` is called like that of
/// an event of the user.
#[cfg(feature = "schedules")]
pub(crate) fn record_own<E: 'static, A: 'static>(
    requested: &mut RequestedEffects,
    name: &'static str,
    start: usize,
    event: E,
    apply: fn(&E, &mut A),
) {
    requested.add_slot(Box::new(RecordedEvent { event: Some(event), apply }));
    requested.record(name, 1, start);
}

impl<A: Stateful> Effects<A> {
    /// Returns effects without any request. Their type is unknown to the caller.
    pub(super) fn empty(identity: Rc<ActorIdentity>, monotonic: MonotonicTime) -> Box<dyn AnyEffects> {
        Box::new(Self { requested: RequestedEffects::new(identity, monotonic), actor: PhantomData })
    }

    /// Encodes a message and returns its range in the payloads. An error fails the turn.
    pub(crate) fn encode<M: Message>(&mut self, codec: Codec, message: &M) -> Range<usize> {
        let start = self.requested.payloads.len();
        if let Err(error) = encode_verified(message, codec, &mut self.requested.payloads) {
            self.requested.error.get_or_insert(error);
        }
        start..self.requested.payloads.len()
    }

    /// Records an event: its bytes for the log, and for the state the event as decoded from them. So the state always
    /// equals a replay of the log.
    pub(crate) fn record_with<M: Message>(&mut self, event: M, apply: fn(&M, &mut A)) {
        let requested = &mut self.requested;
        let start = requested.payloads.len();
        let event = match encode_verified(&event, A::Domain::CODEC, &mut requested.payloads) {
            Ok(read) => read.unwrap_or(event),
            Err(error) => {
                requested.error.get_or_insert(error);
                return;
            }
        };
        match requested.spare_slot().and_then(|place| place.downcast_mut::<RecordedEvent<A, M>>()) {
            Some(place) => place.event = Some(event),
            None => requested.add_slot(Box::new(RecordedEvent { event: Some(event), apply })),
        }
        requested.record(M::NAME, M::WRITES, start);
    }

    /// Sends a command to the owner of its domain after the turn is committed.
    ///
    /// It is sent until the owner has committed it, and handled once. A saga receives the reply through
    /// [`OnReply`](crate::OnReply) if it lists the command in `replies(…)`. If it does not and the command is rejected,
    /// the saga [compensates](Self::compensate).
    ///
    /// A key that is empty or longer than 256 bytes, or a command that cannot be encoded, fails the whole turn.
    pub fn send<C: Command>(&mut self, command: C) -> Sent<'_, A> {
        let planned = self.plan_command(&command);
        let command = self.requested.send(TypeId::of::<C>(), planned);
        Sent { effects: self, command }
    }

    /// Cancels a command that an actor or a job of this domain sends [later](Sent::after): it is not sent after this turn
    /// is committed. No effect if it was sent already.
    pub fn cancel(&mut self, id: MessageId) {
        self.requested.cancel(id);
    }

    fn plan_command<C: Command>(&mut self, command: &C) -> Option<PlannedCommand> {
        let facts = MessageFacts::of::<C>();
        self.requested.planned(facts, Fingerprint::of_command::<C>, command.key(), &mut |payload| {
            encode_command_verified(command, facts.codec, payload).map(drop)
        })
    }

    /// Begins to undo the steps so far.
    pub(crate) fn begin_compensation(&mut self) -> CompensationScope<'_, A> {
        self.requested.begin_compensation();
        CompensationScope { effects: self }
    }

    /// Returns the time of this turn. It does not change during the turn.
    ///
    /// Use it instead of the clock of the system, so that tests and simulations determine the time.
    pub fn now(&self) -> Timestamp {
        self.requested.turn.time
    }

    /// Returns a new id, derived from this turn's message and this actor. A retry of the turn gives the same id;
    /// another actor that handles the same message gets another one.
    pub fn new_id(&mut self) -> MessageId {
        self.requested.new_id()
    }

    /// Returns the actor's key.
    pub fn key(&self) -> &str {
        &self.requested.turn.key
    }

    /// Returns the id of the message that this turn handles.
    pub fn message_id(&self) -> MessageId {
        self.requested.turn.id
    }

    /// Returns the correlation id of the message that this turn handles.
    ///
    /// It is the same for everything that one message from outside has caused, in every service.
    pub fn correlation(&self) -> MessageId {
        self.requested.turn.correlation
    }

    /// Returns the headers of the message that this turn handles. The turn of a timer has none.
    pub fn headers(&self) -> &[(String, String)] {
        &self.requested.turn.headers
    }

    /// Returns the value of a header of the message that this turn handles.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.requested.turn.headers, name)
    }

    /// Returns the W3C trace context of the message that this turn handles. Everything that the turn causes continues it.
    pub fn traceparent(&self) -> Option<&str> {
        self.requested.turn.traceparent.as_deref()
    }

    /// Sets a header of everything that this turn records and sends, including its reply. An earlier value of the same name
    /// is replaced, also one that is [propagated](crate::NodeBuilder::propagate_headers).
    ///
    /// A header that is [invalid](whizbang_core::message::HeaderError) fails the whole turn.
    pub fn set_header(&mut self, name: &str, value: &str) {
        self.requested.set_header(name, value);
    }

    /// Returns the context of the event in [`React::react`](crate::React::react): the key of the actor that recorded
    /// it, its position and its time. `None` in every other turn.
    pub fn event_context(&self) -> Option<&EventContext> {
        self.requested.event_context.as_ref()
    }

    /// Returns the name of the timer in [`OnTimer::on_timer`](crate::OnTimer::on_timer), if it was set
    /// [with a name](Self::set_named_timer). `None` in every other turn.
    pub fn timer_name(&self) -> Option<&str> {
        self.requested.timer_name.as_deref()
    }

    /// Returns the answered command in [`OnReply::on_reply`](crate::OnReply::on_reply), by the id that [`Sent::id`]
    /// returned when it was sent. `None` in every other turn.
    pub fn replied_command(&self) -> Option<MessageId> {
        self.requested.replied_command
    }
}

/// A command that will be sent.
///
/// ```
/// # use bank_fixture as bank;
/// use bank::{Bank, Deposit, Deposited};
/// use whizbang::prelude::*;
///
/// #[derive(Saga, Default)]
/// #[saga(domain = Bank, reacts(Deposited))]
/// struct Bonus {}
///
/// impl React<Deposited> for Bonus {
///     fn react(&self, deposited: Deposited, effects: &mut Effects<Self>) {
///         let account = effects.key().to_owned();
///         let undo = Deposit { account: account.clone(), cents: 0 };
///         let sent = effects.send(Deposit { account, cents: deposited.cents / 100 }).compensate_with(undo);
///         // Every replay gives the same id.
///         let _: whizbang::message::MessageId = sent.id();
///     }
/// }
/// ```
pub struct Sent<'a, A: Stateful> {
    effects: &'a mut Effects<A>,
    command: MessageId,
}

impl<A: Stateful> std::fmt::Debug for Sent<'_, A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sent").field("command", &self.command).finish_non_exhaustive()
    }
}

impl<A: Stateful> Sent<'_, A> {
    /// Registers the command that undoes this one.
    pub(crate) fn plan_compensation<C: Command>(self, undo: C) -> Self {
        if let Some(undo) = self.effects.plan_command(&undo) {
            self.effects.requested.compensate_last_with(self.command, undo);
        }
        self
    }

    /// Sets a header of this command alone. A header that is [invalid](whizbang_core::message::HeaderError) fails the
    /// whole turn.
    pub fn header(self, name: &str, value: &str) -> Self {
        self.effects.requested.set_header_of_last(self.command, name, value);
        self
    }

    /// Sends the command later, once `after` has passed since this turn, even if the node is stopped in between. It is
    /// [cancelled](Effects::cancel) by its [id](Self::id).
    ///
    /// The command is held in the log of the actor's domain. The delay is stored as the time of the wall clock at which
    /// it ends; while the node runs it is measured by the monotonic clock. The command is sent once, at most about a
    /// second late.
    ///
    /// No reply arrives: a saga that needs it sends the command at once, or sets a timer and sends it in the timer's
    /// turn. For the same reason a command that is sent later and that can be
    /// [compensated](Sent::compensate_with) fails the whole turn. A command that is already waiting when the actor ends
    /// is sent.
    pub fn after(self, after: Duration) -> Self {
        let due = self.effects.now().after(after);
        self.at(due)
    }

    /// Sends the command at a time of the wall clock, or at once if it has passed, as [`after`](Self::after).
    pub fn at(self, due: Timestamp) -> Self {
        self.effects.requested.delay_last(self.command, due);
        self
    }

    /// Limits the time until the command is handled, from this turn; for a command that is sent [later](Self::after), from
    /// when it is due. A receiver that reaches it after that does not handle it, and rejects it with
    /// [`Rejection::EXPIRED`](crate::Rejection::EXPIRED): a saga receives the rejection like any other, and compensates.
    /// Default: no limit. As [`SendCommand::expires_in`](crate::client::SendCommand::expires_in).
    pub fn expires_in(self, life: Duration) -> Self {
        self.effects.requested.expire_last(self.command, life);
        self
    }

    /// Returns the id under which it is sent; every replay gives the same. [`Effects::replied_command`] returns it when
    /// the reply arrives.
    pub fn id(&self) -> MessageId {
        self.command
    }
}

/// A compensation that will begin.
///
/// ```
/// # use bank_fixture as bank;
/// use bank::{Bank, Deposit, Deposited};
/// use whizbang::prelude::*;
///
/// #[derive(Command, Serialize, Deserialize)]
/// #[command(domain = Bank)]
/// struct Notify {
///     #[key]
///     account: String,
/// }
///
/// #[derive(Saga, Default)]
/// #[saga(domain = Bank, reacts(Deposited), replies(Deposit))]
/// struct Bonus {}
///
/// impl React<Deposited> for Bonus {
///     fn react(&self, _deposited: Deposited, effects: &mut Effects<Self>) {
///         effects.send(Deposit { account: effects.key().to_owned(), cents: 1 });
///     }
/// }
///
/// impl OnReply<Deposit> for Bonus {
///     fn on_reply(&self, reply: Result<u64, Rejection>, effects: &mut Effects<Self>) {
///         if reply.is_err() {
///             // After everything is undone, the customer is told.
///             let account = effects.key().to_owned();
///             effects.compensate().then(Notify { account });
///         }
///     }
/// }
/// ```
pub struct CompensationScope<'a, A: Stateful> {
    effects: &'a mut Effects<A>,
}

impl<A: Stateful> std::fmt::Debug for CompensationScope<'_, A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CompensationScope").finish_non_exhaustive()
    }
}

impl<A: Stateful> CompensationScope<'_, A> {
    /// Sends this command after everything is undone.
    pub fn then<C: Command>(self, command: C) -> Self {
        if let Some(planned) = self.effects.plan_command(&command)
            && let Some(CompensationChange::Begin { finally }) = self.effects.requested.compensation.last_mut()
        {
            finally.push(planned);
        }
        self
    }
}

#[cfg(feature = "schedules")]
#[cfg(test)]
mod tests {
    use super::super::ActorType;
    use super::super::requested::TurnFacts;
    use super::super::tests::{START, context};
    use super::*;
    use crate::tests::Account;

    #[test]
    fn discarded_events_are_dropped_before_the_next_turn() {
        let table = ActorType::of::<Account>().table;
        let mut effects = (table.new_effects)(Rc::clone(&table.identity), context().monotonic.clone());
        let requested = effects.requested();
        let (id, event) = (MessageId::from_u128(1), Rc::new(()));
        let facts = || {
            let key = Rc::from("k");
            TurnFacts { id, correlation: id, traceparent: None, headers: Vec::new(), time: START, key }
        };
        for is_applied in [false, true] {
            requested.begin(facts());
            for _ in 0..3 {
                record_own(requested, "Happened", 0, Rc::clone(&event), |_, _: &mut Account| {});
            }
            assert_eq!((Rc::strong_count(&event), requested.events.len()), (4, 3));
            if is_applied {
                requested.apply_to(&mut Account::default());
                assert_eq!(Rc::strong_count(&event), 1);
            }
            requested.begin(facts());
            assert_eq!((Rc::strong_count(&event), requested.events.len()), (1, 0), "{is_applied}");
        }
    }
}
