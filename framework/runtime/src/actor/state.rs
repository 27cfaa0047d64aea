//! The state of one actor, rebuilt from snapshot and log.
//!
//! Called by the [actor](super::instance) when it loads, and by the [turn](super::turn), which applies the same notes.
//! Calls user code.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::compensation::{Compensation, CompensationChange};
use super::handler_table::HandlerTable;
use super::parked::Parked;
use super::planned_command::SavedShapes;
use super::snapshot_policy::SnapshotPolicy;
use super::timer_name::timer_in;
use super::user_state::UserState;
use crate::inbox::{DedupState, SavedDedupState};
use whizbang_core::message::{Codec, CodecError, Coded, Kind, MessageId, ReplyMode};
#[cfg(feature = "testing")]
use whizbang_core::store::StreamState;
use whizbang_core::store::{Note, Snapshot, StoredTurn};

/// The state of one actor: the user's, and the framework's part of it.
#[derive(Default)]
pub(crate) struct KeyState {
    /// The user's state while it is rebuilt. A live actor stores it in a [slot](super::user_state::UserSlot) of its
    /// own.
    pub(crate) user: Option<Box<dyn UserState>>,
    /// The number of events.
    pub(crate) version: u64,
    /// The number of turns.
    pub(crate) turns: u64,
    /// The turn at which the next snapshot is due.
    pub(super) snapshot_due: u64,
    /// The messages that were handled.
    pub(crate) dedup: DedupState,
    pub(crate) rare: LazyRareState,
}

/// The parts of the state that few actors have.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct RareState {
    /// The turn that set each timer, by name.
    pub(crate) timers: BTreeMap<String, u64>,
    pub(crate) compensation: Compensation,
    /// The saga has ended.
    pub(crate) ended: bool,
    /// The message whose delivery has failed, and how often.
    pub(crate) failed_attempts: Option<(MessageId, u32)>,
    /// The dead letters that park the key, oldest first.
    pub(crate) parked: Parked,
    /// The commands of a restarted saga whose replies may still arrive. Replies to others belong to an earlier run. Not
    /// stored in snapshots, because none is saved in such a run.
    #[serde(skip)]
    pub(crate) sent_commands: BTreeSet<MessageId>,
}

impl RareState {
    /// Returns whether a snapshot contains everything. Parked messages and the commands of a restarted saga are read
    /// from the log.
    pub(crate) fn fits_snapshot(&self) -> bool {
        self.parked.is_empty() && !self.compensation.is_restarted()
    }
}

/// A [`RareState`] that is allocated on its first change: a million idle keys have none, and a turn reads one word.
#[derive(Default)]
pub(crate) struct LazyRareState(Option<Box<RareState>>);

static EMPTY: RareState = RareState {
    timers: BTreeMap::new(),
    compensation: Compensation::new(),
    ended: false,
    failed_attempts: None,
    parked: Parked::new(),
    sent_commands: BTreeSet::new(),
};

impl Deref for LazyRareState {
    type Target = RareState;

    fn deref(&self) -> &RareState {
        self.0.as_deref().unwrap_or(&EMPTY)
    }
}

impl DerefMut for LazyRareState {
    fn deref_mut(&mut self) -> &mut RareState {
        self.0.get_or_insert_default()
    }
}

impl LazyRareState {
    /// Clears the failed attempts after a message was handled.
    pub(crate) fn clear_failure(&mut self) {
        if let Some(rest) = &mut self.0 {
            rest.failed_attempts = None;
        }
    }

    /// Records a sent message. Only a restarted saga needs it.
    pub(crate) fn record_sent(&mut self, id: MessageId, kind: Kind, wants: ReplyMode) {
        if let Some(rest) = &mut self.0
            && rest.compensation.is_restarted()
            && !rest.ended
            && kind == Kind::Command
            && wants != ReplyMode::Nothing
        {
            rest.sent_commands.insert(id);
        }
    }
}

/// Everything but the counters, as a snapshot stores it.
#[derive(Serialize, Deserialize)]
struct SavedState {
    user: Vec<u8>,
    seen: SavedDedupState,
    rest: RareState,
    shapes: Trailing<SavedShapes>,
}

/// The last field of a snapshot, which older versions do not write. It takes no bytes if it is `None`.
struct Trailing<T>(Option<T>);

impl<T: Serialize> Serialize for Trailing<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Some(value) => value.serialize(serializer),
            None => serializer.serialize_unit(),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Trailing<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The bytes end before it. Anything else that cannot be read here leaves bytes behind, which is an error.
        Ok(Self(T::deserialize(deserializer).ok()))
    }
}

impl KeyState {
    /// Rebuilds the state. Sends nothing: sent messages are in the outbox. Calls user code: the caller catches its
    /// panics.
    #[cfg(feature = "testing")]
    pub(crate) fn rebuild(handlers: &HandlerTable, stored: &StreamState) -> Result<Self, CodecError> {
        let mut state = Self::initial(handlers, stored.snapshot.as_ref())?;
        state.replay_all(handlers, &stored.turns)?;
        Ok(state)
    }

    /// Returns the state before the first turn, or that of a snapshot. Calls user code: the caller catches its panics.
    pub(crate) fn initial(handlers: &HandlerTable, snapshot: Option<&Snapshot>) -> Result<Self, CodecError> {
        let mut state = Self::default();
        let policy = handlers.snapshots.as_ref();
        if let Some(snapshot) = snapshot {
            // The turns follow the snapshot: an unusable one is an error, and then the whole stream is read.
            let usable = policy.filter(|policy| snapshot.schema == policy.schema);
            state = usable
                .and_then(|_| Self::restore(handlers, snapshot))
                .ok_or_else(|| CodecError::Decode { reason: format!("unusable snapshot of turn {}", snapshot.turn) })?;
        } else {
            state.user = Some((handlers.state.initial)());
        }
        let bytes = snapshot.map_or(0, |snapshot| snapshot.bytes.len());
        state.snapshot_due = policy.map_or(u64::MAX, |policy| policy.next(state.turns, bytes));
        Ok(state)
    }

    /// Applies the next turns of the stream. Calls user code: the caller catches its panics.
    pub(crate) fn replay_all(&mut self, handlers: &HandlerTable, turns: &[StoredTurn]) -> Result<(), CodecError> {
        let known = self.turns;
        turns.iter().filter(|turn| turn.number > known).try_for_each(|turn| self.replay(handlers, turn))
    }

    fn replay(&mut self, handlers: &HandlerTable, turn: &StoredTurn) -> Result<(), CodecError> {
        if turn.number != self.turns + 1 {
            return Err(CodecError::Decode { reason: format!("turn {} follows turn {}", turn.number, self.turns) });
        }
        for event in &turn.events {
            match (handlers.applies.get(event.name.as_str()), &mut self.user) {
                (Some(apply), Some(user)) => apply(&mut **user, event.version, event.codec, &event.payload)?,
                (Some(_), None) => {}
                // An event that is no longer applied changes nothing; it stays in the log for its subscribers.
                (None, _) if handlers.knows_event(&event.name) => {}
                // A renamed event would be missing from the state without an error.
                (None, _) => return Err(CodecError::UnknownEvent { name: event.name.to_string() }),
            }
        }
        self.version += turn.events.len() as u64;
        self.turns = turn.number;
        self.dedup.turn(turn);
        if turn.from.is_some() || turn.digest.is_some() || turn.timer.is_some() {
            self.rare.clear_failure();
        }
        if let Some(timer) = &turn.timer {
            self.rare.timers.remove(timer);
        }
        for (name, set) in &turn.timers {
            if *set {
                self.rare.timers.insert(name.clone(), turn.number);
            } else {
                self.rare.timers.remove(name);
            }
        }
        for note in &turn.notes {
            self.apply_note(handlers.facts.domain, note)?;
        }
        for sent in &turn.sent {
            self.rare.record_sent(sent.id, sent.kind, sent.wants);
        }
        Ok(())
    }

    /// Applies the note of a turn. `own` is the actor's domain.
    pub(crate) fn apply_note(&mut self, own: &str, note: &Note) -> Result<(), CodecError> {
        match note {
            Note::Attempt { message, attempt } => self.rare.failed_attempts = Some((*message, *attempt)),
            Note::DeadLetter(letter) => {
                self.rare.failed_attempts = None;
                self.rare.parked.add(letter, &timer_in(own, &letter.envelope));
            }
            Note::Resolved { message } => self.rare.parked.remove(*message),
            Note::Ended => {
                self.rare.ended = true;
                self.rare.timers.clear();
                self.rare.sent_commands.clear();
            }
            Note::Own(bytes) => self.apply_compensation(&Codec::Bincode.decode::<CompensationChange>(bytes)?),
        }
        Ok(())
    }

    /// Changes the compensation log.
    pub(crate) fn apply_compensation(&mut self, change: &CompensationChange) {
        let rest = &mut *self.rare;
        rest.compensation.apply(change);
        if *change == CompensationChange::Restarted {
            rest.ended = false;
            rest.sent_commands.clear();
        }
    }

    /// Returns a snapshot of the state and the user's state. Calls user code: the caller catches its panics.
    pub(crate) fn save(
        &self,
        user: Option<&dyn UserState>,
        policy: &SnapshotPolicy,
    ) -> Option<Result<Snapshot, CodecError>> {
        let user = match user?.save()? {
            Ok(user) => user,
            Err(error) => return Some(Err(error)),
        };
        let shapes = Trailing(Some(self.rare.compensation.saved_shapes()).filter(|shapes| !shapes.is_empty()));
        let saved = SavedState { user, seen: self.dedup.save(), rest: self.rare.clone(), shapes };
        Some(Coded::save(&saved).map(|bytes| Snapshot {
            turn: self.turns,
            version: self.version,
            schema: policy.schema,
            bytes: Bytes::from(bytes),
        }))
    }

    fn restore(handlers: &HandlerTable, snapshot: &Snapshot) -> Option<Self> {
        let mut saved: SavedState = Coded::restore(&snapshot.bytes).ok()?;
        if let Trailing(Some(shapes)) = saved.shapes {
            saved.rest.compensation.restore_shapes(shapes);
        }
        if !saved.rest.fits_snapshot() {
            return None;
        }
        Some(Self {
            user: Some((handlers.state.restore)(&saved.user)?),
            version: snapshot.version,
            turns: snapshot.turn,
            snapshot_due: 0,
            dedup: DedupState::restore(saved.seen)?,
            rare: LazyRareState((saved.rest != EMPTY).then(|| Box::new(saved.rest))),
        })
    }
}

#[cfg(test)]
mod tests;
