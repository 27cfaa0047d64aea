//! The effects that a handler has requested, independent of its actor's type. None of them has happened yet.
//!
//! Filled through [`Effects`](super::effects::Effects), which adds the actor's type. Read by the [turn](super::turn),
//! which is compiled once for all actor types.

use std::any::Any;
use std::borrow::Cow;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use super::compensation::CompensationChange;
use super::event_context::EventContext;
use super::identity::ActorIdentity;
use super::timer_name::TIMER_NAME;
use crate::router::PlannedCommand;
use whizbang_core::clock::{MonotonicTime, Timestamp};
use whizbang_core::message::{
    Codec, CodecError, Coded, Envelope, HeaderError, MessageId, Rejection, ReplyMode, ShardId, encode_reply_verified,
    header, set_header,
};

/// The effects requested in one turn. Each dispatcher keeps one value, so that turns reuse its memory.
pub struct RequestedEffects {
    pub(crate) turn: TurnFacts,
    /// The clock by which timers are due.
    pub(crate) monotonic: MonotonicTime,
    pub(crate) identity: Rc<ActorIdentity>,
    pub(crate) payloads: Vec<u8>,
    pub(super) events: Vec<EventSlot>,
    /// One slot for each of `events`. The slots after them are empty and kept for the next turn.
    recorded: Vec<Box<dyn RecordedSlot>>,
    /// True if the slots of this turn were applied, and so are empty as well.
    applied: bool,
    pub(crate) outgoing: Vec<Outgoing>,
    /// The commands that are sent later: their index in `outgoing`, and when they are due.
    pub(super) delays: Vec<(usize, Timestamp)>,
    pub(crate) timers: Vec<TimerSlot>,
    pub(crate) compensation: Vec<CompensationChange>,
    pub(crate) reply: Vec<u8>,
    pub(crate) rejected: bool,
    /// True if the command had expired.
    pub(super) expired: bool,
    pub(crate) ended: bool,
    /// True if an ended saga starts again.
    pub(crate) restarts: bool,
    pub(crate) error: Option<CodecError>,
    /// The context of the event that is being handled.
    pub(crate) event_context: Option<EventContext>,
    /// The command whose reply is being handled.
    pub(crate) replied_command: Option<MessageId>,
    /// The own name of the timer that is being handled.
    pub(crate) timer_name: Option<String>,
    fresh_ids: u32,
    /// The headers of everything that the turn records and sends.
    pub(crate) headers: Vec<(String, String)>,
}

impl std::fmt::Debug for RequestedEffects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestedEffects").finish_non_exhaustive()
    }
}

/// The [`Effects`](super::effects::Effects) of an unknown actor type: handlers receive it, behind one virtual call.
pub trait AnyEffects: Any {
    fn requested(&mut self) -> &mut RequestedEffects;
}

/// The slot of one recorded event until it is applied.
pub(super) trait RecordedSlot: Any {
    /// Applies the event to the state, if the slot holds one.
    fn apply(&mut self, state: &mut dyn Any);
    /// Drops the event.
    fn clear(&mut self);
}

/// The number of event slots kept for the next turn.
const MAX_SPARE_SLOTS: usize = 16;

/// The facts of the current turn.
#[derive(Clone, Debug)]
pub(crate) struct TurnFacts {
    pub(crate) id: MessageId,
    pub(crate) correlation: MessageId,
    pub(crate) traceparent: Option<Box<str>>,
    /// The headers of the handled message.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) time: Timestamp,
    pub(crate) key: Rc<str>,
}

/// An event to record; its bytes are in the payloads of the effects.
pub(super) struct EventSlot {
    pub(crate) name: &'static str,
    pub(crate) version: u32,
    pub(crate) payload: Range<usize>,
}

/// A message to send.
pub(crate) struct Outgoing {
    pub(crate) to: ShardId,
    pub(crate) envelope: Envelope,
}

/// A timer to set or clear.
pub(crate) enum TimerSlot {
    Set { name: Cow<'static, str>, due: Timestamp, version: u32, codec: Codec, payload: Range<usize> },
    Clear { name: Cow<'static, str> },
}

impl TimerSlot {
    /// Returns the stored name.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Set { name, .. } | Self::Clear { name } => name,
        }
    }
}

impl RequestedEffects {
    pub(crate) fn new(identity: Rc<ActorIdentity>, monotonic: MonotonicTime) -> Self {
        Self {
            turn: TurnFacts {
                id: MessageId::from_u128(0),
                correlation: MessageId::from_u128(0),
                traceparent: None,
                headers: Vec::new(),
                time: Timestamp::default(),
                key: Rc::from(""),
            },
            monotonic,
            identity,
            payloads: Vec::new(),
            events: Vec::new(),
            recorded: Vec::new(),
            applied: false,
            outgoing: Vec::new(),
            delays: Vec::new(),
            timers: Vec::new(),
            compensation: Vec::new(),
            reply: Vec::new(),
            rejected: false,
            expired: false,
            ended: false,
            restarts: false,
            error: None,
            event_context: None,
            replied_command: None,
            timer_name: None,
            fresh_ids: 0,
            headers: Vec::new(),
        }
    }

    pub(crate) fn begin(&mut self, turn: TurnFacts) {
        self.discard();
        self.turn = turn;
        self.reply.clear();
        (self.rejected, self.expired) = (false, false);
        self.error = None;
        (self.event_context, self.replied_command, self.timer_name) = (None, None, None);
        self.fresh_ids = 0;
        self.headers.clear();
        if !self.turn.headers.is_empty() {
            if let Some(at) = self.turn.headers.iter().position(|(name, _)| name == TIMER_NAME) {
                self.timer_name = Some(self.turn.headers.remove(at).1);
            }
            propagate(&self.turn.headers, &self.identity.propagated, &mut self.headers);
        }
    }

    /// Sets a header of everything that the turn records and sends.
    pub(super) fn set_header(&mut self, name: &str, value: &str) {
        match set_header(&mut self.headers, name, value) {
            Ok(()) => {
                for Outgoing { envelope, .. } in &mut self.outgoing {
                    // Set before, for one command alone: that value stays.
                    if header(&envelope.headers, name).is_none() {
                        let _ = set_header(&mut envelope.headers, name, value);
                    }
                }
            }
            Err(error) => self.refuse_header(&error),
        }
    }

    /// Sets a header of the command that was sent last.
    pub(super) fn set_header_of_last(&mut self, command: MessageId, name: &str, value: &str) {
        // A command that cannot be encoded is not the last one; its error fails the turn.
        let last = self.outgoing.last_mut().filter(|sent| sent.envelope.id == command);
        if let Some(Err(error)) = last.map(|sent| set_header(&mut sent.envelope.headers, name, value)) {
            self.refuse_header(&error);
        }
    }

    pub(super) fn refuse_header(&mut self, error: &HeaderError) {
        self.error.get_or_insert(CodecError::Encode { reason: error.to_string() });
    }

    /// Returns when a time of the wall clock is reached, by the clock of timers.
    pub(crate) fn after_wall_time(&self, due: Timestamp) -> Timestamp {
        self.monotonic.now().after(due.since(self.turn.time))
    }

    /// Returns when a delay has passed, by the clock of timers.
    pub(crate) fn after(&self, after: Duration) -> Timestamp {
        self.monotonic.now().after(after)
    }

    /// Discards everything requested so far except the reply.
    fn discard(&mut self) {
        self.payloads.clear();
        if !std::mem::take(&mut self.applied) {
            self.recorded.iter_mut().take(self.events.len()).for_each(|recorded| recorded.clear());
        }
        self.recorded.truncate(MAX_SPARE_SLOTS);
        self.events.clear();
        self.outgoing.clear();
        self.delays.clear();
        self.timers.clear();
        self.compensation.clear();
        self.ended = false;
        self.restarts = false;
    }

    /// Returns whether only a reply was requested.
    pub(super) fn is_reply_only(&self) -> bool {
        let records = !self.events.is_empty() || !self.compensation.is_empty() || self.ended;
        !records && self.is_events_only()
    }

    /// Returns whether only events were requested: no command, no timer, no compensation.
    pub(super) fn is_events_only(&self) -> bool {
        self.outgoing.is_empty() && self.timers.is_empty() && self.compensation.is_empty()
    }

    /// Discards every request and rejects the command.
    pub(super) fn reject(&mut self, rejection: Rejection) {
        self.discard();
        self.rejected = true;
        self.reply.clear();
        if let Err(error) = <()>::write_reply(&Err(rejection), self.identity.facts.codec, &mut self.reply) {
            self.error.get_or_insert(error);
        }
    }

    /// Stores the result of a command's handler. Returns it as every caller will decode it; `None` if it cannot be
    /// decoded, which fails the turn.
    pub(crate) fn set_reply<R: Coded + 'static>(
        &mut self,
        codec: Codec,
        reply: Result<R, Rejection>,
    ) -> Option<Result<R, Rejection>> {
        if reply.is_err() {
            self.discard();
            self.rejected = true;
        }
        self.reply.clear();
        match encode_reply_verified(reply, codec, &mut self.reply) {
            Ok(reply) => Some(reply),
            Err(error) => {
                self.error.get_or_insert(error);
                None
            }
        }
    }

    /// Returns the slot of the previous event with this index, if it was kept.
    ///
    /// Nearly every turn records the same event type as the turn before it: reusing its slot saves an allocation.
    pub(super) fn spare_slot(&mut self) -> Option<&mut dyn Any> {
        self.recorded.get_mut(self.events.len()).map(|place| &mut **place as &mut dyn Any)
    }

    /// Adds a slot for the next event.
    pub(super) fn add_slot(&mut self, place: Box<dyn RecordedSlot>) {
        self.recorded.truncate(self.events.len());
        self.recorded.push(place);
    }

    /// Records an event whose slot is filled and whose bytes begin at `start`.
    pub(super) fn record(&mut self, name: &'static str, version: u32, start: usize) {
        let payload = start..self.payloads.len();
        self.events.push(EventSlot { name, version, payload });
    }

    /// Applies the recorded events in order.
    pub(crate) fn apply_to(&mut self, state: &mut dyn Any) {
        for recorded in self.recorded.iter_mut().take(self.events.len()) {
            recorded.apply(state);
        }
        self.applied = true;
    }

    /// Begins to undo the steps so far.
    pub(crate) fn begin_compensation(&mut self) {
        self.compensation.push(CompensationChange::Begin { finally: Vec::new() });
    }

    /// Returns the name of the actor's stream. Several actors may handle one message, and the ids they derive from it
    /// must differ.
    pub(super) fn stream_name(&self) -> String {
        format!("{}/{}/{}", self.identity.facts.domain, self.identity.facts.name, self.turn.key)
    }

    /// Returns an id for the handler: the same one in each attempt of the turn.
    pub(super) fn new_id(&mut self) -> MessageId {
        self.fresh_ids += 1;
        self.turn.id.derive(&format!("id/{}", self.stream_name()), self.fresh_ids)
    }

    /// Registers the command that undoes the last sent command.
    pub(super) fn compensate_last_with(&mut self, command: MessageId, undo: PlannedCommand) {
        // Only a step that was done is undone, so its reply is needed.
        if let Some(sent) = self.outgoing.last_mut() {
            sent.envelope.wants = ReplyMode::Reply;
        }
        self.compensation.push(CompensationChange::Step { command, undo });
    }
}

/// Copies the headers with declared names from a handled message to those of its effects.
pub(crate) fn propagate(from: &[(String, String)], names: &[String], into: &mut Vec<(String, String)>) {
    into.extend(from.iter().filter(|(name, _)| names.contains(name)).cloned());
}
