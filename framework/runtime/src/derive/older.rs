//! The one place in which a derive requires the conversion of an older version.
//!
//! Called by derived code. Calls the codecs.

use std::sync::Arc;

use super::{Downcast, Split, Upcast};
use whizbang_core::message::{Codec, CodecError, Shape};

/// The decoder of an older version of `New`. A value of it proves that the conversion exists.
pub struct Upcasting<New> {
    read: fn(Codec, &[u8]) -> Result<New, CodecError>,
    shape: fn(Codec) -> Arc<Shape>,
}

impl<New> std::fmt::Debug for Upcasting<New> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upcasting").finish_non_exhaustive()
    }
}

/// Returns the decoder of `Old` to `New`. A function and not a method: the compiler has a different error text for
/// methods.
pub const fn upcast<Old: Upcast<New>, New>() -> Upcasting<New> {
    Upcasting { read: Old::upcast, shape: Old::shape }
}

impl<New> Upcasting<New> {
    /// Decodes a message of the older version and converts it to the current one.
    ///
    /// # Errors
    /// Decoding the older type failed.
    pub fn decode(&self, codec: Codec, bytes: &[u8]) -> Result<New, CodecError> {
        (self.read)(codec, bytes)
    }

    /// Returns the shape of the older version.
    pub fn shape(&self, codec: Codec) -> Option<Arc<Shape>> {
        Some((self.shape)(codec))
    }
}

/// The encoder of `New` as an older version. A value of it proves that the conversion exists.
pub struct Downcasting<New> {
    write: fn(&New, Codec, &mut Vec<u8>) -> Result<(), CodecError>,
}

impl<New> std::fmt::Debug for Downcasting<New> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Downcasting").finish_non_exhaustive()
    }
}

/// Returns the encoder of `New` as `Old`.
pub const fn downcast<Old: Downcast<New>, New>() -> Downcasting<New> {
    Downcasting { write: Old::downcast }
}

impl<New> Downcasting<New> {
    /// Appends the message to `into`, converted to the older version.
    ///
    /// # Errors
    /// Encoding the older type failed.
    pub fn encode(&self, message: &New, codec: Codec, into: &mut Vec<u8>) -> Result<(), CodecError> {
        (self.write)(message, codec, into)
    }
}

/// The decoder of an older version of the event `New` that was split into several events.
pub struct Splitting<New> {
    read: fn(Codec, &[u8]) -> Result<Vec<New>, CodecError>,
    shape: fn(Codec) -> Arc<Shape>,
}

impl<New> std::fmt::Debug for Splitting<New> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Splitting").finish_non_exhaustive()
    }
}

/// Returns the decoder of `Old` to several `New`.
pub const fn split<Old: Split<New>, New>() -> Splitting<New> {
    Splitting { read: Old::split, shape: Old::shape }
}

impl<New> Splitting<New> {
    /// Decodes an event of the older version and calls `each` with every event that it was split into.
    ///
    /// # Errors
    /// Decoding the older type failed.
    pub fn each(&self, codec: Codec, bytes: &[u8], each: &mut dyn FnMut(New)) -> Result<(), CodecError> {
        (self.read)(codec, bytes).map(|all| all.into_iter().for_each(each))
    }

    /// Decodes an event of the older version where exactly one is expected.
    ///
    /// # Errors
    /// Decoding the older type failed; [`CodecError::Decode`] if it was not split into exactly one.
    pub fn one(&self, codec: Codec, bytes: &[u8]) -> Result<New, CodecError> {
        let mut all = (self.read)(codec, bytes)?;
        let count = all.len();
        match all.pop() {
            Some(one) if count == 1 => Ok(one),
            _ => Err(CodecError::Decode { reason: format!("was split into {count} events, expected one") }),
        }
    }

    /// Returns the shape of the older version.
    pub fn shape(&self, codec: Codec) -> Option<Arc<Shape>> {
        Some((self.shape)(codec))
    }
}
