//! What one actor is made of, rebuilt from snapshot and log.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::compensation::{Compensation, CompensationChange};
use super::handler_table::{HandlerTable, UserState};
use super::parked::Parked;
use super::snapshots::SnapshotRule;
use super::timer_name::timer_in;
use crate::inbox::{DedupState, SavedDedupState};
use crate::message::{Codec, CodecError, Coded, Kind, MessageId, ReplyMode};
#[cfg(feature = "testing")]
use crate::store::StreamState;
use crate::store::{Note, Snapshot, StoredTurn};

/// The state of one actor: the user's, and what the framework remembers with it.
#[derive(Default)]
pub(crate) struct KeyState {
    /// The user's state while it is rebuilt. A live actor has it in a [place](super::handler_table::UserSlot) of its own.
    pub(crate) user: Option<Box<dyn UserState>>,
    /// The count of events.
    pub(crate) version: u64,
    /// The count of turns.
    pub(crate) turns: u64,
    /// The turn from which on the next snapshot is due.
    pub(super) snapshot_due: u64,
    pub(crate) seen: DedupState,
    pub(crate) rest: Seldom,
}

/// What few actors have anything of.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Rest {
    /// By name, the turn that set the timer.
    pub(crate) timers: BTreeMap<String, u64>,
    pub(crate) undo: Compensation,
    pub(crate) ended: bool,
    /// The message whose delivery has failed, and how often.
    pub(crate) failing: Option<(MessageId, u32)>,
    /// The dead letters that park the key, oldest first.
    pub(crate) parked: Parked,
    /// The commands sent by a saga that was started again, as far as a reply may come: replies to others belong to an earlier
    /// run. Not kept in snapshots, which are not taken in such a run.
    #[serde(skip)]
    pub(crate) asked: BTreeSet<MessageId>,
}

impl Rest {
    /// Whether a snapshot holds all that must be known. What parks a key, and what a restarted saga has sent, is read from the log.
    pub(crate) fn fits_snapshot(&self) -> bool {
        self.parked.is_empty() && !self.undo.is_restarted()
    }
}

/// A [`Rest`] that takes memory from its first change on: a million idle keys have none, and a turn looks at one word.
#[derive(Default)]
pub(crate) struct Seldom(Option<Box<Rest>>);

static NOTHING: Rest = Rest {
    timers: BTreeMap::new(),
    undo: Compensation::new(),
    ended: false,
    failing: None,
    parked: Parked::new(),
    asked: BTreeSet::new(),
};

impl Deref for Seldom {
    type Target = Rest;

    fn deref(&self) -> &Rest {
        self.0.as_deref().unwrap_or(&NOTHING)
    }
}

impl DerefMut for Seldom {
    fn deref_mut(&mut self) -> &mut Rest {
        self.0.get_or_insert_default()
    }
}

impl Seldom {
    /// The message that was failing has come through.
    pub(crate) fn recovered(&mut self) {
        if let Some(rest) = &mut self.0 {
            rest.failing = None;
        }
    }

    /// A turn has sent a message. Only a restarted saga needs to know.
    pub(crate) fn sent(&mut self, id: MessageId, kind: Kind, wants: ReplyMode) {
        if let Some(rest) = &mut self.0
            && rest.undo.is_restarted()
            && !rest.ended
            && kind == Kind::Command
            && wants != ReplyMode::Nothing
        {
            rest.asked.insert(id);
        }
    }
}

/// Everything but the user's state and the counters, as a snapshot keeps it.
#[derive(Serialize, Deserialize)]
struct SavedState {
    user: Vec<u8>,
    seen: SavedDedupState,
    rest: Rest,
}

impl KeyState {
    /// Rebuilds the state. Sends nothing: what was sent stands in the outbox. Calls user code: the caller catches its panics.
    #[cfg(feature = "testing")]
    pub(crate) fn rebuild(plan: &HandlerTable, stored: &StreamState) -> Result<Self, CodecError> {
        let mut state = Self::begin(plan, stored.snapshot.as_ref())?;
        state.go_on(plan, &stored.turns)?;
        Ok(state)
    }

    /// The state before the first turn, or that of a snapshot. Calls user code: the caller catches its panics.
    pub(crate) fn begin(plan: &HandlerTable, snapshot: Option<&Snapshot>) -> Result<Self, CodecError> {
        let mut state = Self::default();
        let rule = plan.snapshots.as_ref();
        if let Some(snapshot) = snapshot {
            // The turns begin behind it: one that cannot be used is an error, and then the whole stream is read.
            let usable = rule.filter(|rule| snapshot.schema == rule.schema);
            state = usable.and_then(|_| Self::restore(plan, snapshot)).ok_or_else(|| CodecError::Decode {
                reason: format!("the snapshot of turn {} cannot be used", snapshot.turn),
            })?;
        } else {
            state.user = Some((plan.facts.initial)());
        }
        let bytes = snapshot.map_or(0, |snapshot| snapshot.bytes.len());
        state.snapshot_due = rule.map_or(u64::MAX, |rule| rule.next(state.turns, bytes));
        Ok(state)
    }

    /// Takes in the next turns of the stream. Calls user code: the caller catches its panics.
    pub(crate) fn go_on(&mut self, plan: &HandlerTable, turns: &[StoredTurn]) -> Result<(), CodecError> {
        let known = self.turns;
        turns.iter().filter(|turn| turn.number > known).try_for_each(|turn| self.replay(plan, turn))
    }

    fn replay(&mut self, plan: &HandlerTable, turn: &StoredTurn) -> Result<(), CodecError> {
        if turn.number != self.turns + 1 {
            return Err(CodecError::Decode { reason: format!("turn {} follows turn {}", turn.number, self.turns) });
        }
        for event in &turn.events {
            match (plan.applies.get(event.name.as_str()), &mut self.user) {
                (Some(apply), Some(user)) => apply(&mut **user, event.version, event.codec, &event.payload)?,
                (Some(_), None) => {}
                // An event that is no longer applied changes nothing; it stays in the log for its subscribers.
                (None, _) if plan.knows_event(&event.name) => {}
                // One that was renamed would be lost from the state without a word.
                (None, _) => return Err(CodecError::UnknownEvent { name: event.name.to_string() }),
            }
        }
        self.version += turn.events.len() as u64;
        self.turns = turn.number;
        self.seen.turn(turn);
        if turn.from.is_some() || turn.digest.is_some() || turn.timer.is_some() {
            self.rest.recovered();
        }
        if let Some(timer) = &turn.timer {
            self.rest.timers.remove(timer);
        }
        for (name, set) in &turn.timers {
            if *set {
                self.rest.timers.insert(name.clone(), turn.number);
            } else {
                self.rest.timers.remove(name);
            }
        }
        for note in &turn.notes {
            self.note(plan.facts.domain, note)?;
        }
        for sent in &turn.sent {
            self.rest.sent(sent.id, sent.kind, sent.wants);
        }
        Ok(())
    }

    /// Takes down what a turn's note says. `own` is the actor's domain.
    pub(crate) fn note(&mut self, own: &str, note: &Note) -> Result<(), CodecError> {
        match note {
            Note::Attempt { message, attempt } => self.rest.failing = Some((*message, *attempt)),
            Note::DeadLetter(letter) => {
                self.rest.failing = None;
                self.rest.parked.add(letter, &timer_in(own, &letter.envelope));
            }
            Note::Resolved { message } => self.rest.parked.remove(*message),
            Note::Ended => {
                self.rest.ended = true;
                self.rest.timers.clear();
                self.rest.asked.clear();
            }
            Note::Own(bytes) => self.undo(&Codec::Bincode.decode::<CompensationChange>(bytes)?),
        }
        Ok(())
    }

    /// Changes the compensation log.
    pub(crate) fn undo(&mut self, change: &CompensationChange) {
        let rest = &mut *self.rest;
        rest.undo.change(change);
        if *change == CompensationChange::Restarted {
            rest.ended = false;
            rest.asked.clear();
        }
    }

    /// The state as a snapshot, with that of the user. Calls user code: the caller catches its panics.
    pub(crate) fn save(
        &self,
        user: Option<&dyn UserState>,
        rule: &SnapshotRule,
    ) -> Option<Result<Snapshot, CodecError>> {
        let user = match user?.save()? {
            Ok(user) => user,
            Err(error) => return Some(Err(error)),
        };
        let saved = SavedState { user, seen: self.seen.save(), rest: self.rest.clone() };
        Some(Coded::save(&saved).map(|bytes| Snapshot {
            turn: self.turns,
            version: self.version,
            schema: rule.schema,
            bytes: Bytes::from(bytes),
        }))
    }

    fn restore(plan: &HandlerTable, snapshot: &Snapshot) -> Option<Self> {
        let saved: SavedState = Coded::restore(&snapshot.bytes).ok()?;
        if !saved.rest.fits_snapshot() {
            return None;
        }
        Some(Self {
            user: Some((plan.facts.restore)(&saved.user)?),
            version: snapshot.version,
            turns: snapshot.turn,
            snapshot_due: 0,
            seen: DedupState::restore(saved.seen)?,
            rest: Seldom((saved.rest != NOTHING).then(|| Box::new(saved.rest))),
        })
    }
}
