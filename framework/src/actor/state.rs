//! What one actor is made of, rebuilt from snapshot and log.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::plan::{Plan, Stateful};
use super::undo::{Undo, UndoChange};
use crate::inbox::{SavedSeen, Seen};
use crate::message::{Codec, CodecError, Coded, MessageId};
use crate::store::{Note, Snapshot, StoredTurn, StreamState};

/// The state of one actor: the user's, and what the framework remembers with it.
pub(crate) struct KeyState<A> {
    pub(crate) user: A,
    /// The count of events.
    pub(crate) version: u64,
    /// The count of turns.
    pub(crate) turns: u64,
    pub(crate) seen: Seen,
    /// By name, the turn that set the timer.
    pub(crate) timers: BTreeMap<String, u64>,
    pub(crate) undo: Undo,
    pub(crate) ended: bool,
    /// The message whose delivery has failed, and how often.
    pub(crate) failing: Option<(MessageId, u32)>,
    /// The dead letters that park the key, oldest first.
    pub(crate) parked: Vec<MessageId>,
}

impl<A: Stateful> Default for KeyState<A> {
    fn default() -> Self {
        Self {
            user: A::initial(),
            version: 0,
            turns: 0,
            seen: Seen::default(),
            timers: BTreeMap::new(),
            undo: Undo::default(),
            ended: false,
            failing: None,
            parked: Vec::new(),
        }
    }
}

/// Everything but the user's state and the counters, as a snapshot keeps it.
#[derive(Serialize, Deserialize)]
struct SavedState {
    user: Vec<u8>,
    seen: SavedSeen,
    timers: BTreeMap<String, u64>,
    undo: Undo,
    ended: bool,
    failing: Option<(MessageId, u32)>,
    parked: Vec<MessageId>,
}

impl<A: Stateful> KeyState<A> {
    /// Rebuilds the state. Sends nothing: what was sent stands in the outbox.
    pub(crate) fn rebuild(plan: &Plan<A>, stored: &StreamState) -> Result<Self, CodecError> {
        let mut state = Self::default();
        if let Some(snapshot) = &stored.snapshot {
            // The turns begin behind it: one that cannot be used is an error, and then the whole stream is read.
            let usable = Some(snapshot).filter(|snapshot| snapshot.schema == A::SNAPSHOT_SCHEMA);
            state = usable.and_then(Self::restore).ok_or_else(|| CodecError::Decode {
                reason: format!("the snapshot of turn {} cannot be used", snapshot.turn),
            })?;
        }
        let restored = state.turns;
        for turn in stored.turns.iter().filter(|turn| turn.number > restored) {
            state.replay(plan, turn)?;
        }
        Ok(state)
    }

    fn replay(&mut self, plan: &Plan<A>, turn: &StoredTurn) -> Result<(), CodecError> {
        if turn.number != self.turns + 1 {
            return Err(CodecError::Decode { reason: format!("turn {} follows turn {}", turn.number, self.turns) });
        }
        for event in &turn.events {
            // An event that is no longer applied changes nothing; it stays in the log for those who take it.
            if let Some(apply) = plan.applies.get(event.name.as_str()) {
                apply(&mut self.user, event.version, event.codec, &event.payload)?;
            }
        }
        self.version += turn.events.len() as u64;
        self.turns = turn.number;
        self.seen.turn(turn);
        if turn.from.is_some() || turn.digest.is_some() || turn.timer.is_some() {
            self.failing = None;
        }
        if let Some(timer) = &turn.timer {
            self.timers.remove(timer);
        }
        for (name, set) in &turn.timers {
            if *set {
                self.timers.insert(name.clone(), turn.number);
            } else {
                self.timers.remove(name);
            }
        }
        for note in &turn.notes {
            self.note(note)?;
        }
        Ok(())
    }

    /// Takes down what a turn's note says.
    pub(crate) fn note(&mut self, note: &Note) -> Result<(), CodecError> {
        match note {
            Note::Attempt { message, attempt } => self.failing = Some((*message, *attempt)),
            Note::DeadLetter(letter) => {
                self.failing = None;
                self.parked.push(letter.envelope.id);
            }
            Note::Resolved { message } => self.parked.retain(|parked| parked != message),
            Note::Ended => {
                self.ended = true;
                self.timers.clear();
            }
            Note::Own(bytes) => self.undo.change(&Codec::Bincode.decode::<UndoChange>(bytes)?),
        }
        Ok(())
    }

    /// The state as a snapshot, if the actor type keeps them.
    pub(crate) fn save(&self) -> Option<Result<Snapshot, CodecError>> {
        let user = match self.user.save()? {
            Ok(user) => user,
            Err(error) => return Some(Err(error)),
        };
        let saved = SavedState {
            user,
            seen: self.seen.save(),
            timers: self.timers.clone(),
            undo: self.undo.clone(),
            ended: self.ended,
            failing: self.failing,
            parked: self.parked.clone(),
        };
        Some(Coded::save(&saved).map(|bytes| Snapshot {
            turn: self.turns,
            version: self.version,
            schema: A::SNAPSHOT_SCHEMA,
            bytes: Bytes::from(bytes),
        }))
    }

    fn restore(snapshot: &Snapshot) -> Option<Self> {
        let saved: SavedState = Coded::restore(&snapshot.bytes).ok()?;
        Some(Self {
            user: A::restore(&saved.user)?,
            version: snapshot.version,
            turns: snapshot.turn,
            seen: Seen::restore(saved.seen)?,
            timers: saved.timers,
            undo: saved.undo,
            ended: saved.ended,
            failing: saved.failing,
            parked: saved.parked,
        })
    }
}
