//! What tests read from the stored turns of an actor.

use std::any::Any;

use super::compensation::CompensationChange;
use super::handler_table::HandlerTable;
use super::plan::Stateful;
use super::state::KeyState;
use crate::message::{Codec, CodecError};
use crate::store::{Note, StoredTurn, StreamState};
use crate::user_code::user_code;

/// The user's state, rebuilt from all turns of its stream.
pub(crate) fn user_state<A: Stateful>(turns: &[StoredTurn]) -> Result<A, CodecError> {
    let stored = StreamState { snapshot: None, turns: turns.to_vec() };
    let rebuilt = user_code(|| KeyState::rebuild(&HandlerTable::of::<A>(), &stored));
    let state = rebuilt.map_err(|panicked| CodecError::Decode { reason: panicked.to_string() })??;
    let user = state.user.and_then(|user| (user as Box<dyn Any>).downcast().ok());
    user.map(|user| *user).ok_or_else(|| CodecError::Decode { reason: "no state was rebuilt".to_owned() })
}

/// What a note says about the steps of a saga, if it says anything about them.
pub(crate) fn undo_change(note: &Note) -> Option<CompensationChange> {
    match note {
        Note::Own(bytes) => Codec::Bincode.decode(bytes).ok(),
        _ => None,
    }
}

/// Whether a note says that the saga begins to undo its steps.
pub(crate) fn begins_undo(note: &Note) -> bool {
    matches!(undo_change(note), Some(CompensationChange::Begin { .. }))
}

/// Returns whether a note says that an ended saga starts again.
pub(crate) fn restarts(note: &Note) -> bool {
    matches!(undo_change(note), Some(CompensationChange::Restarted))
}

/// Whether a note says that all steps are undone.
pub(crate) fn finished_undo(note: &Note) -> bool {
    matches!(undo_change(note), Some(CompensationChange::Finished))
}
