//! What a handler has asked for, whatever the type of its actor: nothing of it has happened yet.
//!
//! Filled through [`Effects`](super::effects::Effects), which is this with the actor's type. Read by the
//! [turn](super::turn), which is compiled once for all actor types, and not once more for each in the user's program.

use std::any::{Any, TypeId};
use std::borrow::Cow;
use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;

use super::compensation::{CompensationChange, PlannedCommand};
use super::effects::{Effects, Recorded};
use super::handler_table::HandlerTable;
use super::plan::{EventContext, Role, Stateful};
use crate::clock::{MonotonicTime, Timestamp};
use crate::message::{
    Codec, CodecError, Coded, Envelope, Fingerprint, Key, Kind, MessageFacts, MessageId, Name, Rejection, ReplyMode,
    ShardId, settle_reply, shard_of,
};

/// What a handler has asked for in one turn.
pub(crate) struct RequestedEffects {
    pub(crate) turn: TurnFacts,
    /// By which timers are due.
    pub(crate) steady: MonotonicTime,
    pub(crate) plan: Rc<HandlerTable>,
    pub(crate) payloads: Vec<u8>,
    pub(super) events: Vec<EventSlot>,
    /// One for each of `events`; those behind are empty, and kept for the next turn.
    recorded: Vec<Box<dyn Recorded>>,
    /// Whether those of this turn are applied, and so empty as well.
    applied: bool,
    pub(crate) outgoing: Vec<Outgoing>,
    pub(crate) timers: Vec<TimerSlot>,
    pub(crate) undo: Vec<CompensationChange>,
    pub(crate) reply: Vec<u8>,
    pub(crate) rejected: bool,
    pub(crate) ended: bool,
    /// The saga starts again if it has ended.
    pub(crate) restarts: bool,
    pub(crate) error: Option<CodecError>,
    /// What is known about the event that is reacted to.
    pub(crate) about: Option<EventContext>,
    /// The command whose reply is taken.
    pub(crate) answered: Option<MessageId>,
    fresh_ids: u32,
}

/// The [`Effects`] of an actor type that is not known: what handlers are called with, behind one virtual call.
pub(crate) trait AnyEffects: Any {
    fn requested(&mut self) -> &mut RequestedEffects;
}

impl<A: Stateful> AnyEffects for Effects<A> {
    fn requested(&mut self) -> &mut RequestedEffects {
        &mut self.requested
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

impl RequestedEffects {
    pub(crate) fn new(plan: Rc<HandlerTable>, steady: MonotonicTime) -> Self {
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
        if let Err(error) = <()>::write_reply(&Err(rejection), self.plan.facts.codec, &mut self.reply) {
            self.error.get_or_insert(error);
        }
    }

    /// Notes the outcome of a command's handler. Returns it as every caller will read it; `None` if it cannot be read, which
    /// fails the turn.
    pub(crate) fn replied<R: Coded + 'static>(
        &mut self,
        codec: Codec,
        reply: Result<R, Rejection>,
    ) -> Option<Result<R, Rejection>> {
        if reply.is_err() {
            self.discard();
            self.rejected = true;
        }
        self.reply.clear();
        match settle_reply(reply, codec, &mut self.reply) {
            Ok(reply) => Some(reply),
            Err(error) => {
                self.error.get_or_insert(error);
                None
            }
        }
    }

    /// The place that was used last for an event of this number, if it is kept.
    ///
    /// Nearly every turn records what the turn before it has recorded: its place needs no new allocation.
    pub(super) fn place(&mut self) -> Option<&mut dyn Any> {
        self.recorded.get_mut(self.events.len()).map(|place| &mut **place as &mut dyn Any)
    }

    /// A new place for the next event.
    pub(super) fn add_place(&mut self, place: Box<dyn Recorded>) {
        self.recorded.truncate(self.events.len());
        self.recorded.push(place);
    }

    /// Notes an event whose place is filled, and whose bytes begin at `start`.
    pub(super) fn record(&mut self, name: &'static str, version: u32, start: usize) {
        let payload = start..self.payloads.len();
        self.events.push(EventSlot { name, version, payload });
    }

    /// Applies what was recorded, in its order.
    pub(crate) fn apply_to(&mut self, state: &mut dyn Any) {
        for recorded in self.recorded.iter_mut().take(self.events.len()) {
            recorded.apply(state);
        }
        self.applied = true;
    }

    /// Sends a command of the given Rust type, whose fingerprint `shape` is asked for if it leaves the node. Returns its id.
    pub(super) fn send(
        &mut self,
        command: TypeId,
        planned: Option<PlannedCommand>,
        shape: fn() -> Option<Fingerprint>,
    ) -> MessageId {
        let wants = if self.plan.wants_reply(command) {
            ReplyMode::Reply
        } else if self.plan.facts.role == Role::Saga {
            ReplyMode::Rejection
        } else {
            ReplyMode::Nothing
        };
        let id = self.derived_id();
        if let Some(planned) = planned {
            let shape = if self.plan.shapes.leaves(&planned.domain) { shape() } else { None };
            self.dispatch(id, planned, wants, shape);
        }
        id
    }

    fn derived_id(&self) -> MessageId {
        let index = u32::try_from(self.outgoing.len()).unwrap_or(u32::MAX);
        self.turn.id.derive(&self.stream(), index)
    }

    /// Names the actor's stream. Several actors may take one message, and the ids they derive from it must differ.
    fn stream(&self) -> String {
        format!("{}/{}/{}", self.plan.facts.domain, self.plan.facts.name, self.turn.key)
    }

    /// Writes a command down; `None` if that is impossible, which fails the turn.
    pub(super) fn planned(
        &mut self,
        command: MessageFacts,
        key: Key<'_>,
        write: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), CodecError>,
    ) -> Option<PlannedCommand> {
        let mut payload = Vec::new();
        let written = if key.is_valid() {
            write(&mut payload)
        } else {
            Err(CodecError::Encode {
                reason: format!("the key of `{}` has {} bytes, allowed are 1 to 256", command.name, key.as_str().len()),
            })
        };
        if let Err(error) = written {
            self.error.get_or_insert(error);
            return None;
        }
        Some(PlannedCommand {
            domain: command.domain.to_owned(),
            shard: shard_of(key.as_str(), command.shards),
            key: key.into_string(),
            name: command.name.to_owned(),
            version: command.version,
            codec: command.codec.id(),
            payload,
        })
    }

    fn dispatch(&mut self, id: MessageId, planned: PlannedCommand, wants: ReplyMode, shape: Option<Fingerprint>) {
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
        self.dispatch(id, planned, ReplyMode::Reply, None);
        self.undo.push(CompensationChange::Sent { command: id });
    }

    pub(crate) fn send_planned(&mut self, planned: PlannedCommand) {
        let id = self.derived_id();
        self.dispatch(id, planned, ReplyMode::Nothing, None);
    }

    /// Begins to undo the steps so far.
    pub(crate) fn begin_undo(&mut self) {
        self.undo.push(CompensationChange::Begin { finally: Vec::new() });
    }

    pub(super) fn new_id(&mut self) -> MessageId {
        self.fresh_ids += 1;
        self.turn.id.derive(&format!("id/{}", self.stream()), self.fresh_ids)
    }

    /// Names the command that undoes the one sent last.
    pub(super) fn undo_last_with(&mut self, command: MessageId, undo: PlannedCommand) {
        // Whether the step was done decides whether it is undone, so its reply must be known in any case.
        if let Some(sent) = self.outgoing.last_mut() {
            sent.envelope.wants = ReplyMode::Reply;
        }
        self.undo.push(CompensationChange::Step { command, undo });
    }
}
