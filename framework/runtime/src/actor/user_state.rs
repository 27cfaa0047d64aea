//! The user's state of an actor, independent of its type.
//!
//! Read and changed by the entries of the [handler table](super::handler_table), which know the type.

use std::any::Any;

use super::turn_error::TurnError;
use whizbang_core::message::CodecError;
use whizbang_core::store::StoreError;

/// The state of an actor of unknown type.
pub trait UserState: Any {
    /// Encodes the state, if it has a coding.
    fn save(&self) -> Option<Result<Vec<u8>, CodecError>>;

    /// Same as [`Stateful::described`](super::plan::Stateful::described).
    #[cfg(feature = "testing")]
    fn described(&self) -> Option<String>;
}

/// The storage of the user's state in an actor. Empty until the state is rebuilt: its `Default` is user code and may
/// panic.
pub(crate) trait UserSlot {
    fn user(&self) -> Option<&dyn UserState>;
    fn user_mut(&mut self) -> Option<&mut dyn UserState>;
    /// Stores a state and drops the previous one, which is user code.
    fn put(&mut self, user: Option<Box<dyn UserState>>);
}

impl dyn UserSlot + '_ {
    /// Returns the user's state.
    ///
    /// # Errors
    /// [`StoreError::Closed`] until the state is rebuilt; no turn runs before.
    pub(crate) fn get(&self) -> Result<&dyn UserState, TurnError> {
        self.user().ok_or(TurnError::Store(StoreError::Closed))
    }
}
