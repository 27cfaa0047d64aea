//! The one place in which a derive requires serde's traits.
//!
//! Called by derived code. Calls the codecs.

use std::sync::Arc;

use whizbang_core::message::{Codec, CodecError, Coded, Shape, StateCoding};

/// The coding of messages of type `T`. A value of it proves that `T` is [`Coded`].
pub struct Coding<T> {
    write: fn(&T, Codec, &mut Vec<u8>) -> Result<(), CodecError>,
    read: fn(Codec, &[u8]) -> Result<T, CodecError>,
    shape: fn(Codec) -> Arc<Shape>,
}

impl<T> std::fmt::Debug for Coding<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Coding").finish_non_exhaustive()
    }
}

/// Returns the coding of `T`. A function and not a method: the compiler has a different error text for methods.
pub const fn coding<T: Coded + 'static>() -> Coding<T> {
    Coding { write: T::write, read: T::read, shape: T::shape }
}

/// Returns the coding of the state `T`.
pub const fn state_coding<T: Coded + 'static>() -> StateCoding<T> {
    StateCoding::of()
}

impl<T> Coding<T> {
    /// Appends the bytes of `value` to `into`.
    ///
    /// # Errors
    /// Encoding failed.
    pub fn encode(&self, value: &T, codec: Codec, into: &mut Vec<u8>) -> Result<(), CodecError> {
        (self.write)(value, codec, into)
    }

    /// Decodes a value.
    ///
    /// # Errors
    /// Decoding failed.
    pub fn decode(&self, codec: Codec, bytes: &[u8]) -> Result<T, CodecError> {
        (self.read)(codec, bytes)
    }

    /// Returns the shape of the bytes.
    pub fn shape(&self, codec: Codec) -> Option<Arc<Shape>> {
        Some((self.shape)(codec))
    }
}

/// Replaces the coding of an item with a mistake. It never runs, because such an item does not compile.
///
/// # Errors
/// Always.
pub fn never_coded<T>() -> Result<T, CodecError> {
    Err(CodecError::Encode { reason: "the derive reported an error".to_owned() })
}
