//! One turn: decide, apply, append. Messages and replies leave the actor after the commit.
//!
//! Called by the [retries](super::retry), the [dead letters](super::dead_letters) and [inline turns](super::inline).
//! Calls user code and the store's writer.
//!
//! Why this order: `apply` runs before the append, because a panic in it must not leave a record that no replay can
//! read. A failed append then leaves a state that is ahead of the log, so the actor is marked and rebuilt before its
//! next turn. The watermark of the source moves only after the append; moved earlier, a crash would lose the message.
//! Appends are speculative: later turns decide on this state before it is durable, and a failed commit rebuilds all of
//! them.

use std::collections::BTreeSet;
use std::rc::Rc;

use bytes::Bytes;

use super::compensation::{CompensationChange, NextCompensation};
use super::live_actor::ActorInstance;
use super::requested::{AnyEffects, EventSlot, Outgoing, RequestedEffects, TimerSlot, TurnFacts};
use super::state::KeyState;
use super::thread::APPEND_TASK;
use super::turn_error::TurnError;
use super::user_state::UserSlot;
use crate::router::SequenceTracker;
use whizbang_core::message::{Codec, CodecError};
use whizbang_core::store::{Appended, EventWrite, Mark, Note, OutboxWrite, Source, StoreError, TimerWrite, Turn};
use whizbang_core::telemetry::passes;
use whizbang_core::user_code::user_code;

/// The way in which a turn marks its message as handled.
pub(crate) enum DedupMark {
    /// The message is not marked.
    None,
    /// By its message id.
    MessageId { digest: u64 },
    /// By the position in its source.
    Sequence { source: Rc<Source>, sequence: u64, tracker: Rc<dyn SequenceTracker> },
    /// By the timer's name.
    Timer { name: String },
}

/// A turn that was appended.
pub(crate) struct AppendedTurn {
    pub(crate) appended: Appended,
    pub(crate) reply: Bytes,
}

impl ActorInstance {
    /// Runs one turn: `decide` fills the effects from the state, the effects change the state, and one record is
    /// appended.
    ///
    /// After a failure the state is unchanged, or the actor is marked to load again.
    pub(crate) fn run_turn(
        &mut self,
        facts: TurnFacts,
        mark: &DedupMark,
        mut notes: Vec<Note>,
        with_reply: bool,
        decide: impl FnOnce(&KeyState, &dyn UserSlot, &mut dyn AnyEffects) -> Result<(), TurnError>,
    ) -> Result<AppendedTurn, TurnError> {
        // The actor may have waited before this. No decision is made and nothing is written on a state that differs
        // from the log.
        if let Some(error) = self.unavailable() {
            return Err(TurnError::Store(error));
        }
        #[cfg(feature = "testing")]
        self.compare_with_log();
        passes!("actor", self.dispatcher.handlers.facts.name, facts.id, facts.correlation);
        let mut effects = self.dispatcher.take_effects();
        let decided = self.dispatcher.context.user_code.call(self.dispatcher.label, || {
            // Drops the events of the previous turn: values of the user.
            effects.requested().begin(facts);
            decide(&self.state, &self.user, &mut *effects)
        });
        let requested = effects.requested();
        let checked = match decided {
            Ok(Ok(())) => match requested.error.take() {
                None => requested.hold_delayed().map_err(|error| TurnError::Effects(error.to_string())),
                Some(error) => Err(TurnError::Effects(error.to_string())),
            },
            Ok(Err(failure)) => Err(failure),
            Err(panicked) => Err(panicked.into()),
        };
        let appended = checked.and_then(|()| self.apply_and_append(requested, mark, &mut notes));
        let turned = appended.map(|appended| AppendedTurn {
            appended,
            // Only callers that answer with bytes need them; an inline turn has the typed reply.
            reply: if with_reply { Bytes::copy_from_slice(&requested.reply) } else { Bytes::new() },
        });
        self.dispatcher.put_effects(effects);
        turned
    }

    fn apply_and_append(
        &mut self,
        effects: &mut RequestedEffects,
        mark: &DedupMark,
        notes: &mut Vec<Note>,
    ) -> Result<Appended, TurnError> {
        let undoes = self.advance_compensation(effects, notes).map_err(|error| {
            self.load_error = Some(Box::new(StoreError::Closed));
            TurnError::Effects(error.to_string())
        })?;
        // An older version has stored this timer under another name: it is set and cleared there as well.
        for at in 0..effects.timers.len() {
            let older =
                effects.timers.get(at).and_then(|timer| self.dispatcher.handlers.legacy_timer_name(timer.name()));
            if let Some(older) = older.filter(|older| self.state.rare.timers.contains_key(*older)) {
                let name = older.to_owned().into();
                effects.timers.push(TimerSlot::Clear { name });
            }
        }
        // A timer that fired while its key was parked is as late as one that fires after it was cleared.
        if !self.state.rare.parked.is_empty() {
            for timer in &effects.timers {
                let late = self.state.rare.parked.timers(timer.name());
                let late = late.iter().filter(|message| **message != effects.turn.id);
                notes.extend(late.map(|message| Note::Resolved { message: *message }));
            }
        }
        let mut is_lost = false;
        // The state changes before the append: a panic in `apply` must not leave a record that can never be read.
        if !effects.events.is_empty()
            && let Some(user) = self.user.user_mut()
        {
            let applied = self.dispatcher.context.user_code.call(self.dispatcher.label, || effects.apply_to(user));
            if let Err(panicked) = applied {
                self.load_error = Some(Box::new(StoreError::Closed));
                return Err(panicked.into());
            }
        }
        let appended = user_code(|| self.append(effects, mark, notes)).unwrap_or_else(|panicked| {
            is_lost = true;
            Err(self.dispatcher.context.report_panic(APPEND_TASK, panicked.text()))
        });
        match appended {
            Err(error) if is_lost => {
                self.load_error = Some(Box::new(error.clone()));
                Err(TurnError::Lost(error))
            }
            Ok(appended) => {
                self.stuck.served();
                self.update_memory(effects, mark, notes, appended);
                Ok(appended)
            }
            Err(error) => {
                self.dispatcher.context.report_append_error(&error);
                self.count_refused_turn(&error);
                // The actor must be rebuilt before its next turn if its state has changed and the log has not, or if the log has
                // a turn that the state lacks: the shard's earlier owner may have committed it after this state was loaded.
                if undoes || !effects.events.is_empty() || matches!(error, StoreError::OutOfTurn { .. }) {
                    self.load_error = Some(Box::new(error.clone()));
                }
                Err(TurnError::Store(error))
            }
        }
    }

    fn append(&mut self, effects: &RequestedEffects, mark: &DedupMark, notes: &[Note]) -> Result<Appended, StoreError> {
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
        let mark = match mark {
            DedupMark::None => Mark::None,
            DedupMark::MessageId { digest } => Mark::Outside { digest: *digest },
            DedupMark::Sequence { source, sequence, tracker } => {
                Mark::From { source, sequence: *sequence, floor: tracker.watermark_after(*sequence) }
            }
            DedupMark::Timer { name } => Mark::Timer { name },
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
            headers: &effects.headers,
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

    /// Updates the actor's memory after the append.
    fn update_memory(&mut self, effects: &mut RequestedEffects, mark: &DedupMark, notes: &[Note], appended: Appended) {
        let context = Rc::clone(&self.dispatcher.context);
        let state = &mut self.state;
        let events = effects.events.len() as u64;
        state.version += events;
        state.turns += 1;
        match mark {
            DedupMark::None => {}
            DedupMark::MessageId { digest } => {
                state.dedup.id(
                    effects.turn.id,
                    effects.turn.time,
                    *digest,
                    &effects.reply,
                    self.dispatcher.handlers.facts.codec,
                );
                state.rare.clear_failure();
            }
            DedupMark::Sequence { source, sequence, tracker } => {
                // Not before the append: a watermark above a message that is not in the log would lose it.
                tracker.mark_appended(*sequence);
                state.dedup.place(source, *sequence);
                state.rare.clear_failure();
            }
            DedupMark::Timer { name } => {
                state.rare.timers.remove(name);
                state.rare.clear_failure();
            }
        }
        for timer in &effects.timers {
            match timer {
                TimerSlot::Set { name, .. } => {
                    state.rare.timers.insert(name.to_string(), state.turns);
                }
                TimerSlot::Clear { name } => {
                    state.rare.timers.remove(&**name);
                }
            }
        }
        for Outgoing { envelope, .. } in &effects.outgoing {
            state.rare.record_sent(envelope.id, envelope.kind, envelope.wants);
        }
        for note in notes {
            // The actor's own notes were applied when they were made.
            if !matches!(note, Note::Own(_)) {
                drop(state.apply_note(self.dispatcher.handlers.facts.domain, note));
            }
        }
        self.stream = appended.stream;
        self.last_append.set((!appended.committed).then_some(appended.ticket));
        if appended.committed {
            context.report_commit();
        }
        if matches!(mark, DedupMark::MessageId { .. }) && effects.turn.id.time().is_none() {
            self.keep_uncommitted(effects.turn.id, appended);
        }
        context.counts.turns.one();
        context.counts.events.many(events);
        if effects.rejected {
            context.counts.rejections.one();
        }
        if effects.expired {
            context.counts.expired.one();
        }
        if (events > 0 && self.shard.relays_events()) || !effects.outgoing.is_empty() {
            let (shard, dirty_context) = (Rc::clone(&self.shard), Rc::clone(&context));
            context.after_commit(&self.shard, appended, move |_| dirty_context.mark_dirty(&shard));
        }
        let set = effects.timers.iter().filter_map(|timer| match timer {
            TimerSlot::Set { due, .. } => Some(*due),
            TimerSlot::Clear { .. } => None,
        });
        if let Some(due) = set.min() {
            // The timer loop reads the timer once it is committed.
            let (shard, timers) = (Rc::clone(&self.shard), Rc::clone(&context.timers));
            context.after_commit(&self.shard, appended, move |_| shard.schedule_timer(due, &timers));
        }
        self.save_due_snapshot();
    }

    /// Advances the compensation as far as this turn allows: by its own requests and by the replies so far. Returns
    /// whether the compensation log has changed; the actor must then be rebuilt if the turn is not appended.
    ///
    /// The log is changed in place. A copy in each turn would make the cost of a saga grow with the square of its
    /// steps.
    fn advance_compensation(
        &mut self,
        effects: &mut RequestedEffects,
        notes: &mut Vec<Note>,
    ) -> Result<bool, CodecError> {
        if effects.compensation.is_empty() && !effects.ended && !self.state.rare.compensation.is_compensating() {
            return Ok(false);
        }
        let mut changes = std::mem::take(&mut effects.compensation);
        for change in &changes {
            self.state.apply_compensation(change);
        }
        if self.state.rare.compensation.is_compensating() {
            // Compensation ends the saga itself, once everything is undone. Ending it earlier would leave steps that
            // are not undone.
            effects.ended = false;
            match self.state.rare.compensation.next() {
                NextCompensation::Wait => {}
                NextCompensation::Send(planned) => effects.send_compensation(planned),
                NextCompensation::Finish(finally) => {
                    for planned in finally {
                        effects.send_planned(planned);
                    }
                    effects.compensation.push(CompensationChange::Finished);
                    effects.ended = true;
                }
            }
        }
        for change in &effects.compensation {
            self.state.apply_compensation(change);
        }
        changes.append(&mut effects.compensation);
        for change in &changes {
            for stored in [Some(change), change.shapes().as_ref()].into_iter().flatten() {
                let mut bytes = Vec::new();
                Codec::Bincode.encode(stored, &mut bytes)?;
                notes.push(Note::Own(Bytes::from(bytes)));
            }
        }
        if effects.ended {
            notes.push(Note::Ended);
            // Cleared in the store as well: an ended saga's timers must not fire forever. This includes those set in
            // this turn, and those of types that are no longer listed.
            let mut names: BTreeSet<std::borrow::Cow<'static, str>> =
                self.state.rare.timers.keys().map(|name| name.clone().into()).collect();
            names.extend(effects.timers.drain(..).map(|timer| match timer {
                TimerSlot::Set { name, .. } | TimerSlot::Clear { name } => name,
            }));
            effects.timers.extend(names.into_iter().map(|name| TimerSlot::Clear { name }));
        }
        Ok(!changes.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::super::ActorType;
    use super::super::live_actor::Dispatcher;
    use super::super::tests::{START, context, open};
    use super::*;
    use crate::tests::pots::Watch;
    use whizbang_core::message::{MessageId, Name};

    /// An actor whose compensation log has changed is rebuilt if its turn is not appended.
    #[test]
    fn changes_of_the_compensation_log_are_reported() {
        let (context, name) = (context(), |name| Name::from_static(name).unwrap());
        let shard = open(&context, 0);
        let dispatcher = Dispatcher::new(context, ActorType::of::<Watch>(), name("pots"), name("watch"), 8);
        let live = (dispatcher.new_live)(Rc::clone(&dispatcher), shard, Rc::from("k"));
        let advance = |request: fn(&mut RequestedEffects)| {
            let mut effects = dispatcher.take_effects();
            let (id, key) = (MessageId::from_u128(1), Rc::from("k"));
            let facts = TurnFacts { id, correlation: id, traceparent: None, headers: Vec::new(), time: START, key };
            effects.requested().begin(facts);
            request(effects.requested());
            let mut notes = Vec::new();
            let changed = live.actor.borrow_mut().advance_compensation(effects.requested(), &mut notes).unwrap();
            (changed, notes.len(), effects.requested().ended)
        };
        assert_eq!(advance(|_| {}), (false, 0, false));
        assert_eq!(advance(|effects| effects.ended = true), (false, 1, true));
        // Nothing is to be undone, so the compensation ends at once.
        assert_eq!(advance(RequestedEffects::begin_compensation), (true, 3, true));
        assert_eq!(advance(|_| {}), (false, 0, false));
    }
}
