//! What a handler asks for: nothing has happened yet.
//!
//! A thin form of [`RequestedEffects`](super::requested::RequestedEffects) that knows the type of its actor: what is here is compiled once
//! for each actor type and message of the user's program, so it is as little as can be.

use std::any::{Any, TypeId};
use std::marker::PhantomData;
use std::ops::Range;
use std::rc::Rc;

use super::compensation::{CompensationChange, PlannedCommand};
use super::handler_table::HandlerTable;
use super::plan::{EventContext, Stateful};
use super::requested::{AnyEffects, RequestedEffects};
use crate::clock::{MonotonicTime, Timestamp};
use crate::message::{Codec, Command, Domain, Fingerprint, Message, MessageFacts, MessageId, settle, settle_command};

/// What a handler asks for: record, send, schedule. Nothing of it has happened before the turn is committed, and then all of
/// it has; a rejection throws it away.
///
/// Handlers have no other way to the world: time and ids come from here, so that a replay in a test gives the same.
pub struct Effects<A: Stateful> {
    pub(crate) requested: RequestedEffects,
    actor: PhantomData<fn() -> A>,
}

/// The place of one recorded event until it is applied.
pub(super) trait Recorded: Any {
    /// Applies it to the state, if there still is one.
    fn apply(&mut self, state: &mut dyn Any);
    /// Throws it away.
    fn clear(&mut self);
}

struct Place<A, M> {
    event: Option<M>,
    apply: fn(&M, &mut A),
}

impl<A: 'static, M: 'static> Recorded for Place<A, M> {
    fn apply(&mut self, state: &mut dyn Any) {
        if let (Some(event), Some(state)) = (self.event.take(), state.downcast_mut()) {
            (self.apply)(&event, state);
        }
    }

    fn clear(&mut self) {
        self.event = None;
    }
}

impl<A: Stateful> Effects<A> {
    /// Nothing asked for. The caller does not know the type.
    pub(super) fn begin(plan: Rc<HandlerTable>, steady: MonotonicTime) -> Box<dyn AnyEffects> {
        Box::new(Self { requested: RequestedEffects::new(plan, steady), actor: PhantomData })
    }

    /// Writes a message down; its place is among the payloads. An error fails the turn.
    pub(crate) fn put<M: Message>(&mut self, codec: Codec, message: &M) -> Range<usize> {
        let start = self.requested.payloads.len();
        if let Err(error) = settle(message, codec, &mut self.requested.payloads) {
            self.requested.error.get_or_insert(error);
        }
        start..self.requested.payloads.len()
    }

    /// Notes an event: its bytes for the log, and for the state the event as it reads from them. So the state is always what a
    /// replay of the log makes of it.
    pub(crate) fn take_down<M: Message>(&mut self, event: M, apply: fn(&M, &mut A)) {
        let requested = &mut self.requested;
        let start = requested.payloads.len();
        let event = match settle(&event, A::Domain::CODEC, &mut requested.payloads) {
            Ok(read) => read.unwrap_or(event),
            Err(error) => {
                requested.error.get_or_insert(error);
                return;
            }
        };
        match requested.place().and_then(|place| place.downcast_mut::<Place<A, M>>()) {
            Some(place) => place.event = Some(event),
            None => requested.add_place(Box::new(Place { event: Some(event), apply })),
        }
        requested.record(M::NAME, M::VERSION, start);
    }

    /// Sends a command to the owner of its domain once the turn is committed.
    ///
    /// It is sent until the owner has committed it, and handled once. A saga hears of the reply through
    /// [`OnReply`](crate::OnReply) if it lists the command in `replies(…)`; if it does not and the command is rejected, the
    /// saga [compensates](Self::compensate).
    ///
    /// A key that is empty or too long, or a command that cannot be encoded, makes the whole turn fail.
    pub fn send<C: Command>(&mut self, command: C) -> Sent<'_, A> {
        let planned = self.planned(&command);
        let command = self.requested.send(TypeId::of::<C>(), planned, Fingerprint::of_command::<C>);
        Sent { effects: self, command }
    }

    fn planned<C: Command>(&mut self, command: &C) -> Option<PlannedCommand> {
        let facts = MessageFacts::of::<C>();
        self.requested
            .planned(facts, command.key(), &mut |payload| settle_command(command, facts.codec, payload).map(drop))
    }

    /// Begins to undo the steps so far.
    pub(crate) fn begin_undo(&mut self) -> CompensationScope<'_, A> {
        self.requested.begin_undo();
        CompensationScope { effects: self }
    }

    /// The moment of this turn. The same throughout the turn.
    pub fn now(&self) -> Timestamp {
        self.requested.turn.time
    }

    /// Returns a new id, derived from this turn's message and this actor: the same if the turn is taken again, another one for
    /// every other actor that takes the same message.
    pub fn new_id(&mut self) -> MessageId {
        self.requested.new_id()
    }

    /// The actor's key.
    pub fn key(&self) -> &str {
        &self.requested.turn.key
    }

    /// The id of the message this turn handles.
    pub fn message_id(&self) -> MessageId {
        self.requested.turn.id
    }

    /// The correlation id of the message this turn handles.
    pub fn correlation(&self) -> MessageId {
        self.requested.turn.correlation
    }

    /// In [`React::react`](crate::React::react) what is known about the event besides its content: who recorded it, where and
    /// when. `None` in every other turn.
    pub fn event_context(&self) -> Option<&EventContext> {
        self.requested.about.as_ref()
    }

    /// In [`OnReply::on_reply`](crate::OnReply::on_reply) the command that is answered, as [`Sent::id`] named it when it was
    /// sent. `None` in every other turn.
    pub fn replied_command(&self) -> Option<MessageId> {
        self.requested.answered
    }
}

/// A command that is to be sent.
pub struct Sent<'a, A: Stateful> {
    effects: &'a mut Effects<A>,
    command: MessageId,
}

impl<A: Stateful> Sent<'_, A> {
    /// Takes down the command that undoes this one.
    pub(crate) fn take_undo<C: Command>(self, undo: C) -> Self {
        if let Some(undo) = self.effects.planned(&undo) {
            self.effects.requested.undo_last_with(self.command, undo);
        }
        self
    }

    /// The id under which it is sent: the same in every replay. [`Effects::replied_command`] says it again when the reply comes.
    pub fn id(&self) -> MessageId {
        self.command
    }
}

/// A compensation that is to begin.
pub struct CompensationScope<'a, A: Stateful> {
    effects: &'a mut Effects<A>,
}

impl<A: Stateful> CompensationScope<'_, A> {
    /// Sends this command once everything is undone.
    pub fn then<C: Command>(self, command: C) -> Self {
        if let Some(planned) = self.effects.planned(&command)
            && let Some(CompensationChange::Begin { finally }) = self.effects.requested.undo.last_mut()
        {
            finally.push(planned);
        }
        self
    }
}
