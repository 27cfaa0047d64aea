//! What a handler asks for: nothing has happened yet.

use std::any::{Any, TypeId};
use std::borrow::Cow;
use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;

use super::plan::{About, Plan, Role, Stateful};
use super::undo::{PlannedCommand, UndoChange};
use crate::clock::{Steady, Timestamp};
use crate::message::{
    Codec, CodecError, Coded as _, Command, Domain, Envelope, Fingerprint, Kind, Message, MessageId, Name, Rejection,
    ShardId, Wants, settle, settle_command, settle_reply, shard_of,
};

/// What a handler asks for: record, send, schedule. Nothing of it has happened before the turn is committed, and then all of
/// it has; a rejection throws it away.
///
/// Handlers have no other way to the world: time and ids come from here, so that a replay in a test gives the same.
pub struct Effects<A: Stateful> {
    pub(crate) turn: TurnFacts,
    /// By which timers are due.
    pub(crate) steady: Steady,
    pub(crate) plan: Rc<Plan<A>>,
    pub(crate) payloads: Vec<u8>,
    pub(super) events: Vec<EventSlot>,
    /// One for each of `events`; those behind are empty, and kept for the next turn.
    recorded: Vec<Box<dyn Recorded<A>>>,
    /// Whether those of this turn are applied, and so empty as well.
    applied: bool,
    pub(crate) outgoing: Vec<Outgoing>,
    pub(crate) timers: Vec<TimerSlot>,
    pub(crate) undo: Vec<UndoChange>,
    pub(crate) reply: Vec<u8>,
    pub(crate) rejected: bool,
    pub(crate) ended: bool,
    /// The saga starts again if it has ended.
    pub(crate) restarts: bool,
    pub(crate) error: Option<CodecError>,
    /// What is known about the event that is reacted to.
    pub(crate) about: Option<About>,
    /// The command whose reply is taken.
    pub(crate) answered: Option<MessageId>,
    fresh_ids: u32,
}

/// The place of one recorded event until it is applied.
trait Recorded<A>: Any {
    /// Applies it to the state, if there still is one.
    fn apply(&mut self, state: &mut A);
    /// Throws it away.
    fn clear(&mut self);
}

struct Place<A, M> {
    event: Option<M>,
    apply: fn(&M, &mut A),
}

impl<A: 'static, M: 'static> Recorded<A> for Place<A, M> {
    fn apply(&mut self, state: &mut A) {
        if let Some(event) = self.event.take() {
            (self.apply)(&event, state);
        }
    }

    fn clear(&mut self) {
        self.event = None;
    }
}

/// How many places of recorded events are kept for the next turn.
const KEPT: usize = 16;

/// What is known about the turn that is taken.
#[derive(Clone, Debug)]
pub(crate) struct TurnFacts {
    pub(crate) id: MessageId,
    pub(crate) correlation: MessageId,
    pub(crate) traceparent: Option<Box<str>>,
    pub(crate) time: Timestamp,
    pub(crate) key: Rc<str>,
}

/// An event that is to be recorded; its bytes are in the effects' payloads.
pub(super) struct EventSlot {
    pub(crate) name: &'static str,
    pub(crate) version: u32,
    pub(crate) payload: Range<usize>,
}

/// A message that is to be sent.
pub(crate) struct Outgoing {
    pub(crate) to: ShardId,
    pub(crate) envelope: Envelope,
}

/// A timer that is to be set or cleared.
pub(crate) enum TimerSlot {
    Set { name: Cow<'static, str>, due: Timestamp, version: u32, codec: Codec, payload: Range<usize> },
    Clear { name: Cow<'static, str> },
}

impl TimerSlot {
    /// The name under which it is stored.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Set { name, .. } | Self::Clear { name } => name,
        }
    }
}

impl<A: Stateful> Effects<A> {
    pub(crate) fn new(plan: Rc<Plan<A>>, steady: Steady) -> Self {
        Self {
            turn: TurnFacts {
                id: MessageId::from_u128(0),
                correlation: MessageId::from_u128(0),
                traceparent: None,
                time: Timestamp::default(),
                key: Rc::from(""),
            },
            steady,
            plan,
            payloads: Vec::new(),
            events: Vec::new(),
            recorded: Vec::new(),
            applied: false,
            outgoing: Vec::new(),
            timers: Vec::new(),
            undo: Vec::new(),
            reply: Vec::new(),
            rejected: false,
            ended: false,
            restarts: false,
            error: None,
            about: None,
            answered: None,
            fresh_ids: 0,
        }
    }

    pub(crate) fn begin(&mut self, turn: TurnFacts) {
        self.discard();
        self.turn = turn;
        self.reply.clear();
        self.rejected = false;
        self.error = None;
        (self.about, self.answered) = (None, None);
        self.fresh_ids = 0;
    }

    /// Throws away what was asked for so far, the reply not.
    fn discard(&mut self) {
        self.payloads.clear();
        if !std::mem::take(&mut self.applied) {
            self.recorded.iter_mut().take(self.events.len()).for_each(|recorded| recorded.clear());
        }
        self.recorded.truncate(KEPT);
        self.events.clear();
        self.outgoing.clear();
        self.timers.clear();
        self.undo.clear();
        self.ended = false;
        self.restarts = false;
    }

    /// Returns whether nothing but a reply was asked for.
    pub(super) fn only_replies(&self) -> bool {
        let records = !self.events.is_empty() || !self.undo.is_empty() || self.ended;
        !records && self.only_records()
    }

    /// Returns whether nothing was asked for that outlives the turn but events: no command, no timer, no compensation.
    pub(super) fn only_records(&self) -> bool {
        self.outgoing.is_empty() && self.timers.is_empty() && self.undo.is_empty()
    }

    /// Throws away what was asked for and rejects the command.
    pub(super) fn reject(&mut self, rejection: Rejection) {
        self.discard();
        self.rejected = true;
        self.reply.clear();
        if let Err(error) = <()>::write_reply(&Err(rejection), A::Domain::CODEC, &mut self.reply) {
            self.error.get_or_insert(error);
        }
    }

    /// Notes the outcome of a command's handler. Returns it as every caller will read it; `None` if it cannot be read, which
    /// fails the turn.
    pub(crate) fn replied<C: Command>(
        &mut self,
        reply: Result<C::Reply, Rejection>,
    ) -> Option<Result<C::Reply, Rejection>> {
        if reply.is_err() {
            self.discard();
            self.rejected = true;
        }
        self.reply.clear();
        match settle_reply(reply, <C::Domain as Domain>::CODEC, &mut self.reply) {
            Ok(reply) => Some(reply),
            Err(error) => {
                self.error.get_or_insert(error);
                None
            }
        }
    }

    /// Writes a message down; its place is among the payloads. An error fails the turn.
    pub(crate) fn put<M: Message>(&mut self, codec: Codec, message: &M) -> Range<usize> {
        let start = self.payloads.len();
        if let Err(error) = settle(message, codec, &mut self.payloads) {
            self.error.get_or_insert(error);
        }
        start..self.payloads.len()
    }

    /// Notes an event: its bytes for the log, and for the state the event as it reads from them. So the state is always what a
    /// replay of the log makes of it.
    pub(crate) fn take_down<M: Message>(&mut self, event: M, apply: fn(&M, &mut A)) {
        let start = self.payloads.len();
        let event = match settle(&event, A::Domain::CODEC, &mut self.payloads) {
            Ok(read) => read.unwrap_or(event),
            Err(error) => {
                self.error.get_or_insert(error);
                return;
            }
        };
        let payload = start..self.payloads.len();
        // Nearly every turn records what the turn before it has recorded: its place needs no new allocation.
        let place = self.recorded.get_mut(self.events.len()).map(|place| &mut **place as &mut dyn Any);
        match place.and_then(|place| place.downcast_mut::<Place<A, M>>()) {
            Some(place) => place.event = Some(event),
            None => {
                self.recorded.truncate(self.events.len());
                self.recorded.push(Box::new(Place { event: Some(event), apply }));
            }
        }
        self.events.push(EventSlot { name: M::NAME, version: M::VERSION, payload });
    }

    /// Applies what was recorded, in its order.
    pub(crate) fn apply_to(&mut self, state: &mut A) {
        for recorded in self.recorded.iter_mut().take(self.events.len()) {
            recorded.apply(state);
        }
        self.applied = true;
    }

    /// Sends a command to the owner of its domain once the turn is committed.
    ///
    /// It is sent until the owner has committed it, and handled once. A saga hears of the reply through
    /// [`OnReply`](crate::OnReply) if it lists the command in `replies(…)`; if it does not and the command is rejected, the
    /// saga [compensates](Self::compensate).
    ///
    /// A key that is empty or too long, or a command that cannot be encoded, makes the whole turn fail.
    pub fn send<C: Command>(&mut self, command: C) -> Sent<'_, A> {
        let wants = if self.plan.wants_reply(TypeId::of::<C>()) {
            Wants::Reply
        } else if A::ROLE == Role::Saga {
            Wants::Rejection
        } else {
            Wants::Nothing
        };
        let id = self.derived_id();
        if let Some(planned) = self.planned(&command) {
            let leaves = self.plan.shapes.leaves(C::Domain::NAME);
            let shape = if leaves { Fingerprint::of_command::<C>() } else { None };
            self.dispatch(id, planned, wants, shape);
        }
        Sent { effects: self, command: id }
    }

    fn derived_id(&self) -> MessageId {
        let index = u32::try_from(self.outgoing.len()).unwrap_or(u32::MAX);
        self.turn.id.derive(&self.stream(), index)
    }

    /// Names the actor's stream. Several actors may take one message, and the ids they derive from it must differ.
    fn stream(&self) -> String {
        format!("{}/{}/{}", A::Domain::NAME, A::NAME, self.turn.key)
    }

    /// Writes a command down; `None` if that is impossible, which fails the turn.
    fn planned<C: Command>(&mut self, command: &C) -> Option<PlannedCommand> {
        let key = command.key();
        let mut payload = Vec::new();
        let codec = <C::Domain as Domain>::CODEC;
        let written = if key.is_valid() {
            settle_command(command, codec, &mut payload).map(drop)
        } else {
            Err(CodecError::Encode {
                reason: format!("the key of `{}` has {} bytes, allowed are 1 to 256", C::NAME, key.as_str().len()),
            })
        };
        if let Err(error) = written {
            self.error.get_or_insert(error);
            return None;
        }
        Some(PlannedCommand {
            domain: C::Domain::NAME.to_owned(),
            shard: shard_of(key.as_str(), C::Domain::SHARDS),
            key: key.into_string(),
            name: C::NAME.to_owned(),
            version: C::VERSION,
            codec: codec.id(),
            payload,
        })
    }

    fn dispatch(&mut self, id: MessageId, planned: PlannedCommand, wants: Wants, shape: Option<Fingerprint>) {
        let (Ok(domain), Ok(name)) = (Name::new(&planned.domain), Name::new(&planned.name)) else {
            self.error.get_or_insert(CodecError::Encode {
                reason: format!("`{}.{}` is no name", planned.domain, planned.name),
            });
            return;
        };
        let to = ShardId::new(domain.clone(), planned.shard);
        let envelope = Envelope {
            version: planned.version,
            shape,
            to: Some(to.clone()),
            codec: planned.codec(),
            key: planned.key,
            correlation: self.turn.correlation,
            causation: Some(self.turn.id),
            wants,
            traceparent: self.turn.traceparent.as_deref().map(str::to_owned),
            payload: Bytes::from(planned.payload),
            ..Envelope::new(id, Kind::Command, domain, name, self.turn.time)
        };
        self.outgoing.push(Outgoing { to, envelope });
    }

    /// Sends a planned undoing command; its reply is waited for.
    pub(crate) fn send_undo(&mut self, planned: PlannedCommand) {
        let id = self.derived_id();
        // It was planned in another turn, perhaps by an older program: its shape is not known.
        self.dispatch(id, planned, Wants::Reply, None);
        self.undo.push(UndoChange::Sent { command: id });
    }

    pub(crate) fn send_planned(&mut self, planned: PlannedCommand) {
        let id = self.derived_id();
        self.dispatch(id, planned, Wants::Nothing, None);
    }

    /// Begins to undo the steps so far.
    pub(crate) fn begin_undo(&mut self) -> Compensating<'_, A> {
        self.undo.push(UndoChange::Begin { finally: Vec::new() });
        Compensating { effects: self }
    }

    /// The moment of this turn. The same throughout the turn.
    pub fn now(&self) -> Timestamp {
        self.turn.time
    }

    /// Returns a new id, derived from this turn's message and this actor: the same if the turn is taken again, another one for
    /// every other actor that takes the same message.
    pub fn new_id(&mut self) -> MessageId {
        self.fresh_ids += 1;
        self.turn.id.derive(&format!("id/{}", self.stream()), self.fresh_ids)
    }

    /// The actor's key.
    pub fn key(&self) -> &str {
        &self.turn.key
    }

    /// The id of the message this turn handles.
    pub fn message_id(&self) -> MessageId {
        self.turn.id
    }

    /// The correlation id of the message this turn handles.
    pub fn correlation(&self) -> MessageId {
        self.turn.correlation
    }

    /// In [`React::react`](crate::React::react) what is known about the event besides its content: who recorded it, where and
    /// when. `None` in every other turn.
    pub fn about(&self) -> Option<&About> {
        self.about.as_ref()
    }

    /// In [`OnReply::on_reply`](crate::OnReply::on_reply) the command that is answered, as [`Sent::id`] named it when it was
    /// sent. `None` in every other turn.
    pub fn answered(&self) -> Option<MessageId> {
        self.answered
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
            // Whether the step was done decides whether it is undone, so its reply must be known in any case.
            if let Some(sent) = self.effects.outgoing.last_mut() {
                sent.envelope.wants = Wants::Reply;
            }
            self.effects.undo.push(UndoChange::Step { command: self.command, undo });
        }
        self
    }

    /// The id under which it is sent: the same in every replay. [`Effects::answered`] says it again when the reply comes.
    pub fn id(&self) -> MessageId {
        self.command
    }
}

/// A compensation that is to begin.
pub struct Compensating<'a, A: Stateful> {
    effects: &'a mut Effects<A>,
}

impl<A: Stateful> Compensating<'_, A> {
    /// Sends this command once everything is undone.
    pub fn then<C: Command>(self, command: C) -> Self {
        if let Some(planned) = self.effects.planned(&command)
            && let Some(UndoChange::Begin { finally }) = self.effects.undo.last_mut()
        {
            finally.push(planned);
        }
        self
    }
}
