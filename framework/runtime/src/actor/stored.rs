//! Readers of an actor's stored turns for tests.
//!
//! Called by the test kit. Calls user code.

use std::any::Any;

use super::actor_type::ActorType;
use super::compensation::CompensationChange;
use super::plan::Stateful;
use super::state::KeyState;
use whizbang_core::message::{Codec, CodecError};
use whizbang_core::store::{Note, StoredTurn, StreamState};
use whizbang_core::user_code::user_code;

/// Rebuilds the user's state from all turns of its stream.
pub fn user_state<A: Stateful>(turns: &[StoredTurn]) -> Result<A, CodecError> {
    let stored = StreamState { snapshot: None, turns: turns.to_vec() };
    let rebuilt = user_code(|| KeyState::rebuild(&ActorType::of::<A>().table, &stored));
    let state = rebuilt.map_err(|panicked| CodecError::Decode { reason: panicked.to_string() })??;
    let user = state.user.and_then(|user| (user as Box<dyn Any>).downcast().ok());
    user.map(|user| *user).ok_or_else(|| CodecError::Decode { reason: "failed to rebuild a state".to_owned() })
}

/// Returns the change of a saga's steps in a note, if it contains one.
pub fn compensation_change(note: &Note) -> Option<CompensationChange> {
    match note {
        Note::Own(bytes) => Codec::Bincode.decode(bytes).ok(),
        _ => None,
    }
}

/// Returns whether a note begins the compensation of a saga.
pub fn begins_compensation(note: &Note) -> bool {
    matches!(compensation_change(note), Some(CompensationChange::Begin { .. }))
}

/// Returns whether a note restarts an ended saga.
pub fn restarts(note: &Note) -> bool {
    matches!(compensation_change(note), Some(CompensationChange::Restarted))
}

/// Returns whether a note ends a compensation.
pub fn finishes_compensation(note: &Note) -> bool {
    matches!(compensation_change(note), Some(CompensationChange::Finished))
}
