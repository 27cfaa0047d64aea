//! State as bytes: snapshots of aggregates and sagas, views of projections.
//!
//! The derives implement it in the one place where a state that serde does not know is reported.

use crate::message::{Codec, CodecError, Coded};

/// A state that is saved and restored.
pub trait Saved: Coded {
    /// The state as bytes.
    ///
    /// # Errors
    /// [`CodecError`] if the type has a form that bincode cannot write, or the state is too large.
    fn save(&self) -> Result<Vec<u8>, CodecError> {
        let mut bytes = Vec::new();
        Codec::Bincode.encode(self, &mut bytes).map(|()| bytes)
    }

    /// The state from bytes.
    ///
    /// # Errors
    /// [`CodecError`] if they are no such state.
    fn restore(bytes: &[u8]) -> Result<Self, CodecError> {
        Codec::Bincode.decode(bytes)
    }
}

/// Stands where an item with a mistake in it would save or restore. It never runs, because such an item does not compile.
///
/// # Errors
/// Always.
pub fn never_saved<T>() -> Result<T, CodecError> {
    Err(CodecError::Encode { reason: "the derive reported a mistake".to_owned() })
}
