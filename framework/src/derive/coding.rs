//! The one place in which a derive asks for serde's traits.

use std::sync::Arc;

use crate::message::{Codec, CodecError, Coded, Shape, StateCoding};

/// How messages of the type `T` become bytes and back. Having one proves that `T` is [`Coded`].
pub struct Coding<T> {
    write: fn(&T, Codec, &mut Vec<u8>) -> Result<(), CodecError>,
    read: fn(Codec, &[u8]) -> Result<T, CodecError>,
    shape: fn(Codec) -> Arc<Shape>,
}

/// The coding of `T`. A function and no method: for those the compiler has an error text of its own.
pub const fn coding<T: Coded + 'static>() -> Coding<T> {
    Coding { write: T::write, read: T::read, shape: T::shape }
}

/// The coding of the state `T`.
pub const fn state_coding<T: Coded + 'static>() -> StateCoding<T> {
    StateCoding::of()
}

impl<T> Coding<T> {
    /// Appends the bytes of `value` to `into`.
    ///
    /// # Errors
    /// What the codec says.
    pub fn encode(&self, value: &T, codec: Codec, into: &mut Vec<u8>) -> Result<(), CodecError> {
        (self.write)(value, codec, into)
    }

    /// Reads a value.
    ///
    /// # Errors
    /// What the codec says.
    pub fn decode(&self, codec: Codec, bytes: &[u8]) -> Result<T, CodecError> {
        (self.read)(codec, bytes)
    }

    /// The shape of the bytes.
    pub fn shape(&self, codec: Codec) -> Option<Arc<Shape>> {
        Some((self.shape)(codec))
    }
}

/// Stands where an item with a mistake in it would be written or read. It never runs, because such an item does not compile.
///
/// # Errors
/// Always.
pub fn never_coded<T>() -> Result<T, CodecError> {
    Err(CodecError::Encode { reason: "the derive reported a mistake".to_owned() })
}
