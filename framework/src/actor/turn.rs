//! One turn: decide, apply, append. What leaves the actor leaves after the commit.

use std::collections::BTreeSet;
use std::rc::Rc;

use bytes::Bytes;

use super::compensation::{CompensationChange, NextCompensation};
use super::handler_table::UserSlot;
use super::instance::ActorInstance;
use super::requested::{AnyEffects, EventSlot, Outgoing, RequestedEffects, TimerSlot, TurnFacts};
use super::state::KeyState;
use crate::message::{Codec, CodecError};
use crate::router::SequenceTracker;
use crate::store::{Appended, EventWrite, Mark, Note, OutboxWrite, Source, StoreError, TimerWrite, Turn};
use crate::telemetry::passes;
use crate::user_code::Panicked;

/// How a turn's message is marked as handled.
pub(crate) enum Marked {
    /// It is not.
    None,
    /// By its id.
    Outside { digest: u64 },
    /// By its place.
    From { source: Rc<Source>, sequence: u64, floor: Rc<dyn SequenceTracker> },
    /// By the timer's name.
    Timer { name: String },
}

/// A turn that was appended.
pub(crate) struct Turned {
    pub(crate) appended: Appended,
    pub(crate) reply: Bytes,
}

/// Why a turn has not been taken. Nothing of it is stored.
#[derive(Debug)]
pub(crate) enum Failure {
    /// User code panicked.
    Panic(String),
    /// The message cannot be read.
    Undecodable(String),
    /// What the handler asked for cannot be written.
    Effects(String),
    /// Nobody handles it.
    Unhandled,
    /// A command that undoes a saga's step was rejected.
    Compensation(String),
    /// The process ended during each of so many deliveries.
    Ended(u32),
    /// The store refused the turn.
    Store(StoreError),
}

impl From<Panicked> for Failure {
    fn from(panicked: Panicked) -> Self {
        Self::Panic(panicked.text().to_owned())
    }
}

impl ActorInstance {
    /// Takes one turn: `decide` fills the effects from the state, they change the state, and all is appended as one record.
    ///
    /// After a failure the state is as before, or the actor is told to load again.
    pub(crate) fn turn(
        &mut self,
        facts: TurnFacts,
        marked: &Marked,
        mut notes: Vec<Note>,
        with_reply: bool,
        decide: impl FnOnce(&KeyState, &dyn UserSlot, &mut dyn AnyEffects) -> Result<(), Failure>,
    ) -> Result<Turned, Failure> {
        // Whatever it has waited for meanwhile: on a state that is not the log's nothing is decided, and nothing is written.
        if let Some(error) = self.unfit() {
            return Err(Failure::Store(error));
        }
        #[cfg(feature = "testing")]
        self.compare_with_log();
        passes!("actor", self.dispatcher.handlers.facts.name, facts.id, facts.correlation);
        let mut effects = self.dispatcher.take_effects();
        let decided = self.dispatcher.context.user_code.call(self.dispatcher.label, || {
            // Drops what the turn before has recorded: values of the user.
            effects.requested().begin(facts);
            decide(&self.state, &self.user, &mut *effects)
        });
        let requested = effects.requested();
        let checked = match decided {
            Ok(Ok(())) => match requested.error.take() {
                None => Ok(()),
                Some(error) => Err(Failure::Effects(error.to_string())),
            },
            Ok(Err(failure)) => Err(failure),
            Err(panicked) => Err(panicked.into()),
        };
        let appended = checked.and_then(|()| self.finish(requested, marked, &mut notes));
        let turned = appended.map(|appended| Turned {
            appended,
            // Only those who answer with bytes need them; the straight way has the reply itself.
            reply: if with_reply { Bytes::copy_from_slice(&requested.reply) } else { Bytes::new() },
        });
        self.dispatcher.put_effects(effects);
        turned
    }

    fn finish(
        &mut self,
        effects: &mut RequestedEffects,
        marked: &Marked,
        notes: &mut Vec<Note>,
    ) -> Result<Appended, Failure> {
        let undoes = self.advance_undo(effects, notes).map_err(|error| {
            self.broken = Some(Box::new(StoreError::Closed));
            Failure::Effects(error.to_string())
        })?;
        // An older version has stored this timer under another name: it is set and cleared there as well.
        for at in 0..effects.timers.len() {
            let older =
                effects.timers.get(at).and_then(|timer| self.dispatcher.handlers.older_timer_name(timer.name()));
            if let Some(older) = older.filter(|older| self.state.rest.timers.contains_key(*older)) {
                let name = older.to_owned().into();
                effects.timers.push(TimerSlot::Clear { name });
            }
        }
        // A timer that rang while its key was parked is as late as one that rings after it was cleared.
        if !self.state.rest.parked.is_empty() {
            for timer in &effects.timers {
                let late = self.state.rest.parked.timers(timer.name());
                let late = late.iter().filter(|message| **message != effects.turn.id);
                notes.extend(late.map(|message| Note::Resolved { message: *message }));
            }
        }
        // The state changes before the append: a panic in `apply` must not leave a record behind that can never be read.
        if !effects.events.is_empty()
            && let Some(user) = self.user.user_mut()
        {
            let applied = self.dispatcher.context.user_code.call(self.dispatcher.label, || effects.apply_to(user));
            if let Err(panicked) = applied {
                self.broken = Some(Box::new(StoreError::Closed));
                return Err(panicked.into());
            }
        }
        let appended = self.append(effects, marked, notes);
        match appended {
            Ok(appended) => {
                self.remember(effects, marked, notes, appended);
                Ok(appended)
            }
            Err(error) => {
                self.dispatcher.context.refused(&error);
                // The state has changed and the log has not: the actor must be rebuilt before its next turn.
                if undoes || !effects.events.is_empty() {
                    self.broken = Some(Box::new(error.clone()));
                }
                Err(Failure::Store(error))
            }
        }
    }

    fn append(&mut self, effects: &RequestedEffects, marked: &Marked, notes: &[Note]) -> Result<Appended, StoreError> {
        let codec = self.dispatcher.handlers.facts.codec;
        let payload = |range: &std::ops::Range<usize>| effects.payloads.get(range.clone()).unwrap_or_default();
        let write = |slot: &EventSlot| EventWrite {
            name: slot.name,
            version: slot.version,
            codec,
            payload: payload(&slot.payload),
        };
        // Nearly every turn records one event or none: those need no vector.
        let (one, many);
        let events: &[EventWrite<'_>] = match effects.events.as_slice() {
            [] => &[],
            [slot] => {
                one = [write(slot)];
                &one
            }
            slots => {
                many = slots.iter().map(write).collect::<Vec<_>>();
                &many
            }
        };
        let outbox: Vec<_> =
            effects.outgoing.iter().map(|Outgoing { to, envelope }| OutboxWrite { to, envelope }).collect();
        let timers: Vec<_> = effects
            .timers
            .iter()
            .map(|timer| match timer {
                TimerSlot::Set { name, due, version, codec, payload: range } => {
                    TimerWrite::Set { name, due: *due, version: *version, codec: *codec, payload: payload(range) }
                }
                TimerSlot::Clear { name } => TimerWrite::Clear { name },
            })
            .collect();
        let mark = match marked {
            Marked::None => Mark::None,
            Marked::Outside { digest } => Mark::Outside { digest: *digest },
            Marked::From { source, sequence, floor } => {
                Mark::From { source, sequence: *sequence, floor: floor.watermark_after(*sequence) }
            }
            Marked::Timer { name } => Mark::Timer { name },
        };
        let turn = Turn {
            actor: &self.dispatcher.actor,
            key: &self.key,
            stream: self.stream,
            number: self.state.turns + 1,
            version: self.state.version,
            time: effects.turn.time,
            id: effects.turn.id,
            correlation: effects.turn.correlation,
            traceparent: effects.turn.traceparent.as_deref(),
            mark,
            reply: &effects.reply,
            reply_codec: codec,
            events,
            outbox: &outbox,
            timers: &timers,
            notes,
        };
        let mut writer = self.shard.writer.borrow_mut();
        if self.dispatcher.context.is_alone() { writer.append_alone(&turn) } else { writer.append(&turn) }
    }

    /// Takes down in memory what was appended.
    fn remember(&mut self, effects: &mut RequestedEffects, marked: &Marked, notes: &[Note], appended: Appended) {
        let host = Rc::clone(&self.dispatcher.context);
        let state = &mut self.state;
        let events = effects.events.len() as u64;
        state.version += events;
        state.turns += 1;
        match marked {
            Marked::None => {}
            Marked::Outside { digest } => {
                state.seen.id(
                    effects.turn.id,
                    effects.turn.time,
                    *digest,
                    &effects.reply,
                    self.dispatcher.handlers.facts.codec,
                );
                state.rest.recovered();
            }
            Marked::From { source, sequence, floor } => {
                // Only now: a floor above a message that is not in the log would lose it.
                floor.mark_appended(*sequence);
                state.seen.place(source, *sequence);
                state.rest.recovered();
            }
            Marked::Timer { name } => {
                state.rest.timers.remove(name);
                state.rest.recovered();
            }
        }
        for timer in &effects.timers {
            match timer {
                TimerSlot::Set { name, .. } => {
                    state.rest.timers.insert(name.to_string(), state.turns);
                }
                TimerSlot::Clear { name } => {
                    state.rest.timers.remove(&**name);
                }
            }
        }
        for Outgoing { envelope, .. } in &effects.outgoing {
            state.rest.sent(envelope.id, envelope.kind, envelope.wants);
        }
        for note in notes {
            // Own notes were applied when they were made.
            if !matches!(note, Note::Own(_)) {
                drop(state.note(self.dispatcher.handlers.facts.domain, note));
            }
        }
        self.stream = appended.stream;
        self.last.set((!appended.committed).then_some(appended.ticket));
        if appended.committed {
            host.accepted();
        }
        host.counts.turns.one();
        host.counts.events.many(events);
        if effects.rejected {
            host.counts.rejections.one();
        }
        if (events > 0 && self.shard.relays_events) || !effects.outgoing.is_empty() {
            let (shard, soiled) = (Rc::clone(&self.shard), Rc::clone(&host));
            host.after_commit(appended, move |_| shard.mark_dirty(&soiled));
        }
        let set = effects.timers.iter().filter_map(|timer| match timer {
            TimerSlot::Set { due, .. } => Some(*due),
            TimerSlot::Clear { .. } => None,
        });
        if let Some(due) = set.min() {
            // The timer is seen once it is committed.
            let (shard, timers) = (Rc::clone(&self.shard), Rc::clone(&host.timers));
            host.after_commit(appended, move |_| shard.timer_is_set(due, &timers));
        }
        self.save_due_snapshot();
    }

    /// Goes on undoing as far as this turn allows: what was asked for in it, and what the replies so far permit. Returns whether
    /// the compensation log has changed: then the actor must be rebuilt if the turn is not appended.
    ///
    /// The log is changed in place. A copy of it in each turn would make the steps of a saga cost the square of their number.
    fn advance_undo(&mut self, effects: &mut RequestedEffects, notes: &mut Vec<Note>) -> Result<bool, CodecError> {
        if effects.undo.is_empty() && !effects.ended && !self.state.rest.undo.is_undoing() {
            return Ok(false);
        }
        let mut changes = std::mem::take(&mut effects.undo);
        for change in &changes {
            self.state.undo(change);
        }
        if self.state.rest.undo.is_undoing() {
            // Compensation ends the saga by itself, once all is undone. To end it earlier would leave steps that are not.
            effects.ended = false;
            match self.state.rest.undo.next() {
                NextCompensation::Wait => {}
                NextCompensation::Send(planned) => effects.send_undo(planned),
                NextCompensation::Finish(finally) => {
                    for planned in finally {
                        effects.send_planned(planned);
                    }
                    effects.undo.push(CompensationChange::Finished);
                    effects.ended = true;
                }
            }
        }
        for change in &effects.undo {
            self.state.undo(change);
        }
        changes.append(&mut effects.undo);
        for change in &changes {
            let mut bytes = Vec::new();
            Codec::Bincode.encode(change, &mut bytes)?;
            notes.push(Note::Own(Bytes::from(bytes)));
        }
        if effects.ended {
            notes.push(Note::Ended);
            // Cleared in the store as well: an ended saga's timers must not ring for ever.
            // Those that this very turn has set as well, and those of types that are no longer listed.
            let mut names: BTreeSet<std::borrow::Cow<'static, str>> =
                self.state.rest.timers.keys().map(|name| name.clone().into()).collect();
            names.extend(effects.timers.drain(..).map(|timer| match timer {
                TimerSlot::Set { name, .. } | TimerSlot::Clear { name } => name,
            }));
            effects.timers.extend(names.into_iter().map(|name| TimerSlot::Clear { name }));
        }
        Ok(!changes.is_empty())
    }
}
